//! The parts of a store directory, and the files and directories in them. `store_dir.rs` has the
//! lock under which these are made.
//!
//! Every step starts at the open directory of the part, and none follows a link. The owner of the
//! store can replace a part with a link at any time, so a joined path may lead anywhere.

use std::ffi::CString;
use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, statat, unlinkat};
use rustix::io::Errno;

use super::{Part, StoreDir, StoreDirLock, entries, make_dir};
use crate::error::{Chain, Error, Result};
use crate::tree::locked_dir::LockedDir;
use crate::tree::owner;
use crate::tree::regular_file;
use crate::tree::remove::{USUAL_THREADS, remove_at};
use crate::tree::walk::{Identity, READ, as_c_string, as_os_str, identity};

/// An open part of a store directory.
#[derive(Debug)]
pub(crate) struct OpenPart {
    path: PathBuf,
    dir: OwnedFd,
}

impl StoreDir {
    /// Opens a part of the store directory. Returns `None` if the part was never made.
    pub(crate) fn part(&self, part: Part) -> Result<Option<Arc<OpenPart>>> {
        let path = self.path.join(part.name());
        match openat(&self.dir, part.name(), READ, Mode::empty()) {
            Ok(dir) => Ok(Some(Arc::new(OpenPart { path, dir }))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(Error::io("open", path)(errno)),
        }
    }
}

#[cfg(feature = "registry")]
impl StoreDir {
    /// Opens the file `name` of the store directory, whose bytes are locked, and makes it if it is
    /// missing. Returns its path, too.
    pub(crate) fn lock_file(&self, name: &str) -> Result<(PathBuf, File)> {
        let path = self.path.join(name);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = openat(&self.dir, name, flags, Mode::RUSR | Mode::WUSR).map_err(Error::io("open", &path))?;
        Ok((path, file.into()))
    }
}

impl StoreDirLock<'_> {
    /// Opens a part of the store directory, and makes it if it is missing.
    fn make_part(&self, part: Part) -> Result<Arc<OpenPart>> {
        if let Some(part) = self.store_dir.part(part)? {
            return Ok(part);
        }
        let path = self.store_dir.path.join(part.name());
        make_dir(&self.store_dir.dir, part.name(), &path)?;
        self.store_dir.part(part)?.ok_or_else(|| Error::io("open", path)(Errno::NOENT))
    }

    /// Makes a file with mode 0644 in a part of the store directory. The file belongs to the owner
    /// of the part, even if root makes it.
    pub(crate) fn make_file(&self, part: Part) -> Result<PartFile> {
        let part = self.make_part(part)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let make = |name: &CString| openat(&part.dir, name, flags, Mode::from_raw_mode(0o644));
        let (name, file) = with_new_name(make).map_err(Error::io("make a file in", &part.path))?;
        owner::give(&file, &part.dir);
        let path = part.path.join(as_os_str(&name));
        Ok(PartFile { entry: Some((part, name)), path, file: file.into() })
    }

    /// Makes a directory in a part of the store directory, and locks it for the caller. When its
    /// lock is dropped, the directory is an orphan: the next collector removes it.
    pub(crate) fn work_dir(&self, part: Part) -> Result<WorkDir> {
        let part = self.make_part(part)?;
        let make = |name: &CString| mkdirat(&part.dir, name, Mode::RWXU);
        let (name, ()) = with_new_name(make).map_err(Error::io("make a directory in", &part.path))?;
        let path = part.path.join(as_os_str(&name));
        take(&part, name)?.ok_or_else(|| Error::io("lock", path)(Errno::WOULDBLOCK))
    }

    /// Locks at most `most` directories of a part whose owners are dead, and returns them.
    pub(crate) fn orphans(&self, part: Part, most: usize) -> Result<Vec<WorkDir>> {
        let Some(part) = self.store_dir.part(part)? else { return Ok(Vec::new()) };
        let names = part.names()?;
        names.into_iter().filter_map(|name| take(&part, name).transpose()).take(most).collect()
    }
}

impl OpenPart {
    /// Lists the names in the part.
    pub(crate) fn names(&self) -> Result<Vec<CString>> {
        let names = entries(&self.dir).and_then(|found| found.iter().map(|(name, _)| as_c_string(name)).collect());
        names.map_err(Error::io("read", &self.path))
    }

    /// Returns the path of an entry, for messages.
    pub(crate) fn path_of(&self, name: &CString) -> PathBuf {
        self.path.join(as_os_str(name))
    }

    /// Opens the regular file `name`; `None` if there is nothing with this name.
    pub(crate) fn open_file(&self, name: &CString) -> Result<Option<File>> {
        regular_file::open_at(self.dir.as_fd(), name, &self.path_of(name))
    }

    /// Removes the file `name`. It is not an error if it does not exist.
    pub(crate) fn remove_file(&self, name: &CString) -> Result<()> {
        match unlinkat(&self.dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(Error::io("remove", self.path_of(name))(errno)),
        }
    }
}

/// A locked directory in a part.
#[derive(Debug)]
#[must_use = "dropped, it is an orphan"]
pub(crate) struct WorkDir {
    part: Arc<OpenPart>,
    name: CString,
    locked: LockedDir,
}

impl WorkDir {
    pub(crate) fn path(&self) -> &Path {
        self.locked.path()
    }

    /// Removes the directory with everything in it. It stays locked until it is gone.
    pub(crate) fn remove(self) -> Result<()> {
        // It is usually empty, and then needs no walk.
        if unlinkat(&self.part.dir, &self.name, AtFlags::REMOVEDIR).is_ok() {
            return Ok(());
        }
        remove_at(self.part.dir.as_fd(), &self.name, self.locked.path(), USUAL_THREADS)
    }
}

impl AsFd for WorkDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.locked.as_fd()
    }
}

/// A new file in a part.
#[derive(Debug)]
#[must_use = "dropped, the file is removed"]
pub(crate) struct PartFile {
    /// `None` if dropping the value leaves the file on the disk.
    entry: Option<(Arc<OpenPart>, CString)>,
    path: PathBuf,
    file: File,
}

impl PartFile {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn as_file(&self) -> &File {
        &self.file
    }

    /// Returns the identity of the store that the file is in now.
    pub(crate) fn store(&self) -> Option<Identity> {
        let (part, _) = self.entry.as_ref()?;
        statat(&part.dir, c"../..", AtFlags::empty()).ok().map(|stat| identity(&stat))
    }

    /// Leaves the file on the disk.
    pub(crate) fn keep(mut self) {
        self.entry = None;
    }

    /// Removes the file.
    pub(crate) fn close(mut self) -> Result<()> {
        self.remove()
    }

    fn remove(&mut self) -> Result<()> {
        self.entry.take().map_or(Ok(()), |(part, name)| part.remove_file(&name))
    }
}

impl Drop for PartFile {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            log::warn!("left to a collector: {}", Chain(&error));
        }
    }
}

/// Calls `make` with a name that is probably new, until it is.
fn with_new_name<T>(make: impl Fn(&CString) -> rustix::io::Result<T>) -> rustix::io::Result<(CString, T)> {
    loop {
        let name = CString::new(random()).expect("hexadecimal digits have no NUL");
        match make(&name) {
            Err(Errno::EXIST) => {}
            made => return Ok((name, made?)),
        }
    }
}

/// Returns 16 hexadecimal digits, different at each call.
pub(super) fn random() -> String {
    format!("{:016x}", RandomState::new().build_hasher().finish())
}

/// Locks a directory of a part. Returns `None` if the directory has an owner, does not exist any
/// more, or is not a directory.
fn take(part: &Arc<OpenPart>, name: CString) -> Result<Option<WorkDir>> {
    match LockedDir::try_lock_at(part.dir.as_fd(), &name, part.path_of(&name)) {
        Err(Error::Io { source, .. }) if matches!(Errno::from_io_error(&source), Some(Errno::NOTDIR | Errno::LOOP)) => {
            Ok(None)
        }
        taken => Ok(taken?.map(|locked| WorkDir { part: Arc::clone(part), name, locked })),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::fs::FlockOperation;

    use super::*;

    /// Replaces the directory `path` with a link to `victim`, and returns its new path.
    fn replace_with_link(path: &Path, victim: &Path) -> PathBuf {
        let moved = path.with_file_name("moved");
        fs::rename(path, &moved).unwrap();
        symlink(victim, path).unwrap();
        moved
    }

    #[test]
    fn a_part_that_becomes_a_link_leads_no_removal_elsewhere() {
        let [store, victim] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let store_dir = StoreDir::make(store.path()).unwrap();
        let lock = store_dir.lock(FlockOperation::LockExclusive).unwrap();
        let dead = lock.work_dir(Part::New).unwrap();
        let name = dead.path().file_name().unwrap().to_owned();
        drop(dead);
        let file = lock.make_file(Part::Holds).unwrap();
        let hold = file.path().file_name().unwrap().to_owned();
        fs::create_dir_all(victim.path().join(&name).join("sub")).unwrap();
        fs::write(victim.path().join(&hold), "").unwrap();

        let orphans = lock.orphans(Part::New, 9).unwrap();
        let new = replace_with_link(&store_dir.path.join("new"), victim.path());
        assert_eq!(orphans.len(), 1);
        orphans.into_iter().for_each(|orphan| orphan.remove().unwrap());
        fs::remove_dir(&new).unwrap();
        let holds = replace_with_link(&store_dir.path.join("holds"), victim.path());
        file.close().unwrap();
        fs::remove_dir(&holds).unwrap();
        assert!(victim.path().join(&name).join("sub").is_dir() && victim.path().join(&hold).exists());
    }

    #[test]
    fn nothing_is_made_or_found_in_a_part_that_is_a_link() {
        let [store, victim] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        fs::create_dir(victim.path().join("dead")).unwrap();
        let store_dir = StoreDir::make(store.path()).unwrap();
        for part in ["holds", "new"] {
            symlink(victim.path(), store_dir.path.join(part)).unwrap();
        }
        let lock = store_dir.lock(FlockOperation::LockExclusive).unwrap();
        for error in [
            lock.make_file(Part::Holds).unwrap_err(),
            lock.work_dir(Part::New).unwrap_err(),
            lock.orphans(Part::New, 9).unwrap_err(),
        ] {
            assert!(matches!(&error, Error::Io { operation: "open", .. }), "{error}");
        }
        assert_eq!(fs::read_dir(&victim).unwrap().count(), 1);
    }
}
