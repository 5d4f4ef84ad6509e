//! `layered sweep`: decides how a sweep is shown. `runner::sweep` decides which runs are dead;
//! [`discard`](crate::discard) deletes a kept run.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use layer::display::{escaped_json, quoted};
use layer::json_path;
use runner::Swept;
use serde_json::{Value, json};

/// Remove the directories and cgroups that killed runs left behind.
///
/// sweep leaves live runs, kept runs and everything else in the directory alone.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  layered sweep /var/cache/layers/scratch")]
pub(crate) struct Args {
    /// Scratch directory of the runs [default: $LAYERED_SCRATCH, $TMPDIR or /tmp].
    scratch: Option<PathBuf>,
    /// Print one JSON object instead of lines.
    ///
    /// The keys are `removed` (paths), `live` (the number of live runs) and `failed`, a list of
    /// objects with `path` and `message`.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Swept { removed, live, failed, .. } = runner::sweep(crate::defaults::scratch(args.scratch.as_deref()))?;
    let failed: Vec<_> =
        failed.into_iter().map(|(path, error)| (path, format!("{:#}", anyhow::Error::from(error)))).collect();
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", escaped_json(to_json(&removed, live, &failed)))?;
    } else {
        for path in &removed {
            writeln!(out, "removed {}", quoted(path))?;
        }
        writeln!(out, "dead runs removed: {}, live runs: {live}", removed.len())?;
    }
    for (path, message) in &failed {
        crate::complain(format_args!("cannot remove the dead run {}: {message}", quoted(path)));
    }
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { crate::FAILURE.into() })
}

fn to_json(removed: &[PathBuf], live: usize, failed: &[(PathBuf, String)]) -> Value {
    let removed: Vec<_> = removed.iter().map(json_path::to_value).collect();
    let failed = failed.iter().map(|(path, message)| json!({"path": json_path::to_value(path), "message": message}));
    json!({"removed": removed, "live": live, "failed": failed.collect::<Vec<_>>()})
}
