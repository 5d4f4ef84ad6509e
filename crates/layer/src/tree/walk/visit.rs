//! Visits every entry of a tree that the caller does not change. `tree/remove.rs` and
//! `capture/directory.rs` walk trees that they change.

use std::ffi::CStr;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{CWD, FileType, Mode, RawDir, Stat, fstat, openat};
use rustix::io::Errno;

use super::{Cursor, ENTRIES_SIZE_BYTES, Node, READ, as_os_str, file_type, is_dots, work_queue};
use crate::error::{Error, Result};

/// An entry of a tree.
pub(crate) enum Entry<'a> {
    /// The root of the tree.
    Root(&'a Stat),
    /// A directory below the root.
    Directory { dir: BorrowedFd<'a>, stat: &'a Stat },
    /// A directory below the root on which something else is mounted. The walk does not enter that
    /// mount.
    MountPoint,
    /// The file `name` in `dir`, of any type but a directory. The walk has not looked at it.
    File { dir: BorrowedFd<'a>, name: &'a CStr },
}

/// Calls `look` with each entry of the directory `tree`. Returns the workers, each with the data
/// that it has gathered.
///
/// Up to `threads` threads share the work. Each thread calls `new_worker` for its own state. The
/// walk skips an entry that vanishes concurrently, and `look` may return `NOENT` for such a file.
///
/// # Errors
/// [`Error::Io`] if `tree` is not a directory, or if a part of it cannot be read.
pub(crate) fn visit<W: Send>(
    tree: &Path,
    threads: NonZeroUsize,
    new_worker: impl Fn() -> W + Sync,
    look: impl Fn(&mut W, Entry<'_>) -> rustix::io::Result<()> + Sync,
) -> Result<Vec<W>> {
    let root = openat(CWD, tree, READ, Mode::empty()).map_err(Error::io("open", tree))?;
    let new_worker = || Visitor {
        tree,
        root: &root,
        cursor: Cursor::new(READ),
        entries: Vec::with_capacity(ENTRIES_SIZE_BYTES),
        look: &look,
        worker: new_worker(),
    };
    let visitors = work_queue::run(threads, [Node::root(())], new_worker, Visitor::read)?;
    Ok(visitors.into_iter().map(|visitor| visitor.worker).collect())
}

/// The state of one thread.
struct Visitor<'a, W, L> {
    tree: &'a Path,
    root: &'a OwnedFd,
    cursor: Cursor<()>,
    entries: Vec<u8>,
    look: &'a L,
    worker: W,
}

impl<W, L: Fn(&mut W, Entry<'_>) -> rustix::io::Result<()>> Visitor<'_, W, L> {
    /// Calls `look` with a directory and the files in it. Adds the directories in it to `found`.
    fn read(&mut self, node: Arc<Node<()>>, found: &mut Vec<Arc<Node<()>>>) -> Result<()> {
        let Self { tree, root, cursor, entries, look, worker } = self;
        let error = |operation, name: Option<&CStr>| {
            let mut path = tree.join(node.path());
            path.extend(name.map(as_os_str));
            Error::io(operation, path)
        };
        let dir = match cursor.go_either_way(&node, || Ok(root.as_fd())) {
            Ok(dir) => dir,
            // The directory has vanished, or another file has its name now.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            Err(Errno::XDEV) => {
                return look(worker, Entry::MountPoint).map_err(error("look at", None));
            }
            Err(errno) => return Err(error("open", None)(errno)),
        };
        let stat = fstat(dir).map_err(error("look at", None))?;
        node.set_identity(&stat);
        let entry = if node.parent().is_some() { Entry::Directory { dir, stat: &stat } } else { Entry::Root(&stat) };
        look(worker, entry).map_err(error("look at", None))?;
        let mut entries = RawDir::new(dir, entries.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                // The directory was removed while it was read.
                Err(Errno::NOENT) => break,
                Err(errno) => return Err(error("read", None)(errno)),
            };
            let name = entry.file_name();
            if is_dots(name) {
                continue;
            }
            let looked = match file_type(dir, &entry) {
                Ok(FileType::Directory) => {
                    found.push(Node::child(&node, name.into(), ()));
                    Ok(())
                }
                Ok(_) => look(worker, Entry::File { dir, name }),
                Err(errno) => Err(errno),
            };
            match looked {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(error("look at", Some(name))(errno)),
            }
        }
        Ok(())
    }
}
