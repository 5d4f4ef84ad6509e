//! Opens the upper to capture, and moves it into the layer. `lock.rs` provides the layer's
//! directory.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Stat, fstat, openat, statat};
use rustix::io::Errno;

use super::lock::CaptureLock;
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::tree::rename::rename_new;
use crate::tree::walk::{self, PATH, Place, READ};

/// The upper directory to capture.
pub(super) struct Upper {
    pub(super) path: PathBuf,
    parent: OwnedFd,
    name: CString,
    pub(super) root: OwnedFd,
    pub(super) stat: Stat,
}

impl Upper {
    pub(super) fn open(path: &Path) -> Result<Self> {
        // Removes a trailing `/` or `/.`, with which the kernel would follow a symbolic link.
        let path: PathBuf = path.components().collect();
        let expected = "an upper directory, what an overlay has written";
        let Some(name) = path.file_name() else { return Err(Error::not_a_directory(path, expected)) };
        let name = walk::as_c_string(name).map_err(Error::io("open", &path))?;
        let above = walk::parent(&path);
        let opened = openat(CWD, above, PATH.difference(OFlags::NOFOLLOW), Mode::empty())
            .and_then(|parent| Ok((openat(&parent, &name, READ, Mode::empty())?, parent)));
        match opened {
            Ok((root, parent)) => {
                let stat = fstat(&root).map_err(Error::io("look at", &path))?;
                Ok(Self { path, parent, name, root, stat })
            }
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Err(Error::not_a_directory(path, expected)),
            Err(errno) => Err(Error::io("open", path)(errno)),
        }
    }

    /// Returns the absolute path of the upper, without symbolic links.
    pub(super) fn real_path(&self) -> rustix::io::Result<PathBuf> {
        Ok(walk::path_of(self.parent.as_fd())?.join(walk::as_os_str(&self.name)))
    }

    /// Checks that the upper can be moved into the layer's directory. The capture calls this before
    /// it changes the upper.
    pub(super) fn require_same_mount(&self, lock: &CaptureLock<'_>) -> Result<()> {
        let place = |file: BorrowedFd<'_>| {
            let Place { identity: (device, _), mount } = Place::of(file, c"")?;
            Ok::<_, Errno>((device, mount))
        };
        // Check the upper's parent, too: the upper may be a mount point.
        let places = [self.root.as_fd(), self.parent.as_fd(), lock.dir()].map(place);
        match places {
            [Ok(root), Ok(parent), Ok(layer)] if root == layer && parent == layer => Ok(()),
            [Err(errno), ..] | [_, Err(errno), _] | [.., Err(errno)] => Err(Error::io("look at", &self.path)(errno)),
            _ => Err(Error::OtherFileSystem { upper: self.path.clone(), layer: lock.layer().path().into() }),
        }
    }

    /// Moves the upper to `fs` in the layer's directory. Nothing may exist there.
    pub(super) fn move_to(&self, dir: BorrowedFd<'_>, layer: &Layer) -> Result<()> {
        // Another directory may have replaced the upper.
        match statat(&self.parent, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if (stat.st_dev, stat.st_ino) == (self.stat.st_dev, self.stat.st_ino) => {}
            Ok(_) => return Err(Error::io("move", &self.path)(Errno::STALE)),
            Err(errno) => return Err(Error::io("move", &self.path)(errno)),
        }
        rename_new(self.parent.as_fd(), &*self.name, dir, c"fs").map_err(Error::io("move the upper to", layer.fs()))
    }

    /// Undoes [`move_to`](Self::move_to) after `failure`. Returns `failure`, or an error that also
    /// says where the upper is now.
    pub(super) fn move_back(&self, dir: BorrowedFd<'_>, layer: &Layer, failure: Error) -> Error {
        match rename_new(dir, c"fs", self.parent.as_fd(), &*self.name) {
            Ok(()) => failure,
            Err(errno) => Error::NotMovedBack { left: layer.fs(), failure: Box::new(failure), cleanup: errno.into() },
        }
    }
}
