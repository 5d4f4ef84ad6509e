//! Mounts an overlay with fsopen(2) and fsconfig(2), one call per directory. `mount2` is for
//! kernels without `lowerdir+`.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::OnceLock;

use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen, move_mount,
};

use super::chdir::DESCRIPTORS;
use super::kinds::{DeviceNodes, MountApi, OverlayXattrs};
use super::request::{OPTIONS, Request, Writable, pin, quote};
use crate::error::{Error, Result};

/// The most bytes of a string value of fsconfig(2). For a longer value, the kernel returns EINVAL
/// without a message.
const MAX_VALUE_BYTES: usize = 255;

impl MountApi {
    /// Returns the best interface of the running kernel. The first call finds it by trying. Later
    /// calls return the same result.
    ///
    /// # Errors
    /// [`Error::Io`] if the attempt fails for another reason, such as a lack of descriptors.
    pub fn detect() -> Result<Self> {
        static DETECTED: OnceLock<MountApi> = OnceLock::new();
        if let Some(api) = DETECTED.get() {
            return Ok(*api);
        }
        let api = detect().map_err(Error::io("ask the kernel for", "overlay"))?;
        log::debug!("overlays are mounted with {api:?}");
        Ok(*DETECTED.get_or_init(|| api))
    }
}

/// Finds out whether the kernel has `lowerdir+`. Before Linux 6.5, overlayfs accepts every
/// parameter and checks it later; 6.5 and 6.6 refuse this one. The kernel would log the refusal of
/// a bad lower, so the attempt uses `/`, which is always a valid one.
fn detect() -> io::Result<MountApi> {
    let context = match fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC) {
        Ok(context) => context,
        // The system call or the file system is missing or not permitted: the error of mount(2)
        // will say more.
        Err(Errno::NOSYS | Errno::PERM | Errno::NODEV) => return Ok(MountApi::Mount2),
        Err(error) => return Err(error.into()),
    };
    match (fsconfig_set_flag(&context, "no_such_parameter"), fsconfig_set_string(&context, "lowerdir+", "/")) {
        (Err(Errno::INVAL), Ok(())) => Ok(MountApi::Fsconfig),
        (Ok(()), _) | (_, Ok(()) | Err(Errno::INVAL)) => Ok(MountApi::Mount2),
        (_, Err(error)) => Err(error.into()),
    }
}

/// Makes a mount that is not attached to a directory yet. Names the directories by their paths. A
/// path that is too long for a string value is replaced by its descriptor. So is a path with a
/// backslash, which the kernel takes for an escape in `upperdir` and `workdir` but not in
/// `lowerdir+`.
pub(super) fn detached_paths(request: &Request) -> Result<OwnedFd> {
    detached(request, |path, write| {
        let name = path.as_os_str().as_bytes();
        if name.len() <= MAX_VALUE_BYTES && !name.contains(&b'\\') {
            return write(name);
        }
        let pinned = pin(path)?;
        write(format!("{}/{}", DESCRIPTORS, pinned.as_raw_fd()).as_bytes())
    })
}

/// Makes a mount that is not attached to a directory yet. Names each directory `.` from inside it.
/// The caller restores the working directory.
pub(super) fn detached_from_within(request: &Request) -> Result<OwnedFd> {
    detached(request, |path, write| {
        rustix::process::chdir(path).map_err(Error::io("open the directory", path))?;
        write(b".")
    })
}

/// Attaches a mount to the target of its request.
pub(super) fn attach(mount: &OwnedFd, request: &Request) -> Result<()> {
    move_mount(mount, "", CWD, &request.target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(|error| {
        let call = format!("move_mount({})", quote(request.target.as_os_str().as_bytes()));
        request.failed(call, String::new(), error)
    })
}

/// Passes a name for a directory to the kernel, which from then on holds the directory itself.
type Name = fn(&Path, &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>;

fn detached(request: &Request, name: Name) -> Result<OwnedFd> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|error| request.failed("fsopen(\"overlay\")".into(), String::new(), error))?;
    // A message shows the path even if the kernel gets another name for it.
    let set_shown = |key: &str, value: &[u8], shown: &[u8]| {
        fsconfig_set_string(&context, key, value).map_err(|error| {
            let call = format!("fsconfig({key}, {})", quote(shown));
            request.failed(call, message(context.as_fd()), error)
        })
    };
    let set = |key: &str, value: &[u8]| set_shown(key, value, value);
    let directory =
        |key: &str, path: &Path| name(path, &mut |value| set_shown(key, value, path.as_os_str().as_bytes()));
    set("source", b"overlay")?;
    for lower in &request.lowers {
        directory("lowerdir+", lower)?;
    }
    if let Some(Writable { upper, work }) = &request.writable {
        directory("upperdir", upper)?;
        directory("workdir", work)?;
        match fsconfig_set_flag(&context, "volatile") {
            Ok(()) => {}
            Err(Errno::INVAL) => log::debug!("this kernel has no volatile overlays: the unmount will flush the upper"),
            Err(error) => return Err(request.failed("fsconfig(volatile)".into(), message(context.as_fd()), error)),
        }
    }
    if request.xattrs == OverlayXattrs::User {
        fsconfig_set_flag(&context, "userxattr")
            .map_err(|error| request.failed("fsconfig(userxattr)".into(), message(context.as_fd()), error))?;
    }
    for (key, value) in OPTIONS {
        set(key, value.as_bytes())?;
    }
    fsconfig_create(&context)
        .map_err(|error| request.failed("fsconfig(create)".into(), message(context.as_fd()), error))?;
    let attributes = match request.devices {
        DeviceNodes::Usable => MountAttrFlags::empty(),
        DeviceNodes::Inert => MountAttrFlags::MOUNT_ATTR_NODEV,
    };
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(|error| request.failed("fsmount()".into(), message(context.as_fd()), error))
}

/// Reads the errors and warnings that the kernel has logged in the context, oldest first.
fn message(context: BorrowedFd<'_>) -> String {
    let mut lines = Vec::new();
    let mut buffer = [0; 1024];
    // Each read returns one line, such as "e overlay: …". After the last, it fails with ENODATA.
    while let Ok(length @ 1..) = rustix::io::read(context, &mut buffer) {
        let line = String::from_utf8_lossy(&buffer[..length]);
        lines.push(line.trim().trim_start_matches("e ").trim_start_matches("w ").to_string());
    }
    lines.join("; ")
}
