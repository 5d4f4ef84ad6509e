use std::collections::{BTreeMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, flock, openat, statat};
use rustix::io::{Errno, retry_on_intr};
use tempfile::NamedTempFile;

use crate::area::{Area, Room};
use crate::walk::PATH;
use crate::{Error, Result};

/// Layers that no [collector](crate::Collector) takes, of whatever process, for as long as this is there.
///
/// It is one small file for each store (`<store>/.layered/holds/<random>`), not a lock for each layer: a run over hundreds
/// of layers has one descriptor of it. The file is locked, flock(2), so that the hold dies with its holder, however that
/// happens; a collector then removes the file. The descriptor is not passed on to programs that are executed.
///
/// A layer's store is the directory that it really stands in: where its path is a symbolic link, that of the layer that the
/// link leads to. Not seen through is a bind mount of a single layer elsewhere, nor a second machine where flock(2) is not
/// told across machines.
///
/// ```
/// # let store = tempfile::tempdir()?;
/// # std::fs::create_dir_all(store.path().join("gcc/fs"))?;
/// # let layers = [layer::Layer::at(store.path().join("gcc"))];
/// let hold = layer::Hold::of(layers.iter().map(layer::Layer::path))?;
/// // What is there now stays there.
/// hold.release()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Default)]
#[must_use = "dropped, it holds nothing any more"]
pub struct Hold {
    files: Vec<NamedTempFile>,
}

/// Links to links are followed in one step: a path that is a link again has just been made one.
const MOST_STEPS: usize = 3;

impl Hold {
    /// Holds the layers in these directories. Look at them afterwards: what a collector took before, it took.
    ///
    /// A store that cannot be written to is passed over, as nobody can collect there; whoever has it mounted writable
    /// elsewhere could. So is one whose file system has no locks, which no collector works without, and one whose
    /// `.layered` is a stranger's, which no collector uses. The log says so.
    ///
    /// # Errors
    /// [`Error::NotADirectory`] names a layer that is not there, or no longer; [`Error::Io`] says why the others cannot be
    /// held. Nothing is held then.
    pub fn of(layers: impl IntoIterator<Item = impl AsRef<Path>>) -> Result<Self> {
        let mut hold = Self::default();
        let mut waiting: Vec<PathBuf> = layers.into_iter().map(|layer| layer.as_ref().into()).collect();
        for _ in 0..MOST_STEPS {
            let mut stores: BTreeMap<&Path, Vec<(&Path, &OsStr)>> = BTreeMap::new();
            let mut links = Vec::new();
            for layer in &waiting {
                match split(layer) {
                    Some((store, name)) => stores.entry(store).or_default().push((layer, name)),
                    None => links.push(layer.as_path()),
                }
            }
            for (store, layers) in stores {
                hold.register(store, &layers, &mut links)?;
            }
            // The root directory is in no store.
            let real = |layer: &Path| fs::canonicalize(layer).map_err(|error| missing(layer, error));
            let real = links.into_iter().map(real).collect::<Result<Vec<_>>>()?;
            waiting = real.into_iter().filter(|layer| layer.parent().is_some()).collect();
            if waiting.is_empty() {
                return Ok(hold);
            }
        }
        Err(missing(&waiting[0], Errno::LOOP.into()))
    }

    /// Holds no layer any more, and says what `Drop` can only log.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be removed. It holds nothing all the same, and a collector will remove it.
    pub fn release(mut self) -> Result<()> {
        let closed = self.files.drain(..).map(|file| {
            let path = file.path().to_path_buf();
            file.close().map_err(Error::io("remove", path))
        });
        closed.collect::<Vec<_>>().into_iter().collect()
    }

    /// Holds layers of one store by their names. Those that are links go to `links`.
    fn register<'a>(
        &mut self,
        store: &Path,
        layers: &[(&'a Path, &'a OsStr)],
        links: &mut Vec<&'a Path>,
    ) -> Result<()> {
        let dir = openat(CWD, store, PATH.difference(OFlags::NOFOLLOW), Mode::empty());
        let dir = dir.map_err(|errno| missing(layers[0].0, errno.into()))?;
        let area = if_it_can_be(store, Area::make(store))?;
        // Until the file says what is held, no collector takes anything.
        let lock = match &area {
            Some(area) => if_it_can_be(store, area.lock(FlockOperation::LockShared))?,
            None => None,
        };
        let mut names = Vec::new();
        for &(layer, name) in layers {
            let stat = statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|errno| missing(layer, errno.into()))?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Symlink => links.push(layer),
                FileType::Directory => {
                    names.extend_from_slice(name.as_bytes());
                    names.push(0);
                }
                _ => return Err(missing(layer, Errno::NOTDIR.into())),
            }
        }
        if let Some(lock) = lock.filter(|_| !names.is_empty()) {
            let file = lock.make_in(Room::Holds, make_file).and_then(|file| hold(file, &names));
            self.files.extend(if_it_can_be(store, file)?);
        }
        Ok(())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        for file in self.files.drain(..) {
            let path = file.path().to_path_buf();
            if let Err(error) = file.close() {
                log::warn!("{} is left, and holds nothing: {error}", path.display());
            }
        }
    }
}

/// The store of a layer and the layer's name in it, where the path itself says so.
fn split(layer: &Path) -> Option<(&Path, &OsStr)> {
    // `link/` and `link/.` would follow the link.
    let layer = layer.components().as_path();
    match (layer.parent()?, layer.file_name()?) {
        (store, name) if store.as_os_str().is_empty() => Some((Path::new("."), name)),
        (store, name) => Some((store, name)),
    }
}

fn make_file(holds: &Path) -> std::io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("").rand_bytes(16).permissions(Permissions::from_mode(0o644)).tempfile_in(holds)
}

/// Makes the new file one that holds the layers of these names.
fn hold(mut file: NamedTempFile, names: &[u8]) -> Result<NamedTempFile> {
    // Whoever looks at the holds at this moment lets go at once.
    retry_on_intr(|| flock(&file, FlockOperation::LockExclusive)).map_err(Error::io("lock", file.path()))?;
    file.write_all(names).map_err(Error::io("write", file.path()))?;
    Ok(file)
}

/// `None` where nobody can hold anything, nor collect.
fn if_it_can_be<T>(store: &Path, result: Result<T>) -> Result<Option<T>> {
    let Err(Error::Io { operation, path, source }) = result else { return result.map(Some) };
    let level = match source.kind() {
        ErrorKind::ReadOnlyFilesystem => log::Level::Debug,
        ErrorKind::PermissionDenied | ErrorKind::Unsupported => log::Level::Warn,
        _ if source.raw_os_error() == Some(Errno::NOLCK.raw_os_error()) => log::Level::Warn,
        _ => return Err(Error::Io { operation, path, source }),
    };
    log::log!(level, "layers of {} are not held: cannot {operation} {}: {source}", store.display(), path.display());
    Ok(None)
}

fn missing(layer: &Path, source: std::io::Error) -> Error {
    match source.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => {
            Error::NotADirectory { path: layer.into(), expected: "a layer" }
        }
        _ => Error::io("look at", layer)(source),
    }
}

/// The names of the layers of `store` that somebody [holds](Hold) at this moment, to be shown. None for a user who may not know.
///
/// # Errors
/// [`Error::Io`] if that cannot be found out.
pub fn held(store: impl AsRef<Path>) -> Result<HashSet<OsString>> {
    let area = Area::open(store.as_ref());
    match area.and_then(|area| area.map_or_else(|| Ok(HashSet::new()), |area| read(&area, Stale::Left))) {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::PermissionDenied => Ok(HashSet::new()),
        held => held,
    }
}

/// What becomes of holds whose holders are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stale {
    /// They are removed. Only under the lock of the area, exclusive, are all others seen for what they are.
    Removed,
    Left,
}

/// The names of all layers of a store that somebody holds.
pub(crate) fn read(area: &Area, stale: Stale) -> Result<HashSet<OsString>> {
    let mut names = HashSet::new();
    for path in area.list(Room::Holds)? {
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::io("open", path)(error)),
        };
        // Shared: of two who look at once neither takes the other for the holder.
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Err(Errno::WOULDBLOCK) => {
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes).map_err(Error::io("read", path))?;
                let ended = bytes.split(|&byte| byte == 0).filter(|name| !name.is_empty());
                names.extend(ended.map(|name| OsString::from_vec(name.into())));
            }
            Err(errno) => return Err(Error::io("lock", path)(errno)),
            Ok(()) if stale == Stale::Removed => match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(Error::io("remove", path)(error)),
                _ => log::debug!("{}: its holder is gone", path.display()),
            },
            Ok(()) => {}
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn store(names: &[&OsStr]) -> tempfile::TempDir {
        let store = tempfile::tempdir().unwrap();
        names.iter().for_each(|name| fs::create_dir_all(store.path().join(name).join("fs")).unwrap());
        store
    }

    fn seen(store: &Path) -> Vec<OsString> {
        let mut names: Vec<_> = held(store).unwrap().into_iter().collect();
        names.sort();
        names
    }

    #[test]
    fn names_are_held_until_the_hold_goes() {
        let odd = OsStr::from_bytes(b"new\nline \xff");
        let store = store(&["a".as_ref(), "b".as_ref(), odd]);
        let path = |name: &OsStr| store.path().join(name);
        assert_eq!(seen(store.path()), [""; 0]);
        let first = Hold::of([path("a".as_ref()), path(odd)]).unwrap();
        let second = Hold::of([path("b".as_ref()).join("."), path("a".as_ref()), path("a".as_ref())]).unwrap();
        assert_eq!(seen(store.path()), ["a".as_ref(), "b".as_ref(), odd]);
        drop(first);
        assert_eq!(seen(store.path()), ["a", "b"]);
        second.release().unwrap();
        assert_eq!(seen(store.path()), [""; 0]);
        assert_eq!(fs::read_dir(store.path().join(".layered/holds")).unwrap().count(), 0);
    }

    #[test]
    fn a_layer_is_held_where_it_really_stands() {
        let [real, links] = [store(&["a".as_ref()]), store(&[])];
        symlink(real.path().join("a"), links.path().join("first")).unwrap();
        symlink("first", links.path().join("second")).unwrap();
        let _hold = Hold::of([links.path().join("second"), links.path().join("first/fs/..")]).unwrap();
        assert_eq!(seen(real.path()), ["a"]);
        assert_eq!(seen(links.path()), [""; 0]);
        let _nothing_to_hold = Hold::of(["/"]).unwrap();
    }

    #[test]
    fn what_is_missing_is_named_and_nothing_is_held() {
        let store = store(&["a".as_ref()]);
        let path = |name: &str| store.path().join(name);
        fs::write(path("file"), "").unwrap();
        symlink("nowhere", path("dangling")).unwrap();
        for wrong in ["missing", "file", "dangling", "missing/deeper"] {
            let error = Hold::of([path("a"), path(wrong)]).unwrap_err();
            assert!(matches!(&error, Error::NotADirectory { path: named, .. } if *named == path(wrong)), "{error}");
            assert_eq!(seen(store.path()), [""; 0]);
        }
    }

    #[test]
    fn what_a_dead_holder_left_holds_nothing_and_goes() {
        let store = store(&["a".as_ref()]);
        let hold = Hold::of([store.path().join("a")]).unwrap();
        let left = store.path().join(".layered/holds/dead");
        fs::write(&left, b"a\0b\0").unwrap();
        let area = Area::open(store.path()).unwrap().unwrap();
        assert_eq!(read(&area, Stale::Left).unwrap(), HashSet::from(["a".into()]));
        assert!(left.exists());
        assert_eq!(read(&area, Stale::Removed).unwrap(), HashSet::from(["a".into()]));
        assert!(!left.exists());
        drop(hold);
    }
}
