//! What one layer has for each name of a path. `lookup.rs` combines the layers.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Stat, fgetxattr, lgetxattr, openat, statat};
use rustix::io::Errno;

use super::EntryKind;
use crate::error::{Error, Result};
use crate::stack::overlayfs::{XattrNamespace, is_opaque, is_whiteout_device, is_whiteout_file};
use crate::tree::attributes::path_through_proc;
use crate::tree::walk::{READ, as_c_string, open_in};

/// One name of the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PathEntry {
    pub(super) kind: EntryKind,
    /// Whether a directory hides those below it.
    pub(super) is_opaque: bool,
}

/// What the layer has for each name of `path`, up to the last one that it has. No symbolic link is followed.
pub(super) fn layer_path(tree: &Path, path: &Path, xattrs: XattrNamespace) -> Result<Vec<PathEntry>> {
    let mut entries = Vec::new();
    let mut place: PathBuf = tree.components().collect();
    let mut dir = openat(CWD, &place, READ, Mode::empty()).map_err(|errno| match errno {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP => {
            Error::NotADirectory { path: place.clone(), expected: "a layer's tree" }
        }
        errno => Error::io("open", &place)(errno),
    })?;
    for name in path {
        place.push(name);
        let name = as_c_string(name).map_err(Error::io("look up", &place))?;
        let stat = match statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => break,
            Err(errno) => return Err(Error::io("look up", place)(errno)),
        };
        let kind = kind_of(dir.as_fd(), &name, &stat, xattrs, &place)?;
        if kind != EntryKind::Directory {
            entries.push(PathEntry { kind, is_opaque: false });
            break;
        }
        dir = open_in(dir.as_fd(), &name, READ).map_err(|errno| match errno {
            Errno::XDEV => Error::MountInside { path: place.clone() },
            errno => Error::io("open", &place)(errno),
        })?;
        entries.push(PathEntry { kind, is_opaque: hides_below(dir.as_fd(), xattrs, &place)? });
    }
    Ok(entries)
}

/// What `name` in `dir` is to overlayfs; its whole path is `place`.
pub(crate) fn kind_of(
    dir: BorrowedFd<'_>,
    name: &CStr,
    stat: &Stat,
    xattrs: XattrNamespace,
    place: &Path,
) -> Result<EntryKind> {
    let has = |xattr| match lgetxattr(path_through_proc(dir, name), xattr, &mut [0_u8; 0]) {
        Ok(_) | Err(Errno::RANGE) => Ok(true),
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(false),
        Err(errno) => Err(Error::io("read the extended attributes of", place)(errno)),
    };
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => EntryKind::Directory,
        FileType::Symlink => EntryKind::Symlink,
        FileType::RegularFile if is_whiteout_file(stat) && has(xattrs.whiteout())? => EntryKind::Whiteout,
        FileType::RegularFile if has(xattrs.metacopy())? => {
            return Err(Error::Unmergeable { path: place.into(), xattr: xattrs.metacopy() });
        }
        FileType::RegularFile => EntryKind::File,
        _ if is_whiteout_device(stat) => EntryKind::Whiteout,
        _ => EntryKind::Special,
    })
}

/// Whether an open directory hides those of its name below.
pub(crate) fn hides_below(dir: BorrowedFd<'_>, xattrs: XattrNamespace, place: &Path) -> Result<bool> {
    let mut value = [0; 2];
    let mut get = |xattr| match fgetxattr(dir, xattr, &mut value) {
        Ok(length) => Ok(Some(length)),
        // Longer than any value that means something.
        Err(Errno::RANGE) => Ok(Some(0)),
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
        Err(errno) => Err(Error::io("read the extended attributes of", place)(errno)),
    };
    if get(xattrs.redirect())?.is_some() {
        return Err(Error::Unmergeable { path: place.into(), xattr: xattrs.redirect() });
    }
    let length = get(xattrs.opaque())?;
    Ok(length.is_some_and(|length| is_opaque(&value[..length])))
}
