//! Removes a directory tree, but nothing that is mounted in it. `walk.rs` describes how trees are
//! walked.

use std::ffi::CStr;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RawDir, SeekFrom, chmod, fchmod, fstat, openat, seek, unlinkat,
};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::tree::walk::work_queue::{self, Threads};
use crate::tree::walk::{self, Cursor, ENTRIES_SIZE_BYTES, Node, PATH, READ, as_os_str, open_in};

/// The default number of threads of a removal, however few processors there are.
///
/// A removal mostly waits for the disk. Freeing blocks waits where the file system discards
/// synchronously (ext4 with `discard` and without a journal). Reading a directory for the first
/// time waits, too. Where nothing waits, more threads than processors cost nothing.
pub(crate) const USUAL_THREADS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(7);

/// Removes the directory tree or the file at `path` with the default options, see [`Remove::run`].
///
/// # Errors
/// The errors of [`Remove::run`].
pub fn remove_tree(path: impl AsRef<Path>) -> Result<()> {
    Remove::new().run(path)
}

/// A builder for the removal of a directory tree.
///
/// Symbolic links are removed, never followed. Every step uses descriptors, so a process gains
/// nothing by replacing a directory with a link concurrently. Trees may be deeper than a path can
/// be long. The caller's thread removes small trees alone.
///
/// A removal enters no other mount, not even one at `path` itself. It therefore never deletes files
/// that a container still has mounted.
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
    /// Returns a removal with at most eight threads.
    pub fn new() -> Self {
        Self { threads: USUAL_THREADS }
    }

    /// Works with at most `threads` threads.
    pub fn threads(mut self, threads: NonZeroUsize) -> Self {
        self.threads = threads;
        self
    }

    /// Removes the directory tree or the file at `path`. It is not an error if `path` does not
    /// exist.
    ///
    /// # Errors
    /// The first failure ends the removal. Everything that is not removed by then is left in place.
    /// - [`Error::MountInside`] names a mount point at or below `path`. Nothing in the mount was
    ///   touched.
    /// - [`Error::Io`] names any other entry that could not be removed.
    ///
    /// It is not an error if an entry vanishes concurrently.
    pub fn run(&self, path: impl AsRef<Path>) -> Result<()> {
        // With `link/`, the kernel would follow the link.
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

/// Removes `name` in `parent`. `path` is the whole path of `name`.
pub(crate) fn remove_at(parent: BorrowedFd<'_>, name: &CStr, path: &Path, threads: impl Into<Threads>) -> Result<()> {
    let failed = remove_all(parent, path.parent().unwrap_or(Path::new("")), [name], threads, &|| ());
    failed.into_iter().next().map_or(Ok(()), Err)
}

/// Removes the entries `names` of `parent`, which has the path `path`, by threads that share all of
/// the work. A failure ends the removal of one entry only. Returns the errors, at most one for each
/// entry. Calls `removed` after each entry that is removed.
pub(crate) fn remove_all<'a>(
    parent: BorrowedFd<'_>,
    path: &Path,
    names: impl IntoIterator<Item = &'a CStr>,
    threads: impl Into<Threads>,
    removed: &(dyn Fn() + Sync),
) -> Vec<Error> {
    let above = DirNode::root(State::new(0));
    let entry = |(number, name): (usize, &CStr)| DirNode::child(&above, name.into(), State::new(number));
    let mut first: Vec<_> = names.into_iter().enumerate().map(entry).collect();
    // The queue begins with the last one.
    first.reverse();
    above.expect(first.len());
    let failures: Vec<OnceLock<Error>> = first.iter().map(|_| OnceLock::new()).collect();
    let clear = |remover: &mut Remover<'_>, node: Arc<DirNode>, found: &mut Vec<Arc<DirNode>>| {
        let failure = &failures[node.state.entry];
        if failure.get().is_none() {
            if let Err(error) = remover.clear(node, found) {
                // Another thread's error in the same entry usually has the same cause.
                let _first_one_counts = failure.set(error);
            }
        }
        Ok(())
    };
    let ended = work_queue::run(threads, first, || Remover::new(parent, path, removed), clear);
    failures.into_iter().filter_map(OnceLock::into_inner).chain(ended.err()).collect()
}

/// Removes everything in `root`. `path` is the whole path of `root`.
pub(crate) fn empty(root: BorrowedFd<'_>, path: &Path, threads: impl Into<Threads>) -> Result<()> {
    let new_worker = || Remover::new(root, path, &|| ());
    work_queue::run(threads, [DirNode::root(State::new(0))], new_worker, Remover::clear).map(drop)
}

/// A directory to remove.
type DirNode = Node<State>;

#[derive(Debug)]
struct State {
    /// The number of the entry, among those to remove, that this directory is or lies in.
    entry: usize,
    /// Whether an entry was removed since the directory was last read.
    removed: AtomicBool,
    /// Whether the directory must be read again.
    again: AtomicBool,
}

impl State {
    fn new(entry: usize) -> Self {
        Self { entry, removed: AtomicBool::default(), again: AtomicBool::default() }
    }
}

/// The state of one thread.
struct Remover<'a> {
    /// The directory in which the paths of the nodes start.
    root: BorrowedFd<'a>,
    path: &'a Path,
    cursor: Cursor<State>,
    entries: Vec<u8>,
    /// Called after each entry of the root that is removed.
    removed: &'a (dyn Fn() + Sync),
}

impl<'a> Remover<'a> {
    fn new(root: BorrowedFd<'a>, path: &'a Path, removed: &'a (dyn Fn() + Sync)) -> Self {
        Self { root, path, cursor: Cursor::new(READ), entries: Vec::with_capacity(ENTRIES_SIZE_BYTES), removed }
    }

    /// Removes a directory's entries that are not directories. If that empties the directory,
    /// removes it and every ancestor that becomes empty in turn. Adds the directories in it to
    /// `found`.
    fn clear(&mut self, node: Arc<DirNode>, found: &mut Vec<Arc<DirNode>>) -> Result<()> {
        if dir(self.root, &mut self.cursor, &node).map(drop) == Err(Errno::ACCESS) {
            self.grant_access(&node);
        }
        let Self { root, path, cursor, entries, .. } = self;
        let path = *path;
        let dir = match dir(*root, cursor, &node) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return self.finish(node, AtFlags::REMOVEDIR, found),
            // This is a file at the path to remove, or a file that has replaced a directory
            // concurrently.
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
                    // If this fails and the permission is needed, removing the entries fails as
                    // well.
                    let _mattered_or_not = fchmod(dir, mode | Mode::RWXU);
                }
            }
            Err(errno) => return Err(failure("look at", path, &node, None, errno)),
        }
        // The caller may have read from the root.
        if node.parent().is_none() || node.state.again.load(Ordering::Relaxed) {
            if let Err(errno) = seek(dir, SeekFrom::Start(0)) {
                return Err(failure("read", path, &node, None, errno));
            }
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
                Ok(FileType::Directory) => {
                    found.push(DirNode::child(&node, name.into(), State::new(node.state.entry)));
                }
                Ok(_) => match unlinkat(dir, name, AtFlags::empty()) {
                    Ok(()) => node.state.removed.store(true, Ordering::Relaxed),
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

    /// Removes a directory that should be empty. If it was the last entry of its parent, removes
    /// the parent, and so on. `flags` say whether the first node is a directory at all.
    fn finish(&mut self, mut node: Arc<DirNode>, mut flags: AtFlags, found: &mut Vec<Arc<DirNode>>) -> Result<()> {
        while let Some(parent) = node.parent() {
            let removed = dir(self.root, &mut self.cursor, parent).and_then(|dir| unlinkat(dir, node.name(), flags));
            match removed {
                Ok(()) => parent.state.removed.store(true, Ordering::Relaxed),
                Err(Errno::NOENT) => {}
                // FUSE and network file systems may not list an entry if others are removed while
                // the directory is read: then it is read again. If nothing was removed, another
                // process is making entries.
                Err(Errno::NOTEMPTY | Errno::EXIST) if node.state.removed.swap(false, Ordering::Relaxed) => {
                    node.state.again.store(true, Ordering::Relaxed);
                    found.push(node);
                    return Ok(());
                }
                Err(errno) => return Err(failure("remove", self.path, &node, None, errno)),
            }
            if parent.parent().is_none() {
                (self.removed)();
            }
            if !parent.child_done() {
                break;
            }
            node = Arc::clone(parent);
            flags = AtFlags::REMOVEDIR;
        }
        Ok(())
    }

    /// Gives the owner of a directory the permission to empty it. Root has that permission anyway.
    fn grant_access(&mut self, node: &Arc<DirNode>) {
        let Some(parent) = node.parent() else { return };
        let opened = dir(self.root, &mut self.cursor, parent).and_then(|dir| open_in(dir, node.name(), PATH));
        if let Ok(closed) = opened {
            // fchmod(2) takes no descriptor that was opened with O_PATH. If chmod(2) fails, opening
            // the directory fails again.
            let _seen_later = chmod(format!("/proc/self/fd/{}", closed.as_raw_fd()), Mode::RWXU);
        }
    }
}

/// Opens a directory to read it.
fn dir<'a>(
    root: BorrowedFd<'a>,
    cursor: &'a mut Cursor<State>,
    node: &Arc<DirNode>,
) -> rustix::io::Result<BorrowedFd<'a>> {
    match node.parent() {
        Some(_) => cursor.go_either_way(node, || Ok(root)),
        // The root may be the parent of the tree to remove, which this process need not have the
        // permission to read.
        None => Ok(root),
    }
}

/// Returns the error of a failed system call on a directory, or on `name` in it.
fn failure(operation: &'static str, root: &Path, node: &DirNode, name: Option<&CStr>, errno: Errno) -> Error {
    let mut path = root.join(node.path());
    path.extend(name.map(as_os_str));
    match errno {
        // EXDEV: the path leads to another mount. EBUSY: the entry is a mount point.
        Errno::XDEV | Errno::BUSY => Error::MountInside { path },
        errno => Error::io(operation, path)(errno),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::fs;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn a_failure_with_one_entry_leaves_only_that_one() {
        for threads in 1..=4 {
            let dir = tempfile::tempdir().unwrap();
            // No file has such a name.
            let mut names = vec![CString::default(); 20];
            names[7] = CString::new("n".repeat(256)).unwrap();
            for (number, name) in names.iter_mut().enumerate().filter(|(number, _)| *number != 7) {
                *name = CString::new(number.to_string()).unwrap();
                fs::create_dir_all(dir.path().join(as_os_str(name)).join("a/b")).unwrap();
                (0..30).for_each(|n| fs::write(dir.path().join(as_os_str(name)).join(format!("a/{n}")), "").unwrap());
            }
            fs::write(dir.path().join("stays"), "").unwrap();
            let parent = openat(CWD, dir.path(), READ, Mode::empty()).unwrap();
            let removed = AtomicUsize::new(0);
            let count = || {
                removed.fetch_add(1, Ordering::Relaxed);
            };
            let threads = NonZeroUsize::new(threads).unwrap();
            let names = names.iter().map(|name| &**name);
            let failed = remove_all(parent.as_fd(), dir.path(), names, threads, &count);
            assert!(matches!(&*failed, [Error::Io { operation: "open", .. }]), "{failed:?}");
            assert_eq!(removed.into_inner(), 19);
            let left: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(left, ["stays"]);
        }
    }
}
