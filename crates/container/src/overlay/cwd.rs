use std::path::Path;

use nix::sched::{CloneFlags, unshare};

use crate::{Error, Result};

/// Where the number of a descriptor is a path: the shortest name that a directory can have.
pub(super) const DESCRIPTORS: &str = "/proc/thread-self/fd";

/// Runs `work` with `dir` as its working directory, which no other thread sees: on a thread with file system attributes and a
/// table of descriptors of its own, in the caller's mount namespace. Hundreds of descriptors that are needed for the mount alone
/// are in nobody's way there, and closed with it.
pub(super) fn in_directory<T: Send>(dir: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("overlay-mount".into())
            .spawn_scoped(scope, || {
                let own = CloneFlags::CLONE_FS | CloneFlags::CLONE_FILES;
                unshare(own).map_err(Error::io("leave", "the common working directory"))?;
                nix::unistd::chdir(Path::new(dir)).map_err(Error::io("change to", dir))?;
                work()
            })
            .map_err(Error::io("start a thread in", dir))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
