//! Checks whether a whole run works: with layers that must be merged, with limits, and with the
//! host's programs. [`overlay`](super::overlay) and [`runtime`](super::runtime) check its parts.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use container::{CaptureLimit, Cgroup, Excerpt, Mount, Output, Runtime, Status, Template};
use layer::display::quoted;
use layer::{Base, Layer};
use runner::{Cause, Options};

use super::check::Check;

/// Makes a whole run in `scratch`, with layers that must be merged and with limits. Checks whether
/// the merge links files and whether a container runs.
pub(super) fn checks(scratch: Option<&Path>, runtime: &Runtime) -> Vec<Check> {
    let Some(scratch) = scratch else {
        return vec![Check::skipped("a run", "not tried because of the failure above")];
    };
    let limits = Limits::available();
    match attempt(scratch, runtime, limits) {
        Ok(checks) => checks,
        Err(first) => match attempt(scratch, runtime, Limits::None) {
            // A run without limits works.
            Ok(mut checks) => {
                checks.push(
                    Check::warning("limits", format!("{first:#}"))
                        .means("runs with limits of memory, processes or processor time fail")
                        .advice("see the reason, or run without limits"),
                );
                checks
            }
            Err(error) => vec![
                Check::failed("a run", format!("{error:#}"))
                    .means("the runtime cannot run a container on an overlay in the scratch directory")
                    .advice("see the reason, or try another --runtime"),
            ],
        },
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Limits {
    /// The limits for which this process may use controllers.
    Held,
    None,
}

impl Limits {
    fn available() -> Self {
        let has = |controller| Cgroup::require([controller]).is_ok();
        if ["memory", "pids", "cpu"].into_iter().any(has) { Limits::Held } else { Limits::None }
    }
}

/// The directories of the host with the files that its programs need. They are mounted into the
/// container, whose base is empty.
const HOSTS: [&str; 8] = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix", "/gnu"];

/// The path of this program in the container, where it prints its version.
const PROGRAM: &str = "/layered";

/// Enough for one message.
const LITTLE: CaptureLimit = CaptureLimit { head_bytes: 256, tail_bytes: 256 };

fn attempt(scratch: &Path, runtime: &Runtime, limits: Limits) -> anyhow::Result<Vec<Check>> {
    let dir = tempfile::Builder::new()
        .prefix("layered-doctor-")
        .tempdir_in(scratch)
        .with_context(|| format!("cannot create a directory in {}", quoted(scratch)))?;
    let checks = in_directory(dir.path(), scratch, runtime, limits);
    // The run's mounts were in a mount namespace that ended with the run.
    let removed = layer::remove_tree(dir.keep()).with_context(|| format!("cannot clean up {}", quoted(scratch)));
    let checks = checks?;
    removed.map(|()| checks)
}

fn in_directory(dir: &Path, scratch: &Path, runtime: &Runtime, limits: Limits) -> anyhow::Result<Vec<Check>> {
    let tree = |name: &str| -> anyhow::Result<PathBuf> {
        let fs = dir.join(name).join("fs");
        fs::create_dir_all(&fs).with_context(|| format!("cannot create {}", quoted(&fs)))?;
        Ok(fs)
    };
    tree("base")?;
    for name in ["one", "two"] {
        let file = tree(name)?.join(name);
        fs::write(&file, name).with_context(|| format!("cannot write {}", quoted(&file)))?;
    }
    let (base, layers) =
        (Base::open(dir.join("base"))?, [Layer::open(dir.join("one"))?, Layer::open(dir.join("two"))?]);
    let options = Options::new()
        .scratch(scratch)
        .runtime(runtime.clone())
        // Fewer than the lowers of this run, so that layers are merged.
        .max_lowers(2)
        .timeout(Duration::from_secs(30))
        .grace(Duration::from_secs(1))
        .stdout(Output::Capture(LITTLE))
        .stderr(Output::Capture(LITTLE));
    let report = match runner::run(&base, &layers, &template(limits)?, options) {
        Ok(report) => report,
        Err(error) if is_about_the_program(&error) => {
            // The runtime set up the container. Only the host's program does not run in it.
            let found = "a container was set up, but this machine's programs need more files than it has";
            return Ok(vec![Check::ok("a run", found)]);
        }
        Err(error) => return Err(error.into()),
    };
    let text = |excerpt: &Option<Excerpt>| excerpt.as_ref().map(ToString::to_string).unwrap_or_default();
    let (said, complaint) = (text(&report.stdout), text(&report.stderr));
    let (status, merged) = (report.status, report.merged);
    let took = report.timings.total();
    report.upper.close()?;
    let run = match status {
        // A runtime that runs no container can also exit with 0.
        Status::Exited(0) if said.starts_with("layered ") => {
            Check::ok("a run", format!("a container ran in {} ms", took.as_millis())).means(match limits {
                Limits::Held => "it had a seccomp profile, limits, and namespaces that end with layered",
                Limits::None => "it had a seccomp profile, and namespaces that end with layered",
            })
        }
        // A program exits with 127 if its libraries are missing.
        Status::Exited(127) => {
            Check::ok("a run", "a container ran, but this machine's programs need more files than it has")
        }
        status => {
            anyhow::bail!("the container ended with {status:?} instead of printing a version: {said}{complaint}")
        }
    };
    let copied = merged.map_or(0, |merged| merged.copied);
    let links = match copied {
        0 => Check::ok("links", "layers in the scratch directory were merged by hard links"),
        _ => Check::warning("links", "layers in the scratch directory were merged by copies, not by hard links")
            .means("a merge takes the time and space of a copy")
            .advice("choose a --scratch on a file system with hard links"),
    };
    Ok(vec![links, run])
}

fn is_about_the_program(error: &runner::Error) -> bool {
    use container::Error::{CommandNotExecutable, CommandNotFound};
    matches!(error.cause(), Cause::Container(CommandNotFound { .. } | CommandNotExecutable { .. }))
}

fn template(limits: Limits) -> anyhow::Result<Template> {
    let program = std::env::current_exe().context("cannot find the path of this program")?;
    let mut builder = Template::builder([PROGRAM, "--version"]).mount(Mount::bind(program, PROGRAM).read_only());
    for dir in HOSTS.into_iter().filter(|dir| Path::new(dir).is_dir()) {
        builder = builder.mount(Mount::bind(dir, dir).read_only());
    }
    let has = |controller: &str| limits == Limits::Held && Cgroup::require([controller]).is_ok();
    if has("memory") {
        builder = builder.memory_limit_bytes(256 << 20);
    }
    if has("pids") {
        builder = builder.pids_limit(64);
    }
    if has("cpu") {
        let period = Duration::from_millis(100);
        builder = builder.cpu_quota(period, period);
    }
    Ok(builder.build()?)
}
