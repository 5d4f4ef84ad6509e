use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use os_display::Quotable;
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags, StatVfsMountFlags};

use crate::{Error, Mounted, Result};

mod cwd;
mod fsconfig;
mod mount2;
mod root;

pub use root::copy_root_attributes;

/// The most lower directories that an overlay may have.
///
/// `OVL_MAX_STACK` in `fs/overlayfs/params.c`.
pub const MAX_LOWERS: usize = 500;

/// The most bytes of options that mount(2) takes whole: a page less the final NUL. It cuts a longer string off silently.
///
/// `copy_mount_options` in `fs/namespace.c`.
pub const MAX_OPTION_BYTES: usize = 4095;

/// Always named, since distributions differ in the defaults: with any of the first three on, the kernel marks directories
/// that a build creates as opaque, and they would hide what sibling layers have in them; so does `xino`.
const OPTIONS: [(&str, &str); 4] =
    [("redirect_dir", "nofollow"), ("index", "off"), ("metacopy", "off"), ("xino", "off")];

/// The system calls by which an overlay is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MountApi {
    /// [`fsopen(2)`](https://man7.org/linux/man-pages/man2/fsopen.2.html) and `fsconfig(2)` with `lowerdir+`, kernel 6.7:
    /// the lowers one by one, no limit on the length of all.
    Fsconfig,
    /// [`mount(2)`](https://man7.org/linux/man-pages/man2/mount.2.html): all options in one page.
    Mount2,
}

impl MountApi {
    /// What the running kernel has, found out by trying and remembered.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be found out now (no descriptor is left, say).
    pub fn detect() -> Result<Self> {
        static DETECTED: OnceLock<MountApi> = OnceLock::new();
        if let Some(api) = DETECTED.get() {
            return Ok(*api);
        }
        let api = fsconfig::detect().map_err(Error::io("ask the kernel for", "overlay"))?;
        log::debug!("overlays are mounted with {api:?}");
        Ok(*DETECTED.get_or_init(|| api))
    }
}

/// How the lower directories are named to the kernel, and so in the mount table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LowerNames {
    /// By their paths.
    Paths,
    /// By the shortest names that there are, however long the paths: from within each, `.`, or where all are named at once, by
    /// the numbers of open descriptors. The mount table, which runtimes read again and again, stays as short. The names mean
    /// nothing once the mount is made.
    Short,
}

/// Whether device nodes in the overlay can be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum DeviceNodes {
    /// As on any file system.
    #[default]
    Usable,
    /// `nodev`: they are there and can be made, but not opened.
    Inert,
}

/// The namespace of the extended attributes in which overlayfs keeps what it notes down: whiteouts, opaque directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum OverlayXattrs {
    /// `trusted.overlay.`, which only root can write.
    #[default]
    Trusted,
    /// `user.overlay.`, for layers that an unprivileged mount has made (`userxattr`, kernel 5.11). The other kind is not looked
    /// at then.
    User,
}

/// An overlay to mount: lower directories, topmost first, and an upper to write to.
///
/// It is mounted with `redirect_dir=nofollow,index=off,metacopy=off,xino=off`, and `volatile` where the kernel has it (5.10):
/// nothing is flushed at the unmount, so after a power cut the upper is not to be trusted until somebody has synced it.
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

#[derive(Debug, Clone)]
struct Writable {
    upper: PathBuf,
    work: PathBuf,
}

impl Overlay {
    /// A read-only overlay of `lowers`, topmost first. The kernel wants two of them at least, and none twice.
    pub fn new<P: Into<PathBuf>>(lowers: impl IntoIterator<Item = P>) -> Self {
        let lowers = lowers.into_iter().map(Into::into).collect();
        Self {
            lowers,
            writable: None,
            api: None,
            names: None,
            devices: DeviceNodes::default(),
            xattrs: OverlayXattrs::default(),
        }
    }

    /// What is written goes to `upper`; `work` is the kernel's own, an empty directory on the same file system. No other
    /// mount may use either of them: the kernel does not refuse it.
    pub fn writable(mut self, upper: impl Into<PathBuf>, work: impl Into<PathBuf>) -> Self {
        self.writable = Some(Writable { upper: upper.into(), work: work.into() });
        self
    }

    /// Mounts by `api`, whatever [`MountApi::detect`] says.
    pub fn api(mut self, api: MountApi) -> Self {
        self.api = Some(api);
        self
    }

    /// Names the lowers as `names` says. Otherwise they are named by their paths as long as these fit into a page together.
    pub fn names(mut self, names: LowerNames) -> Self {
        self.names = Some(names);
        self
    }

    /// What device nodes in it are good for.
    pub fn devices(mut self, devices: DeviceNodes) -> Self {
        self.devices = devices;
        self
    }

    /// Where overlayfs keeps its notes, in the lowers as in the upper.
    pub fn xattrs(mut self, xattrs: OverlayXattrs) -> Self {
        self.xattrs = xattrs;
        self
    }

    /// The bytes that `lower` takes in the options of mount(2), escapes and separator included. A short name, the number of a
    /// descriptor, counts with six digits.
    pub fn option_bytes(names: LowerNames, lower: &Path) -> usize {
        match names {
            LowerNames::Paths => mount2::escaped_lower_bytes(lower) + 1,
            LowerNames::Short => DESCRIPTOR_BYTES,
        }
    }

    /// The bytes that the options of mount(2) take besides the lowers.
    ///
    /// The upper and the work directory count with their paths or, where the lowers have short names, like these.
    pub fn fixed_option_bytes(names: LowerNames, upper: &Path, work: &Path) -> usize {
        let [upper, work] = match names {
            LowerNames::Paths => [mount2::escape(upper.as_os_str()), mount2::escape(work.as_os_str())],
            LowerNames::Short => [vec![b'0'; DESCRIPTOR_BYTES - 1], vec![b'0'; DESCRIPTOR_BYTES - 1]],
        };
        mount2::options(&[], Some((&upper, &work)), OverlayXattrs::User, mount2::Volatile::Yes).len()
    }

    /// Mounts it on `target`, a directory, in the mount namespace of the caller.
    ///
    /// # Errors
    /// [`Error::TooManyLowers`] and [`Error::OptionsTooLong`] before anything is tried, [`Error::Mount`] with the kernel's own
    /// message, [`Error::Io`] for a directory that cannot be opened. Nothing is mounted then. Where the kernel would do with a
    /// read-only mount, since it cannot write to the work directory, that is [`Error::Mount`] too.
    pub fn mount(&self, target: impl AsRef<Path>) -> Result<Mounted> {
        let target = absolute(target.as_ref())?;
        let lowers: Vec<PathBuf> = self.lowers.iter().map(|lower| absolute(lower)).collect::<Result<_>>()?;
        if lowers.len() > MAX_LOWERS {
            return Err(Error::TooManyLowers { count: lowers.len(), limit: MAX_LOWERS });
        }
        let writable = match &self.writable {
            Some(Writable { upper, work }) => Some(Writable { upper: absolute(upper)?, work: absolute(work)? }),
            None => None,
        };
        let request = Request { lowers, writable, devices: self.devices, xattrs: self.xattrs, target };
        let api = match self.api {
            Some(api) => api,
            None => MountApi::detect()?,
        };
        let names = self.names.unwrap_or_else(|| request.fitting_names(api));
        log::debug!(
            "mounting {} lowers on {} by {api:?}, {names:?}",
            request.lowers.len(),
            request.target.maybe_quote()
        );
        match (api, names) {
            (MountApi::Fsconfig, LowerNames::Paths) => fsconfig::mount_paths(&request),
            (MountApi::Fsconfig, LowerNames::Short) => cwd::anywhere(|| fsconfig::mount_from_within(&request)),
            (MountApi::Mount2, LowerNames::Paths) => mount2::mount_paths(&request),
            (MountApi::Mount2, LowerNames::Short) => cwd::among_descriptors(|| mount2::mount_descriptors(&request)),
        }
        .map_err(|error| request.explain(error))?;
        let mounted = Mounted::new(request.target.clone(), api, names);
        if request.writable.is_some() && is_read_only(mounted.path())? {
            mounted.unmount()?;
            return Err(request.read_only());
        }
        Ok(mounted)
    }
}

/// Bytes that a directory named by its descriptor takes at most, with a separator: numbers of six digits.
const DESCRIPTOR_BYTES: usize = 7;

/// What is to be mounted, all paths absolute.
struct Request {
    lowers: Vec<PathBuf>,
    writable: Option<Writable>,
    devices: DeviceNodes,
    xattrs: OverlayXattrs,
    target: PathBuf,
}

impl Request {
    fn fitting_names(&self, api: MountApi) -> LowerNames {
        let lowers: usize = self.lowers.iter().map(|lower| Overlay::option_bytes(LowerNames::Paths, lower)).sum();
        let fixed = match &self.writable {
            Some(Writable { upper, work }) => Overlay::fixed_option_bytes(LowerNames::Paths, upper, work),
            None => mount2::options(&[], None, self.xattrs, mount2::Volatile::No).len(),
        };
        // With `lowerdir+` nothing has to fit, but the mount table grows with every byte.
        let available = match api {
            MountApi::Fsconfig => MAX_OPTION_BYTES,
            MountApi::Mount2 => MAX_OPTION_BYTES - fixed.min(MAX_OPTION_BYTES),
        };
        if lowers <= available { LowerNames::Paths } else { LowerNames::Short }
    }

    /// A failed system call of the mount, named.
    fn failed(&self, call: String, message: String, source: impl Into<io::Error>) -> Error {
        Error::Mount { target: self.target.clone(), call, message, advice: None, source: source.into() }
    }

    /// A mount that was made, but not as it was asked for: `ovl_make_workdir` in `fs/overlayfs/super.c`.
    fn read_only(&self) -> Error {
        Error::Mount {
            target: self.target.clone(),
            call: "it would be read-only".into(),
            message: String::new(),
            advice: Some(
                "the kernel cannot write to the work directory; it may be that no space or no inode is left there",
            ),
            source: rustix::io::Errno::ROFS.into(),
        }
    }

    /// Finds out what lies behind an error, once there is one.
    fn explain(&self, mut error: Error) -> Error {
        let Error::Mount { advice, source, message, .. } = &mut error else { return error };
        let upper_is_overlay = || {
            let Some(writable) = &self.writable else { return false };
            rustix::fs::statfs(&writable.upper).is_ok_and(|statfs| statfs.f_type as u64 == OVERLAYFS_SUPER_MAGIC)
        };
        *advice = match source.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
            Some(rustix::io::Errno::PERM) => Some("mounting needs root (CAP_SYS_ADMIN)"),
            Some(rustix::io::Errno::ACCESS) => Some("one of its directories cannot be read by this process"),
            Some(rustix::io::Errno::LOOP) => Some("a directory is given twice, or is the upper too"),
            Some(rustix::io::Errno::INVAL) if upper_is_overlay() => Some(
                "the upper directory is on overlayfs, which cannot hold one; choose a scratch directory on another file system",
            ),
            Some(rustix::io::Errno::INVAL) if message.is_empty() => Some("the kernel's log says why: dmesg | tail"),
            _ => None,
        };
        error
    }
}

/// `OVERLAYFS_SUPER_MAGIC` in `linux/magic.h`.
const OVERLAYFS_SUPER_MAGIC: u64 = 0x794c_7630;

fn is_read_only(mounted: &Path) -> Result<bool> {
    let numbers = rustix::fs::statvfs(mounted).map_err(Error::io("look at", mounted))?;
    Ok(numbers.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// A descriptor that names a directory and pins it.
fn pin(path: &Path) -> Result<OwnedFd> {
    rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(Error::io("open the directory", path))
}

fn absolute(path: &Path) -> Result<PathBuf> {
    if path.is_absolute() {
        return Ok(path.into());
    }
    std::path::absolute(path).map_err(Error::io("make absolute", path))
}

/// For messages: bytes as a C string literal would show them.
fn quote(bytes: &[u8]) -> String {
    format!("{:?}", OsStr::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(count: usize, length: usize) -> Request {
        let lowers = (0..count).map(|n| PathBuf::from(format!("/{n:0width$}", width = length - 1))).collect();
        let writable = Some(Writable { upper: "/s/upper".into(), work: "/s/work".into() });
        Request {
            lowers,
            writable,
            devices: DeviceNodes::Usable,
            xattrs: OverlayXattrs::Trusted,
            target: "/s/merged".into(),
        }
    }

    #[test]
    fn names_are_paths_while_they_fit_a_page() {
        use {LowerNames::*, MountApi::*};
        let table = [
            (1, 60, Fsconfig, Paths),
            (67, 60, Fsconfig, Paths),
            (68, 60, Fsconfig, Short),
            (64, 60, Mount2, Paths),
            (67, 60, Mount2, Short),
            (1, 4095, Mount2, Short),
        ];
        for (count, length, api, names) in table {
            assert_eq!(request(count, length).fitting_names(api), names, "{count} × {length}, {api:?}");
        }
    }

    #[test]
    fn too_many_lowers_are_refused_before_anything_is_tried() {
        let lowers: Vec<PathBuf> = (0..=MAX_LOWERS).map(|n| format!("/nowhere/{n}").into()).collect();
        let error = Overlay::new(lowers).mount("/nowhere").unwrap_err();
        assert!(matches!(error, Error::TooManyLowers { count: 501, limit: 500 }), "{error}");
    }

    #[test]
    fn five_hundred_descriptors_fit_a_page() {
        let fixed = Overlay::fixed_option_bytes(LowerNames::Short, Path::new("/u"), Path::new("/w"));
        assert!(fixed + MAX_LOWERS * DESCRIPTOR_BYTES <= MAX_OPTION_BYTES, "{fixed}");
    }
}
