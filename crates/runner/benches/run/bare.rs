//! The bare runtime: `RUNTIME run --bundle DIR ID` in the foreground, as anybody starts it without layered.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use container::{
    Bundle, Cgroup, CgroupLayout, ContainerId, Runtime, Template, in_private_mount_namespace, mount_private_tmpfs,
};
use serde_json::{Value, json};

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

/// Starts the runtime on the prepared root, waits for its end, and returns the time between the two.
///
/// Everything that layered arranges and a user would not is outside of that time.
pub(crate) fn bare(
    places: &Places,
    runtime: &str,
    template: &Template,
    configuration: Configuration,
) -> Result<Duration> {
    let dir = places.new_dir()?;
    let id = ContainerId::random("layered")?;
    let cgroup = Cgroup::new(id.as_str())?;
    match configuration {
        Configuration::Same => {
            let config = template.instantiate(&places.root())?.with_default_cgroups_path(cgroup.container_path());
            let config = Runtime::new(runtime).prepare_config(config.resolve_user(dir.path())?);
            Bundle::create(dir.path(), &config)?;
        }
        Configuration::Spec => write_spec(runtime, dir.path(), &places.root(), template)?,
    }
    let time = in_private_mount_namespace(|| {
        hide_unified_hierarchy(runtime)?;
        let start = Instant::now();
        run(quiet(runtime).args(["run", "--bundle"]).arg(dir.path()).arg(id.as_str()))?;
        Ok::<_, anyhow::Error>(start.elapsed())
    })??;
    cgroup.remove()?;
    Ok(time)
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
