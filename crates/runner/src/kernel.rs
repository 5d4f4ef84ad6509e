//! The five operations of a run that need root or a runtime.
//!
//! Everything else in a run works in a plain directory, without root. The tests of `run` replace
//! these five.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use container::advanced::mount_private_tmpfs;
use container::{ContainerId, Finished, Mounted, Overlay, Runtime, Supervision, Template, in_private_mount_namespace};

use crate::Result;
use crate::configure::Prepared;
use crate::error::io_error;
use crate::paths::Paths;
use crate::stacks::Part;

/// The operations that a run asks of the kernel.
pub(crate) trait Kernel: Sync {
    /// A mounted overlay. Its path is where it is mounted.
    type Mounted: AsRef<Path>;

    /// Fails if the process lacks privileges or the template's user, or if the template's limits
    /// cannot be enforced.
    fn require(&self, template: &Template) -> Result<()>;

    /// Calls `work` on a thread with a private mount namespace. The kernel removes mounts that
    /// `work` leaves, together with the namespace.
    fn privately<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T>;

    /// Mounts a tmpfs on the bundle's directory of `paths`, and the overlay inside it.
    ///
    /// The bundle and the mount point are in memory, so they cost no I/O. They are in the run's own
    /// mount namespace, so a killed run leaves neither of them.
    ///
    /// With `shared`, the overlay has that part as its lowest lower.
    fn mount(&self, overlay: &Overlay, shared: Option<&Part>, paths: &Paths) -> Result<Self::Mounted>;

    /// Runs the command and waits for it to end.
    fn execute(
        &self,
        runtime: &Runtime,
        id: &ContainerId,
        prepared: &Prepared,
        supervision: Supervision<'_>,
    ) -> Result<Finished>;

    /// Unmounts the overlay. On an error it is still mounted.
    fn unmount(&self, mounted: Self::Mounted) -> Result<()>;
}

/// The kernel of this machine.
pub(crate) struct Linux;

impl Kernel for Linux {
    type Mounted = Mounted;

    fn require(&self, template: &Template) -> Result<()> {
        Ok(container::require(template)?)
    }

    fn privately<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        Ok(in_private_mount_namespace(work)?)
    }

    fn mount(&self, overlay: &Overlay, shared: Option<&Part>, paths: &Paths) -> Result<Mounted> {
        mount_private_tmpfs(&paths.bundle())?;
        let merged = paths.merged();
        DirBuilder::new().mode(0o700).create(&merged).map_err(io_error("make the directory", &merged))?;
        match shared {
            Some(part) => part.mount_over(overlay, &paths.shared(), &merged),
            None => Ok(overlay.mount(merged)?),
        }
    }

    fn execute(
        &self,
        runtime: &Runtime,
        id: &ContainerId,
        prepared: &Prepared,
        supervision: Supervision<'_>,
    ) -> Result<Finished> {
        Ok(runtime.run(&prepared.bundle, id, prepared.cgroup.as_ref(), supervision)?)
    }

    fn unmount(&self, mounted: Mounted) -> Result<()> {
        Ok(mounted.unmount()?)
    }
}
