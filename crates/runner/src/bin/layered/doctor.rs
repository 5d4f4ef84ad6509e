use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use container::Runtime;
use layer::display::escaped_json;
use serde_json::json;

mod access;
mod cgroups;
mod check;
mod limits;
mod overlay;
mod privilege;
mod runtime;
mod scratch;
mod trial;

use check::{Check, Verdict};

/// Tell whether this machine can do runs, and what is in their way: kernel, scratch directory, cgroups, runtime, limits.
///
/// Everything is tried out, in the scratch directory, and removed again: overlays are mounted, files are deleted through them, and
/// a container runs.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// Where runs are to have their directories [default: the system's temporary directory].
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// A directory of layers: look whether other users of the machine reach what is in them.
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// The OCI runtime: runc, crun, youki, or the path of one.
    #[arg(long, value_name = "NAME|PATH", default_value = "runc")]
    runtime: PathBuf,
    /// One JSON object instead of lines: `works` and `checks`, each with `name`, `verdict`, `found`, `means` and `advice`.
    #[arg(long)]
    json: bool,
}

const AFTER_HELP: &str = "\
Each line is ok, a warning (runs work, but see there), failed (no run can work) or skipped.
Exit status: 0 if runs work, 1 if not, 125 if that could not be told.

Not checked: what is in your base and your layers, the host's network, whether the scratch has room for
what a command writes.

Examples:
  layered doctor
  layered doctor --scratch /var/cache/layers/scratch --store /var/cache/layers --runtime crun
  layered doctor --json | jq -r '.checks[] | select(.verdict != \"ok\")'";

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let scratch = args.scratch.clone().unwrap_or_else(std::env::temp_dir);
    let checks = checks(&scratch, args.store.as_deref(), &Runtime::new(&args.runtime));
    let works = checks.iter().all(|check| check.verdict != Verdict::Failed);
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", escaped_json(json!({"works": works, "checks": checks})))?;
    } else {
        check::print(&mut out, &checks, check::terminal_width())?;
        writeln!(out, "{}", conclusion(&checks))?;
    }
    Ok(if works { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// All of them, in the order in which one rests on another.
fn checks(scratch: &Path, store: Option<&Path>, runtime: &Runtime) -> Vec<Check> {
    let mut checks = privilege::checks();
    let may_mount = container::require_privilege().is_ok();
    let (found, scratch) = scratch::checks(scratch);
    checks.extend(found);
    checks.extend(scratch.as_deref().and_then(access::scratch));
    checks.extend(store.map(access::store));
    let (found, rungs) = overlay::checks(scratch.as_deref().filter(|_| may_mount));
    checks.extend(found);
    checks.extend(cgroups::checks());
    let (found, starts) = runtime::checks(runtime);
    checks.extend(found);
    checks.extend(limits::checks());
    checks.extend(trial::checks(scratch.as_deref().filter(|_| may_mount && rungs && starts), runtime));
    checks
}

fn conclusion(checks: &[Check]) -> String {
    let names = |verdict| {
        let of_it = checks.iter().filter(|check| check.verdict == verdict);
        of_it.map(|check| check.name).collect::<Vec<_>>()
    };
    match (&*names(Verdict::Failed), names(Verdict::Warning).len()) {
        ([], 0) => "Runs work on this machine.".into(),
        ([], 1) => "Runs work on this machine, with one warning.".into(),
        ([], warnings) => format!("Runs work on this machine, with {warnings} warnings."),
        (failed, _) => format!("No run can work here: {}.", failed.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_conclusion_names_what_failed() {
        let (ok, warning) = (|| Check::ok("a", "x"), || Check::warning("b", "x"));
        let failed = |name| Check::failed(name, "x");
        let table = [
            (vec![ok(), ok()], "Runs work on this machine."),
            (vec![ok(), warning()], "Runs work on this machine, with one warning."),
            (vec![warning(), ok(), warning()], "Runs work on this machine, with 2 warnings."),
            (vec![failed("c"), warning(), failed("d")], "No run can work here: c, d."),
        ];
        for (checks, expected) in table {
            assert_eq!(conclusion(&checks), expected);
        }
    }
}
