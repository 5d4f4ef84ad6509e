//! Locks a directory and checks that it still exists. No other file does both. `store/store_dir.rs`
//! and `capture/lock.rs` decide what a lock means for a store and for a layer.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, Mode, flock, fstat, openat};
use rustix::io::Errno;
use rustix::path::Arg;

use super::remove::remove_tree;
use super::walk::READ;
use crate::display::quoted;
use crate::error::{Error, Result};

/// A directory that is open, is locked with flock(2), and existed when the lock was taken.
///
/// A program uses it to make temporary directories and to remove those of dead processes, as the
/// runner does with the directories of its runs. The kernel releases the lock when the process
/// ends, so a directory that is not locked has no owner.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// use layer::LockedDir;
///
/// let owned = LockedDir::try_lock(dir.path())?.expect("it is new");
/// assert!(LockedDir::try_lock(dir.path())?.is_none());
/// owned.remove()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "dropped, it is unlocked"]
pub struct LockedDir {
    path: PathBuf,
    dir: OwnedFd,
}

/// The outcome of an attempt to lock a directory.
#[derive(Debug)]
pub(crate) enum Attempt {
    /// The directory is locked now.
    Locked(LockedDir),
    /// Another process or another value has locked the directory.
    Busy,
    /// The directory was removed before it was locked.
    Gone,
}

impl LockedDir {
    /// Locks the directory `path` exclusively. Does not wait, and does not follow a symbolic link
    /// at `path` itself.
    ///
    /// Returns `None` if another process or another value has the directory locked, or if it does
    /// not exist.
    ///
    /// # Errors
    /// [`Error::Io`] if `path` is not a directory, or if it cannot be opened or locked.
    pub fn try_lock(path: impl Into<PathBuf>) -> Result<Option<Self>> {
        let path = path.into();
        Self::try_lock_at(CWD, path.clone(), path)
    }

    /// Locks the directory `path` as [`try_lock`](Self::try_lock) does, but shared: any number of
    /// processes can have it locked so, and none exclusively. Needs only the permission to read the
    /// directory.
    ///
    /// # Errors
    /// As `try_lock`.
    pub fn try_lock_shared(path: impl Into<PathBuf>) -> Result<Option<Self>> {
        let path = path.into();
        Self::open_and_attempt(CWD, path.clone(), path, FlockOperation::NonBlockingLockShared)
    }

    /// Locks the directory `name` in `parent` as [`try_lock`](Self::try_lock) does. `path` is its
    /// whole path.
    pub(crate) fn try_lock_at(parent: BorrowedFd<'_>, name: impl Arg, path: PathBuf) -> Result<Option<Self>> {
        Self::open_and_attempt(parent, name, path, FlockOperation::NonBlockingLockExclusive)
    }

    fn open_and_attempt(
        parent: BorrowedFd<'_>,
        name: impl Arg,
        path: PathBuf,
        how: FlockOperation,
    ) -> Result<Option<Self>> {
        let dir = match openat(parent, name, READ, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(Error::io("open", path)(errno)),
        };
        match Self::attempt(dir, path, how)? {
            Attempt::Locked(locked) => Ok(Some(locked)),
            Attempt::Busy | Attempt::Gone => Ok(None),
        }
    }

    /// Locks the open directory `dir`, whose path is `path`. `how` must be an operation that does
    /// not wait.
    pub(crate) fn attempt(dir: OwnedFd, path: impl Into<PathBuf>, how: FlockOperation) -> Result<Attempt> {
        let path = path.into();
        match flock(&dir, how) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(Attempt::Busy),
            Err(errno) => return Err(Error::io("lock", path)(errno)),
        }
        let locked = Self { path, dir };
        // The former owner of the lock may have removed the directory.
        match fstat(&locked.dir).map_err(Error::io("look at", &locked.path))?.st_nlink {
            0 => Ok(Attempt::Gone),
            _ => Ok(Attempt::Locked(locked)),
        }
    }

    /// Returns the path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Renames the directory to `to`. It stays locked.
    ///
    /// # Errors
    /// [`Error::Io`] if the directory cannot be renamed. It then has its former name.
    pub fn rename(&mut self, to: impl Into<PathBuf>) -> Result<()> {
        let to = to.into();
        std::fs::rename(&self.path, &to).map_err(Error::io("rename", &self.path))?;
        self.path = to;
        Ok(())
    }

    /// Removes the directory with everything in it. It stays locked until it is gone.
    ///
    /// # Errors
    /// The errors of [`remove_tree`].
    pub fn remove(self) -> Result<()> {
        remove_tree(&self.path)
    }
}

impl AsFd for LockedDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

impl Drop for LockedDir {
    fn drop(&mut self) {
        // A child process that is being started has a copy of the descriptor for a moment, so
        // closing this one does not release the lock.
        if let Err(errno) = flock(&self.dir, FlockOperation::Unlock) {
            log::debug!("cannot unlock {}: {errno}", quoted(&self.path));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_was_removed_before_it_was_locked_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dir");
        std::fs::create_dir(&path).unwrap();
        let opened = openat(CWD, &path, READ, Mode::empty()).unwrap();
        let former = LockedDir::try_lock(&path).unwrap().unwrap();
        let busy = LockedDir::attempt(opened.try_clone().unwrap(), &path, FlockOperation::NonBlockingLockShared);
        assert!(matches!(busy, Ok(Attempt::Busy)), "{busy:?}");
        former.remove().unwrap();
        let gone = LockedDir::attempt(opened, &path, FlockOperation::NonBlockingLockShared);
        assert!(matches!(gone, Ok(Attempt::Gone)), "{gone:?}");
        assert!(LockedDir::try_lock(&path).unwrap().is_none());
    }

    #[test]
    fn a_renamed_directory_stays_locked() {
        let dir = tempfile::tempdir().unwrap();
        let [before, after] = ["before", "after"].map(|name| dir.path().join(name));
        std::fs::create_dir(&before).unwrap();
        let mut locked = LockedDir::try_lock(&before).unwrap().unwrap();
        locked.rename(&after).unwrap();
        assert_eq!(locked.path(), after);
        assert!(LockedDir::try_lock(&after).unwrap().is_none());
    }
}
