//! What a collector removes from a store: renamed into the area first, where it is garbage, then removed.
//!
//! A rename needs neither a block nor an inode, so all of this works on a full disk. Anybody may remove garbage at any time,
//! also while somebody else is removing it.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, FlockOperation, Mode, RenameFlags, fchmod, flock, fstat, openat, statat};
use rustix::io::Errno;

use super::{AREA, Area, AreaLock, Room, entries, is_trusted};
use crate::error::{Error, Result};
use crate::tree::remove::remove_tree;
use crate::tree::walk::READ;

/// How the name of garbage in the area begins.
const TRASH: &str = "trash-";

/// A directory of garbage, in areas that collectors of earlier versions have used.
const OLD_TRASH: &str = "trash";

/// In an area that was made of a layer, all but the rooms is garbage for as long as this is there.
const MARK: &str = "layer.json";

/// Rooms are what an area has when it is not garbage.
const ROOMS: [Room; 2] = [Room::Holds, Room::New];

impl AreaLock<'_> {
    /// A new name for what becomes garbage when it is renamed to it.
    pub(crate) fn trash(&self) -> PathBuf {
        self.area.path.join(format!("{TRASH}{:016x}", RandomState::new().build_hasher().finish()))
    }

    /// Makes the directory `layer` garbage, and returns where it is now.
    pub(crate) fn throw_away(&self, layer: &Path) -> Result<PathBuf> {
        let to = self.trash();
        match renameat(layer, &to) {
            Ok(()) => Ok(to),
            Err(errno) => Err(Error::io("take away", layer)(errno)),
        }
    }
}

/// What has become of the attempt to make an area of a layer.
#[derive(Debug)]
pub(crate) enum MadeOfLayer {
    /// The layer is the area now, and [garbage](Area::garbage).
    Made(Area),
    /// Somebody else has made the area.
    There(Area),
    /// This layer cannot be the area. It is as it was.
    Unsuitable,
}

impl Area {
    /// Makes the directory `layer` the area of `store`, which has none, by renaming it: where there is no room for a directory.
    ///
    /// Nobody holds a layer in a store without an area. A holder that comes concurrently makes an area first, and then this
    /// finds it [there](MadeOfLayer::There), or finds the layer missing.
    ///
    /// # Errors
    /// [`Error::Io`] if there is no room for the new name either.
    pub(crate) fn make_of(store: &Path, layer: &Path) -> Result<MadeOfLayer> {
        // Gone, or closed to this user.
        let Ok(dir) = openat(CWD, layer, READ, Mode::empty()) else { return Ok(MadeOfLayer::Unsuitable) };
        let stat = fstat(&dir).map_err(Error::io("look at", layer))?;
        // A lock on it would be a lock on the area. It is some capture's, which ends soon.
        if !is_trusted(stat.st_uid, store)? || flock(&dir, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(MadeOfLayer::Unsuitable);
        }
        let mode = Mode::from_raw_mode(stat.st_mode);
        fchmod(&dir, Mode::RWXU).map_err(Error::io("close to others", layer))?;
        // From here on nobody else can make a room in it that would lead elsewhere.
        let has = |room: &Room| !matches!(statat(&dir, room.name(), AtFlags::SYMLINK_NOFOLLOW), Err(Errno::NOENT));
        let made = match ROOMS.iter().any(has) {
            true => Err(Errno::NOTEMPTY),
            false => renameat(layer, &store.join(AREA)),
        };
        if made.is_err() {
            let _as_it_was_or_closed = fchmod(&dir, mode);
        }
        let _closing_does_it_too = flock(&dir, FlockOperation::Unlock);
        match made {
            Ok(()) => Ok(MadeOfLayer::Made(Self { path: store.join(AREA), dir })),
            Err(Errno::EXIST) => Ok(Self::open(store)?.map_or(MadeOfLayer::Unsuitable, MadeOfLayer::There)),
            Err(errno @ (Errno::NOSPC | Errno::DQUOT)) => Err(Error::io("take away", layer)(errno)),
            // A mount point, say.
            Err(_) => Ok(MadeOfLayer::Unsuitable),
        }
    }

    /// What can be removed from the area.
    pub(crate) fn garbage(&self) -> Result<Garbage> {
        let all = entries(&self.dir).map_err(Error::io("read", &self.path))?;
        let was_layer = all.iter().any(|(name, _)| name == MARK);
        let mut garbage = Garbage::default();
        for (name, kind) in all {
            let path = self.path.join(&name);
            let is_room = ROOMS.iter().any(|room| name == room.name());
            let is_trash = name == OLD_TRASH || name.as_encoded_bytes().starts_with(TRASH.as_bytes());
            match was_layer && name == MARK {
                true => garbage.mark = Some(path),
                false if is_trash || (was_layer && !is_room) => garbage.entries.push((path, kind)),
                false => {}
            }
        }
        Ok(garbage)
    }
}

/// What can be removed from an area. Not more than a collector has taken away, or a single layer.
#[derive(Debug, Default)]
pub(crate) struct Garbage {
    entries: Vec<(PathBuf, FileType)>,
    /// Says that the entries are garbage, so it is removed after them.
    mark: Option<PathBuf>,
}

impl Garbage {
    /// How many directories it has.
    pub(crate) fn directories(&self) -> usize {
        self.entries.iter().filter(|(_, kind)| kind.is_dir()).count()
    }

    /// Removes it, and returns what could not be removed.
    pub(crate) fn remove(self) -> Vec<Error> {
        let mut failed: Vec<_> = self.entries.iter().filter_map(|(path, _)| remove_tree(path).err()).collect();
        if failed.is_empty() {
            failed.extend(self.mark.and_then(|mark| remove_tree(mark).err()));
        }
        failed
    }
}

fn renameat(from: &Path, to: &Path) -> rustix::io::Result<()> {
    rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)
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
    fn what_is_thrown_away_is_garbage_and_the_rooms_are_not() {
        let store = store(&["a", "b"]);
        let area = Area::make(store.path()).unwrap();
        let hold = Hold::of([store.path().join("b")]).unwrap();
        let lock = area.lock(FlockOperation::LockExclusive).unwrap();
        let draft = lock.work_dir(Room::New).unwrap();
        let trash = lock.throw_away(&store.path().join("a")).unwrap();
        assert!(trash.join("fs").is_dir());
        // Of an earlier version; of a later one.
        fs::create_dir_all(area.path.join("trash/dead/0/fs")).unwrap();
        fs::create_dir_all(area.path.join("room")).unwrap();
        let garbage = area.garbage().unwrap();
        assert_eq!(garbage.directories(), 2);
        assert!(garbage.remove().is_empty());
        assert_eq!(names(&area.path), ["holds", "new", "room"]);
        assert!(draft.path().exists());
        drop(lock);
        hold.release().unwrap();
    }

    #[test]
    fn a_layer_that_is_the_area_is_garbage_until_its_mark_is_gone() {
        let store = store(&["a", "b"]);
        let MadeOfLayer::Made(area) = Area::make_of(store.path(), &store.path().join("a")).unwrap() else {
            panic!("it is not suitable")
        };
        assert_eq!((names(store.path()), mode(&area.path)), (vec![".layered".into(), "b".into()], 0o700));
        // A holder that comes now finds an area as any other.
        let hold = Hold::of([store.path().join("b")]).unwrap();
        assert_eq!(names(&area.path), ["fs", "holds", "layer.json", "layer.log"]);
        assert_eq!(area.garbage().unwrap().directories(), 1);
        // Killed half way.
        fs::remove_dir(area.path.join("fs")).unwrap();
        let area = Area::open(store.path()).unwrap().unwrap();
        assert!(area.garbage().unwrap().remove().is_empty());
        assert_eq!(names(&area.path), ["holds"]);
        assert_eq!(crate::store::hold::held(store.path()).unwrap().len(), 1);
        hold.release().unwrap();
        fs::write(area.path.join("other"), "").unwrap();
        assert!(area.garbage().unwrap().entries.is_empty());
    }

    #[test]
    fn of_a_holder_and_a_collector_one_wins() {
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
                let made = Area::make_of(store.path(), &path).unwrap();
                (holder.join().unwrap(), made)
            });
            match (&hold, &made) {
                (Ok(_), MadeOfLayer::There(area)) => {
                    assert!(path.join("layer.json").exists() && area.garbage().unwrap().mark.is_none());
                }
                (Err(Error::NotADirectory { path: missing, .. }), MadeOfLayer::Made(_)) => assert_eq!(*missing, path),
                neither => panic!("{neither:?}"),
            }
        }
    }

    #[test]
    fn a_layer_that_cannot_be_the_area_stays_as_it_is() {
        let store = store(&["locked", "room", "link", "file"]);
        let path = |name: &str| store.path().join(name);
        let locked = fs::File::open(path("locked")).unwrap();
        rustix::fs::flock(&locked, FlockOperation::LockShared).unwrap();
        fs::create_dir(path("room/holds")).unwrap();
        std::os::unix::fs::symlink("/", path("link/new")).unwrap();
        fs::write(path("regular"), "").unwrap();
        for name in ["locked", "room", "link", "regular", "missing"] {
            let made = Area::make_of(store.path(), &path(name)).unwrap();
            assert!(matches!(made, MadeOfLayer::Unsuitable), "{name}: {made:?}");
        }
        assert_eq!(["locked", "room", "link"].map(|name| mode(&path(name))), [0o750; 3]);
        // Somebody else has been quicker.
        Area::make(store.path()).unwrap();
        let made = Area::make_of(store.path(), &path("file")).unwrap();
        assert!(matches!(made, MadeOfLayer::There(_)), "{made:?}");
        assert_eq!((mode(&path("file")), path("file/fs").is_dir()), (0o750, true));
    }
}
