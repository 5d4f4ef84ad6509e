//! The paths in the directory of one run. `rundir` has the directory itself, and `scratch` creates
//! and removes its content.

use std::path::{Path, PathBuf};

/// The paths in the directory of one run. `<id>` is the name of the run and of its container; the
/// directory of a kept run has another name.
///
/// ```text
/// <scratch>/<id>/upper          what the command writes
/// <scratch>/<id>/work           the kernel's work directory
/// <scratch>/<id>/lower          the merged layers, if any had to be merged
/// <scratch>/<id>/bundle         a tmpfs in the run's mount namespace:
///                bundle/merged       the mount point of the overlay
///                bundle/shared       for a moment, an overlay that runs share
///                bundle/config.json  and beside it the runtime's runtime.log and state/
/// ```
#[derive(Debug)]
pub(crate) struct Paths(PathBuf);

impl Paths {
    /// Returns the paths in the directory `dir`.
    pub(crate) fn new(dir: impl Into<PathBuf>) -> Self {
        Self(dir.into())
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.0
    }

    pub(crate) fn upper(&self) -> PathBuf {
        self.0.join("upper")
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.0.join("work")
    }

    pub(crate) fn bundle(&self) -> PathBuf {
        self.0.join("bundle")
    }

    pub(crate) fn merged(&self) -> PathBuf {
        self.0.join("bundle/merged")
    }

    pub(crate) fn shared(&self) -> PathBuf {
        self.0.join("bundle/shared")
    }

    pub(crate) fn lower(&self) -> PathBuf {
        self.0.join("lower")
    }
}
