//! `layered discard`: deletes a kept run, which [`kept`](crate::kept) finds.
//! [`sweep`](crate::sweep) deletes the runs that were killed.

use std::process::ExitCode;

use crate::kept::KeptArgs;

/// Delete a run that --keep-failed kept.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  layered discard /var/cache/layers/scratch/kept-0123456789abcdef")]
pub(crate) struct Args {
    #[command(flatten)]
    kept: KeptArgs,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    args.kept.discard()?;
    Ok(ExitCode::SUCCESS)
}
