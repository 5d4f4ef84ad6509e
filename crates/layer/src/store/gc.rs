//! Garbage collection: which layers are removed, in which order and under which locks. `hold.rs`
//! decides which layers are in use; `store_dir/trash.rs` removes.

mod abandoned;
mod inventory;
mod need;
mod sizes;

use std::collections::{HashSet, VecDeque};
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, statvfs, syncfs};

use self::abandoned::Resolved;
use self::inventory::{Inventory, Stored};
use self::need::Need;
use crate::callback::Callback;
use crate::display::quoted;
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::store::hold::{Stale, held, read};
use crate::store::store_dir::{MadeOfLayer, Part, StoreDir};
use crate::tree::remove::remove_tree;

/// The number of layers that are renamed under one lock, and then removed without it. A rename
/// takes about ten microseconds, so a run that wants to hold its layers waits about one
/// millisecond.
const BATCH: usize = 64;

/// Removes the least recently used layers of a store until it keeps to a budget.
///
/// Collects the layers that are directly in the store and have a `layer.json`, by
/// [last use](Layer::last_used) or, where a layer was never used, by the age of its `layer.json`.
/// Never collects:
/// - layers that a process or a kept result [holds](crate::Hold), as every run holds its own;
/// - a layer that the `base_hash` of another layer [names](Layer::has_hash): a base is never marked
///   as used, and all layers over it would be lost;
/// - a layer that has been used since the collector looked at it;
/// - a directory without `layer.json`, which another program may be filling; if a
///   [`Capture`](crate::Capture) was killed there, it is completed or its marks are removed;
/// - symbolic links, which are only names.
///
/// A layer among the `parent_hashes` of another is collected like any other. Every layer is
/// complete by itself on disk. A run that stacks a layer also stacks its parents and marks them as
/// used, so they are as recent as it is.
///
/// A layer disappears in one step: the collector renames it into the store's own directory and
/// removes it there. If the collector is killed, the next one removes the rest, and what killed
/// makers of layers left. Any number of collectors may work in one store.
///
/// A collector works on a full disk: until it has removed something, it makes no directory and no
/// file. Where the store has no directory of its own yet and there is no room for one, the first
/// layer to be removed becomes that directory.
///
/// ```
/// # let store = tempfile::tempdir()?;
/// use std::time::Duration;
///
/// let collector = layer::Collector::new().max_bytes(50 << 30).max_age(Duration::from_secs(90 * 24 * 3600));
/// let collected = collector.collect(&store)?;
/// for layer in &collected.layers {
///     println!("{:?}", layer.name);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default)]
#[must_use = "it collects when `collect` is called"]
pub struct Collector<'a> {
    max_bytes: Option<u64>,
    max_entries: Option<u64>,
    min_free_bytes: Option<u64>,
    max_age: Option<Duration>,
    sizes: Sizes,
    progress: Callback<'a, dyn Fn(Progress) + Sync + 'a>,
}

/// Where a collector takes the sizes of layers from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Sizes {
    /// From [`Meta::disk_usage`](crate::Meta::disk_usage). The collector measures a layer if that
    /// is 0, or more than is in use on the file system. It also measures the largest layers for as
    /// long as the sum is more than is in use, or more than [`max_bytes`](Collector::max_bytes), so
    /// that one wrong number does not empty a store.
    #[default]
    Recorded,
    /// The collector measures each layer's directory: [`TreeSize`](crate::TreeSize). A budget of
    /// entries needs this, since they are not recorded.
    Measured,
}

/// What a collector has done, or would do.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Collected {
    /// The layers that were removed, the least recently used first.
    pub layers: Vec<CollectedLayer>,
    /// Layers that would have been removed if they were not held.
    pub held: Vec<OsString>,
    /// Layers that would have been removed if they were not the base of others.
    pub bases: Vec<OsString>,
    /// Directories that killed collectors, killed captures and killed makers of layers had left.
    /// What another collector is removing at the moment counts too, since nothing shows whether
    /// that collector is alive.
    pub orphans: usize,
    /// What could not be looked at or removed. A layer that was taken away already is removed by
    /// the next collector.
    pub failed: Vec<Error>,
    /// Whether the store keeps to the budget now. An age is not a budget.
    pub within_budget: bool,
}

/// A layer that was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CollectedLayer {
    /// The name of its directory.
    pub name: OsString,
    /// When it was [used last or made](Layer::last_used_or_made).
    pub last_use: SystemTime,
    /// The size, from where [`Sizes`] says.
    pub bytes: u64,
    /// Inodes: its directory, files, directories and all else in it. `None` if it was not measured.
    pub entries: Option<u64>,
}

impl Collected {
    /// Returns the bytes of all layers that were removed.
    pub fn bytes(&self) -> u64 {
        self.layers.iter().fold(0, |sum, layer| sum.saturating_add(layer.bytes))
    }
}

/// How far a collector is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// The collector has looked at `layers` layers.
    Looked {
        /// Their number.
        layers: usize,
    },
    /// The collector has removed `layers` layers.
    Removed {
        /// Their number.
        layers: usize,
        /// How many were to go when the collector began to remove.
        of: usize,
    },
}

impl<'a> Collector<'a> {
    /// A collector without a budget: it removes what killed collectors left, and no layer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps at most `bytes` bytes of layers, as [`TreeSize`](crate::TreeSize) counts them.
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = Some(bytes);
        self
    }

    /// Keeps at most `entries` inodes: files, directories, symbolic links and all else, with the
    /// layers' own directories and files. A file with several names is one. Every layer is
    /// measured.
    pub fn max_entries(mut self, entries: u64) -> Self {
        self.max_entries = Some(entries);
        self.sizes = Sizes::Measured;
        self
    }

    /// Removes layers until the file system of the store has `bytes` bytes that an ordinary user
    /// can write, as statvfs(3) counts them.
    pub fn min_free_bytes(mut self, bytes: u64) -> Self {
        self.min_free_bytes = Some(bytes);
        self
    }

    /// Keeps no layer whose last use is more than `age` ago.
    pub fn max_age(mut self, age: Duration) -> Self {
        self.max_age = Some(age);
        self
    }

    /// Takes the sizes from where `sizes` says.
    pub fn sizes(mut self, sizes: Sizes) -> Self {
        self.sizes = if self.max_entries.is_some() { Sizes::Measured } else { sizes };
        self
    }

    /// Calls `progress` after each layer that is looked at or removed.
    pub fn progress(mut self, progress: &'a (dyn Fn(Progress) + Sync + 'a)) -> Self {
        self.progress = Callback(Some(progress));
        self
    }

    /// Returns what [`collect`](Self::collect) would do now. Nothing is changed.
    ///
    /// # Errors
    /// As `collect`.
    pub fn dry_run(&self, store: impl AsRef<Path>) -> Result<Collected> {
        let store = store.as_ref();
        let inventory = Inventory::take(store, self.sizes, self.max_bytes, &|progress| self.report_progress(progress))?;
        let mut collected = self.plan(&inventory, &held(store)?, self.need(store, &inventory)?);
        collected.orphans = inventory.unfinished.len();
        if let Some(store_dir) = StoreDir::open(store)? {
            collected.orphans += store_dir.garbage()?.directories();
            collected.orphans += store_dir.lock(FlockOperation::LockExclusive)?.orphans(Part::New, usize::MAX)?.len();
        }
        collected.failed = inventory.failed;
        Ok(collected)
    }

    /// Removes layers of `store` until it keeps to the budget.
    ///
    /// # Errors
    /// [`Error::NotADirectory`] if `store` is not a directory, [`Error::Io`] if nothing can be
    /// collected there (a read-only store). A failure with one layer is reported in
    /// [`Collected::failed`], and does not keep the others.
    pub fn collect(&self, store: impl AsRef<Path>) -> Result<Collected> {
        let store = store.as_ref();
        let mut collected = Collected::default();
        // Before anything else: if the disk is full, this frees space.
        if let Some(store_dir) = StoreDir::open(store)? {
            remove_orphans(&store_dir, &mut collected)?;
        }
        let inventory = Inventory::take(store, self.sizes, self.max_bytes, &|progress| self.report_progress(progress))?;
        resolve_unfinished(store, &inventory.unfinished, &mut collected)?;
        let mut need = self.need(store, &inventory)?;
        let of = self.plan(&inventory, &held(store)?, need).layers.len();
        let mut layers: VecDeque<&Stored> = inventory.layers.iter().collect();
        while layers.front().is_some_and(|stored| need.wants(stored.used)) {
            let trash = self.take_away(store, &mut layers, &mut need, &mut collected)?;
            let before = collected.layers.len() - trash.len();
            for (number, path) in (1..).zip(trash) {
                collected.failed.extend(remove_tree(path).err());
                self.report_progress(Progress::Removed { layers: before + number, of });
            }
            need.free_bytes = self.still_lacking(store, need.free_bytes)?;
        }
        collected.within_budget = !need.is_over();
        collected.failed.extend(inventory.failed);
        Ok(collected)
    }

    fn report_progress(&self, progress: Progress) {
        if let Some(report) = self.progress.0 {
            report(progress);
        }
    }

    /// Returns how much is over the budget.
    fn need(&self, store: &Path, inventory: &Inventory) -> Result<Need> {
        let total = inventory.total();
        let over = |there: u64, most: Option<u64>| most.map_or(0, |most| there.saturating_sub(most));
        Ok(Need {
            bytes: over(total.bytes, self.max_bytes),
            entries: over(total.entries, self.max_entries),
            free_bytes: self.lacking(store)?,
            // No layer was last used before the epoch.
            oldest: self.max_age.and_then(|age| SystemTime::now().checked_sub(age)),
        })
    }

    /// Bytes that the file system lacks.
    fn lacking(&self, store: &Path) -> Result<u64> {
        let Some(least) = self.min_free_bytes else { return Ok(0) };
        let stat = statvfs(store).map_err(Error::io("ask for the free space of", store))?;
        Ok(least.saturating_sub(stat.f_bavail.saturating_mul(stat.f_frsize)))
    }

    /// Bytes that the file system lacks, when by the sizes of the layers that have been removed it
    /// lacks `expected` still.
    fn still_lacking(&self, store: &Path, expected: u64) -> Result<u64> {
        let lacking = self.lacking(store)?;
        if lacking == 0 || expected > 0 {
            return Ok(lacking.min(expected));
        }
        // On some file systems, Btrfs for one, what was removed becomes free only now. Otherwise it
        // would look as if nothing became free, and all layers would be removed.
        let synced = File::open(store).and_then(|dir| Ok(syncfs(dir)?));
        synced.map_err(Error::io("sync the file system of", store))?;
        self.lacking(store)
    }

    /// What would go, if all goes well.
    fn plan(&self, inventory: &Inventory, held: &HashSet<OsString>, mut need: Need) -> Collected {
        let mut collected = Collected::default();
        for stored in &inventory.layers {
            if !need.wants(stored.used) {
                break;
            }
            if !collected.is_spared(stored, held) {
                need.gone(stored.size);
                collected.layers.push(self.report(stored));
            }
        }
        collected.within_budget = !need.is_over();
        collected
    }

    fn report(&self, stored: &Stored) -> CollectedLayer {
        CollectedLayer {
            name: stored.name.clone().into(),
            last_use: stored.used,
            bytes: stored.size.bytes,
            entries: (stored.size.entries > 0).then_some(stored.size.entries),
        }
    }

    /// Renames a number of layers into the store directory, while no process can take a hold.
    /// Returns their new paths.
    fn take_away(
        &self,
        store: &Path,
        layers: &mut VecDeque<&Stored>,
        need: &mut Need,
        collected: &mut Collected,
    ) -> Result<Vec<PathBuf>> {
        let store_dir = match StoreDir::make(store) {
            Err(error) if error.is_disk_full() => {
                self.make_store_dir_of_layer(store, layers, need, collected)?.ok_or(error)?
            }
            store_dir => store_dir?,
        };
        let lock = store_dir.lock(FlockOperation::LockExclusive)?;
        let held = read(&store_dir, Stale::Removed)?;
        let mut trash = Vec::new();
        // Only the removal of a layer shows how much space it frees.
        let most = if need.is_room_only() { 1 } else { BATCH };
        while trash.len() < most {
            let Some(&stored) = layers.front().filter(|stored| need.wants(stored.used)) else { break };
            layers.pop_front();
            if collected.is_spared(stored, &held) {
                continue;
            }
            let layer = Layer::at(store.join(&*stored.name));
            match is_as_it_was(&layer, stored) {
                Ok(Some(true)) => match lock.throw_away(layer.path()) {
                    Ok(path) => {
                        self.count(stored, need, collected);
                        trash.push(path);
                    }
                    // The store directory has no room for more names: those that it has are removed
                    // first.
                    Err(error) if error.is_disk_full() && !trash.is_empty() => {
                        layers.push_front(stored);
                        break;
                    }
                    // Nothing can be collected there.
                    Err(error) if error.is_read_only() => return Err(error),
                    Err(error) => collected.failed.push(error),
                },
                Ok(Some(false)) => log::debug!("{} was used in the meantime", quoted(layer.path())),
                // Another collector was quicker.
                Ok(None) => need.gone(stored.size),
                Err(error) => collected.failed.push(error),
            }
        }
        Ok(trash)
    }

    /// Makes the store directory on a full disk: one of the layers that have to go becomes it, and
    /// is removed there. `None` if none can.
    ///
    /// No process holds any of the layers, since there is no store directory.
    fn make_store_dir_of_layer(
        &self,
        store: &Path,
        layers: &mut VecDeque<&Stored>,
        need: &mut Need,
        collected: &mut Collected,
    ) -> Result<Option<StoreDir>> {
        for (index, stored) in layers.iter().enumerate() {
            if !need.wants(stored.used) {
                break;
            }
            let layer = Layer::at(store.join(&*stored.name));
            // An error with one of them is reported when its turn comes.
            if stored.is_base || !matches!(is_as_it_was(&layer, stored), Ok(Some(true))) {
                continue;
            }
            match StoreDir::make_of(store, layer.path())? {
                MadeOfLayer::Made(store_dir) => {
                    self.count(stored, need, collected);
                    layers.remove(index);
                    collected.failed.extend(store_dir.garbage()?.remove());
                    return Ok(Some(store_dir));
                }
                MadeOfLayer::There(store_dir) => return Ok(Some(store_dir)),
                MadeOfLayer::Unsuitable => {}
            }
        }
        Ok(None)
    }

    /// Counts a layer that was renamed away.
    fn count(&self, stored: &Stored, need: &mut Need, collected: &mut Collected) {
        need.gone(stored.size);
        collected.layers.push(self.report(stored));
    }
}

/// Whether a layer was not used since the collector looked at it. `None` if it does not exist any
/// more.
fn is_as_it_was(layer: &Layer, stored: &Stored) -> Result<Option<bool>> {
    Ok(layer.last_used_or_made()?.map(|used| used == stored.used))
}

impl Collected {
    /// Whether a layer that should be removed must stay. Records why.
    fn is_spared(&mut self, stored: &Stored, held: &HashSet<OsString>) -> bool {
        let name = &*stored.name;
        match (stored.is_base, held.contains(name)) {
            (true, _) => self.bases.push(name.into()),
            (_, true) => self.held.push(name.into()),
            _ => return false,
        }
        true
    }
}

/// Removes what dead owners have left.
fn remove_orphans(store_dir: &StoreDir, collected: &mut Collected) -> Result<()> {
    let garbage = store_dir.garbage()?;
    let count = garbage.directories();
    let failed = garbage.remove();
    collected.orphans += count.saturating_sub(failed.len());
    collected.failed.extend(failed);
    loop {
        let orphans = {
            let lock = store_dir.lock(FlockOperation::LockExclusive)?;
            read(store_dir, Stale::Removed)?;
            lock.orphans(Part::New, BATCH)?
        };
        let count = orphans.len();
        let failed = orphans.into_iter().filter_map(|orphan| orphan.remove().err()).collect::<Vec<_>>();
        // What cannot be removed now cannot be a moment later.
        let more = count >= BATCH && failed.is_empty();
        collected.orphans += count - failed.len();
        collected.failed.extend(failed);
        if !more {
            return Ok(());
        }
    }
}

/// Completes or removes what killed captures have left.
fn resolve_unfinished(store: &Path, unfinished: &[Layer], collected: &mut Collected) -> Result<()> {
    if unfinished.is_empty() {
        return Ok(());
    }
    // One collector at a time, where there can be others: without a store directory there is none
    // yet.
    let store_dir = StoreDir::open(store)?;
    let _lock = store_dir.as_ref().map(|store_dir| store_dir.lock(FlockOperation::LockExclusive)).transpose()?;
    for layer in unfinished {
        match abandoned::resolve(layer) {
            Ok(Resolved::Removed) => collected.orphans += 1,
            Ok(Resolved::Completed | Resolved::Left) => {}
            Err(error) => collected.failed.push(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
