//! Taking a directory tree away, and nothing that is mounted in it.

use std::ffi::CStr;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RawDir, SeekFrom, chmod, fchmod, fstat, openat, seek, unlinkat,
};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::tree::walk::{self, Cursor, ENTRIES_SIZE_BYTES, Node, PATH, READ, as_os_str, open_in, work_queue};

/// Threads of a removal, however few processors there are: one that frees blocks waits for the disk where that is told at
/// once (ext4 with `discard` and without a journal), and so does one that reads directories for the first time. Where
/// nobody waits, more threads than processors cost nothing.
pub(crate) const USUAL_THREADS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(7);

/// Removes the directory tree at `path`, or the file, with at most eight threads: [`remove_tree_with`].
///
/// # Errors
/// As [`remove_tree_with`].
pub fn remove_tree(path: impl AsRef<Path>) -> Result<()> {
    remove_tree_with(path, USUAL_THREADS)
}

/// Removes the directory tree at `path`, or the file, with at most `threads` threads. A path where nothing is is fine.
///
/// Symbolic links are removed, never followed, and what replaces a directory by one meanwhile gains nothing: every step
/// goes by descriptor. Trees may be deeper than a path can be long. Small trees are removed by the caller's thread
/// alone.
///
/// No other mount is entered, not even at `path` itself: what a container still has mounted is not lost by tidying up.
///
/// # Errors
/// The first failure ends the removal, with what had not been removed by then left in place: [`Error::MountInside`]
/// names a mount point at or below `path`, with nothing of what is mounted there touched; [`Error::Io`] names any other
/// entry that could not be removed. What vanishes meanwhile is no failure.
pub fn remove_tree_with(path: impl AsRef<Path>, threads: NonZeroUsize) -> Result<()> {
    // `link/` would follow the link.
    let path = path.as_ref().components().as_path();
    let Some(name) = path.file_name() else { return Err(Error::io("remove", path)(Errno::INVAL)) };
    let name = walk::as_c_string(name).map_err(Error::io("remove", path))?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    match openat(CWD, parent, PATH.difference(OFlags::NOFOLLOW), Mode::empty()) {
        Ok(parent) => remove_at(parent.as_fd(), &name, path, threads),
        Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(Error::io("open", parent)(errno)),
    }
}

/// Removes `name` in `parent`, whose whole path is `path`.
pub(crate) fn remove_at(parent: BorrowedFd<'_>, name: &CStr, path: &Path, threads: NonZeroUsize) -> Result<()> {
    let above = Branch::root(AtomicBool::default());
    above.expect(1);
    let first = Branch::child(&above, name.into(), AtomicBool::default());
    run(parent, path.parent().unwrap_or(Path::new("")), first, threads)
}

/// Removes all that is in `root`, whose whole path is `path`.
pub(crate) fn empty(root: BorrowedFd<'_>, path: &Path, threads: NonZeroUsize) -> Result<()> {
    run(root, path, Branch::root(AtomicBool::default()), threads)
}

fn run(root: BorrowedFd<'_>, path: &Path, first: Arc<Branch>, threads: NonZeroUsize) -> Result<()> {
    let hire = || Remover { root, path, cursor: Cursor::new(READ), entries: Vec::with_capacity(ENTRIES_SIZE_BYTES) };
    work_queue::run(threads, first, hire, Remover::clear).map(drop)
}

/// A directory to remove. Noted is whether something has been removed from it since it was read last.
type Branch = Node<AtomicBool>;

/// One thread's means of work.
struct Remover<'a> {
    /// Where the nodes' paths begin.
    root: BorrowedFd<'a>,
    path: &'a Path,
    cursor: Cursor<AtomicBool>,
    entries: Vec<u8>,
}

impl Remover<'_> {
    /// Removes from one directory what is no directory, and itself with all above it that is empty by that. The
    /// directories in it go to `found`.
    fn clear(&mut self, branch: Arc<Branch>, found: &mut Vec<Arc<Branch>>) -> Result<()> {
        if dir(self.root, &mut self.cursor, &branch).map(drop) == Err(Errno::ACCESS) {
            self.let_in(&branch);
        }
        let Self { root, path, cursor, entries } = self;
        let path = *path;
        let dir = match dir(*root, cursor, &branch) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return self.finish(branch, AtFlags::REMOVEDIR, found),
            // A file at the path to remove, or one that has taken the place of a directory meanwhile.
            Err(Errno::NOTDIR | Errno::LOOP) if branch.parent().is_some() => {
                return self.finish(branch, AtFlags::empty(), found);
            }
            Err(errno) => return Err(failure("open", path, &branch, None, errno)),
        };
        match fstat(dir) {
            Ok(stat) => {
                branch.meet(&stat);
                let mode = Mode::from_raw_mode(stat.st_mode);
                if !mode.contains(Mode::RWXU) {
                    // If it cannot be done and matters, the entries cannot be removed either.
                    let _mattered_or_not = fchmod(dir, mode | Mode::RWXU);
                }
            }
            Err(errno) => return Err(failure("look at", path, &branch, None, errno)),
        }
        // It may have been read before.
        if let Err(errno) = seek(dir, SeekFrom::Start(0)) {
            return Err(failure("read", path, &branch, None, errno));
        }
        let children = found.len();
        let mut entries = RawDir::new(dir, entries.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                // The directory has been removed meanwhile.
                Err(Errno::NOENT) => break,
                Err(errno) => return Err(failure("read", path, &branch, None, errno)),
            };
            let name = entry.file_name();
            if walk::is_dots(name) {
                continue;
            }
            match walk::file_type(dir, &entry) {
                Ok(FileType::Directory) => found.push(Branch::child(&branch, name.into(), AtomicBool::default())),
                Ok(_) => match unlinkat(dir, name, AtFlags::empty()) {
                    Ok(()) => branch.note.store(true, Ordering::Relaxed),
                    Err(Errno::NOENT) => {}
                    Err(errno) => return Err(failure("remove", path, &branch, Some(name), errno)),
                },
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(failure("look at", path, &branch, Some(name), errno)),
            }
        }
        let children = found.len() - children;
        if children == 0 {
            return self.finish(branch, AtFlags::REMOVEDIR, found);
        }
        branch.expect(children);
        Ok(())
    }

    /// Removes a directory that should be empty, then its parent, if this was the last in it, and so on. `flags` say
    /// whether it is a directory at all.
    fn finish(&mut self, mut branch: Arc<Branch>, mut flags: AtFlags, found: &mut Vec<Arc<Branch>>) -> Result<()> {
        while let Some(parent) = branch.parent() {
            let removed = dir(self.root, &mut self.cursor, parent).and_then(|dir| unlinkat(dir, branch.name(), flags));
            match removed {
                Ok(()) => parent.note.store(true, Ordering::Relaxed),
                Err(Errno::NOENT) => {}
                // Entries that were not listed, since others were removed while it was read: FUSE and network file
                // systems. If nothing was removed, somebody else is making them.
                Err(Errno::NOTEMPTY | Errno::EXIST) if branch.note.swap(false, Ordering::Relaxed) => {
                    found.push(branch);
                    return Ok(());
                }
                Err(errno) => return Err(failure("remove", self.path, &branch, None, errno)),
            }
            if !parent.child_done() {
                break;
            }
            branch = Arc::clone(parent);
            flags = AtFlags::REMOVEDIR;
        }
        Ok(())
    }

    /// Gives the owner of a directory the permission to empty it, as root has anyway.
    fn let_in(&mut self, branch: &Arc<Branch>) {
        let Some(parent) = branch.parent() else { return };
        let opened = dir(self.root, &mut self.cursor, parent).and_then(|dir| open_in(dir, branch.name(), PATH));
        if let Ok(closed) = opened {
            // fchmod(2) takes no descriptor that was opened as a path only. If it fails, opening the directory fails
            // again.
            let _seen_later = chmod(format!("/proc/self/fd/{}", closed.as_raw_fd()), Mode::RWXU);
        }
    }
}

/// Opens a directory to read it.
fn dir<'a>(
    root: BorrowedFd<'a>,
    cursor: &'a mut Cursor<AtomicBool>,
    branch: &Arc<Branch>,
) -> rustix::io::Result<BorrowedFd<'a>> {
    match branch.parent() {
        Some(_) => cursor.go_either_way(branch, || Ok(root)),
        // Where it is the parent of what is to be removed, there need not be the permission to read it.
        None => Ok(root),
    }
}

/// The failure of a system call on a directory, or on `name` in it.
fn failure(operation: &'static str, root: &Path, branch: &Branch, name: Option<&CStr>, errno: Errno) -> Error {
    let mut path = root.join(branch.path());
    path.extend(name.map(as_os_str));
    match errno {
        // EXDEV: the way leads to another mount. EBUSY: a mount point is not removed.
        Errno::XDEV | Errno::BUSY => Error::MountInside { path },
        errno => Error::io(operation, path)(errno),
    }
}
