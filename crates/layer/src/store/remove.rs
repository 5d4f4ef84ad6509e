//! Removes a single layer of a store. `gc.rs` decides which layers a collector removes;
//! `store_dir/trash.rs` takes them away.

use std::path::PathBuf;

use rustix::fs::{AtFlags, CWD, FileType, FlockOperation, statat};
use rustix::io::Errno;

use super::Store;
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::store::gc::base_hash;
use crate::store::hold::{Stale, holder};
use crate::store::store_dir::{MadeOfLayer, StoreDir};

/// Checks that `layer` is a directory with a `layer.json`.
pub(super) fn check_exists(layer: &Layer) -> Result<()> {
    let is_there = |path: PathBuf| match statat(CWD, &path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(Error::io("look at", path)(errno)),
    };
    match is_there(layer.path().into())? {
        Some(FileType::Directory) => {}
        _ => return Err(Error::not_a_directory(layer.path(), "a layer")),
    }
    match is_there(layer.meta_path())? {
        Some(_) => Ok(()),
        None => Err(Error::Incomplete { layer: layer.path().into() }),
    }
}

/// Checks that no other layer of the store names `layer` as its base. Symbolic links are only names
/// of layers, perhaps of `layer` itself.
pub(super) fn check_no_base(store: &Store, layer: &Layer) -> Result<()> {
    for other in store.scan()? {
        let other = other?;
        let is_other = other != *layer && !other.path().is_symlink();
        if is_other && base_hash(&other)?.is_some_and(|base| layer.has_hash(&base)) {
            return Err(Error::BaseOfOthers { layer: layer.path().into(), other: other.path().into() });
        }
    }
    Ok(())
}

/// Checks that neither a process nor a kept result holds `layer`.
pub(super) fn check_not_held(store_dir: &StoreDir, layer: &Layer, stale: Stale) -> Result<()> {
    match holder(store_dir, layer.name(), stale)? {
        Some(by) => Err(Error::LayerHeld { layer: layer.path().into(), by }),
        None => Ok(()),
    }
}

/// Removes `layer`, unless it is held.
pub(super) fn remove(store: &Store, layer: &Layer) -> Result<()> {
    let store_dir = match StoreDir::make_to_change(store.path()) {
        // On a full disk, the layer itself becomes the store directory.
        Err(error) if error.is_disk_full() => match StoreDir::make_of(store.path(), layer.path())? {
            MadeOfLayer::Made(store_dir) => {
                return store_dir.garbage()?.remove().into_iter().next().map_or(Ok(()), Err);
            }
            MadeOfLayer::There(store_dir) => store_dir,
            MadeOfLayer::Unsuitable => return Err(error),
        },
        store_dir => store_dir?,
    };
    let trash = {
        // Under this lock, no process makes a hold.
        let lock = store_dir.lock(FlockOperation::LockExclusive)?;
        check_not_held(&store_dir, layer, Stale::Removed)?;
        // Another process may have removed the layer, or replaced it.
        check_exists(layer)?;
        lock.throw_away(layer.name())?
    };
    trash.remove()
}
