//! Checks the version of the runtime and its known flaws. [`trial`](super::trial) checks whether
//! the runtime runs a container.

use std::path::{Path, PathBuf};

use container::{Cgroup, CgroupLayout, Error, Runtime, RuntimeVersion};
use layer::display::quoted;

use super::check::Check;

/// Checks the runtime and each known flaw of its version. Returns also whether it starts.
pub(super) fn checks(runtime: &Runtime) -> (Vec<Check>, bool) {
    let program = runtime.program();
    match runtime.version() {
        Ok(Some(version)) => (known(&version, find(program).as_deref().unwrap_or(program)), true),
        Ok(None) => {
            let unknown = Check::warning("runtime", format!("{} --version prints no known version", quoted(program)))
                .means("its known flaws cannot be checked")
                .advice("see below whether it runs a container");
            (vec![unknown], true)
        }
        Err(error) => (vec![unusable(error)], false),
    }
}

fn known(version: &RuntimeVersion, program: &Path) -> Vec<Check> {
    let build = version.build.as_ref().map(|build| format!(", build {build}")).unwrap_or_default();
    let found = Check::ok("runtime", format!("{version}{build} ({})", quoted(program)));
    let hybrid = Cgroup::layout().is_ok_and(|layout| layout == CgroupLayout::Hybrid);
    let mut checks = vec![match &*version.name {
        // Runtime::prepare_namespace
        "crun" if hybrid => found.means("runs hide cgroup version 2 from it, because it fails with both versions"),
        "runc" | "crun" | "youki" => found,
        _ => found.means("layered has not been tested with it"),
    }];
    checks.extend(version.flaws().map(|flaw| {
        // Only the fixes of some distributions are known.
        let advice = format!("{}, unless this build has the fix ({})", flaw.remedy, flaw.source);
        Check::warning("known flaw", version.to_string()).means(flaw.effect).advice(advice)
    }));
    checks
}

fn unusable(error: Error) -> Check {
    let other = ["runc", "crun", "youki"].into_iter().find(|name| find(Path::new(name)).is_some());
    Check::failed("runtime", format!("{:#}", anyhow::Error::from(error))).means("no container can run").advice(
        match other {
            Some(name) => format!("use the one that is installed: --runtime {name}"),
            None => "install runc or crun".into(),
        },
    )
}

/// Returns the path of a program, as execvp(3) would find it.
fn find(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return Some(program.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file())
}
