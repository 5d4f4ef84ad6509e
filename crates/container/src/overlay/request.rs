//! A mount that is ready to be attempted, and the explanation if the kernel refuses it. `fsconfig`
//! and `mount2` attempt it.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use super::kinds::{DeviceNodes, OverlayXattrs};
use crate::error::{Error, Result};
use crate::user_namespace::UserNamespace;

/// Options that every overlay gets, because distributions have different defaults for them. With
/// any of these features on, the kernel marks every directory that a command creates as opaque.
/// Such a directory would hide the entries that sibling layers have in it.
pub(super) const OPTIONS: [(&str, &str); 4] =
    [("redirect_dir", "nofollow"), ("index", "off"), ("metacopy", "off"), ("xino", "off")];

/// An overlay to mount. All paths are absolute.
pub(super) struct Request {
    pub(super) lowers: Vec<PathBuf>,
    pub(super) writable: Option<Writable>,
    pub(super) devices: DeviceNodes,
    pub(super) xattrs: OverlayXattrs,
    pub(super) target: PathBuf,
}

/// The two directories that the kernel writes to.
#[derive(Debug, Clone)]
pub(super) struct Writable {
    pub(super) upper: PathBuf,
    pub(super) work: PathBuf,
}

impl Request {
    /// Returns the error for a failed system call of the mount.
    pub(super) fn failed(&self, call: String, message: String, source: impl Into<io::Error>) -> Error {
        Error::Mount { target: self.target.clone(), call, message, advice: None, source: source.into() }
    }

    /// Returns the error for an overlay that the kernel mounted read-only although it has an upper:
    /// `ovl_make_workdir` in `fs/overlayfs/super.c`.
    pub(super) fn read_only(&self) -> Error {
        Error::Mount {
            target: self.target.clone(),
            call: "it would be read-only".into(),
            message: String::new(),
            advice: Some(
                "the kernel cannot write to the work directory; its file system may be out of space or out of inodes",
            ),
            source: Errno::ROFS.into(),
        }
    }

    /// Adds advice to a failed mount. It looks for the cause only after the failure.
    pub(super) fn explain(&self, mut error: Error) -> Error {
        let Error::Mount { advice, source, message, .. } = &mut error else { return error };
        let upper_is_overlay = || {
            let Some(writable) = &self.writable else { return false };
            rustix::fs::statfs(&writable.upper).is_ok_and(|statfs| statfs.f_type as u64 == OVERLAYFS_SUPER_MAGIC)
        };
        *advice = match source.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::PERM) if UserNamespace::is_here() => {
                Some("users may mount overlays since Linux 5.11; use a newer kernel, or run as root")
            }
            Some(Errno::PERM) => Some("mounting needs CAP_SYS_ADMIN"),
            Some(Errno::ACCESS) => Some("this process cannot read one of its directories"),
            Some(Errno::LOOP) => Some("a directory is given twice, or is the upper too"),
            Some(Errno::INVAL) if upper_is_overlay() => Some(
                "the upper directory is on overlayfs, which cannot hold one; choose a scratch directory on another file system",
            ),
            Some(Errno::INVAL) if message.is_empty() => Some("the kernel's log says why: dmesg | tail"),
            _ => None,
        };
        error
    }
}

/// `OVERLAYFS_SUPER_MAGIC` in `linux/magic.h`.
const OVERLAYFS_SUPER_MAGIC: u64 = 0x794c_7630;

/// Opens a descriptor that names the directory and keeps it alive.
pub(super) fn pin(path: &Path) -> Result<OwnedFd> {
    rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(Error::io("open the directory", path))
}

/// Formats bytes for a message as a C string literal.
pub(super) fn quote(bytes: &[u8]) -> String {
    format!("{:?}", OsStr::from_bytes(bytes))
}
