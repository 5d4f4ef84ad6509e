//! Whether the kernel has killed for want of memory, found out after the runtime has removed the container's own group.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::io::{Errno, read};
use rustix::param::page_size;

/// A look at the group above the container's.
#[derive(Debug)]
pub(crate) enum MemoryWatch {
    /// Told by the kernel, and still there to be read when the group is gone.
    V1(OwnedFd),
    /// Counted in this file.
    V2(PathBuf),
}

impl MemoryWatch {
    /// Makes `group`, in whose own limit the container is to run into, a page before `limit_bytes`.
    ///
    /// Version 1 tells of an end of memory in the group whose limit was reached, and in those below it, and counts kills in
    /// the killed process's own: both are gone with the container. So the limit has to be reached one group above, which is ours
    /// (`mem_cgroup_oom_notify` in mm/memcontrol-v1.c; Documentation/admin-guide/cgroup-v1/memory.rst, "OOM Control").
    pub(super) fn v1(group: &Path, limit_bytes: u64) -> io::Result<Self> {
        match fs::create_dir(group) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let control = File::open(group.join("memory.oom_control"))?;
        fs::write(group.join("cgroup.event_control"), format!("{} {}", event.as_raw_fd(), control.as_raw_fd()))?;
        let limit = limit_bytes.saturating_sub(page_size() as u64).to_string();
        fs::write(group.join("memory.limit_in_bytes"), &limit)?;
        // Memory and swap together, where swap is accounted for.
        match fs::write(group.join("memory.memsw.limit_in_bytes"), &limit) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(Self::V1(event)),
        }
    }

    /// Whether it has, until now. The group must still be there.
    pub(crate) fn has_killed(&self) -> bool {
        match self {
            Self::V1(event) => read(event, &mut [0; 8]) != Err(Errno::AGAIN),
            Self::V2(events) => {
                let events = fs::read_to_string(events).unwrap_or_default();
                events.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count != "0"))
            }
        }
    }
}
