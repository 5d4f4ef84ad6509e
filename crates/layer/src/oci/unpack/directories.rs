//! The attributes of directories, which are set when everything else has been unpacked: a default
//! ACL or a setgid bit would pass to new files, and a new file changes the time of its directory.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, Timespec, fstat, openat};

use crate::error::Error;
use crate::oci::error::Problem;
use crate::stack::overlayfs::XattrNamespace;
use crate::tree::attributes::{Attributes, Keep};
use crate::tree::walk::{Entries, Identity, READ, identity, open_above, open_in};
use crate::tree::xattr::XattrList;

/// The most memory that the attributes of all directories of a tree take, in bytes: those of 1.3
/// million directories without extended attributes. Attributes that a layer replaces do not count.
const MAX_BYTES: usize = 256 << 20;

/// The memory of one directory without its extended attributes, roughly.
const USUAL_BYTES: usize = 200;

/// The time of a directory that no archive has an entry for. The time of the import would make two
/// imports of one image differ.
const NO_TIME: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// The attributes of all directories of a tree.
#[derive(Default)]
pub(super) struct Directories {
    root: Identity,
    attributes: HashMap<Identity, Attributes>,
    /// Those that have an entry in the layer that is being unpacked.
    entered: HashSet<Identity>,
    bytes: usize,
}

impl Directories {
    pub(super) fn new(root: Identity) -> Self {
        Self { root, attributes: HashMap::from([(root, unknown())]), ..Self::default() }
    }

    pub(super) fn root(&self) -> Identity {
        self.root
    }

    pub(super) fn begin_layer(&mut self) {
        self.entered.clear();
    }

    /// Adds a new directory. It gets the attributes of one without an entry, until it gets others.
    pub(super) fn add(&mut self, directory: Identity) -> Result<(), Problem> {
        // The number of a removed directory may be in use again.
        self.entered.remove(&directory);
        self.insert(directory, unknown())
    }

    /// Sets the attributes of a directory that has an entry.
    pub(super) fn set(&mut self, directory: Identity, attributes: Attributes) -> Result<(), Problem> {
        self.entered.insert(directory);
        self.insert(directory, attributes)
    }

    /// Sets the attributes of a directory that has no entry to those that it has in a layer below.
    pub(super) fn inherit(&mut self, directory: Identity, attributes: Attributes) -> Result<(), Problem> {
        self.insert(directory, attributes)
    }

    /// Takes from a directory the attributes that it has from a layer below.
    pub(super) fn forget_below(&mut self, directory: Identity) {
        if let Some(attributes) = self.attributes.get_mut(&directory).filter(|_| !self.entered.contains(&directory)) {
            *attributes = unknown();
        }
    }

    /// Gives the root the attributes of the root of the layer below, in case that it has no entry.
    pub(super) fn inherit_root(&mut self, below: &Path, xattrs: XattrNamespace) -> Result<(), Error> {
        self.attributes.insert(self.root, attributes_of(below, xattrs)?);
        Ok(())
    }

    /// Returns whether the layer that is being unpacked has an entry for the root.
    pub(super) fn has_root(&self) -> bool {
        self.entered.contains(&self.root)
    }

    fn insert(&mut self, directory: Identity, attributes: Attributes) -> Result<(), Problem> {
        self.bytes += cost(&attributes);
        if let Some(replaced) = self.attributes.insert(directory, attributes) {
            self.bytes = self.bytes.saturating_sub(cost(&replaced));
        }
        match self.bytes > MAX_BYTES {
            true => Err(Problem::AttributesTooLarge { max_bytes: MAX_BYTES }),
            false => Ok(()),
        }
    }

    /// Sets the attributes of every directory below `root`, and then of `root`, by `set`.
    pub(super) fn apply(
        mut self,
        root: BorrowedFd<'_>,
        mut set: impl FnMut(Attributes, BorrowedFd<'_>) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        let failed = || Problem::io("set the attributes of the directories of");
        let mut dir = openat(root, c".", READ, Mode::empty()).map_err(failed())?;
        // The directories on the way. Only the last one is open, because a tree can be deeper than
        // the limit of open files.
        let mut way = vec![Listed::new(dir.as_fd()).map_err(failed())?];
        while let Some(here) = way.last_mut() {
            if let Some(name) = here.names.pop() {
                dir = open_in(dir.as_fd(), &name, READ).map_err(failed())?;
                way.push(Listed::new(dir.as_fd()).map_err(failed())?);
                continue;
            }
            let identity = here.identity;
            way.pop();
            // A directory's own mode can forbid its owner to leave it by `..`.
            let above = way.last().map(|above| open_above(dir.as_fd(), above.identity));
            let above = above.transpose().map_err(failed())?;
            if let Some(attributes) = self.attributes.remove(&identity) {
                set(attributes, dir.as_fd())?;
            }
            if let Some(above) = above {
                dir = above;
            }
        }
        Ok(())
    }
}

/// Returns whether the root of a layer looks as one without an entry and without a layer below,
/// except for its time.
pub(crate) fn has_usual_root(tree: &Path, xattrs: XattrNamespace) -> Result<bool, Error> {
    Ok(attributes_of(tree, xattrs)?.look_like_but_for_time(&unknown()))
}

fn attributes_of(dir: &Path, xattrs: XattrNamespace) -> Result<Attributes, Error> {
    let failed = |operation| Error::io(operation, dir);
    let dir = openat(CWD, dir, READ, Mode::empty()).map_err(failed("open"))?;
    let names = XattrList::of(dir.as_fd()).map_err(failed("list the extended attributes of"))?;
    Attributes::of(dir.as_fd(), &names, Keep::Visible(xattrs)).map_err(failed("look at"))
}

/// A directory whose directories still need their attributes.
struct Listed {
    identity: Identity,
    names: Vec<CString>,
}

impl Listed {
    fn new(dir: BorrowedFd<'_>) -> rustix::io::Result<Self> {
        let identity = identity(&fstat(dir)?);
        let mut names = Vec::new();
        for entry in Entries::new(openat(dir, c".", READ, Mode::empty())?)? {
            let (name, kind) = entry?;
            if kind == FileType::Directory {
                names.push(name);
            }
        }
        Ok(Self { identity, names })
    }
}

/// Returns the memory of the attributes of one directory, in bytes.
fn cost(attributes: &Attributes) -> usize {
    let xattrs = attributes.xattrs().iter().map(|(name, value)| name.count_bytes() + value.len());
    USUAL_BYTES + xattrs.sum::<usize>()
}

/// Returns the attributes of a directory that no archive has an entry for.
fn unknown() -> Attributes {
    Attributes::new(FileType::Directory, 0o755, (0, 0), NO_TIME, Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaced_attributes_do_not_count_towards_the_limit() {
        let with = |bytes| {
            let xattrs = vec![(c"user.a".to_owned(), vec![0; bytes])];
            Attributes::new(FileType::Directory, 0o755, (0, 0), NO_TIME, xattrs)
        };
        let mut directories = Directories::new((0, 1));
        for _ in 0..3 {
            directories.set((0, 2), with(MAX_BYTES / 3)).unwrap();
        }
        directories.set((0, 3), with(MAX_BYTES / 3)).unwrap();
        assert!(directories.set((0, 4), with(MAX_BYTES / 2)).is_err());
    }
}
