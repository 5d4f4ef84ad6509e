use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, fstat, openat};

use super::{Node, open_beneath, open_in};

/// One directory of a tree, held open.
///
/// The next directory is mostly a child or the parent of the last one: one step, whatever the depth. From anywhere else the
/// way is walked from the root.
#[derive(Debug)]
pub(crate) struct Cursor<T> {
    flags: OFlags,
    at: Option<(Arc<Node<T>>, OwnedFd)>,
}

impl<T> Cursor<T> {
    /// Holds nothing yet, and opens directories with `flags`.
    pub(crate) fn new(flags: OFlags) -> Self {
        Self { flags, at: None }
    }

    /// Lets go of the directory, before another tree is gone to.
    pub(crate) fn leave(&mut self) {
        self.at = None;
    }

    /// The directory `node`, in the tree whose root `root` opens.
    pub(crate) fn go<R: AsFd>(
        &mut self,
        node: &Arc<Node<T>>,
        root: impl FnOnce() -> rustix::io::Result<R>,
    ) -> rustix::io::Result<BorrowedFd<'_>> {
        let dir = match self.at.take() {
            Some((at, dir)) if Arc::ptr_eq(&at, node) => dir,
            Some((at, dir)) if is_parent(&at, node) => open_in(dir.as_fd(), node.name(), self.flags)?,
            _ => open_beneath(root()?.as_fd(), &node.path(), self.flags)?,
        };
        Ok(self.at.insert((Arc::clone(node), dir)).1.as_fd())
    }

    /// As [`go`](Self::go), and one step up too, in the one tree in which these nodes have been [met](Node::meet).
    pub(crate) fn go_either_way<R: AsFd>(
        &mut self,
        node: &Arc<Node<T>>,
        root: impl FnOnce() -> rustix::io::Result<R>,
    ) -> rustix::io::Result<BorrowedFd<'_>> {
        match self.at.take() {
            Some((at, dir)) if is_parent(node, &at) => {
                let above = openat(dir, c"..", self.flags, Mode::empty())?;
                // The directory can have been moved elsewhere since it was entered.
                self.at = node.is(&fstat(&above)?).then(|| (Arc::clone(node), above));
            }
            at => self.at = at,
        }
        self.go(node, root)
    }
}

fn is_parent<T>(parent: &Arc<Node<T>>, child: &Node<T>) -> bool {
    child.parent().is_some_and(|node| Arc::ptr_eq(node, parent))
}
