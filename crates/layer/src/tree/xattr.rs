//! Lists the extended attributes of a file. `attributes.rs` reads their values;
//! `stack/overlayfs.rs` decides which of them belong to overlayfs.

use std::ffi::{CStr, CString};
use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::flistxattr;
use rustix::io::Errno;

/// The length of the longest list of names (`XATTR_LIST_MAX`) and of the longest value
/// (`XATTR_SIZE_MAX`) that the kernel handles: xattr(7).
pub(super) const MAX_BYTES: usize = 64 * 1024;

/// The size of a buffer that is large enough for most files.
pub(super) const USUAL_BYTES: usize = 256;

/// The names of a file's extended attributes.
#[derive(Debug, Default)]
pub(crate) struct XattrList {
    /// The names as the kernel lists them, each with its NUL.
    names: Vec<u8>,
}

impl XattrList {
    /// Lists the attributes of an open file.
    pub(crate) fn of(file: BorrowedFd<'_>) -> rustix::io::Result<Self> {
        let mut names = Self::default();
        names.read(|buffer| flistxattr(file, buffer))?;
        Ok(names)
    }

    /// Replaces the names with those that `list` reads. The list is empty if the file system has no
    /// extended attributes.
    pub(crate) fn read(&mut self, list: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<()> {
        // The kernel allocates a buffer of the requested size before it looks at the file, and most
        // files have few names.
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

/// Returns a path through /proc to `name` in `dir`, for calls that take only a path. The empty name
/// is the open file `dir` itself, to which the path is a link. Before Linux 6.13, no call of
/// xattr(7) takes a directory and a name in it, or a file that was opened with `O_PATH`.
pub(crate) fn path_through_proc(dir: BorrowedFd<'_>, name: &CStr) -> CString {
    let mut path = Vec::with_capacity(32 + name.count_bytes());
    // Neither a write to a vector nor a name without NUL can fail.
    let _ = write!(path, "/proc/self/fd/{}", dir.as_raw_fd());
    if !name.is_empty() {
        path.push(b'/');
        path.extend_from_slice(name.to_bytes());
    }
    CString::new(path).unwrap_or_default()
}
