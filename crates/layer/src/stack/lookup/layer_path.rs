//! Finds what one layer has for each name of a path. `lookup.rs` combines the layers.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, statat};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::stack::overlayfs::{self, Entry, EntryKind, XattrNamespace};
use crate::stack::sources::open_root;
use crate::tree::walk::{READ, as_c_string, open_in};

/// The entry of a layer for one name of the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PathEntry {
    pub(super) kind: EntryKind,
    /// Whether the entry is a directory that hides the directories of its name below.
    pub(super) is_opaque: bool,
}

/// Returns the layer's entry for each name of `path`, up to the first that is missing or is not a
/// directory. An entry that is not a directory is the last one returned. Follows no symbolic link.
pub(super) fn layer_path(tree: &Path, path: &Path, xattrs: XattrNamespace) -> Result<Vec<PathEntry>> {
    let mut entries = Vec::new();
    let mut place: PathBuf = tree.components().collect();
    let mut dir = open_root(CWD, &place, READ)?;
    for name in path {
        place.push(name);
        let name = as_c_string(name).map_err(Error::io("look up", &place))?;
        let stat = match statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => break,
            Err(errno) => return Err(Error::io("look up", place)(errno)),
        };
        let kind = Entry::new(dir.as_fd(), &name, &stat).classify(xattrs).map_err(|why| why.at(&place))?;
        if kind != EntryKind::Directory {
            entries.push(PathEntry { kind, is_opaque: false });
            break;
        }
        dir = open_in(dir.as_fd(), &name, READ).map_err(|errno| match errno {
            Errno::XDEV => Error::MountInside { path: place.clone() },
            errno => Error::io("open", &place)(errno),
        })?;
        let is_opaque = overlayfs::hides_below(dir.as_fd(), None, xattrs).map_err(|why| why.at(&place))?;
        entries.push(PathEntry { kind, is_opaque });
    }
    Ok(entries)
}
