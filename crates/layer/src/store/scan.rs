//! Lists the layers of a store, and decides which directories count as layers. `gc.rs` decides
//! which layers are removed.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, openat, statat};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::layer::meta::Meta;
use crate::store::store_dir::STORE_DIR;
use crate::tree::walk::{Entries, READ, as_os_str};

/// Lists the layers of a store: every directory directly in it that has a `layer.json`, in no
/// particular order. [`Store::scan`](crate::Store::scan) is the same.
///
/// Skips everything else: files, directories without `layer.json` (a layer that is not complete),
/// the store's own `.layered`, and entries that another process removes concurrently. A symbolic
/// link to a layer counts as a layer.
///
/// # Errors
/// Returns [`Error::NotADirectory`] if `store` is not a directory, and [`Error::Io`] if it cannot
/// be opened. An item is [`Error::Io`] for a directory that cannot be examined; the scan continues
/// after it.
pub fn scan(store: impl AsRef<Path>) -> Result<Scan> {
    let store = store.as_ref();
    let entries = openat(CWD, store, READ.difference(OFlags::NOFOLLOW), Mode::empty()).and_then(Entries::new);
    match entries {
        Ok(entries) => Ok(Scan { store: store.into(), entries }),
        Err(Errno::NOENT | Errno::NOTDIR) => Err(Error::not_a_directory(store, "a store of layers")),
        Err(errno) => Err(Error::io("open", store)(errno)),
    }
}

/// The iterator that [`scan`] returns. It keeps one directory open, and remembers nothing about the
/// layers that it has returned.
#[derive(Debug)]
pub struct Scan {
    store: PathBuf,
    entries: Entries,
}

impl Scan {
    /// Reads the `layer.json` of each layer. One layer that cannot be read does not end the
    /// listing:
    ///
    /// ```
    /// # let store = tempfile::tempdir()?;
    /// for found in layer::scan(&store)?.with_meta() {
    ///     let (layer, meta) = found?;
    ///     match meta {
    ///         Ok(meta) => println!("{:?}: {} bytes", layer.name(), meta.disk_usage),
    ///         Err(error) => println!("{:?}: {error}", layer.name()),
    ///     }
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn with_meta(self) -> ScanWithMeta {
        ScanWithMeta { scan: self }
    }

    /// Returns all remaining layers, the least recently used first, with the time of their [last
    /// use](Layer::last_used_or_made). Needs memory for one path and one time per layer.
    ///
    /// # Errors
    /// [`Error::Io`] for the first layer that cannot be examined.
    pub fn by_last_use(self) -> Result<Vec<(SystemTime, Layer)>> {
        let mut layers = Vec::new();
        for layer in self {
            let layer = layer?;
            // The time is `None` if another process removed the layer since the scan.
            layers.extend(layer.last_used_or_made()?.map(|time| (time, layer)));
        }
        layers.sort_unstable();
        Ok(layers)
    }
}

impl Iterator for Scan {
    type Item = Result<Layer>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.next_dir()? {
                Ok(Found::Layer(layer)) => return Some(Ok(layer)),
                Ok(Found::Other(_)) => {}
                Ok(Found::Unreadable(_, error)) | Err(error) => return Some(Err(error)),
            }
        }
    }
}

/// The iterator that [`Scan::with_meta`] returns: each layer with its `layer.json`.
///
/// An item is an error if the store itself cannot be read. If only the `layer.json` of a layer
/// cannot be examined or is invalid, the item has the layer with that error, and the other layers
/// follow. Skips a layer that another process removes concurrently.
#[derive(Debug)]
pub struct ScanWithMeta {
    scan: Scan,
}

impl Iterator for ScanWithMeta {
    type Item = Result<(Layer, Result<Meta>)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.scan.next_dir()? {
                Ok(Found::Layer(layer)) => {
                    if let Some(meta) = layer.meta().transpose() {
                        return Some(Ok((layer, meta)));
                    }
                }
                Ok(Found::Other(_)) => {}
                Ok(Found::Unreadable(layer, error)) => return Some(Ok((layer, Err(error)))),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

/// An entry of a store that may be a layer.
pub(crate) enum Found {
    Layer(Layer),
    /// It has no `layer.json`.
    Other(Layer),
    /// It cannot be examined.
    Unreadable(Layer, Error),
}

impl Scan {
    /// Returns the next entry that is not a regular file.
    pub(crate) fn next_dir(&mut self) -> Option<Result<Found>> {
        loop {
            let (name, kind) = match self.entries.next()? {
                Ok(entry) => entry,
                Err(errno) => return Some(Err(Error::io("read", &self.store)(errno))),
            };
            let name = as_os_str(&name);
            if kind == FileType::RegularFile || name == STORE_DIR {
                continue;
            }
            let layer = Layer::at(self.store.join(name));
            return Some(match statat(CWD, layer.meta_path(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(_) => Ok(Found::Layer(layer)),
                // The file does not exist, or the entry itself is a device, a socket or a dangling
                // link.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(Found::Other(layer)),
                Err(errno) => {
                    let error = Error::io("look at", layer.meta_path())(errno);
                    Ok(Found::Unreadable(layer, error))
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn layers_are_listed_and_other_entries_are_skipped() {
        let store = tempfile::tempdir().unwrap();
        for name in ["a", "b", "half", "c"] {
            fs::create_dir_all(store.path().join(name).join("fs")).unwrap();
        }
        for name in ["a", "b", "c"] {
            // This is not valid JSON, but a scan does not read the file.
            fs::write(store.path().join(name).join("layer.json"), "{").unwrap();
        }
        fs::create_dir(store.path().join(".layered")).unwrap();
        fs::write(store.path().join(".layered/layer.json"), "{}").unwrap();
        fs::write(store.path().join("README"), "").unwrap();
        std::os::unix::fs::symlink("nowhere", store.path().join("dangling")).unwrap();
        std::os::unix::fs::symlink("loop", store.path().join("loop")).unwrap();
        std::os::unix::fs::symlink("a", store.path().join("link")).unwrap();
        rustix::fs::mknodat(CWD, store.path().join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();

        let mut names: Vec<_> = scan(&store).unwrap().map(|layer| layer.unwrap().name().to_owned()).collect();
        names.sort();
        assert_eq!(names, ["a", "b", "c", "link"]);
    }

    #[test]
    fn the_least_recently_used_comes_first() {
        let store = tempfile::tempdir().unwrap();
        let at = |seconds| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        for (name, made, used) in [("a", 5, Some(9)), ("b", 7, None), ("c", 8, Some(1))] {
            let layer = Layer::at(store.path().join(name));
            fs::create_dir(layer.path()).unwrap();
            fs::File::create(layer.meta_path()).unwrap().set_modified(at(made)).unwrap();
            if let Some(used) = used {
                fs::File::create(layer.last_used_path()).unwrap().set_modified(at(used)).unwrap();
            }
        }
        let layer = |name| Layer::at(store.path().join(name));
        let order = scan(&store).unwrap().by_last_use().unwrap();
        assert_eq!(order, [(at(1), layer("c")), (at(7), layer("b")), (at(9), layer("a"))]);
    }

    #[test]
    fn the_error_names_a_missing_store() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        assert!(matches!(scan(&missing), Err(Error::NotADirectory { path, .. }) if path == missing));
    }
}
