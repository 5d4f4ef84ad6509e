//! Holds, which record in a store's `.layered/holds` which layers are in use. `store_dir.rs`
//! provides the directory and its lock; `gc.rs` spares the layers that are held.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::{AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, flock, fstat, openat, stat, statat};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{Resource, getrlimit};

use crate::capture::upper_id::UpperId;
use crate::display::quoted;
use crate::error::{Chain, Error, Result};
use crate::store::store_dir::{Part, PartFile, RETRIES, RETRY, StoreDir};
use crate::tree::locked_dir::{Attempt, LockedDir};
use crate::tree::regular_file;
use crate::tree::walk::{Identity, PATH, READ, identity};

/// A hold on layers. No [collector](crate::Collector) of any process removes them while this value
/// exists, or even longer if the caller [keeps](Self::keep) it.
///
/// A hold is one small file per store (`<store>/.layered/holds/<random>`), not a lock per layer, so
/// a run over hundreds of layers needs only two descriptors per store. The process locks the file
/// with flock(2). The kernel releases the lock however the process ends, and a collector then
/// removes the file. Programs that the process executes do not inherit the descriptor.
///
/// In a store where this user may not make that file, such as one of root's or one that is mounted
/// read-only, the hold is a shared flock(2) on the directory of each layer instead. That needs only
/// the permission to read the directory, one descriptor per layer, and ends with the process in any
/// case.
///
/// The store of a layer is the directory that really contains it. For a symbolic link, this is the
/// store of the layer that the link leads to. Two cases are not covered: a single layer that is
/// bind-mounted elsewhere, and a store that several machines share over a file system that does not
/// propagate flock(2). NFS propagates no lock on a directory: on it, a hold by locks on layers
/// protects only against collectors on the same machine.
///
/// ```
/// # let store = tempfile::tempdir()?;
/// # std::fs::create_dir_all(store.path().join("gcc/fs"))?;
/// # let layers = [layer::Layer::at(store.path().join("gcc"))];
/// let hold = layer::Hold::of(layers.iter().map(layer::Layer::path))?;
/// // No collector removes a layer that exists now.
/// hold.release()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Default)]
#[must_use = "dropped, it holds nothing any more"]
pub struct Hold {
    files: Vec<HoldFile>,
    /// The directories of layers in stores where this user may not make a file.
    dirs: Vec<LockedDir>,
    /// The names of these layers, by store.
    locked: HashMap<Identity, HashSet<OsString>>,
    /// The reason why some layers are not held, and the store of the first of them.
    unheld: Option<(PathBuf, Error)>,
}

/// The file of a hold in one store.
#[derive(Debug)]
struct HoldFile {
    file: PartFile,
    /// The names of the layers that the file holds.
    names: HashSet<OsString>,
}

/// The part of the process's descriptors that the directories of held layers may use: one in
/// `SHARE`. The runtime and the mount need others.
const SHARE: u64 = 2;

/// The size of the head of a hold's file. The head contains the path for which the layers stay held
/// without a process, a NUL, the id of the directory there, if any, and NULs as padding. It is
/// allocated when the file is made, so it can be written on a full disk. The names of the layers
/// follow the head, each terminated by a NUL.
const HEAD_BYTES: usize = 4096;

/// The maximum number of rounds that resolve symbolic links. One round follows a chain of links to
/// its end, so a resolved path is a link again only if another process has just replaced it.
const MOST_STEPS: usize = 3;

impl Hold {
    /// Holds the layers in these directories. Look at the layers *after* taking the hold: a
    /// collector may have removed one just before.
    ///
    /// The hold skips these stores. It logs one warning if a collector may work there:
    /// - a store whose file system has no locks: no collector works there;
    /// - a store whose `.layered` belongs neither to root nor to the owner of the store: no
    ///   collector uses it;
    /// - a store in which this user may neither make a hold nor read the directories of the layers:
    ///   a collector of another user may remove its layers, unless the store is mounted read-only
    ///   everywhere.
    ///
    /// # Errors
    /// [`Error::NotADirectory`] names a layer that does not exist (any more); [`Error::Io`] reports
    /// why the layers cannot be held. After an error nothing is held.
    pub fn of(layers: impl IntoIterator<Item = impl AsRef<Path>>) -> Result<Self> {
        let hold = Self::acquire(layers, None)?;
        Ok(hold.expect("nothing stops it"))
    }

    /// Holds layers as [`of`](Self::of) does, but stops waiting for a collector as soon as `stop`
    /// returns true. Returns `None` then.
    ///
    /// # Errors
    /// As `of`.
    pub fn of_until(
        layers: impl IntoIterator<Item = impl AsRef<Path>>,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Self>> {
        Self::acquire(layers, Some(stop))
    }

    fn acquire(
        layers: impl IntoIterator<Item = impl AsRef<Path>>,
        stop: Option<&dyn Fn() -> bool>,
    ) -> Result<Option<Self>> {
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
                if !hold.register(store, &layers, &mut links, stop)? {
                    return Ok(None);
                }
            }
            // The root directory has no parent, so it is not in a store.
            let real = |layer: &Path| fs::canonicalize(layer).map_err(|error| missing(layer, error));
            let real = links.into_iter().map(real).collect::<Result<Vec<_>>>()?;
            waiting = real.into_iter().filter(|layer| layer.parent().is_some()).collect();
            if waiting.is_empty() {
                if let Some((store, error)) = hold.unheld.take() {
                    log::warn!("layers of {} are not held: {}", quoted(&store), Chain(&error));
                }
                return Ok(Some(hold));
            }
        }
        Err(missing(&waiting[0], Errno::LOOP.into()))
    }

    /// Sets the reason for which the layers stay held if the caller [keeps](Self::keep) this value.
    /// The layers then stay held as long as the directory `path` exists or, with `id`, as long as
    /// `path` is the directory with this id. The path must be absolute. If the caller drops the
    /// value without keeping it, nothing stays held.
    ///
    /// This needs no free space on the disk. Collectors must see the directory under the same path.
    ///
    /// # Errors
    /// [`Error::Io`] if the reason cannot be written, for example if the path has more than 4,000
    /// bytes.
    pub fn set_reason(&self, path: &Path, id: Option<UpperId>) -> Result<()> {
        let mut head = path.as_os_str().as_bytes().to_vec();
        head.push(0);
        head.extend(id.map(UpperId::to_text).unwrap_or_default().bytes());
        if !path.is_absolute() || head.len() >= HEAD_BYTES {
            return Err(Error::io("hold layers for", path)(Errno::INVAL));
        }
        head.resize(HEAD_BYTES, 0);
        for HoldFile { file, .. } in &self.files {
            file.as_file().write_all_at(&head, 0).map_err(Error::io("write", file.path()))?;
        }
        Ok(())
    }

    /// Keeps the layers held for the [reason](Self::set_reason) that was set, after this process
    /// ends and across restarts of the machine.
    ///
    /// Layers in a store where this user may not make a file stay held only until this process
    /// ends. This function logs one warning if there are any: even if the store is mounted
    /// read-only here, a collector may work where it is mounted writable.
    pub fn keep(mut self) {
        if let Some(layer) = self.dirs.first() {
            log::warn!("a collector may remove {} and other layers of that store", quoted(layer.path()));
        }
        for HoldFile { file, .. } in self.files.drain(..) {
            file.keep();
        }
    }

    /// Ends the hold, and returns the error that `Drop` can only log.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be removed. The hold has ended all the same, and a collector
    /// will remove the file.
    pub fn release(mut self) -> Result<()> {
        let closed = self.files.drain(..).map(|held| held.file.close());
        closed.collect::<Vec<_>>().into_iter().collect()
    }

    /// Returns those of the layers that this hold does not hold by their names. Some of them may be
    /// held all the same, for example a layer whose path is a symbolic link.
    pub(crate) fn others<'l>(&self, layers: impl IntoIterator<Item = &'l Path>) -> Vec<&'l Path> {
        let mut stores: BTreeMap<&Path, Vec<&HashSet<OsString>>> = BTreeMap::new();
        let is_other = |layer: &&'l Path| {
            let Some((store, name)) = split(layer) else { return true };
            let held = stores.entry(store).or_insert_with(|| self.names_in(store));
            !held.iter().any(|names| names.contains(name))
        };
        layers.into_iter().filter(is_other).collect()
    }

    /// Returns the names of the layers in the directory `store` that this hold's files and locks
    /// hold.
    fn names_in(&self, store: &Path) -> Vec<&HashSet<OsString>> {
        let Ok(store) = stat(store).map(|stat| identity(&stat)) else { return Vec::new() };
        let files = self.files.iter().filter(|held| held.file.store() == Some(store)).map(|held| &held.names);
        files.chain(self.locked.get(&store)).collect()
    }

    /// Holds layers of one store by their names. Adds the symbolic links among them to `links`.
    /// Returns false if `stop` ended the wait.
    fn register<'a>(
        &mut self,
        store: &Path,
        layers: &[(&'a Path, &'a OsStr)],
        links: &mut Vec<&'a Path>,
        stop: Option<&dyn Fn() -> bool>,
    ) -> Result<bool> {
        let dir = openat(CWD, store, PATH.difference(OFlags::NOFOLLOW), Mode::empty());
        let dir = dir.map_err(|errno| missing(layers[0].0, errno.into()))?;
        let mut why = None;
        let store_dir = unless_refused(StoreDir::make(store), &mut why)?;
        // Under this lock, no collector removes anything until the file lists the held layers.
        let lock = match (&store_dir, stop) {
            (None, _) => None,
            (Some(store_dir), None) => unless_refused(store_dir.lock(FlockOperation::LockShared), &mut why)?,
            (Some(store_dir), Some(stop)) => match unless_refused(store_dir.lock_shared_until(stop), &mut why)? {
                Some(None) => return Ok(false),
                lock => lock.flatten(),
            },
        };
        let mut names = vec![0; HEAD_BYTES];
        let mut held = Vec::new();
        for &(layer, name) in layers {
            let stat = statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|errno| missing(layer, errno.into()))?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Symlink => links.push(layer),
                FileType::Directory => {
                    names.extend_from_slice(name.as_bytes());
                    names.push(0);
                    held.push((layer, name));
                }
                _ => return Err(missing(layer, Errno::NOTDIR.into())),
            }
        }
        if let Some(lock) = lock.filter(|_| names.len() > HEAD_BYTES) {
            let file = lock.make_file(Part::Holds).and_then(|file| hold(file, &names));
            let file = unless_refused(file, &mut why)?;
            let names = held.iter().map(|(_, name)| (*name).to_owned()).collect();
            self.files.extend(file.map(|file| HoldFile { file, names }));
        }
        if let Some(Error::Io { source, .. }) = &why {
            // Another reason, such as a `.layered` of a third person, says more than a permission.
            // Where a store that is read-only here is mounted writable, a collector may still work.
            let locks = matches!(Errno::from_io_error(source), Some(Errno::ROFS | Errno::ACCESS | Errno::PERM));
            let left = if locks { self.lock_dirs(dir.as_fd(), &held, stop)? } else { why };
            if locks && left.is_some() && stop.is_some_and(|stop| stop()) {
                return Ok(false);
            }
            if let Some(error) = left {
                self.unheld.get_or_insert((store.into(), error));
            }
        }
        Ok(true)
    }

    /// Locks the directories of `layers`, in the store `store`, so that no collector removes them.
    /// Returns the error of the first layer that cannot be locked. Stops waiting for other
    /// processes as soon as `stop` returns true.
    fn lock_dirs(
        &mut self,
        store: BorrowedFd<'_>,
        layers: &[(&Path, &OsStr)],
        stop: Option<&dyn Fn() -> bool>,
    ) -> Result<Option<Error>> {
        let mut retries = RETRIES;
        let mut wait = || {
            let waits = retries > 0 && !stop.is_some_and(|stop| stop());
            if waits {
                retries -= 1;
                // The kernel reports no event when such a lock becomes free, and anyone who may
                // read the directory can keep it locked.
                thread::sleep(RETRY);
            }
            waits
        };
        let limit = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |limit| (limit / SHARE) as usize);
        let Some((first, _)) = layers.first() else { return Ok(None) };
        let of_store = fstat(store).map_err(|errno| missing(first, errno.into()))?;
        let names = self.locked.entry(identity(&of_store)).or_default();
        let mut failed = None;
        for &(layer, name) in layers {
            let locked = match self.dirs.len() < limit {
                true => lock_layer(store, layer, name, &mut wait),
                false => Err(Error::io("open", layer)(Errno::MFILE)),
            };
            match locked {
                Ok(locked) => {
                    self.dirs.push(locked);
                    names.insert(name.into());
                }
                Err(error @ Error::NotADirectory { .. }) => return Err(error),
                Err(error) => {
                    failed.get_or_insert(error);
                }
            }
        }
        Ok(failed)
    }
}

/// Locks the directory of a layer, shared. The layer has this name when it is locked. Tries again
/// for as long as `wait` returns true.
fn lock_layer(store: BorrowedFd<'_>, layer: &Path, name: &OsStr, wait: &mut dyn FnMut() -> bool) -> Result<LockedDir> {
    let look = |errno: Errno| missing(layer, errno.into());
    loop {
        let dir = openat(store, name, READ, Mode::empty()).map_err(look)?;
        match LockedDir::attempt(dir, layer, FlockOperation::NonBlockingLockShared)? {
            Attempt::Locked(locked) => {
                // A collector renames a layer before it removes it.
                let there = statat(store, name, AtFlags::SYMLINK_NOFOLLOW).map_err(look)?;
                let stat = fstat(&locked).map_err(look)?;
                if identity(&there) == identity(&stat) {
                    return Ok(locked);
                }
            }
            Attempt::Busy | Attempt::Gone => {}
        }
        if !wait() {
            return Err(Error::io("lock", layer)(Errno::WOULDBLOCK));
        }
    }
}

/// Splits the path of a layer into its store and its name there. Returns `None` if the path does
/// not end in a name, for example if it ends in `..`.
fn split(layer: &Path) -> Option<(&Path, &OsStr)> {
    // Removes a trailing `/` or `/.`, with which the kernel would follow a symbolic link.
    let layer = layer.components().as_path();
    match (layer.parent()?, layer.file_name()?) {
        (store, name) if store.as_os_str().is_empty() => Some((Path::new("."), name)),
        (store, name) => Some((store, name)),
    }
}

/// Turns a new file into a hold: locks the file, and writes `names`, which is the head and the
/// names of the layers.
fn hold(file: PartFile, names: &[u8]) -> Result<PartFile> {
    // A process that reads the holds may have locked the file for a moment.
    retry_on_intr(|| flock(file.as_file(), FlockOperation::LockExclusive)).map_err(Error::io("lock", file.path()))?;
    file.as_file().write_all(names).map_err(Error::io("write", file.path()))?;
    Ok(file)
}

/// Returns `None`, and the error in `why`, if this process cannot make a hold in the store at all.
fn unless_refused<T>(result: Result<T>, why: &mut Option<Error>) -> Result<Option<T>> {
    let Err(error) = result else { return result.map(Some) };
    let Error::Io { source, .. } = &error else { return Err(error) };
    match source.kind() {
        ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied | ErrorKind::Unsupported => {}
        _ if source.raw_os_error() == Some(Errno::NOLCK.raw_os_error()) => {}
        _ => return Err(error),
    }
    why.get_or_insert(error);
    Ok(None)
}

fn missing(layer: &Path, source: std::io::Error) -> Error {
    match source.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => Error::not_a_directory(layer, "a layer"),
        _ => Error::io("look at", layer)(source),
    }
}

/// Returns the names of the layers of `store` that are [held](Hold) at this moment, for display.
/// The set is empty for a user who may not read the holds. [`Store::held`](crate::Store::held) is
/// the same.
///
/// # Errors
/// [`Error::Io`] if the holds cannot be read.
pub fn held(store: impl AsRef<Path>) -> Result<HashSet<OsString>> {
    let store_dir = StoreDir::open(store.as_ref());
    match store_dir
        .and_then(|store_dir| store_dir.map_or_else(|| Ok(HashSet::new()), |store_dir| read(&store_dir, Stale::Left)))
    {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::PermissionDenied => Ok(HashSet::new()),
        held => held,
    }
}

/// The treatment of files whose holds have ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stale {
    /// They are removed. The caller must have the exclusive lock of the store directory. Without
    /// the lock, such a file may be a hold that another process is making.
    Removed,
    Left,
}

/// Returns the names of all layers of a store that are held.
pub(crate) fn read(store_dir: &StoreDir, stale: Stale) -> Result<HashSet<OsString>> {
    Ok(read_all(store_dir, stale)?.into_iter().flat_map(|(held, _)| held.names).collect())
}

/// Returns one holder of the layer `name`, if it is held.
pub(crate) fn holder(store_dir: &StoreDir, name: &OsStr, stale: Stale) -> Result<Option<Holder>> {
    let holds = read_all(store_dir, stale)?;
    Ok(holds.into_iter().find(|(held, _)| held.names.iter().any(|held| held == name)).map(|(_, holder)| holder))
}

/// The user of a layer that a [`Hold`] keeps from being removed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Holder {
    /// A process, usually a run.
    Process,
    /// A process that has locked the layer's directory, usually a run of a user who may not make a
    /// hold in the store.
    Locked,
    /// The result of a run that was [kept](Hold::keep): the directory of a kept run, or a moved
    /// upper.
    Kept(PathBuf),
}

impl fmt::Display for Holder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process => formatter.write_str("a run that is in progress uses it; wait for its end"),
            Self::Locked => {
                let text = "another process, such as a run of another user, has locked it; wait for its end";
                formatter.write_str(text)
            }
            Self::Kept(path) => {
                write!(formatter, "the kept result of a run, {}, needs it; commit or delete that first", quoted(path))
            }
        }
    }
}

/// Returns all holds that have not ended, each with its holder.
fn read_all(store_dir: &StoreDir, stale: Stale) -> Result<Vec<(Held, Holder)>> {
    let mut holds = Vec::new();
    let Some(part) = store_dir.part(Part::Holds)? else { return Ok(holds) };
    for name in part.names()? {
        let path = part.path_of(&name);
        let file = match part.open_file(&name) {
            Ok(Some(file)) => file,
            Ok(None) => continue,
            // This crate makes only regular files here. Reading a FIFO could block a collector.
            Err(Error::NotARegularFile { path }) => {
                log::warn!("{} holds nothing: it is not a regular file", quoted(&path));
                continue;
            }
            Err(error) => return Err(error),
        };
        // The lock is shared: of two processes that read concurrently, neither takes the other for
        // the holder.
        let live = match flock(&file, FlockOperation::NonBlockingLockShared) {
            Err(Errno::WOULDBLOCK) => true,
            Err(errno) => return Err(Error::io("lock", path)(errno)),
            Ok(()) => false,
        };
        let held = Held::parse(&regular_file::read(file.try_clone().map_err(Error::io("read", &path))?, &path)?);
        if held.has_reason() {
            let kept = held.reason.as_ref().map(|(path, _)| Holder::Kept(path.clone()));
            holds.push((held, kept.unwrap_or(Holder::Process)));
        } else if live {
            holds.push((held, Holder::Process));
        } else if stale == Stale::Removed {
            part.remove_file(&name)?;
            log::debug!("removed the hold {}: its holder has ended", quoted(&path));
        }
    }
    Ok(holds)
}

/// The content of a hold's file.
#[derive(Debug, Default, PartialEq, Eq)]
struct Held {
    /// The path for which the layers stay held without a process, and the id of the directory
    /// there. An empty id means any directory.
    reason: Option<(PathBuf, String)>,
    names: Vec<OsString>,
}

impl Held {
    fn parse(bytes: &[u8]) -> Self {
        let (head, names) = bytes.split_at(bytes.len().min(HEAD_BYTES));
        let mut head = head.split(|&byte| byte == 0);
        let path = PathBuf::from(OsString::from_vec(head.next().unwrap_or_default().into()));
        let id = String::from_utf8_lossy(head.next().unwrap_or_default()).into_owned();
        let names = names.split(|&byte| byte == 0).filter(|name| !name.is_empty());
        Self {
            reason: path.is_absolute().then_some((path, id)),
            names: names.map(|name| OsString::from_vec(name.into())).collect(),
        }
    }

    /// Returns whether the layers stay held without a process.
    fn has_reason(&self) -> bool {
        let Some((path, id)) = &self.reason else { return false };
        match UpperId::of(path) {
            Ok(found) => id.is_empty() || found.to_text() == *id,
            // A path that cannot be examined may exist.
            Err(Error::Io { source, .. }) => !matches!(
                Errno::from_io_error(&source),
                Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG)
            ),
            Err(_) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    use proptest::prelude::*;

    use crate::mutated;

    fn store(names: &[&OsStr]) -> tempfile::TempDir {
        let store = tempfile::tempdir().unwrap();
        names.iter().for_each(|name| fs::create_dir_all(store.path().join(name).join("fs")).unwrap());
        store
    }

    /// Returns the content of a hold's file.
    fn file(head: &str, names: &[u8]) -> Vec<u8> {
        let mut bytes = head.as_bytes().to_vec();
        bytes.resize(HEAD_BYTES, 0);
        bytes.extend_from_slice(names);
        bytes
    }

    proptest! {
        #![proptest_config(mutated::config())]

        #[test]
        fn files_of_any_content(text in mutated::bytes([file("/run/kept\x001:2", b"gcc\0new\nline\0"), file("", b"a\0")])) {
            let held = Held::parse(&text);
            prop_assert!(held.names.iter().all(|name| !name.is_empty() && !name.as_bytes().contains(&0)));
            prop_assert!(held.reason.iter().all(|(path, _)| path.is_absolute()));
            let _ = held.has_reason();
        }
    }

    fn seen(store: &Path) -> Vec<OsString> {
        let mut names: Vec<_> = held(store).unwrap().into_iter().collect();
        names.sort();
        names
    }

    #[test]
    fn layers_are_held_until_the_hold_is_released() {
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
    fn a_layer_behind_symlinks_is_held_in_its_real_store() {
        let [real, links] = [store(&["a".as_ref()]), store(&[])];
        symlink(real.path().join("a"), links.path().join("first")).unwrap();
        symlink("first", links.path().join("second")).unwrap();
        let _hold = Hold::of([links.path().join("second"), links.path().join("first/fs/..")]).unwrap();
        assert_eq!(seen(real.path()), ["a"]);
        assert_eq!(seen(links.path()), [""; 0]);
        let _nothing_to_hold = Hold::of(["/"]).unwrap();
    }

    #[test]
    fn the_error_names_a_missing_layer_and_nothing_is_held() {
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
    fn the_file_of_a_dead_holder_holds_nothing_and_is_removed() {
        let store = store(&["a".as_ref()]);
        let hold = Hold::of([store.path().join("a")]).unwrap();
        let left = store.path().join(".layered/holds/dead");
        fs::write(&left, file("", b"a\0b\0")).unwrap();
        let store_dir = StoreDir::open(store.path()).unwrap().unwrap();
        assert_eq!(read(&store_dir, Stale::Left).unwrap(), HashSet::from(["a".into()]));
        assert!(left.exists());
        assert_eq!(read(&store_dir, Stale::Removed).unwrap(), HashSet::from(["a".into()]));
        assert!(!left.exists());
        drop(hold);
    }

    #[test]
    fn a_kept_hold_lasts_as_long_as_its_reason() {
        let store = store(&["a".as_ref()]);
        let path = |name: &str| store.path().join(name);
        for with_id in [false, true] {
            let (run, upper) = (path("kept-run"), path("upper"));
            fs::create_dir(&upper).unwrap();
            let id = with_id.then(|| UpperId::of(&upper).unwrap());
            let hold = Hold::of([path("a")]).unwrap();
            hold.set_reason(&run, None).unwrap();
            fs::rename(&upper, &run).unwrap();
            hold.set_reason(&run, id).unwrap();
            hold.keep();
            let store_dir = StoreDir::open(store.path()).unwrap().unwrap();
            assert_eq!(read(&store_dir, Stale::Removed).unwrap(), HashSet::from(["a".into()]));
            if with_id {
                // Another directory with that name does not keep the layers held.
                fs::rename(&run, path("elsewhere")).unwrap();
                fs::create_dir(&run).unwrap();
                assert_eq!(read(&store_dir, Stale::Left).unwrap(), HashSet::new());
                fs::remove_dir(path("elsewhere")).unwrap();
            }
            fs::remove_dir(&run).unwrap();
            assert_eq!(read(&store_dir, Stale::Removed).unwrap(), HashSet::new());
            assert_eq!(fs::read_dir(path(".layered/holds")).unwrap().count(), 0);
        }
    }

    #[test]
    fn a_reason_must_be_an_absolute_path_that_fits() {
        let store = store(&["a".as_ref()]);
        let hold = Hold::of([store.path().join("a")]).unwrap();
        let long = format!("/{}", "x".repeat(HEAD_BYTES));
        for wrong in ["relative", "", &long] {
            assert!(matches!(hold.set_reason(Path::new(wrong), None), Err(Error::Io { .. })), "{wrong}");
        }
    }

    #[test]
    fn other_files_hold_nothing_and_do_not_block_a_collector() {
        let store = store(&["a".as_ref()]);
        let _hold = Hold::of([store.path().join("a")]).unwrap();
        let holds = store.path().join(".layered/holds");
        rustix::fs::mknodat(CWD, holds.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        fs::create_dir(holds.join("directory")).unwrap();
        symlink("/dev/zero", holds.join("link")).unwrap();
        for (name, content) in [("empty", &b""[..]), ("short", b"b\0c\0"), ("text", b"/\0\0"), ("bytes", &[255; 9000])]
        {
            fs::write(holds.join(name), content).unwrap();
        }
        let store_dir = StoreDir::open(store.path()).unwrap().unwrap();
        assert_eq!(read(&store_dir, Stale::Removed).unwrap(), HashSet::from(["a".into()]));
        assert_eq!(read(&store_dir, Stale::Removed).unwrap(), HashSet::from(["a".into()]));
    }

    #[test]
    fn a_hold_knows_the_layers_that_its_files_name() {
        let held = store(&["a".as_ref(), "b".as_ref()]);
        let other = store(&["a".as_ref()]);
        symlink("a", held.path().join("link")).unwrap();
        let hold = Hold::of([held.path().join("a"), held.path().join("link")]).unwrap();
        let links = tempfile::tempdir().unwrap();
        symlink(held.path(), links.path().join("store")).unwrap();
        let layers = [
            held.path().join("a"),
            links.path().join("store/a/"),
            held.path().join("b"),
            held.path().join("link"),
            other.path().join("a"),
            held.path().join("missing/a"),
            held.path().join("a/.."),
        ];
        let others = hold.others(layers.iter().map(PathBuf::as_path));
        assert_eq!(others, layers[2..].iter().map(PathBuf::as_path).collect::<Vec<_>>());
    }

    #[test]
    fn a_hold_knows_the_layers_that_it_has_locked() {
        let [locked, other] = [(); 2].map(|()| store(&["a".as_ref(), "b".as_ref()]));
        let dir = openat(CWD, locked.path(), PATH, Mode::empty()).unwrap();
        let layers = [locked.path().join("a"), locked.path().join("b"), other.path().join("a")];
        let mut hold = Hold::of([other.path().join("b")]).unwrap();
        let failed = hold.lock_dirs(dir.as_fd(), &[(&layers[0], "a".as_ref())], None).unwrap();
        assert!(failed.is_none(), "{failed:?}");
        let others = hold.others(layers.iter().map(PathBuf::as_path));
        assert_eq!(others, layers[1..].iter().map(PathBuf::as_path).collect::<Vec<_>>());
    }

    #[test]
    fn a_wait_for_a_collector_can_be_ended() {
        let store = store(&["a".as_ref()]);
        let path = store.path().join("a");
        let store_dir = StoreDir::make(store.path()).unwrap();
        let lock = store_dir.lock(FlockOperation::LockExclusive).unwrap();
        let asked = std::cell::Cell::new(0);
        let stop = || {
            asked.set(asked.get() + 1);
            asked.get() == 3
        };
        assert!(Hold::of_until([&path], &stop).unwrap().is_none());
        drop(lock);
        assert!(Hold::of_until([&path], &|| false).unwrap().is_some());
    }

    #[test]
    fn the_files_of_holds_are_parsed() {
        let table = [
            (file("/run", b"a\0b\0"), Some(("/run", "")), &["a", "b"][..]),
            (file("/run\x001 2 3", b"a\0"), Some(("/run", "1 2 3")), &["a"]),
            (file("", b"a"), None, &["a"]),
            (b"a\0b\0".to_vec(), None, &[]),
            (Vec::new(), None, &[]),
        ];
        for (bytes, reason, names) in table {
            let reason = reason.map(|(path, id)| (PathBuf::from(path), id.to_string()));
            assert_eq!(Held::parse(&bytes), Held { reason, names: names.iter().map(Into::into).collect() });
        }
    }
}
