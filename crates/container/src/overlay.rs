//! Mounts overlays. `kinds` has the choices, `fsconfig` and `mount2` have the system calls, and
//! `mounted` is the guard of the mount. `detached` has overlays without a mount point.

use std::path::{Path, PathBuf};

use os_display::Quotable;
use rustix::fd::OwnedFd;
use rustix::fs::StatVfsMountFlags;

use crate::error::{Error, Result};

mod chdir;
mod detached;
mod fsconfig;
mod kinds;
mod mount2;
mod mounted;
mod option_bytes;
mod request;
mod root_attributes;

use request::{Request, Writable};

pub use detached::{DetachedOverlay, Nesting};
pub use kinds::{DeviceNodes, LowerNames, MAX_OPTION_BYTES, MountApi, OverlayXattrs};
pub use mounted::Mounted;
pub use option_bytes::{fixed_option_bytes, lower_option_bytes};
pub use root_attributes::copy_root_attributes;

/// The most lower directories that an overlay can have: `OVL_MAX_STACK` in `fs/overlayfs/params.c`.
pub const MAX_LOWERS: usize = 500;

/// An overlay to mount: lower directories, topmost first, and optionally an upper that receives the
/// writes.
///
/// The mount has the options `redirect_dir=nofollow,index=off,metacopy=off,xino=off`. Since Linux
/// 5.10 it is also `volatile`: the kernel does not flush the upper when the overlay is unmounted.
/// After a power failure, do not use an upper that has not been synced.
///
/// ```no_run
/// let overlay = container::Overlay::new(["/layers/a/fs", "/layers/b/fs", "/base/fs"]).writable("upper", "work");
/// let mounted = overlay.mount("merged")?;
/// // ... use merged ...
/// mounted.unmount()?;
/// # Ok::<(), container::Error>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "an overlay is not mounted before `mount` is called"]
pub struct Overlay {
    lowers: Vec<PathBuf>,
    writable: Option<Writable>,
    api: Option<MountApi>,
    names: Option<LowerNames>,
    devices: DeviceNodes,
    xattrs: OverlayXattrs,
}

impl Overlay {
    /// Creates a read-only overlay of `lowers`, topmost first. The kernel requires at least two,
    /// all different.
    pub fn new<P: Into<PathBuf>>(lowers: impl IntoIterator<Item = P>) -> Self {
        let lowers = lowers.into_iter().map(Into::into).collect();
        Self {
            lowers,
            writable: None,
            api: None,
            names: None,
            devices: DeviceNodes::default(),
            xattrs: OverlayXattrs::of_process(),
        }
    }

    /// Makes the overlay writable. Writes go to `upper`. The kernel needs `work`, an empty
    /// directory on the same file system, for itself. No other mount may use either of them; the
    /// kernel does not check this.
    pub fn writable(mut self, upper: impl Into<PathBuf>, work: impl Into<PathBuf>) -> Self {
        self.writable = Some(Writable { upper: upper.into(), work: work.into() });
        self
    }

    /// Adds a lower below all others.
    pub fn over(mut self, lower: impl Into<PathBuf>) -> Self {
        self.lowers.push(lower.into());
        self
    }

    /// Sets the system calls, instead of those that [`MountApi::detect`] finds.
    pub fn api(mut self, api: MountApi) -> Self {
        self.api = Some(api);
        self
    }

    /// Sets the names of the lowers. By default they are paths, as long as all paths together fit
    /// into one page.
    pub fn names(mut self, names: LowerNames) -> Self {
        self.names = Some(names);
        self
    }

    /// Sets whether device nodes in the overlay can be opened.
    pub fn devices(mut self, devices: DeviceNodes) -> Self {
        self.devices = devices;
        self
    }

    /// Sets the namespace of the overlay xattrs, in the lowers and in the upper. The default is the
    /// one that this process [can write](OverlayXattrs::of_process).
    pub fn xattrs(mut self, xattrs: OverlayXattrs) -> Self {
        self.xattrs = xattrs;
        self
    }

    /// Mounts the overlay on `target`, a directory, in the mount namespace of the caller.
    ///
    /// # Errors
    /// Nothing is mounted if this fails.
    /// - [`Error::TooManyLowers`] and [`Error::OptionsTooLong`] before any system call.
    /// - [`Error::Mount`] with the kernel's own message. Also if the kernel mounts the overlay
    ///   read-only because it cannot write to the work directory. That overlay is unmounted again.
    /// - [`Error::Io`] if a directory cannot be opened.
    pub fn mount(&self, target: impl AsRef<Path>) -> Result<Mounted> {
        let request = self.request(absolute(target.as_ref())?)?;
        let api = match self.api {
            Some(api) => api,
            None => MountApi::detect()?,
        };
        let names = self.names.unwrap_or_else(|| option_bytes::fitting_names(&request, api));
        log::debug!(
            "mounting {} lowers on {} by {api:?}, {names:?}",
            request.lowers.len(),
            request.target.maybe_quote()
        );
        match (api, names) {
            (MountApi::Fsconfig, names) => {
                by_fsconfig(&request, names).and_then(|mount| fsconfig::attach(&mount, &request))
            }
            (MountApi::Mount2, LowerNames::Paths) => mount2::mount_paths(&request),
            (MountApi::Mount2, LowerNames::Short) => chdir::among_descriptors(|| mount2::mount_descriptors(&request)),
        }
        .map_err(|error| request.explain(error))?;
        let mounted = Mounted::new(request.target.clone(), api, names);
        if request.writable.is_some() && is_read_only(mounted.path())? {
            mounted.unmount()?;
            return Err(request.read_only());
        }
        Ok(mounted)
    }

    /// Returns the overlay to mount on `target`, with absolute paths.
    fn request(&self, target: PathBuf) -> Result<Request> {
        let lowers: Vec<PathBuf> = self.lowers.iter().map(|lower| absolute(lower)).collect::<Result<_>>()?;
        if lowers.len() > MAX_LOWERS {
            return Err(Error::TooManyLowers { count: lowers.len(), limit: MAX_LOWERS });
        }
        let writable = match &self.writable {
            Some(Writable { upper, work }) => Some(Writable { upper: absolute(upper)?, work: absolute(work)? }),
            None => None,
        };
        Ok(Request { lowers, writable, devices: self.devices, xattrs: self.xattrs, target })
    }
}

/// Makes a mount that is not attached to a directory yet.
fn by_fsconfig(request: &Request, names: LowerNames) -> Result<OwnedFd> {
    match names {
        LowerNames::Paths => fsconfig::detached_paths(request),
        LowerNames::Short => chdir::anywhere(|| fsconfig::detached_from_within(request)),
    }
}

fn is_read_only(mounted: &Path) -> Result<bool> {
    let numbers = rustix::fs::statvfs(mounted).map_err(Error::io("look at", mounted))?;
    Ok(numbers.f_flag.contains(StatVfsMountFlags::RDONLY))
}

fn absolute(path: &Path) -> Result<PathBuf> {
    if path.is_absolute() {
        return Ok(path.into());
    }
    std::path::absolute(path).map_err(Error::io("make absolute", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_lowers_are_refused_before_any_system_call() {
        let lowers: Vec<PathBuf> = (0..=MAX_LOWERS).map(|n| format!("/nowhere/{n}").into()).collect();
        let error = Overlay::new(lowers).mount("/nowhere").unwrap_err();
        assert!(matches!(error, Error::TooManyLowers { count: 501, limit: 500 }), "{error}");
    }
}
