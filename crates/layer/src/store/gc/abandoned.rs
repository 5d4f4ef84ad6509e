//! Completes or removes what a killed capture left. The marks that it leaves are defined in
//! `capture/lock.rs`.

use crate::capture::lock::{CaptureLock, Found};
use crate::error::Result;
use crate::layer::Layer;

/// What became of a directory without `layer.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resolved {
    /// Nothing: somebody may be filling it, or a capture is under way.
    Left,
    /// What the capture had left was removed. Its upper is where it was.
    Removed,
    /// The capture had moved its tree. The layer is complete now.
    Completed,
}

/// Completes or removes what a killed capture has left in the directory of `layer`. Removes no tree
/// and no file of anybody else.
pub(super) fn resolve(layer: &Layer) -> Result<Resolved> {
    let Some(lock) = CaptureLock::take_abandoned(layer)? else { return Ok(Resolved::Left) };
    match lock.look()? {
        Found::Layer => Ok(Resolved::Left),
        Found::Sealed { .. } => lock.publish().map(|()| Resolved::Completed),
        Found::Unfinished { .. } => match lock.clear()? {
            true => Ok(Resolved::Removed),
            false => Ok(Resolved::Left),
        },
    }
}

/// Whether [`resolve`] would find something to do.
pub(super) fn is_left(layer: &Layer) -> Result<bool> {
    Ok(CaptureLock::take_abandoned(layer)?.is_some())
}
