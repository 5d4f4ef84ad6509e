//! Lets one capture at a time make a layer, and marks its progress. `upper.rs` opens and moves the
//! tree; `store/gc/abandoned.rs` uses the marks of a killed capture.

use std::ffi::{CStr, CString, OsStr};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::{
    AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, RawDir, Stat, XattrFlags, fchmod, fgetxattr, fsetxattr,
    fstat, fsync, mkdir, openat, rmdir, statat, unlinkat,
};
use rustix::io::Errno;
use serde_json::Value;

use super::upper::Upper;
use crate::display::quoted;
use crate::error::{Chain, Error, Result};
use crate::layer::access::Access;
use crate::layer::meta::Meta;
use crate::layer::{Layer, json};
use crate::stack::overlayfs::XattrNamespace;
use crate::store::store_dir::{RETRIES, RETRY};
use crate::tree::locked_dir::{Attempt, LockedDir};
use crate::tree::rename::rename_new;
use crate::tree::walk::{self, Identity, READ, as_os_str};

/// The name of the future `layer.json` in a layer's directory, before the capture has made the tree
/// durable. This mark implies nothing about `fs`: a tree that exists there belongs to the caller.
const STAGED: &CStr = c".capturing";

/// The name of the future `layer.json` in a layer's directory, when this file and the tree are
/// durable. If `fs` exists beside it, only this file's final name is missing.
const SEALED: &CStr = c".captured";

/// The beginning of the names of future sidecars in a layer's directory. Each belongs to one of the
/// other marks.
const SIDECAR: &str = ".capturing-";

const META: &CStr = c"layer.json";

/// The mode of a layer's directory that a capture has made but not finished. The sticky bit marks
/// it: no user makes such a directory by hand, so an empty one can be removed.
const UNFINISHED: Mode = Mode::RWXU.union(Mode::SVTX);

/// The lock of a layer's directory: no other capture and no collector changes anything in it.
///
/// The kernel releases the lock, flock(2), when the process ends. The marks stay, and show how far
/// a killed capture got.
#[derive(Debug)]
pub(crate) struct CaptureLock<'a> {
    layer: &'a Layer,
    dir: LockedDir,
    /// Whether a capture made the directory: this one, or one that was killed.
    made: bool,
}

/// The content of a layer's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// A layer.
    Layer,
    /// A layer that is complete but for the name of its `layer.json`. [`CaptureLock::publish`]
    /// completes it.
    Sealed {
        /// The identity of the tree.
        tree: Identity,
    },
    /// Neither of these.
    Unfinished {
        /// The identity of the entry at the place of the tree, if one exists.
        tree: Option<Identity>,
    },
}

/// The mark that a capture has put into the layer's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// [`STAGED`].
    Staged,
    /// [`SEALED`].
    Sealed,
}

impl<'a> CaptureLock<'a> {
    /// Locks the layer's directory, and makes it if it is missing. Waits for a moment if collectors
    /// or holds have it locked.
    ///
    /// # Errors
    /// [`Error::AlreadyCaptured`] if another capture has it locked, or if it is a layer already.
    /// [`Error::DestinationLocked`] if a hold has it locked.
    pub(super) fn take(layer: &'a Layer) -> Result<Self> {
        let captured = || Error::AlreadyCaptured { layer: layer.path().into() };
        let mut retries = RETRIES;
        loop {
            let made = match mkdir(layer.path(), UNFINISHED) {
                Ok(()) => true,
                Err(Errno::EXIST) => false,
                Err(errno) => return Err(Error::io("make the directory", layer.path())(errno)),
            };
            match Self::lock(layer, made, FlockOperation::NonBlockingLockExclusive)? {
                Lock::Taken(lock) => return Ok(lock),
                Lock::Gone => continue,
                Lock::Busy => {}
            }
            // Captures lock the directory exclusively, collectors and holds shared.
            match Self::lock(layer, made, FlockOperation::NonBlockingLockShared)? {
                Lock::Busy => return Err(captured()),
                Lock::Gone => {}
                Lock::Taken(shared) if shared.has(META)?.is_some() => return Err(captured()),
                // A hold can last as long as a run, and may be this process's own.
                Lock::Taken(_) if retries == 0 => {
                    return Err(Error::DestinationLocked { layer: layer.path().into() });
                }
                // A collector locks the directory only for a moment.
                Lock::Taken(shared) => {
                    drop(shared);
                    retries -= 1;
                    thread::sleep(RETRY);
                }
            }
        }
    }

    /// Locks the directory of a layer whose capture was killed, so that the caller can finish it.
    /// Returns `None` if the directory does not exist, or if another process has it locked.
    pub(super) fn take_existing(layer: &'a Layer) -> Result<Option<Self>> {
        Self::existing(layer, FlockOperation::NonBlockingLockExclusive)
    }

    /// Locks the directory of a layer whose capture was killed, for a collector. Returns `None` if
    /// the directory does not exist, if a capture has it locked, or if nothing shows that a capture
    /// was killed there: neither a mark nor the sticky bit of an empty directory. Only one
    /// collector may do this at a time.
    pub(crate) fn take_abandoned(layer: &'a Layer) -> Result<Option<Self>> {
        let dir = match openat(CWD, layer.path(), READ, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(errno) => return Err(Error::io("open", layer.path())(errno)),
        };
        let io = |operation| Error::io::<Errno>(operation, layer.path());
        let made = Mode::from_raw_mode(fstat(&dir).map_err(io("look at"))?.st_mode).contains(Mode::SVTX);
        let contents = contents(dir.as_fd()).map_err(io("read"))?;
        // Do not lock the directory without a reason: a capture that begins would have to wait.
        match contents.marks > 0 || (made && contents.others == 0) {
            true => Self::existing(layer, FlockOperation::NonBlockingLockShared),
            false => Ok(None),
        }
    }

    fn existing(layer: &'a Layer, how: FlockOperation) -> Result<Option<Self>> {
        match Self::lock(layer, false, how) {
            Ok(Lock::Taken(lock)) => Ok(Some(lock)),
            Ok(Lock::Busy | Lock::Gone) | Err(Error::NotADirectory { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn lock(layer: &'a Layer, made: bool, how: FlockOperation) -> Result<Lock<'a>> {
        let path = layer.path();
        let dir = match openat(CWD, path, READ.difference(OFlags::NOFOLLOW), Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(Lock::Gone),
            Err(Errno::NOTDIR) => {
                let expected = "a layer, new or without layer.json";
                return Err(Error::not_a_directory(path, expected));
            }
            Err(errno) => return Err(Error::io("open", path)(errno)),
        };
        let dir = match LockedDir::attempt(dir, path, how)? {
            Attempt::Locked(dir) => dir,
            Attempt::Busy => return Ok(Lock::Busy),
            Attempt::Gone => return Ok(Lock::Gone),
        };
        let stat = fstat(&dir).map_err(Error::io("look at", path))?;
        let made = made || Mode::from_raw_mode(stat.st_mode).contains(Mode::SVTX);
        Ok(Lock::Taken(Self { layer, dir, made }))
    }

    /// Looks at what is in the layer's directory.
    pub(crate) fn look(&self) -> Result<Found> {
        if self.has(META)?.is_some() {
            return Ok(Found::Layer);
        }
        let tree = self.has(c"fs")?;
        let is_tree = |stat: &Stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if let Some(tree) = tree.filter(is_tree) {
            // After a power cut, the mark may be incomplete on a file system that does not preserve
            // the order of writes.
            match json::read::<Meta>(&self.layer.path().join(as_os_str(SEALED))) {
                Ok(Some(_)) => return Ok(Found::Sealed { tree: walk::identity(&tree) }),
                Ok(None) | Err(Error::Json { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Found::Unfinished { tree: tree.as_ref().map(walk::identity) })
    }

    /// Removes the marks of a killed capture.
    pub(crate) fn unmark(&self) -> Result<()> {
        // The marks are last: a collector looks for them.
        for sidecar in self.staged_sidecars()? {
            let removed = unlinkat(&self.dir, &sidecar, AtFlags::empty());
            removed.map_err(Error::io("remove", self.layer.path().join(as_os_str(&sidecar))))?;
        }
        for mark in [STAGED, SEALED] {
            match unlinkat(&self.dir, mark, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(Error::io("remove", self.layer.path().join(as_os_str(mark)))(errno)),
            }
        }
        Ok(())
    }

    fn staged_sidecars(&self) -> Result<Vec<CString>> {
        Ok(contents(self.dir.as_fd()).map_err(Error::io("read", self.layer.path()))?.sidecars)
    }

    /// Writes the future `layer.json` under the name [`STAGED`].
    pub(super) fn stage(&self, meta: &Meta) -> Result<()> {
        self.unmark()?;
        json::write_new(self.dir.as_fd(), STAGED, &self.layer.path().join(as_os_str(STAGED)), meta)
    }

    /// Writes a future sidecar beside the [staged](Self::stage) `layer.json`.
    pub(super) fn stage_sidecar(&self, name: &str, value: &Value) -> Result<()> {
        let name = self.layer.sidecar_path(name)?.file_name().map(OsStr::to_os_string).unwrap_or_default();
        let staged = [SIDECAR.as_bytes(), name.as_bytes()].concat();
        let path = self.layer.path().join(OsStr::from_bytes(&staged));
        let staged = walk::as_c_string(OsStr::from_bytes(&staged)).map_err(Error::io("create", &path))?;
        json::write_new(self.dir.as_fd(), &staged, &path, value)
    }

    /// Records the former path of the tree on the layer's directory, so that a repeated capture
    /// finds that the layer is its own.
    pub(super) fn record_upper(&self, upper: &Upper, xattrs: XattrNamespace) {
        let name = upper_xattr(xattrs);
        let record = |path: PathBuf| fsetxattr(&self.dir, name, path.as_os_str().as_bytes(), XattrFlags::empty());
        if let Err(errno) = upper.real_path().and_then(record) {
            // A repeated capture can then recognise the layer only by the identity of its upper.
            log::debug!("cannot record the upper of {}: {errno}", quoted(self.layer.path()));
        }
    }

    /// Returns whether the tree was moved here from `upper`.
    pub(super) fn has_moved_from(&self, upper: &Path, xattrs: XattrNamespace) -> bool {
        let mut value = vec![0; 4096];
        let length = fgetxattr(&self.dir, upper_xattr(xattrs), &mut value[..]);
        length.is_ok_and(|length| value[..length] == *real(upper).as_os_str().as_bytes())
    }

    /// Marks the tree and the staged `layer.json` as durable.
    pub(super) fn seal(&self) -> Result<()> {
        self.rename(STAGED, SEALED)
    }

    /// Renames the future sidecars, and then the mark of `stage` to `layer.json`: the layer exists
    /// from then on. A file that already has the name of a sidecar stays, and the sidecar is
    /// dropped.
    pub(super) fn publish_from(&self, stage: Stage) -> Result<()> {
        for staged in self.staged_sidecars()? {
            let name = staged.to_bytes_with_nul().strip_prefix(SIDECAR.as_bytes()).unwrap_or_default();
            let name = CStr::from_bytes_with_nul(name).unwrap_or(c"");
            let path = self.layer.path().join(as_os_str(name));
            match rename_new(&self.dir, &*staged, &self.dir, name) {
                Err(Errno::EXIST) => {
                    log::warn!("{} exists and is left as it is; the capture does not replace it", quoted(&path));
                    unlinkat(&self.dir, &staged, AtFlags::empty())
                        .map_err(Error::io("remove", self.layer.path().join(as_os_str(&staged))))?;
                }
                renamed => renamed.map_err(Error::io("rename a file to", path))?,
            }
        }
        match stage {
            Stage::Staged => self.rename(STAGED, META),
            Stage::Sealed => self.rename(SEALED, META),
        }
    }

    /// Completes the layer of a capture that was killed after it had [moved the
    /// tree](Found::Sealed), and makes the layer durable.
    pub(crate) fn publish(&self) -> Result<()> {
        self.publish_from(Stage::Sealed)?;
        self.sync()
    }

    /// Makes the names in the directory durable.
    pub(super) fn sync(&self) -> Result<()> {
        fsync(&self.dir).map_err(Error::io("sync", self.layer.path()))
    }

    /// Gives the directory the mode and group of `access`. Without `access`, a directory that a
    /// capture made gets the defaults, and any other directory is unchanged.
    pub(super) fn open_to(&self, access: Option<Access>) -> Result<()> {
        match access {
            Some(access) => access.apply(&self.dir, self.layer.path()),
            None if self.made => Access::default().apply(&self.dir, self.layer.path()),
            None => Ok(()),
        }
    }

    /// Renames a file. Never replaces one that has appeared since the lock was taken.
    fn rename(&self, from: &CStr, to: &CStr) -> Result<()> {
        let path = self.layer.path().join(as_os_str(to));
        rename_new(&self.dir, from, &self.dir, to).map_err(Error::io("rename a file to", path))
    }

    fn has(&self, name: &CStr) -> Result<Option<Stat>> {
        match statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(Error::io("look at", self.layer.path().join(as_os_str(name)))(errno)),
        }
    }

    /// Returns the layer whose directory is locked.
    pub(super) fn layer(&self) -> &Layer {
        self.layer
    }

    /// Returns the layer's directory.
    pub(super) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Removes the marks of a failed capture, and the layer's directory if a capture made it and
    /// nothing else is in it. Logs an error.
    pub(super) fn give_up(self) {
        if let Err(error) = self.clear() {
            log::warn!("{}; the next capture or collector removes the rest", Chain(&error));
        }
    }

    /// Removes the marks. Also removes the directory if a capture made it or left a mark in it, and
    /// nothing else is in it. Returns whether anything was removed.
    pub(crate) fn clear(self) -> Result<bool> {
        let io = |operation| Error::io::<Errno>(operation, self.layer.path());
        let contents = contents(self.dir.as_fd()).map_err(io("read"))?;
        let marked = contents.marks > 0;
        let remove = contents.others == 0 && (marked || self.made);
        if remove {
            // If this process is killed after it has removed the last mark, the mode shows that the
            // empty directory can be removed.
            fchmod(&self.dir, UNFINISHED).map_err(io("change the mode of"))?;
        }
        self.unmark()?;
        if !remove {
            return Ok(marked);
        }
        match rmdir(self.layer.path()) {
            // `NOTEMPTY` or `EXIST`: another process has put something into the directory.
            Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => Ok(true),
            Err(errno) => Err(io("remove")(errno)),
        }
    }
}

/// Returns the name of the extended attribute that records, on a layer's directory, the former path
/// of its tree.
fn upper_xattr(xattrs: XattrNamespace) -> &'static str {
    match xattrs {
        XattrNamespace::Trusted => "trusted.layered.upper",
        XattrNamespace::User => "user.layered.upper",
    }
}

/// Returns `path` as an absolute path. Resolves symbolic links in the directories above it, as far
/// as these exist.
fn real(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.into());
    for above in path.ancestors().skip(1) {
        if let (Ok(real), Ok(rest)) = (std::fs::canonicalize(above), path.strip_prefix(above)) {
            return real.join(rest);
        }
    }
    path
}

/// The numbers of marks and of other entries in a layer's directory.
struct Contents {
    marks: usize,
    /// The names of the future sidecars. They do not count as marks.
    sidecars: Vec<CString>,
    others: usize,
}

fn contents(dir: BorrowedFd<'_>) -> rustix::io::Result<Contents> {
    let mut contents = Contents { marks: 0, sidecars: Vec::new(), others: 0 };
    let dir = openat(dir, c".", READ, Mode::empty())?;
    let mut buffer = [MaybeUninit::uninit(); 1024];
    let mut entries = RawDir::new(dir, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        match entry.file_name() {
            name if walk::is_dots(name) => {}
            name if name == STAGED || name == SEALED => contents.marks += 1,
            name if name.to_bytes().starts_with(SIDECAR.as_bytes()) => contents.sidecars.push(name.into()),
            _ => contents.others += 1,
        }
    }
    Ok(contents)
}

/// The outcome of locking a layer's directory.
enum Lock<'a> {
    Taken(CaptureLock<'a>),
    /// Another process has it locked.
    Busy,
    /// The directory does not exist, or was removed before it was locked.
    Gone,
}
