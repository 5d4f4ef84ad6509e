//! The first move of a process between control groups, which the kernel makes wait.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use rustix::thread::gettid;

use super::{Cgroup, Hierarchy, Version, mounted};

impl Cgroup {
    /// Has the kernel get ready, in the background, for processes that are moved between control groups. Call it as early as possible
    /// before [`Runtime::run`](crate::Runtime::run).
    ///
    /// A runtime moves the container's first process into its group. Before the first such move the kernel waits until no processor
    /// can be in a part of fork(2) or exit(2) that relies on groups staying as they are: an RCU grace period, 5 to 15 ms. For a
    /// while after a move it does not have to wait again (`cgroup_threadgroup_rwsem` in kernel/cgroup/cgroup.c; see rcu_sync). So
    /// a thread moves itself into the group that it is in already, and ends. What the caller does meanwhile costs no time.
    ///
    /// Where the thread cannot be moved, nothing happens, and the runtime waits.
    pub fn prepare_moves() {
        let spawned = std::thread::Builder::new().name("cgroup".into()).spawn(|| {
            if let Err(error) = move_to_own_group() {
                log::debug!("the kernel does not get ready to move processes between control groups: {error}");
            }
        });
        if let Err(error) = spawned {
            log::debug!("no thread gets the kernel ready to move processes between control groups: {error}");
        }
    }
}

/// Moves the calling thread into the group that it is in.
fn move_to_own_group() -> io::Result<()> {
    let groups = fs::read_to_string("/proc/thread-self/cgroup")?;
    let hierarchies = mounted().map_err(io::Error::other)?;
    // One is enough: the lock is that of all hierarchies.
    let tasks = hierarchies.iter().find_map(|hierarchy| tasks_file(hierarchy, &groups));
    let mut tasks = fs::File::options().write(true).open(tasks.ok_or(io::ErrorKind::NotFound)?)?;
    tasks.write_all(gettid().as_raw_nonzero().to_string().as_bytes())
}

/// The file that lists the threads of the group in this hierarchy, by the lines of `/proc/PID/cgroup` (cgroups(7)):
/// `NUMBER:CONTROLLERS:PATH`, with number 0 and without controllers for version 2.
fn tasks_file(hierarchy: &Hierarchy, groups: &str) -> Option<PathBuf> {
    let group = groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let is_its = match &hierarchy.version {
            Version::V1(own) => controllers.split(',').any(|controller| own.iter().any(|name| name == controller)),
            Version::V2 => number == "0" && controllers.is_empty(),
        };
        is_its.then_some(path)
    })?;
    // A group outside of the caller's cgroup namespace.
    if group.split('/').any(|name| name == "..") {
        return None;
    }
    let name = if hierarchy.version == Version::V2 { "cgroup.threads" } else { "tasks" };
    Some(hierarchy.group(group.trim_start_matches('/')).join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_group_is_found_in_either_version() {
        let groups = "4:cpu,cpuacct:/a:b\n3:name=systemd:/\n0::/user.slice\n";
        let v1 = |controllers: &[&str]| Version::V1(controllers.iter().map(|name| name.to_string()).collect());
        let table = [
            (v1(&["cpuacct", "cpu"]), groups, Some("/c/a:b/tasks")),
            (v1(&["name=systemd"]), groups, Some("/c/tasks")),
            (v1(&["memory"]), groups, None),
            (Version::V2, groups, Some("/c/user.slice/cgroup.threads")),
            (Version::V2, "0::/../other\n", None),
            (Version::V2, "", None),
        ];
        for (version, groups, expected) in table {
            let hierarchy = Hierarchy { mount_point: "/c".into(), version };
            assert_eq!(tasks_file(&hierarchy, groups).as_deref(), expected.map(std::path::Path::new), "{hierarchy:?}");
        }
    }
}
