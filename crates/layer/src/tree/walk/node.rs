//! A directory that a walk has not finished: its name, its parent and its unfinished children.
//! `cursor.rs` opens it.

use std::ffi::{CStr, CString, OsString};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::fs::Stat;

use super::Identity;

/// A directory of a tree: its name, its parent, and how many of its child directories are
/// unfinished.
///
/// Only directories that a walk has not finished are nodes. Their number grows with the siblings on
/// the way down, not with the whole tree.
#[derive(Debug)]
pub(crate) struct Node<T> {
    parent: Option<Arc<Node<T>>>,
    name: CString,
    identity: OnceLock<Identity>,
    unfinished: AtomicUsize,
    /// The data that the walk keeps for this directory.
    pub(crate) state: T,
}

impl<T> Node<T> {
    /// Makes the root of a tree. Its path is empty.
    pub(crate) fn root(state: T) -> Arc<Self> {
        Self::new(None, CString::default(), state)
    }

    /// Makes the directory `name` in `parent`.
    pub(crate) fn child(parent: &Arc<Self>, name: CString, state: T) -> Arc<Self> {
        Self::new(Some(Arc::clone(parent)), name, state)
    }

    fn new(parent: Option<Arc<Self>>, name: CString, state: T) -> Arc<Self> {
        Arc::new(Self { parent, name, identity: OnceLock::new(), unfinished: AtomicUsize::new(0), state })
    }

    /// Returns the directory that contains this one; `None` for the root.
    pub(crate) fn parent(&self) -> Option<&Arc<Self>> {
        self.parent.as_ref()
    }

    /// Returns the name in the parent.
    pub(crate) fn name(&self) -> &CStr {
        &self.name
    }

    /// Records which directory this was when it was first opened.
    pub(crate) fn set_identity(&self, stat: &Stat) {
        let _known_already = self.identity.set((stat.st_dev, stat.st_ino));
    }

    /// Returns whether `stat` describes the directory whose identity was recorded.
    pub(super) fn is(&self, stat: &Stat) -> bool {
        self.identity.get() == Some(&(stat.st_dev, stat.st_ino))
    }

    /// Sets how many child directories must be done before this one is. The caller must call this
    /// before it begins any of them.
    pub(crate) fn expect(&self, children: usize) {
        self.unfinished.store(children, Ordering::Release);
    }

    /// Counts one child directory as done. Returns true for the last one.
    pub(crate) fn child_done(&self) -> bool {
        self.unfinished.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Returns the path from the root.
    pub(crate) fn path(&self) -> PathBuf {
        let mut names = Vec::new();
        let mut node = self;
        while let Some(parent) = &node.parent {
            names.push(node.name.to_bytes());
            node = parent;
        }
        names.reverse();
        PathBuf::from(OsString::from_vec(names.join(&b'/')))
    }
}

impl<T> Drop for Node<T> {
    /// Drops the ancestors in a loop. In a deep tree, recursion would overflow the stack.
    fn drop(&mut self) {
        let mut next = self.parent.take();
        while let Some(mut node) = next.and_then(Arc::into_inner) {
            next = node.parent.take();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_starts_at_the_root() {
        let root = Node::root(());
        let usr = Node::child(&root, c"usr".into(), ());
        let lib = Node::child(&usr, c"lib\xff".into(), ());
        assert_eq!(root.path(), PathBuf::new());
        assert_eq!(usr.path(), PathBuf::from("usr"));
        assert_eq!(lib.path(), PathBuf::from(OsString::from_vec(b"usr/lib\xff".to_vec())));
    }

    #[test]
    fn the_last_child_is_reported() {
        let root = Node::root(());
        root.expect(2);
        assert_eq!([root.child_done(), root.child_done()], [false, true]);
    }

    #[test]
    fn a_branch_deeper_than_the_stack_is_dropped() {
        let mut node = Node::root(());
        for _ in 0..1_000_000 {
            node = Node::child(&node, c"d".into(), ());
        }
        drop(node);
    }
}
