use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::{Path, PathBuf};

use container::advanced::{fixed_option_bytes, lower_option_bytes};
use container::{Cancel, LowerNames, MountApi};
use layer::display::quoted;
use layer::{Base, Hold, Layer, Plan, Rung, RungLimit};

use crate::Options;
use crate::error::{Cause, io_cause};
use crate::inside::{Identity, tree_around};
use crate::scratch::Paths;

/// The layers and the base of a run, seen to be there, none twice.
#[derive(Debug)]
pub(crate) struct Stack<'a> {
    layers: Vec<&'a Layer>,
    trees: Vec<PathBuf>,
    base: PathBuf,
    /// The numbers of the trees; `None` for the base.
    identities: HashMap<Identity, Option<usize>>,
}

impl<'a> Stack<'a> {
    /// Looks at every layer once. One that is given twice, by whatever path, keeps its first place; one that is the base too
    /// is only the base.
    pub(crate) fn resolve(base: &Base, layers: &'a [Layer]) -> Result<Self, Cause> {
        // If there is no tree, opening says what exactly is wrong.
        let tree = absolute(base.fs())?;
        let found = identity(&tree).map_err(|cause| Base::open(base.path()).err().map_or(cause, Cause::from))?;
        let mut identities = HashMap::with_capacity(layers.len() + 1);
        identities.insert(found, None);
        let (kept, trees) = (Vec::with_capacity(layers.len()), Vec::with_capacity(layers.len()));
        let mut stack = Self { layers: kept, trees, base: tree, identities };
        for layer in layers {
            let tree = absolute(layer.fs())?;
            let found = identity(&tree).map_err(|cause| Layer::open(layer.path()).err().map_or(cause, Cause::from))?;
            if let Entry::Vacant(entry) = stack.identities.entry(found) {
                entry.insert(Some(stack.trees.len()));
                stack.layers.push(layer);
                stack.trees.push(tree);
            } else {
                log::debug!("{} is in the stack already", quoted(layer.path()));
            }
        }
        Ok(stack)
    }

    /// Sees that `dir`, where the run's own directory is to be made, lies in none of the trees. It has no links in it.
    pub(crate) fn refuse_scratch(&self, dir: &Path) -> Result<(), Cause> {
        match self.tree_around(dir)? {
            Some(tree) => Err(Cause::ScratchInLayer { scratch: dir.into(), tree: tree.into() }),
            None => Ok(()),
        }
    }

    /// Sees that `dir`, where an upper is to be moved to, lies in none of the trees. It has no links in it.
    pub(crate) fn refuse_destination(&self, dir: &Path, destination: &Path) -> Result<(), Cause> {
        match self.tree_around(dir)? {
            Some(tree) => Err(Cause::UpperInLayer { destination: destination.into(), tree: tree.into() }),
            None => Ok(()),
        }
    }

    fn tree_around(&self, dir: &Path) -> Result<Option<&Path>, Cause> {
        let tree = |number: &Option<usize>| number.map_or(&*self.base, |number| &*self.trees[number]);
        let trees = self.identities.iter().map(|(identity, number)| (*identity, tree(number))).collect();
        tree_around(dir, &trees).map_err(io_cause("look at the directories around", dir))
    }

    /// Marks every layer as used. A store that cannot be written to does not keep a run from its result.
    pub(crate) fn touch(&self) {
        let failed: Vec<_> = self.layers.iter().filter_map(|layer| layer.touch().err()).collect();
        if let Some(error) = failed.first() {
            let source = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
            log::warn!("{error}: {source}: {} layers will look unused", failed.len());
        }
    }

    /// Decides what is stacked and what merged.
    pub(crate) fn plan(&self, options: &Options<'_>, scratch: &Paths) -> Result<Plan, Cause> {
        let available = match options.rung {
            Some(rung) => vec![rung],
            None => available_rungs(MountApi::detect()?).collect(),
        };
        let [upper, work] = [scratch.upper(), scratch.work()];
        let limits: Vec<_> = available.into_iter().map(|rung| limit(rung, options, &upper, &work)).collect();
        let plan = Plan::new(&self.trees, &self.base, &scratch.lower(), &limits);
        let plan = plan.expect("there is a rung on every kernel");
        log::debug!("{}: {} separate, {} to merge", plan.rung, plan.separate.len(), plan.merged.len());
        Ok(plan)
    }
}

/// Holds all layers, and the base if a collector could remove it: if it has a `layer.json`. `None` if the run was cancelled while
/// it waited for a collector.
pub(crate) fn hold(base: &Base, layers: &[Layer], cancel: Option<&Cancel>) -> Result<Option<Hold>, Cause> {
    let base = Layer::at(base.path());
    let base = base.meta_path().symlink_metadata().is_ok().then_some(base);
    let stop = || cancel.is_some_and(Cancel::is_cancelled);
    Ok(Hold::of_until(layers.iter().chain(&base).map(Layer::path), &stop)?)
}

/// The rungs that a kernel with `api` has.
fn available_rungs(api: MountApi) -> impl Iterator<Item = Rung> {
    Rung::LADDER.into_iter().filter(move |rung| api.includes(mechanism(*rung).0))
}

fn limit<'a>(rung: Rung, options: &Options<'_>, upper: &Path, work: &Path) -> RungLimit<'a> {
    let (api, names) = mechanism(rung);
    let left = |_| options.max_option_bytes.saturating_sub(fixed_option_bytes(names, upper, work));
    let max_bytes = api.max_option_bytes().map_or(usize::MAX, left);
    let cost: &dyn Fn(&Path) -> usize = match names {
        LowerNames::Short => &|path| lower_option_bytes(LowerNames::Short, path),
        LowerNames::Paths => &|path| lower_option_bytes(LowerNames::Paths, path),
    };
    RungLimit { rung, max_lowers: options.max_lowers, max_bytes, cost }
}

/// What a rung is to the mount. On the first one the mount chooses the names itself: nothing depends on their length.
pub(crate) fn mechanism(rung: Rung) -> (MountApi, LowerNames) {
    match rung {
        Rung::MountPaths => (MountApi::Mount2, LowerNames::Paths),
        Rung::MountNames => (MountApi::Mount2, LowerNames::Short),
        _ => (MountApi::Fsconfig, LowerNames::Paths),
    }
}

/// Device and inode of a directory that is no symbolic link.
fn identity(tree: &Path) -> Result<(u64, u64), Cause> {
    use std::os::unix::fs::MetadataExt;
    let metadata = tree.symlink_metadata().map_err(io_cause("look at", tree))?;
    match metadata.is_dir() {
        true => Ok((metadata.dev(), metadata.ino())),
        false => Err(io_cause("open the directory", tree)(rustix::io::Errno::NOTDIR)),
    }
}

pub(crate) fn absolute(path: PathBuf) -> Result<PathBuf, Cause> {
    if path.is_absolute() {
        return Ok(path);
    }
    std::path::absolute(&path).map_err(io_cause("make absolute", path))
}
