//! Opens the trees of a stack with few descriptors. `view.rs` and `merge` decide what the trees
//! show together.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, fstat, openat};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use crate::error::{Error, Instead, Result};
use crate::tree::walk::{self, Identity, PATH};

/// The part of the process's descriptors that the roots of trees may use: one in `SHARE`. The other
/// roots are opened again for each of their directories. So a thousand layers need only a quarter
/// of the usual limit of 1,024.
const SHARE: u64 = 4;

/// The treatment of a directory of a tree that this process may not list or search.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Unreadable {
    /// It is an error.
    #[default]
    Refused,
    /// Its entries are not listed, and it hides the directories of its name below.
    Hidden,
}

/// The trees of a stack, topmost first.
#[derive(Debug)]
pub(crate) struct Sources {
    /// The directory in which relative paths start. The workers of a merge have other working
    /// directories.
    start: OwnedFd,
    trees: Vec<Tree>,
}

#[derive(Debug)]
struct Tree {
    path: PathBuf,
    identity: Identity,
    root: Option<OwnedFd>,
}

/// The root of a tree, either kept open or opened for one use.
pub(crate) enum Root<'a> {
    Held(BorrowedFd<'a>),
    Opened(OwnedFd),
}

impl AsFd for Root<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Root::Held(root) => *root,
            Root::Opened(root) => root.as_fd(),
        }
    }
}

impl Sources {
    /// Opens the trees at `paths`, topmost first.
    pub(crate) fn open(paths: &[impl AsRef<Path>]) -> Result<Self> {
        Self::open_and_hold(paths, most_held(), |_, error| Err(error))
    }

    /// Opens those of the trees that exist. Also returns the first that does not.
    pub(crate) fn open_existing(paths: &[impl AsRef<Path>]) -> Result<(Self, Option<PathBuf>)> {
        let mut missing = None;
        let opened = Self::open_and_hold(paths, most_held(), |path, error| match path.symlink_metadata() {
            Ok(_) => Err(error),
            Err(_) => {
                missing.get_or_insert(path.into());
                Ok(())
            }
        })?;
        Ok((opened, missing))
    }

    /// Opens the trees, and skips one if `skip` returns no error for it.
    fn open_and_hold(
        paths: &[impl AsRef<Path>],
        most_held: usize,
        mut skip: impl FnMut(&Path, Error) -> Result<()>,
    ) -> Result<Self> {
        let start = openat(CWD, c".", PATH, Mode::empty()).map_err(Error::io("open", "."))?;
        let mut trees = Vec::with_capacity(paths.len());
        for given in paths {
            // With `fs/` or `fs/.`, the kernel would follow a symbolic link `fs`.
            let path: PathBuf = given.as_ref().components().collect();
            let root = match open_root(start.as_fd(), &path, PATH) {
                Ok(root) => root,
                Err(error) => {
                    skip(given.as_ref(), error)?;
                    continue;
                }
            };
            let stat = fstat(&root).map_err(Error::io("look at", &path))?;
            let held = (trees.len() < most_held).then_some(root);
            trees.push(Tree { path, identity: walk::identity(&stat), root: held });
        }
        Ok(Self { start, trees })
    }

    pub(crate) fn len(&self) -> usize {
        self.trees.len()
    }

    /// Returns the path of a tree as the caller gave it, without a slash at its end.
    pub(crate) fn path(&self, tree: usize) -> &Path {
        &self.trees[tree].path
    }

    /// Returns the path of the tree whose root has this identity.
    pub(crate) fn find(&self, identity: Identity) -> Option<&Path> {
        self.trees.iter().find(|tree| tree.identity == identity).map(|tree| tree.path.as_path())
    }

    /// Returns the root of a tree. Fails with `ESTALE` if it is opened again and is another
    /// directory now.
    pub(crate) fn root(&self, tree: usize) -> rustix::io::Result<Root<'_>> {
        let Tree { path, identity, root } = &self.trees[tree];
        if let Some(root) = root {
            return Ok(Root::Held(root.as_fd()));
        }
        let root = openat(&self.start, path, PATH, Mode::empty())?;
        let stat = fstat(&root)?;
        if *identity != walk::identity(&stat) {
            return Err(Errno::STALE);
        }
        Ok(Root::Opened(root))
    }
}

/// Returns the number of roots that may stay open.
fn most_held() -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit / SHARE).unwrap_or(usize::MAX)
}

/// Opens the root of the tree at `path`, which is relative to `start`. Does not follow a symbolic
/// link at `path` itself.
///
/// # Errors
/// [`Error::NotADirectory`] if `path` is not a directory or does not exist, [`Error::Io`] if it
/// cannot be opened.
pub(super) fn open_root(start: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd> {
    openat(start, path, flags, Mode::empty()).map_err(|errno| match errno {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP => {
            let instead = if errno == Errno::NOENT { Instead::Nothing } else { Instead::File };
            Error::NotADirectory { path: path.into(), instead, expected: "a layer's tree" }
        }
        errno => Error::io("open", path)(errno),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_root_that_is_opened_again_must_be_the_same_directory() {
        let dir = tempfile::tempdir().unwrap();
        let paths = [dir.path().join("held"), dir.path().join("opened")];
        paths.iter().for_each(|path| fs::create_dir(path).unwrap());
        let sources = Sources::open_and_hold(&paths, 1, |_, error| Err(error)).unwrap();
        assert!(matches!(sources.root(0), Ok(Root::Held(_))));
        assert!(matches!(sources.root(1), Ok(Root::Opened(_))));
        for (index, path) in paths.iter().enumerate() {
            fs::rename(path, path.with_extension("old")).unwrap();
            fs::create_dir(path).unwrap();
            let root = sources.root(index).map(drop);
            assert_eq!(root, if index == 0 { Ok(()) } else { Err(Errno::STALE) });
        }
    }
}
