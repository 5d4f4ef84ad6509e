//! Merges: the merged directory must show the same tree as the layers that it replaces. The kernel
//! is the oracle.
//!
//! - `property` makes random stacks; each failure that it ever finds becomes a named test in
//!   `corners`
//! - `links` has files that cannot be linked
//! - `hostile` has layers that try to lead out of the target
//! - `input` has inputs that are refused
//! - `scale` has large and deep trees

mod corners;
mod hostile;
mod input;
mod links;
pub(crate) mod operations;
pub(crate) mod property;
pub(crate) mod random;
mod scale;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use integration_tests::stack::{Dir, Mount, new_merge, require_root};
use integration_tests::tree::Snapshot;
use layer::{Merge, Merged};
use tempfile::TempDir;

/// A stack on disk.
struct Stack {
    dir: TempDir,
    /// Layers above the merged ones that stay separate lowers, the topmost first.
    separate: Vec<PathBuf>,
    /// Layers to merge, the topmost first.
    sources: Vec<PathBuf>,
    base: PathBuf,
}

impl Stack {
    fn new(separate: &[Dir], sources: &[Dir], base: &Dir) -> Self {
        require_root();
        let dir = tempfile::tempdir().unwrap();
        let make = |name: String, layer: &Dir| {
            let path = dir.path().join(name);
            layer.make(&path).unwrap();
            path
        };
        Self {
            separate: separate.iter().enumerate().map(|(index, layer)| make(format!("above{index}"), layer)).collect(),
            sources: sources.iter().enumerate().map(|(index, layer)| make(format!("source{index}"), layer)).collect(),
            base: make("base".into(), base),
            dir,
        }
    }

    fn merged(&self) -> PathBuf {
        self.dir.path().join("merged")
    }

    /// Returns the lowers with all layers separate.
    fn all(&self) -> Vec<&Path> {
        let layers = self.separate.iter().chain(&self.sources);
        layers.chain([&self.base]).map(PathBuf::as_path).collect()
    }

    /// Returns the lowers with the merged directory in place of its sources.
    fn with_merged<'a>(&'a self, merged: &'a Path) -> Vec<&'a Path> {
        self.separate.iter().map(PathBuf::as_path).chain([merged, &self.base]).collect()
    }

    /// Merges, and compares what the kernel shows of the result with what it shows of the layers.
    fn compare(&self, merge: &Merge) -> Result<Merged, String> {
        self.compare_at(merge, &self.merged())
    }

    /// As [`compare`](Self::compare), with the merged directory at `target`.
    fn compare_at(&self, merge: &Merge, target: &Path) -> Result<Merged, String> {
        let untouched: Vec<_> = self.sources.iter().map(|source| Snapshot::of_path(source).unwrap()).collect();
        let merged = merge.run(&self.sources, target).map_err(|error| format!("{error:?}"))?;
        let expected = Snapshot::of(Mount::read_only(&self.all()).unwrap()).unwrap();
        let found = Snapshot::of(Mount::read_only(&self.with_merged(target)).unwrap()).unwrap();
        agree(&expected, &found)?;
        for (source, before) in self.sources.iter().zip(&untouched) {
            let diff = before.diff(&Snapshot::of_path(source).unwrap());
            if !diff.is_empty() {
                return Err(format!("{} was changed:\n{diff}", source.display()));
            }
        }
        Ok(merged)
    }
}

/// Checks that the merged stack shows what the layers show. A layer may list names that cannot be
/// looked up. The merged directory need not list those, but must list no others.
pub(crate) fn agree(expected: &Snapshot, found: &Snapshot) -> Result<(), String> {
    let diff = expected.diff(found);
    if !diff.is_empty() {
        return Err(format!("the trees differ:\n{diff}"));
    }
    let phantoms: Vec<_> = found.phantoms.difference(&expected.phantoms).collect();
    if !phantoms.is_empty() {
        return Err(format!("listed but not found: {phantoms:?}"));
    }
    Ok(())
}

/// Merges `sources` over `base`, topmost first, and compares.
fn check(sources: &[Dir], base: &Dir) -> Merged {
    Stack::new(&[], sources, base).compare(&new_merge()).unwrap_or_else(|difference| panic!("{difference}"))
}

/// Repeats `disturb` on another thread while `work` runs.
fn while_disturbed(disturb: impl Fn() + Sync, work: impl FnOnce()) {
    /// Stops the other thread when the work is done or has failed.
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _over = Over(&over);
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                disturb();
            }
        });
        work();
    });
}
