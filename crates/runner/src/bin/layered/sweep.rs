use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// Remove what killed runs have left: their directories and cgroups. Live runs and everything else are left alone.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  layered sweep /var/cache/layers/scratch")]
pub(crate) struct Args {
    /// The scratch directory of the runs [default: the system's temporary directory].
    scratch: Option<PathBuf>,
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let swept = runner::sweep(args.scratch.unwrap_or_else(std::env::temp_dir))?;
    let mut out = io::stdout().lock();
    for path in &swept.removed {
        writeln!(out, "removed {}", path.display())?;
    }
    writeln!(out, "{} dead runs removed, {} live ones left alone", swept.removed.len(), swept.live)?;
    let status = if swept.failed.is_empty() { ExitCode::SUCCESS } else { crate::FAILURE.into() };
    for (path, cause) in swept.failed {
        crate::complain(format_args!("{} is left: {:#}", path.display(), anyhow::Error::from(cause)));
    }
    Ok(status)
}
