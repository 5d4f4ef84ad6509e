//! Makes layers from a plain description, and mounts the kernel's own view of a stack of them.
//! `tree` compares the views.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use container::UserNamespace;
use layer::Merge;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags, lsetxattr, makedev, mknodat, openat,
    utimensat,
};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, mount_change,
};

use crate::tree::through_proc;

/// A major number that no driver has, so no test opens a real device.
/// `Documentation/admin-guide/devices.txt` reserves 240-254 for local use.
const LOCAL_MAJOR: u32 = 240;

/// Metadata that any file has. The default is owner root, mode 0755, a time in the year 2001.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits, including setuid, setgid and sticky. Ignored for a symbolic link.
    pub mode: u32,
    /// User and group id.
    pub owner: (u32, u32),
    /// Seconds and nanoseconds.
    pub modified: (i64, i64),
    /// Names and values. [`acl`] makes the value for an ACL.
    pub xattrs: Vec<(String, Vec<u8>)>,
}

impl Default for Attributes {
    fn default() -> Self {
        Self { mode: 0o755, owner: (0, 0), modified: (1_000_000_000, 123_456_789), xattrs: Vec::new() }
    }
}

/// A directory of a layer, or the layer itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dir {
    /// The metadata of the directory.
    pub attributes: Attributes,
    /// Whether the directory hides the directories of this name in the layers below.
    pub opaque: bool,
    /// The entries of the directory.
    pub items: BTreeMap<OsString, Item>,
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A directory.
    Dir(Dir),
    /// A regular file with this content.
    File(Attributes, Vec<u8>),
    /// One of the names of a file with several names. The number identifies the file within the
    /// layer.
    Name(u8),
    /// A regular file of this size that is almost entirely a hole.
    Sparse(Attributes, u64),
    /// A symbolic link to this target.
    Symlink(Attributes, OsString),
    /// A FIFO, a socket, a character device or a block device. The number is the device's minor
    /// number.
    Special(Attributes, FileType, u32),
    /// A whiteout: the character device 0:0 that records a deletion.
    Whiteout,
    /// A whiteout in its other form: an empty regular file with an xattr, in a directory that is
    /// marked for it.
    XattrWhiteout,
}

impl Dir {
    /// An empty directory.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the mode.
    pub fn mode(mut self, mode: u32) -> Self {
        self.attributes.mode = mode;
        self
    }

    /// Adds an xattr.
    pub fn xattr(mut self, name: &str, value: &[u8]) -> Self {
        self.attributes.xattrs.push((name.into(), value.into()));
        self
    }

    /// Makes the directory opaque.
    pub fn opaque(mut self) -> Self {
        self.opaque = true;
        self
    }

    /// Adds an entry.
    pub fn with(mut self, name: impl AsRef<OsStr>, item: impl Into<Item>) -> Self {
        self.items.insert(name.as_ref().into(), item.into());
        self
    }

    /// Adds a regular file.
    pub fn file(self, name: impl AsRef<OsStr>, content: &str) -> Self {
        self.with(name, Item::file(content))
    }

    /// Adds a whiteout.
    pub fn whiteout(self, name: impl AsRef<OsStr>) -> Self {
        self.with(name, Item::Whiteout)
    }

    /// Makes the directory at `path`, which must not exist.
    pub fn make(&self, path: &Path) -> Result<()> {
        fs::create_dir(path).with_context(|| format!("cannot make {}", path.display()))?;
        self.fill(path, &mut BTreeMap::new()).with_context(|| format!("cannot fill {}", path.display()))
    }

    fn fill(&self, path: &Path, names: &mut BTreeMap<u8, PathBuf>) -> Result<()> {
        for (name, item) in &self.items {
            item.make(&path.join(name), names).with_context(|| format!("cannot make {}", path.join(name).display()))?;
        }
        self.attributes.apply(path)?;
        // The marks are set last, so that the metadata does not replace them. They change no time.
        if self.opaque {
            set_xattr(path, "trusted.overlay.opaque", b"y")?;
        } else if self.items.values().any(|item| *item == Item::XattrWhiteout) {
            set_xattr(path, "trusted.overlay.opaque", b"x")?;
        }
        Ok(())
    }
}

impl Item {
    /// A regular file with the default attributes.
    pub fn file(content: &str) -> Self {
        Item::File(Attributes { mode: 0o644, ..Attributes::default() }, content.into())
    }

    /// A symbolic link with the default attributes.
    pub fn symlink(target: &str) -> Self {
        Item::Symlink(Attributes::default(), target.into())
    }

    /// A special file with the default attributes.
    pub fn special(kind: FileType, minor: u32) -> Self {
        Item::Special(Attributes::default(), kind, minor)
    }

    fn make(&self, path: &Path, names: &mut BTreeMap<u8, PathBuf>) -> Result<()> {
        match self {
            Item::Dir(dir) => {
                fs::create_dir(path)?;
                dir.fill(path, names)
            }
            Item::File(attributes, content) => {
                fs::write(path, content)?;
                attributes.apply(path)
            }
            Item::Name(number) => match names.get(number) {
                Some(first) => Ok(fs::hard_link(first, path)?),
                None => {
                    names.insert(*number, path.into());
                    Item::file(&format!("file number {number}")).make(path, &mut BTreeMap::new())
                }
            },
            Item::Sparse(attributes, size) => {
                let file = fs::File::create_new(path)?;
                file.write_all_at(b"in the middle", size / 2)?;
                file.set_len(*size)?;
                attributes.apply(path)
            }
            Item::Symlink(attributes, target) => {
                symlink(target, path)?;
                attributes.apply(path)
            }
            Item::Special(attributes, kind, minor) => {
                let device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
                let number = if device { makedev(LOCAL_MAJOR, *minor) } else { 0 };
                mknodat(CWD, path, *kind, Mode::RUSR, number)?;
                attributes.apply(path)
            }
            Item::Whiteout => Ok(mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0)?),
            Item::XattrWhiteout => {
                fs::write(path, "")?;
                set_xattr(path, "trusted.overlay.whiteout", b"")
            }
        }
    }
}

impl From<Dir> for Item {
    fn from(dir: Dir) -> Self {
        Item::Dir(dir)
    }
}

impl Attributes {
    /// Sets the metadata of a file. This must be the last change of the file.
    pub fn apply(&self, path: &Path) -> Result<()> {
        let (uid, gid) = owner_here(self.owner);
        lchown(path, Some(uid), Some(gid))?;
        for (name, value) in self.xattrs.iter().filter(|(name, _)| may_set(name)) {
            set_xattr(path, name, value)?;
        }
        let metadata = fs::symlink_metadata(path)?;
        // The mode of a file with an ACL is part of the ACL.
        let has_acl = self.xattrs.iter().any(|(name, _)| name == "system.posix_acl_access");
        if !metadata.is_symlink() && !has_acl && metadata.mode() & 0o7777 != self.mode {
            fs::set_permissions(path, fs::Permissions::from_mode(self.mode))?;
        }
        let time = Timespec { tv_sec: self.modified.0, tv_nsec: self.modified.1 };
        let times = Timestamps { last_access: time, last_modification: time };
        Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }
}

/// Sets an xattr of the file itself, not of the target of a symbolic link. In a user namespace, the
/// overlay xattrs are those of [`Flavour::User`].
pub fn set_xattr(path: &Path, name: &str, value: &[u8]) -> Result<()> {
    let name = match name.strip_prefix("trusted.overlay.") {
        Some(rest) if UserNamespace::is_here() => format!("user.overlay.{rest}"),
        _ => name.to_owned(),
    };
    lsetxattr(path, &*name, value, XattrFlags::empty())
        .with_context(|| format!("cannot set {name} of {}", path.display()))
}

/// Whether this process may set an xattr of this name. In a user namespace, the kernel allows
/// neither `trusted.` nor most of `security.`, and a name with `user.overlay.` would be an overlay
/// xattr.
pub fn may_set(name: &str) -> bool {
    let Some(namespace) = UserNamespace::current() else { return true };
    match name {
        "security.capability" => true,
        // The ACLs of the tests name the users 1000 and 1001.
        _ if name.starts_with("system.posix_acl") => namespace.uids().contains(1001),
        _ if name.starts_with("trusted.overlay.") || name.starts_with("user.overlay.overlay.") => true,
        _ => !["trusted.", "security.", "user.overlay."].iter().any(|prefix| name.starts_with(prefix)),
    }
}

/// Returns `owner`, or root for an owner without a number in this process's user namespace.
fn owner_here((uid, gid): (u32, u32)) -> (u32, u32) {
    match UserNamespace::current() {
        None => (uid, gid),
        Some(namespace) => {
            let known = |id, has: bool| if has { id } else { 0 };
            (known(uid, namespace.uids().contains(uid)), known(gid, namespace.gids().contains(gid)))
        }
    }
}

/// Returns a merge with the overlay xattrs that this process can write.
pub fn new_merge() -> Merge<'static> {
    Merge::new().xattrs(runner::xattrs_of_process())
}

/// Returns the value of `system.posix_acl_access` or `system.posix_acl_default` for an ACL that
/// gives user `uid` the permissions `bits`.
///
/// The format is `struct posix_acl_xattr_entry` in the kernel's
/// `include/uapi/linux/posix_acl_xattr.h`: tag, permissions, id.
pub fn acl(uid: u32, bits: u16) -> Vec<u8> {
    const NOBODY: u32 = u32::MAX;
    // owner, user, group, mask, others
    let entries = [(0x01, 7, NOBODY), (0x02, bits, uid), (0x04, 5, NOBODY), (0x10, 7, NOBODY), (0x20, 1, NOBODY)];
    let mut value = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend(u16::to_le_bytes(tag));
        value.extend(u16::to_le_bytes(permissions));
        value.extend(u32::to_le_bytes(id));
    }
    value
}

/// An overlay that only this process sees. It is attached to no directory and disappears when the
/// value is dropped.
#[derive(Debug)]
pub struct Mount {
    root: OwnedFd,
}

/// The overlay xattrs that the mount respects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// `trusted.overlay.*`.
    Trusted,
    /// `user.overlay.*`.
    User,
}

impl Flavour {
    /// Returns the flavour that this process can write.
    pub fn of_process() -> Self {
        if UserNamespace::is_here() { Self::User } else { Self::Trusted }
    }
}

impl Mount {
    /// Mounts `lowers` read-only, the first on top. Every caller gives at least two, which the
    /// kernel requires without an upper, so this adds none.
    pub fn read_only(lowers: &[impl AsRef<Path>]) -> Result<Self> {
        Self::new(lowers, None, Flavour::of_process())
    }

    /// Mounts `lowers` for writing. The upper is `<scratch>/upper`, which this creates.
    pub fn writable(lowers: &[impl AsRef<Path>], scratch: &Path) -> Result<Self> {
        Self::new(lowers, Some(scratch), Flavour::of_process())
    }

    /// Mounts `lowers`, read-only if `scratch` is `None`.
    pub fn new(lowers: &[impl AsRef<Path>], scratch: Option<&Path>, flavour: Flavour) -> Result<Self> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let configured = (|| -> Result<OwnedFd> {
            // These values replace the kernel's defaults, which depend on its configuration.
            for name in ["redirect_dir", "index", "metacopy", "xino"] {
                if flavour == Flavour::Trusted || name != "redirect_dir" {
                    let value = if name == "redirect_dir" { "nofollow" } else { "off" };
                    fsconfig_set_string(&context, name, value).with_context(|| format!("{name}={value}"))?;
                }
            }
            if flavour == Flavour::User {
                fsconfig_set_flag(&context, "userxattr")?;
            }
            // The lowers are passed by descriptor, because fsconfig(2) accepts no value longer than
            // 255 bytes.
            let mut held = Vec::new();
            let mut short = |path: &Path| -> Result<PathBuf> {
                let dir = openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
                let dir = dir.with_context(|| format!("cannot open {}", path.display()))?;
                let name = through_proc(&dir);
                held.push(dir);
                Ok(name)
            };
            for lower in lowers {
                fsconfig_set_string(&context, "lowerdir+", short(lower.as_ref())?).context("lowerdir+")?;
            }
            if let Some(scratch) = scratch {
                for name in ["upper", "work"] {
                    let path = scratch.join(name);
                    fs::create_dir_all(&path)?;
                    fsconfig_set_string(&context, format!("{name}dir"), short(&path)?)?;
                }
                fsconfig_set_flag(&context, "volatile")?;
            }
            fsconfig_create(&context).context("create")?;
            Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
        })();
        let root = configured.with_context(|| format!("cannot mount: {}", messages(&context)))?;
        Ok(Self { root })
    }

    /// Returns a path to the root of the mount, valid as long as `self` lives.
    pub fn path(&self) -> PathBuf {
        through_proc(&self.root)
    }
}

impl AsFd for Mount {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.root.as_fd()
    }
}

/// Mounts a tmpfs that only this process sees, like a [`Mount`]. It is a different file system from
/// that of the layers. An option without a value is a flag.
pub fn tmpfs(options: &[(&str, &str)]) -> Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (name, value) in options {
        match *value {
            "" => fsconfig_set_flag(&context, *name),
            value => fsconfig_set_string(&context, *name, value),
        }
        .with_context(|| format!("{name}={value}"))?;
    }
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}

/// Gives the calling thread a private mount namespace.
pub fn private_mounts() -> Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
    Ok(mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?)
}

/// Returns the kernel's own messages about a mount.
fn messages(context: &OwnedFd) -> String {
    let Ok(context) = context.try_clone() else { return String::new() };
    let mut context = fs::File::from(context);
    let mut lines = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(read) = context.read(&mut buffer) {
        lines.push(String::from_utf8_lossy(&buffer[..read]).trim().to_owned());
    }
    lines.join("; ")
}

/// Fails the test if it cannot run, so that it does not pass by not running.
///
/// # Panics
/// If the process is not root.
pub fn require_root() {
    assert!(rustix::process::geteuid().is_root(), "this test mounts overlays and makes device nodes: run it as root");
}
