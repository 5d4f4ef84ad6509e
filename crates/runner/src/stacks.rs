//! Overlays of layers that many runs have at the bottom of their stacks, mounted once.
//!
//! `choice` decides which layers these are, and `watch` notices layers that are removed. `stack`
//! plans a run over such an overlay.

mod choice;
mod watch;

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use container::advanced::{DetachedOverlay, Nesting};
use container::{MAX_LOWERS, Overlay, OverlayXattrs, in_private_mount_namespace};
use layer::display::quoted;
use rustix::io::Errno;

use self::choice::Recent;
use self::watch::{Gone, Watch};
use crate::error::{chain, io_error};
use crate::inside::Identity;
use crate::paths::Paths;
use crate::stack::Stack;
use crate::{Error, Result};

/// The number of overlays that [`Stacks::new`] keeps.
const KEPT: usize = 16;

/// The number of runs after which a part that failed is tried again.
const PAUSE: u64 = 64;

/// Overlays that runs share, for a process that runs many commands over similar stacks.
///
/// The first lookup of a name in an overlay asks every lower. Over 400 layers, 200 lookups take
/// longer than everything else that [`run`](crate::run) does. The kernel remembers the answers, but
/// only until the overlay is unmounted, so each run asks again. With
/// [`Options::stacks`](crate::Options::stacks), a run mounts the lowest layers of its stack,
/// together with the base, as a read-only overlay of their own. The run's overlay has that overlay
/// as its lowest lower. Later runs with the same layers at the bottom use the same overlay, and
/// find the answers there.
///
/// ```no_run
/// # fn example(base: layer::Base, stacks_of_layers: Vec<Vec<layer::Layer>>, template: container::Template)
/// # -> Result<(), runner::Error> {
/// let stacks = runner::Stacks::new();
/// for layers in stacks_of_layers {
///     let report = runner::run(&base, &layers, &template, runner::Options::new().stacks(&stacks))?;
/// #   drop(report);
/// }
/// # Ok(())
/// # }
/// ```
///
/// **Which layers.** The layers of several overlays can be at the bottom of a run's stack. The run
/// uses the overlay with the most layers. If the recent runs show that another overlay pays, and
/// it does not exist yet, the run mounts it. So put the layers that most stacks share at the
/// bottom, in the same order in each stack, as far as their order is free.
/// At most [`keep`](Self::keep) overlays exist; the least recently used is unmounted first.
///
/// **Lifetime.** The overlays have no mount point. No mount table shows them, and the kernel
/// unmounts them when the value is dropped, or when the process ends, however it ends.
///
/// **Collectors.** A run holds its layers as without `Stacks`. An overlay by itself holds none, so
/// that a collector can remove the layers that were not used for the longest time. When a layer of
/// an overlay is removed or renamed, a thread notices it and unmounts the overlay. Only then does
/// the kernel free the space of the files that the overlay has looked up. A process that collects
/// garbage itself should call [`clear`](Self::clear) before.
///
/// **Fallback.** The runs stack their layers one by one, as without `Stacks`, before Linux 6.7, for
/// layers that are on an overlay themselves (the kernel nests overlays only once), if the stack has
/// fewer than eight lowers, and if layers of other users make the run put a
/// [skeleton](layer::Skeleton) on top of them. A run also does so if a shared overlay cannot be
/// mounted, or nothing can be mounted over it. It logs the reason.
/// [`Report::shared`](crate::Report::shared) returns whether a run used a shared overlay.
///
/// # Differences
/// Commands see the same tree and can change it in the same way, and a capture results in the same
/// layer, but for these differences:
/// - The numbers of devices and inodes (`st_dev`, `st_ino`) are those of an overlay whose scratch
///   directory is on another file system than its layers. A file of a shared layer has another
///   device than its directory, so `tar --one-file-system` skips it. Its numbers change when the
///   command writes to it. A hard link to it has other numbers, though it is the same file.
/// - If two layers have the same inode under two names, and only one of them is in the shared
///   overlay, these names have different numbers, too.
/// - The command does not see xattrs of the layers that begin with `trusted.overlay.overlay.`
///   (`user.overlay.overlay.` without root), which only an overlay inside a container creates.
///   Those that stand for a whiteout or a redirect take effect.
/// - A directory that no capture made may list the names of its whiteouts if no other layer has the
///   directory. The command then cannot find these names, and cannot remove the directory. In a
///   shared overlay, only its own layers count as others.
/// - The first write to a file copies its content, even if the file system could share the blocks
///   (Btrfs, XFS).
///
/// No program may change the tree of a layer or of the base during a run. With `Stacks`, none may
/// change it while the value exists: later runs would see a part of the change. The file systems
/// of the layers stay in use until the value is dropped or [cleared](Self::clear).
#[must_use = "the overlays are unmounted when this value is dropped"]
pub struct Stacks {
    nesting: Option<Nesting>,
    /// The best way of nesting that the kernel has, once it is known.
    way: OnceLock<Nesting>,
    shared: Arc<Shared>,
    /// `None` until there is an overlay.
    watch: Mutex<Option<Watch>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    keep: usize,
    /// The most recently used first.
    parts: Vec<Arc<Part>>,
    recent: Recent,
    /// The file systems over which the kernel has refused to nest overlays: all devices of a part.
    flat: HashSet<BTreeSet<u64>>,
    /// The trees of parts that failed for another reason, each with the number of the run from
    /// which on they may be tried again.
    failed: Vec<(Vec<Identity>, u64)>,
    /// The number of runs that asked for a part.
    runs: u64,
    /// The number of the run from which on parts are mounted again after a failed watch.
    paused_until: u64,
    /// The errors of failed watches, which were logged.
    unwatched: HashSet<Option<i32>>,
}

/// The lowest trees of a stack, which have an overlay.
#[derive(Debug)]
pub(crate) struct Part {
    /// The base first.
    trees: Vec<Identity>,
    xattrs: OverlayXattrs,
    /// Empty until the first run has mounted it. `None` if that failed.
    mounted: OnceLock<Option<Mounted>>,
    /// Whether a run could not be mounted over it.
    has_failed: AtomicBool,
}

#[derive(Debug)]
struct Mounted {
    overlay: DetachedOverlay,
    nesting: Nesting,
    /// The real paths of the layers and the base.
    directories: HashSet<PathBuf>,
}

impl Default for Stacks {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Stacks {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Stacks").field("lowers", &self.lowers()).finish_non_exhaustive()
    }
}

impl Stacks {
    /// Returns an empty value that keeps at most 16 overlays.
    pub fn new() -> Self {
        let state = State {
            keep: KEPT,
            parts: Vec::new(),
            recent: Recent::default(),
            flat: HashSet::new(),
            failed: Vec::new(),
            runs: 0,
            paused_until: 0,
            unwatched: HashSet::new(),
        };
        let shared = Arc::new(Shared { state: Mutex::new(state) });
        Self { nesting: None, way: OnceLock::new(), shared, watch: Mutex::default() }
    }

    /// Keeps at most `overlays` overlays. An overlay needs a descriptor, and memory for the names
    /// that were looked up, which the kernel frees if memory is short.
    pub fn keep(self, overlays: usize) -> Self {
        self.shared.state().keep = overlays;
        self
    }

    /// Sets how a run's overlay gets the shared one, instead of the best way that the kernel has.
    pub fn nesting(mut self, nesting: impl Into<Option<Nesting>>) -> Self {
        self.nesting = nesting.into();
        self
    }

    /// Unmounts all overlays. Those that a run uses are unmounted when the run ends. Forgets which
    /// layers could not be shared, so that later runs try it again.
    pub fn clear(&self) {
        self.shared.state().forget_failures();
        self.shared.remove(|_| true);
    }

    /// Returns the number of lowers of each overlay, including the base. The most recently used
    /// overlay is first.
    pub fn lowers(&self) -> Vec<usize> {
        self.shared.state().parts.iter().map(|part| part.lowers()).collect()
    }

    /// Returns the overlay that a run over `stack` should have below its own layers. Mounts it if
    /// no run has done so. Returns `None` if the run should stack all layers itself.
    ///
    /// The caller must hold the layers. The overlay has at most `most` lowers.
    pub(crate) fn part_of(
        &self,
        stack: &Stack<'_>,
        xattrs: OverlayXattrs,
        most: usize,
        scratch: &Paths,
    ) -> Option<Arc<Part>> {
        let part = self.shared.choose(stack.identities(), xattrs, most.min(MAX_LOWERS))?;
        // Other runs wait here until the overlay is mounted.
        let mounted = part.mounted.get_or_init(|| match self.mount(stack, &part, scratch) {
            Ok(mounted) => Some(mounted),
            Err(error) => {
                let mut state = self.shared.state();
                // A watch that failed is logged once per cause.
                if !state.is_paused() {
                    log::warn!("layers are not shared between runs: {}", chain(&error));
                }
                state.has_failed(&part, &error);
                None
            }
        });
        if mounted.is_none() {
            self.shared.remove(|other| Arc::ptr_eq(other, &part));
            return None;
        }
        Some(part)
    }

    fn mount(&self, stack: &Stack<'_>, part: &Part, scratch: &Paths) -> Result<Mounted> {
        let directories = stack.lowest_directories(part.lowers())?;
        let stores: HashSet<&Path> = directories.iter().filter_map(|directory| directory.parent()).collect();
        for store in stores {
            if let Err(error) = self.watch(store) {
                self.shared.state().unwatched(store, &error);
                return Err(io_error("watch", store)(error));
            }
        }
        let trees = stack.lowest_trees(part.lowers());
        let overlay = Overlay::new(&trees).xattrs(part.xattrs).mount_detached()?;
        // From here on, the overlay keeps the inodes alive. Before, a tree may have been replaced.
        refuse_replaced(trees.iter().rev().map(PathBuf::as_path), &part.trees)?;
        let ways = match self.nesting.or_else(|| self.way.get().copied()) {
            Some(nesting) => vec![nesting],
            None => Nesting::ALL.to_vec(),
        };
        let mut is_lacking = true;
        let mut refused = None;
        for nesting in ways {
            match try_to_nest(&overlay, nesting, part.xattrs, scratch) {
                Ok(()) => {
                    // If a better way failed only for the moment, later overlays try it again.
                    if is_lacking {
                        self.way.get_or_init(|| nesting);
                    }
                    return Ok(Mounted { overlay, nesting, directories });
                }
                Err(error) => {
                    is_lacking &= is_refusal(&error);
                    refused = Some(error);
                }
            }
        }
        Err(refused.expect("there is a way"))
    }

    /// From now on, drops the overlays with layers that disappear from `store`.
    fn watch(&self, store: &Path) -> io::Result<()> {
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        if watch.is_none() {
            // The thread must not keep the overlays mounted.
            let shared = Arc::downgrade(&self.shared);
            let started = Watch::start(move |gone| {
                let Some(shared) = shared.upgrade() else { return };
                shared.remove(|part| match gone {
                    Gone::Entry(path) => part.has(path),
                    Gone::Any => true,
                });
            });
            *watch = Some(started?);
        }
        watch.as_ref().map_or(Ok(()), |watch| watch.add(store))
    }
}

/// Fails if one of the paths `trees` has another directory than the one with the identity that a
/// part's key contains.
fn refuse_replaced<'t>(trees: impl Iterator<Item = &'t Path>, identities: &[Identity]) -> Result<()> {
    for (tree, identity) in trees.zip(identities) {
        let metadata = tree.symlink_metadata().map_err(io_error("look at", tree))?;
        if (metadata.dev(), metadata.ino()) != *identity {
            return Err(io_error("share", tree)(io::Error::other("it was replaced after the run had looked at it")));
        }
    }
    Ok(())
}

/// Mounts an overlay that has `overlay` as a lower, and unmounts it. A refusal in a run would leave
/// traces in its work directory.
fn try_to_nest(overlay: &DetachedOverlay, nesting: Nesting, xattrs: OverlayXattrs, scratch: &Paths) -> Result<()> {
    let nest = || {
        overlay.as_lower(nesting, &scratch.bundle(), |lower| {
            Overlay::new([scratch.work()]).over(lower).xattrs(xattrs).mount_detached().map(drop)
        })
    };
    match nesting {
        Nesting::Descriptor => nest()?,
        _ => in_private_mount_namespace(nest)??,
    }
    Ok(())
}

/// Returns whether the kernel does not nest overlays over these file systems. Any other error may
/// be that of one tree, or pass.
fn is_refusal(error: &Error) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return matches!(Errno::from_io_error(error), Some(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS));
        }
        source = error.source();
    }
    false
}

impl State {
    /// Records that `part` cannot be mounted.
    fn has_failed(&mut self, part: &Part, error: &Error) {
        if self.is_paused() {
            // The trees are not at fault.
        } else if is_refusal(error) {
            self.flat.insert(devices(&part.trees));
        } else {
            self.rest(&part.trees);
        }
    }

    /// Makes no part of these trees in the next runs.
    fn rest(&mut self, trees: &[Identity]) {
        self.failed.push((trees.to_vec(), self.runs + PAUSE));
    }

    /// Returns whether a part of these trees may be mounted.
    fn may_mount(&self, trees: &[Identity]) -> bool {
        !self.is_paused()
            && !self.failed.iter().any(|(failed, _)| failed == trees)
            && !self.flat.contains(&devices(trees))
    }

    /// Mounts no part in the next runs, because removed layers would not be noticed in `store`.
    fn unwatched(&mut self, store: &Path, error: &io::Error) {
        self.paused_until = self.runs + PAUSE;
        if self.unwatched.insert(error.raw_os_error()) {
            log::warn!("layers are not shared between runs for a while: cannot watch {}: {error}", quoted(store));
        }
    }

    fn is_paused(&self) -> bool {
        self.runs < self.paused_until
    }

    fn forget_failures(&mut self) {
        self.paused_until = 0;
        self.flat.clear();
        self.failed.clear();
    }
}

fn devices(trees: &[Identity]) -> BTreeSet<u64> {
    trees.iter().map(|(device, _)| *device).collect()
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the part that a run over these trees should have. The part may not be mounted yet.
    fn choose(&self, trees: Vec<Identity>, xattrs: OverlayXattrs, most: usize) -> Option<Arc<Part>> {
        let mut state = self.state();
        if state.keep == 0 {
            return None;
        }
        state.runs += 1;
        let run = state.runs;
        state.failed.retain(|(_, until)| run < *until);
        let is_failed = |part: &Arc<Part>| part.has_failed.load(Ordering::Relaxed);
        let (failed, parts): (Vec<_>, _) = std::mem::take(&mut state.parts).into_iter().partition(is_failed);
        state.parts = parts;
        failed.iter().for_each(|part| state.rest(&part.trees));
        // An overlay keeps the inodes of its trees alive. So no other directory has the same number
        // as long as the part exists.
        let fits = |part: &&Arc<Part>| part.xattrs == xattrs && part.lowers() <= most && trees.starts_with(&part.trees);
        let found = state.parts.iter().filter(fits).max_by_key(|part| part.lowers()).cloned();
        let lowers = found.as_ref().map_or(0, |part| part.lowers());
        let worthwhile = state.recent.worthwhile(&trees, lowers, most);
        let part = match worthwhile.filter(|lowers| state.may_mount(&trees[..*lowers])) {
            Some(lowers) => {
                let trees = trees[..lowers].to_vec();
                let (mounted, has_failed) = (OnceLock::new(), AtomicBool::new(false));
                Some(Arc::new(Part { trees, xattrs, mounted, has_failed }))
            }
            None => found,
        };
        state.recent.remember(trees);
        let part = part?;
        state.parts.retain(|other| !Arc::ptr_eq(other, &part));
        state.parts.insert(0, Arc::clone(&part));
        let kept = state.keep.min(state.parts.len());
        let unused = state.parts.split_off(kept);
        drop(state);
        // Unmounting takes a moment, in which no other run should wait.
        drop(unused);
        Some(part)
    }

    fn remove(&self, is_unwanted: impl Fn(&Arc<Part>) -> bool) {
        let mut state = self.state();
        let (unwanted, parts) = std::mem::take(&mut state.parts).into_iter().partition(is_unwanted);
        state.parts = parts;
        drop(state);
        let unwanted: Vec<Arc<Part>> = unwanted;
        for part in unwanted {
            log::debug!("an overlay of {} lowers is no longer shared", part.lowers());
        }
    }
}

impl Part {
    /// Returns the number of lowers, including the base.
    pub(crate) fn lowers(&self) -> usize {
        self.trees.len()
    }

    fn has(&self, directory: &Path) -> bool {
        // A run that is just mounting the part holds its layers.
        self.mounted.get().and_then(Option::as_ref).is_some_and(|mounted| mounted.directories.contains(directory))
    }

    /// Mounts `overlay` over this part on `target`. The calling thread must be in a private mount
    /// namespace. `directory` is created if the kernel needs it.
    pub(crate) fn mount_over(&self, overlay: &Overlay, directory: &Path, target: &Path) -> Result<container::Mounted> {
        let mounted = self.mounted.get().and_then(Option::as_ref);
        let Mounted { overlay: shared, nesting, .. } = mounted.expect("a run gets only mounted parts");
        if *nesting == Nesting::Attached {
            std::fs::create_dir(directory).map_err(io_error("make the directory", directory))?;
        }
        log::debug!("{} has a shared lower of {} lowers", quoted(target), self.lowers());
        let mounted = shared.as_lower(*nesting, directory, |lower| overlay.clone().over(lower).mount(target));
        // The run stacks its layers one by one instead. The next runs should not try this again.
        Ok(mounted.inspect_err(|_| self.has_failed.store(true, Ordering::Relaxed))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(errno: Errno) -> Error {
        io_error("mount", "/it")(errno)
    }

    #[test]
    fn only_a_refusal_to_nest_applies_to_other_trees_of_the_same_file_systems() {
        let stack = |device: u64, first: u64| -> Vec<Identity> {
            [(1, 1)].into_iter().chain((first..first + 9).map(|inode| (device, inode))).collect()
        };
        let stacks = Stacks::new();
        let choose = |trees: Vec<Identity>| stacks.shared.choose(trees, OverlayXattrs::User, 500);
        let fail = |trees: Vec<Identity>, errno: Errno| {
            let part = choose(trees).unwrap();
            stacks.shared.state().has_failed(&part, &failed(errno));
            stacks.shared.remove(|other| Arc::ptr_eq(other, &part));
        };
        for errno in [Errno::NOENT, Errno::ACCESS, Errno::MFILE, Errno::LOOP] {
            fail(stack(2, 100), errno);
            assert!(choose(stack(2, 100)).is_none(), "{errno}");
            // Other trees of the same file systems have an overlay.
            let other = choose(stack(2, 200)).unwrap();
            assert_eq!(other.lowers(), 10);
            stacks.clear();
            assert!(choose(stack(2, 100)).is_some(), "{errno}");
            stacks.clear();
        }
        for errno in [Errno::INVAL, Errno::OPNOTSUPP] {
            fail(stack(2, 100), errno);
            assert!(choose(stack(2, 200)).is_none(), "{errno}");
            // The base is on the same file system, the layers are not.
            assert!(choose(stack(3, 300)).is_some(), "{errno}");
            stacks.clear();
            assert!(choose(stack(2, 200)).is_some(), "{errno}");
            stacks.clear();
        }
    }

    #[test]
    fn a_tree_that_was_replaced_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let trees = ["base", "layer"].map(|name| dir.path().join(name));
        trees.iter().for_each(|tree| std::fs::create_dir(tree).unwrap());
        let identities = trees.clone().map(|tree| {
            let metadata = tree.symlink_metadata().unwrap();
            (metadata.dev(), metadata.ino())
        });
        let refused = || refuse_replaced(trees.iter().map(PathBuf::as_path), &identities);
        refused().unwrap();
        std::fs::rename(&trees[1], dir.path().join("renamed")).unwrap();
        refused().unwrap_err();
        std::fs::create_dir(&trees[1]).unwrap();
        let error = refused().unwrap_err();
        assert!(chain(&error).contains("layer: it was replaced"), "{error:?}");
    }

    #[test]
    fn a_failed_watch_pauses_all_parts() {
        let stacks = Stacks::new();
        let choose = |first| {
            stacks.shared.choose((first..first + 9).map(|inode| (1, inode)).collect(), OverlayXattrs::User, 500)
        };
        choose(0).unwrap();
        for _ in 0..2 {
            stacks.shared.state().unwatched(Path::new("/store"), &Errno::NOSPC.into());
        }
        assert_eq!(stacks.shared.state().unwatched.len(), 1);
        // An overlay that exists is still used.
        assert!(choose(0).is_some());
        for run in 2..PAUSE {
            assert!(choose(100).is_none(), "{run}");
        }
        assert!(choose(100).is_some());
    }

    #[test]
    fn a_part_that_failed_is_tried_again_after_a_while() {
        let stacks = Stacks::new();
        let trees: Vec<Identity> = (0..9).map(|inode| (1, inode)).collect();
        let choose = || stacks.shared.choose(trees.clone(), OverlayXattrs::User, 500);
        let part = choose().unwrap();
        part.has_failed.store(true, Ordering::Relaxed);
        for run in 1..PAUSE {
            assert!(choose().is_none(), "{run}");
        }
        assert!(choose().is_none());
        assert!(!Arc::ptr_eq(&choose().unwrap(), &part));
        assert!(stacks.shared.state().failed.is_empty());
    }
}
