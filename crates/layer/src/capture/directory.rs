//! Changes the directories of an upper so that they are right in any stack, and measures the tree.
//! Before that, `made.rs` removes the files of the run.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{
    AtFlags, FileType, OFlags, RawDir, Stat, Timespec, Timestamps, fgetxattr, flistxattr, fremovexattr, fstat,
    futimens, llistxattr, lremovexattr, statat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::Captured;
use super::lowers::Lowers;
use super::made::modified;
use crate::error::{Error, Result};
use crate::stack::overlayfs::{self, Entry, EntryKind, XattrNamespace};
use crate::stack::view::{Directory, Shown};
use crate::tree::size::Inodes;
use crate::tree::walk::{self, Cursor, ENTRIES_SIZE_BYTES, Node, READ, as_c_string, as_os_str};
use crate::tree::xattr::{XattrList, path_through_proc};

/// A directory of the upper.
pub(super) type DirNode = Node<NodeState>;

/// The work that remains when everything below the directory is done.
pub(super) type NodeState = Mutex<Option<Pending>>;

/// The former times of a directory, and facts about its entries.
#[derive(Debug)]
pub(super) struct Pending {
    modified: Timestamps,
    has_whiteouts: bool,
    /// Whether the capture made or replaced an entry in it, which changes its modification time.
    touched: bool,
}

/// A directory to process.
pub(super) struct Job {
    node: Arc<DirNode>,
    lowers: LowerEntries,
}

/// The visibility of the lowers' entries in a directory.
enum LowerEntries {
    /// They are visible, except those that the directory itself hides by name.
    Shown,
    /// An opaque directory hides them: this one or one above it. The value is the lowers' directory
    /// with this path, if they have one.
    Hidden(Option<Directory>),
}

impl Job {
    pub(super) fn root() -> Self {
        Self { node: DirNode::root(NodeState::default()), lowers: LowerEntries::Shown }
    }
}

/// The state that all workers of one capture share.
pub(super) struct Shared<'a> {
    pub(super) root: BorrowedFd<'a>,
    pub(super) path: &'a Path,
    pub(super) below: &'a Lowers,
    pub(super) xattrs: XattrNamespace,
    /// The latest modification time that a file may have.
    pub(super) latest: Option<Timespec>,
    /// The inodes that are already counted in [`Captured::size`].
    pub(super) inodes: Inodes,
    /// The number of files that are done.
    pub(super) settled: AtomicUsize,
    /// Called once, when [`MANY_FILES`] are done.
    pub(super) many: &'a (dyn Fn() + Sync),
}

/// The number of files from which on the capture writes the tree to the disk while it still walks
/// the tree. For fewer files, the walk is over sooner than a thread and one more sync pay off.
const MANY_FILES: usize = 1000;

/// The state of one thread.
pub(super) struct Worker<'a> {
    shared: &'a Shared<'a>,
    entries: Vec<u8>,
    names: XattrList,
    cursor: Cursor<NodeState>,
    captured: Captured,
}

impl<'a> Worker<'a> {
    pub(super) fn new(shared: &'a Shared<'a>) -> Self {
        Self {
            shared,
            entries: Vec::with_capacity(ENTRIES_SIZE_BYTES),
            names: XattrList::default(),
            cursor: Cursor::new(READ | OFlags::NOATIME),
            captured: Captured::default(),
        }
    }

    /// Returns the counts of this worker.
    pub(super) fn captured(self) -> Captured {
        self.captured
    }

    /// Processes the files of one directory, and adds its subdirectories to `found`. Finishes each
    /// directory that this completes.
    ///
    /// A directory stays opaque until everything below it is done. So the upper shows what it
    /// showed before, even if the capture stops at any moment.
    pub(super) fn settle(&mut self, job: Job, found: &mut Vec<Job>) -> Result<()> {
        let Job { node, lowers } = job;
        let shared = self.shared;
        let error = |operation| shared.error(operation, &node, None);
        if let Err(Errno::PERM) = self.cursor.go_either_way(&node, || Ok(shared.root)).map(drop) {
            // Only root and the owner may use `O_NOATIME`.
            self.cursor = Cursor::new(READ);
        }
        let dir = self.cursor.go_either_way(&node, || Ok(shared.root)).map_err(error("open"))?;
        let stat = fstat(dir).map_err(error("look at"))?;
        node.set_identity(&stat);
        self.names.read(|buffer| flistxattr(dir, buffer)).map_err(error("list the extended attributes of"))?;
        // On the root of an upper, the kernel looks neither at `opaque` nor at `redirect`.
        let opaque = node.parent().is_some()
            && overlayfs::hides_below(dir, Some(&self.names), shared.xattrs)
                .map_err(|why| why.at(shared.path.join(node.path())))?;
        let lowers = match lowers {
            LowerEntries::Shown if opaque => {
                let path = node.path();
                let below = shared.below.whole(&shared.path.join(&path))?;
                LowerEntries::Hidden(directory(below.find(path)?))
            }
            lowers => lowers,
        };
        self.captured.opaques += u64::from(opaque);

        let to_hide = match &lowers {
            LowerEntries::Hidden(Some(directory)) => Some((directory, shared.below.present().names(directory)?)),
            _ => None,
        };
        let mut files = Files {
            shared,
            node: &node,
            dir,
            names: &mut self.names,
            captured: &mut self.captured,
            has_whiteouts: false,
            touched: false,
        };
        let mut children = Vec::new();
        let mut present = HashSet::new();
        let mut entries = RawDir::new(dir, self.entries.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(error("read"))?;
            let name = entry.file_name();
            if walk::is_dots(name) {
                continue;
            }
            if to_hide.is_some() {
                present.insert(name.to_owned());
            }
            match walk::file_type(dir, &entry).map_err(shared.error("look at", &node, Some(name)))? {
                FileType::Directory => children.push(CString::from(name)),
                _ => {
                    files.settle(name)?;
                    if shared.settled.fetch_add(1, Ordering::Relaxed) + 1 == MANY_FILES {
                        (shared.many)();
                    }
                }
            }
        }
        if let Some((_, names)) = &to_hide {
            for name in names.keys() {
                // A name that came from a directory has no NUL.
                let name = as_c_string(name).map_err(error("hide what is below"))?;
                if !present.contains(&name) {
                    files.make_whiteout(&name)?;
                }
            }
        }
        let Files { has_whiteouts, touched, .. } = files;
        let pending = Pending { modified: modified(&stat), has_whiteouts, touched };
        *node.state.lock().unwrap_or_else(PoisonError::into_inner) = Some(pending);
        if children.is_empty() {
            return self.finish(node);
        }
        node.expect(children.len());
        for name in children {
            let lowers = match (&lowers, &to_hide) {
                (LowerEntries::Shown, _) => LowerEntries::Shown,
                (LowerEntries::Hidden(_), Some((directory_below, names))) if names.contains_key(as_os_str(&name)) => {
                    LowerEntries::Hidden(directory(shared.below.present().child(directory_below, as_os_str(&name))?))
                }
                (LowerEntries::Hidden(_), _) => LowerEntries::Hidden(None),
            };
            found.push(Job { node: DirNode::child(&node, name, NodeState::default()), lowers });
        }
        Ok(())
    }

    /// Removes the overlay xattrs from a directory that is done, sets its modification time and
    /// measures it. Continues with its parent if this was the last child, and so on.
    fn finish(&mut self, mut node: Arc<DirNode>) -> Result<()> {
        let shared = self.shared;
        loop {
            let pending = node.state.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(pending) = pending {
                let error = |operation| shared.error(operation, &node, None);
                let dir = self.cursor.go_either_way(&node, || Ok(shared.root)).map_err(error("open"))?;
                shared
                    .clean(dir, &mut self.names, pending.has_whiteouts)
                    .map_err(error("take overlayfs's attributes off"))?;
                let modified = pending.modified.last_modification;
                if pending.touched || shared.clamped(modified).is_some() {
                    let times = Timestamps {
                        last_modification: shared.clamped(modified).unwrap_or(modified),
                        ..pending.modified
                    };
                    futimens(dir, &times).map_err(error("set the time of"))?;
                }
                // Measure the directory only now: whiteouts may have made it larger, and the
                // removed attributes may have taken a block.
                let stat = fstat(dir).map_err(error("look at"))?;
                // The root still has the record of the run. `capture.rs` counts it later.
                if node.parent().is_some() {
                    shared.inodes.count(&stat, &mut self.captured.size);
                }
            }
            match node.parent() {
                Some(parent) if parent.child_done() => node = Arc::clone(parent),
                _ => return Ok(()),
            }
        }
    }
}

fn directory(shown: Option<Shown>) -> Option<Directory> {
    match shown {
        Some(Shown::Directory(directory)) => Some(directory),
        _ => None,
    }
}

impl Shared<'_> {
    /// Removes all overlay xattrs from an open directory, but for the mark that it has whiteouts.
    fn clean(&self, dir: BorrowedFd<'_>, names: &mut XattrList, has_whiteouts: bool) -> rustix::io::Result<()> {
        names.read(|buffer| flistxattr(dir, buffer))?;
        let origin = self.xattrs.origin();
        // The value of `origin` names the file that the kernel copied up, which another mount
        // cannot use. An empty `origin` marks a directory with whiteouts.
        let mut marked = false;
        for name in names.iter().filter(|name| self.xattrs.owns(name.to_bytes())) {
            if has_whiteouts && name.to_bytes() == origin.as_bytes() {
                marked = fgetxattr(dir, origin, &mut [0_u8; 1]) == Ok(0);
            } else {
                removed(fremovexattr(dir, name))?;
            }
        }
        if has_whiteouts {
            if !marked {
                overlayfs::set_has_whiteouts(dir, self.xattrs)?;
            }
            overlayfs::set_has_whiteouts_elsewhere(dir, self.xattrs)?;
        }
        Ok(())
    }

    /// Returns the time to set instead of `time`, if `time` is too late.
    fn clamped(&self, time: Timespec) -> Option<Timespec> {
        self.latest.filter(|latest| (time.tv_sec, time.tv_nsec) > (latest.tv_sec, latest.tv_nsec))
    }

    /// Returns a function for `map_err` that describes a failed system call on a directory of the
    /// upper, or on `name` in it. The function builds the path only after a failure.
    fn error(&self, operation: &'static str, node: &DirNode, name: Option<&CStr>) -> impl FnOnce(Errno) -> Error {
        move |errno| {
            let mut path = self.path.join(node.path());
            path.extend(name.map(as_os_str));
            super::failure(operation, path)(errno)
        }
    }
}

/// The files of one directory.
struct Files<'a> {
    shared: &'a Shared<'a>,
    node: &'a DirNode,
    dir: BorrowedFd<'a>,
    names: &'a mut XattrList,
    captured: &'a mut Captured,
    has_whiteouts: bool,
    touched: bool,
}

impl Files<'_> {
    /// Processes the file `name`, which is not a directory.
    fn settle(&mut self, name: &CStr) -> Result<()> {
        let shared = self.shared;
        let stat = self.stat(name)?;
        let path = path_through_proc(self.dir, name);
        let entry = Entry::new(self.dir, name, &stat);
        // A device is usually a whiteout, which has no attributes.
        let is_device = entry.kind == FileType::CharacterDevice;
        if !is_device {
            self.list_xattrs(&path, name)?;
        }
        // If the file has several names, another thread may be removing its overlay xattrs.
        let mut is_as_it_was = stat.st_nlink == 1;
        let classified = Entry { names: Some(self.names), ..entry }.classify(shared.xattrs);
        match classified.map_err(|why| why.at(shared.path.join(self.node.path()).join(as_os_str(name))))? {
            EntryKind::Whiteout if is_device => self.has_whiteouts = true,
            EntryKind::Whiteout => {
                // A device needs no mark on the directory. A whiteout in the form of an xattr does,
                // and an opaque directory cannot have that mark, too.
                unlinkat(self.dir, name, AtFlags::empty()).map_err(self.error("replace the whiteout", name))?;
                return self.make_whiteout(name);
            }
            _ => {
                if is_device {
                    self.list_xattrs(&path, name)?;
                }
                for attribute in self.names.iter().filter(|attribute| shared.xattrs.owns(attribute.to_bytes())) {
                    removed(lremovexattr(&path, attribute))
                        .map_err(self.error("take overlayfs's attributes off", name))?;
                    is_as_it_was = false;
                }
            }
        }
        match is_as_it_was {
            true => self.count(&stat),
            // The removed attributes may have taken a block.
            false => self.count(&self.stat(name)?),
        }
        self.clamp(name, &stat)
    }

    fn list_xattrs(&mut self, path: &CStr, name: &CStr) -> Result<()> {
        let listed = self.names.read(|buffer| llistxattr(path, buffer));
        listed.map_err(self.error("list the extended attributes of", name))
    }

    /// Makes a whiteout, which hides the lowers' entry `name`.
    fn make_whiteout(&mut self, name: &CStr) -> Result<()> {
        (self.has_whiteouts, self.touched) = (true, true);
        overlayfs::make_whiteout(self.dir, name).map_err(self.error("make the whiteout", name))?;
        self.captured.whiteouts += 1;
        let stat = self.stat(name)?;
        self.count(&stat);
        self.clamp(name, &stat)
    }

    fn stat(&self, name: &CStr) -> Result<Stat> {
        statat(self.dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(self.error("look at", name))
    }

    fn count(&mut self, stat: &Stat) {
        self.shared.inodes.count(stat, &mut self.captured.size);
    }

    fn clamp(&self, name: &CStr, stat: &Stat) -> Result<()> {
        let times = modified(stat);
        match self.shared.clamped(times.last_modification) {
            None => Ok(()),
            Some(latest) => {
                let times = Timestamps { last_modification: latest, ..times };
                utimensat(self.dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(self.error("set the time of", name))
            }
        }
    }

    fn error(&self, operation: &'static str, name: &CStr) -> impl FnOnce(Errno) -> Error {
        self.shared.error(operation, self.node, Some(name))
    }
}

/// Turns the error for a missing attribute into success: another thread may have removed the
/// attribute through another name of the same file.
fn removed(result: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match result {
        Err(Errno::NODATA) => Ok(()),
        result => result,
    }
}
