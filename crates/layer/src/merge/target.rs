//! Prepares the target directory of a merge, and restores it after a merge that failed.
//! `directory.rs` fills it.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FlockOperation, Mode, OFlags, XattrFlags, fremovexattr, fsetxattr, mkdirat, openat, unlinkat,
};
use rustix::io::Errno;

use crate::display::quoted;
use crate::error::{Error, Result};
use crate::stack::overlayfs::XattrNamespace;
use crate::stack::sources::Sources;
use crate::tree::attributes::{Attributes, Keep, strip};
use crate::tree::locked_dir::{Attempt, LockedDir};
use crate::tree::remove;
use crate::tree::walk::work_queue::Threads;
use crate::tree::walk::{self, PATH, READ};
use crate::tree::xattr::XattrList;

/// The root of the merged tree. Until it is finished, only its owner can enter it.
#[derive(Debug)]
pub(super) struct Target {
    root: LockedDir,
    before: Before,
}

/// The state of the path before the merge.
#[derive(Debug)]
enum Before {
    Nothing { parent: OwnedFd, name: CString },
    EmptyDirectory(Attributes),
}

impl Target {
    /// Makes the directory at `path`. If it exists already, it must be empty or left by a killed
    /// merge.
    pub(super) fn prepare(path: &Path, sources: &Sources, xattrs: XattrNamespace) -> Result<Self> {
        // With `to/` or `to/.`, the kernel would follow a symbolic link `to`.
        let path: PathBuf = path.components().collect();
        let io = |operation| Error::io::<Errno>(operation, &path);
        match openat(CWD, &path, READ, Mode::empty()) {
            Ok(root) => {
                refuse_inside(&path, root.as_fd(), sources)?;
                let names = XattrList::of(root.as_fd()).map_err(io("list the extended attributes of"))?;
                let attributes =
                    Attributes::of(root.as_fd(), &names, Keep::All).map_err(io("read the attributes of"))?;
                let target = Self::lock(path, root, Before::EmptyDirectory(attributes))?;
                if !walk::is_empty(target.root()).map_err(Error::io("read", target.path()))? {
                    if !names.has(mark(xattrs)) {
                        return Err(Error::TargetNotEmpty { path: target.path().into() });
                    }
                    log::debug!("{}: removing the entries that a killed merge has left", quoted(target.path()));
                    remove::empty(target.root(), target.path(), remove::USUAL_THREADS)?;
                }
                target.make_ready(xattrs)
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
                    Ok(root) => Self::lock(path, root, Before::Nothing { parent, name })?.make_ready(xattrs),
                    Err(errno) => {
                        let _not_there_or_not_ours = unlinkat(&parent, &name, AtFlags::REMOVEDIR);
                        Err(io("open")(errno))
                    }
                }
            }
            Err(Errno::NOTDIR | Errno::LOOP) => {
                Err(Error::not_a_directory(path, "a new or an empty directory to merge into"))
            }
            Err(errno) => Err(io("open")(errno)),
        }
    }

    /// Locks the directory, which keeps other merges out until this one has ended.
    fn lock(path: PathBuf, root: OwnedFd, before: Before) -> Result<Self> {
        match LockedDir::attempt(root, &path, FlockOperation::NonBlockingLockExclusive)? {
            Attempt::Locked(root) => Ok(Self { root, before }),
            Attempt::Busy => Err(Error::TargetInUse { path }),
            Attempt::Gone => Err(Error::io("lock", path)(Errno::NOENT)),
        }
    }

    /// [Strips](strip) the directory of its attributes, and marks it as being filled.
    fn make_ready(self, xattrs: XattrNamespace) -> Result<Self> {
        let marked = strip(self.root.as_fd()).and_then(|()| {
            match fsetxattr(&self.root, mark(xattrs), b"", XattrFlags::empty()) {
                // Without the mark, a user must remove by hand the entries that a killed merge
                // leaves.
                Err(Errno::PERM | Errno::NOTSUP | Errno::NOSPC) => Ok(()),
                marked => marked,
            }
        });
        match marked {
            Ok(()) => Ok(self),
            Err(errno) => {
                let failure = Error::io("change the attributes of", self.path())(errno);
                Err(self.undo(failure, Threads::Usual))
            }
        }
    }

    /// Removes the mark, because the directory is filled.
    pub(super) fn finish(&self, xattrs: XattrNamespace) -> Result<()> {
        match fremovexattr(&self.root, mark(xattrs)) {
            Ok(()) | Err(Errno::NODATA | Errno::PERM | Errno::NOTSUP) => Ok(()),
            Err(errno) => Err(Error::io("remove an extended attribute of", self.path())(errno)),
        }
    }

    pub(super) fn path(&self) -> &Path {
        self.root.path()
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Removes everything that the merge made, and restores the state before it. Returns `failure`.
    /// If the clean-up fails, too, returns an error that contains both failures and names the path.
    pub(super) fn undo(self, failure: Error, threads: Threads) -> Error {
        let Self { root, before } = self;
        let path = root.path().to_path_buf();
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

/// Returns the name of the extended attribute that marks a target as being filled.
fn mark(xattrs: XattrNamespace) -> &'static str {
    match xattrs {
        XattrNamespace::Trusted => "trusted.layered.merging",
        XattrNamespace::User => "user.layered.merging",
    }
}

/// Refuses the target `path` if `dir`, its parent or the target itself, is a source or lies inside
/// one.
fn refuse_inside(path: &Path, dir: BorrowedFd<'_>, sources: &Sources) -> Result<()> {
    for above in walk::upwards(dir) {
        let (_, stat) = above.map_err(Error::io("look at the parents of", path))?;
        if let Some(source_tree) = sources.find(walk::identity(&stat)) {
            return Err(Error::TargetInsideSource { target: path.into(), source_tree: source_tree.into() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::layer::access::Access;
    use crate::merge::Merge;

    const XATTRS: XattrNamespace = XattrNamespace::User;

    fn layers(dir: &Path) -> [PathBuf; 1] {
        let layer = dir.join("layer");
        fs::create_dir_all(layer.join("usr")).unwrap();
        fs::write(layer.join("usr/file"), "").unwrap();
        fs::set_permissions(&layer, Permissions::from_mode(0o755)).unwrap();
        [layer]
    }

    #[test]
    fn the_target_of_a_killed_merge_is_filled_again() {
        let dir = tempfile::tempdir().unwrap();
        let (layers, path) = (layers(dir.path()), dir.path().join("target"));
        let merge = Merge::new().xattrs(XATTRS);
        let sources = Sources::open(&layers).unwrap();
        let target = Target::prepare(&path, &sources, XATTRS).unwrap();
        assert!(matches!(merge.run(&layers, &path), Err(Error::TargetInUse { path: named }) if named == path));
        // A killed merge neither finishes nor undoes its target.
        fs::create_dir_all(path.join("usr/half")).unwrap();
        drop(target);
        merge.run(&layers, &path).unwrap();
        assert!(path.join("usr/file").exists() && !path.join("usr/half").exists());
        assert!(matches!(merge.run(&layers, &path), Err(Error::TargetNotEmpty { path: named }) if named == path));
    }

    #[test]
    fn the_root_has_the_mode_of_the_topmost_layer_or_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let layers = layers(dir.path());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        for (name, access, expected) in [("open", None, 0o755), ("closed", Some(Access::default()), 0o700)] {
            let path = dir.path().join(name);
            let mut merge = Merge::new().xattrs(XATTRS);
            if let Some(access) = access {
                merge = merge.access(access);
            }
            merge.run(&layers, &path).unwrap();
            assert_eq!((mode(&path), mode(&path.join("usr"))), (expected, 0o755), "{access:?}");
        }
    }
}
