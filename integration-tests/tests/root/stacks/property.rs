//! Random stacks: compares an overlay of all layers with an overlay whose lowest layers are in an
//! overlay of their own, before and after changes, and their captures.
//!
//! `LAYERED_STACKS` and `LAYERED_SEED` mean the same as in `merge::property`.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::UNIX_EPOCH;

use container::Overlay;
use container::advanced::{DetachedOverlay, Nesting};
use container::in_private_mount_namespace;
use integration_tests::stack::{Dir, Item, Mount, require_root};
use integration_tests::tree::Snapshot;
use layer::{Capture, Layer, Meta};
use rustix::io::Errno;
use tempfile::TempDir;

use crate::merge::operations::Operation;
use crate::merge::property::{LAYERS_END_SECONDS, property};
use crate::merge::random::{Layers, layers, operations};

/// The trees of a stack on disk, topmost first, the base last.
struct Trees {
    dir: TempDir,
    lowers: Vec<PathBuf>,
}

/// What a mount showed before and after the changes, the results of the changes, and the tree of
/// the captured layer, or why there is none.
#[derive(PartialEq)]
struct Seen {
    before: Snapshot,
    results: Vec<Result<(), Errno>>,
    after: Snapshot,
    captured: Result<Snapshot, String>,
}

impl Trees {
    fn new(stack: &[Dir]) -> Self {
        require_root();
        let dir = tempfile::tempdir().unwrap();
        let make = |(index, lower): (usize, &Dir)| {
            let path = dir.path().join(format!("lower{index}"));
            lower.make(&path).unwrap();
            path
        };
        let lowers = stack.iter().enumerate().map(make).collect();
        Self { dir, lowers }
    }

    /// Mounts all layers in one overlay, and changes the tree.
    fn flat(&self, changes: &[Operation]) -> Seen {
        let scratch = self.dir.path().join("flat");
        self.change(Mount::writable(&self.lowers, &scratch).unwrap(), &scratch, changes)
    }

    /// Does the same with the lowest `shared` layers in an overlay of their own.
    fn nested(&self, shared: usize, nesting: Nesting, changes: &[Operation]) -> Seen {
        let (above, lowest) = self.lowers.split_at(self.lowers.len() - shared);
        let lowest = Overlay::new(lowest).mount_detached().unwrap();
        let scratch = self.dir.path().join("nested");
        let attached = self.dir.path().join("attached");
        fs::create_dir(&attached).unwrap();
        let mount = || mount_over(&lowest, nesting, &attached, above, &scratch);
        let mount = in_private_mount_namespace(mount).unwrap();
        self.change(mount, &scratch, changes)
    }

    fn change(&self, mount: Mount, scratch: &Path, changes: &[Operation]) -> Seen {
        let before = Snapshot::of(&mount).unwrap().with_times_until(LAYERS_END_SECONDS);
        let results = changes.iter().map(|change| change.apply(mount.as_fd())).collect();
        let after = Snapshot::of(&mount).unwrap().with_times_until(LAYERS_END_SECONDS);
        drop(mount);
        let layer = Layer::at(scratch.join("layer"));
        let captured = Capture::new(&self.lowers).xattrs(runner::xattrs_of_process()).into_layer(
            scratch.join("upper"),
            &layer,
            Meta::new("base", UNIX_EPOCH),
        );
        let tree = || Snapshot::of_path(&layer.fs()).unwrap().with_times_until(LAYERS_END_SECONDS);
        Seen { before, results, after, captured: captured.map(|_| tree()).map_err(|error| error.to_string()) }
    }
}

fn mount_over(lowest: &DetachedOverlay, nesting: Nesting, attached: &Path, above: &[PathBuf], scratch: &Path) -> Mount {
    let mount = |lower: &Path| {
        let lowers: Vec<_> = above.iter().map(|path| path.as_path()).chain([lower]).collect();
        Ok(Mount::writable(&lowers, scratch).unwrap())
    };
    lowest.as_lower(nesting, attached, mount).unwrap()
}

/// Fails unless both have shown the same and have become the same layer.
///
/// A directory that lists a name that cannot be looked up cannot be removed, nor one that contains
/// whiteouts in the form of xattrs. In the shared part, these are other directories. What follows
/// may then differ.
fn agree(flat: &Seen, nested: &Seen, changes: &[Operation], xattr_whiteouts: bool) -> Result<(), String> {
    let not_removable = xattr_whiteouts || !nested.before.phantoms.is_empty();
    let same = |what: &str, flat: &Snapshot, nested: &Snapshot| match flat.diff(nested) {
        same if same.is_empty() => Ok(()),
        diff => Err(format!("{what}:\n{diff}")),
    };
    same("before", &flat.before, &nested.before)?;
    for (change, (flat, nested)) in changes.iter().zip(flat.results.iter().zip(&nested.results)) {
        if not_removable && [*flat, *nested].contains(&Err(Errno::NOTEMPTY)) {
            return Ok(());
        }
        if flat != nested {
            return Err(format!("{change:?}: {flat:?}, {nested:?}"));
        }
    }
    // A file that was copied up has the numbers of its lower, and a name that was linked to it
    // since then has others.
    same("after", &without_groups(&flat.after), &without_groups(&nested.after))?;
    match (&flat.captured, &nested.captured) {
        (Ok(flat), Ok(nested)) => same("captured", flat, nested),
        (flat, nested) if flat.as_ref().err() == nested.as_ref().err() => Ok(()),
        (flat, nested) => Err(format!("captured: {:?}, {:?}", flat.as_ref().err(), nested.as_ref().err())),
    }
}

fn without_groups(snapshot: &Snapshot) -> Snapshot {
    let mut snapshot = snapshot.clone();
    snapshot.entries.values_mut().for_each(|entry| entry.group = None);
    snapshot
}

/// Removes the xattrs of an overlay inside an overlay.
fn without_escaped(dir: &mut Dir) {
    dir.attributes.xattrs.retain(|(name, _)| !name.contains(".overlay.overlay."));
    for item in dir.items.values_mut() {
        if let Item::Dir(dir) = item {
            without_escaped(dir);
        }
    }
}

fn nesting(number: usize) -> Nesting {
    static WAYS: LazyLock<Vec<Nesting>> = LazyLock::new(|| super::ways().collect());
    WAYS[number % WAYS.len()]
}

#[test]
fn a_shared_part_changes_nothing_of_a_stack() {
    property((layers(), operations(12), 0..100_usize), |(layers, changes, number)| {
        let Layers { separate, sources, base, xattr_whiteouts } = layers;
        let mut stack: Vec<Dir> = separate.into_iter().chain(sources).chain([base]).collect();
        stack.iter_mut().for_each(without_escaped);
        let trees = Trees::new(&stack);
        let shared = 2 + number % (stack.len() - 1);
        let (flat, nested) = (trees.flat(&changes), trees.nested(shared, nesting(number), &changes));
        agree(&flat, &nested, &changes, xattr_whiteouts)
    });
}
