//! Runs a mount in another working directory without changing that of other threads.

use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags};

use crate::error::{Error, Result};
use crate::mount_namespace::is_in_private_namespace;

/// The directory in which the number of a descriptor is a path.
pub(super) const DESCRIPTORS: &str = "/proc/thread-self/fd";

/// Runs `work`, which changes the working directory. No other thread sees the change, and the
/// calling thread's working directory is the same afterwards.
pub(super) fn anywhere<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    if is_in_private_namespace() {
        // In a private mount namespace, the calling thread shares its working directory only with
        // threads that it has started itself.
        unshare(CloneFlags::CLONE_FS).map_err(Error::io("leave", "the common working directory"))?;
        let _restore = Restore::current()?;
        return work();
    }
    on_a_thread(CloneFlags::CLONE_FS, work)
}

/// Runs `work` in [`DESCRIPTORS`], on a thread with its own descriptor table. The hundreds of
/// descriptors that only the mount needs do not count against the process's limit, and the kernel
/// closes them when the thread ends.
pub(super) fn among_descriptors<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    on_a_thread(CloneFlags::CLONE_FS | CloneFlags::CLONE_FILES, || {
        nix::unistd::chdir(Path::new(DESCRIPTORS)).map_err(Error::io("change to", DESCRIPTORS))?;
        work()
    })
}

/// Runs `work` on a thread that stops sharing `own` with the process, in the caller's mount
/// namespace.
fn on_a_thread<T: Send>(own: CloneFlags, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("overlay-mount".into())
            .spawn_scoped(scope, || {
                unshare(own).map_err(Error::io("leave", "the common working directory"))?;
                work()
            })
            .map_err(Error::io("start a thread for", "the mount"))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Restores the working directory when dropped.
struct Restore(OwnedFd);

impl Restore {
    fn current() -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let here = rustix::fs::openat(CWD, ".", flags, Mode::empty());
        here.map(Self).map_err(Error::io("open", "the working directory"))
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        if let Err(error) = rustix::process::fchdir(&self.0) {
            log::warn!("cannot change back to the working directory: {error}");
        }
    }
}
