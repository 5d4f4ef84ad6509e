//! Resolves a path in a stack, through the symbolic links on the way. `view.rs` decides what the
//! stack shows in one directory.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, fstat, readlinkat};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::stack::overlayfs::EntryKind;
use crate::stack::view::{Directory, Shown, View};
use crate::tree::walk::LONGEST_PATH;

/// The maximum number of symbolic links on the way to a path (`MAXSYMLINKS` in the kernel).
const MOST_LINKS: usize = 40;

/// The treatment of a symbolic link that is the last name of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LastLink {
    Followed,
    NotFollowed,
}

/// The entry at the end of a path.
#[derive(Debug)]
pub(crate) enum Resolved {
    Directory(Directory),
    /// An entry that is not a directory, opened without access to its content.
    File {
        /// The path below the root of the stack, without links on the way.
        path: PathBuf,
        tree: usize,
        kind: EntryKind,
        file: OwnedFd,
    },
}

/// Resolves `path` as the kernel does in a root file system: `..` at the root is the root, and an
/// absolute link starts there again. The empty path is the root.
///
/// # Errors
/// [`Error::Io`] names `path`, with the kernel's error, if the stack shows nothing there. The other
/// errors are those of [`View::child`] and [`View::pin`].
pub(crate) fn resolve(view: &View, path: &Path, last: LastLink) -> Result<Resolved> {
    let fail = |errno: Errno| Error::io("find the stack's", path)(errno);
    if path.as_os_str().len() > LONGEST_PATH {
        return Err(fail(Errno::NAMETOOLONG));
    }
    let root = view.root();
    // The directories on the way, below the root.
    let mut way: Vec<Directory> = Vec::new();
    // The names that are still to come, the next one last.
    let mut names = Vec::new();
    push_names(&mut names, path.as_os_str());
    let mut links = 0;
    while let Some(name) = names.pop() {
        match name.as_bytes() {
            b"." => continue,
            b".." => {
                way.pop();
                continue;
            }
            _ => {}
        }
        let directory = way.last().unwrap_or(&root);
        let tree = match view.child(directory, &name)? {
            None => return Err(fail(Errno::NOENT)),
            // Links could lead deeper. The limit bounds the memory and the work that a hostile layer
            // can cost.
            Some(Shown::Directory(directory)) if directory.path().as_os_str().len() > LONGEST_PATH => {
                return Err(fail(Errno::NAMETOOLONG));
            }
            Some(Shown::Directory(directory)) => {
                way.push(directory);
                continue;
            }
            Some(Shown::File(tree)) => tree,
        };
        let file = view.pin(tree, directory, &name)?;
        let path = directory.path().join(&name);
        let place = || view.path(tree).join(&path);
        let stat = fstat(&file).map_err(Error::io("look at", place()))?;
        let kind = EntryKind::of(FileType::from_raw_mode(stat.st_mode));
        if kind == EntryKind::Directory {
            // Another process has just replaced the entry.
            return Err(Error::io("open", place())(Errno::STALE));
        }
        if kind == EntryKind::Symlink && (last == LastLink::Followed || !names.is_empty()) {
            links += 1;
            if links > MOST_LINKS {
                return Err(fail(Errno::LOOP));
            }
            let target = readlinkat(&file, c"", Vec::new()).map_err(Error::io("read the link", place()))?;
            if target.to_bytes().starts_with(b"/") {
                way.clear();
            }
            push_names(&mut names, OsStr::from_bytes(target.to_bytes()));
        } else if names.is_empty() {
            return Ok(Resolved::File { path, tree, kind, file });
        } else {
            return Err(fail(Errno::NOTDIR));
        }
    }
    Ok(Resolved::Directory(way.pop().unwrap_or(root)))
}

/// Adds the names of `path`, the first one last. A slash at the end of `path` stands for `/.`: the
/// path must lead to a directory.
fn push_names(names: &mut Vec<OsString>, path: &OsStr) {
    let bytes = path.as_bytes();
    names.extend(bytes.ends_with(b"/").then(|| ".".into()));
    let parts = bytes.split(|byte| *byte == b'/').rev().filter(|name| !name.is_empty());
    names.extend(parts.map(|name| OsStr::from_bytes(name).to_owned()));
}
