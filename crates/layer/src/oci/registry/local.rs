//! Decides where a layer is after its push. `push.rs` pushes it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Serialize;

use crate::error::Error as LayerError;
use crate::layer::Layer;
use crate::oci::error::{Error, Result};
use crate::store::Store;

/// The place of a layer after its push.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Default)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Local {
    /// The layer is where it was.
    #[default]
    Kept,
    /// The layer is where it was, because another process uses it. That can be a push of the same
    /// layer, which then moves it.
    InUse,
    /// The layer is in the other store now.
    Moved,
    /// The layer was removed: the registry has another one of its name, or the store has one.
    Removed,
}

/// Checks that `layer` could be moved to `store`.
pub(super) fn check(layer: &Layer, store: &Store) -> Result<()> {
    Ok(Store::open(parent(layer))?.check_mount(store)?)
}

/// Moves `layer` to `store` if it is the one that all others get, and removes it otherwise. A layer
/// of `store` itself stays in any case, and so does a layer that another process uses.
pub(super) fn settle(layer: &Layer, store: &Store, is_chosen: bool) -> Result<Local> {
    let from = Store::open(parent(layer))?;
    if identity(from.path())? == identity(store.path())? {
        return Ok(Local::Kept);
    }
    let remove = || from.remove(layer.name()).map(|()| Local::Removed);
    let settled = match is_chosen {
        true => match from.move_to(layer.name(), store) {
            Err(LayerError::LayerExists { .. }) => remove(),
            moved => moved.map(|_| Local::Moved),
        },
        false => remove(),
    };
    match settled {
        Err(LayerError::LayerHeld { .. }) => Ok(Local::InUse),
        // Another push of this layer has settled it.
        Err(LayerError::NotADirectory { .. } | LayerError::Incomplete { .. }) if !layer.path().exists() => {
            match is_chosen {
                true => Layer::open(store.layer(layer.name())?.path()).map(|_| Local::Moved).map_err(Error::from),
                false => Ok(Local::Removed),
            }
        }
        settled => Ok(settled?),
    }
}

/// Returns the directory that has `layer`.
pub(super) fn parent(layer: &Layer) -> &Path {
    match layer.path().parent() {
        Some(dir) if dir != Path::new("") => dir,
        _ => Path::new("."),
    }
}

fn identity(dir: &Path) -> Result<(u64, u64)> {
    let metadata = fs::metadata(dir).map_err(Error::io("look at", dir))?;
    Ok((metadata.dev(), metadata.ino()))
}
