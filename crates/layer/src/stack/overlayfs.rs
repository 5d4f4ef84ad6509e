//! Decides what an entry of a layer is to overlayfs. This is the only file that recognises and
//! makes whiteouts, opaque directories and overlayfs's extended attributes. It looks at one entry
//! at a time; `merge`, `capture`, `view.rs`, `lookup.rs` and `conflicts.rs` walk the trees.
//!
//! The names are those of `fs/overlayfs/overlayfs.h`. `Documentation/filesystems/overlayfs.rst`
//! describes their meaning.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Stat, XattrFlags, fgetxattr, fsetxattr, getxattr, lgetxattr, llistxattr, lstat,
    mknodat, openat, statat,
};
use rustix::io::Errno;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::tree::walk::READ;
use crate::tree::xattr::{XattrList, path_through_proc};

/// The namespace of overlayfs's extended attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum XattrNamespace {
    /// `trusted.overlay.*`, for mounts by a privileged user. Only a process with CAP_SYS_ADMIN can
    /// read these attributes (xattr(7)). To any other process, an opaque directory looks like an
    /// ordinary one, and so shows what it hides. A tree that was [captured](crate::Capture) has no
    /// opaque directory.
    #[default]
    Trusted,
    /// `user.overlay.*`, for mounts with `userxattr`.
    User,
}

/// The names of the attributes in one namespace.
struct Names {
    prefix: &'static str,
    opaque: &'static str,
    whiteout: &'static str,
    origin: &'static str,
    redirect: &'static str,
    metacopy: &'static str,
}

const TRUSTED: Names = Names {
    prefix: "trusted.overlay.",
    opaque: "trusted.overlay.opaque",
    whiteout: "trusted.overlay.whiteout",
    origin: "trusted.overlay.origin",
    redirect: "trusted.overlay.redirect",
    metacopy: "trusted.overlay.metacopy",
};

const USER: Names = Names {
    prefix: "user.overlay.",
    opaque: "user.overlay.opaque",
    whiteout: "user.overlay.whiteout",
    origin: "user.overlay.origin",
    redirect: "user.overlay.redirect",
    metacopy: "user.overlay.metacopy",
};

impl XattrNamespace {
    pub(crate) fn other(self) -> Self {
        match self {
            XattrNamespace::Trusted => XattrNamespace::User,
            XattrNamespace::User => XattrNamespace::Trusted,
        }
    }

    fn names(self) -> &'static Names {
        match self {
            XattrNamespace::Trusted => &TRUSTED,
            XattrNamespace::User => &USER,
        }
    }

    /// Returns the attribute that makes a directory opaque. Its value `y` hides the directory of
    /// that name in the layers below.
    pub(crate) fn opaque(self) -> &'static str {
        self.names().opaque
    }

    /// Returns the attribute that makes an empty regular file a whiteout.
    pub(crate) fn whiteout(self) -> &'static str {
        self.names().whiteout
    }

    /// Returns the attribute that records where an entry was copied up from. On a directory it also
    /// means that the directory may have whiteouts, see [`set_has_whiteouts`].
    pub(crate) fn origin(self) -> &'static str {
        self.names().origin
    }

    /// Returns the attribute that records where the content of a directory is in the layers below.
    pub(crate) fn redirect(self) -> &'static str {
        self.names().redirect
    }

    /// Returns the attribute of a regular file whose content is in the layers below.
    pub(crate) fn metacopy(self) -> &'static str {
        self.names().metacopy
    }

    /// Returns whether overlayfs reserves the attribute `name` for itself, so that a mount does not
    /// show it.
    ///
    /// Overlayfs does not reserve `<prefix>overlay.*`. Under such a name, a layer stores an
    /// attribute that a mount shows as `<prefix>*`, for overlays in overlays.
    pub(crate) fn owns(self, name: &[u8]) -> bool {
        match name.strip_prefix(self.names().prefix.as_bytes()) {
            Some(rest) => !rest.starts_with(b"overlay."),
            None => false,
        }
    }
}

/// The kind of a layer's entry, as overlayfs sees it. In JSON it is `file`, `directory`, `symlink`,
/// `special` or `whiteout`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A fifo, a socket or a device.
    Special,
    /// A whiteout in either form: it hides everything of its name below, and is not shown itself.
    Whiteout,
}

impl EntryKind {
    /// Returns the kind of an entry that is not a whiteout.
    pub(crate) fn of(file_type: FileType) -> Self {
        match file_type {
            FileType::RegularFile => EntryKind::File,
            FileType::Directory => EntryKind::Directory,
            FileType::Symlink => EntryKind::Symlink,
            _ => EntryKind::Special,
        }
    }
}

/// An entry in a directory of a layer, with the attributes that the caller knows already.
#[derive(Clone, Copy)]
pub(crate) struct Entry<'a> {
    /// The directory, or the entry itself.
    pub(crate) dir: BorrowedFd<'a>,
    /// The name in it. Empty if `dir` is the entry.
    pub(crate) name: &'a CStr,
    /// The type, which may come from the directory itself.
    pub(crate) kind: FileType,
    /// The entry's attributes. Without them, [`classify`](Self::classify) reads them if it needs
    /// them.
    pub(crate) stat: Option<&'a Stat>,
    /// The list of extended attributes, needed only for a regular file. Without it, `classify`
    /// queries single attributes.
    pub(crate) names: Option<&'a XattrList>,
}

/// The reason why [`Entry::classify`] or [`hides_below`] cannot decide.
#[derive(Debug)]
pub(crate) enum Unclassified {
    /// The entry has this attribute, which makes sense only to the mount that wrote it.
    Unmergeable(&'static str),
    /// A system call failed.
    Failed(&'static str, Errno),
}

impl Unclassified {
    /// Returns the error about the entry, which is at `path`.
    pub(crate) fn at(self, path: impl Into<PathBuf>) -> Error {
        match self {
            Unclassified::Unmergeable(xattr) => Error::Unmergeable { path: path.into(), xattr },
            Unclassified::Failed(operation, errno) => Error::io(operation, path)(errno),
        }
    }
}

impl<'a> Entry<'a> {
    /// Makes the entry `name` of `dir`, whose attributes are `stat`.
    pub(crate) fn new(dir: BorrowedFd<'a>, name: &'a CStr, stat: &'a Stat) -> Self {
        Self { dir, name, kind: FileType::from_raw_mode(stat.st_mode), stat: Some(stat), names: None }
    }

    /// Makes the entry that is open as `file`, whose attributes are `stat`. `file` may have been
    /// opened with `O_PATH`.
    pub(crate) fn of_open(file: BorrowedFd<'a>, stat: &'a Stat) -> Self {
        Self::new(file, c"", stat)
    }

    /// Decides what the entry is to overlayfs, with as few system calls as possible.
    ///
    /// A whiteout has two forms. The first is a character device 0:0. The second is an empty
    /// regular file that has the [whiteout](XattrNamespace::whiteout) attribute. The kernel's
    /// lookup decides in the same way. The kernel's readdir omits the second form only in a
    /// directory whose opaque attribute is `x`. In any other directory it lists the name of such a
    /// whiteout, although a lookup does not find it.
    ///
    /// # Errors
    /// [`Unclassified::Unmergeable`] for a file that has the attribute `metacopy`: its content is
    /// in the layers below.
    pub(crate) fn classify(&self, xattrs: XattrNamespace) -> Result<EntryKind, Unclassified> {
        match self.kind {
            FileType::Directory => Ok(EntryKind::Directory),
            FileType::Symlink => Ok(EntryKind::Symlink),
            FileType::CharacterDevice if self.stat()?.st_rdev == 0 => Ok(EntryKind::Whiteout),
            FileType::RegularFile if self.is_whiteout_file(xattrs)? => Ok(EntryKind::Whiteout),
            FileType::RegularFile if self.has(xattrs.metacopy())? => Err(Unclassified::Unmergeable(xattrs.metacopy())),
            FileType::RegularFile => Ok(EntryKind::File),
            _ => Ok(EntryKind::Special),
        }
    }

    fn is_whiteout_file(&self, xattrs: XattrNamespace) -> Result<bool, Unclassified> {
        // Check first what needs no system call.
        match self.names {
            Some(names) => Ok(names.has(xattrs.whiteout()) && self.stat()?.st_size == 0),
            None => Ok(self.stat()?.st_size == 0 && self.has(xattrs.whiteout())?),
        }
    }

    fn stat(&self) -> Result<Stat, Unclassified> {
        let read = || statat(self.dir, self.name, AtFlags::SYMLINK_NOFOLLOW);
        self.stat.copied().map_or_else(read, Ok).map_err(|errno| Unclassified::Failed("look at", errno))
    }

    fn has(&self, xattr: &'static str) -> Result<bool, Unclassified> {
        match self.names {
            Some(names) => Ok(names.has(xattr)),
            None => {
                let (path, value) = (path_through_proc(self.dir, self.name), &mut [0_u8; 0]);
                exists(if self.name.is_empty() { getxattr(path, xattr, value) } else { lgetxattr(path, xattr, value) })
            }
        }
    }
}

/// Returns whether an open directory hides the directories of its name in the layers below. `names`
/// lists its extended attributes, if they are known.
///
/// Must not be called for the root of a layer, where the kernel looks at neither attribute.
///
/// # Errors
/// [`Unclassified::Unmergeable`] for a directory that has the attribute `redirect`: its content is
/// elsewhere in the layers below.
pub(crate) fn hides_below(
    dir: BorrowedFd<'_>,
    names: Option<&XattrList>,
    xattrs: XattrNamespace,
) -> Result<bool, Unclassified> {
    let has = |xattr| match names {
        Some(names) => Ok(names.has(xattr)),
        None => exists(fgetxattr(dir, xattr, &mut [0_u8; 0])),
    };
    if has(xattrs.redirect())? {
        return Err(Unclassified::Unmergeable(xattrs.redirect()));
    }
    let unknown_or_marked = names.is_none_or(|names| names.has(xattrs.opaque()));
    Ok(unknown_or_marked && is_opaque_dir(dir, xattrs).map_err(|errno| Unclassified::Failed(READ_XATTRS, errno))?)
}

/// Returns whether an open directory is opaque.
pub(crate) fn is_opaque_dir(dir: BorrowedFd<'_>, xattrs: XattrNamespace) -> rustix::io::Result<bool> {
    let mut value = [0; 2];
    match fgetxattr(dir, xattrs.opaque(), &mut value) {
        Ok(length) => Ok(is_opaque_value(&value[..length])),
        // RANGE: the value is longer than any that has a meaning.
        Err(Errno::NODATA | Errno::NOTSUP | Errno::RANGE) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Returns whether the value of [opaque](XattrNamespace::opaque) makes a directory opaque: one
/// byte, `y`. (`x` marks a directory that has whiteouts in their second form.)
fn is_opaque_value(value: &[u8]) -> bool {
    value == b"y"
}

const READ_XATTRS: &str = "read the extended attributes of";

/// Returns whether an attribute exists, given the result of reading it.
fn exists(read: rustix::io::Result<usize>) -> Result<bool, Unclassified> {
    match read {
        Ok(_) | Err(Errno::RANGE) => Ok(true),
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(false),
        Err(errno) => Err(Unclassified::Failed(READ_XATTRS, errno)),
    }
}

/// Returns whether the file at `path` is a whiteout. A program can use it to check what a mount has
/// written into its upper.
///
/// # Errors
/// [`Error::Io`] if the file cannot be looked at, [`Error::Unmergeable`] if it has the attribute
/// `metacopy`.
pub fn is_whiteout(path: impl AsRef<Path>, xattrs: XattrNamespace) -> Result<bool> {
    let path = path.as_ref();
    let stat = lstat(path).map_err(Error::io("look at", path))?;
    let mut names = XattrList::default();
    names.read(|buffer| llistxattr(path, buffer)).map_err(Error::io("list the extended attributes of", path))?;
    let entry = Entry { names: Some(&names), ..Entry::new(CWD, c"", &stat) };
    Ok(entry.classify(xattrs).map_err(|why| why.at(path))? == EntryKind::Whiteout)
}

/// Returns whether the directory at `path` is opaque, so that it hides everything of its name in
/// the layers below. A program can use it to check what a mount has written into its upper.
///
/// # Errors
/// [`Error::Io`] if it is not a directory or cannot be read.
pub fn is_opaque(path: impl AsRef<Path>, xattrs: XattrNamespace) -> Result<bool> {
    let path = path.as_ref();
    let dir = openat(CWD, path, READ, Mode::empty()).map_err(Error::io("open", path))?;
    is_opaque_dir(dir.as_fd(), xattrs).map_err(Error::io(READ_XATTRS, path))
}

/// Makes the whiteout `name` in `dir`. It has the first form, which needs no privilege and no
/// attribute on the directory.
pub(crate) fn make_whiteout(dir: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<()> {
    mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0)
}

/// Makes the directory opaque.
pub(crate) fn set_opaque(dir: BorrowedFd<'_>, namespace: XattrNamespace) -> rustix::io::Result<()> {
    fsetxattr(dir, namespace.names().opaque, b"y", XattrFlags::empty())
}

/// Makes the kernel look for whiteouts in the directory when it lists it, even if no other layer
/// has that directory.
///
/// Without the attribute, `ovl_get_inode` assumes that the directory has no whiteouts. The kernel
/// then lists their names, although they cannot be found. An empty origin means "copied up from an
/// unknown place".
pub(crate) fn set_has_whiteouts(dir: BorrowedFd<'_>, namespace: XattrNamespace) -> rustix::io::Result<()> {
    fsetxattr(dir, namespace.names().origin, b"", XattrFlags::empty())
}

/// Marks the directory as [`set_has_whiteouts`] does, for mounts that use the other namespace, if
/// this process may write to it. Ordinary users may not write to `trusted.`, so their layers list
/// correctly only in mounts with `userxattr`.
///
/// In the other namespace, the command itself may have set the attribute. Its value then stays.
pub(crate) fn set_has_whiteouts_elsewhere(dir: BorrowedFd<'_>, namespace: XattrNamespace) -> rustix::io::Result<()> {
    match fsetxattr(dir, namespace.other().names().origin, b"", XattrFlags::CREATE) {
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::EXIST) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlayfs_owns_its_prefix_but_not_the_xattrs_of_an_overlay_inside() {
        for (name, trusted, user) in [
            ("trusted.overlay.opaque", true, false),
            ("trusted.overlay.anything", true, false),
            ("trusted.overlay.", true, false),
            ("trusted.overlay.overlay.opaque", false, false),
            ("trusted.overlay", false, false),
            ("trusted.overlayed", false, false),
            ("user.overlay.redirect", false, true),
            ("user.overlay.overlay.redirect", false, false),
            ("user.comment", false, false),
            ("system.posix_acl_access", false, false),
        ] {
            assert_eq!(XattrNamespace::Trusted.owns(name.as_bytes()), trusted, "{name}");
            assert_eq!(XattrNamespace::User.owns(name.as_bytes()), user, "{name}");
        }
    }

    #[test]
    fn only_the_value_y_is_opaque() {
        assert!(is_opaque_value(b"y"));
        for value in [&b""[..], b"n", b"x", b"Y", b"yes"] {
            assert!(!is_opaque_value(value), "{}", value.escape_ascii());
        }
    }

    #[test]
    fn an_entry_has_the_same_kind_whether_its_attributes_are_known_or_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for (name, content, xattr) in [
            ("file", "", None),
            ("marked", "", Some("user.overlay.whiteout")),
            ("marked-and-full", "x", Some("user.overlay.whiteout")),
            ("other", "", Some("trusted.overlay.whiteout")),
            ("metacopy", "x", Some("user.overlay.metacopy")),
        ] {
            std::fs::write(path(name), content).unwrap();
            let set = xattr.map(|xattr| rustix::fs::setxattr(path(name), xattr, b"", XattrFlags::empty()));
            // Only root may set a `trusted` attribute. The file is a plain file with it and without
            // it.
            assert!(set.is_none_or(|set| set.is_ok()) || name == "other", "{name}");
        }
        std::fs::create_dir(path("dir")).unwrap();
        std::os::unix::fs::symlink("file", path("link")).unwrap();
        mknodat(CWD, path("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        mknodat(CWD, path("device"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        let open = openat(CWD, dir.path(), READ, Mode::empty()).unwrap();
        for (name, expected) in [
            (c"file", Some(EntryKind::File)),
            (c"marked", Some(EntryKind::Whiteout)),
            (c"marked-and-full", Some(EntryKind::File)),
            (c"other", Some(EntryKind::File)),
            (c"metacopy", None),
            (c"dir", Some(EntryKind::Directory)),
            (c"link", Some(EntryKind::Symlink)),
            (c"fifo", Some(EntryKind::Special)),
            (c"device", Some(EntryKind::Whiteout)),
        ] {
            let stat = statat(&open, name, AtFlags::SYMLINK_NOFOLLOW).unwrap();
            let mut names = XattrList::default();
            names.read(|buffer| llistxattr(path(name.to_str().unwrap()), buffer)).unwrap();
            let read = Entry::new(open.as_fd(), name, &stat);
            let listed = Entry { stat: None, names: Some(&names), ..read };
            for entry in [read, listed] {
                match (entry.classify(XattrNamespace::User), expected) {
                    (Ok(kind), Some(expected)) => assert_eq!(kind, expected, "{name:?}"),
                    (Err(Unclassified::Unmergeable(xattr)), None) => assert_eq!(xattr, "user.overlay.metacopy"),
                    (other, _) => panic!("{name:?}: {other:?}"),
                }
            }
            let is_whiteout = is_whiteout(path(name.to_str().unwrap()), XattrNamespace::User);
            assert_eq!(is_whiteout.ok(), expected.map(|kind| kind == EntryKind::Whiteout), "{name:?}");
        }
    }

    #[test]
    fn a_value_longer_than_y_is_not_opaque() {
        let dir = tempfile::tempdir().unwrap();
        for (value, expected) in [(&b"y"[..], true), (b"x", false), (b"yes", false)] {
            rustix::fs::setxattr(dir.path(), "user.overlay.opaque", value, XattrFlags::empty()).unwrap();
            let names = XattrList::of(openat(CWD, dir.path(), READ, Mode::empty()).unwrap().as_fd()).unwrap();
            let open = openat(CWD, dir.path(), READ, Mode::empty()).unwrap();
            for names in [None, Some(&names)] {
                assert_eq!(hides_below(open.as_fd(), names, XattrNamespace::User).unwrap(), expected);
            }
            assert_eq!(is_opaque(&dir, XattrNamespace::User).unwrap(), expected);
        }
        assert!(!is_opaque(&dir, XattrNamespace::Trusted).unwrap());
    }
}
