//! Drafts: layers that are being made, and that appear in their store complete or not at all.
//! `store_dir.rs` decides where they are made; `capture` turns uppers into layers.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FlockOperation, RenameFlags, fstat, renameat_with, statat, unlinkat};
use rustix::io::Errno;
use serde::Serialize;

use crate::display::quoted;
use crate::error::{Chain, Error, Result};
use crate::layer::access::Access;
use crate::layer::{Layer, json};
use crate::store::existing::{self, Existing, Found};
use crate::store::hold::Stale;
use crate::store::name;
use crate::store::store_dir::{Part, StoreDir, Trash, WorkDir};
use crate::tree::owner;
use crate::tree::rename::rename_new;

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
    access: Option<Access>,
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
        let store_dir = StoreDir::make_to_change(store)?;
        let work = store_dir.lock(FlockOperation::LockShared)?.work_dir(Part::New)?;
        let layer = Layer::at(work.path().join("layer"));
        let mut closed = std::fs::DirBuilder::new();
        closed.mode(0o700).create(layer.path()).map_err(Error::io("make the directory", layer.path()))?;
        Ok(Self { layer, store: store.into(), access: None, existing: Existing::default(), work: Some(work) })
    }

    /// Sets the mode and group of the layer's directory. Without this, they are those of the layer
    /// that it [replaces](Self::existing). The mode of any other layer is 0700.
    ///
    /// A process that may not give a directory to the group of the replaced layer makes a layer
    /// with the mode 0700, and logs that.
    pub fn access(mut self, access: impl Into<Option<Access>>) -> Self {
        self.access = access.into();
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

    /// Writes a new [sidecar](Layer::write_sidecar) into the draft. Does not sync it: a
    /// [capture](crate::Capture::publish) makes all files of the draft durable together, before the
    /// layer appears. Without a capture, the sidecar may be lost in a power cut.
    ///
    /// # Errors
    /// As [`Layer::write_sidecar`]. [`Error::Io`] also if the sidecar exists.
    pub fn write_sidecar<T: Serialize + ?Sized>(&self, name: &str, value: &T) -> Result<()> {
        let path = self.layer.sidecar_path(name)?;
        json::write_new(CWD, &path, &path, value)
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
    /// - [`Error::NotFailed`], [`Error::Incomplete`], [`Error::LayerHeld`], [`Error::BaseOfOthers`]
    ///   or [`Error::NotADirectory`] if what exists may not be replaced.
    /// - [`Error::Io`] if the kernel refuses.
    ///
    /// The draft is then removed, and what had the name is unchanged.
    pub fn publish(self, name: impl AsRef<Path>) -> Result<Layer> {
        self.try_publish(name.as_ref().as_os_str())
    }

    /// Publishes the layer. After an error, the draft still has it.
    pub(crate) fn try_publish(&self, name: &OsStr) -> Result<Layer> {
        let layer = self.destination(name)?;
        let dir = File::open(self.layer.path()).map_err(Error::io("open", self.layer.path()))?;
        self.access.unwrap_or_default().apply(&dir, self.layer.path())?;
        loop {
            match rename_new(CWD, self.layer.path(), CWD, layer.path()) {
                Err(Errno::EXIST) => {
                    if self.replace(&layer, &dir)? == Found::Replaceable {
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
        existing::check_unlocked(&self.destination(name)?, self.existing).map(|_| ())
    }

    fn destination(&self, name: &OsStr) -> Result<Layer> {
        Ok(Layer::at(self.store.join(name::check(name)?)))
    }

    /// Puts the draft, whose directory is `dir`, in the place of `layer`, if that may be replaced.
    /// Changes nothing if `layer` has gone.
    fn replace(&self, layer: &Layer, dir: &File) -> Result<Found> {
        existing::check_unlocked(layer, self.existing)?;
        let store_dir = StoreDir::make_to_change(&self.store)?;
        // Under this lock, no process makes a hold.
        let lock = store_dir.lock(FlockOperation::LockExclusive)?;
        let found = existing::check(layer, self.existing, Stale::Removed)?;
        if found == Found::Replaceable {
            if self.access.is_none() {
                self.inherit(layer, dir)?;
            }
            // A run of another user may have locked the directory.
            let locked = lock.lock_layer(layer.name())?;
            let failed = Error::io::<Errno>("rename a new layer to", layer.path());
            match renameat_with(CWD, self.layer.path(), CWD, layer.path(), RenameFlags::EXCHANGE) {
                Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                    drop(locked);
                    let old = lock.throw_away(layer.name())?;
                    let old = self.take_place(old, layer)?;
                    drop(lock);
                    discard(old);
                }
                exchanged => exchanged.map_err(failed)?,
            }
        }
        Ok(found)
    }

    /// Gives the draft's directory `dir` the mode and group of `layer`, which it replaces.
    fn inherit(&self, layer: &Layer, dir: &File) -> Result<()> {
        let look = |path| Error::io::<Errno>("look at", path);
        let old = statat(CWD, layer.path(), AtFlags::SYMLINK_NOFOLLOW).map_err(look(layer.path()))?;
        let access = Access::mode(old.st_mode);
        if fstat(dir).map_err(look(self.layer.path()))?.st_gid == old.st_gid {
            return access.apply(dir, self.layer.path());
        }
        let given = match owner::known_gid(&old) {
            Some(group) => access.group(group).apply(dir, self.layer.path()),
            None => Err(Error::io("change the group of", self.layer.path())(Errno::INVAL)),
        };
        if let Err(error) = given {
            // With the mode alone, another group could enter.
            log::warn!("only the owner can enter {}: {}", quoted(layer.path()), Chain(&error));
        }
        Ok(())
    }

    /// Moves the draft to the path of `layer`, which has become the garbage `old`. On an error,
    /// puts `old` back, unless another process has taken the path.
    fn take_place(&self, old: Trash, layer: &Layer) -> Result<Trash> {
        let Err(errno) = rename_new(CWD, self.layer.path(), CWD, layer.path()) else { return Ok(old) };
        match rename_new(CWD, old.path(), CWD, layer.path()) {
            Ok(()) => {}
            Err(Errno::EXIST) => discard(old),
            Err(back) => {
                log::error!("cannot put {} back to {}: {back}", quoted(old.path()), quoted(layer.path()));
            }
        }
        Err(match errno {
            Errno::EXIST => Error::LayerExists { path: layer.path().into() },
            errno => Error::io("rename a new layer to", layer.path())(errno),
        })
    }

    /// Leaves the draft on the disk. A collector removes it after this process has ended.
    pub(crate) fn leave(mut self) {
        // The lock must last as long as the process.
        std::mem::forget(self.work.take());
    }

    fn close(&mut self) -> Result<()> {
        let Some(work) = self.work.take() else { return Ok(()) };
        if let Some(name) = self.layer.path().file_name() {
            // This succeeds if nothing was made in the draft.
            let _removed_below = unlinkat(&work, name, AtFlags::REMOVEDIR);
        }
        work.remove()
    }
}

/// Removes a layer that has been replaced. Logs an error: the new layer is in its place already.
fn discard(old: Trash) {
    let path = old.path().to_path_buf();
    if let Err(error) = old.remove() {
        log::error!("cannot remove {}, left to a collector: {}", quoted(&path), Chain(&error));
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

    /// Makes the layer `name`, and makes it garbage of `store`.
    fn thrown_away(store: &Path, name: &str) -> (Layer, Trash) {
        let layer = Layer::at(store.join(name));
        fs::create_dir_all(layer.fs().join("old")).unwrap();
        let store_dir = StoreDir::make(store).unwrap();
        let lock = store_dir.lock(FlockOperation::LockExclusive).unwrap();
        let old = lock.throw_away(layer.name()).unwrap();
        (layer, old)
    }

    #[test]
    fn without_an_exchange_the_name_goes_to_the_draft_the_faster_process_or_the_old_layer() {
        let store = tempfile::tempdir().unwrap();
        let draft = || {
            let draft = Draft::begin(&store).unwrap();
            fs::create_dir_all(draft.layer().fs().join("new")).unwrap();
            draft
        };
        let (layer, old) = thrown_away(store.path(), "draft");
        let old = draft().take_place(old, &layer).unwrap();
        assert!(layer.fs().join("new").exists() && old.path().exists());

        let (layer, old) = thrown_away(store.path(), "faster");
        fs::create_dir_all(layer.path().join("theirs")).unwrap();
        let trash = old.path().to_path_buf();
        let error = draft().take_place(old, &layer).unwrap_err();
        assert!(matches!(&error, Error::LayerExists { path } if path == layer.path()), "{error}");
        assert!(layer.path().join("theirs").exists() && !trash.exists());

        let (layer, old) = thrown_away(store.path(), "old");
        let lost = draft();
        fs::remove_dir_all(lost.layer().path()).unwrap();
        let trash = old.path().to_path_buf();
        assert!(matches!(lost.take_place(old, &layer), Err(Error::Io { .. })));
        assert!(layer.fs().join("old").exists() && !trash.exists());
    }

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

        let replaced = |access: Option<Access>| {
            let failed = crate::Meta { exit_status: 1, ..crate::Meta::new("base", std::time::SystemTime::UNIX_EPOCH) };
            Layer::at(store.path().join("open")).write_meta(&failed).unwrap();
            let draft = Draft::begin(&store).unwrap().access(access).existing(Existing::ReplacedIfFailed);
            draft.layer().write_meta(&failed).unwrap();
            draft.publish("open").unwrap();
            mode("open")
        };
        assert_eq!([None, Some(Access::mode(0o711)), None].map(replaced), [0o755, 0o711, 0o711]);

        drop(Draft::begin(&store).unwrap());
        let taken = Draft::begin(&store).unwrap().publish("a").unwrap_err();
        assert!(matches!(taken, Error::LayerExists { path } if path == store.path().join("a")));
        assert!(store.path().join("a/layer.json").exists());
        assert_eq!(fs::read_dir(new).unwrap().count(), 0);
    }
}
