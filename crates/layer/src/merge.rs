//! Hardlinks many layers into one directory that shows what the kernel would have shown.
//! `stack/view.rs` applies the same rules without making anything; `merge/directory.rs` does the
//! work.

mod copy;
mod directory;
mod hardlinks;
mod node;
mod part;
mod relink;
mod shared;
mod target;

use std::num::NonZeroUsize;
use std::ops::AddAssign;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;

use rustix::fs::{Mode, fchmod};
use serde::Serialize;

use self::directory::{Job, Worker};
use self::hardlinks::HardLinks;
pub(crate) use self::shared::ReadDir;
use self::shared::Shared;
use self::target::Target;
use crate::callback::Callback;
use crate::display::quoted;
use crate::error::{Error, Result};
use crate::layer::access::Access;
use crate::stack::overlayfs::XattrNamespace;
use crate::stack::sources::{Sources, Unreadable};
use crate::tree::walk::work_queue::{self, Threads};

/// Merges layers, topmost first, into one directory with the default options, see [`Merge::run`].
///
/// # Errors
/// The errors of [`Merge::run`].
pub fn merge(sources: &[impl AsRef<Path>], target: impl AsRef<Path>) -> Result<Merged> {
    Merge::new().run(sources, target)
}

/// A builder for a merge, which hardlinks layers into one directory that stands for all of them.
///
/// An overlay of the merged directory and a base shows the same tree as an overlay of the layers
/// and the base: names, types, modes, owners, times to the nanosecond, extended attributes, ACLs,
/// content, and hard links. The same is true with more layers above, and after the same writes
/// through an upper. A merge does not carry over two things: overlayfs's own attributes, which an
/// overlay does not show, and the flags of chattr(1) on directories and copies.
///
/// The files of the result **are** those of the layers: use the result as a lower directory, and
/// never write to it.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # for name in ["zlib", "python"] {
/// #     std::fs::create_dir_all(dir.path().join(name).join("fs/usr/share"))?;
/// #     std::fs::write(dir.path().join(name).join("fs/usr/share").join(name), name)?;
/// # }
/// let layers = [dir.path().join("python/fs"), dir.path().join("zlib/fs")];
/// let merged = layer::Merge::new().run(&layers, dir.path().join("merged"))?;
/// assert_eq!((merged.linked, merged.directories), (2, 3));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # What happens to the contents
/// - **Files**: if the topmost entry of a name is a file, the merge takes it. It hides everything
///   of its name below.
/// - **Directories**: a merged directory is the union of the directories of its name. The union
///   ends with the first opaque directory, or before a file or a whiteout. The base must not show
///   through below such an end, so the merged directory is opaque, unless a directory above it is
///   opaque already. The opaque attribute has no meaning on the root of a layer. A merged directory
///   has the attributes of the topmost layer that has it.
/// - **Whiteouts** stay, to hide the base. They become character devices 0:0, whatever their form
///   was. The directory of a whiteout gets an empty `origin` xattr. Without it, in a directory that
///   no other lower has, the kernel lists the names of whiteouts, which cannot be found. Where an
///   opaque directory hides the base anyway, the merge omits whiteouts.
/// - **Files that cannot be linked** are cloned or copied, and several names of one file stay one
///   file. A link is impossible on another file system (`EXDEV`), beyond the limit of links
///   (`EMLINK`, 65,000 on ext4), and for an immutable file (`EPERM`).
///
/// # How
/// Every step uses descriptors. A merge follows no symbolic link of a layer, not even one that
/// appears concurrently (openat2(2), Linux 5.6). It opens regular files only to copy them. It reads
/// each directory of each layer once, at any depth. Memory grows with the widest directory and the
/// depth, not with the number of files. The roots of any number of layers take at most a quarter of
/// the process's descriptors.
#[derive(Debug, Clone)]
#[must_use = "it merges when `run` is called"]
pub struct Merge<'a> {
    threads: Threads,
    xattrs: XattrNamespace,
    access: Option<Access>,
    unreadable: Unreadable,
    stop: Callback<'a, Stop<'a>>,
    progress: Callback<'a, dyn Fn(&Merged) + Sync + 'a>,
}

/// The entries that a merge makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    /// All that the layers show.
    Everything,
    /// Only the directories, for a [`Skeleton`](crate::Skeleton).
    Directories,
}

/// A function that returns true when a merge must stop.
type Stop<'a> = dyn Fn() -> bool + Sync + 'a;

/// The numbers of entries that a merge has made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Merged {
    /// Files, symbolic links and special files that are hard links to those of the layers.
    pub linked: u64,
    /// Files, symbolic links and special files that are clones or copies, because they could not be
    /// linked.
    pub copied: u64,
    /// Directories, including the root.
    pub directories: u64,
    /// Whiteouts that stay, to hide entries of the base.
    pub whiteouts: u64,
    /// Directories that are opaque, to hide the directory of that name in the base.
    pub opaques: u64,
}

impl Default for Merge<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> Merge<'a> {
    /// Returns a merge with two threads, or one if there is only one processor, and with attributes
    /// in [`XattrNamespace::Trusted`].
    pub fn new() -> Self {
        Self {
            threads: Threads::Usual,
            xattrs: XattrNamespace::default(),
            access: None,
            unreadable: Unreadable::default(),
            stop: Callback::default(),
            progress: Callback::default(),
        }
    }

    /// Works with at most `threads` threads.
    pub fn threads(mut self, threads: NonZeroUsize) -> Self {
        self.threads = threads.into();
        self
    }

    /// Reads and writes overlayfs's attributes in `namespace`. Layers that were written by mounts
    /// with `userxattr` need [`XattrNamespace::User`]. A mount of the merged directory then needs
    /// `userxattr`, too.
    pub fn xattrs(mut self, namespace: XattrNamespace) -> Self {
        self.xattrs = namespace;
        self
    }

    /// Gives the root of the target this mode and group instead of those of the topmost source.
    ///
    /// The target may hold set-user-ID programs and device nodes. If other users of the host can
    /// reach the directory that it is made in ([`Access::is_needed_in`]), close the target
    /// ([`Access::default`]), or merge into a directory that is closed. If the target is the
    /// topmost lower of a container, a closed root is closed in the container, too.
    pub fn access(mut self, access: Access) -> Self {
        self.access = Some(access);
        self
    }

    /// Hides each directory that this process may not list or search. The merge has the entries of
    /// the layers above it, but neither its own entries nor those below it.
    /// Without this, such a directory is an error. A stack below a [`Skeleton`](crate::Skeleton)
    /// needs it, because the skeleton hides the same directories, except those that can be searched
    /// in the lowest layer.
    pub fn hide_unreadable(mut self) -> Self {
        self.unreadable = Unreadable::Hidden;
        self
    }

    /// Stops the merge with [`Error::Stopped`] as soon as `stop` returns true. Each thread calls
    /// `stop` once for each directory of each layer.
    pub fn stop(mut self, stop: &'a (dyn Fn() -> bool + Sync + 'a)) -> Self {
        self.stop = Callback(Some(stop));
        self
    }

    /// Calls `progress` with the numbers so far, once for each directory of the target. The calls
    /// come from several threads, one after the other, and the numbers never become smaller.
    pub fn progress(mut self, progress: &'a (dyn Fn(&Merged) + Sync + 'a)) -> Self {
        self.progress = Callback(Some(progress));
        self
    }

    /// Merges `sources`, the trees of layers (`<layer>/fs`), **topmost first**, into `target`.
    ///
    /// `target` is a new directory whose parent exists, or an empty directory. The attributes of
    /// the topmost source replace those of an empty directory. Without a source, the result is an
    /// empty directory of mode 0755, which hides nothing.
    ///
    /// Blocks the caller's thread, and does not change its working directory. Until the merge has
    /// ended, only the owner can enter `target`, and an extended attribute marks it
    /// (`trusted.layered.merging`, or `user.layered.merging` in the other namespace). If `target`
    /// has this mark because a merge was killed, the merge removes the entries in it and starts
    /// again.
    ///
    /// # Errors
    /// - [`Error::NotADirectory`] if a source or an existing target is not a directory. A symbolic
    ///   link is not one.
    /// - [`Error::TargetNotEmpty`] if `target` has entries that a killed merge did not leave.
    /// - [`Error::TargetInUse`] if another merge uses `target`.
    /// - [`Error::TargetInsideSource`] if `target` is a source or lies inside one, whatever its
    ///   path.
    /// - [`Error::Unmergeable`] for a layer that depends on the mount that wrote it: it has a
    ///   directory with a `redirect` attribute or a file with a `metacopy` attribute.
    /// - [`Error::MountInside`] if something is mounted inside a source. An overlay would not show
    ///   that mount.
    /// - [`Error::Stopped`] if [`stop`](Self::stop) returned true.
    /// - [`Error::Io`] names the entry that could not be linked, copied or made. One possible
    ///   reason is that a source has changed during the merge.
    ///
    /// After an error the sources are unchanged, and so is `target`: the merge removes everything
    /// that it has made. If that fails, the error is [`Error::Leftover`].
    pub fn run(&self, sources: &[impl AsRef<Path>], target: impl AsRef<Path>) -> Result<Merged> {
        Ok(self.run_with(Content::Everything, sources, target.as_ref())?.0)
    }

    /// Merges only the directories of `sources` into `target`, as [`run`](Self::run) would merge
    /// everything, but leaves all of them open to what is below. Returns the directories of the
    /// sources.
    ///
    /// Below a directory that [`hide_unreadable`](Self::hide_unreadable) hides, nothing may show
    /// through. There, the merge makes everything.
    pub(crate) fn directories(&self, sources: &[impl AsRef<Path>], target: &Path) -> Result<Vec<ReadDir>> {
        Ok(self.run_with(Content::Directories, sources, target)?.1)
    }

    fn run_with(
        &self,
        content: Content,
        sources: &[impl AsRef<Path>],
        target: &Path,
    ) -> Result<(Merged, Vec<ReadDir>)> {
        let sources = Sources::open(sources)?;
        let target = Target::prepare(target, &sources, self.xattrs)?;
        let merged = self.fill(content, &sources, &target).and_then(|merged| {
            if let Some(access) = self.access {
                access.apply(target.root(), target.path())?;
            }
            target.finish(self.xattrs)?;
            Ok(merged)
        });
        merged.map_err(|failure| target.undo(failure, self.threads))
    }

    fn fill(&self, content: Content, sources: &Sources, target: &Target) -> Result<(Merged, Vec<ReadDir>)> {
        if sources.len() == 0 {
            fchmod(target.root(), Mode::from_raw_mode(0o755)).map_err(Error::io("set the mode of", target.path()))?;
            return Ok((Merged { directories: 1, ..Merged::default() }, Vec::new()));
        }
        let shared = Shared {
            sources,
            target: target.root(),
            target_path: target.path(),
            root_mode: self.access.map(|access| Mode::from_raw_mode(access.bits())),
            xattrs: self.xattrs,
            content,
            unreadable: self.unreadable,
            read: Mutex::default(),
            stop: self.stop.0,
            progress: self.progress.0,
            merged: Mutex::default(),
            hard_links: HardLinks::default(),
            why_copied: OnceLock::new(),
        };
        let root = Job::root(sources.len(), content);
        let work = || work_queue::run(self.threads, [root], || Worker::new(&shared), Worker::fill);
        // The caller's thread only waits: it keeps the working directory that it shares with
        // others.
        thread::scope(|scope| match thread::Builder::new().spawn_scoped(scope, work) {
            Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Err(error) => Err(Error::io("start a thread to fill", target.path())(error)),
        })?;
        let mut merged = shared.merged.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut copies = shared.hard_links.lock();
        if copies.are_split() {
            let moved = relink::relink(&shared, &mut copies)?;
            merged.linked -= moved;
            merged.copied += moved;
        }
        if let Some(why) = shared.why_copied.get() {
            log::warn!("{}: {} files copied, {} linked: {why}", quoted(target.path()), merged.copied, merged.linked);
        }
        drop(copies);
        Ok((merged, shared.read.into_inner().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl AddAssign for Merged {
    fn add_assign(&mut self, other: Self) {
        let Self { linked, copied, directories, whiteouts, opaques } = other;
        self.linked += linked;
        self.copied += copied;
        self.directories += directories;
        self.whiteouts += whiteouts;
        self.opaques += opaques;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn progress_grows_with_every_directory_up_to_the_result() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..20 {
            let sub = dir.path().join("layer").join((number % 3).to_string()).join(number.to_string());
            fs::create_dir_all(&sub).unwrap();
            fs::write(sub.join("file"), "").unwrap();
        }
        let seen = Mutex::new(Vec::new());
        let progress = |merged: &Merged| seen.lock().unwrap().push(merged.clone());
        let merge = Merge::new().xattrs(XattrNamespace::User).progress(&progress);
        let merged = merge.run(&[dir.path().join("layer")], dir.path().join("merged")).unwrap();
        let seen = seen.into_inner().unwrap();
        assert_eq!((merged.linked, merged.directories, seen.len()), (20, 24, 24));
        assert!(
            seen.windows(2).all(|pair| pair[0].linked <= pair[1].linked && pair[0].directories < pair[1].directories)
        );
        assert_eq!(seen.last(), Some(&merged));
    }
}
