//! Lets only one process of a machine pull a layer of one name into a store.

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use super::Cancel;
use crate::error::{Error, Result};
use crate::store::Store;
use crate::store::store_dir::StoreDir;

/// The time between two attempts. The kernel can report no event when a lock becomes free that a
/// cancelled process must not wait for.
const RETRY: Duration = Duration::from_millis(20);

/// The lock of a name, which ends when it is dropped or the process ends. It is a lock of one byte
/// in the file `.layered/pulling`, at an offset made of the name. Two names can share a byte, and
/// one then waits for the other.
#[derive(Debug)]
#[must_use = "dropped, it is released"]
pub(super) struct NameLock(#[allow(dead_code, reason = "its descriptor has the lock")] File);

impl NameLock {
    /// Waits for the lock of `name` in `store`. Returns `None` if `cancel` ends the wait.
    pub(super) fn wait(store: &Store, name: &str, cancel: &Cancel) -> Result<Option<Self>> {
        let (path, file) = StoreDir::make_to_change(store.path())?.lock_file("pulling")?;
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        let lock = nix::libc::flock {
            l_type: nix::libc::F_WRLCK as _,
            l_whence: nix::libc::SEEK_SET as _,
            l_start: (hasher.finish() >> 2) as _,
            l_len: 1,
            l_pid: 0,
        };
        loop {
            if cancel.is_cancelled() {
                return Ok(None);
            }
            match fcntl(&file, FcntlArg::F_OFD_SETLK(&lock)) {
                Ok(_) => return Ok(Some(Self(file))),
                Err(Errno::EAGAIN | Errno::EACCES) => cancel.wait(RETRY),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::io::<std::io::Error>("lock", path)(errno.into())),
            }
        }
    }
}
