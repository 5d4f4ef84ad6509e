//! Copies a file that cannot be linked, together with its attributes. `copy/content.rs` copies its
//! bytes.

mod content;

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, fstat, mknodat, openat, readlinkat, statat, symlinkat};
use rustix::io::Errno;

use crate::stack::overlayfs::XattrNamespace;
use crate::tree::attributes::{Attributes, Keep};
use crate::tree::walk::open_in;
use crate::tree::xattr::XattrList;

/// A file to copy: its directory, its name, and the attributes that it had when the merge looked at
/// it.
#[derive(Clone, Copy)]
pub(super) struct Original<'a> {
    pub(super) dir: BorrowedFd<'a>,
    pub(super) name: &'a CStr,
    pub(super) stat: &'a Stat,
}

impl<'a> Original<'a> {
    /// Reads the attributes of `name` in `dir`, without following a symbolic link.
    pub(super) fn look(dir: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<Stat> {
        statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Copies the file into `to`, with owner, mode, times and all extended attributes that are not
    /// overlayfs's own.
    ///
    /// Clones the content if the file system can; holes stay holes. Fails with `EXDEV` if a regular
    /// file is a mount point, because the mount is not part of the layer.
    pub(super) fn copy(&self, to: BorrowedFd<'_>, xattrs: XattrNamespace) -> rustix::io::Result<()> {
        let Self { dir, name, stat } = *self;
        let keep = Keep::Visible(xattrs);
        let kind = FileType::from_raw_mode(stat.st_mode);
        match kind {
            FileType::RegularFile => return self.copy_regular(to, keep),
            FileType::Symlink => symlinkat(readlinkat(dir, name, Vec::new())?, to, name)?,
            FileType::Fifo | FileType::Socket => mknodat(to, name, kind, Mode::RUSR, 0)?,
            FileType::CharacterDevice | FileType::BlockDevice => {
                mknodat(to, name, kind, Mode::RUSR, stat.st_rdev as _)?
            }
            // The directory entry had another type before, so the layer is changing.
            FileType::Directory | FileType::Unknown => return Err(Errno::ISDIR),
        }
        Attributes::of_name(dir, name, stat, keep)?.apply_to_name(to, name)
    }

    fn copy_regular(&self, to: BorrowedFd<'_>, keep: Keep) -> rustix::io::Result<()> {
        // NONBLOCK: the open must not wait if a FIFO has replaced the file.
        let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let from = match open_in(self.dir, self.name, read | OFlags::NOATIME) {
            // Only root and the owner may open a file with NOATIME.
            Err(Errno::PERM) => open_in(self.dir, self.name, read)?,
            opened => opened?,
        };
        let stat = fstat(&from)?;
        if (stat.st_dev, stat.st_ino) != (self.stat.st_dev, self.stat.st_ino) {
            return Err(Errno::STALE);
        }
        let attributes = Attributes::of(from.as_fd(), &XattrList::of(from.as_fd())?, keep)?;
        let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let copy = openat(to, self.name, create, Mode::RUSR | Mode::WUSR)?;
        content::copy(from.as_fd(), copy.as_fd(), u64::try_from(stat.st_size).unwrap_or(0))?;
        attributes.apply(copy.as_fd())
    }
}
