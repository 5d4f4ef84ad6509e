//! Decides in which namespace overlayfs has marked an upper. `record.rs` has the record that a run
//! leaves on it; `stack/overlayfs.rs` reads the marks themselves.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, openat};
use rustix::io::Errno;

use super::record;
use crate::error::{Error, Result};
use crate::stack::overlayfs::{XattrNamespace, is_opaque_dir};
use crate::tree::remove::USUAL_THREADS;
use crate::tree::walk::READ;
use crate::tree::walk::visit::{Entry, visit};
use crate::tree::xattr::XattrList;

impl XattrNamespace {
    /// Returns the namespace in which overlayfs has marked the upper directory `upper`. Reads it
    /// from the root of the upper: from the [record](crate::RunRecord) of the run, or from any mark
    /// of overlayfs. Returns `usual` if the root has neither, or if `upper` does not exist.
    ///
    /// Marks in `trusted` come first, because a command cannot forge them. Without a record, it can
    /// set attributes `user.overlay.*` in a mount of root, where they mean nothing.
    ///
    /// # Errors
    /// - [`Error::OtherNamespace`] if the root says nothing, and only directories below it are
    ///   opaque, all in the other namespace. A capture would lose what they hide.
    /// - [`Error::Io`] if the upper cannot be read.
    pub fn of_upper(upper: impl AsRef<Path>, usual: XattrNamespace) -> Result<Self> {
        let upper = upper.as_ref();
        let root = match openat(CWD, upper, READ, Mode::empty()) {
            Ok(root) => root,
            Err(Errno::NOENT) => return Ok(usual),
            Err(errno) => return Err(Error::io("open", upper)(errno)),
        };
        let names = XattrList::of(root.as_fd()).map_err(Error::io("list the extended attributes of", upper))?;
        let says = |xattrs: &Self| {
            [record::name(*xattrs), record::rest_name(*xattrs)].iter().any(|name| names.has(name))
                || names.iter().any(|name| xattrs.owns(name.to_bytes()))
        };
        // Only root writes to `trusted`.
        if let Some(said) = [Self::Trusted, Self::User].into_iter().find(says) {
            return Ok(said);
        }
        let other = usual.other();
        let look = |opaque: &mut [bool; 2], entry: Entry<'_>| {
            if let Entry::Directory { dir, .. } = entry {
                opaque[0] |= is_opaque_dir(dir, usual)?;
                opaque[1] |= is_opaque_dir(dir, other)?;
            }
            Ok(())
        };
        let found = visit(upper, USUAL_THREADS, Default::default, look)?;
        match [0, 1].map(|which| found.iter().any(|opaque: &[bool; 2]| opaque[which])) {
            [false, true] => Err(Error::OtherNamespace { upper: upper.into(), found: other }),
            _ => Ok(usual),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{XattrFlags, setxattr};

    use super::*;

    /// The namespace of an upper whose attributes are all in `user`, which needs no privilege.
    #[test]
    fn the_upper_says_which_namespace_it_has() {
        use XattrNamespace::{Trusted, User};
        let table = [
            (&[][..], Some(Trusted)),
            (&[("", "user.layered.run", "{}")], Some(User)),
            (&[("", "user.layered.mode", "493")], Some(User)),
            (&[("", "user.overlay.impure", "y"), ("a", "user.overlay.opaque", "y")], Some(User)),
            // An attribute that a mount shows as user.overlay.opaque, and one of another program.
            (&[("", "user.overlay.overlay.opaque", "y")], Some(Trusted)),
            (&[("a", "user.overlay.impure", "y")], Some(Trusted)),
            (&[("a/b", "user.overlay.opaque", "x")], Some(Trusted)),
            (&[("a/b", "user.overlay.opaque", "y")], None),
        ];
        for (attributes, expected) in table {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
            for &(path, name, value) in attributes {
                setxattr(dir.path().join(path), name, value.as_bytes(), XattrFlags::empty()).unwrap();
            }
            let found = XattrNamespace::of_upper(&dir, Trusted);
            assert_eq!(found.as_ref().ok(), expected.as_ref(), "{attributes:?}");
            assert!(matches!(found, Ok(_) | Err(Error::OtherNamespace { found: User, .. })), "{found:?}");
            assert_eq!(XattrNamespace::of_upper(&dir, User).unwrap(), User, "{attributes:?}");
        }
        assert_eq!(XattrNamespace::of_upper("/nonexistent/upper", User).unwrap(), User);
    }
}
