//! Runs the bare runtime: `RUNTIME run --bundle DIR ID` in the foreground, as users start it
//! without layered. [`subjects`](crate::subjects) has the other programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use container::advanced::{mount_private_tmpfs, prepare_config};
use container::{Bundle, Cgroup, CgroupLayout, ContainerId, Runtime, Template, in_private_mount_namespace};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::places::Places;
use crate::subjects::{quiet, run};

/// The configuration of a bare runtime.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Configuration {
    /// The configuration of a run: the same mounts, limits, capabilities, filter, `HOME` and
    /// cgroup. Only the init is missing: the command is process 1.
    Same,
    /// The same with a change to `config.json`.
    Changed(fn(&mut Value)),
    /// The configuration that `RUNTIME spec` writes, without a terminal. It has no seccomp profile,
    /// does not name a cgroup, and has a read-only root.
    Spec,
}

/// A bundle for one run of a bare runtime.
pub(crate) struct Bare {
    runtime: String,
    dir: TempDir,
    id: ContainerId,
    cgroup: Cgroup,
}

impl Bare {
    pub(crate) fn prepare(
        places: &Places,
        runtime: &str,
        template: &Template,
        configuration: Configuration,
    ) -> Result<Self> {
        let dir = places.new_dir()?;
        let id = ContainerId::random("layered")?;
        let cgroup = Cgroup::new(id.as_str())?;
        match configuration {
            Configuration::Same | Configuration::Changed(_) => {
                let config = template.instantiate(&places.root())?.with_default_cgroups_path(cgroup.container_path());
                let config = prepare_config(&Runtime::new(runtime), config.resolve_user(dir.path())?);
                Bundle::create(dir.path(), config.clone())?.write(&config)?;
                if let Configuration::Changed(change) = configuration {
                    rewrite(&dir.path().join("config.json"), change)?;
                }
            }
            Configuration::Spec => write_spec(runtime, dir.path(), &places.root(), template)?,
        }
        Ok(Self { runtime: runtime.into(), dir, id, cgroup })
    }

    /// Returns the command that runs the bundle, without standard streams. Start it in
    /// [`privately`].
    pub(crate) fn command(&self) -> Command {
        let mut command = quiet(&self.runtime);
        command.args(["run", "--bundle"]).arg(self.dir.path()).arg(self.id.as_str());
        command
    }

    /// Removes the cgroup that the runtime leaves.
    pub(crate) fn close(self) -> Result<()> {
        Ok(self.cgroup.remove()?)
    }
}

/// Returns the time from the start to the end of the runtime, on the prepared root.
///
/// It does not include the preparations that layered makes and a user would not make.
pub(crate) fn bare(
    places: &Places,
    runtime: &str,
    template: &Template,
    configuration: Configuration,
) -> Result<Duration> {
    let bare = Bare::prepare(places, runtime, template, configuration)?;
    let time = privately(runtime, || {
        let start = Instant::now();
        run(&mut bare.command())?;
        Ok(start.elapsed())
    })?;
    bare.close()?;
    Ok(time)
}

/// Calls `work` in a private mount namespace, with the mounts that the runtime needs on this
/// machine.
pub(crate) fn privately<T: Send>(runtime: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    in_private_mount_namespace(|| {
        hide_unified_hierarchy(runtime)?;
        work()
    })?
}

/// Lets the runtime write a `config.json`, and sets its root and its command.
fn write_spec(runtime: &str, bundle: &Path, root: &Path, template: &Template) -> Result<()> {
    run(quiet(runtime).arg("spec").current_dir(bundle))?;
    let command = serde_json::to_value(template)?;
    rewrite(&bundle.join("config.json"), |spec| {
        spec["process"]["args"] = command["process"]["args"].clone();
        spec["process"]["terminal"] = json!(false);
        spec["root"]["path"] = json!(root);
    })
}

/// Changes a `config.json`.
fn rewrite(path: &Path, change: impl FnOnce(&mut Value)) -> Result<()> {
    let mut config: Value = serde_json::from_slice(&fs::read(path)?)?;
    change(&mut config);
    Ok(fs::write(path, serde_json::to_vec(&config)?)?)
}

/// Hides cgroup version 2 from crun, as `Runtime::run` does. crun does not start if both versions
/// are mounted.
fn hide_unified_hierarchy(runtime: &str) -> Result<()> {
    if runtime == "crun" && Cgroup::layout()? == CgroupLayout::Hybrid {
        let table = fs::read_to_string("/proc/self/mountinfo")?;
        let unified = table.lines().find(|line| line.contains(" - cgroup2 "));
        let point = unified.and_then(|line| line.split(' ').nth(4)).map(PathBuf::from);
        mount_private_tmpfs(&point.context("cannot find the mount of cgroup version 2")?)?;
    }
    Ok(())
}
