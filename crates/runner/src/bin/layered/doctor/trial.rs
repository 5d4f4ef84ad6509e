use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use container::{CaptureLimit, Cgroup, Excerpt, Mount, Output, Runtime, Status, Template};
use layer::display::quoted;
use layer::{Base, Layer};
use runner::{Cause, Options};

use super::check::Check;

/// What a whole run does in `scratch`, with layers that have to be merged and with limits: whether links are made, and whether a
/// container runs.
pub(super) fn checks(scratch: Option<&Path>, runtime: &Runtime) -> Vec<Check> {
    let Some(scratch) = scratch else {
        return vec![Check::skipped("a run", "not tried after what failed above")];
    };
    match attempt(scratch, runtime, Limits::Held) {
        Ok(checks) => checks,
        Err(first) => match attempt(scratch, runtime, Limits::None) {
            // Without limits it works.
            Ok(mut checks) => {
                checks.push(
                    Check::warning("limits", format!("{first:#}"))
                        .means("runs with limits of memory, processes or processor time fail")
                        .advice("see what the message says, or run without limits"),
                );
                checks
            }
            Err(error) => vec![
                Check::failed("a run", format!("{error:#}"))
                    .means("the runtime cannot run a container over an overlay in the scratch")
                    .advice("see what the message says, or try --runtime with another one"),
            ],
        },
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Limits {
    /// As far as the machine has controllers for them.
    Held,
    None,
}

/// Where the machine's programs have what they need. The base is empty but for these.
const HOSTS: [&str; 8] = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix", "/gnu"];

/// This very program, which says its version and does nothing.
const PROGRAM: &str = "/layered";

/// Enough for a message.
const LITTLE: CaptureLimit = CaptureLimit { head_bytes: 256, tail_bytes: 256 };

fn attempt(scratch: &Path, runtime: &Runtime, limits: Limits) -> anyhow::Result<Vec<Check>> {
    let dir = tempfile::Builder::new()
        .prefix("layered-doctor-")
        .tempdir_in(scratch)
        .with_context(|| format!("cannot make a directory in {}", quoted(scratch)))?;
    let checks = in_directory(dir.path(), scratch, runtime, limits);
    // What the run mounted was in a mount namespace that has gone with it.
    let removed = layer::remove_tree(dir.keep()).with_context(|| format!("cannot tidy up {}", quoted(scratch)));
    let checks = checks?;
    removed.map(|()| checks)
}

fn in_directory(dir: &Path, scratch: &Path, runtime: &Runtime, limits: Limits) -> anyhow::Result<Vec<Check>> {
    let tree = |name: &str| -> anyhow::Result<PathBuf> {
        let fs = dir.join(name).join("fs");
        fs::create_dir_all(&fs).with_context(|| format!("cannot make {}", quoted(&fs)))?;
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
        // Less than there are, so that they are merged.
        .max_lowers(2)
        .timeout(Duration::from_secs(30))
        .grace(Duration::from_secs(1))
        .stdout(Output::Capture(LITTLE))
        .stderr(Output::Capture(LITTLE));
    let report = match runner::run(&base, &layers, &template(limits)?, options) {
        Ok(report) => report,
        Err(error) if is_about_the_program(&error) => {
            // The container was there: only the machine's own files are not enough in it.
            let found =
                "a container was set up, but this machine's programs do not run with what it has of their files";
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
        // What has run no container may exit with 0 as well.
        Status::Exited(0) if said.starts_with("layered ") => {
            Check::ok("a run", format!("a container ran, in {} ms", took.as_millis())).means(match limits {
                Limits::Held => "in namespaces that end with its runner, with a seccomp profile and limits",
                Limits::None => "in namespaces that end with its runner, with a seccomp profile",
            })
        }
        // 127 is what a program says whose libraries are not there.
        Status::Exited(127) => Check::ok("a run", "a container ran, but has not all that this machine's programs need"),
        status => {
            anyhow::bail!("instead of telling the version, the container ended with {status:?}: {said}{complaint}")
        }
    };
    let copied = merged.map_or(0, |merged| merged.copied);
    let links = match copied {
        0 => Check::ok("links", "layers in the scratch were merged by hard links"),
        _ => Check::warning("links", "layers in the scratch were copied to be merged, not linked")
            .means("merging takes time and space as copying does")
            .advice("give --scratch a file system that has hard links"),
    };
    Ok(vec![links, run])
}

fn is_about_the_program(error: &runner::Error) -> bool {
    use container::Error::{CommandNotExecutable, CommandNotFound};
    matches!(error.cause(), Cause::Container(CommandNotFound { .. } | CommandNotExecutable { .. }))
}

fn template(limits: Limits) -> anyhow::Result<Template> {
    let program = std::env::current_exe().context("cannot tell where this program is")?;
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
