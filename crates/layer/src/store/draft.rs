//! Drafts: layers that are being made, and that appear in their store complete or not at all.
//! `store_dir.rs` decides where they are made; `capture` turns uppers into layers.

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use rustix::fs::{CWD, FlockOperation, RenameFlags, renameat_with};

use crate::display::quoted;
use crate::error::{Chain, Error, Result};
use crate::layer::Layer;
use crate::layer::access::Access;
use crate::store::name;
use crate::store::store_dir::{Part, StoreDir};
use crate::tree::locked_dir::LockedDir;

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
    work: Option<LockedDir>,
}

impl Draft {
    /// Makes an empty directory for a new layer of `store`.
    /// [`Store::draft`](crate::Store::draft) is the same.
    ///
    /// # Errors
    /// [`Error::Io`] if the directory cannot be made. A collector removes what is left of it.
    pub fn begin(store: impl AsRef<Path>) -> Result<Self> {
        let store = store.as_ref();
        let store_dir = StoreDir::make(store)?;
        let work = store_dir.lock(FlockOperation::LockShared)?.work_dir(Part::New)?;
        let layer = Layer::at(work.path().join("layer"));
        let mut closed = std::fs::DirBuilder::new();
        closed.mode(0o700).create(layer.path()).map_err(Error::io("make the directory", layer.path()))?;
        Ok(Self { layer, store: store.into(), access: Access::default(), work: Some(work) })
    }

    /// Sets the mode and group of the layer's directory. The default is 0700.
    pub fn access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// Returns the layer at the place where it is made. Everything in its directory becomes part of
    /// the store.
    pub fn layer(&self) -> &Layer {
        &self.layer
    }

    /// Moves the layer into the store under `name`, which must be free. Only the owner can enter
    /// its directory, unless [`access`](Self::access) says otherwise.
    ///
    /// # Errors
    /// [`Error::LayerName`] if `name` cannot name a layer: see
    /// [`Store::layer`](crate::Store::layer). [`Error::Io`] if `name` exists (`EEXIST`), or if the
    /// kernel refuses for another reason. The draft is then removed.
    pub fn publish(self, name: impl AsRef<Path>) -> Result<Layer> {
        let layer = Layer::at(self.store.join(name::check(name.as_ref().as_os_str())?));
        let dir = std::fs::File::open(self.layer.path()).map_err(Error::io("open", self.layer.path()))?;
        self.access.apply(dir, self.layer.path())?;
        renameat_with(CWD, self.layer.path(), CWD, layer.path(), RenameFlags::NOREPLACE)
            .map_err(Error::io("rename a new layer to", layer.path()))?;
        // The draft is empty now. Its `Drop` removes it.
        Ok(layer)
    }

    fn close(&mut self) -> Result<()> {
        self.work.take().map_or(Ok(()), LockedDir::remove)
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
        assert!(matches!(&taken, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::AlreadyExists));
        assert!(store.path().join("a/layer.json").exists());
        assert_eq!(fs::read_dir(new).unwrap().count(), 0);
    }
}
