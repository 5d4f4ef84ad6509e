//! The data that all threads of one merge share. `directory.rs` has the data of each thread.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::Mode;
use rustix::io::Errno;

use super::hardlinks::HardLinks;
use super::node::DirNode;
use crate::error::Error;
use crate::stack::overlayfs::XattrNamespace;
use crate::stack::sources::Sources;
use crate::tree::walk::as_os_str;

/// The data that all workers of one merge share.
pub(super) struct Shared<'a> {
    pub(super) sources: &'a Sources,
    pub(super) target: BorrowedFd<'a>,
    pub(super) target_path: &'a Path,
    /// The mode that the target's root gets instead of that of the topmost layer's root.
    pub(super) root_mode: Option<Mode>,
    pub(super) xattrs: XattrNamespace,
    /// A function that returns true when the merge must stop.
    pub(super) stop: Option<&'a (dyn Fn() -> bool + Sync)>,
    pub(super) hard_links: HardLinks,
    /// The reason why the first file that was copied could not be linked.
    pub(super) why_copied: OnceLock<Errno>,
}

impl Shared<'_> {
    /// Returns the path of a directory, or of `name` in it, in a layer.
    pub(super) fn source_path(&self, layer: usize, node: &DirNode, name: Option<&CStr>) -> PathBuf {
        let dir = self.sources.path(layer).join(node.path());
        name.map_or(dir.clone(), |name| dir.join(as_os_str(name)))
    }

    /// Returns a function for `map_err`. It makes the error of a failed system call on a directory
    /// of the target, and builds the path only then.
    pub(super) fn target_error(&self, operation: &'static str, node: &DirNode) -> impl FnOnce(Errno) -> Error {
        move |errno| Error::io(operation, self.target_path.join(node.path()))(errno)
    }
}
