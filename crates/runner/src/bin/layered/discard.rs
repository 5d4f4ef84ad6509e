use std::process::ExitCode;

use runner::Upper;

use crate::kept::KeptArgs;

/// Delete what a run with --keep-failed has left.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  layered discard /var/cache/layers/scratch/kept-0123456789abcdef")]
pub(crate) struct Args {
    #[command(flatten)]
    kept: KeptArgs,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    Upper::discard(args.kept.dir())?;
    Ok(ExitCode::SUCCESS)
}
