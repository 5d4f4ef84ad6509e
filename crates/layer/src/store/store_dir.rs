//! A store's own directory: who uses which layers, and what is on its way in or out.

mod trash;

use std::ffi::OsString;
use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::{CWD, FileType, FlockOperation, Mode, RawDir, SeekFrom, flock, fstat, openat, seek, stat};
use rustix::io::Errno;

pub(crate) use self::trash::MadeOfLayer;
use crate::display::quoted;
use crate::error::{Error, Result};
use crate::tree::remove::remove_tree;
use crate::tree::walk::{self, ENTRIES_SIZE_BYTES, READ, as_os_str};

/// How often a lock is tried that somebody else has. A collector has it for about a millisecond.
const RETRY: Duration = Duration::from_millis(1);

/// The name of the area in its store.
pub(crate) const AREA: &str = ".layered";

/// `<store>/.layered`, which is made when somebody needs it.
///
/// ```text
/// <store>/.layered/                     flock(2): shared while a hold or a directory below is made,
///                                       exclusive while a collector looks at the holds and takes layers away
/// <store>/.layered/holds/<random>       the names of the layers that somebody uses, each ended by a NUL
/// <store>/.layered/new/<random>/layer   a layer in the making
/// <store>/.layered/trash-<random>       a layer that a collector has taken away: garbage
/// <store>/.layered/layer.json           where the area was made of a layer: all but `holds` and `new` is garbage
/// ```
///
/// Holds and layers in the making are locked by their owners, and those that are not locked are a dead owner's: locks,
/// flock(2), die with their holder. So that nobody takes one for dead that is only just being made, that is done under the lock
/// of the area. Garbage has no owner.
#[derive(Debug)]
pub(crate) struct Area {
    path: PathBuf,
    dir: OwnedFd,
}

/// A part of the area.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    /// Files of names.
    Holds,
    /// Directories of layers that are being made.
    New,
}

impl Room {
    fn name(self) -> &'static str {
        match self {
            Room::Holds => "holds",
            Room::New => "new",
        }
    }
}

impl Area {
    /// The area of `store`, made if it is missing.
    pub(crate) fn make(store: &Path) -> Result<Self> {
        // Mostly it is there.
        if let Some(area) = Self::open(store)? {
            return Ok(area);
        }
        make_dir(&store.join(AREA))?;
        Self::open(store)?.ok_or_else(|| Error::io("open", store.join(AREA))(Errno::NOENT))
    }

    /// The area of `store`, if it has one.
    pub(crate) fn open(store: &Path) -> Result<Option<Self>> {
        let path = store.join(AREA);
        let dir = match openat(CWD, &path, READ, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(Error::io("open", path)(errno)),
        };
        // Whoever has it can lead what is made and removed in it elsewhere: in /tmp anybody could have made it.
        let owner = fstat(&dir).map_err(Error::io("look at", &path))?.st_uid;
        if !is_trusted(owner, store)? {
            let why = "it belongs neither to root nor to the owner of the store";
            return Err(Error::io("use", path)(io::Error::new(io::ErrorKind::PermissionDenied, why)));
        }
        Ok(Some(Self { path, dir }))
    }

    /// Waits for the lock.
    pub(crate) fn lock(&self, how: FlockOperation) -> Result<AreaLock<'_>> {
        loop {
            match flock(&self.dir, how) {
                Ok(()) => return Ok(AreaLock { area: self }),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::io("lock", &self.path)(errno)),
            }
        }
    }

    /// Waits for the lock, shared, until `stop` says that nobody needs it any more; `None` then.
    pub(crate) fn lock_shared_until(&self, stop: &dyn Fn() -> bool) -> Result<Option<AreaLock<'_>>> {
        loop {
            match flock(&self.dir, FlockOperation::NonBlockingLockShared) {
                Ok(()) => return Ok(Some(AreaLock { area: self })),
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) if stop() => return Ok(None),
                // No event says that such a lock is free, and waiting in the kernel for it cannot be ended by another thread.
                Err(Errno::WOULDBLOCK) => thread::sleep(RETRY),
                Err(errno) => return Err(Error::io("lock", &self.path)(errno)),
            }
        }
    }

    /// What is in a part of the area; nothing if that was never needed.
    pub(crate) fn list(&self, room: Room) -> Result<Vec<PathBuf>> {
        let path = self.path.join(room.name());
        let entries = match openat(&self.dir, room.name(), READ, Mode::empty()) {
            Ok(dir) => entries(&dir),
            Err(Errno::NOENT) => Ok(Vec::new()),
            Err(errno) => Err(errno),
        };
        match entries {
            Ok(entries) => Ok(entries.into_iter().map(|(name, _)| path.join(name)).collect()),
            Err(errno) => Err(Error::io("read", path)(errno)),
        }
    }
}

/// Whether an area that belongs to `owner` may be used for `store`.
fn is_trusted(owner: u32, store: &Path) -> Result<bool> {
    Ok(owner == 0 || owner == stat(store).map_err(Error::io("look at", store))?.st_uid)
}

/// What is in a directory. Entries that vanish concurrently may or may not be there.
fn entries(dir: impl AsFd) -> rustix::io::Result<Vec<(OsString, FileType)>> {
    let dir = dir.as_fd();
    // It may have been read before.
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

/// The lock of an [`Area`], let go when it is dropped.
#[derive(Debug)]
#[must_use = "dropped, it is let go"]
pub(crate) struct AreaLock<'a> {
    area: &'a Area,
}

impl AreaLock<'_> {
    /// Makes a file, of whatever type, in a part of the area, which is made too if it is not there.
    pub(crate) fn make_in<T>(&self, room: Room, make: impl Fn(&Path) -> io::Result<T>) -> Result<T> {
        let path = self.area.path.join(room.name());
        let made = match make(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make_dir(&path)?;
                make(&path)
            }
            made => made,
        };
        made.map_err(Error::io("make a file in", path))
    }

    /// Makes a directory of the caller's own in a part of the area.
    pub(crate) fn work_dir(&self, room: Room) -> Result<WorkDir> {
        let make = |parent: &Path| tempfile::Builder::new().prefix("").rand_bytes(16).tempdir_in(parent);
        let path = self.make_in(room, make)?.keep();
        let taken = WorkDir::take(&path)?;
        taken.ok_or_else(|| Error::io("lock", path)(Errno::WOULDBLOCK))
    }

    /// Takes over, of a part of the area, at most so many directories whose owners are gone.
    pub(crate) fn orphans(&self, room: Room, most: usize) -> Result<Vec<WorkDir>> {
        let dirs = self.area.list(room)?;
        dirs.iter().filter_map(|path| WorkDir::take(path).transpose()).take(most).collect()
    }
}

impl Drop for AreaLock<'_> {
    fn drop(&mut self) {
        // A child that is just being started has the descriptor too, for a moment. Failing this, closing does.
        if let Err(errno) = flock(&self.area.dir, FlockOperation::Unlock) {
            log::debug!("cannot unlock {}: {errno}", quoted(&self.area.path));
        }
    }
}

/// A directory in the area, locked by its owner. Dropped, it is an orphan, for the next collector to remove.
#[derive(Debug)]
pub(crate) struct WorkDir {
    path: PathBuf,
    lock: OwnedFd,
}

impl WorkDir {
    /// `None` if it has an owner, or is gone.
    fn take(path: &Path) -> Result<Option<Self>> {
        let lock = match openat(CWD, path, READ, Mode::empty()) {
            Ok(lock) => lock,
            // Not a directory: nobody here has made it.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(errno) => return Err(Error::io("open", path)(errno)),
        };
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            // Whoever had the lock before may have removed the directory under it.
            Ok(()) if fstat(&lock).is_ok_and(|stat| stat.st_nlink == 0) => Ok(None),
            Ok(()) => Ok(Some(Self { path: path.into(), lock })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(Error::io("lock", path)(errno)),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it with all that is in it. It is locked until it is gone.
    pub(crate) fn remove(self) -> Result<()> {
        remove_tree(&self.path)
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        // As for the lock of the area.
        if let Err(errno) = flock(&self.lock, FlockOperation::Unlock) {
            log::debug!("cannot unlock {}: {errno}", self.path.display());
        }
    }
}

/// Makes a directory that may be there already. Nobody else may enter it: whoever can open what is in it can lock it, too, and
/// keep all others waiting.
fn make_dir(path: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(Error::io("make the directory", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_directory_without_its_owner_is_an_orphan() {
        let store = tempfile::tempdir().unwrap();
        assert!(Area::open(store.path()).unwrap().is_none());
        let area = Area::make(store.path()).unwrap();
        let lock = area.lock(FlockOperation::LockExclusive).unwrap();
        let [live, dead] = [(); 2].map(|()| lock.work_dir(Room::New).unwrap());
        fs::create_dir_all(dead.path().join("layer/fs/a")).unwrap();
        let path = dead.path().to_path_buf();
        drop(dead);

        let orphans = lock.orphans(Room::New, 9).unwrap();
        assert_eq!(orphans.iter().map(WorkDir::path).collect::<Vec<_>>(), [&path]);
        assert!(lock.orphans(Room::New, 9).unwrap().is_empty(), "somebody has taken it over");
        assert!(lock.orphans(Room::Holds, 9).unwrap().is_empty());
        orphans.into_iter().for_each(|orphan| orphan.remove().unwrap());
        assert_eq!(area.list(Room::New).unwrap(), [live.path()]);
    }

    #[test]
    fn the_area_is_no_link_that_leads_elsewhere() {
        let [store, elsewhere] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        std::os::unix::fs::symlink(elsewhere.path(), store.path().join(AREA)).unwrap();
        assert!(matches!(Area::make(store.path()), Err(Error::Io { path, .. }) if path == store.path().join(AREA)));
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
    }
}
