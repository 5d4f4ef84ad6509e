//! Fills one directory of the merged tree: gathers it from all layers that have a part in it, marks
//! it, and finishes it after its children. `part.rs` takes the entries of one layer.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, PoisonError};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, flistxattr, fstat, openat, statat};
use rustix::io::Errno;

use super::node::{DirNode, NodeState};
use super::part::{Child, Gathered, Part};
use super::shared::Shared;
use super::{Content, Merged};
use crate::error::{Error, Result};
use crate::stack::overlayfs;
use crate::stack::sources::Unreadable;
use crate::tree::attributes::{Attributes, Keep};
use crate::tree::permission::Permission;
use crate::tree::walk::{Cursor, ENTRIES_SIZE_BYTES, PATH, READ, as_os_str};
use crate::tree::xattr::XattrList;

/// A merged directory to fill. It exists already and is empty.
pub(super) struct Job {
    node: Arc<DirNode>,
    /// The layers that have a directory of this name, topmost first.
    layers: Vec<usize>,
    /// The lowest layer that has the directory above.
    lowest_above: usize,
    /// Whether a layer below these has a file or a whiteout of this name, which ends the union.
    cut: bool,
    /// Whether a directory above is opaque, so that the base cannot show through here.
    hidden: bool,
    /// The entries to make. Where the base is hidden because a directory cannot be read, they are
    /// everything.
    content: Content,
}

impl Job {
    /// Returns the job for the root of a merge of `layers` layers.
    pub(super) fn root(layers: usize, content: Content) -> Self {
        let node = DirNode::root(NodeState::default());
        Self { node, layers: (0..layers).collect(), lowest_above: layers - 1, cut: false, hidden: false, content }
    }
}

/// The number of source directories that a worker keeps open. With several, a tree that is deep in
/// a few layers is not walked from its root again and again.
const CURSORS: usize = 4;

/// The state of one thread.
pub(super) struct Worker<'a> {
    shared: &'a Shared<'a>,
    /// Whether the working directory is this thread's own, so that a name alone can be a path.
    own_cwd: bool,
    entries: Vec<u8>,
    names: XattrList,
    target: Cursor<NodeState>,
    sources: [(usize, Cursor<NodeState>); CURSORS],
    /// The numbers of entries that the worker has made in the directory that it fills.
    merged: Merged,
}

impl<'a> Worker<'a> {
    /// Makes the worker of this thread. Gives the thread its own working directory if it can.
    pub(super) fn new(shared: &'a Shared<'a>) -> Self {
        let own_cwd = match nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS) {
            Ok(()) => true,
            Err(error) => {
                log::debug!("a thread keeps the shared working directory, reading attributes through /proc: {error}");
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

    /// Fills one directory, and finishes each directory that this completes. Adds the directories
    /// in it to `found`.
    pub(super) fn fill(&mut self, job: Job, found: &mut Vec<Job>) -> Result<()> {
        let Job { node, layers, lowest_above, mut cut, hidden, mut content } = job;
        let mut gathered = Gathered::default();
        // The layers stay below a skeleton, and the kernel finds files in the lowest one by name.
        // In any other, it reads the attributes of the directory first, which needs the permission
        // to list it.
        let by_name = (content == Content::Directories).then_some(lowest_above);
        let parts = self.parts(&node, layers, by_name, &mut gathered)?;
        if parts.is_closed {
            (cut, content) = (true, Content::Everything);
        }
        let mut lowest = parts.searched.as_ref().or(parts.listed.last()).copied().unwrap_or(lowest_above);
        for (index, &layer) in parts.listed.iter().enumerate() {
            let opaque = self.gather(&node, layer, content, index + 1 == parts.listed.len(), &mut gathered)?;
            if opaque {
                (cut, lowest) = (true, layer);
                break;
            }
        }
        if let Some(layer) = parts.searched.filter(|layer| *layer == lowest) {
            self.look_up(&node, layer, &mut gathered.children)?;
        }
        let Gathered { children, whiteouts, attributes, .. } = gathered;
        // The layers stay below a skeleton, and hide by themselves what they hide.
        let cut = cut && content == Content::Everything;
        let hides_base = cut || hidden;
        self.mark(&node, cut && !hidden, if hides_base { &[] } else { &whiteouts })?;
        *node.state.lock().unwrap_or_else(PoisonError::into_inner) = attributes;
        self.merged.directories += 1;
        self.shared.add(std::mem::take(&mut self.merged));
        if children.is_empty() {
            return self.finish(node);
        }
        node.expect(children.len());
        found.extend(children.into_iter().map(|child| Job {
            node: DirNode::child(&node, child.name, NodeState::default()),
            layers: child.layers,
            lowest_above: lowest,
            cut: child.cut,
            hidden: hides_base,
            content,
        }));
        Ok(())
    }

    /// Sorts the parts that `layers` have in a directory by what this process may do with them.
    /// Takes the attributes of the topmost one if it cannot be listed. `by_name` is the layer in
    /// which entries are found by name if the directory can be searched only.
    fn parts(
        &mut self,
        node: &Arc<DirNode>,
        layers: Vec<usize>,
        by_name: Option<usize>,
        gathered: &mut Gathered,
    ) -> Result<Parts> {
        let shared = self.shared;
        if shared.unreadable == Unreadable::Refused {
            return Ok(Parts { listed: layers, ..Parts::default() });
        }
        let mut parts = Parts::default();
        for layer in layers {
            let opened = match open_part(&mut self.sources, shared, node, layer) {
                // Without the permission to search it, the entries can be listed, and not used.
                Ok(from) => openat(from, c".", PATH, Mode::empty()).map(drop),
                Err(errno) => Err(errno),
            };
            if !matches!(opened, Err(Errno::ACCESS)) {
                // `gather` reports any other failure.
                parts.listed.push(layer);
                continue;
            }
            // Deeper directories are reached through this one, which is not read.
            let look = |errno| Error::io("look at", shared.source_path(layer, node, None))(errno);
            let dir = shared.open_unread(layer, node).map_err(look)?;
            let stat = fstat(&dir).map_err(look)?;
            let permission = Permission::of(dir.as_fd()).map_err(look)?;
            shared.note(layer, node, stat, permission);
            if parts.listed.is_empty() {
                gathered.attributes = Some(Attributes::of_unreadable(&stat));
            }
            if permission == Permission::Search && by_name == Some(layer) {
                parts.searched = Some(layer);
            } else {
                parts.is_closed = true;
            }
            break;
        }
        Ok(parts)
    }

    /// Adds `layer`, whose part of a directory cannot be listed, to those `children` that it has as
    /// directories. Other directories in it stay unknown.
    fn look_up(&self, node: &DirNode, layer: usize, children: &mut [Child]) -> Result<()> {
        let shared = self.shared;
        let look = |errno| Error::io("look at", shared.source_path(layer, node, None))(errno);
        let dir = shared.open_unread(layer, node).map_err(look)?;
        for child in children.iter_mut().filter(|child| !child.cut) {
            match statat(&dir, &child.name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => child.layers.push(layer),
                Ok(_) => child.cut = true,
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(look(errno)),
            }
        }
        Ok(())
    }

    /// Takes the entries of one layer that no layer above has. Returns whether the layer's
    /// directory hides the directories of its name below.
    fn gather(
        &mut self,
        node: &Arc<DirNode>,
        layer: usize,
        content: Content,
        is_last: bool,
        gathered: &mut Gathered,
    ) -> Result<bool> {
        let shared = self.shared;
        if shared.stop.is_some_and(|stop| stop()) {
            return Err(Error::Stopped { target: shared.target_path.into() });
        }
        let to = self.target.go_either_way(node, || Ok(shared.target));
        let to = to.map_err(shared.target_error("open", node))?;
        let io = |operation| move |errno: Errno| Error::io(operation, shared.source_path(layer, node, None))(errno);

        let from = open_part(&mut self.sources, shared, node, layer).map_err(|errno| match errno {
            Errno::XDEV => Error::MountInside { path: shared.source_path(layer, node, None) },
            errno => io("open")(errno),
        })?;

        let names = &mut self.names;
        names.read(|buffer| flistxattr(from, buffer)).map_err(io("list the extended attributes of"))?;
        if shared.content == Content::Directories {
            shared.note(layer, node, fstat(from).map_err(io("look at"))?, Permission::List);
        }
        // The kernel looks at neither attribute on the root of a layer.
        let opaque = node.parent().is_some()
            && match content {
                Content::Everything => overlayfs::hides_below(from, Some(names), shared.xattrs)
                    .map_err(|why| why.at(shared.source_path(layer, node, None)))?,
                // The layers stay below a skeleton, and so does what the attribute `redirect`
                // names.
                Content::Directories => {
                    overlayfs::is_opaque_dir(from, shared.xattrs).map_err(io("read the extended attributes of"))?
                }
            };
        if gathered.attributes.is_none() {
            let attributes = Attributes::of(from, names, Keep::Visible(shared.xattrs));
            gathered.attributes = Some(attributes.map_err(io("read the attributes of"))?);
        }

        let mut part = Part {
            shared,
            node,
            layer,
            content,
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

    /// Marks a gathered directory as overlayfs would have marked it: as opaque, and with whiteouts.
    fn mark(&mut self, node: &Arc<DirNode>, opaque: bool, whiteouts: &[CString]) -> Result<()> {
        let shared = self.shared;
        let dir = self.target.go_either_way(node, || Ok(shared.target));
        let dir = dir.map_err(shared.target_error("open", node))?;
        node.set_identity(&fstat(dir).map_err(shared.target_error("look at", node))?);
        if opaque {
            overlayfs::set_opaque(dir, shared.xattrs).map_err(shared.target_error("make opaque", node))?;
            self.merged.opaques += 1;
        }
        for name in whiteouts {
            overlayfs::make_whiteout(dir, name).map_err(|errno| {
                let path = shared.target_path.join(node.path()).join(as_os_str(name));
                Error::io("make the whiteout", path)(errno)
            })?;
        }
        if !whiteouts.is_empty() {
            let marked = overlayfs::set_has_whiteouts(dir, shared.xattrs);
            marked.map_err(shared.target_error("set an extended attribute of", node))?;
        }
        self.merged.whiteouts += whiteouts.len() as u64;
        Ok(())
    }

    /// Sets the attributes of a directory that is done. If it was the last child of its parent,
    /// does the same to the parent, and so on.
    fn finish(&mut self, mut node: Arc<DirNode>) -> Result<()> {
        let shared = self.shared;
        loop {
            let attributes = node.state.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(mut attributes) = attributes {
                if let (None, Some(mode)) = (node.parent(), shared.root_mode) {
                    attributes.set_mode(mode);
                }
                let dir = self.target.go_either_way(&node, || Ok(shared.target));
                let dir = dir.map_err(shared.target_error("open", &node))?;
                attributes.apply(dir).map_err(shared.target_error("set the attributes of", &node))?;
            }
            match node.parent() {
                Some(parent) if parent.child_done() => node = Arc::clone(parent),
                _ => return Ok(()),
            }
        }
    }
}

/// The parts that the layers have in a directory.
#[derive(Default)]
struct Parts {
    /// The layers whose part can be listed, topmost first.
    listed: Vec<usize>,
    /// The layer below these whose part can be searched, but not listed.
    searched: Option<usize>,
    /// Whether the part below those listed is closed instead. It hides the layers below it.
    is_closed: bool,
}

/// Opens a layer's part of a directory.
fn open_part<'a>(
    sources: &'a mut [(usize, Cursor<NodeState>); CURSORS],
    shared: &Shared<'_>,
    node: &Arc<DirNode>,
    layer: usize,
) -> rustix::io::Result<BorrowedFd<'a>> {
    let (held, cursor) = &mut sources[layer % CURSORS];
    if std::mem::replace(held, layer) != layer {
        cursor.leave();
    }
    if let Err(Errno::PERM) = cursor.go(node, || shared.sources.root(layer)).map(drop) {
        // Only root and the owner may open a directory with NOATIME.
        *cursor = Cursor::new(READ);
    }
    cursor.go(node, || shared.sources.root(layer))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::{Mutex, OnceLock};

    use rustix::fs::{CWD, Mode, XattrFlags, openat, setxattr};

    use super::super::hardlinks::HardLinks;
    use super::*;
    use crate::stack::overlayfs::XattrNamespace;
    use crate::stack::sources::Sources;

    /// Fills a target from one layer with a worker without its own working directory.
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
            content: Content::Everything,
            unreadable: Unreadable::Refused,
            read: Mutex::default(),
            stop: None,
            progress: None,
            merged: Mutex::default(),
            hard_links: HardLinks::default(),
            why_copied: OnceLock::new(),
        };
        std::thread::scope(|scope| {
            let work = || {
                let mut worker = Worker::new(&shared);
                worker.own_cwd = false;
                let mut waiting = vec![Job::root(1, Content::Everything)];
                while let Some(job) = waiting.pop() {
                    worker.fill(job, &mut waiting)?;
                }
                Ok(())
            };
            scope.spawn(work).join().unwrap()
        })?;
        Ok(shared.merged.into_inner().unwrap())
    }

    #[test]
    fn xattrs_are_read_through_proc_where_unshare_is_forbidden() {
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
