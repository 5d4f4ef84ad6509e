//! Garbage collection: which layers are removed, in which order and under which locks. `hold.rs`
//! decides which layers are in use; `store_dir/trash.rs` removes them.

mod abandoned;
mod inventory;
mod need;
mod sizes;

use std::collections::{HashSet, VecDeque};
use std::ffi::OsString;
use std::fs::File;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, statvfs, syncfs};
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use self::abandoned::Resolved;
use self::inventory::Inventory;
pub(crate) use self::inventory::base_hash;
use self::need::{Need, Size};
use self::sizes::Stored;
use crate::callback::Callback;
use crate::display::quoted;
use crate::error::{Error, Result};
use crate::json_path;
use crate::layer::Layer;
use crate::layer::meta::timestamp;
use crate::store::Store;
use crate::store::hold::{Stale, held, read};
use crate::store::store_dir::{MadeOfLayer, Part, StoreDir, Trash, check_may_change, locked};

/// The maximum number of layers that are renamed under one lock, and then removed without the lock.
/// A rename takes about ten microseconds, so a run that wants to hold its layers waits for about
/// one millisecond.
const BATCH: usize = 64;

/// A garbage collector, which removes the least recently used layers of a store until the store
/// keeps to a budget.
///
/// The collector considers the layers that are directly in the store and have a `layer.json`, in
/// the order of their [last use](Layer::last_used). For a layer that was never used, the time of
/// its `layer.json` counts. The collector never removes:
/// - layers that a process or a kept result [holds](crate::Hold), or whose directory another
///   process has locked with flock(2); every run holds its layers;
/// - a layer that the `base_hash` of another layer [names](Layer::has_hash): a base is never marked
///   as used, and all layers above it would be lost;
/// - a layer that has been used since the collector looked at it;
/// - a directory without `layer.json`, which another program may be filling; if a
///   [`Capture`](crate::Capture) was killed there, the collector completes the layer, or removes
///   the capture's marks, and the directory if nothing else is in it;
/// - symbolic links, which are only names.
///
/// A layer that the `parent_hashes` of another layer name is removed like any other: on disk, every
/// layer is complete without its parents. A run that stacks a layer also stacks its parents and
/// marks them as used, so the parents are as recent as the layer.
///
/// A layer disappears in one step: the collector renames it into the store's own directory and
/// removes it there. If the collector is killed, the next one removes the rest. A collector also
/// removes the [drafts](crate::Draft) of processes that were killed. Any number of collectors may
/// work in one store.
///
/// A collector works on a full disk. It makes no file, and no directory but the store's own. If the
/// disk has no room for that, one of the layers to remove becomes the store's directory.
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
    min_free: Size,
    max_age: Option<Duration>,
    sizes: Sizes,
    progress: Callback<'a, dyn Fn(Progress) + Sync + 'a>,
}

/// The source of the sizes of layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Sizes {
    /// The [`Meta::disk_usage`](crate::Meta::disk_usage) of each layer. The collector measures a
    /// layer instead if this number is 0, or more than is in use on the file system. It also
    /// measures layers, the largest first, while the sum of all sizes is more than is in use, or
    /// more than [`max_bytes`](Collector::max_bytes), so that one wrong number does not empty a
    /// store. It stops measuring when eight numbers have proved true.
    #[default]
    Recorded,
    /// The size of each layer's directory, which the collector measures as
    /// [`TreeSize`](crate::TreeSize) does. A budget of entries needs this, because `layer.json`
    /// does not record entries.
    Measured,
}

/// The result of a collection or of a dry run.
///
/// Its JSON is that of `layered gc`, without `dry_run`. `bytes` is the sum of all layers that were
/// removed, and `failed` has the path of each error, or null.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Collected {
    /// The layers that were removed, the least recently used first.
    pub layers: Vec<CollectedLayer>,
    /// Layers that would have been removed if they were not held.
    pub held: Vec<OsString>,
    /// Layers that would have been removed if they were not the base of others.
    pub bases: Vec<OsString>,
    /// Entries of other users that this process may not look into. They may be layers. Nothing
    /// shows their sizes, or which layers are their bases.
    pub closed: Vec<OsString>,
    /// The number of directories that killed collectors, killed captures and killed makers of
    /// drafts had left. A layer that another collector is removing at the moment also counts,
    /// because nothing shows whether that collector is alive.
    pub orphans: usize,
    /// The errors for entries that could not be examined or removed. If a layer was already renamed
    /// into the store's own directory, the next collector removes it.
    pub failed: Vec<Error>,
    /// Whether the store now keeps to its budgets of bytes, entries and free space. The maximum age
    /// is not a budget.
    pub within_budget: bool,
}

/// A layer that was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CollectedLayer {
    /// The name of its directory.
    #[serde(serialize_with = "json_path::serialize")]
    pub name: OsString,
    /// The size in bytes, from the source that [`Sizes`] names.
    pub bytes: u64,
    /// The number of inodes: the layer's directory and everything in it. `None` if the layer was
    /// not measured. `inodes` in JSON.
    #[serde(rename = "inodes")]
    pub entries: Option<u64>,
    /// When it was [used last or made](Layer::last_used_or_made). In JSON `last_used`, in the form
    /// `2026-01-31T23:59:59Z`; a time before 1970 or after 9999 is the first or last of that form.
    #[serde(rename = "last_used", serialize_with = "timestamp::serialize_clamped")]
    pub last_use: SystemTime,
}

impl Serialize for Collected {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let names = |names: &[OsString]| names.iter().map(json_path::to_value).collect::<Vec<_>>();
        let failed: Vec<_> = self.failed.iter().map(|error| error.path().map(json_path::to_value)).collect();
        let mut object = serializer.serialize_struct("Collected", 8)?;
        object.serialize_field("layers", &self.layers)?;
        object.serialize_field("bytes", &self.bytes())?;
        object.serialize_field("held", &names(&self.held))?;
        object.serialize_field("bases", &names(&self.bases))?;
        object.serialize_field("closed", &names(&self.closed))?;
        object.serialize_field("orphans", &self.orphans)?;
        object.serialize_field("failed", &failed)?;
        object.serialize_field("within_budget", &self.within_budget)?;
        object.end()
    }
}

impl Collected {
    /// Returns the sum of the bytes of all layers that were removed.
    pub fn bytes(&self) -> u64 {
        self.layers.iter().fold(0, |sum, layer| sum.saturating_add(layer.bytes))
    }
}

/// The progress of a collector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// The collector has looked at `layers` layers.
    Looked {
        /// The number of layers that the collector has looked at.
        layers: usize,
    },
    /// The collector has removed `layers` layers.
    Removed {
        /// The number of layers that the collector has removed.
        layers: usize,
        /// The number of layers that the collector planned to remove when it began.
        of: usize,
    },
}

impl<'a> Collector<'a> {
    /// Returns a collector without a budget. It removes what killed collectors, captures and makers
    /// of drafts left, and no layer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps at most `bytes` bytes of layers, as [`TreeSize`](crate::TreeSize) counts them.
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = Some(bytes);
        self
    }

    /// Keeps at most `entries` inodes: files, directories, symbolic links and all others, including
    /// the layers' own directories and files. A file with several names in one layer counts once.
    /// The collector measures every layer.
    pub fn max_entries(mut self, entries: u64) -> Self {
        self.max_entries = Some(entries);
        self.sizes = Sizes::Measured;
        self
    }

    /// Removes layers until the file system of the store has `bytes` bytes that an ordinary user
    /// can write, as statvfs(3) counts them.
    pub fn min_free_bytes(mut self, bytes: u64) -> Self {
        self.min_free.bytes = bytes;
        self
    }

    /// Removes layers until the file system of the store has `entries` free inodes, as statvfs(3)
    /// counts them. A file system without a fixed number of inodes, such as Btrfs, never lacks any.
    /// The collector measures every layer if inodes are lacking.
    pub fn min_free_entries(mut self, entries: u64) -> Self {
        self.min_free.entries = entries;
        self
    }

    /// Removes layers whose last use is more than `age` ago.
    pub fn max_age(mut self, age: Duration) -> Self {
        self.max_age = Some(age);
        self
    }

    /// Sets the source of the sizes. With a budget of entries, the collector always measures.
    pub fn sizes(mut self, sizes: Sizes) -> Self {
        self.sizes = if self.max_entries.is_some() { Sizes::Measured } else { sizes };
        self
    }

    /// Calls `progress` after each layer that the collector looks at or removes. The numbers never
    /// fall, and that of [`Progress::Removed`] grows by one from call to call. The calls come one
    /// at a time, but while layers are removed, from worker threads.
    pub fn progress(mut self, progress: &'a (dyn Fn(Progress) + Sync + 'a)) -> Self {
        self.progress = Callback(Some(progress));
        self
    }

    /// Returns what [`collect`](Self::collect) would do now, and changes nothing.
    ///
    /// # Errors
    /// As `collect`.
    pub fn dry_run(&self, store: impl AsRef<Path>) -> Result<Collected> {
        let store = store.as_ref();
        check_may_change(store)?;
        let inventory = self.inventory(store)?;
        let held = held_now(store, &inventory)?;
        let mut collected = self.plan(&inventory, &held, self.need(store, &inventory)?);
        collected.orphans = inventory.unfinished.len();
        if let Some(store_dir) = StoreDir::open(store)? {
            collected.orphans += store_dir.garbage()?.directories();
            collected.orphans += store_dir.lock(FlockOperation::LockExclusive)?.orphans(Part::New, usize::MAX)?.len();
        }
        (collected.failed, collected.closed) = (inventory.failed, inventory.closed);
        Ok(collected)
    }

    /// Removes layers of `store` until it keeps to the budget.
    ///
    /// # Errors
    /// [`Error::NotADirectory`] if `store` is not a directory, [`Error::OthersStore`] if this
    /// process is root and the store belongs to an ordinary user, [`Error::Io`] if nothing can be
    /// collected there (a read-only store). A failure with one layer is reported in
    /// [`Collected::failed`], and does not keep the collector from removing the others.
    pub fn collect(&self, store: impl AsRef<Path>) -> Result<Collected> {
        let store = store.as_ref();
        check_may_change(store)?;
        let mut collected = Collected::default();
        // Before anything else: if the disk is full, this frees space.
        if let Some(store_dir) = StoreDir::open(store)? {
            remove_orphans(&store_dir.changeable()?, &mut collected)?;
        }
        let inventory = self.inventory(store)?;
        resolve_unfinished(store, &inventory.unfinished, &mut collected)?;
        let mut need = self.need(store, &inventory)?;
        let of = self.plan(&inventory, &held_now(store, &inventory)?, need).layers.len();
        let mut layers: VecDeque<&Stored> = inventory.layers.iter().collect();
        // The lock keeps the numbers in order.
        let removed = Mutex::new(0);
        let count_removed = || {
            let mut layers = removed.lock().unwrap_or_else(PoisonError::into_inner);
            *layers += 1;
            self.report_progress(Progress::Removed { layers: *layers, of });
        };
        while layers.front().is_some_and(|stored| need.wants(stored.used)) {
            let before = collected.layers.len();
            let trash = self.take_away(store, &mut layers, &mut need, &mut collected)?;
            // The layer that has become the store's directory is removed already.
            (before + trash.len()..collected.layers.len()).for_each(|_| count_removed());
            collected.failed.extend(Trash::remove_all(&trash, &count_removed));
            need.lacking = self.still_lacking(store, need.lacking)?;
        }
        // The layers that are left can be too few, and other processes write, too.
        need.lacking = self.still_lacking(store, Size::default())?;
        collected.within_budget = !need.is_over();
        collected.failed.extend(inventory.failed);
        collected.closed = inventory.closed;
        Ok(collected)
    }

    /// Returns whether the store keeps to its budgets of bytes, entries and free space now. Changes
    /// nothing, and looks at the layers only for a budget of bytes or entries.
    ///
    /// # Errors
    /// [`Error::NotADirectory`] if `store` is not a directory, and [`Error::Io`] if it cannot be
    /// looked at.
    pub fn is_within_budget(&self, store: impl AsRef<Path>) -> Result<bool> {
        let store = Store::open(store)?;
        let store = store.path();
        if !self.lacking(store)?.is_zero() {
            return Ok(false);
        }
        if self.max_bytes.is_none() && self.max_entries.is_none() {
            return Ok(true);
        }
        Ok(self.over(&self.inventory(store)?).is_zero())
    }

    fn inventory(&self, store: &Path) -> Result<Inventory> {
        // `layer.json` does not record how many inodes a layer would free.
        let sizes = if self.lacking(store)?.entries > 0 { Sizes::Measured } else { self.sizes };
        Inventory::take(store, sizes, self.max_bytes, &|progress| self.report_progress(progress))
    }

    fn report_progress(&self, progress: Progress) {
        if let Some(report) = self.progress.0 {
            report(progress);
        }
    }

    /// Returns by how much the store exceeds its budgets.
    fn need(&self, store: &Path, inventory: &Inventory) -> Result<Need> {
        Ok(Need {
            over: self.over(inventory),
            lacking: self.lacking(store)?,
            // `None` if the time is out of range: no layer is that old.
            oldest: self.max_age.and_then(|age| SystemTime::now().checked_sub(age)),
        })
    }

    /// Returns the bytes and inodes that the layers have beyond the budgets.
    fn over(&self, inventory: &Inventory) -> Size {
        let total = inventory.total();
        let over = |there: u64, most: Option<u64>| most.map_or(0, |most| there.saturating_sub(most));
        Size { bytes: over(total.bytes, self.max_bytes), entries: over(total.entries, self.max_entries) }
    }

    /// Returns the free bytes and inodes that the file system lacks.
    fn lacking(&self, store: &Path) -> Result<Size> {
        if self.min_free.is_zero() {
            return Ok(Size::default());
        }
        let stat = statvfs(store).map_err(Error::io("ask for the free space of", store))?;
        let entries = if stat.f_files == 0 { u64::MAX } else { stat.f_favail };
        Ok(self.min_free.saturating_sub(Size { bytes: stat.f_bavail.saturating_mul(stat.f_frsize), entries }))
    }

    /// Returns the free bytes and inodes that the file system still lacks after layers were
    /// removed. By the sizes of those layers, it still lacks `expected`.
    fn still_lacking(&self, store: &Path, expected: Size) -> Result<Size> {
        let lacking = self.lacking(store)?;
        if !lacking.exceeds_zero_of(expected) {
            return Ok(lacking.after_removal(expected));
        }
        // Some file systems, for example Btrfs, free the blocks of removed files only in a sync.
        // Without it, the removals would seem to free nothing, and the collector would remove all
        // layers.
        let synced = File::open(store).and_then(|dir| Ok(syncfs(dir)?));
        synced.map_err(Error::io("sync the file system of", store))?;
        Ok(self.lacking(store)?.after_removal(expected))
    }

    /// Returns the layers that would be removed if nothing fails.
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

    /// Renames the next layers, at most [`BATCH`], into the store directory. Takes the lock that
    /// keeps processes from making holds. Returns the renamed layers.
    fn take_away(
        &self,
        store: &Path,
        layers: &mut VecDeque<&Stored>,
        need: &mut Need,
        collected: &mut Collected,
    ) -> Result<Vec<Trash>> {
        let store_dir = match StoreDir::make_to_change(store) {
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
                Ok(Some(true)) => match lock.throw_away(layer.name()) {
                    Ok(renamed) => {
                        self.count(stored, need, collected);
                        trash.push(renamed);
                    }
                    // The store directory has no room for another name. The caller first removes
                    // the layers that are already in it.
                    Err(error) if error.is_disk_full() && !trash.is_empty() => {
                        layers.push_front(stored);
                        break;
                    }
                    Err(Error::LayerHeld { .. }) => collected.held.push(layer.name().into()),
                    // Nothing can be collected in a read-only store.
                    Err(error) if error.is_read_only() => return Err(error),
                    Err(error) => collected.failed.push(error),
                },
                Ok(Some(false)) => log::debug!("{} was used since the collector looked at it", quoted(layer.path())),
                // Another collector removed the layer first.
                Ok(None) => need.gone(stored.size),
                Err(error) => collected.failed.push(error),
            }
        }
        Ok(trash)
    }

    /// Makes the store directory on a full disk: renames one of the layers to remove to it, and
    /// removes the layer's contents there. Returns `None` if no layer is suitable.
    ///
    /// Without a store directory, no process holds any of the layers.
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
            // If an error occurs here, `take_away` reports it when it comes to this layer.
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

/// Returns whether a layer has not been used since the collector looked at it, or `None` if it does
/// not exist any more.
fn is_as_it_was(layer: &Layer, stored: &Stored) -> Result<Option<bool>> {
    Ok(layer.last_used_or_made()?.map(|used| used == stored.used))
}

impl Collected {
    /// Returns whether a layer that should be removed must stay, and records why.
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

/// Removes the garbage, and the holds and drafts of dead owners.
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
        // An orphan that cannot be removed now cannot be removed a moment later, either.
        let more = count >= BATCH && failed.is_empty();
        collected.orphans += count - failed.len();
        collected.failed.extend(failed);
        if !more {
            return Ok(());
        }
    }
}

/// Completes the layers of killed captures, or removes what the captures left.
fn resolve_unfinished(store: &Path, unfinished: &[Layer], collected: &mut Collected) -> Result<()> {
    if unfinished.is_empty() {
        return Ok(());
    }
    // Only one collector may do this at a time. A store without a store directory has nothing to
    // lock: there, concurrent collectors may report an error for a directory that one of them has
    // resolved.
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

/// Returns the names of the layers that processes hold or have locked.
fn held_now(store: &Path, inventory: &Inventory) -> Result<HashSet<OsString>> {
    let mut held = held(store)?;
    let store_dir = StoreDir::open(store)?;
    for batch in inventory.layers.chunks(BATCH) {
        // A process that removes a layer locks it, too, and has this lock. Without it, each could
        // take the other for a run.
        let _lock = store_dir.as_ref().map(|store_dir| store_dir.lock(FlockOperation::LockExclusive)).transpose()?;
        let names = batch.iter().map(|stored| &*stored.name);
        held.extend(locked(store, names)?.into_iter().map(OsString::from));
    }
    Ok(held)
}

#[cfg(test)]
mod tests;
