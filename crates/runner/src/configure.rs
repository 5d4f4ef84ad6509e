//! Prepares the container between mounting the overlay and executing the command: puts the run's
//! files into the root file system, finds the command's user there, and writes the bundle.
//!
//! `etc` decides what `/etc/hosts` and `/etc/resolv.conf` contain.

use std::path::Path;

use container::{Bundle, Cgroup, Rootfs, Template};
use layer::{Made, XattrNamespace};

use crate::options::EtcFiles;
use crate::scratch::Scratch;
use crate::{Result, etc};

/// A container that is ready to be started.
pub(crate) struct Prepared {
    pub(crate) bundle: Bundle,
    /// `None` if the template names a cgroup, which the runtime then removes, and in a user
    /// namespace without limits.
    pub(crate) cgroup: Option<Cgroup>,
    /// The entries that the run created in the upper.
    pub(crate) made: Vec<Made>,
    /// The IDs of the command's user and group.
    pub(crate) user: (u32, u32),
}

/// Prepares the root file system that is mounted on `mounted`, and writes the bundle.
pub(crate) fn configure(
    scratch: &Scratch,
    mounted: &Path,
    template: &Template,
    etc: EtcFiles,
    xattrs: XattrNamespace,
) -> Result<Prepared> {
    let mut rootfs = Rootfs::open(mounted)?;
    rootfs.refuse_links()?;
    if etc == EtcFiles::Provided {
        for file in etc::files(template) {
            let covered = template.mounts().any(|mount| file.path.starts_with(mount.destination()));
            let callers = scratch.upper().join(file.path.strip_prefix("/").unwrap_or(file.path));
            if !covered && callers.symlink_metadata().is_err() {
                rootfs.put_file(file.path, &file.contents)?;
            }
        }
    }
    rootfs.mount_points(template)?;
    let user = rootfs.find_user(template)?;
    let numbers = (user.uid(), user.gid());
    // `look` finds nothing behind a symbolic link or a mount that the caller left in the upper.
    // Entries there remain the caller's.
    let made = Made::look(scratch.upper(), rootfs.created())?;
    // Record this before the command runs, because the command may fill the disk.
    scratch.record(&made, xattrs)?;

    let config = template.instantiate(mounted)?.with_user(user);
    let cgroup = Cgroup::of_run(scratch.id().as_str(), &config)?;
    let config = match &cgroup {
        Some(group) => config.with_default_cgroups_path(group.container_path()),
        None => config,
    };
    let bundle = Bundle::create(scratch.bundle(), config)?;
    Ok(Prepared { bundle, cgroup, made, user: numbers })
}
