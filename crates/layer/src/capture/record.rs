//! Reads and writes the record of a run on the root of its upper, so that the upper can be captured
//! without the report of the run. `made.rs` removes the files that the record lists.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, XattrFlags, fgetxattr, fremovexattr, fsetxattr, openat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::made::Made;
use crate::display::quoted;
use crate::error::{Error, Result};
use crate::stack::overlayfs::XattrNamespace;
use crate::tree::walk::READ;

/// The record that a run leaves in an extended attribute of its upper's root:
/// `trusted.layered.run`, or `user.layered.run` where overlayfs uses that namespace. The attribute
/// moves with the upper, and [`Capture`](crate::Capture) removes it.
///
/// A command cannot forge `trusted.layered.run`: `trusted` attributes need CAP_SYS_ADMIN
/// (xattr(7)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    /// The files that the run, and not the command, put into the upper. `None` if the list is too
    /// long for an extended attribute on this file system.
    pub made: Option<Vec<Made>>,
    /// The permission bits that the root of the upper has in the container, if the root has been
    /// closed to other users since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_mode: Option<u32>,
}

impl Default for RunRecord {
    /// Returns the record of a run that made nothing.
    fn default() -> Self {
        Self { made: Some(Vec::new()), root_mode: None }
    }
}

/// The longest value of an extended attribute (`XATTR_SIZE_MAX`, xattr(7)).
const MAX_BYTES: usize = 64 << 10;

impl RunRecord {
    /// Reads the record of the upper directory `upper`. Returns `None` if it has none.
    ///
    /// # Errors
    /// [`Error::Io`] if the attribute cannot be read, [`Error::Json`] if it is not a record.
    pub fn read(upper: impl AsRef<Path>, xattrs: XattrNamespace) -> Result<Option<Self>> {
        let upper = upper.as_ref();
        let root = openat(CWD, upper, READ, Mode::empty()).map_err(Error::io("open", upper))?;
        Self::of(root.as_fd(), upper, xattrs)
    }

    /// Writes the record on the upper directory `upper`, and replaces a former one.
    ///
    /// Leaves out a list of files that is too long for an attribute.
    ///
    /// # Errors
    /// [`Error::Io`] if the attribute cannot be written.
    pub fn write(&self, upper: impl AsRef<Path>, xattrs: XattrNamespace) -> Result<()> {
        let upper = upper.as_ref();
        let root = openat(CWD, upper, READ, Mode::empty()).map_err(Error::io("open", upper))?;
        self.write_to(root.as_fd(), upper, xattrs)
    }

    fn write_to(&self, root: BorrowedFd<'_>, upper: &Path, xattrs: XattrNamespace) -> Result<()> {
        let set = |record: &Self| {
            let text = serde_json::to_vec(record).map_err(|source| Error::Serialize { path: upper.into(), source })?;
            Ok(fsetxattr(root, name(xattrs), &text, XattrFlags::empty()))
        };
        match set(self)? {
            // On ext4, all attributes of a file share one block, so even a short list may not fit.
            Err(Errno::NOSPC | Errno::TOOBIG | Errno::RANGE) => {
                log::debug!("cannot record the files that the run made in {}: the list is too long", quoted(upper));
                set(&Self { made: None, ..self.clone() })?
            }
            set => set,
        }
        .map_err(Error::io("write an extended attribute of", upper))
    }

    /// Adds the files that a later run over the same upper made.
    pub fn add(&mut self, made: impl IntoIterator<Item = Made>) {
        if let Some(all) = &mut self.made {
            for made in made {
                if !all.contains(&made) {
                    all.push(made);
                }
            }
        }
    }

    /// Reads the record of the open upper `root`, whose path is `upper`.
    pub(super) fn of(root: BorrowedFd<'_>, upper: &Path, xattrs: XattrNamespace) -> Result<Option<Self>> {
        let mut value = vec![0; MAX_BYTES];
        match fgetxattr(root, name(xattrs), &mut value[..]) {
            Ok(length) => match serde_json::from_slice(&value[..length]) {
                Ok(record) => Ok(Some(record)),
                Err(source) => Err(Error::Json { path: upper.into(), source }),
            },
            Err(Errno::NODATA | Errno::NOTSUP) => Ok(Self::of_rest(root, xattrs)),
            Err(errno) => Err(Error::io("read an extended attribute of", upper)(errno)),
        }
    }

    /// Returns the part of the record that a killed capture has left.
    fn of_rest(root: BorrowedFd<'_>, xattrs: XattrNamespace) -> Option<Self> {
        let mut value = [0; 16];
        let length = fgetxattr(root, rest_name(xattrs), &mut value[..]).ok()?;
        let mode = std::str::from_utf8(&value[..length]).ok()?.parse().ok()?;
        Some(Self { root_mode: Some(mode), ..Self::default() })
    }

    /// Removes the record from the open upper `root`, and keeps only `root_mode`. The caller has
    /// already removed the files that the run made.
    pub(super) fn shorten(
        root: BorrowedFd<'_>,
        upper: &Path,
        xattrs: XattrNamespace,
        root_mode: Option<u32>,
    ) -> Result<()> {
        // Write the mode first: if the process is killed in between, both attributes exist.
        let (first, second) = (name(xattrs), rest_name(xattrs));
        let set = root_mode.map(|mode| fsetxattr(root, second, mode.to_string().as_bytes(), XattrFlags::empty()));
        set.transpose().map_err(Error::io("write an extended attribute of", upper))?;
        for name in [Some(first), root_mode.is_none().then_some(second)].into_iter().flatten() {
            match fremovexattr(root, name) {
                Ok(()) | Err(Errno::NODATA | Errno::NOTSUP) => {}
                Err(errno) => return Err(Error::io("remove an extended attribute of", upper)(errno)),
            }
        }
        Ok(())
    }
}

pub(super) fn name(xattrs: XattrNamespace) -> &'static str {
    match xattrs {
        XattrNamespace::Trusted => "trusted.layered.run",
        XattrNamespace::User => "user.layered.run",
    }
}

/// Returns the name of the attribute that a capture keeps until it moves the tree: the mode of the
/// root, as a decimal number.
pub(super) fn rest_name(xattrs: XattrNamespace) -> &'static str {
    match xattrs {
        XattrNamespace::Trusted => "trusted.layered.mode",
        XattrNamespace::User => "user.layered.mode",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const XATTRS: XattrNamespace = XattrNamespace::User;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(RunRecord::read(&dir, XATTRS).unwrap(), None);
        let upper = dir.path().join("upper");
        std::fs::create_dir_all(upper.join("proc")).unwrap();
        let mut record = RunRecord { root_mode: Some(0o755), ..RunRecord::default() };
        record.add(Made::look(&upper, ["/proc"]).unwrap());
        record.add(Made::look(&upper, ["/proc"]).unwrap());
        assert_eq!(record.made.as_ref().map(Vec::len), Some(1));
        record.write(&upper, XATTRS).unwrap();
        assert_eq!(RunRecord::read(&upper, XATTRS).unwrap(), Some(record));
        let root = std::fs::File::open(&upper).unwrap();
        for (mode, left) in
            [(Some(0o755), Some(RunRecord { root_mode: Some(0o755), ..RunRecord::default() })), (None, None)]
        {
            RunRecord::shorten(root.as_fd(), &upper, XATTRS, mode).unwrap();
            assert_eq!(RunRecord::read(&upper, XATTRS).unwrap(), left);
        }
    }

    #[test]
    fn a_list_that_does_not_fit_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let names: Vec<_> = (0..2000).map(|number| format!("a-directory-that-was-made-{number}")).collect();
        names.iter().for_each(|name| std::fs::create_dir(dir.path().join(name)).unwrap());
        let mut record = RunRecord::default();
        record.add(Made::look(dir.path(), &names).unwrap());
        record.write(&dir, XATTRS).unwrap();
        assert_eq!(RunRecord::read(&dir, XATTRS).unwrap(), Some(RunRecord { made: None, root_mode: None }));
    }

    #[test]
    fn the_error_for_an_invalid_record_names_the_upper() {
        let dir = tempfile::tempdir().unwrap();
        let file = std::fs::File::open(dir.path()).unwrap();
        fsetxattr(&file, name(XATTRS), b"[]", XattrFlags::empty()).unwrap();
        let error = RunRecord::read(&dir, XATTRS).unwrap_err();
        assert!(matches!(error, Error::Json { path, .. } if path == dir.path()));
    }
}
