//! Private mount namespaces, and the privilege to create one.

use std::cell::Cell;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rustix::thread::{CapabilitySet, capabilities};

use crate::error::{Error, Result};

/// Runs `work` on a thread with a private mount namespace and returns its result.
///
/// Only that thread and the processes that it starts see its mounts, so the host's mount table does
/// not grow. The kernel unmounts them when the last of these processes ends, however it ends. If
/// the host unmounts a file system, it disappears in the namespace too, so the namespace never
/// keeps it busy.
///
/// The thread also has its own working directory and umask (`CLONE_NEWNS` implies `CLONE_FS`). The
/// calling thread waits. A panic in `work` continues there.
///
/// # Errors
/// [`Error::Namespace`] if the namespace cannot be created, which needs CAP_SYS_ADMIN.
/// `work` is not called then.
pub fn in_private_mount_namespace<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("mount-namespace".into())
            .spawn_scoped(scope, || {
                unshare(CloneFlags::CLONE_NEWNS)?;
                // A slave receives the host's mount events and sends none.
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

/// Returns whether the calling thread is one of [`in_private_mount_namespace`].
pub(crate) fn is_in_private_namespace() -> bool {
    PRIVATE.get()
}

/// Mounts a tmpfs of at most 64 MiB on the directory `target`. Only root can enter it.
///
/// The mount belongs to the mount namespace of the calling thread. If that is
/// [private](in_private_mount_namespace), the kernel removes the tmpfs together with the namespace.
/// Runtimes create dozens of small files in a [bundle](crate::Bundle), which are cheaper in memory
/// than on a disk.
///
/// # Errors
/// [`Error::Io`] if it cannot be mounted.
pub fn mount_private_tmpfs(target: &Path) -> Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some("mode=0700,size=64m"))
        .map_err(Error::io("mount a tmpfs on", target))
}

/// Checks that the calling thread may mount. Nearly everything else in this crate needs that, and
/// fails with less clear errors. Root may, and so may an ordinary user in a [user
/// namespace](crate::UserNamespace::enter).
///
/// # Errors
/// [`Error::Namespace`] if the thread lacks CAP_SYS_ADMIN.
pub fn require_privilege() -> Result<()> {
    if is_privileged() { Ok(()) } else { Err(Error::Namespace { source: rustix::io::Errno::PERM.into() }) }
}

/// Returns whether the calling thread has CAP_SYS_ADMIN in its user namespace.
pub(crate) fn is_privileged() -> bool {
    // The call fails only for the PID of another process.
    capabilities(None).is_ok_and(|all| all.effective.contains(CapabilitySet::SYS_ADMIN))
}
