//! A mount that a caller gives to the builder. `mount_spec` reads one from text; `mount_entry` is a
//! mount as a configuration states it.

use std::path::{Path, PathBuf};

use oci_spec::runtime as oci;

use super::error::TemplateError;

/// A bind mount or a tmpfs in the container.
///
/// Create one with [`Mount::bind`] or [`Mount::tmpfs`], or parse it from the text of a command line
/// (see [its `FromStr`](#impl-FromStr-for-Mount)). [`build`](crate::TemplateBuilder::build) checks
/// it. It does not check that a source exists, because the caller may create the source just before
/// the run.
///
/// ```
/// use container::Mount;
///
/// let cache = Mount::bind("/var/cache/ccache", "/ccache");
/// let keys = Mount::bind("/etc/keys", "/run/keys").read_only();
/// let scratch = Mount::tmpfs("/build").size_bytes(64 << 20);
/// assert_eq!("type=tmpfs,target=/build,size=64m".parse::<Mount>()?, scratch);
/// # Ok::<(), container::TemplateError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    destination: PathBuf,
    content: Content,
    access: Access,
    // Only a tmpfs can have these two. For a bind mount, `validate` refuses them.
    size_bytes: Option<u64>,
    mode: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Content {
    Bind(PathBuf),
    Tmpfs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    ReadWrite,
    ReadOnly,
}

/// The mode of `/tmp`, and of a tmpfs under Docker.
const TMPFS_MODE: u32 = 0o1777;

impl Mount {
    /// Creates a bind mount of the host's file or directory `source` on `destination`, including
    /// the mounts below `source`.
    ///
    /// Set-user-ID bits and device nodes of the source itself have no effect there (`nosuid`,
    /// `nodev`). Mounts below it keep the options that they have on the host (`rbind`). Later
    /// mounts on one side do not appear on the other (`rprivate`).
    pub fn bind(source: impl Into<PathBuf>, destination: impl Into<PathBuf>) -> Mount {
        Mount::new(Content::Bind(source.into()), destination.into())
    }

    /// Creates a mount of an empty file system in memory on `destination` (`nosuid`, `nodev`).
    /// Every user can write to it, and its contents are lost after the run.
    ///
    /// Its contents count against the container's memory limit. Without
    /// [`size_bytes`](Self::size_bytes), it holds up to half of the machine's memory: see
    /// [`tmpfs(5)`].
    ///
    /// [`tmpfs(5)`]: https://man7.org/linux/man-pages/man5/tmpfs.5.html
    pub fn tmpfs(destination: impl Into<PathBuf>) -> Mount {
        Mount::new(Content::Tmpfs, destination.into())
    }

    fn new(content: Content, destination: PathBuf) -> Mount {
        Mount { destination, content, access: Access::ReadWrite, size_bytes: None, mode: None }
    }

    /// Makes everything below the destination read-only.
    ///
    /// For a bind mount, that includes the mounts below its source (`rro`, since Linux 5.12). A
    /// plain `ro` would leave those writable. A run omits `rro` if the source is not a directory.
    #[must_use]
    pub fn read_only(mut self) -> Mount {
        self.access = Access::ReadOnly;
        self
    }

    /// Sets how much a tmpfs can hold, in bytes. The kernel rounds up to whole pages.
    #[must_use]
    pub fn size_bytes(mut self, size_bytes: u64) -> Mount {
        self.size_bytes = Some(size_bytes);
        self
    }

    /// Sets the permissions of the root of a tmpfs. The default is `0o1777`.
    ///
    /// If the root file system has a directory there, runc before 1.1.8 uses the permissions of
    /// that directory instead.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Mount {
        self.mode = Some(mode);
        self
    }

    /// Returns the path in the container.
    pub fn destination(&self) -> &Path {
        &self.destination
    }

    /// Returns the path on the host, for a bind mount.
    pub fn source(&self) -> Option<&Path> {
        match &self.content {
            Content::Bind(source) => Some(source),
            Content::Tmpfs => None,
        }
    }

    /// Resolves a relative source of a bind mount against `dir`, an absolute path. Command lines
    /// need this.
    #[must_use]
    pub fn source_in(mut self, dir: &Path) -> Mount {
        if let Content::Bind(source) = &mut self.content {
            *source = dir.join(&*source);
        }
        self
    }

    /// Refuses settings that only the other kind has. `validate` checks the paths.
    pub(super) fn validate(&self) -> Result<(), TemplateError> {
        let refuse = |setting: String, remedy| {
            Err(TemplateError::MountSetting { destination: self.destination.clone(), setting, remedy })
        };
        match (&self.content, self.size_bytes, self.mode) {
            (Content::Bind(_), Some(size), _) => refuse(format!("the size {size}"), "only a tmpfs has a size"),
            (Content::Bind(_), _, Some(mode)) => refuse(
                format!("the mode {mode:o}"),
                "a bind mount has the mode of its source; only a tmpfs has its own",
            ),
            // tmpfs(5): "If the size is 0, no limit".
            (Content::Tmpfs, Some(0), _) => {
                refuse("the size 0".into(), "to tmpfs, that means no limit; give at least one byte")
            }
            (Content::Tmpfs, _, Some(mode)) if mode > 0o7777 => {
                refuse(format!("the mode {mode:o}"), "permissions are at most 7777 (octal)")
            }
            _ => Ok(()),
        }
    }

    /// Returns the entry of `mounts` in `config.json`.
    pub(super) fn to_spec(&self) -> oci::Mount {
        let mut options = vec!["nosuid".to_owned(), "nodev".to_owned()];
        let (kind, source) = match &self.content {
            Content::Bind(source) => {
                options.extend(["rbind".to_owned(), "rprivate".to_owned()]);
                ("bind", source.clone())
            }
            Content::Tmpfs => {
                options.push(format!("mode={:o}", self.mode.unwrap_or(TMPFS_MODE)));
                options.extend(self.size_bytes.map(|bytes| format!("size={bytes}")));
                ("tmpfs", PathBuf::from("tmpfs"))
            }
        };
        match (self.access, &self.content) {
            (Access::ReadWrite, _) => {}
            (Access::ReadOnly, Content::Tmpfs) => options.push("ro".to_owned()),
            // `ro` is for runtimes that do not know `rro` (runc before 1.1). They pass `rro` on to
            // the kernel, which ignores the data of a bind mount.
            (Access::ReadOnly, Content::Bind(_)) => options.extend(["ro".to_owned(), "rro".to_owned()]),
        }
        let mut mount = oci::Mount::default();
        mount
            .set_destination(self.destination.clone())
            .set_typ(Some(kind.to_owned()))
            .set_source(Some(source))
            .set_options(Some(options));
        mount
    }
}
