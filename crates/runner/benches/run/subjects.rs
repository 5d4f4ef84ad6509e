//! The programs that are compared: a run, the sequence that layered replaces, and other programs.
//! [`bare`](crate::bare) has the bare runtime.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, bail, ensure};
use container::advanced::prepare_config;
use container::{Bundle, ContainerId, Runtime, Template};
use runner::{Cleanup, Options, Report};

use crate::places::Places;

pub(crate) const RUNTIMES: [&str; 2] = ["runc", "crun"];

pub(crate) fn is_installed(program: &str) -> bool {
    quiet(program).arg("--version").status().is_ok_and(|status| status.success())
}

pub(crate) fn template(command: &[&str]) -> Result<Template> {
    Ok(Template::builder(command.iter().copied()).build()?)
}

/// Calls `runner::run` in this process.
pub(crate) fn in_process(
    places: &Places,
    runtime: &str,
    layers: usize,
    template: &Template,
    cleanup: Cleanup,
) -> Result<Report> {
    let options = Options::new().scratch(places.scratch()).runtime(Runtime::new(runtime)).cleanup(cleanup);
    let report = runner::run(&places.base, &places.layers[..layers], template, options)?;
    ensure!(report.status.success(), "{:?}", report.status);
    Ok(report)
}

/// Returns a `layered run` command.
pub(crate) fn command(places: &Places, runtime: &str, layers: usize, argv: &[&str]) -> Command {
    let mut command = quiet(env!("CARGO_BIN_EXE_layered"));
    command.args(["run", "--runtime", runtime, "--scratch"]).arg(places.scratch());
    command.arg("--base").arg(places.base.path());
    for layer in &places.layers[..layers] {
        command.arg("--layer").arg(layer.path());
    }
    command.arg("--").args(argv);
    command
}

/// Does what the system that layered replaces does for a run, but without its sudo. It mounts up to
/// 60 layers and merges the rest with cp. The runtime deletes the container before and after the
/// run. mount, umount and rm are processes.
pub(crate) fn replaced_sequence(places: &Places, runtime: &str, layers: usize, template: &Template) -> Result<()> {
    let dir = places.new_dir()?;
    let [upper, work, merged, lower] = ["upper", "work", "merged", "lower"].map(|name| dir.path().join(name));
    for path in [&upper, &work, &merged] {
        fs::create_dir(path)?;
    }
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
    let (separate, rest) = places.layers[..layers].split_at(layers.min(60));
    let mut lowers: Vec<PathBuf> = separate.iter().map(layer::Layer::fs).collect();
    if !rest.is_empty() {
        fs::create_dir(&lower)?;
        for layer in rest {
            run(quiet("cp").args(["-n", "--archive", "--link"]).arg(layer.fs().join(".")).arg(&lower))?;
        }
        lowers.push(lower.clone());
    }
    lowers.push(places.base.fs());
    let lowers: Vec<_> = lowers.iter().map(|path| path.display().to_string()).collect();
    let options = format!("lowerdir={},upperdir={},workdir={}", lowers.join(":"), upper.display(), work.display());
    run(quiet("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(&merged))?;
    let config = prepare_config(&Runtime::new(runtime), template.instantiate(&merged)?);
    let bundle = Bundle::create(dir.path(), config.clone())?;
    bundle.write(&config)?;
    let id = ContainerId::random("replaced")?;
    let delete = || quiet(runtime).args(["delete", "-f", id.as_str()]).status();
    // This fails because the container does not exist. The replaced system ignores that, too.
    delete()?;
    let ran = run(quiet(runtime).args(["run", "-b"]).arg(bundle.path()).arg(id.as_str()));
    delete()?;
    run(quiet("umount").arg(&merged))?;
    for path in [&work, &merged, &lower] {
        run(quiet("rm").arg("-rf").arg(path))?;
    }
    ran
}

/// Returns the command lines of programs that cannot stack layers. They run in the prepared root.
/// [`steps`](crate::steps) has bubblewrap.
pub(crate) fn peers(places: &Places) -> [(&'static str, Vec<String>); 2] {
    let root = places.root().display().to_string();
    let words = |line: &str| -> Vec<String> { line.split(' ').map(|word| word.replace("ROOT", &root)).collect() };
    // These limits need no capability, and only runc starts on a machine with both cgroup versions.
    let podman =
        "podman --runtime runc run --rm --quiet --network none --ulimit nofile=1024:1024 --ulimit nproc=1024:1024";
    let nspawn = "systemd-nspawn --quiet --register=no --keep-unit --volatile=overlay --directory ROOT /bin/true";
    [("Podman", words(&format!("{podman} --rootfs ROOT:O /bin/true"))), ("systemd-nspawn", words(nspawn))]
}

/// Runs a program, and returns an error if it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let output = command.stderr(Stdio::piped()).output()?;
    if !output.status.success() {
        // The results name the program, not the directory of the build that it may be in.
        let program = Path::new(command.get_program()).file_name().unwrap_or_default();
        bail!("{program:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Returns a command without standard streams.
pub(crate) fn quiet(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}
