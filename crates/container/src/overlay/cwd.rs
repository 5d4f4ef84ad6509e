use std::path::Path;

use nix::sched::{CloneFlags, unshare};

use crate::{Error, Result};

/// Where the number of a descriptor is a path: the shortest name that a directory can have.
pub(super) const DESCRIPTORS: &str = "/proc/self/fd";

/// Runs `work` with `dir` as its working directory, which no other thread sees: on a thread with file system attributes of
/// its own, in the caller's mount namespace.
pub(super) fn in_directory<T: Send>(dir: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("overlay-mount".into())
            .spawn_scoped(scope, || {
                unshare(CloneFlags::CLONE_FS).map_err(Error::io("leave", "the common working directory"))?;
                nix::unistd::chdir(Path::new(dir)).map_err(Error::io("change to", dir))?;
                work()
            })
            .map_err(Error::io("start a thread in", dir))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
