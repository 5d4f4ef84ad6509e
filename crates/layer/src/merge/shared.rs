//! The data that all threads of one merge share. `directory.rs` has the data of each thread.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::fs::{Mode, Stat};
use rustix::io::Errno;

use super::hardlinks::HardLinks;
use super::node::DirNode;
use super::{Content, Merged};
use crate::error::Error;
use crate::stack::overlayfs::XattrNamespace;
use crate::stack::sources::{Sources, Unreadable};
use crate::tree::permission::Permission;
use crate::tree::walk::{PATH, as_os_str, open_beneath};

/// The data that all workers of one merge share.
pub(super) struct Shared<'a> {
    pub(super) sources: &'a Sources,
    pub(super) target: BorrowedFd<'a>,
    pub(super) target_path: &'a Path,
    /// The mode that the target's root gets instead of that of the topmost layer's root.
    pub(super) root_mode: Option<Mode>,
    pub(super) xattrs: XattrNamespace,
    pub(super) content: Content,
    pub(super) unreadable: Unreadable,
    /// The directories of the sources that were read, if [`Content::Directories`] is merged.
    pub(super) read: Mutex<Vec<ReadDir>>,
    /// A function that returns true when the merge must stop.
    pub(super) stop: Option<&'a (dyn Fn() -> bool + Sync)>,
    /// A function that the merge calls with the numbers of all workers.
    pub(super) progress: Option<&'a (dyn Fn(&Merged) + Sync)>,
    /// The numbers of entries that all workers have made.
    pub(super) merged: Mutex<Merged>,
    pub(super) hard_links: HardLinks,
    /// The reason why the first file that was copied could not be linked.
    pub(super) why_copied: OnceLock<Errno>,
}

/// A directory of a source.
#[derive(Debug)]
pub(crate) struct ReadDir {
    /// The number of the source, topmost first.
    pub(crate) layer: usize,
    /// The path below the root of the source.
    pub(crate) path: PathBuf,
    /// Its attributes before its entries were read.
    pub(crate) stat: Stat,
    pub(crate) permission: Permission,
}

impl Shared<'_> {
    /// Notes a directory of a source before its entries are read.
    pub(super) fn note(&self, layer: usize, node: &DirNode, stat: Stat, permission: Permission) {
        if self.content == Content::Directories {
            let read = ReadDir { layer, path: node.path(), stat, permission };
            self.read.lock().unwrap_or_else(PoisonError::into_inner).push(read);
        }
    }

    /// Opens a directory of a layer without access to its content.
    pub(super) fn open_unread(&self, layer: usize, node: &DirNode) -> rustix::io::Result<OwnedFd> {
        self.sources.root(layer).and_then(|root| open_beneath(root.as_fd(), &node.path(), PATH))
    }

    /// Adds what a worker has made, and reports the progress.
    pub(super) fn add(&self, made: Merged) {
        let mut merged = self.merged.lock().unwrap_or_else(PoisonError::into_inner);
        *merged += made;
        if let Some(progress) = self.progress {
            progress(&merged);
        }
    }

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
