use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags};

use crate::namespace::is_in_private_namespace;
use crate::{Error, Result};

/// Where the number of a descriptor is a path.
pub(super) const DESCRIPTORS: &str = "/proc/thread-self/fd";

/// Runs `work`, which changes the working directory, where no other thread sees that. Here it is the same afterwards.
pub(super) fn anywhere<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    if is_in_private_namespace() {
        // It is this thread's own but for threads that it has started since.
        unshare(CloneFlags::CLONE_FS).map_err(Error::io("leave", "the common working directory"))?;
        let _back = Back::to_here()?;
        return work();
    }
    on_a_thread(CloneFlags::CLONE_FS, work)
}

/// Runs `work` in the directory of its descriptors, on a thread with a table of descriptors of its own: hundreds that are needed
/// for the mount alone are in nobody's way there, and closed with it.
pub(super) fn among_descriptors<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    on_a_thread(CloneFlags::CLONE_FS | CloneFlags::CLONE_FILES, || {
        nix::unistd::chdir(Path::new(DESCRIPTORS)).map_err(Error::io("change to", DESCRIPTORS))?;
        work()
    })
}

/// Runs `work` on a thread that has these of its own, in the caller's mount namespace.
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

/// Changes the working directory back when it is dropped.
struct Back(OwnedFd);

impl Back {
    fn to_here() -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let here = rustix::fs::openat(CWD, ".", flags, Mode::empty());
        here.map(Self).map_err(Error::io("open", "the working directory"))
    }
}

impl Drop for Back {
    fn drop(&mut self) {
        if let Err(error) = rustix::process::fchdir(&self.0) {
            log::warn!("cannot change back to the working directory: {error}");
        }
    }
}
