//! What overlayfs writes into the directories of its layers: whiteouts, opaque directories, extended attributes. Recognises and
//! makes them, one file at a time; `merge` and `capture` walk the trees.
//!
//! The names are those of `fs/overlayfs/overlayfs.h`; what they mean is in `Documentation/filesystems/overlayfs.rst`.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, Mode, Stat, XattrFlags, fsetxattr, mknodat};

/// Where overlayfs keeps its extended attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum XattrNamespace {
    /// `trusted.overlay.*`, of mounts by a privileged user.
    #[default]
    Trusted,
    /// `user.overlay.*`, of mounts with `userxattr`.
    User,
}

/// The names of one namespace.
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
    fn names(self) -> &'static Names {
        match self {
            XattrNamespace::Trusted => &TRUSTED,
            XattrNamespace::User => &USER,
        }
    }

    /// On a directory: `y` hides the directory of that name in the layers below.
    pub(crate) fn opaque(self) -> &'static str {
        self.names().opaque
    }

    /// On an empty regular file: makes it a whiteout.
    pub(crate) fn whiteout(self) -> &'static str {
        self.names().whiteout
    }

    /// On anything that was copied up: where it was found. On a directory also that it may have whiteouts, see
    /// [`set_has_whiteouts`].
    pub(crate) fn origin(self) -> &'static str {
        self.names().origin
    }

    /// On a directory: where its content is in the layers below.
    pub(crate) fn redirect(self) -> &'static str {
        self.names().redirect
    }

    /// On a regular file: its content is in the layers below.
    pub(crate) fn metacopy(self) -> &'static str {
        self.names().metacopy
    }

    /// Whether overlayfs keeps the attribute `name` for itself, so that a mount does not show it.
    ///
    /// `<prefix>overlay.*` is not kept: it is how a layer stores what a mount shows as `<prefix>*`, for overlays in
    /// overlays.
    pub(crate) fn owns(self, name: &[u8]) -> bool {
        match name.strip_prefix(self.names().prefix.as_bytes()) {
            Some(rest) => !rest.starts_with(b"overlay."),
            None => false,
        }
    }
}

/// Whether the file is a whiteout in its first form, a character device 0:0.
pub(crate) fn is_whiteout_device(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Whether the file, which carries the [whiteout](XattrNamespace::whiteout) attribute, is a whiteout in its second
/// form.
///
/// So says the kernel's lookup. Its readdir leaves these out only where the directory is marked with opaque `x`;
/// anywhere else they are listed and cannot be found.
pub(crate) fn is_whiteout_file(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_size == 0
}

/// Makes the whiteout `name` in `dir`, in the first form, which needs no privilege and no attribute on the directory.
pub(crate) fn make_whiteout(dir: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<()> {
    mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0)
}

/// Whether the value of [opaque](XattrNamespace::opaque) hides what is below: one byte, `y`. (`x` says that the
/// directory has whiteouts in their second form.)
pub(crate) fn is_opaque(value: &[u8]) -> bool {
    value == b"y"
}

/// Makes the directory hide what is below it.
pub(crate) fn set_opaque(dir: BorrowedFd<'_>, namespace: XattrNamespace) -> rustix::io::Result<()> {
    fsetxattr(dir, namespace.names().opaque, b"y", XattrFlags::empty())
}

/// Makes the kernel look for whiteouts in the directory when it lists it, even where no other layer has that directory.
///
/// Without it, `ovl_get_inode` takes the directory for one without whiteouts, and their names are listed but cannot be
/// found. An empty origin says "copied up, from where is not known".
pub(crate) fn set_has_whiteouts(dir: BorrowedFd<'_>, namespace: XattrNamespace) -> rustix::io::Result<()> {
    fsetxattr(dir, namespace.names().origin, b"", XattrFlags::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlayfs_owns_its_prefix_but_not_what_it_stores_for_an_overlay_inside() {
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
    fn only_the_letter_y_is_opaque() {
        assert!(is_opaque(b"y"));
        for value in [&b""[..], b"n", b"x", b"Y", b"yes"] {
            assert!(!is_opaque(value), "{}", value.escape_ascii());
        }
    }
}
