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
    /// Scratch directory of the runs [default: $TMPDIR or /tmp].
    scratch: Option<PathBuf>,
    /// Print one JSON object instead of lines.
    ///
    /// The keys are `removed` (paths), `live` (the number of live runs) and `failed`, a list of
    /// objects with `path` and `message`.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let swept = runner::sweep(args.scratch.unwrap_or_else(std::env::temp_dir))?;
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", escaped_json(to_json(&swept)))?;
    } else {
        for path in &swept.removed {
            writeln!(out, "removed {}", quoted(path))?;
        }
        writeln!(out, "dead runs removed: {}, live runs: {}", swept.removed.len(), swept.live)?;
    }
    let status = if swept.failed.is_empty() { ExitCode::SUCCESS } else { crate::FAILURE.into() };
    for (path, cause) in swept.failed {
        crate::complain(format_args!("cannot remove the dead run {}: {:#}", quoted(&path), anyhow::Error::from(cause)));
    }
    Ok(status)
}

fn to_json(swept: &Swept) -> Value {
    let removed = swept.removed.iter().map(json_path::to_value);
    let failed = swept.failed.iter().map(|(path, cause)| {
        let reason = std::error::Error::source(cause).map(|source| format!(": {source}")).unwrap_or_default();
        json!({"path": json_path::to_value(path), "message": format!("{cause}{reason}")})
    });
    json!({"removed": removed.collect::<Vec<_>>(), "live": swept.live, "failed": failed.collect::<Vec<_>>()})
}
