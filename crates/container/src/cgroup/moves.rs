//! Makes moves between control groups fast. The kernel delays the first move, so this module causes
//! one early.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::thread::gettid;

use super::{Cgroup, Hierarchy, Version, mounted};
use crate::kernel_file::read_kernel_text;
use crate::user_namespace::UserNamespace;

impl Cgroup {
    /// Prepares the kernel, in the background, for moving processes between control groups. Call it
    /// as early as possible before [`Runtime::run`](crate::Runtime::run).
    ///
    /// A runtime moves the container's first process into its group. Before the first such move,
    /// the kernel waits for an RCU grace period of 5 to 15 ms. After that, no processor can still
    /// be in a part of fork(2) or exit(2) that relies on groups not changing. For a while after a
    /// move, the kernel does not have to wait again (`cgroup_threadgroup_rwsem` in
    /// kernel/cgroup/cgroup.c; see rcu_sync).
    ///
    /// Therefore this function starts a thread that moves itself into the group that it is already
    /// in, and then ends. The kernel's wait overlaps with the caller's other work. If the thread
    /// cannot be moved, it logs that, and the runtime's own move has to wait.
    ///
    /// While such a thread waits, further calls start no other. Dropping the value waits for the
    /// thread that the call has started.
    ///
    /// In a [user namespace](UserNamespace), this does nothing: most runs there have no group.
    pub fn prepare_moves() -> PreparedMoves {
        static IS_WAITING: AtomicBool = AtomicBool::new(false);
        if UserNamespace::is_here() || IS_WAITING.swap(true, Ordering::Relaxed) {
            return PreparedMoves(None);
        }
        let spawned = std::thread::Builder::new().name("cgroup".into()).spawn(|| {
            if let Err(error) = move_to_own_group() {
                log::debug!("cannot prepare the kernel for moving processes between control groups: {error}");
            }
            IS_WAITING.store(false, Ordering::Relaxed);
        });
        if spawned.is_err() {
            IS_WAITING.store(false, Ordering::Relaxed);
        }
        PreparedMoves(
            spawned
                .inspect_err(|error| {
                    log::debug!("cannot start the thread that prepares moves between control groups: {error}");
                })
                .ok(),
        )
    }
}

/// The thread of [`Cgroup::prepare_moves`].
#[derive(Debug)]
#[must_use = "dropping it waits for the thread, which should have time"]
pub struct PreparedMoves(Option<std::thread::JoinHandle<()>>);

impl Drop for PreparedMoves {
    fn drop(&mut self) {
        // The thread does not panic.
        let _ = self.0.take().map(std::thread::JoinHandle::join);
    }
}

/// Moves the calling thread into the group that it is already in.
fn move_to_own_group() -> io::Result<()> {
    let groups = read_kernel_text("/proc/thread-self/cgroup")?;
    let hierarchies = mounted().map_err(io::Error::other)?;
    // One hierarchy is enough, because all hierarchies share the lock.
    let tasks = hierarchies.iter().find_map(|hierarchy| tasks_file(hierarchy, &groups));
    let mut tasks = fs::File::options().write(true).open(tasks.ok_or(io::ErrorKind::NotFound)?)?;
    tasks.write_all(gettid().as_raw_nonzero().to_string().as_bytes())
}

/// Returns the file that lists the threads of the group in this hierarchy. `groups` is the content
/// of `/proc/PID/cgroup`.
fn tasks_file(hierarchy: &Hierarchy, groups: &str) -> Option<PathBuf> {
    let group = hierarchy.own_group(groups)?;
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
