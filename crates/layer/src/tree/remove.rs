//! Removes a directory tree, and nothing that is mounted in it. `walk.rs` says how trees are
//! walked.

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

/// Default number of threads of a removal, however few processors there are.
///
/// Removal mostly waits for the disk: freeing blocks waits where the file system discards
/// synchronously (ext4 with `discard` and without a journal), and so does reading a directory for
/// the first time. Where nothing waits, more threads than processors cost nothing.
pub(crate) const USUAL_THREADS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(7);

/// Removes the directory tree at `path`, or the file, with the usual options: [`Remove::run`].
///
/// # Errors
/// As [`Remove::run`].
pub fn remove_tree(path: impl AsRef<Path>) -> Result<()> {
    Remove::new().run(path)
}

/// Removes directory trees.
///
/// Symbolic links are removed, never followed. Every step goes by descriptor, so a process that
/// replaces a directory by a link concurrently gains nothing. Trees may be deeper than a path can
/// be long. The caller's thread removes small trees alone.
///
/// No other mount is entered, not even at `path` itself: a removal never deletes what a container
/// still has mounted.
#[derive(Debug, Clone)]
#[must_use = "it removes when `run` is called"]
pub struct Remove {
    threads: NonZeroUsize,
}

impl Default for Remove {
    fn default() -> Self {
        Self::new()
    }
}

impl Remove {
    /// At most eight threads.
    pub fn new() -> Self {
        Self { threads: USUAL_THREADS }
    }

    /// Works with at most `threads` threads.
    pub fn threads(mut self, threads: NonZeroUsize) -> Self {
        self.threads = threads;
        self
    }

    /// Removes the directory tree at `path`, or the file. It is not an error if `path` does not
    /// exist.
    ///
    /// # Errors
    /// The first failure ends the removal. What had not been removed by then is left in place.
    /// - [`Error::MountInside`] names a mount point at or below `path`. Nothing in the mount was
    ///   touched.
    /// - [`Error::Io`] names any other entry that could not be removed.
    ///
    /// It is not an error if an entry vanishes concurrently.
    pub fn run(&self, path: impl AsRef<Path>) -> Result<()> {
        // `link/` would follow the link.
        let path = path.as_ref().components().as_path();
        let Some(name) = path.file_name() else { return Err(Error::io("remove", path)(Errno::INVAL)) };
        let name = walk::as_c_string(name).map_err(Error::io("remove", path))?;
        let parent = walk::parent(path);
        match openat(CWD, parent, PATH.difference(OFlags::NOFOLLOW), Mode::empty()) {
            Ok(parent) => remove_at(parent.as_fd(), &name, path, self.threads),
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(Error::io("open", parent)(errno)),
        }
    }
}

/// Removes `name` in `parent`, whose whole path is `path`.
pub(crate) fn remove_at(parent: BorrowedFd<'_>, name: &CStr, path: &Path, threads: NonZeroUsize) -> Result<()> {
    let above = DirNode::root(AtomicBool::default());
    above.expect(1);
    let first = DirNode::child(&above, name.into(), AtomicBool::default());
    run(parent, path.parent().unwrap_or(Path::new("")), first, threads)
}

/// Removes all that is in `root`, whose whole path is `path`.
pub(crate) fn empty(root: BorrowedFd<'_>, path: &Path, threads: NonZeroUsize) -> Result<()> {
    run(root, path, DirNode::root(AtomicBool::default()), threads)
}

fn run(root: BorrowedFd<'_>, path: &Path, first: Arc<DirNode>, threads: NonZeroUsize) -> Result<()> {
    let new_worker =
        || Remover { root, path, cursor: Cursor::new(READ), entries: Vec::with_capacity(ENTRIES_SIZE_BYTES) };
    work_queue::run(threads, first, new_worker, Remover::clear).map(drop)
}

/// A directory to remove. Its state records whether an entry was removed since the directory was
/// last read.
type DirNode = Node<AtomicBool>;

/// The state of one thread.
struct Remover<'a> {
    /// Where the nodes' paths begin.
    root: BorrowedFd<'a>,
    path: &'a Path,
    cursor: Cursor<AtomicBool>,
    entries: Vec<u8>,
}

impl Remover<'_> {
    /// Removes a directory's non-directory entries. If that empties it, removes it and every
    /// ancestor that becomes empty in turn. Its directories are added to `found`.
    fn clear(&mut self, node: Arc<DirNode>, found: &mut Vec<Arc<DirNode>>) -> Result<()> {
        if dir(self.root, &mut self.cursor, &node).map(drop) == Err(Errno::ACCESS) {
            self.grant_access(&node);
        }
        let Self { root, path, cursor, entries } = self;
        let path = *path;
        let dir = match dir(*root, cursor, &node) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return self.finish(node, AtFlags::REMOVEDIR, found),
            // A file at the path to remove, or one that has replaced a directory concurrently.
            Err(Errno::NOTDIR | Errno::LOOP) if node.parent().is_some() => {
                return self.finish(node, AtFlags::empty(), found);
            }
            Err(errno) => return Err(failure("open", path, &node, None, errno)),
        };
        match fstat(dir) {
            Ok(stat) => {
                node.set_identity(&stat);
                let mode = Mode::from_raw_mode(stat.st_mode);
                if !mode.contains(Mode::RWXU) {
                    // If it cannot be done and matters, the entries cannot be removed either.
                    let _mattered_or_not = fchmod(dir, mode | Mode::RWXU);
                }
            }
            Err(errno) => return Err(failure("look at", path, &node, None, errno)),
        }
        // It may have been read before.
        if let Err(errno) = seek(dir, SeekFrom::Start(0)) {
            return Err(failure("read", path, &node, None, errno));
        }
        let children = found.len();
        let mut entries = RawDir::new(dir, entries.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                // Another process has removed the directory.
                Err(Errno::NOENT) => break,
                Err(errno) => return Err(failure("read", path, &node, None, errno)),
            };
            let name = entry.file_name();
            if walk::is_dots(name) {
                continue;
            }
            match walk::file_type(dir, &entry) {
                Ok(FileType::Directory) => found.push(DirNode::child(&node, name.into(), AtomicBool::default())),
                Ok(_) => match unlinkat(dir, name, AtFlags::empty()) {
                    Ok(()) => node.state.store(true, Ordering::Relaxed),
                    Err(Errno::NOENT) => {}
                    Err(errno) => return Err(failure("remove", path, &node, Some(name), errno)),
                },
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(failure("look at", path, &node, Some(name), errno)),
            }
        }
        let children = found.len() - children;
        if children == 0 {
            return self.finish(node, AtFlags::REMOVEDIR, found);
        }
        node.expect(children);
        Ok(())
    }

    /// Removes a directory that should be empty, then its parent if this was the last entry, and so
    /// on. `flags` say whether it is a directory at all.
    fn finish(&mut self, mut node: Arc<DirNode>, mut flags: AtFlags, found: &mut Vec<Arc<DirNode>>) -> Result<()> {
        while let Some(parent) = node.parent() {
            let removed = dir(self.root, &mut self.cursor, parent).and_then(|dir| unlinkat(dir, node.name(), flags));
            match removed {
                Ok(()) => parent.state.store(true, Ordering::Relaxed),
                Err(Errno::NOENT) => {}
                // FUSE and network file systems may not list an entry if others are removed while
                // the directory is read. If nothing was removed, another process is making entries.
                Err(Errno::NOTEMPTY | Errno::EXIST) if node.state.swap(false, Ordering::Relaxed) => {
                    found.push(node);
                    return Ok(());
                }
                Err(errno) => return Err(failure("remove", self.path, &node, None, errno)),
            }
            if !parent.child_done() {
                break;
            }
            node = Arc::clone(parent);
            flags = AtFlags::REMOVEDIR;
        }
        Ok(())
    }

    /// Gives the owner of a directory the permission to empty it. Root has it anyway.
    fn grant_access(&mut self, node: &Arc<DirNode>) {
        let Some(parent) = node.parent() else { return };
        let opened = dir(self.root, &mut self.cursor, parent).and_then(|dir| open_in(dir, node.name(), PATH));
        if let Ok(closed) = opened {
            // fchmod(2) takes no descriptor that was opened as a path only. If it fails, opening
            // the directory fails again.
            let _seen_later = chmod(format!("/proc/self/fd/{}", closed.as_raw_fd()), Mode::RWXU);
        }
    }
}

/// Opens a directory to read it.
fn dir<'a>(
    root: BorrowedFd<'a>,
    cursor: &'a mut Cursor<AtomicBool>,
    node: &Arc<DirNode>,
) -> rustix::io::Result<BorrowedFd<'a>> {
    match node.parent() {
        Some(_) => cursor.go_either_way(node, || Ok(root)),
        // Where it is the parent of what is to be removed, there need not be the permission to read
        // it.
        None => Ok(root),
    }
}

/// The failure of a system call on a directory, or on `name` in it.
fn failure(operation: &'static str, root: &Path, node: &DirNode, name: Option<&CStr>, errno: Errno) -> Error {
    let mut path = root.join(node.path());
    path.extend(name.map(as_os_str));
    match errno {
        // EXDEV: the way leads to another mount. EBUSY: a mount point is not removed.
        Errno::XDEV | Errno::BUSY => Error::MountInside { path },
        errno => Error::io(operation, path)(errno),
    }
}
