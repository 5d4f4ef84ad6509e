//! Makes the root of an upper look like the root of the topmost lower.

use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use os_display::Quotable;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{
    CWD, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, fchmod, fchown, fgetxattr, flistxattr, fremovexattr,
    fsetxattr, fstat, futimens,
};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::user_namespace::UserNamespace;

/// Copies the owner, the mode, the modification time and the xattrs of the directory `from` to the
/// directory `to`, except the overlay xattrs.
///
/// The root of an upper is the `/` that the container sees. Before the overlay is mounted, it must
/// look like the root of the topmost lower: with mode 0700, for example, only root could enter it.
/// An owner without a number in this process's [user namespace](UserNamespace) becomes root.
///
/// # Errors
/// [`Error::Io`]. It is not an error if the file system of `to` cannot hold an xattr: a warning is
/// logged and the xattr is left out.
pub fn copy_root_attributes(from: &Path, to: &Path) -> Result<()> {
    let open = |path: &Path| -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(Error::io("open the directory", path))
    };
    let (source, target) = (open(from)?, open(to)?);
    let stat = fstat(&source).map_err(Error::io("look at", from))?;
    let (uid, gid) = UserNamespace::owner_of_copy(&source, stat.st_uid, stat.st_gid);
    fchown(&target, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).map_err(Error::io("set the owner of", to))?;

    let wanted = attributes(&source).map_err(Error::io("read the attributes of", from))?;
    // Remove all other xattrs, for example an ACL that `to` has inherited from its parent.
    for (name, _) in attributes(&target).map_err(Error::io("read the attributes of", to))? {
        if wanted.iter().all(|(other, _)| *other != name) {
            match fremovexattr(&target, name.as_slice()) {
                Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => {}
                Err(error) => return Err(Error::io("remove an attribute of", to)(error)),
            }
        }
    }
    for (name, value) in &wanted {
        match fsetxattr(&target, name.as_slice(), value, XattrFlags::empty()) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP) => {
                log::warn!("{} cannot hold {}", to.maybe_quote(), OsStr::from_bytes(name).maybe_quote());
            }
            Err(error) => return Err(Error::io("set an attribute of", to)(error)),
        }
    }
    // Set the mode after the ACLs, because an ACL is part of the mode.
    fchmod(&target, Mode::from_raw_mode(stat.st_mode & 0o7777)).map_err(Error::io("set the mode of", to))?;
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        last_modification: Timespec { tv_sec: stat.st_mtime as _, tv_nsec: stat.st_mtime_nsec as _ },
    };
    futimens(&target, &times).map_err(Error::io("set the time of", to))
}

/// Returns the names and values of the xattrs, except the overlay xattrs.
fn attributes(directory: impl AsFd) -> rustix::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    // XATTR_LIST_MAX and XATTR_SIZE_MAX in linux/limits.h.
    let mut buffer = vec![0; 64 << 10];
    let length = match flistxattr(&directory, &mut buffer[..]) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error),
    };
    let names: Vec<Vec<u8>> = buffer[..length]
        .split_inclusive(|byte| *byte == 0)
        .filter_map(|name| CStr::from_bytes_with_nul(name).ok())
        .map(|name| name.to_bytes().to_vec())
        .filter(|name| !name.starts_with(b"trusted.overlay.") && !name.starts_with(b"user.overlay."))
        .collect();
    let mut found = Vec::new();
    for name in names {
        match fgetxattr(&directory, name.as_slice(), &mut buffer[..]) {
            Ok(length) => found.push((name, buffer[..length].to_vec())),
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}
