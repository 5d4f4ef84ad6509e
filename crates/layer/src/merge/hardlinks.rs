//! Keeps hard links among copies: a file that has several names in a layer stays one file.
//! `relink.rs` repairs files that were linked under some of their names and copied under others.

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
    /// The number of names of the original that the merge has not met yet. `None` if some names
    /// have been linked, because the number is unknown then.
    left: Option<u64>,
}

impl HardLinks {
    /// Locks the copies for one thread. A thread that meets a second name of a file waits until the
    /// first has been copied.
    pub(super) fn lock(&self) -> MutexGuard<'_, Copies> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Copies {
    /// Links `name` in `to` to the copy of `original`. Returns false if there is no copy yet, or if
    /// the copy has reached the limit of links.
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

    /// Records that the copy of `original` is `name` in `dir`. `why` is the reason why `original`
    /// could not be linked.
    pub(super) fn insert(&mut self, original: &Stat, dir: &Arc<DirNode>, name: &CStr, why: Errno) {
        // The links to the original that were made before it reached the limit are the same file,
        // and `relink` must find them.
        let split = why == Errno::MLINK;
        self.split |= split;
        let names: u64 = original.st_nlink as _;
        let left = if split { None } else { Some(names - 1) };
        self.of.insert((original.st_dev, original.st_ino), Copy { dir: Arc::clone(dir), name: name.into(), left });
    }

    /// Returns whether files may have been linked under some of their names and copied under
    /// others.
    pub(super) fn are_split(&self) -> bool {
        self.split
    }

    /// Returns whether the file is an original that has a copy.
    pub(super) fn have(&self, original: &Stat) -> bool {
        self.of.contains_key(&(original.st_dev, original.st_ino))
    }
}
