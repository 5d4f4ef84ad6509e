//! The choices of an overlay mount: system calls, names, device nodes and xattrs. `overlay` applies
//! them.

use crate::mount_namespace::is_privileged;
use crate::user_namespace::UserNamespace;

/// The system calls that mount an overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MountApi {
    /// [`fsopen(2)`](https://man7.org/linux/man-pages/man2/fsopen.2.html) and `fsconfig(2)` with
    /// `lowerdir+`, since Linux 6.7: one call per lower directory, so the length of all names
    /// together has no limit.
    Fsconfig,
    /// [`mount(2)`](https://man7.org/linux/man-pages/man2/mount.2.html): one page holds all
    /// options.
    Mount2,
}

impl MountApi {
    /// Returns whether a kernel whose [best](Self::detect) interface is this one also has `other`.
    pub fn includes(self, other: MountApi) -> bool {
        self == MountApi::Fsconfig || other == MountApi::Mount2
    }

    /// Returns the most bytes that all options together may have, or `None` without a limit.
    pub fn max_option_bytes(self) -> Option<usize> {
        match self {
            MountApi::Fsconfig => None,
            MountApi::Mount2 => Some(MAX_OPTION_BYTES),
        }
    }
}

/// The most bytes of options that mount(2) accepts: a page without the final NUL. The kernel
/// silently truncates a longer string (`copy_mount_options` in `fs/namespace.c`).
pub const MAX_OPTION_BYTES: usize = 4095;

/// The names by which the kernel gets the lower directories, and which the mount table shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LowerNames {
    /// Their paths.
    Paths,
    /// The shortest possible names, however long the paths are. With [`MountApi::Fsconfig`], each
    /// lower is named `.` from inside the directory. With [`MountApi::Mount2`], which names all
    /// lowers in one call, each lower is named by the number of an open descriptor. Short names
    /// keep the mount table short, which runtimes read repeatedly. The names mean nothing after the
    /// mount.
    Short,
}

/// Whether device nodes in the overlay can be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum DeviceNodes {
    /// Device nodes work as on any file system.
    #[default]
    Usable,
    /// Device nodes are visible and can be created, but not opened (`nodev`).
    Inert,
}

/// The namespace of the xattrs in which overlayfs records opaque directories and the like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OverlayXattrs {
    /// `trusted.overlay.`, which only root of the machine's first user namespace can write.
    Trusted,
    /// `user.overlay.`, for layers that an unprivileged mount has created (`userxattr`, since Linux
    /// 5.11). The kernel then ignores `trusted.overlay.`.
    User,
}

impl OverlayXattrs {
    /// Returns the namespace that this process can write: `Trusted` with CAP_SYS_ADMIN outside of a
    /// [user namespace](UserNamespace), and `User` otherwise. In a user namespace, the kernel
    /// accepts an overlay with `trusted.` too, and then fails to create opaque directories.
    pub fn of_process() -> Self {
        if UserNamespace::is_here() || !is_privileged() { Self::User } else { Self::Trusted }
    }
}
