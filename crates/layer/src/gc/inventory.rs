//! What a store has, in the order of last use.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::SystemTime;

use super::abandoned;
use super::need::Size;
use super::{Progress, Sizes};
use crate::scan::Found;
use crate::{Error, Layer, Result, TreeSize, scan};

/// The layers of a store, the least recently used first. Some hundred bytes for each: there is no order without all.
#[derive(Debug, Default)]
pub(super) struct Inventory {
    pub(super) layers: Vec<Stored>,
    /// What killed captures have left.
    pub(super) unfinished: Vec<Layer>,
    /// What could not be looked at.
    pub(super) failed: Vec<Error>,
}

/// One of the layers.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) name: Box<OsStr>,
    pub(super) used: SystemTime,
    pub(super) size: Size,
    /// Whether others stand on it.
    pub(super) is_base: bool,
}

impl Inventory {
    /// Looks at all layers of `store`. Symbolic links are somebody's names for layers, and free nothing: they are passed
    /// over.
    pub(super) fn take(store: &Path, sizes: Sizes, progress: &mut dyn FnMut(Progress)) -> Result<Self> {
        let mut inventory = Self::default();
        let mut bases = HashSet::new();
        let mut dirs = scan(store)?;
        while let Some(found) = dirs.next_dir() {
            let looked = found.and_then(|found| match found {
                Found::Layer(layer) => Stored::look(&layer, sizes, &mut bases),
                Found::Other(layer) => {
                    inventory.unfinished.extend(abandoned::is_left(&layer)?.then(|| layer.clone()));
                    Ok(None)
                }
            });
            match looked {
                Ok(stored) => inventory.layers.extend(stored),
                Err(error) => inventory.failed.push(error),
            }
            progress(Progress::Looked { layers: inventory.layers.len() });
        }
        for stored in &mut inventory.layers {
            stored.is_base = bases.contains(&*stored.name);
        }
        inventory.layers.sort_unstable_by(|one, other| (one.used, &one.name).cmp(&(other.used, &other.name)));
        Ok(inventory)
    }

    /// How much there is of all.
    pub(super) fn total(&self) -> Size {
        let add = |total: Size, stored: &Stored| Size {
            bytes: total.bytes.saturating_add(stored.size.bytes),
            entries: total.entries.saturating_add(stored.size.entries),
        };
        self.layers.iter().fold(Size::default(), add)
    }
}

impl Stored {
    /// `None` for a link, and for what has gone since the scan. What it stands on goes to `bases`.
    fn look(layer: &Layer, sizes: Sizes, bases: &mut HashSet<OsString>) -> Result<Option<Self>> {
        if fs::symlink_metadata(layer.path()).is_ok_and(|metadata| metadata.is_symlink()) {
            return Ok(None);
        }
        let Some(used) = layer.last_used_or_made()? else { return Ok(None) };
        // What cannot be read takes its room all the same.
        let meta = match layer.meta() {
            Err(Error::Json { .. }) => None,
            meta => meta?,
        };
        let recorded = meta.as_ref().map_or(0, |meta| meta.disk_usage);
        // A base may well name itself.
        let base = meta.map(|meta| OsString::from(meta.base_hash)).filter(|base| base != layer.name());
        if let Some(base) = base.filter(|base| !bases.contains(base)) {
            bases.insert(base);
        }
        let size = match sizes {
            Sizes::Recorded if recorded > 0 => Size { bytes: recorded, entries: 0 },
            Sizes::Recorded | Sizes::Measured => match measure(layer) {
                Err(_) if layer.last_used_or_made()?.is_none() => return Ok(None),
                size => size?,
            },
        };
        Ok(Some(Self { name: layer.name().into(), used, size, is_base: false }))
    }
}

/// The whole directory of a layer.
fn measure(layer: &Layer) -> Result<Size> {
    let mut attempts = 3;
    loop {
        attempts -= 1;
        match TreeSize::of(layer.path()) {
            // The directory itself is one.
            Ok(TreeSize { bytes, entries }) => return Ok(Size { bytes, entries: entries + 1 }),
            // A sidecar that is just being replaced.
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound && attempts > 0 => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Meta;
    use std::time::Duration;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// A layer that was used then, or made then and never used.
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

    #[test]
    fn the_least_recently_used_is_first_and_sizes_are_recorded_or_measured() {
        let store = tempfile::tempdir().unwrap();
        let meta = |disk_usage| {
            serde_json::to_vec(&Meta { disk_usage, ..Meta::new("debian", SystemTime::UNIX_EPOCH) }).unwrap()
        };
        layer(store.path(), "used-late", Some(40), 10, &meta(5000));
        layer(store.path(), "never-used", None, 30, &meta(6000));
        layer(store.path(), "used-early", Some(20), 50, &meta(0));
        layer(store.path(), "broken", None, 5, b"{");
        layer(store.path(), "debian", None, 1, &meta(7000));
        fs::create_dir(store.path().join("half-made")).unwrap();
        std::os::unix::fs::symlink("used-late", store.path().join("link")).unwrap();

        for sizes in [Sizes::Recorded, Sizes::Measured] {
            let inventory = Inventory::take(store.path(), sizes, &mut |_| {}).unwrap();
            let names: Vec<_> = inventory.layers.iter().map(|stored| &*stored.name).collect();
            assert_eq!(names, ["debian", "broken", "used-early", "never-used", "used-late"]);
            let bases: Vec<_> = inventory.layers.iter().map(|stored| stored.is_base).collect();
            assert_eq!(bases, [true, false, false, false, false]);
            let bytes: Vec<_> = inventory.layers.iter().map(|stored| stored.size.bytes).collect();
            let json = meta(0).len() as u64;
            match sizes {
                Sizes::Recorded => assert_eq!(bytes, [7000, 101, 100 + json, 6000, 5000]),
                Sizes::Measured => {
                    assert_eq!(bytes[1..3], [101, 100 + json]);
                    // The layer, `fs`, what is in it, `layer.json`, and `last_used` if there is one.
                    let entries: Vec<_> = inventory.layers.iter().map(|stored| stored.size.entries).collect();
                    assert_eq!(entries, [5, 5, 6, 5, 6]);
                }
            }
        }
    }
}
