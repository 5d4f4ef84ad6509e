//! Hard links among copies: a file that has several names in a layer stays one file. `relink.rs`
//! repairs files that were linked under some of their names and copied under others.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, Stat, linkat};
use rustix::io::Errno;

use super::node::DirNode;
use crate::tree::walk::{Identity, PATH, open_beneath};

/// The copies of files that have several names.
#[derive(Debug, Default)]
pub(super) struct HardLinks {
    copies: Mutex<Copies>,
}

/// For each original, the place of its copy.
#[derive(Debug, Default)]
pub(super) struct Copies {
    of: HashMap<Identity, Copy>,
    split: bool,
}

#[derive(Debug)]
struct Copy {
    dir: Arc<DirNode>,
    name: CString,
    /// The number of names of the original that the merge has not met yet; unknown if some of them
    /// have been linked.
    left: Option<u64>,
}

impl HardLinks {
    /// Returns the copies, for one thread at a time: a thread with a second name waits until the
    /// first has been copied.
    pub(super) fn lock(&self) -> MutexGuard<'_, Copies> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Copies {
    /// Makes `name` in `to` another name of the copy of `original`. Returns false if there is no
    /// copy yet, or if it has as many names as it can have.
    pub(super) fn link(
        &mut self,
        original: &Stat,
        target: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &CStr,
    ) -> rustix::io::Result<bool> {
        let identity = (original.st_dev, original.st_ino);
        let Some(copy) = self.of.get_mut(&identity) else { return Ok(false) };
        let dir = open_beneath(target, &copy.dir.path(), PATH)?;
        match linkat(&dir, &copy.name, to, name, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::MLINK) => return Ok(false),
            Err(error) => return Err(error),
        }
        if let Some(left) = &mut copy.left {
            *left -= 1;
            if *left == 0 {
                self.of.remove(&identity);
            }
        }
        Ok(true)
    }

    /// Records that the copy of `original` is `name` in `dir`, and `why` it could not be linked.
    pub(super) fn insert(&mut self, original: &Stat, dir: &Arc<DirNode>, name: &CStr, why: Errno) {
        // The links that were made before the limit was reached are of the same file, and have to
        // be found again.
        let split = why == Errno::MLINK;
        self.split |= split;
        let names: u64 = original.st_nlink as _;
        let left = if split { None } else { Some(names - 1) };
        self.of.insert((original.st_dev, original.st_ino), Copy { dir: Arc::clone(dir), name: name.into(), left });
    }

    /// Whether files may have been linked under some of their names and copied under others.
    pub(super) fn are_split(&self) -> bool {
        self.split
    }

    /// Whether the file is an original that has a copy.
    pub(super) fn have(&self, original: &Stat) -> bool {
        self.of.contains_key(&(original.st_dev, original.st_ino))
    }
}
