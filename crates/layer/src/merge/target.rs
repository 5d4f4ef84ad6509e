//! The directory that is merged into: made ready, and made as it was.

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir, fstat, mkdirat, openat, unlinkat};
use rustix::io::Errno;

use crate::attributes::{Attributes, Keep, XattrList, strip};
use crate::sources::Sources;
use crate::walk::{self, PATH, READ};
use crate::{Error, Result, remove};

/// The root of the merged tree. Until it is finished nobody but its owner can enter it.
#[derive(Debug)]
pub(super) struct Target {
    path: PathBuf,
    root: OwnedFd,
    before: Before,
}

/// What stood there before.
#[derive(Debug)]
enum Before {
    Nothing { parent: OwnedFd, name: CString },
    EmptyDirectory(Attributes),
}

impl Target {
    pub(super) fn prepare(path: &Path, sources: &Sources) -> Result<Self> {
        // `to/` and `to/.` would follow `to`.
        let path: PathBuf = path.components().collect();
        let io = |operation| Error::io::<Errno>(operation, &path);
        match openat(CWD, &path, READ, Mode::empty()) {
            Ok(root) => {
                refuse_inside(&path, root.as_fd(), sources)?;
                let names = XattrList::of(root.as_fd()).map_err(io("list the extended attributes of"))?;
                let attributes =
                    Attributes::of(root.as_fd(), &names, Keep::All).map_err(io("read the attributes of"))?;
                if !is_empty(root.as_fd()).map_err(io("read"))? {
                    return Err(Error::TargetNotEmpty { path });
                }
                let target = Self { path, root, before: Before::EmptyDirectory(attributes) };
                target.make_ready()
            }
            Err(Errno::NOENT) => {
                let parent_path = match path.parent() {
                    Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
                    Some(parent) => parent,
                    None => return Err(io("open")(Errno::NOENT)),
                };
                let parent = openat(CWD, parent_path, PATH.difference(OFlags::NOFOLLOW), Mode::empty())
                    .map_err(Error::io("open", parent_path))?;
                refuse_inside(&path, parent.as_fd(), sources)?;
                let name = path.file_name().ok_or(Errno::INVAL).and_then(walk::as_c_string).map_err(io("make"))?;
                mkdirat(&parent, &name, Mode::RWXU).map_err(io("make"))?;
                match openat(&parent, &name, READ, Mode::empty()) {
                    Ok(root) => Self { path, root, before: Before::Nothing { parent, name } }.make_ready(),
                    Err(errno) => {
                        let _not_there_or_not_ours = unlinkat(&parent, &name, AtFlags::REMOVEDIR);
                        Err(io("open")(errno))
                    }
                }
            }
            Err(Errno::NOTDIR | Errno::LOOP) => {
                Err(Error::NotADirectory { path, expected: "a new or an empty directory to merge into" })
            }
            Err(errno) => Err(io("open")(errno)),
        }
    }

    fn make_ready(self) -> Result<Self> {
        match strip(self.root.as_fd()) {
            Ok(()) => Ok(self),
            Err(errno) => {
                let failure = Error::io("change the attributes of", &self.path)(errno);
                Err(self.undo(failure, NonZeroUsize::MIN))
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Takes everything away that was made and puts back what was there. Returns `failure`, or one that holds it and
    /// says what is left.
    pub(super) fn undo(self, failure: Error, threads: NonZeroUsize) -> Error {
        let Self { path, root, before } = self;
        let cleanup = match before {
            Before::Nothing { parent, name } => {
                drop(root);
                remove::remove_at(parent.as_fd(), &name, &path, threads)
            }
            Before::EmptyDirectory(attributes) => remove::empty(root.as_fd(), &path, threads).and_then(|()| {
                let restored = strip(root.as_fd()).and_then(|()| attributes.apply(root.as_fd()));
                restored.map_err(Error::io("restore the attributes of", &path))
            }),
        };
        match cleanup {
            Ok(()) => failure,
            Err(cleanup) => Error::Leftover { left: path, failure: Box::new(failure), cleanup: Box::new(cleanup) },
        }
    }
}

/// Refuses a target in `dir` if that is, or lies inside, one of the sources.
fn refuse_inside(path: &Path, dir: BorrowedFd<'_>, sources: &Sources) -> Result<()> {
    let io = || Error::io::<Errno>("look at the parents of", path);
    for above in walk::upwards(dir).map_err(io())? {
        let stat = above.and_then(fstat).map_err(io())?;
        if let Some(source_tree) = sources.find(walk::identity(&stat)) {
            return Err(Error::TargetInsideSource { target: path.into(), source_tree: source_tree.into() });
        }
    }
    Ok(())
}

fn is_empty(dir: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    let mut buffer = [MaybeUninit::uninit(); 1024];
    let mut entries = RawDir::new(dir, &mut buffer);
    while let Some(entry) = entries.next() {
        if !walk::is_dots(entry?.file_name()) {
            return Ok(false);
        }
    }
    Ok(true)
}
