//! What all threads of one merge share. `directory.rs` has what each thread has for itself.

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

/// What all workers of one merge share.
pub(super) struct Shared<'a> {
    pub(super) sources: &'a Sources,
    pub(super) target: BorrowedFd<'a>,
    pub(super) target_path: &'a Path,
    /// The mode of the target's root, if it is not the topmost layer's.
    pub(super) root_mode: Option<Mode>,
    pub(super) xattrs: XattrNamespace,
    /// Returns true when the merge has to stop.
    pub(super) stop: Option<&'a (dyn Fn() -> bool + Sync)>,
    pub(super) hard_links: HardLinks,
    /// Why the first of the files that could not be linked could not.
    pub(super) why_copied: OnceLock<Errno>,
}

impl Shared<'_> {
    /// The path of a directory, or of `name` in it, in a layer.
    pub(super) fn source_path(&self, layer: usize, node: &DirNode, name: Option<&CStr>) -> PathBuf {
        let dir = self.sources.path(layer).join(node.path());
        name.map_or(dir.clone(), |name| dir.join(as_os_str(name)))
    }

    /// For `map_err`: a failed system call on a directory of the target. Its path is put together
    /// only if one has failed.
    pub(super) fn target_error(&self, operation: &'static str, node: &DirNode) -> impl FnOnce(Errno) -> Error {
        move |errno| Error::io(operation, self.target_path.join(node.path()))(errno)
    }
}
