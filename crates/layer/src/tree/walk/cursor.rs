//! Opens the directories of a tree one after the other, each from the previous one if possible.
//! `node.rs` describes the directories.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, fstat, openat};

use super::{Node, open_beneath, open_in};

/// One directory of a tree, held open.
///
/// The next directory is usually a child or the parent of this one. The cursor reaches it in one
/// step, at any depth. For any other directory, the cursor walks the path from the root.
#[derive(Debug)]
pub(crate) struct Cursor<T> {
    flags: OFlags,
    at: Option<(Arc<Node<T>>, OwnedFd)>,
}

impl<T> Cursor<T> {
    /// Makes a cursor that holds no directory yet and opens directories with `flags`.
    pub(crate) fn new(flags: OFlags) -> Self {
        Self { flags, at: None }
    }

    /// Closes the directory. The caller must do this before it uses the cursor for another tree.
    pub(crate) fn leave(&mut self) {
        self.at = None;
    }

    /// Opens the directory `node` in the tree whose root `root` opens.
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

    /// Opens the directory `node` as [`go`](Self::go) does, but also goes one step up. All nodes
    /// must be of one tree and [identified](Node::set_identity).
    pub(crate) fn go_either_way<R: AsFd>(
        &mut self,
        node: &Arc<Node<T>>,
        root: impl FnOnce() -> rustix::io::Result<R>,
    ) -> rustix::io::Result<BorrowedFd<'_>> {
        match self.at.take() {
            Some((at, dir)) if is_parent(node, &at) => {
                let above = openat(dir, c"..", self.flags, Mode::empty())?;
                // Another process may have moved the directory since it was opened.
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

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    use rustix::fs::CWD;

    use super::super::READ;
    use super::*;

    fn open(path: &Path) -> rustix::io::Result<OwnedFd> {
        openat(CWD, path, READ, Mode::empty())
    }

    #[test]
    fn a_cursor_goes_from_any_directory_to_any_other() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b/c")).unwrap();
        fs::create_dir_all(dir.path().join("a/d")).unwrap();
        let root = Node::root(());
        let child = |parent, name: &str| Node::child(parent, CString::new(name).unwrap(), ());
        let a = child(&root, "a");
        let [b, d] = ["b", "d"].map(|name| child(&a, name));
        let c = child(&b, "c");
        let mut cursor = Cursor::new(READ);
        for node in [&root, &a, &b, &c, &b, &a, &d, &c, &root, &c, &d, &a, &a, &root] {
            let stat = fstat(cursor.go_either_way(node, || open(dir.path())).unwrap()).unwrap();
            node.set_identity(&stat);
            assert_eq!(stat.st_ino, fs::metadata(dir.path().join(node.path())).unwrap().ino(), "{:?}", node.path());
        }
    }

    #[test]
    fn a_cursor_does_not_go_up_from_a_directory_that_was_moved() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("root/a/b")).unwrap();
        let tree = dir.path().join("root");
        let root = Node::root(());
        let a = Node::child(&root, c"a".into(), ());
        let b = Node::child(&a, c"b".into(), ());
        let mut cursor = Cursor::new(READ);
        for node in [&root, &a, &b] {
            let stat = fstat(cursor.go_either_way(node, || open(&tree)).unwrap()).unwrap();
            node.set_identity(&stat);
        }
        fs::rename(tree.join("a/b"), dir.path().join("b")).unwrap();
        let stat = fstat(cursor.go_either_way(&a, || open(&tree)).unwrap()).unwrap();
        assert_eq!(stat.st_ino, fs::metadata(tree.join("a")).unwrap().ino());
    }
}
