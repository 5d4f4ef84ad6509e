//! One directory of the merged tree: gathered from all layers that have a part in it, marked, and finished after its
//! children.

use std::ffi::CString;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::fs::{Mode, OFlags, fgetxattr, flistxattr, fstat};
use rustix::io::Errno;

use super::Merged;
use super::hardlinks::Groups;
use super::part::{Gathered, Part};
use crate::error::{Error, Result};
use crate::stack::overlayfs::{self, XattrNamespace};
use crate::stack::sources::Sources;
use crate::tree::attributes::{Attributes, Keep, XattrList};
use crate::tree::walk::{Cursor, ENTRIES_SIZE_BYTES, Node, READ, as_os_str};

/// A directory of the merged tree.
pub(super) type Branch = Node<Note>;

/// The attributes that a directory gets when all below it is done.
pub(super) type Note = Mutex<Option<Attributes>>;

/// A merged directory to fill. It exists already, empty.
pub(super) struct Job {
    branch: Arc<Branch>,
    /// The layers that have a directory of this name, topmost first.
    layers: Vec<usize>,
    /// Whether a layer below these has a file or a whiteout of this name, which ends the directory.
    cut: bool,
    /// Whether a directory above is opaque, so that the base cannot show here in any case.
    hidden: bool,
}

impl Job {
    /// The root of the merge of so many layers.
    pub(super) fn root(layers: usize) -> Self {
        Self { branch: Branch::root(Note::default()), layers: (0..layers).collect(), cut: false, hidden: false }
    }
}

/// What all workers of one merge share.
pub(super) struct Shared<'a> {
    pub(super) sources: &'a Sources,
    pub(super) target: BorrowedFd<'a>,
    pub(super) target_path: &'a Path,
    /// The mode of the target's root, if it is not the topmost layer's.
    pub(super) root_mode: Option<Mode>,
    pub(super) xattrs: XattrNamespace,
    /// Whether nobody waits for the merge any more.
    pub(super) stop: &'a (dyn Fn() -> bool + Sync),
    pub(super) groups: Groups,
    /// Why the first of the files that could not be linked could not.
    pub(super) why_copied: OnceLock<Errno>,
}

impl Shared<'_> {
    /// The path of a directory, or of `name` in it, in a layer.
    pub(super) fn source_path(&self, layer: usize, branch: &Branch, name: Option<&std::ffi::CStr>) -> PathBuf {
        let dir = self.sources.path(layer).join(branch.path());
        name.map_or(dir.clone(), |name| dir.join(as_os_str(name)))
    }

    /// For `map_err`: a failed system call on a directory of the target. Its path is put together only if one has
    /// failed.
    pub(super) fn target_error(&self, operation: &'static str, branch: &Branch) -> impl FnOnce(Errno) -> Error {
        move |errno| Error::io(operation, self.target_path.join(branch.path()))(errno)
    }
}

/// Source directories that a worker keeps open, so that a tree that is deep in a few layers is not walked from its root
/// again and again.
const CURSORS: usize = 4;

/// One thread's means of work.
pub(super) struct Worker<'a> {
    shared: &'a Shared<'a>,
    /// Whether the working directory is this thread's own, so that a name alone can be a path.
    own_cwd: bool,
    entries: Vec<u8>,
    names: XattrList,
    target: Cursor<Note>,
    sources: [(usize, Cursor<Note>); CURSORS],
    merged: Merged,
}

impl<'a> Worker<'a> {
    /// A worker for this thread, which has a working directory of its own from then on.
    pub(super) fn new(shared: &'a Shared<'a>) -> Self {
        let own_cwd = match nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS) {
            Ok(()) => true,
            Err(error) => {
                log::debug!("no working directory of its own for a thread, going through /proc: {error}");
                false
            }
        };
        Self {
            shared,
            own_cwd,
            entries: Vec::with_capacity(ENTRIES_SIZE_BYTES),
            names: XattrList::default(),
            target: Cursor::new(READ),
            sources: std::array::from_fn(|slot| (slot, Cursor::new(READ | OFlags::NOATIME))),
            merged: Merged::default(),
        }
    }

    /// What this worker has made.
    pub(super) fn merged(self) -> Merged {
        self.merged
    }

    /// Fills one directory, and finishes what is done by that; the directories in it go to `found`.
    pub(super) fn fill(&mut self, job: Job, found: &mut Vec<Job>) -> Result<()> {
        let Job { branch, layers, mut cut, hidden } = job;
        let mut gathered = Gathered::default();
        for (index, &layer) in layers.iter().enumerate() {
            let opaque = self.gather(&branch, layer, index + 1 == layers.len(), &mut gathered)?;
            if opaque {
                cut = true;
                break;
            }
        }
        let Gathered { children, whiteouts, attributes, .. } = gathered;
        let hides_base = cut || hidden;
        self.mark(&branch, cut && !hidden, if hides_base { &[] } else { &whiteouts })?;
        *branch.note.lock().unwrap_or_else(PoisonError::into_inner) = attributes;
        self.merged.directories += 1;
        if children.is_empty() {
            return self.finish(branch);
        }
        branch.expect(children.len());
        found.extend(children.into_iter().map(|child| Job {
            branch: Branch::child(&branch, child.name, Note::default()),
            layers: child.layers,
            cut: child.cut,
            hidden: hides_base,
        }));
        Ok(())
    }

    /// Takes from one layer what no layer above has. Returns whether its directory hides what is below.
    fn gather(&mut self, branch: &Arc<Branch>, layer: usize, is_last: bool, gathered: &mut Gathered) -> Result<bool> {
        let shared = self.shared;
        if (shared.stop)() {
            return Err(Error::Stopped { target: shared.target_path.into() });
        }
        let to = self.target.go_either_way(branch, || Ok(shared.target));
        let to = to.map_err(shared.target_error("open", branch))?;
        let io = |operation| move |errno: Errno| Error::io(operation, shared.source_path(layer, branch, None))(errno);

        let (held, cursor) = &mut self.sources[layer % CURSORS];
        if std::mem::replace(held, layer) != layer {
            cursor.leave();
        }
        if let Err(Errno::PERM) = cursor.go(branch, || shared.sources.root(layer)).map(drop) {
            // Only root and the owner may read without leaving a trace.
            *cursor = Cursor::new(READ);
        }
        let from = cursor.go(branch, || shared.sources.root(layer)).map_err(|errno| match errno {
            Errno::XDEV => Error::MountInside { path: shared.source_path(layer, branch, None) },
            errno => io("open")(errno),
        })?;

        let names = &mut self.names;
        names.read(|buffer| flistxattr(from, buffer)).map_err(io("list the extended attributes of"))?;
        let mut opaque = false;
        // What is said of a layer's root is said of the layer, and means nothing: the kernel does not look at it.
        if branch.parent().is_some() {
            if names.has(shared.xattrs.redirect()) {
                let path = shared.source_path(layer, branch, None);
                return Err(Error::Unmergeable { path, xattr: shared.xattrs.redirect() });
            }
            opaque = names.has(shared.xattrs.opaque()) && {
                let mut value = [0; 2];
                match fgetxattr(from, shared.xattrs.opaque(), &mut value) {
                    Ok(length) => overlayfs::is_opaque(&value[..length]),
                    // Longer than any value that means something.
                    Err(Errno::RANGE) => false,
                    Err(errno) => return Err(io("read the extended attributes of")(errno)),
                }
            };
        }
        if gathered.attributes.is_none() {
            let attributes = Attributes::of(from, names, Keep::Visible(shared.xattrs));
            gathered.attributes = Some(attributes.map_err(io("read the attributes of"))?);
        }

        let mut part = Part {
            shared,
            branch,
            layer,
            from,
            to,
            own_cwd: self.own_cwd,
            is_cwd: false,
            no_links: None,
            names: &mut self.names,
            merged: &mut self.merged,
        };
        part.gather(&mut self.entries, is_last || opaque, gathered)?;
        Ok(opaque)
    }

    /// Marks a gathered directory as overlayfs would have.
    fn mark(&mut self, branch: &Arc<Branch>, opaque: bool, whiteouts: &[CString]) -> Result<()> {
        let shared = self.shared;
        let dir = self.target.go_either_way(branch, || Ok(shared.target));
        let dir = dir.map_err(shared.target_error("open", branch))?;
        branch.meet(&fstat(dir).map_err(shared.target_error("look at", branch))?);
        if opaque {
            overlayfs::set_opaque(dir, shared.xattrs).map_err(shared.target_error("make opaque", branch))?;
            self.merged.opaques += 1;
        }
        for name in whiteouts {
            overlayfs::make_whiteout(dir, name).map_err(|errno| {
                let path = shared.target_path.join(branch.path()).join(as_os_str(name));
                Error::io("make the whiteout", path)(errno)
            })?;
        }
        if !whiteouts.is_empty() {
            let marked = overlayfs::set_has_whiteouts(dir, shared.xattrs);
            marked.map_err(shared.target_error("set an extended attribute of", branch))?;
        }
        self.merged.whiteouts += whiteouts.len() as u64;
        Ok(())
    }

    /// Gives a directory that is done its attributes, then its parent, if this was the last child, and so on.
    fn finish(&mut self, mut branch: Arc<Branch>) -> Result<()> {
        let shared = self.shared;
        loop {
            let attributes = branch.note.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(mut attributes) = attributes {
                if let (None, Some(mode)) = (branch.parent(), shared.root_mode) {
                    attributes.set_mode(mode);
                }
                let dir = self.target.go_either_way(&branch, || Ok(shared.target));
                let dir = dir.map_err(shared.target_error("open", &branch))?;
                attributes.apply(dir).map_err(shared.target_error("set the attributes of", &branch))?;
            }
            match branch.parent() {
                Some(parent) if parent.child_done() => branch = Arc::clone(parent),
                _ => return Ok(()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd;

    use rustix::fs::{CWD, XattrFlags, openat, setxattr};

    use super::*;

    /// Fills a target from one layer, by a worker that can have no working directory of its own.
    fn fill_through_proc(layer: &Path, target: &Path) -> Result<Merged> {
        fs::create_dir(target).unwrap();
        let root = openat(CWD, target, READ, Mode::empty()).unwrap();
        let sources = Sources::open(&[layer]).unwrap();
        let shared = Shared {
            sources: &sources,
            target: root.as_fd(),
            target_path: target,
            root_mode: None,
            xattrs: XattrNamespace::User,
            stop: &|| false,
            groups: Groups::default(),
            why_copied: OnceLock::new(),
        };
        std::thread::scope(|scope| {
            let work = || {
                let mut worker = Worker::new(&shared);
                worker.own_cwd = false;
                let mut waiting = vec![Job::root(1)];
                while let Some(job) = waiting.pop() {
                    worker.fill(job, &mut waiting)?;
                }
                Ok(worker.merged())
            };
            scope.spawn(work).join().unwrap()
        })
    }

    #[test]
    fn where_unshare_is_forbidden_attributes_are_read_through_proc() {
        let dir = tempfile::tempdir().unwrap();
        let layer = dir.path().join("layer");
        fs::create_dir_all(layer.join("a/b")).unwrap();
        for name in ["file", "a/file", "a/b/file", "a/b/gone"] {
            fs::write(layer.join(name), "").unwrap();
        }
        setxattr(layer.join("a/b/gone"), "user.overlay.whiteout", b"", XattrFlags::empty()).unwrap();
        let merged = fill_through_proc(&layer, &dir.path().join("first")).unwrap();
        assert_eq!(merged, Merged { linked: 3, directories: 3, whiteouts: 1, ..Merged::default() });

        setxattr(layer.join("a/file"), "user.overlay.metacopy", b"", XattrFlags::empty()).unwrap();
        let error = fill_through_proc(&layer, &dir.path().join("second")).unwrap_err();
        assert!(matches!(&error, Error::Unmergeable { path, .. } if *path == layer.join("a/file")), "{error:?}");
    }
}
