//! Completes the layer of a killed capture, or removes what the capture left. `capture/lock.rs`
//! defines the marks of a capture.

use crate::capture::lock::{CaptureLock, Found};
use crate::error::Result;
use crate::layer::Layer;

/// The outcome for a directory without `layer.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resolved {
    /// The directory is unchanged: another program may be filling it, or a capture is in progress.
    Left,
    /// The capture's marks were removed, and the directory if nothing else was in it. The upper is
    /// where it was.
    Removed,
    /// The capture had moved its tree. The layer is complete now.
    Completed,
}

/// Completes the layer of a killed capture, or removes what the capture left in the directory of
/// `layer`. Removes no tree, and no file that a capture did not make.
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

/// Returns whether [`resolve`] would find something to do.
pub(super) fn is_left(layer: &Layer) -> Result<bool> {
    Ok(CaptureLock::take_abandoned(layer)?.is_some())
}
