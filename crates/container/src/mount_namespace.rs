use std::cell::Cell;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rustix::thread::{CapabilitySet, capabilities};

use crate::error::{Error, Result};

/// Runs `work` on a thread that has a mount namespace of its own and returns what it returns.
///
/// What it mounts is seen by it and by the processes it starts, and by nobody else: the host's mount table does not grow, and
/// the kernel takes the mounts down when the last of them ends, however it ends. What the host unmounts meanwhile is
/// unmounted here too, so that nothing of the host's is kept busy.
///
/// The thread's working directory and umask are its own as well (`CLONE_NEWNS` implies `CLONE_FS`). The caller's thread waits;
/// a panic in `work` goes on in it.
///
/// # Errors
/// [`Error::Namespace`] if the namespace cannot be made: without root (CAP_SYS_ADMIN) it cannot. `work` is not called then.
pub fn in_private_mount_namespace<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("mount-namespace".into())
            .spawn_scoped(scope, || {
                unshare(CloneFlags::CLONE_NEWNS)?;
                // A slave takes over what the host unmounts and gives nothing back.
                let flags = MsFlags::MS_SLAVE | MsFlags::MS_REC;
                mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)?;
                PRIVATE.set(true);
                Ok(work())
            })
            .map_err(|source| Error::Namespace { source })?;
        let result: nix::Result<T> = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        result.map_err(|error| Error::Namespace { source: error.into() })
    })
}

thread_local! {
    static PRIVATE: Cell<bool> = const { Cell::new(false) };
}

/// Whether the calling thread is one of [`in_private_mount_namespace`].
pub(crate) fn is_in_private_namespace() -> bool {
    PRIVATE.get()
}

/// Mounts a file system in memory on the directory `target`, for root alone, of at most 64 MiB.
///
/// It belongs to the calling thread's mount namespace, which should be [private](in_private_mount_namespace): then it goes with that,
/// and all that is in it. Runtimes make dozens of small files in a [bundle](crate::Bundle), which cost a disk more than memory.
///
/// # Errors
/// [`Error::Io`] if it cannot be mounted.
pub fn mount_private_tmpfs(target: &Path) -> Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some("mode=0700,size=64m"))
        .map_err(Error::io("mount a tmpfs on", target))
}

/// Sees whether the calling thread may mount: everything else in this crate needs that, and says so less clearly.
///
/// # Errors
/// [`Error::Namespace`] if it lacks CAP_SYS_ADMIN.
pub fn require_privilege() -> Result<()> {
    let capabilities = capabilities(None).map_err(|error| Error::Namespace { source: error.into() })?;
    match capabilities.effective.contains(CapabilitySet::SYS_ADMIN) {
        true => Ok(()),
        false => Err(Error::Namespace { source: rustix::io::Errno::PERM.into() }),
    }
}
