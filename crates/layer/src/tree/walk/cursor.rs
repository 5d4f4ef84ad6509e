use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, fstat, openat};

use super::{Node, open_beneath, open_in};

/// One directory of a tree, held open.
///
/// The next directory is mostly a child or the parent of the last one: one step, whatever the depth. From anywhere else
/// the way is walked from the root.
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
    fn it_goes_from_anywhere_to_anywhere() {
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
            node.meet(&stat);
            assert_eq!(stat.st_ino, fs::metadata(dir.path().join(node.path())).unwrap().ino(), "{:?}", node.path());
        }
    }

    #[test]
    fn the_way_up_from_a_directory_that_was_moved_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("root/a/b")).unwrap();
        let tree = dir.path().join("root");
        let root = Node::root(());
        let a = Node::child(&root, c"a".into(), ());
        let b = Node::child(&a, c"b".into(), ());
        let mut cursor = Cursor::new(READ);
        for node in [&root, &a, &b] {
            let stat = fstat(cursor.go_either_way(node, || open(&tree)).unwrap()).unwrap();
            node.meet(&stat);
        }
        fs::rename(tree.join("a/b"), dir.path().join("b")).unwrap();
        let stat = fstat(cursor.go_either_way(&a, || open(&tree)).unwrap()).unwrap();
        assert_eq!(stat.st_ino, fs::metadata(tree.join("a")).unwrap().ino());
    }
}
