use std::path::{Path, PathBuf};

use oci_spec::runtime as oci;

use super::error::TemplateError;

/// Something from outside that the container sees at one of its paths.
///
/// Build one with [`Mount::bind`] or [`Mount::tmpfs`], or parse it from the text of a command line
/// (see [its `FromStr`](#impl-FromStr-for-Mount)). It is checked when the template is built; whether a source exists is
/// for the runtime to find out, as it may be made only just before the run.
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
    // Only a tmpfs can have these two; asking a bind mount for them is refused by `validate`, not ignored.
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

/// The mode that `/tmp` has, and Docker's for a tmpfs.
const TMPFS_MODE: u32 = 0o1777;

impl Mount {
    /// The file or directory `source` of the host at `destination`, with the mounts below it.
    ///
    /// Set-user-ID bits and device nodes of the source itself have no effect there (`nosuid`, `nodev`); mounts below it
    /// keep the options that they have on the host (`rbind`). What is mounted on one side later does not show on the other
    /// (`rprivate`).
    pub fn bind(source: impl Into<PathBuf>, destination: impl Into<PathBuf>) -> Mount {
        Mount::new(Content::Bind(source.into()), destination.into())
    }

    /// An empty file system in memory at `destination`, writable by everyone, gone after the run (`nosuid`, `nodev`).
    ///
    /// What is written there counts against the container's memory limit. Without [`size_bytes`](Self::size_bytes) it
    /// holds up to half of the machine's memory, see [`tmpfs(5)`].
    ///
    /// [`tmpfs(5)`]: https://man7.org/linux/man-pages/man5/tmpfs.5.html
    pub fn tmpfs(destination: impl Into<PathBuf>) -> Mount {
        Mount::new(Content::Tmpfs, destination.into())
    }

    fn new(content: Content, destination: PathBuf) -> Mount {
        Mount { destination, content, access: Access::ReadWrite, size_bytes: None, mode: None }
    }

    /// Nothing below the destination can be written to.
    ///
    /// For a bind mount that includes the mounts below its source (`rro`, Linux 5.12 and later): a plain `ro` would leave
    /// those writable. A run leaves `rro` out where the source is not a directory.
    #[must_use]
    pub fn read_only(mut self) -> Mount {
        self.access = Access::ReadOnly;
        self
    }

    /// The most that a tmpfs can hold, in bytes; the kernel rounds up to whole pages.
    #[must_use]
    pub fn size_bytes(mut self, size_bytes: u64) -> Mount {
        self.size_bytes = Some(size_bytes);
        self
    }

    /// The permissions of a tmpfs's root, by default `0o1777`.
    ///
    /// runc before 1.1.8 takes those of the directory that it covers instead, if the root file system has one there.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Mount {
        self.mode = Some(mode);
        self
    }

    /// Where it appears in the container.
    pub fn destination(&self) -> &Path {
        &self.destination
    }

    /// What it shows of the host, for a bind mount.
    pub fn source(&self) -> Option<&Path> {
        match &self.content {
            Content::Bind(source) => Some(source),
            Content::Tmpfs => None,
        }
    }

    /// The same with a relative source of a bind mount taken as one in `dir`, an absolute path: for command lines.
    #[must_use]
    pub fn source_in(mut self, dir: &Path) -> Mount {
        if let Content::Bind(source) = &mut self.content {
            *source = dir.join(&*source);
        }
        self
    }

    /// Refuses the settings that only the other kind has. Paths are checked with those of the whole configuration.
    pub(super) fn validate(&self) -> Result<(), TemplateError> {
        let refuse = |setting: String, remedy| {
            Err(TemplateError::MountSetting { destination: self.destination.clone(), setting, remedy })
        };
        match (&self.content, self.size_bytes, self.mode) {
            (Content::Bind(_), Some(size), _) => refuse(format!("the size {size}"), "only a tmpfs has a size"),
            (Content::Bind(_), _, Some(mode)) => refuse(
                format!("the mode {mode:o}"),
                "a bind mount shows the mode of its source, only a tmpfs has its own",
            ),
            // tmpfs(5): "If the size is 0, no limit".
            (Content::Tmpfs, Some(0), _) => {
                refuse("the size 0".into(), "that is no limit to tmpfs; give one of a byte or more")
            }
            (Content::Tmpfs, _, Some(mode)) if mode > 0o7777 => {
                refuse(format!("the mode {mode:o}"), "permissions are at most 7777 (octal)")
            }
            _ => Ok(()),
        }
    }

    /// The entry of `mounts` in `config.json`.
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
            // `ro` for the runtimes that do not know `rro` (runc before 1.1): they pass it on to the kernel, which does
            // not look at the data of a bind mount.
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
