//! What a capture that was killed has left where the layer was to be.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FlockOperation, Mode, RenameFlags, flock, openat, renameat_with, rmdir, statat, unlinkat,
};
use rustix::io::Errno;

use crate::capture::MARK;
use crate::walk::READ;
use crate::{Error, Layer, Result};

/// A directory with a tree that is not whole, and with nobody who is at it.
#[derive(Debug)]
pub(super) struct Abandoned<'a> {
    layer: &'a Layer,
    /// Locked, as captures lock it: none begins here.
    dir: OwnedFd,
}

impl<'a> Abandoned<'a> {
    /// `None` if it is something else: a directory that somebody fills by hand, one with a capture at work, a layer by now.
    pub(super) fn find(layer: &'a Layer) -> Result<Option<Self>> {
        let error = |operation| move |errno: Errno| Error::io(operation, layer.path())(errno);
        let dir = match openat(CWD, layer.path(), READ, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(errno) => return Err(error("open")(errno)),
        };
        let has = |name| match statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(error("look into")(errno)),
        };
        // Not locked before there is a reason: a capture that begins meanwhile would be told that another is at it.
        if !has(MARK)? {
            return Ok(None);
        }
        match flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(errno) => return Err(error("lock")(errno)),
        }
        // Or it has been finished, or taken away, before the lock was had.
        let is_one = has(MARK)? && !has(c"layer.json")?;
        Ok(is_one.then_some(Self { layer, dir }))
    }

    /// Moves the tree to `to`, takes the mark away and, if nothing else is in it, the directory. Others' files stay.
    pub(super) fn take_away(self, to: &Path) -> Result<()> {
        match renameat_with(&self.dir, c"fs", CWD, to, RenameFlags::NOREPLACE) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(Error::io("take away", self.layer.fs())(errno)),
        }
        unlinkat(&self.dir, MARK, AtFlags::empty()).map_err(Error::io("take a mark out of", self.layer.path()))?;
        match rmdir(self.layer.path()) {
            Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
            Err(errno) => Err(Error::io("remove", self.layer.path())(errno)),
        }
    }
}

impl Drop for Abandoned<'_> {
    fn drop(&mut self) {
        // Closing would not do for a moment, if a child is just being started.
        let _closed_soon = flock(&self.dir, FlockOperation::Unlock);
    }
}
