//! `layered doctor`: decides which checks are made, in which order, and the conclusion.
//!
//! Each module below checks one subject, and [`check`] prints the results.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use container::{Ids, Runtime};
use serde::Serialize;

mod access;
mod cgroups;
mod check;
mod limits;
mod network;
mod overlay;
mod owner;
mod privilege;
mod runtime;
mod scratch;
mod trial;

use check::{Check, Verdict};

use crate::defaults::{self, RuntimeArgs};
use crate::table;

/// Check whether runs work on this machine.
///
/// doctor checks the privilege, the scratch directory, overlayfs, cgroups, the runtime, the limits
/// of the system and the private network, and names a remedy for each problem. It mounts overlays,
/// deletes files through them and runs a container, all in the scratch directory. It removes
/// everything afterwards.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// Directory for temporary files [default: $LAYERED_SCRATCH, $TMPDIR or /tmp].
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Check whether other users can reach the layers in DIR [default: $LAYERED_STORE].
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    #[command(flatten)]
    runtime: RuntimeArgs,
    /// Print one JSON object instead of lines.
    ///
    /// Its keys are `works` and `checks`. Each check has `name`, `verdict`, `found`, `means` and
    /// `advice`.
    #[arg(long)]
    json: bool,
}

const AFTER_HELP: &str = "\
doctor does not check the contents of your base and layers, the network of the host, or whether the \
scratch directory has room for what your commands write.

Verdicts:
  ok       nothing to do
  warning  runs work, but with the restriction that the line names
  failed   no run can work
  skipped  not checked, because of a failure above

Exit status:
  0    runs work
  1    no run can work
  125  layered itself failed

Examples:
  layered doctor
  layered doctor --scratch /var/cache/layers/scratch --store /var/cache/layers --runtime crun
  layered doctor --json | jq -r '.checks[] | select(.verdict != \"ok\")'";

/// Makes the checks. `not_entered` is the reason why this process is not in a user namespace, if it
/// should be.
pub(crate) fn run(args: &Args, ids: Ids, not_entered: Option<&anyhow::Error>) -> anyhow::Result<ExitCode> {
    let (scratch, store) = (defaults::scratch(args.scratch.as_deref()), defaults::store(args.store.as_deref()).ok());
    let checks = checks(&scratch, store.as_deref(), &args.runtime.get(), ids, not_entered);
    let works = checks.iter().all(|check| check.verdict != Verdict::Failed);
    let mut out = table::stdout();
    if args.json {
        table::print_json(&mut out, &Output { works, checks: &checks })?;
    } else {
        check::print(&mut out, &checks, table::terminal_width())?;
        writeln!(out, "{}", conclusion(&checks))?;
    }
    Ok(if works { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The result as JSON.
#[derive(Debug, Serialize)]
struct Output<'a> {
    works: bool,
    checks: &'a [Check],
}

/// Makes all checks. A check comes after those that it depends on.
fn checks(
    scratch: &Path,
    store: Option<&Path>,
    runtime: &Runtime,
    ids: Ids,
    not_entered: Option<&anyhow::Error>,
) -> Vec<Check> {
    let mut checks = privilege::checks(ids, not_entered);
    let may_mount = container::require_privilege().is_ok();
    let (found, scratch) = scratch::checks(scratch);
    checks.extend(found);
    checks.extend(scratch.as_deref().and_then(access::scratch));
    checks.extend(store.map(access::store));
    checks.extend(owner::check(store, defaults::path(defaults::BASE).as_deref()));
    let (found, rungs) = overlay::checks(scratch.as_deref().filter(|_| may_mount));
    checks.extend(found);
    checks.extend(cgroups::checks());
    let (found, starts) = runtime::checks(runtime);
    checks.extend(found);
    checks.extend(limits::checks());
    checks.push(network::check());
    checks.extend(trial::checks(scratch.as_deref().filter(|_| may_mount && rungs && starts), runtime));
    checks
}

fn conclusion(checks: &[Check]) -> String {
    let names = |verdict| {
        let with_verdict = checks.iter().filter(|check| check.verdict == verdict);
        with_verdict.map(|check| check.name).collect::<Vec<_>>()
    };
    match (&*names(Verdict::Failed), names(Verdict::Warning).len()) {
        ([], 0) => "Runs work on this machine.".into(),
        ([], 1) => "Runs work on this machine, with one warning.".into(),
        ([], warnings) => format!("Runs work on this machine, with {warnings} warnings."),
        (failed, _) => format!("No run can work on this machine: {} failed.", failed.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_conclusion_names_the_checks_that_failed() {
        let (ok, warning) = (|| Check::ok("a", "x"), || Check::warning("b", "x"));
        let failed = |name| Check::failed(name, "x");
        let table = [
            (vec![ok(), ok()], "Runs work on this machine."),
            (vec![ok(), warning()], "Runs work on this machine, with one warning."),
            (vec![warning(), ok(), warning()], "Runs work on this machine, with 2 warnings."),
            (vec![failed("c"), warning(), failed("d")], "No run can work on this machine: c, d failed."),
        ];
        for (checks, expected) in table {
            assert_eq!(conclusion(&checks), expected);
        }
    }
}
