//! The layers of a run: checks them, and decides which of them are stacked, which are merged, and
//! on which rung of the ladder the overlay is mounted.
//!
//! `layer::Plan` applies the limits. `inside` finds out whether a directory lies in a tree.

use std::borrow::Cow;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, Scope};

use container::advanced::{fixed_option_bytes, lower_option_bytes};
use container::{ContainerId, LowerNames, MountApi, Overlay, UserNamespace};
use layer::display::quoted;
use layer::{Base, Hold, Layer, Merge, Merged, Plan, Rung, RungLimit, XattrNamespace};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

use crate::error::{Cause, chain, in_phase, io_error};
use crate::inside::{Identity, tree_around};
use crate::options::Limits;
use crate::paths::Paths;
use crate::rundir::{self, PREFIX, scratch_dir};
use crate::skeleton::Skeleton;
use crate::stacks::Part;
use crate::{Error, Options, Phase, Result};

/// Returns the plan that [`run`](crate::run) would make without [`Stacks`](crate::Stacks). Creates
/// nothing and marks no layer as used.
///
/// # Errors
/// [`Error`] in [`Phase::Inputs`] without root or if the base or a layer cannot be used. [`Error`]
/// in [`Phase::Plan`] if the scratch directory does not exist, or if the kernel's mount interface
/// cannot be detected.
pub fn plan(base: &Base, layers: &[Layer], options: &Options<'_>) -> Result<Plan> {
    let stack = in_phase(Phase::Inputs, || {
        // Without privileges, a process cannot find out which rungs the kernel has.
        container::require_privilege()?;
        Stack::resolve(base, layers)
    })?;
    in_phase(Phase::Plan, || {
        // Any run's name will do: only its length matters.
        let id = ContainerId::random(PREFIX)?;
        let paths = Paths::new(scratch_dir(&options.scratch)?.join(id.as_str()));
        // The skeleton's name has the same length.
        let skeleton = stack.of_others().map(|_| layer::Skeleton::at(paths.dir()).tree());
        Ok(without(stack.plan(&options.limits, &paths, skeleton.as_deref())?, skeleton.as_deref()))
    })
}

/// Checks what [`Options::destination`] checks, without a run: that the upper of a run over these
/// layers may be moved to `destination`.
///
/// # Errors
/// [`Cause::UpperInLayer`], [`Cause::InRunDirectory`]. [`Cause::Layer`] if the base or a layer
/// cannot be used. [`Cause::Io`] if the path of `destination`'s parent cannot be resolved.
pub fn check_upper_destination(base: &Base, layers: &[Layer], destination: impl AsRef<Path>) -> Result<()> {
    Stack::resolve(base, layers)?.refuse_destination(destination.as_ref())
}

/// The number of layers from which on a thread pays off that marks them as used. Starting it takes
/// as long as marking thirty layers.
const MANY_LAYERS: usize = 64;

/// The layers and the base of a run. Each tree exists and occurs once.
#[derive(Debug)]
pub(crate) struct Stack<'a> {
    layers: Vec<&'a Layer>,
    trees: Vec<PathBuf>,
    base: PathBuf,
    /// The directory of the base.
    base_dir: PathBuf,
    /// The index of each tree in `trees`; `None` for the base.
    identities: HashMap<Identity, Option<usize>>,
    /// The index of the topmost tree whose owner has no number in this process's user namespace, if
    /// there is one. For the base, it is the number of `trees`.
    first_of_others: Option<usize>,
}

impl<'a> Stack<'a> {
    /// Inspects every layer once. A layer that occurs twice, even under different paths, keeps its
    /// first place. A layer that is also the base is stacked only as the base.
    pub(crate) fn resolve(base: &Base, layers: &'a [Layer]) -> Result<Self> {
        // If a tree cannot be used, opening its layer returns the exact reason.
        let tree = absolute(base.fs())?;
        let found = look(&tree).map_err(|error| base.check().err().map_or(error, Error::from))?;
        let mut identities = HashMap::with_capacity(layers.len() + 1);
        identities.insert(found.identity, None);
        let (kept, trees) = (Vec::with_capacity(layers.len()), Vec::with_capacity(layers.len()));
        let base_dir = base.path().into();
        let mut stack = Self { layers: kept, trees, base: tree, base_dir, identities, first_of_others: None };
        for layer in layers {
            let tree = absolute(layer.fs())?;
            let found = look(&tree).map_err(|error| Layer::open(layer.path()).err().map_or(error, Error::from))?;
            if let Entry::Vacant(entry) = stack.identities.entry(found.identity) {
                entry.insert(Some(stack.trees.len()));
                if found.is_of_others {
                    stack.first_of_others.get_or_insert(stack.trees.len());
                }
                stack.layers.push(layer);
                stack.trees.push(tree);
            } else {
                log::debug!("{} is in the stack already", quoted(layer.path()));
            }
        }
        if found.is_of_others {
            stack.first_of_others.get_or_insert(stack.trees.len());
        }
        Ok(stack)
    }

    /// Returns the trees from the topmost one of somebody else on, the base last. Returns `None` if
    /// all trees belong to users of this process's user namespace.
    pub(crate) fn of_others(&self) -> Option<Vec<&Path>> {
        let first = self.first_of_others?;
        Some(self.trees[first..].iter().chain([&self.base]).map(PathBuf::as_path).collect())
    }

    /// Returns the [skeleton](layer::Skeleton) that belongs on top of the trees of others. Returns
    /// `None` if it needs none, or if `stop` ended the work.
    ///
    /// It is kept in the first of the directories `caches` that does not lie in a tree of the
    /// stack.
    pub(crate) fn skeleton(
        &self,
        caches: [Option<&Path>; 2],
        xattrs: XattrNamespace,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<Option<Skeleton>> {
        let Some(trees) = self.of_others() else { return Ok(None) };
        for cache in caches.into_iter().flatten() {
            let cache = scratch_dir(cache)?;
            if self.tree_around(&cache)?.is_none() {
                return Skeleton::of(&trees, &cache, xattrs, stop);
            }
        }
        Ok(None)
    }

    /// Returns the device and inode numbers of the trees, the base first.
    pub(crate) fn identities(&self) -> Vec<Identity> {
        let mut numbered: Vec<_> = self.identities.iter().collect();
        // The base has no number. The layers are numbered from the top.
        numbered.sort_unstable_by_key(|(_, number)| number.map_or(0, |number| self.trees.len() - number));
        numbered.into_iter().map(|(identity, _)| *identity).collect()
    }

    /// Returns the `count` lowest trees, the base last.
    pub(crate) fn lowest_trees(&self, count: usize) -> Vec<PathBuf> {
        let layers = &self.trees[self.trees.len() + 1 - count..];
        layers.iter().chain([&self.base]).cloned().collect()
    }

    /// Returns the real paths of the directories of the `count` lowest layers, including the base.
    pub(crate) fn lowest_directories(&self, count: usize) -> Result<HashSet<PathBuf>> {
        let layers = self.layers[self.layers.len() + 1 - count..].iter().map(|layer| layer.path());
        let real = |path: &Path| std::fs::canonicalize(path).map_err(io_error("find", path));
        layers.chain([&*self.base_dir]).map(real).collect()
    }

    /// Fails if `dir`, the parent of the run's own directory, is or lies in one of the trees. `dir`
    /// is a real path.
    pub(crate) fn refuse_scratch(&self, dir: &Path) -> Result<()> {
        match self.tree_around(dir)? {
            Some(tree) => Err(Cause::ScratchInLayer { scratch: dir.into(), tree: tree.into() }.into()),
            None => Ok(()),
        }
    }

    /// Fails if an upper may not be moved to `destination`, because that lies in one of the trees
    /// or in the directory of a run.
    pub(crate) fn refuse_destination(&self, destination: &Path) -> Result<()> {
        let parent = match destination.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let parent = std::fs::canonicalize(parent).map_err(io_error("look at", parent))?;
        if let Some(run) = rundir::around(&parent) {
            return Err(Cause::InRunDirectory { path: destination.into(), run }.into());
        }
        match self.tree_around(&parent)? {
            Some(tree) => Err(Cause::UpperInLayer { destination: destination.into(), tree: tree.into() }.into()),
            None => Ok(()),
        }
    }

    fn tree_around(&self, dir: &Path) -> Result<Option<&Path>> {
        let tree = |number: &Option<usize>| number.map_or(&*self.base, |number| &*self.trees[number]);
        let trees = self.identities.iter().map(|(identity, number)| (*identity, tree(number))).collect();
        tree_around(dir, &trees).map_err(io_error("look at the directories around", dir))
    }

    /// Marks every layer as used. If there are many, a thread of `scope` does it while the run goes
    /// on. A run succeeds even if it cannot write to the store.
    pub(crate) fn touch<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) {
        let is_begun = self.layers.len() >= MANY_LAYERS
            && thread::Builder::new().name("touch".into()).spawn_scoped(scope, || self.touch_all()).is_ok();
        if !is_begun {
            self.touch_all();
        }
    }

    fn touch_all(&self) {
        let failed: Vec<_> = self.layers.iter().filter_map(|layer| layer.touch().err()).collect();
        if let Some(error) = failed.first() {
            log::warn!("{}: {} layers will look unused", chain(error), failed.len());
        }
    }

    /// Decides which layers are stacked and which are merged. The skeleton is one more layer, on
    /// top of those of others.
    pub(crate) fn plan(&self, limits: &Limits, scratch: &Paths, skeleton: Option<&Path>) -> Result<Plan> {
        let trees = match (skeleton, self.first_of_others) {
            (Some(skeleton), Some(first)) => {
                let mut trees = self.trees.clone();
                trees.insert(first, skeleton.into());
                Cow::Owned(trees)
            }
            _ => Cow::Borrowed(&self.trees),
        };
        self.plan_layers(&trees, &self.base, limits, scratch)
    }

    /// Plans the stack over `part`, the overlay of its lowest trees. The plan has the layers of the
    /// part among the separate ones. If the layers above the part do not fit, returns the plan
    /// without it.
    pub(crate) fn plan_over(
        &self,
        part: Option<Arc<Part>>,
        limits: &Limits,
        scratch: &Paths,
    ) -> Result<(Plan, Option<Arc<Part>>)> {
        if let Some(part) = part {
            let (above, lowest) = self.trees.split_at(self.trees.len() + 1 - part.lowers());
            let mut plan = self.plan_layers(above, &scratch.shared(), limits, scratch)?;
            if plan.merged.is_empty() {
                plan.separate.extend_from_slice(lowest);
                plan.base.clone_from(&self.base);
                return Ok((plan, Some(part)));
            }
        }
        Ok((self.plan(limits, scratch, None)?, None))
    }

    fn plan_layers(&self, layers: &[PathBuf], base: &Path, limits: &Limits, scratch: &Paths) -> Result<Plan> {
        let available = match limits.rung {
            Some(rung) => vec![rung],
            None => available_rungs(MountApi::detect()?).collect(),
        };
        let [upper, work] = [scratch.upper(), scratch.work()];
        let limits: Vec<_> = available.into_iter().map(|rung| limit(rung, limits, &upper, &work)).collect();
        let plan = Plan::new(layers, base, &scratch.lower(), &limits);
        let plan = plan.expect("there is a rung on every kernel");
        log::debug!("{}: {} separate, {} to merge", plan.rung, plan.separate.len(), plan.merged.len());
        Ok(plan)
    }
}

/// Holds all layers. Also holds the base if it is a layer with a `layer.json`, because a collector
/// could then remove it. Returns `None` if `stop` ended the wait for a collector.
pub(crate) fn hold(base: &Base, layers: &[Layer], stop: &dyn Fn() -> bool) -> Result<Option<Hold>> {
    let (base, is_tree) = (Layer::at(base.path()), base.is_tree());
    let base = (!is_tree && base.meta_path().symlink_metadata().is_ok()).then_some(base);
    Ok(Hold::of_until(layers.iter().chain(&base).map(Layer::path), stop)?)
}

/// Merges the layers that the plan does not stack separately into `target`. Returns `None` if the
/// plan merges nothing, or if `stop` ended the merge.
pub(crate) fn merge(
    plan: &Plan,
    target: &Path,
    skeleton: Option<&Skeleton>,
    xattrs: XattrNamespace,
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<Option<Merged>> {
    if plan.merged.is_empty() {
        return Ok(None);
    }
    let mut merge = Merge::new().xattrs(xattrs).stop(stop);
    if skeleton.is_some() {
        merge = merge.hide_unreadable();
    }
    match merge.run(&plan.merged, target) {
        Ok(merged) => Ok(Some(merged)),
        Err(layer::Error::Stopped { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Returns the plan of the layers alone, without the skeleton whose tree is `skeleton`.
pub(crate) fn without(mut plan: Plan, skeleton: Option<&Path>) -> Plan {
    let mut trees = plan.separate.iter().chain(&plan.merged);
    let Some(index) = skeleton.and_then(|skeleton| trees.position(|tree| tree == skeleton)) else { return plan };
    match index.checked_sub(plan.separate.len()) {
        Some(merged) => plan.merged.remove(merged),
        None => plan.separate.remove(index),
    };
    for estimate in &mut plan.estimates {
        match index < estimate.separate {
            true => estimate.separate -= 1,
            false => estimate.merged -= 1,
        }
    }
    plan
}

/// Returns the rungs that a kernel with `api` has.
fn available_rungs(api: MountApi) -> impl Iterator<Item = Rung> {
    Rung::LADDER.into_iter().filter(move |rung| api.includes(mechanism(*rung).0))
}

fn limit<'a>(rung: Rung, limits: &Limits, upper: &Path, work: &Path) -> RungLimit<'a> {
    let (api, names) = mechanism(rung);
    let left = |_| limits.max_option_bytes.saturating_sub(fixed_option_bytes(names, upper, work));
    let max_bytes = api.max_option_bytes().map_or(usize::MAX, left);
    let cost: &dyn Fn(&Path) -> usize = match names {
        LowerNames::Short => &|path| lower_option_bytes(LowerNames::Short, path),
        LowerNames::Paths => &|path| lower_option_bytes(LowerNames::Paths, path),
    };
    RungLimit { rung, max_lowers: limits.max_lowers, max_bytes, cost }
}

/// Returns the overlay of `lowers` on `rung`, with the upper and the work directory of a run.
pub(crate) fn overlay(rung: Rung, lowers: Vec<PathBuf>, paths: &Paths) -> Overlay {
    let (api, names) = mechanism(rung);
    let overlay = Overlay::new(lowers).writable(paths.upper(), paths.work()).api(api);
    // With lowerdir+, the length of the names does not matter, and the mount chooses them.
    if rung == Rung::LowerdirPlus { overlay } else { overlay.names(names) }
}

/// Returns the system calls and the kind of names that `rung` stands for.
fn mechanism(rung: Rung) -> (MountApi, LowerNames) {
    match rung {
        Rung::MountPaths => (MountApi::Mount2, LowerNames::Paths),
        Rung::MountNames => (MountApi::Mount2, LowerNames::Short),
        _ => (MountApi::Fsconfig, LowerNames::Paths),
    }
}

/// What a run needs to know of the root of a tree.
struct Found {
    identity: Identity,
    /// Whether the owner or the group has no number in this process's user namespace.
    is_of_others: bool,
}

/// Looks at the root of `tree`. Fails if `tree` is a symbolic link or not a directory, or if its
/// owner does not let this process list and search it.
fn look(tree: &Path) -> Result<Found> {
    let metadata = tree.symlink_metadata().map_err(io_error("look at", tree))?;
    if !metadata.is_dir() {
        return Err(io_error("open the directory", tree)(Errno::NOTDIR));
    }
    let is_of_others = UserNamespace::is_of_others(tree, metadata.uid(), metadata.gid());
    if is_of_others {
        // The lookup of `.` needs the permission to search.
        let listed = openat(CWD, tree.join("."), OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        listed.map_err(|errno| match errno {
            Errno::ACCESS => Cause::Closed { tree: tree.into() }.into(),
            errno => io_error("open the directory", tree)(errno),
        })?;
    }
    Ok(Found { identity: (metadata.dev(), metadata.ino()), is_of_others })
}

/// Returns `path` as an absolute path. Does not resolve symbolic links.
pub(crate) fn absolute(path: PathBuf) -> Result<PathBuf> {
    if path.is_absolute() {
        return Ok(path);
    }
    std::path::absolute(&path).map_err(io_error("make absolute", path))
}
