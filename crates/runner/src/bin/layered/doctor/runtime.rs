use std::path::{Path, PathBuf};

use container::{Cgroup, CgroupLayout, Error, Runtime, RuntimeVersion};
use layer::display::quoted;

use super::check::Check;

/// The runtime, each known flaw of its version, and whether it starts.
pub(super) fn checks(runtime: &Runtime) -> (Vec<Check>, bool) {
    let program = runtime.program();
    match runtime.version() {
        Ok(Some(version)) => (known(&version, find(program).as_deref().unwrap_or(program)), true),
        Ok(None) => {
            let unknown = Check::warning("runtime", format!("{} does not tell its version", quoted(program)))
                .means("what is known to be wrong with it cannot be told")
                .advice("see below whether a container runs");
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
        "crun" if hybrid => {
            found.means("a run hides the cgroup hierarchy of version 2 from it, beside which it would fail")
        }
        "runc" | "crun" | "youki" => found,
        _ => found.means("layered is not tested with it"),
    }];
    checks.extend(version.flaws().map(|flaw| {
        // Not every distribution's fixes are known.
        let advice = format!("{}, unless this build has the fix ({})", flaw.remedy, flaw.source);
        Check::warning("known flaw", version.to_string()).means(flaw.effect).advice(advice)
    }));
    checks
}

fn unusable(error: Error) -> Check {
    let other = ["runc", "crun", "youki"].into_iter().find(|name| find(Path::new(name)).is_some());
    Check::failed("runtime", format!("{:#}", anyhow::Error::from(error))).means("no container can run").advice(
        match other {
            Some(name) => format!("this machine has {name}: --runtime {name}"),
            None => "install runc or crun".into(),
        },
    )
}

/// Where a program is, as execvp(3) would find it.
fn find(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return Some(program.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file())
}
