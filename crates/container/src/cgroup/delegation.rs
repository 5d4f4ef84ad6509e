//! The groups that an ordinary user may create: below the process's own group, where the system has
//! delegated that to the user. `moves` finds the own group of a thread in any hierarchy.
//!
//! Only version 2 has a safe delegation: cgroups(7), "Delegation". In version 2, a group with
//! processes cannot pass controllers on to groups below it. So the process moves itself into a
//! leaf, and the groups of its runs are beside that leaf.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use super::{Hierarchy, Version, mounted};
use crate::error::{Error, Result};

/// The name of the leaf.
const LEAF: &str = "layered.self";

/// Returns whether this process may create groups below its own in version 2.
pub(crate) fn is_delegated() -> bool {
    parent_of_runs().is_some_and(|parent| access(parent.path(), Access::WRITE_OK).is_ok())
}

/// Prepares a group below that of this process for groups with `controllers`. Moves this process
/// into a leaf first, with all its threads.
///
/// # Errors
/// [`Error::NotPassedOn`] for the first controller that the group of this process lacks, and
/// [`Error::NotDelegated`] for the first one that cannot be passed on.
pub(super) fn require(controllers: &[String]) -> Result<()> {
    let Some(first) = controllers.first() else { return Ok(()) };
    let refused = |controller: &str, source: io::Error| Error::NotDelegated { controller: controller.into(), source };
    // Beside version 1, version 2 usually has no controllers: each one is in one version only.
    let is_alone = mounted()?.iter().all(|hierarchy| hierarchy.version == Version::V2);
    let v1 = || {
        io::Error::new(
            io::ErrorKind::Unsupported,
            "only root can use cgroup v1, or a group outside of this cgroup namespace",
        )
    };
    let parent = parent_of_runs().filter(|_| is_alone).ok_or_else(|| refused(first, v1()))?;
    access(parent.path(), Access::WRITE_OK).map_err(|errno| refused(first, errno.into()))?;
    if let Some(controller) = lacking(&parent.path(), controllers) {
        return Err(Error::NotPassedOn { controller, group: parent.path() });
    }
    pass_on(&parent.path(), controllers, &std::process::id().to_string())
        .map_err(|(controller, source)| refused(&controller, source))
}

/// Returns the first of `controllers` that `group` does not have.
fn lacking(group: &Path, controllers: &[String]) -> Option<String> {
    let available = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    let has = |controller: &&String| available.split_whitespace().any(|name| name == **controller);
    controllers.iter().find(|controller| !has(controller)).cloned()
}

/// Lets the groups below `parent` have `controllers`, after moving the process `pid` out of it. On
/// a failure, returns the controller too, and the process is back in `parent` if no controller was
/// passed on.
fn pass_on(parent: &Path, controllers: &[String], pid: &str) -> Result<(), (String, io::Error)> {
    let leaf = parent.join(LEAF);
    let had_leaf = leaf.exists();
    let passed_on = try_to_pass_on(parent, controllers, pid);
    if passed_on.is_err() && !had_leaf && leaf.exists() {
        // The kernel refuses both if other processes need the leaf, and then it stays.
        let _ = fs::write(parent.join("cgroup.procs"), pid);
        let _ = fs::remove_dir(&leaf);
    }
    passed_on
}

fn try_to_pass_on(parent: &Path, controllers: &[String], pid: &str) -> Result<(), (String, io::Error)> {
    let passed_on = fs::read_to_string(parent.join("cgroup.subtree_control")).unwrap_or_default();
    let is_passed_on = |controller: &String| passed_on.split_whitespace().any(|name| name == controller);
    for controller in controllers.iter().filter(|controller| !is_passed_on(controller)) {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::ResourceBusy => {
                let why = format!("other processes are in {}", parent.display());
                (controller.clone(), io::Error::new(source.kind(), why))
            }
            _ => (controller.clone(), source),
        };
        let leaf = parent.join(LEAF);
        match fs::create_dir(&leaf) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => {}
        }
        let write = |path: PathBuf, text: &str| fs::write(path, text).map_err(failed);
        write(leaf.join("cgroup.procs"), pid)?;
        write(parent.join("cgroup.subtree_control"), &format!("+{controller}"))?;
    }
    Ok(())
}

/// The group below which this process may create groups.
pub(super) struct Parent {
    mount_point: &'static Path,
    /// Relative to the mount point, without a slash at the end.
    name: String,
}

impl Parent {
    fn path(&self) -> PathBuf {
        self.mount_point.join(&self.name)
    }

    /// Returns the name of the group `name` below this one, relative to the mount point.
    pub(super) fn child(&self, name: &str) -> String {
        if self.name.is_empty() { name.into() } else { format!("{}/{name}", self.name) }
    }
}

/// Returns the group of this process in version 2, or the one above if the process is in a leaf.
pub(super) fn parent_of_runs() -> Option<Parent> {
    let unified = |hierarchy: &&Hierarchy| hierarchy.version == Version::V2;
    let hierarchy = mounted().ok()?.iter().find(unified)?;
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    Some(Parent { mount_point: &hierarchy.mount_point, name: parent_in(hierarchy.own_group(&groups)?) })
}

/// Returns the name of `group` without slashes around it, or that of the group above if it is a
/// leaf.
fn parent_in(group: &str) -> String {
    let group = group.trim_matches('/');
    match group.strip_suffix(LEAF) {
        Some(above) if above.is_empty() || above.ends_with('/') => above.trim_end_matches('/').into(),
        _ => group.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_groups_of_runs_are_beside_the_leaf() {
        let table = [
            ("/", ""),
            ("/user.slice/a.scope", "user.slice/a.scope"),
            ("/user.slice/a.scope/layered.self", "user.slice/a.scope"),
            ("/layered.self", ""),
            ("/x-layered.self", "x-layered.self"),
        ];
        for (group, parent) in table {
            assert_eq!(parent_in(group), parent, "{group}");
        }
        let parent = |name: &str| Parent { mount_point: Path::new("/c"), name: name.into() };
        assert_eq!(parent("").child("run"), "run");
        assert_eq!((parent("a/b").child("run"), parent("a/b").path()), ("a/b/run".into(), "/c/a/b".into()));
    }

    #[test]
    fn a_controller_is_passed_on_after_the_process_has_left() {
        let dir = tempfile::tempdir().unwrap();
        let group = dir.path();
        let put = |file: &str, text: &str| fs::write(group.join(file), text).unwrap();
        let get = |file: &str| fs::read_to_string(group.join(file)).unwrap();
        put("cgroup.controllers", "cpu memory pids\n");
        put("cgroup.subtree_control", "pids\n");
        let controllers = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();

        // A controller that is passed on already changes nothing.
        pass_on(group, &controllers(&["pids"]), "7").unwrap();
        assert!(!group.join(LEAF).exists());

        assert_eq!(lacking(group, &controllers(&["pids", "cpuset"])).as_deref(), Some("cpuset"));
        assert_eq!(lacking(group, &controllers(&["pids", "cpu"])), None);

        pass_on(group, &controllers(&["memory"]), "7").unwrap();
        assert_eq!((get("layered.self/cgroup.procs"), get("cgroup.subtree_control")), ("7".into(), "+memory".into()));
        pass_on(group, &controllers(&["cpu"]), "8").unwrap();
        assert_eq!((get("layered.self/cgroup.procs"), get("cgroup.subtree_control")), ("8".into(), "+cpu".into()));
    }

    #[test]
    fn after_a_failure_the_process_is_back_in_its_group() {
        let dir = tempfile::tempdir().unwrap();
        let group = dir.path();
        fs::write(group.join("cgroup.controllers"), "memory\n").unwrap();
        // It can be neither read nor written.
        fs::create_dir(group.join("cgroup.subtree_control")).unwrap();
        let (controller, _) = pass_on(group, &["memory".into()], "7").unwrap_err();
        assert_eq!(controller, "memory");
        assert_eq!(fs::read_to_string(group.join("cgroup.procs")).unwrap(), "7");

        // A leaf of other runs stays as it is.
        fs::remove_file(group.join("cgroup.procs")).unwrap();
        pass_on(group, &["memory".into()], "8").unwrap_err();
        assert!(group.join(LEAF).exists() && !group.join("cgroup.procs").exists());
    }
}
