//! The bare runtime: `RUNTIME run --bundle DIR ID` in the foreground, as anybody starts it without layered.

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

/// What a bare runtime gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Configuration {
    /// What a run gives this runtime: the same mounts, limits, capabilities, filter, `HOME` and control group. Only the init is
    /// missing: the command is process 1.
    Same,
    /// What `RUNTIME spec` writes, without a terminal: no seccomp profile, no control group by name, a read-only root.
    Spec,
}

/// A bundle that a bare runtime can be started with, once.
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
            Configuration::Same => {
                let config = template.instantiate(&places.root())?.with_default_cgroups_path(cgroup.container_path());
                let config = prepare_config(&Runtime::new(runtime), config.resolve_user(dir.path())?);
                Bundle::create(dir.path(), &config)?;
            }
            Configuration::Spec => write_spec(runtime, dir.path(), &places.root(), template)?,
        }
        Ok(Self { runtime: runtime.into(), dir, id, cgroup })
    }

    /// Starts it without any streams, in a [private](privately) namespace.
    pub(crate) fn command(&self) -> Command {
        let mut command = quiet(&self.runtime);
        command.args(["run", "--bundle"]).arg(self.dir.path()).arg(self.id.as_str());
        command
    }

    /// Removes what a runtime leaves.
    pub(crate) fn close(self) -> Result<()> {
        Ok(self.cgroup.remove()?)
    }
}

/// The time that the runtime takes from its start to its end, on the prepared root.
///
/// Everything that layered arranges and a user would not is outside of that time.
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

/// Calls `work` in a mount namespace of its own, with what the runtime needs on this machine.
pub(crate) fn privately<T: Send>(runtime: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    in_private_mount_namespace(|| {
        hide_unified_hierarchy(runtime)?;
        work()
    })?
}

/// Has the runtime write a `config.json`, and puts root and command into it.
fn write_spec(runtime: &str, bundle: &Path, root: &Path, template: &Template) -> Result<()> {
    run(quiet(runtime).arg("spec").current_dir(bundle))?;
    let path = bundle.join("config.json");
    let mut spec: Value = serde_json::from_slice(&fs::read(&path)?)?;
    let command = serde_json::to_value(template)?;
    spec["process"]["args"] = command["process"]["args"].clone();
    spec["process"]["terminal"] = json!(false);
    spec["root"]["path"] = json!(root);
    fs::write(&path, serde_json::to_vec(&spec)?)?;
    Ok(())
}

/// crun does not start where the hierarchy of version 2 is mounted beside those of version 1. `Runtime::run` does the same.
fn hide_unified_hierarchy(runtime: &str) -> Result<()> {
    if runtime == "crun" && Cgroup::layout()? == CgroupLayout::Hybrid {
        let table = fs::read_to_string("/proc/self/mountinfo")?;
        let unified = table.lines().find(|line| line.contains(" - cgroup2 "));
        let point = unified.and_then(|line| line.split(' ').nth(4)).map(PathBuf::from);
        mount_private_tmpfs(&point.context("no hierarchy of version 2")?)?;
    }
    Ok(())
}
