//! `layered sweep`: decides how a sweep is shown. `runner::sweep` decides which runs are dead;
//! [`discard`](crate::discard) deletes a kept run.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use layer::display::quoted;

use crate::table;

/// Remove the directories and cgroups that killed runs left behind.
///
/// sweep also removes the skeletons that runs over layers of other users keep for the next run. It
/// leaves live runs, kept runs and everything else in the directory alone.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  layered sweep /var/cache/layers/scratch")]
pub(crate) struct Args {
    /// Scratch directory of the runs [default: $LAYERED_SCRATCH, $TMPDIR or /tmp].
    scratch: Option<PathBuf>,
    /// Print one JSON object instead of lines.
    ///
    /// The keys are `removed` and `skeletons` (paths), `live` (the number of live runs) and
    /// `failed`, a list of objects with `path` and `message`.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let swept = runner::sweep(crate::defaults::scratch(args.scratch.as_deref()))?;
    let mut out = io::stdout().lock();
    if args.json {
        table::print_json(&mut out, &swept)?;
    } else {
        for path in swept.removed.iter().chain(&swept.skeletons) {
            writeln!(out, "removed {}", quoted(path))?;
        }
        writeln!(out, "dead runs removed: {}, live runs: {}", swept.removed.len(), swept.live)?;
    }
    let status = if swept.failed.is_empty() { ExitCode::SUCCESS } else { crate::FAILURE.into() };
    for (path, error) in swept.failed {
        let error = anyhow::Error::from(error);
        crate::complain(format_args!("cannot remove {}: {error:#}", quoted(&path)));
    }
    Ok(status)
}
