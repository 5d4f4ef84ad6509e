//! A store's own directory, `.layered`: its parts, its lock and who may use it. `hold.rs` defines
//! the files in `holds`; `store_dir/part.rs` makes and finds the files in the parts;
//! `store_dir/trash.rs` moves layers here to remove them.

mod part;
mod trash;

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::fs::{
    CWD, FileType, FlockOperation, Mode, OFlags, RawDir, SeekFrom, Stat, flock, fstat, mkdirat, openat, seek,
};
use rustix::io::Errno;

pub(crate) use self::part::{PartFile, WorkDir};
pub(crate) use self::trash::{MadeOfLayer, Trash, locked};
use crate::display::quoted;
use crate::error::{Error, Result};
use crate::tree::owner;
use crate::tree::walk::{self, ENTRIES_SIZE_BYTES, PATH, READ, as_os_str};

/// The interval between two attempts to lock. A collector holds the lock for about a millisecond.
pub(crate) const RETRY: Duration = Duration::from_millis(1);

/// The number of repeated attempts to lock the directories of a store's layers. A collector has one
/// locked for microseconds.
pub(crate) const RETRIES: u32 = 200;

/// The name of the store directory.
pub(crate) const STORE_DIR: &str = ".layered";

/// The store directory, `<store>/.layered`. The first hold, draft or collector that needs it makes
/// it.
///
/// ```text
/// <store>/.layered/                     flock(2): shared while a hold or a draft is made,
///                                       exclusive while a collector reads holds and renames layers
/// <store>/.layered/holds/<random>       the names of the layers that are held, each ended by a NUL
/// <store>/.layered/new/<random>/layer   a draft: a layer that is being made
/// <store>/.layered/trash-<random>       a layer that a collector renamed: garbage
/// <store>/.layered/pulling              one byte is locked for each name that is being pulled
/// <store>/.layered/layer.json           if a layer became this directory: all but its parts is garbage
/// ```
///
/// Owners lock their holds and drafts with flock(2), and the kernel releases a lock when its
/// owner's process ends. A draft that is not locked, or a hold that is neither locked nor
/// [kept](crate::Hold::keep), therefore has no living owner. An owner makes its hold or draft under
/// the lock of the store directory: otherwise a collector could take it for a dead owner's before
/// the owner locks it. Garbage has no owner.
#[derive(Debug)]
pub(crate) struct StoreDir {
    path: PathBuf,
    dir: Arc<OwnedFd>,
    /// The store. Layers are moved from here, not from a path, which may lead elsewhere by then.
    store: OwnedFd,
}

/// A directory in the store directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Files with the names of layers that are held.
    Holds,
    /// Directories in which layers are made.
    New,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Part::Holds => "holds",
            Part::New => "new",
        }
    }
}

impl StoreDir {
    /// Opens the store directory of `store`, and makes it if it is missing.
    pub(crate) fn make(store: &Path) -> Result<Self> {
        Self::make_in(open_store(store).map_err(Error::io("open", store))?, store)
    }

    /// Does what [`make`](Self::make) does, for a process that will make or remove layers: see
    /// [`check_may_change`].
    pub(crate) fn make_to_change(store: &Path) -> Result<Self> {
        let of_store = open_store(store).map_err(Error::io("open", store))?;
        check_owner(&of_store, store)?;
        Self::make_in(of_store, store)
    }

    fn make_in(of_store: OwnedFd, store: &Path) -> Result<Self> {
        let path = store.join(STORE_DIR);
        let dir = match openat(&of_store, STORE_DIR, READ, Mode::empty()) {
            // It usually exists.
            Err(Errno::NOENT) => {
                make_dir(&of_store, STORE_DIR, &path)?;
                openat(&of_store, STORE_DIR, READ, Mode::empty())
            }
            opened => opened,
        };
        Self::trusted(of_store, dir.map_err(Error::io("open", &path))?, path)
    }

    /// Opens the store directory of `store`. Returns `None` if the store has none.
    pub(crate) fn open(store: &Path) -> Result<Option<Self>> {
        let path = store.join(STORE_DIR);
        let opened = open_store(store).and_then(|of_store| {
            let dir = openat(&of_store, STORE_DIR, READ, Mode::empty())?;
            Ok((of_store, dir))
        });
        match opened {
            Ok((of_store, dir)) => Self::trusted(of_store, dir, path).map(Some),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(Error::io("open", path)(errno)),
        }
    }

    /// Returns the store directory, if it may be used.
    fn trusted(store: OwnedFd, dir: OwnedFd, path: PathBuf) -> Result<Self> {
        let stat = fstat(&dir).map_err(Error::io("look at", &path))?;
        // The owner of this directory can redirect what this process makes and removes in it. In
        // /tmp, any user could have made it.
        if !is_trusted(&dir, &stat, &store).map_err(Error::io("look at", &path))? {
            let why = "it belongs neither to root nor to the owner of the store";
            return Err(Error::io("use", path)(io::Error::new(io::ErrorKind::PermissionDenied, why)));
        }
        Ok(Self { path, dir: Arc::new(dir), store })
    }

    /// Returns the store directory, if this process may make and remove layers in the store: see
    /// [`check_may_change`].
    pub(crate) fn changeable(self) -> Result<Self> {
        check_owner(&self.store, self.path.parent().unwrap_or(&self.path))?;
        Ok(self)
    }

    /// Waits for the lock, and takes it.
    pub(crate) fn lock(&self, how: FlockOperation) -> Result<StoreDirLock<'_>> {
        loop {
            match flock(&self.dir, how) {
                Ok(()) => return Ok(StoreDirLock { store_dir: self }),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::io("lock", &self.path)(errno)),
            }
        }
    }

    /// Waits for the shared lock. Returns `None` as soon as `stop` returns true.
    pub(crate) fn lock_shared_until(&self, stop: &dyn Fn() -> bool) -> Result<Option<StoreDirLock<'_>>> {
        loop {
            match flock(&self.dir, FlockOperation::NonBlockingLockShared) {
                Ok(()) => return Ok(Some(StoreDirLock { store_dir: self })),
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) if stop() => return Ok(None),
                // The kernel reports no event when such a lock becomes free, and another thread
                // cannot interrupt a wait for it.
                Err(Errno::WOULDBLOCK) => thread::sleep(RETRY),
                Err(errno) => return Err(Error::io("lock", &self.path)(errno)),
            }
        }
    }
}

/// Opens the directory of a store. Needs no permission on the directory itself.
fn open_store(store: &Path) -> rustix::io::Result<OwnedFd> {
    openat(CWD, store, PATH.difference(OFlags::NOFOLLOW), Mode::empty())
}

/// Checks that this process may make and remove layers in `store`. Root may not in a store of an
/// ordinary user.
///
/// A layer is made and removed by paths as well as by descriptors: the caller fills a draft by its
/// path, and a capture is completed by its path. The owner of the store can make each of them lead
/// elsewhere. A hold is one file that is made by descriptor, so root may hold the layers of users.
///
/// # Errors
/// [`Error::OthersStore`], or [`Error::Io`] if the store cannot be looked at.
pub(crate) fn check_may_change(store: &Path) -> Result<()> {
    match open_store(store) {
        Ok(dir) => check_owner(dir, store),
        // The caller names what it expected here.
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
        Err(errno) => Err(Error::io("open", store)(errno)),
    }
}

fn check_owner(dir: impl AsFd, store: &Path) -> Result<()> {
    let stat = fstat(dir).map_err(Error::io("look at", store))?;
    match owner::other_than_root(&stat) {
        Some(owner) => Err(Error::OthersStore { store: store.into(), owner }),
        None => Ok(()),
    }
}

/// Returns whether a store directory with these attributes may be used for `store`: whether it
/// belongs to root or to the owner of the store. An owner without a number in this process's user
/// namespace is neither.
fn is_trusted(dir: &OwnedFd, stat: &Stat, store: &OwnedFd) -> rustix::io::Result<bool> {
    match owner::known_uid_of(dir, stat) {
        None => Ok(false),
        Some(0) => Ok(true),
        // The number of the store's owner means nothing either, unless a descriptor proves it.
        Some(owner) if owner::known_uid(stat).is_none() => {
            let store = openat(store, c".", READ, Mode::empty())?;
            Ok(owner::known_uid_of(&store, &fstat(&store)?) == Some(owner))
        }
        Some(owner) => Ok(owner == fstat(store)?.st_uid),
    }
}

/// Lists a directory. Entries that another process removes concurrently may or may not be listed.
fn entries(dir: impl AsFd) -> rustix::io::Result<Vec<(OsString, FileType)>> {
    let dir = dir.as_fd();
    // An earlier call may have read the directory through this descriptor.
    seek(dir, SeekFrom::Start(0))?;
    let mut buffer = Vec::with_capacity(ENTRIES_SIZE_BYTES);
    let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
    let mut found = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        match walk::file_type(dir, &entry) {
            _ if walk::is_dots(name) => {}
            Ok(kind) => found.push((as_os_str(name).to_owned(), kind)),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(found)
}

/// The lock of a [`StoreDir`], released when it is dropped.
#[derive(Debug)]
#[must_use = "dropped, it is released"]
pub(crate) struct StoreDirLock<'a> {
    store_dir: &'a StoreDir,
}

impl Drop for StoreDirLock<'_> {
    fn drop(&mut self) {
        // Closing the descriptor is not enough: a child process has a copy of it between fork and
        // exec.
        if let Err(errno) = flock(&self.store_dir.dir, FlockOperation::Unlock) {
            log::debug!("cannot unlock {}: {errno}", quoted(&self.store_dir.path));
        }
    }
}

/// Makes the directory `name` in `parent`, with mode 0700, if it is missing. `path` is its whole
/// path. Only its owner may enter it: a user who can open a file in it can also lock that file, and
/// keep every other process waiting. The owner is that of `parent`, even if root makes it.
fn make_dir(parent: &OwnedFd, name: &str, path: &Path) -> Result<()> {
    match mkdirat(parent, name, Mode::RWXU) {
        Ok(()) => {}
        Err(Errno::EXIST) => return Ok(()),
        Err(errno) => return Err(Error::io("make the directory", path)(errno)),
    }
    // The owner of `parent` may have replaced the directory. Giving away an empty one does no harm.
    if let Ok(dir) = openat(parent, name, READ, Mode::empty()) {
        if entries(&dir).is_ok_and(|entries| entries.is_empty()) {
            owner::give(&dir, parent);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_directory_without_its_owner_is_an_orphan() {
        let store = tempfile::tempdir().unwrap();
        assert!(StoreDir::open(store.path()).unwrap().is_none());
        let store_dir = StoreDir::make(store.path()).unwrap();
        let lock = store_dir.lock(FlockOperation::LockExclusive).unwrap();
        let [live, dead] = [(); 2].map(|()| lock.work_dir(Part::New).unwrap());
        fs::create_dir_all(dead.path().join("layer/fs/a")).unwrap();
        let path = dead.path().to_path_buf();
        drop(dead);

        let orphans = lock.orphans(Part::New, 9).unwrap();
        assert_eq!(orphans.iter().map(WorkDir::path).collect::<Vec<_>>(), [&path]);
        assert!(lock.orphans(Part::New, 9).unwrap().is_empty(), "it has been taken over");
        assert!(lock.orphans(Part::Holds, 9).unwrap().is_empty());
        orphans.into_iter().for_each(|orphan| orphan.remove().unwrap());
        assert!(live.path().exists() && !path.exists());
    }

    #[test]
    fn a_store_directory_that_is_a_symlink_is_refused() {
        let [store, elsewhere] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        std::os::unix::fs::symlink(elsewhere.path(), store.path().join(STORE_DIR)).unwrap();
        assert!(
            matches!(StoreDir::make(store.path()), Err(Error::Io { path, .. }) if path == store.path().join(STORE_DIR))
        );
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
    }
}
