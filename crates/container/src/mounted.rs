use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use crate::error::chain;
use crate::{Error, LowerNames, MountApi, Result};

/// A mount that is taken down with this value.
///
/// Prefer [`unmount`](Self::unmount), which can say what went wrong; dropping does the same and can only log it.
#[derive(Debug)]
#[must_use = "the mount is taken down when this value is dropped"]
pub struct Mounted {
    target: PathBuf,
    api: MountApi,
    names: LowerNames,
    /// Whether dropping has to unmount.
    armed: bool,
}

impl AsRef<Path> for Mounted {
    fn as_ref(&self) -> &Path {
        self.path()
    }
}

/// EBUSY passes when a process that was seen to end gives up its last file a moment later. There is no event to wait for, so
/// the waits double from one millisecond: ten of them are one second.
const RETRIES: u32 = 10;

impl Mounted {
    pub(crate) fn new(target: PathBuf, api: MountApi, names: LowerNames) -> Self {
        Self { target, api, names, armed: true }
    }

    /// Where it is mounted, as an absolute path.
    pub fn path(&self) -> &Path {
        &self.target
    }

    /// By which system calls it was mounted.
    pub fn api(&self) -> MountApi {
        self.api
    }

    /// How the lowers are named in the mount table.
    pub fn names(&self) -> LowerNames {
        self.names
    }

    /// Takes the mount down. A busy one is tried again for up to a second.
    ///
    /// That it succeeds does not say that nobody uses the overlay any longer: a mount namespace that was copied meanwhile has
    /// a mount of its own. Only the end of the processes says that.
    ///
    /// # Errors
    /// [`Error::Unmount`]: the mount is still there. Nothing below it may be deleted then, since that would delete through the
    /// mount.
    pub fn unmount(mut self) -> Result<()> {
        // An unmount that has failed is not tried again by `drop`.
        self.armed = false;
        self.take_down()
    }

    fn take_down(&self) -> Result<()> {
        patiently(|| umount2(&self.target, MntFlags::UMOUNT_NOFOLLOW), std::thread::sleep)
            .map_err(|error| Error::Unmount { target: self.target.clone(), source: error.into() })
    }
}

/// Tries to unmount until it is done, or it is no use to try again.
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
        if let Err(error) = self.take_down() {
            log::error!("{}", chain(&error));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_mount_is_tried_for_a_second_and_no_longer() {
        use Errno::{EBUSY, EINTR, EINVAL, EIO};
        // (the kernel's answers, after the last of which it says yes; what comes of it, milliseconds that were waited)
        let table: [(&[Errno], nix::Result<()>, u128); 7] = [
            (&[], Ok(()), 0),
            (&[EBUSY], Ok(()), 1),
            (&[EBUSY, EINTR, EBUSY], Ok(()), 3),
            (&[EBUSY; 10], Ok(()), 1023),
            (&[EBUSY; 11], Err(EBUSY), 1023),
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
