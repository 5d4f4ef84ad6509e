//! Lists the extended attributes of a file. `attributes.rs` reads their values; which of them
//! belong to overlayfs is decided in `stack/overlayfs.rs`.

use std::ffi::{CStr, CString};
use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::flistxattr;
use rustix::io::Errno;

/// The longest list of names (`XATTR_LIST_MAX`) and the longest value (`XATTR_SIZE_MAX`) that the
/// kernel handles: xattr(7).
pub(super) const MAX_BYTES: usize = 64 * 1024;

/// A buffer that is large enough for most files.
pub(super) const USUAL_BYTES: usize = 256;

/// The names of a file's extended attributes.
#[derive(Debug, Default)]
pub(crate) struct XattrList {
    /// The names as listed, each with its NUL.
    names: Vec<u8>,
}

impl XattrList {
    /// Lists the attributes of an open file.
    pub(crate) fn of(file: BorrowedFd<'_>) -> rustix::io::Result<Self> {
        let mut names = Self::default();
        names.read(|buffer| flistxattr(file, buffer))?;
        Ok(names)
    }

    /// Replaces the names by those that `list` reads. A file system without extended attributes has
    /// none.
    pub(crate) fn read(&mut self, list: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<()> {
        // The kernel allocates a buffer of this size before it looks at the file, and most files
        // have few names.
        for size in [USUAL_BYTES, MAX_BYTES] {
            self.names.clear();
            self.names.resize(size, 0);
            let length = list(&mut self.names);
            self.names.truncate(*length.as_ref().unwrap_or(&0));
            match length {
                Err(Errno::RANGE) if size < MAX_BYTES => {}
                Ok(_) | Err(Errno::NOTSUP) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &CStr> {
        self.names.split_inclusive(|&byte| byte == 0).filter_map(|name| CStr::from_bytes_with_nul(name).ok())
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.iter().any(|listed| listed.to_bytes() == name.as_bytes())
    }
}

/// Returns a path for the calls that take no descriptor: before Linux 6.13, no call of xattr(7)
/// takes a name in a directory.
pub(crate) fn path_through_proc(dir: BorrowedFd<'_>, name: &CStr) -> CString {
    let mut path = Vec::with_capacity(32 + name.count_bytes());
    // Neither a write to a vector nor a name without NUL can fail.
    let _ = write!(path, "/proc/self/fd/{}/", dir.as_raw_fd());
    path.extend_from_slice(name.to_bytes());
    CString::new(path).unwrap_or_default()
}
