//! Lists the layers of a store in the order of last use, with their sizes. `need.rs` decides how
//! many of them are removed.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::ops::Bound;
use std::path::Path;

use super::abandoned;
use super::need::Size;
use super::sizes::Stored;
use super::{Progress, Sizes, sizes};
use crate::error::{Error, Result};
use crate::layer::disk_usage::used_bytes;
use crate::layer::{Layer, layer_hash};
use crate::store::scan::{Found, scan};
use crate::tree::regular_file::read_regular_file;
use crate::tree::size::TreeSize;

/// The layers of a store, the least recently used first. It takes a few hundred bytes of memory per
/// layer: sorting needs all layers.
#[derive(Debug, Default)]
pub(super) struct Inventory {
    pub(super) layers: Vec<Stored>,
    /// The directories in which a capture was killed.
    pub(super) unfinished: Vec<Layer>,
    /// The entries of other users that this process may not look into.
    pub(super) closed: Vec<OsString>,
    /// The errors for entries that could not be examined.
    pub(super) failed: Vec<Error>,
}

impl Inventory {
    /// Looks at all layers of `store`. Skips symbolic links: they are only names of layers, and
    /// removing one frees nothing.
    ///
    /// Measures a layer whose recorded size is more than is in use on the file system. Also
    /// measures layers, the largest first, while the sum of all sizes is more than that, or more
    /// than `max_bytes`: a number is checked before a layer is removed because of it.
    pub(super) fn take(store: &Path, how: Sizes, max_bytes: Option<u64>, progress: &dyn Fn(Progress)) -> Result<Self> {
        let mut inventory = Self::default();
        let mut bases = BTreeSet::new();
        let mut dirs = scan(store)?;
        let used_bytes = used_bytes(store)?;
        while let Some(found) = dirs.next_dir() {
            let looked = found.and_then(|found| match found {
                Found::Layer(layer) => Stored::look(&layer, how, used_bytes, &mut bases),
                Found::Other(layer) => {
                    inventory.unfinished.extend(abandoned::is_left(&layer)?.then(|| layer.clone()));
                    Ok(None)
                }
                Found::Unreadable(layer, error) if error.is_permission_denied() => {
                    inventory.closed.push(layer.name().into());
                    Ok(None)
                }
                Found::Unreadable(_, error) => Err(error),
            });
            match looked {
                Ok(stored) => inventory.layers.extend(stored),
                Err(error) => inventory.failed.push(error),
            }
            progress(Progress::Looked { layers: inventory.layers.len() });
        }
        for stored in &mut inventory.layers {
            stored.is_base = has_name_among(&bases, &layer_hash::text(&stored.name));
        }
        let limit = used_bytes.min(max_bytes.unwrap_or(u64::MAX));
        let measure_again = &mut |stored: &Stored| {
            let size = measure(&Layer::at(store.join(&*stored.name)))?;
            // The size is `None` if another process removed the layer since the scan.
            Ok(size.unwrap_or_default())
        };
        inventory.failed.extend(sizes::check(&mut inventory.layers, limit, measure_again));
        inventory.layers.sort_unstable_by(|one, other| (one.used, &one.name).cmp(&(other.used, &other.name)));
        Ok(inventory)
    }

    /// Returns the total size of all layers.
    pub(super) fn total(&self) -> Size {
        let add = |total: Size, stored: &Stored| Size {
            bytes: total.bytes.saturating_add(stored.size.bytes),
            entries: total.entries.saturating_add(stored.size.entries),
        };
        self.layers.iter().fold(Size::default(), add)
    }
}

impl Stored {
    /// Looks at one layer, and adds its base to `bases`. Returns `None` for a symbolic link, and
    /// for a layer that another process removed since the scan.
    fn look(layer: &Layer, how: Sizes, used_bytes: u64, bases: &mut BTreeSet<String>) -> Result<Option<Self>> {
        if fs::symlink_metadata(layer.path()).is_ok_and(|metadata| metadata.is_symlink()) {
            return Ok(None);
        }
        let Some(used) = layer.last_used_or_made()? else { return Ok(None) };
        let (recorded, base) = match layer.meta() {
            // A layer with an invalid `layer.json` still takes space, and may still need its base.
            Err(Error::Json { .. }) => (0, base_of_broken(layer)),
            meta => meta?.map_or((0, None), |meta| (meta.disk_usage, Some(meta.base_hash))),
        };
        // A base may name itself as its base.
        bases.extend(base.filter(|base| !layer.has_hash(base)));
        let is_recorded = how == Sizes::Recorded && (1..=used_bytes).contains(&recorded);
        let size = match is_recorded {
            true => Size { bytes: recorded, entries: 0 },
            false => match measure(layer)? {
                Some(size) => size,
                None => return Ok(None),
            },
        };
        Ok(Some(Self { name: layer.name().into(), used, size, is_recorded, is_base: false }))
    }
}

/// Returns the `base_hash` of a layer. Returns `None` if its `layer.json` is missing or invalid,
/// but for a value of another key.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read.
pub(crate) fn base_hash(layer: &Layer) -> Result<Option<String>> {
    match layer.meta() {
        Ok(meta) => Ok(meta.map(|meta| meta.base_hash)),
        Err(error @ Error::Io { .. }) => Err(error),
        Err(_) => Ok(base_of_broken(layer)),
    }
}

/// Returns the `base_hash` of a `layer.json` that is JSON, but has another key with an invalid
/// value.
fn base_of_broken(layer: &Layer) -> Option<String> {
    let text = read_regular_file(layer.meta_path()).ok().flatten()?;
    let value: serde_json::Value = serde_json::from_slice(&text).ok()?;
    Some(value.get("base_hash")?.as_str()?.to_owned())
}

/// Returns whether one of `hashes` means the layer with this name.
fn has_name_among(hashes: &BTreeSet<String>, name: &str) -> bool {
    let from_name_on = hashes.range::<str, _>((Bound::Included(name), Bound::Unbounded));
    from_name_on.take_while(|hash| hash.starts_with(name)).any(|hash| layer_hash::is_named(name, hash))
}

/// Measures the whole directory of a layer. Returns `None` if the layer does not exist any more.
fn measure(layer: &Layer) -> Result<Option<Size>> {
    match TreeSize::of(layer.path()) {
        // The directory itself is one more entry.
        Ok(TreeSize { bytes, entries }) => Ok(Some(Size { bytes, entries: entries.saturating_add(1) })),
        Err(_) if layer.last_used_or_made()?.is_none() => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::meta::Meta;
    use std::time::{Duration, SystemTime};

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// Makes a layer that was made at `made`, and last used at `used` or never.
    fn layer(store: &Path, name: &str, used: Option<u64>, made: u64, meta: &[u8]) {
        let layer = Layer::at(store.join(name));
        fs::create_dir_all(layer.fs().join("a")).unwrap();
        fs::write(layer.fs().join("a/file"), [0; 100]).unwrap();
        fs::write(layer.meta_path(), meta).unwrap();
        fs::File::open(layer.meta_path()).unwrap().set_modified(at(made)).unwrap();
        if let Some(used) = used {
            layer.touch().unwrap();
            fs::File::open(layer.last_used_path()).unwrap().set_modified(at(used)).unwrap();
        }
    }

    fn meta(disk_usage: u64) -> Vec<u8> {
        serde_json::to_vec(&Meta { disk_usage, ..Meta::new("debian", SystemTime::UNIX_EPOCH) }).unwrap()
    }

    fn take(store: &Path, how: Sizes, max_bytes: Option<u64>) -> Inventory {
        let inventory = Inventory::take(store, how, max_bytes, &|_| {}).unwrap();
        assert!(inventory.failed.is_empty(), "{:?}", inventory.failed);
        inventory
    }

    #[test]
    fn the_least_recently_used_layer_is_first_and_sizes_are_recorded_or_measured() {
        let store = tempfile::tempdir().unwrap();
        layer(store.path(), "used-late", Some(40), 10, &meta(5000));
        layer(store.path(), "never-used", None, 30, &meta(6000));
        layer(store.path(), "used-early", Some(20), 50, &meta(0));
        layer(store.path(), "broken", None, 5, b"{");
        layer(store.path(), "debian", None, 1, &meta(7000));
        fs::create_dir(store.path().join("half-made")).unwrap();
        std::os::unix::fs::symlink("used-late", store.path().join("link")).unwrap();

        for how in [Sizes::Recorded, Sizes::Measured] {
            let inventory = take(store.path(), how, None);
            let names: Vec<_> = inventory.layers.iter().map(|stored| &*stored.name).collect();
            assert_eq!(names, ["debian", "broken", "used-early", "never-used", "used-late"]);
            let bases: Vec<_> = inventory.layers.iter().map(|stored| stored.is_base).collect();
            assert_eq!(bases, [true, false, false, false, false]);
            let measured: Vec<_> = names
                .iter()
                .map(|name| TreeSize::of(store.path().join(name)).unwrap())
                // The layer's directory, `fs` and its two entries, `layer.json`, and `last_used` if
                // it exists.
                .zip([5, 5, 6, 5, 6])
                .map(|(size, entries)| {
                    assert_eq!(size.entries + 1, entries);
                    Size { bytes: size.bytes, entries }
                })
                .collect();
            let recorded = |bytes| Size { bytes, entries: 0 };
            let sizes: Vec<_> = inventory.layers.iter().map(|stored| stored.size).collect();
            match how {
                Sizes::Recorded => {
                    assert_eq!(sizes, [recorded(7000), measured[1], measured[2], recorded(6000), recorded(5000)]);
                }
                Sizes::Measured => assert_eq!(sizes, measured),
            }
        }
    }

    #[test]
    fn layers_with_impossible_sizes_are_measured() {
        let store = tempfile::tempdir().unwrap();
        let stat = rustix::fs::statvfs(store.path()).unwrap();
        let capacity = stat.f_blocks * stat.f_frsize;
        let json = |text: &str| {
            let meta = String::from_utf8(meta(4321)).unwrap();
            assert!(meta.contains("4321"));
            meta.replace("4321", text).into_bytes()
        };
        let numbers = [
            "0".into(),
            u64::MAX.to_string(),
            "10000000000000".into(),
            (capacity - 1).to_string(),
            // These are not numbers of bytes, so the file is not valid.
            "-1".into(),
            "1.5".into(),
            "1e3".into(),
            "18446744073709551616".into(),
            "\"4096\"".into(),
            "null".into(),
        ];
        for (seconds, number) in (0..).zip(&numbers) {
            layer(store.path(), &seconds.to_string(), None, seconds, &json(number));
        }
        layer(store.path(), "debian", None, 99, &meta(4321));
        let inventory = take(store.path(), Sizes::Recorded, None);
        assert_eq!(inventory.layers.len(), numbers.len() + 1);
        for (stored, number) in inventory.layers.iter().zip(&numbers) {
            assert_eq!(stored.size.bytes, TreeSize::of(store.path().join(&*stored.name)).unwrap().bytes, "{number}");
        }
        let base = inventory.layers.last().unwrap();
        assert_eq!((base.size.bytes, base.is_base), (4321, true));
    }

    #[test]
    fn a_size_is_checked_before_layers_are_removed_because_of_it() {
        let store = tempfile::tempdir().unwrap();
        // At least this much is in use on the file system.
        fs::write(store.path().join("file"), vec![1; 2 << 20]).unwrap();
        layer(store.path(), "wrong", None, 1, &meta(1 << 20));
        layer(store.path(), "right", None, 2, &meta(4000));
        let measured = TreeSize::of(store.path().join("wrong")).unwrap().bytes;
        for (max_bytes, believed) in [(None, 1 << 20), (Some(2 << 20), 1 << 20), (Some(1 << 20), measured)] {
            let layers = take(store.path(), Sizes::Recorded, max_bytes).layers;
            let bytes: Vec<_> = layers.iter().map(|stored| stored.size.bytes).collect();
            assert_eq!(bytes, [believed, 4000], "{max_bytes:?}");
        }
    }

    #[test]
    fn a_base_is_known_by_its_whole_hash() {
        let digest = "0123456789abcdef0123456789abcdef";
        let table = [
            (&["0123456789ab", "a", "0", ""][..], digest, Some("0123456789ab")),
            (&["0123456789ab", "0123456789abcdef"], "0123456789ab", Some("0123456789ab")),
            (&["0123456789abcdef", "01234567"], "0123456789abcdef", Some("0123456789abcdef")),
            (&["a", "ab"], "abc", None),
        ];
        for (names, hash, base) in table {
            let hashes = BTreeSet::from([hash, "00", "0123456789ac", "zz"].map(String::from));
            let bases: Vec<_> = names.iter().filter(|name| has_name_among(&hashes, name)).collect();
            assert_eq!(bases, base.iter().collect::<Vec<_>>(), "{hash}");
        }
    }
}
