//! Moves layers into the store directory, where they are garbage, and removes the garbage. `gc.rs`
//! decides which layers are removed.
//!
//! A rename needs no inode, and seldom a block, so this works on a full disk. Any process may
//! remove garbage at any time, even while another process is removing it.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, fchmod, fstat, openat, statat};
use rustix::io::Errno;

use super::part::random;
use super::{Part, STORE_DIR, StoreDir, StoreDirLock, check_owner, entries, is_trusted, open_store};
use crate::error::{Chain, Error, Result};
use crate::store::hold::Holder;
use crate::tree;
use crate::tree::locked_dir::{Attempt, LockedDir};
use crate::tree::remove::{USUAL_THREADS, remove_at};
use crate::tree::rename::rename_new;
use crate::tree::walk::{READ, as_c_string};

/// The prefix of the names of garbage.
const TRASH: &str = "trash-";

/// The name of the directory of garbage that collectors of earlier versions made.
const OLD_TRASH: &str = "trash";

/// The name of the file that marks a store directory that was a layer. While the file exists,
/// everything in the store directory but its parts is garbage.
const MARK: &str = "layer.json";

/// The parts of a store directory, which are never garbage.
const PARTS: [Part; 2] = [Part::Holds, Part::New];

impl StoreDirLock<'_> {
    /// Makes the layer `name` of the store garbage.
    ///
    /// # Errors
    /// [`Error::LayerHeld`] if another process has [locked](Self::lock_layer) it.
    pub(crate) fn throw_away(&self, name: &OsStr) -> Result<Trash> {
        let StoreDir { path, dir, store } = self.store_dir;
        let layer = || path.with_file_name(name);
        // Until the layer has its new name.
        let _lock = self.lock_layer(name)?;
        let trash = format!("{TRASH}{}", random());
        let to = as_c_string(OsStr::new(&trash)).map_err(Error::io("take away", layer()))?;
        rename_new(store, name, dir, &to).map_err(Error::io("take away", layer()))?;
        Ok(Trash { dir: Arc::clone(dir), path: path.join(trash), name: to })
    }
}

impl StoreDirLock<'_> {
    /// Locks the directory of the layer `name` exclusively, for the moment in which the layer is
    /// removed or replaced. Returns `None` if nobody can have it locked: this process may not open
    /// it, or the file system has no such locks.
    ///
    /// # Errors
    /// [`Error::LayerHeld`] if another process has it locked.
    pub(crate) fn lock_layer(&self, name: &OsStr) -> Result<Option<LockedDir>> {
        let StoreDir { path, store, .. } = self.store_dir;
        lock_layer(store, name, path.with_file_name(name))
    }
}

fn lock_layer(store: &OwnedFd, name: &OsStr, layer: PathBuf) -> Result<Option<LockedDir>> {
    let Ok(dir) = openat(store, name, READ, Mode::empty()) else { return Ok(None) };
    match LockedDir::attempt(dir, &layer, FlockOperation::NonBlockingLockExclusive) {
        Ok(Attempt::Locked(lock)) => Ok(Some(lock)),
        Ok(Attempt::Busy) => Err(Error::LayerHeld { layer, by: Holder::Locked }),
        Ok(Attempt::Gone) => Ok(None),
        Err(error) => {
            log::debug!("nobody can hold a layer by a lock on it: {}", Chain(&error));
            Ok(None)
        }
    }
}

/// Returns those of the layers `names` of `store` that a process has locked at this moment. Locks
/// each of them exclusively to find out, so the caller should have the lock of the store directory.
pub(crate) fn locked<'a>(store: &Path, names: impl Iterator<Item = &'a OsStr>) -> Result<Vec<&'a OsStr>> {
    let dir = open_store(store).map_err(Error::io("open", store))?;
    Ok(names.filter(|name| lock_layer(&dir, name, store.join(name)).is_err()).collect())
}

/// An entry of a store directory that will be removed.
#[derive(Debug)]
#[must_use = "dropped, it is left to a collector"]
pub(crate) struct Trash {
    /// The store directory. Its path may lead elsewhere by the time of the removal.
    dir: Arc<OwnedFd>,
    name: CString,
    path: PathBuf,
}

impl Trash {
    /// Returns the path of the entry.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the entry with everything in it.
    pub(crate) fn remove(self) -> Result<()> {
        remove_at(self.dir.as_fd(), &self.name, &self.path, USUAL_THREADS)
    }

    /// Removes several entries of the store directory at once. A failure with one does not keep the
    /// others from being removed. Calls `removed` after each entry that is removed, on any thread.
    /// Returns the errors.
    pub(crate) fn remove_all(all: &[Self], removed: &(dyn Fn() + Sync)) -> Vec<Error> {
        let Some(Self { dir, path, .. }) = all.first() else { return Vec::new() };
        let store_dir = path.parent().unwrap_or(path);
        tree::remove::remove_all(dir.as_fd(), store_dir, all.iter().map(|trash| &*trash.name), USUAL_THREADS, removed)
    }
}

/// The outcome of an attempt to turn a layer into the store directory.
#[derive(Debug)]
pub(crate) enum MadeOfLayer {
    /// The layer is the store directory now. Its contents are [garbage](StoreDir::garbage).
    Made(StoreDir),
    /// Another process has made the store directory.
    There(StoreDir),
    /// This layer cannot become the store directory. It is unchanged.
    Unsuitable,
}

impl StoreDir {
    /// Renames the directory `layer` to the store directory of `store`, which has none. A collector
    /// needs this if the disk has no room for a new directory.
    ///
    /// No process holds a layer in a store without a store directory. A process that takes a hold
    /// concurrently makes the store directory first. Then either this call finds the store
    /// directory [there](MadeOfLayer::There), or that process finds the layer missing.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk has no room even for the new name, or if `layer` or the store
    /// cannot be examined.
    pub(crate) fn make_of(store: &Path, layer: &Path) -> Result<MadeOfLayer> {
        let of_store = open_store(store).map_err(Error::io("open", store))?;
        check_owner(&of_store, store)?;
        let Some(name) = layer.file_name() else { return Ok(MadeOfLayer::Unsuitable) };
        // The layer does not exist any more, or this user cannot open it.
        let Ok(dir) = openat(&of_store, name, READ, Mode::empty()) else { return Ok(MadeOfLayer::Unsuitable) };
        let stat = fstat(&dir).map_err(Error::io("look at", layer))?;
        if !is_trusted(&dir, &stat, &of_store).map_err(Error::io("look at", store))? {
            return Ok(MadeOfLayer::Unsuitable);
        }
        // Another process's lock on the layer would become a lock on the store directory. A capture
        // that has such a lock ends soon.
        let same = dir.try_clone().map_err(Error::io("open", layer))?;
        let Ok(Attempt::Locked(lock)) = LockedDir::attempt(same, layer, FlockOperation::NonBlockingLockExclusive)
        else {
            return Ok(MadeOfLayer::Unsuitable);
        };
        let mode = Mode::from_raw_mode(stat.st_mode);
        fchmod(&dir, Mode::RWXU).map_err(Error::io("close to others", layer))?;
        // From here on, no other user can add a part that is a link to another place.
        let has = |part: &Part| !matches!(statat(&dir, part.name(), AtFlags::SYMLINK_NOFOLLOW), Err(Errno::NOENT));
        let made = match PARTS.iter().any(has) {
            true => Err(Errno::NOTEMPTY),
            false => rename_new(&of_store, name, &of_store, STORE_DIR),
        };
        if made.is_err() {
            let _as_it_was_or_closed = fchmod(&dir, mode);
        }
        drop(lock);
        match made {
            Ok(()) => Ok(MadeOfLayer::Made(Self { path: store.join(STORE_DIR), dir: Arc::new(dir), store: of_store })),
            Err(Errno::EXIST) => Ok(Self::open(store)?.map_or(MadeOfLayer::Unsuitable, MadeOfLayer::There)),
            Err(errno @ (Errno::NOSPC | Errno::DQUOT)) => Err(Error::io("take away", layer)(errno)),
            // For example, the layer is a mount point.
            Err(_) => Ok(MadeOfLayer::Unsuitable),
        }
    }

    /// Lists the garbage in the store directory.
    pub(crate) fn garbage(&self) -> Result<Garbage> {
        let all = entries(&self.dir).map_err(Error::io("read", &self.path))?;
        let was_layer = all.iter().any(|(name, _)| name == MARK);
        let mut garbage = Garbage::default();
        for (name, kind) in all {
            let is_part = PARTS.iter().any(|part| name == part.name());
            let is_trash = name == OLD_TRASH || name.as_encoded_bytes().starts_with(TRASH.as_bytes());
            let is_mark = was_layer && name == MARK;
            if !is_mark && !is_trash && (!was_layer || is_part) {
                continue;
            }
            let path = self.path.join(&name);
            let name = as_c_string(&name).map_err(Error::io("read", &path))?;
            let trash = Trash { dir: Arc::clone(&self.dir), name, path };
            match is_mark {
                true => garbage.mark = Some(trash),
                false => garbage.entries.push((trash, kind)),
            }
        }
        Ok(garbage)
    }
}

/// The removable entries of a store directory: layers that a collector renamed into it, and the
/// contents of the layer that became the directory.
#[derive(Debug, Default)]
pub(crate) struct Garbage {
    entries: Vec<(Trash, FileType)>,
    /// The file that marks the entries as garbage. It is removed after them.
    mark: Option<Trash>,
}

impl Garbage {
    /// Returns the number of directories in the garbage.
    pub(crate) fn directories(&self) -> usize {
        self.entries.iter().filter(|(_, kind)| kind.is_dir()).count()
    }

    /// Removes the garbage, and returns the errors.
    pub(crate) fn remove(self) -> Vec<Error> {
        let entries: Vec<_> = self.entries.into_iter().map(|(trash, _)| trash).collect();
        let mut failed = Trash::remove_all(&entries, &|| ());
        if failed.is_empty() {
            failed.extend(self.mark.and_then(|mark| mark.remove().err()));
        }
        failed
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::sync::Barrier;
    use std::thread;

    use super::*;
    use crate::layer::Layer;
    use crate::store::hold::Hold;

    fn store(names: &[&str]) -> tempfile::TempDir {
        let store = tempfile::tempdir().unwrap();
        for name in names {
            let layer = Layer::at(store.path().join(name));
            fs::create_dir_all(layer.fs()).unwrap();
            fs::write(layer.meta_path(), "{}").unwrap();
            fs::write(layer.log_path(), "").unwrap();
            fs::set_permissions(layer.path(), fs::Permissions::from_mode(0o750)).unwrap();
        }
        store
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn layers_thrown_away_are_garbage_and_the_parts_are_not() {
        let store = store(&["a", "b"]);
        let store_dir = StoreDir::make(store.path()).unwrap();
        let hold = Hold::of([store.path().join("b")]).unwrap();
        let lock = store_dir.lock(FlockOperation::LockExclusive).unwrap();
        let draft = lock.work_dir(Part::New).unwrap();
        let trash = lock.throw_away("a".as_ref()).unwrap();
        assert!(trash.path().join("fs").is_dir());
        // The first directory is garbage of an earlier version. The second belongs to a later
        // version.
        fs::create_dir_all(store_dir.path.join("trash/dead/0/fs")).unwrap();
        fs::create_dir_all(store_dir.path.join("room")).unwrap();
        let garbage = store_dir.garbage().unwrap();
        assert_eq!(garbage.directories(), 2);
        assert!(garbage.remove().is_empty());
        assert_eq!(names(&store_dir.path), ["holds", "new", "room"]);
        assert!(draft.path().exists());
        drop(lock);
        hold.release().unwrap();
    }

    #[test]
    fn a_store_that_becomes_a_link_leads_no_removal_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let [path, moved, victim] = ["store", "moved", "victim"].map(|name| dir.path().join(name));
        for store in [&path, &victim] {
            for name in ["a", ".layered/layer.json", ".layered/etc", ".layered/trash-0"] {
                fs::create_dir_all(store.join(name)).unwrap();
            }
        }
        let store_dir = StoreDir::open(&path).unwrap().unwrap();
        let garbage = store_dir.garbage().unwrap();
        fs::rename(&path, &moved).unwrap();
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        let lock = store_dir.lock(FlockOperation::LockExclusive).unwrap();
        lock.throw_away("a".as_ref()).unwrap().remove().unwrap();
        assert!(garbage.remove().is_empty());
        assert_eq!(names(&moved), [".layered"]);
        assert_eq!(names(&moved.join(".layered")), [""; 0]);
        assert_eq!(names(&victim), [".layered", "a"]);
        assert_eq!(names(&victim.join(".layered")), ["etc", "layer.json", "trash-0"]);
    }

    #[test]
    fn a_layer_that_became_the_store_directory_is_garbage_until_its_mark_is_gone() {
        let store = store(&["a", "b"]);
        let MadeOfLayer::Made(store_dir) = StoreDir::make_of(store.path(), &store.path().join("a")).unwrap() else {
            panic!("it is not suitable")
        };
        assert_eq!((names(store.path()), mode(&store_dir.path)), (vec![".layered".into(), "b".into()], 0o700));
        // A hold that is taken now finds a store directory like any other.
        let hold = Hold::of([store.path().join("b")]).unwrap();
        assert_eq!(names(&store_dir.path), ["fs", "holds", "layer.json", "layer.log"]);
        assert_eq!(store_dir.garbage().unwrap().directories(), 1);
        // The state after a collector is killed half way.
        fs::remove_dir(store_dir.path.join("fs")).unwrap();
        let store_dir = StoreDir::open(store.path()).unwrap().unwrap();
        assert!(store_dir.garbage().unwrap().remove().is_empty());
        assert_eq!(names(&store_dir.path), ["holds"]);
        assert_eq!(crate::store::hold::held(store.path()).unwrap().len(), 1);
        hold.release().unwrap();
        fs::write(store_dir.path.join("other"), "").unwrap();
        assert!(store_dir.garbage().unwrap().entries.is_empty());
    }

    #[test]
    fn either_the_holder_or_the_collector_wins() {
        for _ in 0..100 {
            let store = store(&["a"]);
            let path = store.path().join("a");
            let start = Barrier::new(2);
            let (hold, made) = thread::scope(|scope| {
                let holder = scope.spawn(|| {
                    start.wait();
                    Hold::of([&path])
                });
                start.wait();
                let made = StoreDir::make_of(store.path(), &path).unwrap();
                (holder.join().unwrap(), made)
            });
            match (&hold, &made) {
                (Ok(_), MadeOfLayer::There(store_dir)) => {
                    assert!(path.join("layer.json").exists() && store_dir.garbage().unwrap().mark.is_none());
                }
                (Err(Error::NotADirectory { path: missing, .. }), MadeOfLayer::Made(_)) => assert_eq!(*missing, path),
                neither => panic!("{neither:?}"),
            }
        }
    }

    #[test]
    fn a_layer_that_cannot_become_the_store_directory_is_unchanged() {
        let store = store(&["locked", "room", "link", "file"]);
        let path = |name: &str| store.path().join(name);
        let locked = fs::File::open(path("locked")).unwrap();
        rustix::fs::flock(&locked, FlockOperation::LockShared).unwrap();
        fs::create_dir(path("room/holds")).unwrap();
        std::os::unix::fs::symlink("/", path("link/new")).unwrap();
        fs::write(path("regular"), "").unwrap();
        for name in ["locked", "room", "link", "regular", "missing"] {
            let made = StoreDir::make_of(store.path(), &path(name)).unwrap();
            assert!(matches!(made, MadeOfLayer::Unsuitable), "{name}: {made:?}");
        }
        assert_eq!(["locked", "room", "link"].map(|name| mode(&path(name))), [0o750; 3]);
        // Another process made the store directory first.
        StoreDir::make(store.path()).unwrap();
        let made = StoreDir::make_of(store.path(), &path("file")).unwrap();
        assert!(matches!(made, MadeOfLayer::There(_)), "{made:?}");
        assert_eq!((mode(&path("file")), path("file/fs").is_dir()), (0o750, true));
    }
}
