//! Runs a command in a root file system with one call, and removes everything that the run needed.
//!
//! `rootfs` creates and removes the mount points, and `runtime` runs the bundle.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use os_display::Quotable;
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, openat};
use rustix::io::Errno;

use crate::bundle::Bundle;
use crate::cgroup::Cgroup;
use crate::chain::chain;
use crate::error::{Error, Result};
use crate::id::ContainerId;
use crate::mount_namespace::{in_private_mount_namespace, mount_private_tmpfs};
use crate::requirements::require;
use crate::rootfs::Rootfs;
use crate::runtime::{Finished, Runtime, Status};
use crate::supervise::Cancel;
use crate::supervision::Supervision;
use crate::template::Template;

/// How often to try to lock the root, once per millisecond.
const MOST_ATTEMPTS: usize = 1000;

/// Runs the template's command in the root file system `root`, and waits for it to end. `root` is a
/// directory or a mounted [`Overlay`](crate::Overlay).
///
/// This is [`Runtime::run`] with everything that it needs: a private mount namespace, a bundle in
/// the [temporary directory](std::env::temp_dir), a container ID, and a control group, unless the
/// template names one. It looks up the command's user in the root.
///
/// **In the root**, it creates the missing mount points of the template and the missing working
/// directory: see [`Rootfs::mount_points`]. When the command has ended, it removes those that are
/// still empty, and the directories around them keep their modification times. If a mount point
/// replaced a dangling symbolic link, the link is not restored. Everything that the command itself
/// wrote stays. If the template mounts nothing on `/dev`, the device nodes that the runtime creates
/// there stay, too.
///
/// Several threads and processes may call this with the same `root` at the same time. A mount point
/// that was removed would take another container's mount with it. Therefore each call holds a
/// shared flock(2) on `root`, and removes nothing if another call still holds one: the mount points
/// then stay. Any user who can read `root` can hold such a lock.
///
/// Commands that run at the same time in the same root must trust each other: one can replace a
/// directory by a link while another container starts. Give commands that do not an
/// [`Overlay`](crate::Overlay) each.
///
/// The container gets no `/etc/hosts` and no `/etc/resolv.conf` of the host's.
///
/// ```no_run
/// use container::{CaptureLimit, Output, Runtime, Supervision, Template};
///
/// let template = Template::builder(["cat", "/etc/os-release"]).build()?;
/// let streams = Supervision::new().stdout(Output::Capture(CaptureLimit::default()));
/// let finished = container::run_in("/srv/debian", &template, &Runtime::default(), streams)?;
/// println!("{:?}: {}", finished.status, finished.stdout.unwrap());
/// # Ok::<(), container::Error>(())
/// ```
///
/// # Errors
/// The errors of [`Runtime::run`], [`Rootfs::refuse_links`], [`Rootfs::mount_points`],
/// [`Rootfs::find_user`] and [`require`]. [`Error::Io`] if `root` or the temporary
/// directory cannot be used, or if another process has locked `root` exclusively for over a second.
///
/// Nothing of the run is left after an error or a panic of a callback. A failure to remove
/// something is only logged. If this process is killed, the kernel ends the container. An empty
/// directory `container-<16 hexadecimal digits>` in the temporary directory, an empty control group
/// of the same name, and the mount points are then left.
pub fn run_in(
    root: impl AsRef<Path>,
    template: &Template,
    runtime: &Runtime,
    supervision: Supervision<'_>,
) -> Result<Finished> {
    if supervision.get_cancel().is_some_and(Cancel::is_cancelled) {
        return Ok(Finished::new(Status::Cancelled));
    }
    require(template)?;
    let _prepared = (Cgroup::prepare_moves(), runtime.prepare(template));
    let root = fs::canonicalize(&root).map_err(Error::io("find", root.as_ref()))?;
    let id = ContainerId::random("container")?;
    let directory = Directory::create(std::env::temp_dir().join(id.as_str()))?;
    in_private_mount_namespace(|| {
        mount_private_tmpfs(&directory.0)?;
        let mut root = Root::open(root)?;
        root.rootfs.refuse_links()?;
        root.rootfs.mount_points(template)?;
        let user = root.rootfs.find_user(template)?;
        let config = template.instantiate(root.rootfs.path())?;
        let own_group = Cgroup::of_run(id.as_str(), &config)?;
        let config = match &own_group {
            Some(group) => config.with_default_cgroups_path(group.container_path()),
            None => config,
        };
        let bundle = Bundle::create(&directory.0, config.with_user(user))?;
        runtime.run(&bundle, &id, own_group.as_ref(), supervision)
    })?
}

/// A directory that is empty outside of the run's mount namespace. Dropping it removes it.
struct Directory(PathBuf);

impl Directory {
    fn create(path: PathBuf) -> Result<Self> {
        DirBuilder::new().mode(0o700).create(&path).map_err(Error::io("create the directory", &path))?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            log::warn!("{}", chain(&Error::io("remove", &self.0)(error)));
        }
    }
}

/// A root file system in which a command runs. Dropping it removes the mount points that the run
/// has created, unless another run uses the same root.
struct Root {
    rootfs: Rootfs,
    /// The root's directory, with a shared lock.
    lock: OwnedFd,
}

impl Root {
    fn open(path: PathBuf) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let lock = openat(CWD, &path, flags, Mode::empty()).map_err(Error::io("open the directory", &path))?;
        // A run that removes its mount points has an exclusive lock for a moment.
        let mut attempts = 0;
        while let Err(error) = flock(&lock, FlockOperation::NonBlockingLockShared) {
            if error != Errno::WOULDBLOCK || attempts == MOST_ATTEMPTS {
                return Err(Error::io("lock", path)(error));
            }
            attempts += 1;
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(Self { rootfs: Rootfs::open(path)?, lock })
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let root = self.rootfs.path().maybe_quote();
        match flock(&self.lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return log::debug!("the mount points in {root} stay, because another run uses it");
            }
            Err(error) => return log::warn!("the mount points in {root} stay, because it cannot be locked: {error}"),
        }
        if let Err(error) = self.rootfs.remove_empty() {
            log::warn!("{}", chain(&error));
        }
    }
}
