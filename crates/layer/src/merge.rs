//! Many layers hardlinked into one directory that shows what the kernel would have shown.

mod attributes;
mod copy;
mod directory;
mod groups;
mod part;
mod reunite;
mod sources;
mod target;

use std::num::NonZeroUsize;
use std::ops::AddAssign;
use std::path::Path;
use std::sync::OnceLock;
use std::thread;

use rustix::fs::{Mode, fchmod};

use self::directory::{Job, Shared, Worker};
use self::groups::Groups;
use self::sources::Sources;
use self::target::Target;
use crate::walk::crew;
use crate::{Error, Result, XattrNamespace};

/// Merges layers into one directory, with the usual options: see [`Merge`].
///
/// # Errors
/// As [`Merge::run`].
pub fn merge(sources: &[impl AsRef<Path>], target: impl AsRef<Path>) -> Result<Merged> {
    Merge::new().run(sources, target)
}

/// How layers are merged into one directory that stands for all of them.
#[derive(Debug, Clone)]
pub struct Merge {
    threads: NonZeroUsize,
    xattrs: XattrNamespace,
}

/// What a merge has made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Merged {
    /// Files, symbolic links and special files that are links to those of the layers.
    pub linked: u64,
    /// Files, symbolic links and special files that are clones or copies, where a link could not be made.
    pub copied: u64,
    /// Directories, the root among them.
    pub directories: u64,
    /// Whiteouts that stay, to hide what a base may have.
    pub whiteouts: u64,
    /// Directories that hide the base's directory of that name.
    pub opaques: u64,
}

impl Default for Merge {
    fn default() -> Self {
        Self::new()
    }
}

impl Merge {
    /// Two threads, where there are two processors, and attributes in [`XattrNamespace::Trusted`].
    pub fn new() -> Self {
        Self { threads: crew::usual_threads(), xattrs: XattrNamespace::default() }
    }

    /// Works with at most so many threads.
    pub fn threads(mut self, threads: NonZeroUsize) -> Self {
        self.threads = threads;
        self
    }

    /// Reads and writes overlayfs's attributes in `namespace`: [`XattrNamespace::User`] for layers that mounts with `userxattr`
    /// have made, to be mounted so again.
    pub fn xattrs(mut self, namespace: XattrNamespace) -> Self {
        self.xattrs = namespace;
        self
    }

    /// Merges.
    ///
    /// # Errors
    /// To come.
    pub fn run(&self, sources: &[impl AsRef<Path>], target: impl AsRef<Path>) -> Result<Merged> {
        let sources = Sources::open(sources)?;
        let target = Target::prepare(target.as_ref(), &sources)?;
        match self.fill(&sources, &target) {
            Ok(merged) => Ok(merged),
            Err(failure) => Err(target.undo(failure, self.threads)),
        }
    }

    fn fill(&self, sources: &Sources, target: &Target) -> Result<Merged> {
        if sources.len() == 0 {
            fchmod(target.root(), Mode::from_raw_mode(0o755)).map_err(Error::io("set the mode of", target.path()))?;
            return Ok(Merged { directories: 1, ..Merged::default() });
        }
        let shared = Shared {
            sources,
            target: target.root(),
            target_path: target.path(),
            xattrs: self.xattrs,
            groups: Groups::default(),
            why_copied: OnceLock::new(),
        };
        let work = || crew::run(self.threads, Job::root(sources.len()), || Worker::new(&shared), Worker::fill);
        // Not on the caller's thread: it keeps the working directory that it shares with others.
        let workers = thread::scope(|scope| match thread::Builder::new().spawn_scoped(scope, work) {
            Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Err(error) => Err(Error::io("start a thread to fill", target.path())(error)),
        })?;
        let mut merged = Merged::default();
        for worker in workers {
            merged += worker.merged();
        }
        let mut copies = shared.groups.lock();
        if copies.are_split() {
            let moved = reunite::reunite(&shared, &mut copies)?;
            merged.linked -= moved;
            merged.copied += moved;
        }
        if let Some(why) = shared.why_copied.get() {
            log::warn!("{}: {} files copied, {} linked: {why}", target.path().display(), merged.copied, merged.linked);
        }
        Ok(merged)
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
