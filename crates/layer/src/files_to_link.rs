//! Counts what a merge would link, without merging.

use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{CWD, FileType, Mode, openat};
use rustix::io::Errno;

use crate::walk::{Cursor, Entries, Node, PATH, READ, crew};
use crate::{Error, Result};

/// Counts the files of the tree `tree` (`<layer>/fs`) that a [merge](crate::merge) of it alone would link: everything but
/// directories. A tree may be deeper than a path can be long.
///
/// # Errors
/// [`Error::NotADirectory`] if `tree` is not a directory, [`Error::MountInside`] for a mount point in it, [`Error::Io`] if a
/// directory cannot be read.
pub fn files_to_link(tree: impl AsRef<Path>) -> Result<usize> {
    let tree = tree.as_ref();
    let root = openat(CWD, tree, PATH, Mode::empty()).map_err(|errno| match errno {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP => {
            Error::NotADirectory { path: tree.into(), expected: "a layer's tree" }
        }
        errno => Error::io("open", tree)(errno),
    })?;
    let step = |(cursor, files): &mut (Cursor<()>, usize), node: Arc<Node<()>>, found: &mut Vec<_>| {
        let path = || tree.join(node.path());
        let read = |errno| Error::io("read", path())(errno);
        let dir = match cursor.go(&node, || Ok(root.as_fd())) {
            Ok(dir) => openat(dir, c".", READ, Mode::empty()).map_err(read)?,
            Err(Errno::XDEV) => return Err(Error::MountInside { path: path() }),
            Err(errno) => return Err(Error::io("open", path())(errno)),
        };
        for entry in Entries::new(dir).map_err(read)? {
            match entry.map_err(read)? {
                (name, FileType::Directory) => found.push(Node::child(&node, name, ())),
                _ => *files += 1,
            }
        }
        Ok(())
    };
    let workers = crew::run(NonZeroUsize::MIN, Node::root(()), || (Cursor::new(PATH), 0), step)?;
    Ok(workers.into_iter().map(|(_, files)| files).sum())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::mkdirat;

    use super::*;

    #[test]
    fn everything_but_directories_counts() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("fs");
        fs::create_dir_all(tree.join("a/b/empty")).unwrap();
        fs::write(tree.join("a/file"), "").unwrap();
        fs::hard_link(tree.join("a/file"), tree.join("a/b/again")).unwrap();
        std::os::unix::fs::symlink("a", tree.join("link")).unwrap();
        assert_eq!(files_to_link(&tree).unwrap(), 3);
        for other in ["missing", "fs/a/file", "fs/link"] {
            let error = files_to_link(dir.path().join(other)).unwrap_err();
            assert!(matches!(error, Error::NotADirectory { .. }), "{other}: {error}");
        }
    }

    #[test]
    fn a_tree_may_be_deeper_than_a_path_is_long() {
        let dir = tempfile::tempdir().unwrap();
        let mut deepest = openat(CWD, dir.path(), READ, Mode::empty()).unwrap();
        let name = "n".repeat(200);
        for _ in 0..100 {
            mkdirat(&deepest, &name, Mode::RWXU).unwrap();
            deepest = openat(&deepest, &name, READ, Mode::empty()).unwrap();
            openat(&deepest, c"file", rustix::fs::OFlags::CREATE, Mode::RWXU).unwrap();
        }
        assert_eq!(files_to_link(dir.path()).unwrap(), 100);
        crate::remove_tree(dir.path().join(name)).unwrap();
    }
}
