//! A layer in the making, which enters its store whole or not at all. Where it is made is decided
//! in `store_dir.rs`; how an upper becomes a layer is decided in `capture`.

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use rustix::fs::{CWD, FlockOperation, RenameFlags, renameat_with};

use crate::display::quoted;
use crate::error::{Chain, Error, Result};
use crate::layer::Layer;
use crate::layer::access::Access;
use crate::store::store_dir::{Part, StoreDir};
use crate::tree::locked_dir::LockedDir;

/// A layer in the making: a program that lists the store does not see it before it is complete.
///
/// It is made in the store's own directory (`<store>/.layered/new/`), on the file system of the
/// layers, and becomes one of them by a rename. If its maker is killed, a
/// [collector](crate::Collector) removes what is left.
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
    ///
    /// # Errors
    /// [`Error::Io`]; nothing is left.
    pub fn begin(store: impl AsRef<Path>) -> Result<Self> {
        let store = store.as_ref();
        let store_dir = StoreDir::make(store)?;
        let work = store_dir.lock(FlockOperation::LockShared)?.work_dir(Part::New)?;
        let layer = Layer::at(work.path().join("layer"));
        let mut closed = std::fs::DirBuilder::new();
        closed.mode(0o700).create(layer.path()).map_err(Error::io("make the directory", layer.path()))?;
        Ok(Self { layer, store: store.into(), access: Access::default(), work: Some(work) })
    }

    /// Gives the directory of the layer this mode and group, in place of the default (0700).
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
    /// [`Error::Io`] if `name` exists (`EEXIST`), or if the kernel refuses for another reason. The
    /// draft is then removed.
    pub fn publish(self, name: impl AsRef<Path>) -> Result<Layer> {
        let layer = Layer::at(self.store.join(name));
        let dir = std::fs::File::open(self.layer.path()).map_err(Error::io("open", self.layer.path()))?;
        self.access.apply(dir, self.layer.path())?;
        renameat_with(CWD, self.layer.path(), CWD, layer.path(), RenameFlags::NOREPLACE)
            .map_err(Error::io("rename a new layer to", layer.path()))?;
        // What is left of the draft is empty, and goes with it.
        Ok(layer)
    }

    fn close(&mut self) -> Result<()> {
        self.work.take().map_or(Ok(()), LockedDir::remove)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            log::error!("{} is left for a collector: {}", quoted(self.layer.path()), Chain(&error));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn it_is_seen_when_it_is_whole_or_not_at_all() {
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
