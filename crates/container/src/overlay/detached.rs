//! An overlay without a mount point, which other overlays have as their lowest lower.
//!
//! `fsconfig` makes it. `mounted` is the guard of an overlay with a mount point.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use nix::mount::{MntFlags, umount2};
use os_display::Quotable;
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::chdir::DESCRIPTORS;
use super::{MountApi, Overlay, by_fsconfig, option_bytes};
use crate::error::{Error, Result};

/// A read-only overlay that no directory shows, and no mount table.
///
/// Only this value's descriptor keeps it mounted. The kernel unmounts it when the value is dropped,
/// or when the process ends, however it ends. An overlay that [has it as a lower](Self::as_lower)
/// keeps it until it is itself unmounted. Until then, it also keeps the file systems of its lowers
/// busy, and the blocks of files that are deleted there.
#[derive(Debug)]
#[must_use = "the overlay is unmounted when this value is dropped"]
pub struct DetachedOverlay {
    /// `None` if the kernel has refused to detach the overlay again.
    mount: RwLock<Option<OwnedFd>>,
}

/// How an overlay gets a [`DetachedOverlay`] as a lower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Nesting {
    /// By its descriptor, since Linux 6.15.
    Descriptor,
    /// By a path, to which it is attached for the moment.
    Attached,
}

impl Nesting {
    /// All ways, the best first.
    pub const ALL: [Nesting; 2] = [Nesting::Descriptor, Nesting::Attached];
}

impl Overlay {
    /// Mounts a read-only overlay on no directory.
    ///
    /// # Errors
    /// As [`mount`](Self::mount). [`Error::Mount`] before Linux 6.7, whose kernel cannot make such
    /// an overlay of many lowers, and if the overlay is [writable](Self::writable).
    pub fn mount_detached(&self) -> Result<DetachedOverlay> {
        // The mount has no target. Its errors name none.
        let request = self.request(PathBuf::new())?;
        if request.writable.is_some() {
            return Err(request.failed("it must be read-only".into(), String::new(), Errno::INVAL));
        }
        if self.api.map_or_else(MountApi::detect, Ok)? != MountApi::Fsconfig {
            return Err(request.failed("the kernel has no lowerdir+".into(), String::new(), Errno::OPNOTSUPP));
        }
        let names = self.names.unwrap_or_else(|| option_bytes::fitting_names(&request, MountApi::Fsconfig));
        log::debug!("mounting {} lowers on no directory by {names:?}", request.lowers.len());
        let mount = by_fsconfig(&request, names).map_err(|error| request.explain(error))?;
        Ok(DetachedOverlay { mount: RwLock::new(Some(mount)) })
    }
}

impl DetachedOverlay {
    /// Calls `mount` with a path that is a valid lower directory during the call, for
    /// [`Overlay::over`].
    ///
    /// With [`Nesting::Attached`], that path is `directory`. It must exist, and the calling thread
    /// must be in a [private mount namespace](crate::in_private_mount_namespace), because the
    /// overlay is attached there. It is detached before this function returns.
    ///
    /// # Errors
    /// The error of `mount`. [`Error::Io`] if the overlay cannot be attached, which leaves it as it
    /// was, or if the kernel does not copy it once it is attached. Then the overlay is lost, and
    /// all later calls fail, too. A failure to detach it is logged.
    pub fn as_lower<T>(&self, nesting: Nesting, directory: &Path, mount: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        match nesting {
            Nesting::Descriptor => {
                let own = self.mount.read().unwrap_or_else(PoisonError::into_inner);
                let own = own.as_ref().ok_or_else(|| lost(directory))?;
                mount(Path::new(&format!("{DESCRIPTORS}/{}", own.as_raw_fd())))
            }
            Nesting::Attached => {
                let _attached = self.attach(directory)?;
                mount(directory)
            }
        }
    }

    /// Attaches the overlay to `directory`, and replaces the descriptor by that of a copy.
    fn attach<'a>(&self, directory: &'a Path) -> Result<Attached<'a>> {
        let mut own = self.mount.write().unwrap_or_else(PoisonError::into_inner);
        let mount = own.as_ref().ok_or_else(|| lost(directory))?;
        // Without a free descriptor for the copy, the overlay must stay as it is.
        let reserve = mount.try_clone().map_err(Error::io("reserve a descriptor for the overlay on", directory))?;
        move_mount(mount, "", CWD, directory, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(Error::io("attach an overlay to", directory))?;
        let attached = Attached(directory);
        // The kernel copies only mounts of this mount namespace. So it first has to be attached.
        drop(reserve);
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let copied = open_tree(CWD, directory, flags).or_else(|_| {
            // Another thread may have taken the descriptor. That of the former mount is of no use.
            *own = None;
            open_tree(CWD, directory, flags)
        });
        *own = Some(copied.map_err(Error::io("copy the overlay on", directory))?);
        Ok(attached)
    }
}

fn lost(directory: &Path) -> Error {
    let why = "an earlier call has lost it, because the kernel did not copy it; mount it again";
    Error::io("attach the shared overlay to", directory)(io::Error::other(why))
}

/// An overlay on a directory. Dropping it detaches the overlay, which another overlay may use.
struct Attached<'a>(&'a Path);

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        if let Err(error) = umount2(self.0, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            log::warn!("an overlay stays attached to {}: {error}", self.0.maybe_quote());
        }
    }
}
