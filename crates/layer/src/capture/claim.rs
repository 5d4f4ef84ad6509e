//! The right to make a layer, for one capture at a time.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, Stat, flock, fstat, mkdir, mknodat, openat, rmdir, statat,
    unlinkat,
};
use rustix::io::Errno;

use crate::walk::{READ, as_os_str};
use crate::{Error, Layer, Result, remove};

/// In a layer's directory while a tree is on its way there: what stands at `fs` beside it is not whole unless `layer.json`
/// says so.
pub(crate) const MARK: &CStr = c".capturing";

/// A layer that nobody else captures. The lock, flock(2) of the layer's directory, goes with the process, however it ends; the
/// mark stays then, and tells the next one that what it finds is nobody's.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    layer: &'a Layer,
    dir: OwnedFd,
    /// Whether the directory has been made for this.
    made: bool,
    /// Whether the tree stands elsewhere and has to be moved there.
    moves: bool,
    /// Whether a tree is there that a killed capture has left.
    leftover: bool,
}

impl<'a> Claim<'a> {
    /// Takes the layer, whose directory is made if it is missing. `upper` is what is to be its tree: it may stand there
    /// already.
    pub(super) fn take(layer: &'a Layer, upper: &Stat) -> Result<Self> {
        let path = layer.path();
        loop {
            let made = match mkdir(path, Mode::from_raw_mode(0o755)) {
                Ok(()) => true,
                Err(Errno::EXIST) => false,
                Err(errno) => return Err(Error::io("make", path)(errno)),
            };
            let dir = match openat(CWD, path, READ.difference(OFlags::NOFOLLOW), Mode::empty()) {
                Ok(dir) => dir,
                Err(Errno::NOTDIR) => {
                    return Err(Error::NotADirectory {
                        path: path.into(),
                        expected: "a layer, new or without layer.json",
                    });
                }
                Err(errno) => return Err(Error::io("open", path)(errno)),
            };
            match flock(&dir, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Err(Error::AlreadyCaptured { layer: path.into() }),
                Err(errno) => return Err(Error::io("lock", path)(errno)),
            }
            // Whoever had the lock before may have removed the directory under it.
            if fstat(&dir).map_err(Error::io("look at", path))?.st_nlink > 0 {
                let mut claim = Self { layer, dir, made, moves: true, leftover: false };
                return match claim.clear(upper) {
                    Ok(()) => Ok(claim),
                    Err(error) => {
                        claim.give_up();
                        Err(error)
                    }
                };
            }
        }
    }

    /// Looks at what is there, and takes away what a capture has left that was killed.
    fn clear(&mut self, upper: &Stat) -> Result<()> {
        let path = self.layer.path();
        if self.has(c"layer.json")?.is_some() {
            return Err(Error::AlreadyCaptured { layer: path.into() });
        }
        match (self.has(c"fs")?, self.has(MARK)?) {
            (Some(tree), _) if (tree.st_dev, tree.st_ino) == (upper.st_dev, upper.st_ino) => {
                // No mark: if this is killed, the tree is still the caller's.
                self.moves = false;
                return Ok(());
            }
            (Some(_), None) => return Err(Error::TreeInTheWay { path: self.layer.fs() }),
            (Some(_), Some(_)) => {
                self.leftover = true;
                remove::remove_at(self.dir.as_fd(), c"fs", &self.layer.fs(), remove::USUAL_THREADS)?;
                self.leftover = false;
            }
            (None, _) => {}
        }
        match mknodat(&self.dir, MARK, FileType::RegularFile, Mode::RUSR | Mode::WUSR, 0) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(Error::io("create a mark in", path)(errno)),
        }
    }

    fn has(&self, name: &CStr) -> Result<Option<Stat>> {
        match statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(Error::io("look at", self.layer.path().join(as_os_str(name)))(errno)),
        }
    }

    /// Whether the tree has to be moved: it does not stand in the layer already.
    pub(super) fn moves(&self) -> bool {
        self.moves
    }

    /// What is claimed.
    pub(super) fn layer(&self) -> &Layer {
        self.layer
    }

    /// Its directory.
    pub(super) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Takes the mark away: the layer is whole.
    pub(super) fn unmark(&self) {
        // There need not be one. Beside a layer.json it means nothing.
        let _harmless = unlinkat(&self.dir, MARK, AtFlags::empty());
    }

    /// Leaves the layer's directory as it was found.
    pub(super) fn give_up(self) {
        if !self.leftover {
            self.unmark();
        }
        if self.made {
            // Somebody may have put something in.
            let _not_empty = rmdir(self.layer.path());
        }
    }
}

impl Drop for Claim<'_> {
    /// Closing the directory alone would not do: a process that is just being started may have a copy of the descriptor.
    fn drop(&mut self) {
        let _nobody_has_it_then = flock(&self.dir, FlockOperation::Unlock);
    }
}
