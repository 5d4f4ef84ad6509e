//! Decides where the changes are that [`diff`](super) lists, and what was below them.
//! [`stack`](crate::stack) has the options that name a stack.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use layer::display::quoted;
use layer::{Layer, RunRecord, XattrNamespace};
use runner::{CaptureRecord, Upper};

use crate::ancestry::Meanings;
use crate::defaults::{self, BASE, STORE};
use crate::stack::{BaseArgs, LayerArgs, default_base, is_store, open_layer, parent};
use crate::{commit, kept};

/// A tree with changes.
#[derive(Debug)]
pub(super) struct Subject {
    pub(super) tree: PathBuf,
    pub(super) xattrs: XattrNamespace,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Layer(Layer),
    Upper,
    /// An upper with what was recorded of it: by a kept run, or in the report that the caller
    /// names. The record of a kept run may be missing; this is then the reason.
    Recorded(anyhow::Result<Box<CaptureRecord>>),
}

/// The stack below the changes.
#[derive(Debug)]
pub(super) enum Below {
    /// The trees, topmost first.
    Known(Vec<PathBuf>),
    /// The reason why the stack is not known, and what to do.
    Unknown(String),
}

impl Subject {
    /// Finds the tree that `path` means: that of a kept run, of a layer, or an upper itself.
    ///
    /// With the `report` of a run, `path` is always an upper or a kept run.
    pub(super) fn find(path: &Path, scratch: Option<&Path>, report: Option<&Path>) -> anyhow::Result<Self> {
        let run = kept::find(path, scratch);
        let is_kept = Upper::is_kept_name(&run);
        let records = match report {
            Some(report) => Some(Ok(commit::of_report(report)?)),
            None => is_kept.then(|| kept::records(&run)),
        };
        if let Some(records) = records {
            let record = records.map(|records| Box::new(records.capture));
            let xattrs = record.as_ref().map_or_else(|_| runner::xattrs_of_process(), |record| record.xattrs());
            let tree = if is_kept { run.join("upper") } else { path.into() };
            return Ok(Self { tree, xattrs, kind: Kind::Recorded(record) });
        }
        // An upper can contain anything. The guess by its content is only for one without a record.
        if path.is_dir() && (is_recorded(path)? || !path.join("fs").exists() && !is_store(path)) {
            return Ok(Self { tree: path.into(), xattrs: runner::xattrs_of_upper(path)?, kind: Kind::Upper });
        }
        let layer = open_layer(Path::new(""), path)?;
        Ok(Self { tree: layer.fs(), xattrs: runner::xattrs_of_process(), kind: Kind::Layer(layer) })
    }

    /// Returns the paths of the files that the run itself has put into an upper.
    pub(super) fn made(&self) -> anyhow::Result<HashSet<PathBuf>> {
        let record = match self.kind {
            Kind::Layer(_) => None,
            _ => RunRecord::read(&self.tree, self.xattrs)?,
        };
        let mut paths = HashSet::new();
        for made in record.and_then(|record| record.made).unwrap_or_default() {
            if made.is_unchanged(&self.tree)? {
                paths.insert(made.path().strip_prefix("/").unwrap_or(made.path()).into());
            }
        }
        Ok(paths)
    }

    /// Finds the stack below. The options come before what is recorded.
    pub(super) fn below(&self, base: &BaseArgs, layers: &LayerArgs) -> anyhow::Result<Below> {
        match &self.kind {
            Kind::Recorded(record) if !base.is_given() && !layers.are_given() => {
                return Ok(match record {
                    Ok(record) => Below::Known(record.lowers().map(Path::to_path_buf).collect()),
                    Err(error) => Below::Unknown(format!("{error:#}; pass --base and --layer")),
                });
            }
            _ => {}
        }
        let given_base = base.open()?.map(|base| base.fs());
        let given = layers.are_given().then(|| layers.open()).transpose()?;
        let given = given.map(|layers| layers.iter().map(Layer::fs).collect::<Vec<_>>());
        match (&self.kind, given, given_base) {
            // With a base alone, a layer still has its own parents.
            (Kind::Layer(layer), given, given_base) => recorded(layer, given, given_base),
            (_, given, Some(base)) => Ok(Below::Known(given.unwrap_or_default().into_iter().chain([base]).collect())),
            (_, Some(_), None) => Ok(Below::Unknown("the base is not known; pass --base or --rootfs".into())),
            (_, None, None) => {
                Ok(Below::Unknown("the stack below is not known; pass --run, or --base and --layer".into()))
            }
        }
    }
}

/// Returns whether a run of root or of an ordinary user has left its record on a directory.
fn is_recorded(dir: &Path) -> layer::Result<bool> {
    let [root, user] = [XattrNamespace::Trusted, XattrNamespace::User].map(|xattrs| RunRecord::read(dir, xattrs));
    Ok(root?.is_some() || user?.is_some())
}

/// Returns the stack below a layer: the given layers and the given base, or else those of its
/// `layer.json`.
fn recorded(layer: &Layer, layers: Option<Vec<PathBuf>>, base: Option<PathBuf>) -> anyhow::Result<Below> {
    let both_given = layers.is_some() && base.is_some();
    let Some(meta) = layer.meta()?.filter(|_| !both_given) else {
        return Ok(match (layers, base) {
            (layers, Some(base)) => Below::Known(layers.unwrap_or_default().into_iter().chain([base]).collect()),
            _ => Below::Unknown(format!(
                "{} has no layer.json, so the stack below is not known; pass --base and --layer",
                quoted(layer.path())
            )),
        });
    };
    let beside = fs::canonicalize(layer.path()).with_context(|| format!("cannot find {}", quoted(layer.path())))?;
    let mut stores = vec![parent(&beside).to_path_buf()];
    stores.extend(defaults::path(STORE));
    let candidates = candidates(&stores);
    let hashes = meta.parent_hashes.iter().chain([&meta.base_hash]).map(String::as_str);
    let meanings = Meanings::of(hashes, &candidates);
    let with_hash = |hash: &str| meanings.get(hash).map(|index| &candidates[index]);
    let mut trees = Vec::new();
    match layers {
        Some(layers) => trees.extend(layers),
        None => {
            for hash in &meta.parent_hashes {
                match with_hash(hash) {
                    Some(found) => trees.push(found.fs()),
                    None => {
                        let (hash, store) = (quoted(hash), quoted(&stores[0]));
                        return Ok(Below::Unknown(format!(
                            "its parent {hash} is not in {store}; pass --layer, or set {STORE}"
                        )));
                    }
                }
            }
        }
    }
    let hash = &meta.base_hash;
    let default = || default_base().map(|base| base.filter(|base| Layer::at(base.path()).has_hash(hash)));
    let found = match base {
        Some(base) => Some(base),
        None => match with_hash(hash) {
            Some(found) => Some(found.fs()),
            None => default()?.map(|base| base.fs()),
        },
    };
    Ok(match found {
        Some(base) => Below::Known(trees.into_iter().chain([base]).collect()),
        None => Below::Unknown(format!(
            "its base {} is not in {}; pass --base, or set {BASE}",
            quoted(hash),
            quoted(&stores[0])
        )),
    })
}

/// Lists what a hash can mean in the stores: layers and bases, which need no `layer.json`. The
/// first store comes last, because [`Meanings`] takes the last of several layers with the same
/// name.
fn candidates(stores: &[PathBuf]) -> Vec<Layer> {
    let entries = stores.iter().rev().filter_map(|store| fs::read_dir(store).ok()).flatten().flatten();
    entries.map(|entry| Layer::at(entry.path())).filter(|layer| layer.fs().is_dir()).collect()
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use layer::Meta;

    use super::*;

    /// Makes a store with a base and three layers, and returns its directory.
    fn store() -> tempfile::TempDir {
        let store = tempfile::tempdir().unwrap();
        for (name, parents, base) in [
            ("gcc", &[][..], "debian"),
            ("hello", &["gcc"], "debian"),
            ("orphan", &["missing"], "debian"),
            ("baseless", &[], "missing"),
        ] {
            let layer = Layer::at(store.path().join(name));
            fs::create_dir_all(layer.fs()).unwrap();
            let parent_hashes = parents.iter().map(ToString::to_string).collect();
            layer.write_meta(&Meta { parent_hashes, ..Meta::new(base, SystemTime::UNIX_EPOCH) }).unwrap();
        }
        fs::create_dir_all(store.path().join("debian/fs")).unwrap();
        store
    }

    #[test]
    fn the_stack_below_a_layer_is_the_recorded_or_the_given_one() {
        let store = store();
        let real = fs::canonicalize(store.path()).unwrap();
        let tree = |name: &str| real.join(name).join("fs");
        let other = || PathBuf::from("/other");
        for (name, layers, base, expected) in [
            ("hello", None, None, Ok(vec![tree("gcc"), tree("debian")])),
            ("hello", None, Some(other()), Ok(vec![tree("gcc"), other()])),
            ("hello", Some(vec![other()]), None, Ok(vec![other(), tree("debian")])),
            ("orphan", None, None, Err("its parent missing is not in")),
            ("orphan", Some(Vec::new()), Some(other()), Ok(vec![other()])),
            ("baseless", None, None, Err("its base missing is not in")),
            ("baseless", None, Some(other()), Ok(vec![other()])),
            ("debian", None, None, Err("has no layer.json")),
            ("debian", None, Some(other()), Ok(vec![other()])),
        ] {
            let below = recorded(&Layer::at(store.path().join(name)), layers, base).unwrap();
            match (below, expected) {
                (Below::Known(trees), Ok(expected)) => assert_eq!(trees, expected, "{name}"),
                (Below::Unknown(why), Err(expected)) => assert!(why.contains(expected), "{why}"),
                (below, _) => panic!("{name}: {below:?}"),
            }
        }
    }
}
