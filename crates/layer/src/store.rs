//! Stores, which are directories of layers: lists and holds layers, adds new ones and removes old
//! ones. `layer` handles a single layer; `stack` shows many layers as one tree.

pub(crate) mod draft;
pub(crate) mod existing;
pub(crate) mod gc;
pub(crate) mod hold;
mod name;
mod relocate;
mod remove;
pub(crate) mod scan;
pub(crate) mod store_dir;

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use self::draft::Draft;
use self::existing::Existing;
use self::hold::held;
use self::scan::{Scan, scan};
use self::store_dir::check_may_change;
use crate::error::{Error, Result};
use crate::layer::Layer;

/// A directory of layers.
///
/// Each layer is a directory of the store. The store's own `.layered` has the
/// [holds](crate::Hold), the [drafts](Draft) and what a collector is removing. A new layer appears
/// with one rename into the store, so a program that waits for new layers needs to watch only the
/// store's directory (inotify(7), `IN_MOVED_TO`).
///
/// A store can be passed to a [`Collector`](crate::Collector) as a path can.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// let store = layer::Store::open(&dir)?;
/// let draft = store.draft()?;
/// std::fs::create_dir(draft.layer().fs())?;
/// draft.layer().write_meta(&layer::Meta::new("debian-12", std::time::SystemTime::now()))?;
/// draft.publish("5f2e")?;
///
/// for found in store.scan()?.with_meta() {
///     let (layer, meta) = found?;
///     match meta {
///         Ok(meta) => println!("{:?}: exit status {}", layer.name(), meta.exit_status),
///         Err(error) => println!("{:?}: {error}", layer.name()),
///     }
/// }
/// // A name from a request may be anything.
/// assert!(store.layer("../../etc").is_err());
/// assert!(store.layer("5f2e")?.meta()?.is_some());
/// store.remove("5f2e")?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Store {
    dir: PathBuf,
}

impl Store {
    /// Returns the store at `dir`. Writes nothing there, and keeps nothing open.
    ///
    /// # Errors
    /// [`Error::NotADirectory`] if `dir` is not a directory or does not exist, [`Error::Io`] if it
    /// cannot be looked at.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref().to_path_buf();
        match fs::metadata(&dir) {
            Ok(metadata) if metadata.is_dir() => Ok(Self { dir }),
            Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                Err(Error::io("look at", dir)(error))
            }
            _ => Err(Error::not_a_directory(dir, "a store of layers")),
        }
    }

    /// Returns the store's directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Returns the layer that is, or will be, in the store under `name`. Does not look at the disk:
    /// [`Layer::meta`] returns `None` if there is no such layer.
    ///
    /// The name can come from a user who is not trusted: the layer's path never leads out of the
    /// store, nor into its `.layered`.
    ///
    /// # Errors
    /// [`Error::LayerName`] if `name` is empty, begins with a dot, or contains a `/` or a NUL.
    pub fn layer(&self, name: impl AsRef<OsStr>) -> Result<Layer> {
        Ok(Layer::at(self.dir.join(name::check(name.as_ref())?)))
    }

    /// Lists the layers. The same as [`scan`](crate::scan()) of the store's directory.
    ///
    /// # Errors
    /// The errors of `scan`.
    pub fn scan(&self) -> Result<Scan> {
        scan(&self.dir)
    }

    /// Returns the names of the layers that are [held](crate::Hold) at this moment, for display.
    /// The same as [`held`](crate::held) of the store's directory.
    ///
    /// # Errors
    /// The errors of `held`.
    pub fn held(&self) -> Result<HashSet<OsString>> {
        held(&self.dir)
    }

    /// Begins a new layer. The same as [`Draft::begin`] in the store's directory.
    ///
    /// # Errors
    /// The errors of `Draft::begin`.
    pub fn draft(&self) -> Result<Draft> {
        Draft::begin(&self.dir)
    }

    /// Checks that a [draft](Self::draft) could be published under `name` now, so that a mistake is
    /// found before the layer is made. Returns the future layer. Another process may still take the
    /// name before the draft is published.
    ///
    /// # Errors
    /// The errors of [`Draft::publish`] with this [`existing`](Draft::existing), and
    /// [`Error::OthersStore`] as for [`draft`](Self::draft).
    pub fn check_new(&self, name: impl AsRef<OsStr>, existing: Existing) -> Result<Layer> {
        let layer = self.layer(name)?;
        check_may_change(&self.dir)?;
        existing::check_unlocked(&layer, existing)?;
        Ok(layer)
    }

    /// Removes the layer `name`, unless it is in use or the base of another layer.
    ///
    /// The layer disappears from the store in one step, and then its files are removed. If this
    /// process is killed in between, the next [`Collector`](crate::Collector) removes the rest. The
    /// layers that name it in `parent_hashes` stay: each layer is complete without its parents.
    ///
    /// Reads the `layer.json` of every other layer, to find those that name this layer as their
    /// base. As for a collector, a `layer.json` that is not JSON names none. A layer over this one
    /// that another process publishes while this function reads is not found.
    ///
    /// # Errors
    /// The layer is left as it is after all errors but the last:
    /// - [`Error::LayerName`] as for [`layer`](Self::layer).
    /// - [`Error::NotADirectory`] if there is no such layer (any more). A symbolic link to a layer
    ///   is not one.
    /// - [`Error::Incomplete`] if it has no `layer.json`: another process may be making it.
    /// - [`Error::LayerHeld`] if a process or a kept result [holds](crate::Hold) it.
    /// - [`Error::OthersStore`] if this process is root and the store belongs to an ordinary user.
    /// - [`Error::BaseOfOthers`] if the `base_hash` of another layer names it.
    /// - [`Error::Io`] if it cannot be taken out of the store, or if another layer cannot be read.
    /// - [`Error::MountInside`] or [`Error::Io`] names a file that could not be removed. The layer
    ///   is not in the store any more. The next collector tries again to remove the rest.
    pub fn remove(&self, name: impl AsRef<OsStr>) -> Result<()> {
        let layer = self.layer(name)?;
        remove::check_exists(&layer)?;
        remove::check_no_base(self, &layer)?;
        remove::remove(self, &layer)
    }

    /// Removes the layer `name` as [`remove`](Self::remove) does, even if it is the base of others.
    /// Those can then not be run any more. Does not look at other layers.
    ///
    /// # Errors
    /// The errors of `remove`, without [`Error::BaseOfOthers`].
    pub fn remove_base(&self, name: impl AsRef<OsStr>) -> Result<()> {
        let layer = self.layer(name)?;
        remove::check_exists(&layer)?;
        remove::remove(self, &layer)
    }

    /// Moves the layer `name` to the store `to`, which must be on the same mount. The layer is in
    /// one of the stores at every moment. Returns it in the other one.
    ///
    /// # Errors
    /// The layer is left as it is after all of them:
    /// - The errors of [`remove`](Self::remove).
    /// - [`Error::LayerExists`] if `to` has the name.
    /// - [`Error::StoresApart`] if the stores are on two file systems, or on two mounts.
    pub fn move_to(&self, name: impl AsRef<OsStr>, to: &Self) -> Result<Layer> {
        let (layer, new) = (self.layer(name.as_ref())?, to.layer(name)?);
        remove::check_exists(&layer)?;
        remove::check_no_base(self, &layer)?;
        relocate::relocate(self, &layer, to, &new)?;
        Ok(new)
    }

    /// Checks that both stores are on one mount, as [`move_to`](Self::move_to) needs it.
    #[cfg_attr(not(feature = "registry"), allow(dead_code, reason = "a push checks this before it begins"))]
    pub(crate) fn check_mount(&self, to: &Self) -> Result<()> {
        relocate::check_mount(self, to)
    }
}

impl AsRef<Path> for Store {
    fn as_ref(&self) -> &Path {
        &self.dir
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;
    use std::time::SystemTime;

    use super::*;
    use crate::layer::meta::Meta;
    use crate::store::hold::Hold;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        (dir, store)
    }

    fn make(store: &Store, name: &str, base: &str) -> Layer {
        let layer = store.layer(name).unwrap();
        fs::create_dir_all(layer.fs().join("a")).unwrap();
        layer.write_meta(&Meta::new(base, SystemTime::UNIX_EPOCH)).unwrap();
        layer
    }

    fn names(store: &Store) -> Vec<String> {
        let mut names: Vec<_> =
            store.scan().unwrap().map(|layer| layer.unwrap().name().to_str().unwrap().to_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn only_a_directory_is_a_store() {
        let (dir, store) = store();
        fs::write(dir.path().join("file"), "").unwrap();
        symlink(dir.path(), dir.path().join("link")).unwrap();
        for name in ["missing", "file", "file/below"] {
            let error = Store::open(dir.path().join(name)).unwrap_err();
            assert!(matches!(error, Error::NotADirectory { path, .. } if path == dir.path().join(name)), "{name}");
        }
        assert_eq!(Store::open(dir.path().join("link")).unwrap().path(), dir.path().join("link"));
        assert_eq!(store.path(), dir.path());
    }

    #[test]
    fn the_name_of_a_layer_never_leads_out_of_the_store() {
        let (dir, store) = store();
        for name in [&b""[..], b".", b"..", b".layered", b".x", b"/", b"/etc", b"a/b", b"a/", b"../a", b"a\0b", b"\0"] {
            let name = OsStr::from_bytes(name);
            for error in
                [store.layer(name).unwrap_err(), store.remove(name).unwrap_err(), store.remove_base(name).unwrap_err()]
            {
                assert!(matches!(&error, Error::LayerName { name: named } if named == name), "{name:?}: {error}");
            }
            let draft = store.draft().unwrap();
            fs::create_dir(draft.layer().fs()).unwrap();
            assert!(matches!(draft.publish(name), Err(Error::LayerName { .. })), "{name:?}");
        }
        for name in [&b"a"[..], b"a.", b"a..b", b"\xff\n", b"-", b"~"] {
            let name = OsStr::from_bytes(name);
            assert_eq!(store.layer(name).unwrap().path(), dir.path().join(name));
        }
    }

    #[test]
    fn a_layer_that_is_in_use_or_the_base_of_others_is_not_removed() {
        let (_dir, store) = store();
        for (name, base) in [("base", "base"), ("gcc", "base"), ("zlib", "elsewhere"), ("whole", "0123456789ab")] {
            make(&store, name, base);
        }
        // These name no base.
        fs::write(make(&store, "broken", "").meta_path(), "{").unwrap();
        fs::remove_file(make(&store, "half", "").meta_path()).unwrap();
        symlink("gcc", store.path().join("link")).unwrap();

        let hold = Hold::of([store.path().join("zlib")]).unwrap();
        assert!(store.held().unwrap().contains(OsStr::new("zlib")));
        let error = store.remove("zlib").unwrap_err();
        assert!(matches!(&error, Error::LayerHeld { layer, .. } if *layer == store.path().join("zlib")), "{error}");
        hold.release().unwrap();
        store.remove("zlib").unwrap();

        let error = store.remove("base").unwrap_err();
        let (base, gcc) = (store.path().join("base"), store.path().join("gcc"));
        assert!(matches!(&error, Error::BaseOfOthers { layer, other } if *layer == base && *other == gcc), "{error}");
        store.remove_base("base").unwrap();
        assert!(matches!(store.remove("half"), Err(Error::Incomplete { .. })));
        for missing in ["zlib", "link", "never"] {
            assert!(matches!(store.remove(missing), Err(Error::NotADirectory { .. })), "{missing}");
        }
        store.remove("broken").unwrap();
        assert_eq!(names(&store), ["gcc", "link", "whole"]);
        // All that is left of the layers is gone from the disk, too.
        let left = fs::read_dir(store.path().join(".layered")).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(left.collect::<Vec<_>>().iter().filter(|name| *name != "holds").count(), 0);
    }

    #[test]
    fn one_bad_layer_does_not_end_the_listing() {
        let (_dir, store) = store();
        for name in ["a", "b", "c"] {
            make(&store, name, name);
        }
        fs::write(store.layer("b").unwrap().meta_path(), "{").unwrap();
        let mut found: Vec<_> = store.scan().unwrap().with_meta().map(Result::unwrap).collect();
        found.sort_by(|one, other| one.0.cmp(&other.0));
        let found: Vec<_> = found
            .into_iter()
            .map(|(layer, meta)| (layer.name().to_owned(), meta.map(|meta| meta.base_hash).ok()))
            .collect();
        let expected = [("a", Some("a")), ("b", None), ("c", Some("c"))];
        assert_eq!(found, expected.map(|(name, base)| (name.into(), base.map(String::from))));
    }
}
