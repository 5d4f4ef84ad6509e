//! Drafts: layers that are being made, and that appear in their store complete or not at all.
//! `store_dir.rs` decides where they are made; `capture` turns uppers into layers.

use std::ffi::OsStr;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use rustix::fs::{CWD, FlockOperation, RenameFlags, rename, renameat_with};
use rustix::io::Errno;

use crate::display::quoted;
use crate::error::{Chain, Error, Result};
use crate::layer::Layer;
use crate::layer::access::Access;
use crate::store::existing::{self, Existing, Found};
use crate::store::hold::Stale;
use crate::store::name;
use crate::store::store_dir::{Part, StoreDir, WorkDir};

/// A layer that is being made. A program that lists the store does not see it until it is
/// published.
///
/// The draft is in the store's own directory (`<store>/.layered/new/`), so it is on the file system
/// of the layers. [`publish`](Self::publish) makes it a layer with one rename. If the process that
/// makes the draft is killed, a [collector](crate::Collector) removes the draft.
///
/// ```
/// # let store = tempfile::tempdir()?;
/// let draft = layer::Draft::begin(&store)?;
/// std::fs::create_dir(draft.layer().fs())?;
/// draft.layer().write_meta(&layer::Meta::new("debian-12", std::time::SystemTime::now()))?;
/// let layer = draft.publish("5f2e")?;
/// assert_eq!(layer.path(), store.path().join("5f2e"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "dropped, it is removed"]
pub struct Draft {
    layer: Layer,
    store: std::path::PathBuf,
    access: Access,
    existing: Existing,
    work: Option<WorkDir>,
}

impl Draft {
    /// Makes an empty directory for a new layer of `store`.
    /// [`Store::draft`](crate::Store::draft) is the same.
    ///
    /// # Errors
    /// - [`Error::OthersStore`] if this process is root and the store belongs to an ordinary user.
    /// - [`Error::Io`] if the directory cannot be made. A collector removes what is left of it.
    pub fn begin(store: impl AsRef<Path>) -> Result<Self> {
        let store = store.as_ref();
        let store_dir = StoreDir::make(store)?.changeable()?;
        let work = store_dir.lock(FlockOperation::LockShared)?.work_dir(Part::New)?;
        let layer = Layer::at(work.path().join("layer"));
        let mut closed = std::fs::DirBuilder::new();
        closed.mode(0o700).create(layer.path()).map_err(Error::io("make the directory", layer.path()))?;
        Ok(Self {
            layer,
            store: store.into(),
            access: Access::default(),
            existing: Existing::default(),
            work: Some(work),
        })
    }

    /// Sets the mode and group of the layer's directory. The default is 0700.
    pub fn access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// Sets what happens to a layer that already has the name. By default, it stays.
    pub fn existing(mut self, existing: Existing) -> Self {
        self.existing = existing;
        self
    }

    /// Returns the layer at the place where it is made. Everything in its directory becomes part of
    /// the store.
    pub fn layer(&self) -> &Layer {
        &self.layer
    }

    /// Returns the directory of the store.
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// Moves the layer into the store under `name`, which must be free, unless
    /// [`existing`](Self::existing) says otherwise. Only the owner can enter its directory, unless
    /// [`access`](Self::access) says otherwise.
    ///
    /// To replace a layer, this function exchanges the new one with it in one step
    /// (`RENAME_EXCHANGE`), and then removes the old layer. On a file system that cannot exchange
    /// directories, there is a moment in which neither layer has the name.
    ///
    /// # Errors
    /// - [`Error::LayerName`] if `name` cannot name a layer: see
    ///   [`Store::layer`](crate::Store::layer).
    /// - [`Error::LayerExists`] if `name` exists.
    /// - [`Error::NotFailed`], [`Error::Incomplete`], [`Error::LayerHeld`] or
    ///   [`Error::NotADirectory`] if what exists may not be replaced.
    /// - [`Error::Io`] if the kernel refuses.
    ///
    /// The draft is then removed, and what had the name is unchanged.
    pub fn publish(self, name: impl AsRef<Path>) -> Result<Layer> {
        self.try_publish(name.as_ref().as_os_str())
    }

    /// Publishes the layer. After an error, the draft still has it.
    pub(crate) fn try_publish(&self, name: &OsStr) -> Result<Layer> {
        let layer = self.destination(name)?;
        let dir = std::fs::File::open(self.layer.path()).map_err(Error::io("open", self.layer.path()))?;
        self.access.apply(dir, self.layer.path())?;
        loop {
            match renameat_with(CWD, self.layer.path(), CWD, layer.path(), RenameFlags::NOREPLACE) {
                Err(Errno::EXIST) => {
                    if self.replace(&layer)? == Found::Replaceable {
                        break;
                    }
                }
                renamed => {
                    renamed.map_err(Error::io("rename a new layer to", layer.path()))?;
                    break;
                }
            }
        }
        // The draft is empty now, or has the old layer. Its `Drop` removes it.
        Ok(layer)
    }

    /// Checks that the layer could be published under `name` now.
    pub(crate) fn check(&self, name: &OsStr) -> Result<()> {
        existing::check(&self.destination(name)?, self.existing, Stale::Left).map(|_| ())
    }

    fn destination(&self, name: &OsStr) -> Result<Layer> {
        Ok(Layer::at(self.store.join(name::check(name)?)))
    }

    /// Puts the draft in the place of `layer`, if that may be replaced. Changes nothing if `layer`
    /// has gone.
    fn replace(&self, layer: &Layer) -> Result<Found> {
        let store_dir = StoreDir::make(&self.store)?.changeable()?;
        // Under this lock, no process makes a hold.
        let lock = store_dir.lock(FlockOperation::LockExclusive)?;
        let found = existing::check(layer, self.existing, Stale::Removed)?;
        if found == Found::Replaceable {
            let failed = Error::io::<Errno>("rename a new layer to", layer.path());
            match renameat_with(CWD, self.layer.path(), CWD, layer.path(), RenameFlags::EXCHANGE) {
                Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                    let old = lock.throw_away(layer.name())?;
                    rename(self.layer.path(), layer.path()).map_err(|errno| {
                        // If this fails too, a collector removes the failed layer.
                        let _back_or_trash = rename(old.path(), layer.path());
                        failed(errno)
                    })?;
                    drop(lock);
                    old.remove()?;
                }
                exchanged => exchanged.map_err(failed)?,
            }
        }
        Ok(found)
    }

    /// Leaves the draft on the disk. A collector removes it after this process has ended.
    pub(crate) fn leave(mut self) {
        // The lock must last as long as the process.
        std::mem::forget(self.work.take());
    }

    fn close(&mut self) -> Result<()> {
        self.work.take().map_or(Ok(()), WorkDir::remove)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            log::error!("cannot remove {}, left to a collector: {}", quoted(self.layer.path()), Chain(&error));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_draft_appears_complete_or_not_at_all() {
        let store = tempfile::tempdir().unwrap();
        let new = store.path().join(".layered/new");
        let draft = Draft::begin(&store).unwrap();
        fs::write(draft.layer().meta_path(), "{}").unwrap();
        assert_eq!(crate::store::scan::scan(&store).unwrap().count(), 0);
        draft.publish("a").unwrap();
        assert_eq!(
            crate::store::scan::scan(&store).unwrap().map(Result::unwrap).collect::<Vec<_>>(),
            [Layer::at(store.path().join("a"))]
        );

        let mode = |name: &str| {
            let metadata = fs::metadata(store.path().join(name)).unwrap();
            std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o7777
        };
        Draft::begin(&store).unwrap().access(Access::mode(0o755)).publish("open").unwrap();
        assert_eq!((mode("a"), mode("open")), (0o700, 0o755));

        drop(Draft::begin(&store).unwrap());
        let taken = Draft::begin(&store).unwrap().publish("a").unwrap_err();
        assert!(matches!(taken, Error::LayerExists { path } if path == store.path().join("a")));
        assert!(store.path().join("a/layer.json").exists());
        assert_eq!(fs::read_dir(new).unwrap().count(), 0);
    }
}
