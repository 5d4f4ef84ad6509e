//! The guard of an overlay mount.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use super::kinds::{LowerNames, MountApi};
use crate::chain::chain;
use crate::error::{Error, Result};

/// A mounted overlay, which is unmounted when this value is dropped.
///
/// Prefer [`unmount`](Self::unmount), which returns an error. Dropping the value can only log it.
#[derive(Debug)]
#[must_use = "the overlay is unmounted when this value is dropped"]
pub struct Mounted {
    target: PathBuf,
    api: MountApi,
    names: LowerNames,
    /// Whether dropping must unmount.
    armed: bool,
}

impl AsRef<Path> for Mounted {
    fn as_ref(&self) -> &Path {
        self.path()
    }
}

/// How often an unmount is retried while the mount is busy. A process that has ended may close its
/// last file a moment later, and the kernel reports no event for that. The first wait is 1 ms, and
/// each further one is twice as long as the one before: four seconds in all.
const RETRIES: u32 = 12;

impl Mounted {
    pub(super) fn new(target: PathBuf, api: MountApi, names: LowerNames) -> Self {
        Self { target, api, names, armed: true }
    }

    /// Returns the mount point as an absolute path.
    pub fn path(&self) -> &Path {
        &self.target
    }

    /// Returns the system calls that mounted the overlay.
    pub fn api(&self) -> MountApi {
        self.api
    }

    /// Returns how the mount table names the lowers.
    pub fn names(&self) -> LowerNames {
        self.names
    }

    /// Unmounts the overlay. If it is busy, tries again for up to four seconds.
    ///
    /// Success does not mean that the overlay is unused: another mount namespace may have a copy of
    /// the mount. The overlay is unused only when all its processes have ended.
    ///
    /// # Errors
    /// [`Error::Unmount`]: the overlay is still mounted. Do not delete anything below the mount
    /// point, because that would delete files through the mount.
    pub fn unmount(mut self) -> Result<()> {
        // `drop` does not repeat an unmount that has failed.
        self.armed = false;
        self.try_unmount()
    }

    fn try_unmount(&self) -> Result<()> {
        patiently(|| umount2(&self.target, MntFlags::UMOUNT_NOFOLLOW), std::thread::sleep)
            .map_err(|error| Error::Unmount { target: self.target.clone(), source: error.into() })
    }
}

/// Calls `unmount` until it succeeds, fails for good, or has been busy for four seconds.
fn patiently(mut unmount: impl FnMut() -> nix::Result<()>, mut wait: impl FnMut(Duration)) -> nix::Result<()> {
    let mut retries = 0;
    loop {
        match unmount() {
            Err(Errno::EINTR) => {}
            Err(Errno::EBUSY) if retries < RETRIES => {
                wait(Duration::from_millis(1 << retries));
                retries += 1;
            }
            result => return result,
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        if let Err(error) = self.try_unmount() {
            log::error!("{}", chain(&error));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unmount_is_retried_for_four_seconds_while_the_mount_is_busy() {
        use Errno::{EBUSY, EINTR, EINVAL, EIO};
        // (the kernel's errors before it succeeds, the result, the milliseconds waited)
        let table: [(&[Errno], nix::Result<()>, u128); 7] = [
            (&[], Ok(()), 0),
            (&[EBUSY], Ok(()), 1),
            (&[EBUSY, EINTR, EBUSY], Ok(()), 3),
            (&[EBUSY; 12], Ok(()), 4095),
            (&[EBUSY; 13], Err(EBUSY), 4095),
            (&[EBUSY, EIO], Err(EIO), 1),
            (&[EINVAL, EBUSY], Err(EINVAL), 0),
        ];
        for (answers, expected, milliseconds) in table {
            let (mut left, mut waited) = (answers.iter(), Duration::ZERO);
            let result = patiently(|| left.next().map_or(Ok(()), |errno| Err(*errno)), |wait| waited += wait);
            assert_eq!((result, waited.as_millis()), (expected, milliseconds), "{answers:?}");
        }
    }
}
