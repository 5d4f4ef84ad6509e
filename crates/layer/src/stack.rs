//! Many layers seen as one tree, by the rules of overlayfs and without a mount. `merge` makes one
//! directory of many layers; `store` decides where layers are kept.

pub(crate) mod changes;
pub(crate) mod conflicts;
pub(crate) mod lookup;
pub(crate) mod overlayfs;
pub(crate) mod plan;
pub(crate) mod resolve;
pub(crate) mod sources;
pub(crate) mod view;

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat, readlinkat};
use rustix::io::Errno;
use serde::Serialize;

use self::overlayfs::{EntryKind, XattrNamespace};
use self::resolve::{End, LastLink, Resolved, Trace, follow, resolve};
use self::view::View;
use crate::error::{Error, Result};
use crate::json_path;

/// The tree that the kernel shows for a stack of layers, read without a mount and without
/// privilege.
///
/// A path is absolute in the stack, or relative to its root. Its symbolic links lead through the
/// stack, as for a command whose root file system the stack is: an absolute link starts at the root
/// of the stack, and no link and no `..` leads out of it. At most 40 links are followed for one
/// path. The methods whose names end in `_no_follow` return a link that is the last name of the
/// path, but follow links before it. A slash at the end of a path follows the link.
///
/// The content of the layers may be hostile, and may change concurrently: every step is made from
/// an open directory, with openat2(2), and stays in one layer. A mount point in a layer is refused,
/// because an overlay would not show the mount. No device, FIFO or socket is ever opened.
///
/// A stack needs only the permission to read the layers, and a mounted `/proc`. In trees that were
/// not captured, only a process with CAP_SYS_ADMIN sees which directories are opaque: see
/// [`XattrNamespace::Trusted`].
///
/// In one respect a stack differs from the kernel. [`read_dir`](Self::read_dir) does not list the
/// name of a whiteout. The kernel lists it in some directories, although it cannot be looked up
/// there.
///
/// ```
/// use std::io::Read;
///
/// # let dir = tempfile::tempdir()?;
/// # for (layer, page) in [("zlib", "deflate.html"), ("base", "index.html")] {
/// #     std::fs::create_dir_all(dir.path().join(layer).join("fs/usr/share/doc"))?;
/// #     std::fs::write(dir.path().join(layer).join("fs/usr/share/doc").join(page), layer)?;
/// # }
/// # std::os::unix::fs::symlink("/usr/share/doc", dir.path().join("base/fs/doc"))?;
/// let trees = [dir.path().join("zlib/fs"), dir.path().join("base/fs")]; // topmost first
/// let stack = layer::Stack::new(&trees, layer::XattrNamespace::Trusted)?;
/// let pages = stack.read_dir("/usr/share/doc")?;
/// let listed: Vec<_> = pages.iter().map(|page| (page.name().to_str(), page.layer)).collect();
/// assert_eq!(listed, [(Some("deflate.html"), 0), (Some("index.html"), 1)]);
///
/// let mut page = String::new();
/// stack.open("doc/index.html")?.read_to_string(&mut page)?;
/// assert_eq!(page, "base");
/// assert_eq!(stack.resolve("doc/index.html")?.path, std::path::Path::new("usr/share/doc/index.html"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// All methods that take a path return these:
/// - [`Error::Io`] with the path in the stack and the kernel's error, if the stack shows nothing at
///   the path. Its kind is [`NotFound`](std::io::ErrorKind::NotFound) for a missing entry or a
///   dangling link, [`NotADirectory`](std::io::ErrorKind::NotADirectory) for a path through a file,
///   and `ELOOP` after more than 40 links. A path of more than 4,095 bytes is `ENAMETOOLONG`, and
///   so is a link to a directory whose own path is longer than that.
/// - [`Error::Io`] with the path in a layer, if an entry there cannot be read.
/// - [`Error::Unmergeable`] for a directory with the attribute `redirect`, or a file with
///   `metacopy`. Then the layers alone do not determine what the stack shows.
/// - [`Error::MountInside`] for a mount point in a layer.
#[derive(Debug)]
pub struct Stack {
    view: View,
}

/// An entry of a [`Stack`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct StackEntry {
    /// The path below the root of the stack, without links on the way. It is empty for the root
    /// itself. In JSON it has a leading slash.
    #[serde(serialize_with = "json_path::serialize_absolute")]
    pub path: PathBuf,
    /// The kind of the entry. It is never a whiteout. `has` in JSON.
    #[serde(rename = "has")]
    pub kind: EntryKind,
    /// The position of the layer that supplies the entry: 0 is the topmost. A directory is merged
    /// of the directories of several layers; this is the topmost, which supplies its attributes.
    pub layer: usize,
}

impl StackEntry {
    /// Returns the last name of the path. It is empty for the root of the stack.
    pub fn name(&self) -> &OsStr {
        self.path.file_name().unwrap_or_default()
    }
}

impl Stack {
    /// Opens a stack of `trees`, **topmost first**. The trees are those of the layers
    /// (`<layer>/fs`) and of the base. Opens only their roots. A stack of no trees shows nothing,
    /// not even a root.
    ///
    /// The stack remembers which layers have a directory on the way of a path, so that the next
    /// path through it costs less. Layers do not change, so that is right for as long as they
    /// exist. It remembers at most 10,000 directories, which have at most 1,000,000 layers in all
    /// (8 MB, and the paths), and then begins again.
    ///
    /// Each tree takes one descriptor, but all trees together at most a quarter of the number that
    /// the process may have.
    ///
    /// # Errors
    /// [`Error::NotADirectory`] if a tree is not a directory (a symbolic link is not one),
    /// [`Error::Io`] if its root cannot be opened.
    pub fn new(trees: &[impl AsRef<Path>], xattrs: XattrNamespace) -> Result<Self> {
        Ok(Self { view: View::new(trees)?.xattrs(xattrs).remembering() })
    }

    /// Lists nothing of a directory that this process may not list or search, and shows nothing of
    /// its name in the layers below. Entries of a directory that can be searched are found by name.
    /// Without this, such a directory is an error.
    pub fn hide_unreadable(self) -> Self {
        Self { view: self.view.hide_unreadable() }
    }

    /// Returns the entries of the directory at `path`, in the order of their names.
    ///
    /// # Errors
    /// As [above](Self#errors). A path that is not a directory is
    /// [`NotADirectory`](std::io::ErrorKind::NotADirectory).
    pub fn read_dir(&self, path: impl AsRef<Path>) -> Result<Vec<StackEntry>> {
        match self.find(path.as_ref(), LastLink::Followed)? {
            Resolved::Directory(directory) => {
                let names = self.view.names(&directory)?.into_iter();
                let entry =
                    |(name, (layer, kind))| StackEntry { path: directory.path().join::<OsString>(name), kind, layer };
                Ok(names.map(entry).collect())
            }
            Resolved::File { .. } => Err(Error::io("list the stack's", path.as_ref())(Errno::NOTDIR)),
        }
    }

    /// Opens the regular file at `path` for reading.
    ///
    /// # Errors
    /// As [above](Self#errors). Anything but a regular file is not opened: a directory is
    /// [`IsADirectory`](std::io::ErrorKind::IsADirectory); a device, a FIFO or a socket is `ENXIO`.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<File> {
        self.open_file(path.as_ref(), LastLink::Followed)
    }

    /// Opens the regular file at `path` for reading, as [`open`](Self::open) does. A link is
    /// `ELOOP`.
    ///
    /// # Errors
    /// As `open`.
    pub fn open_no_follow(&self, path: impl AsRef<Path>) -> Result<File> {
        self.open_file(path.as_ref(), LastLink::NotFollowed)
    }

    /// Returns the attributes of the entry at `path`.
    ///
    /// They are those of the entry in its layer. An overlay can show other device and inode
    /// numbers, and another number of links of a directory.
    ///
    /// # Errors
    /// As [above](Self#errors).
    pub fn metadata(&self, path: impl AsRef<Path>) -> Result<Metadata> {
        self.look_at(path.as_ref(), LastLink::Followed)
    }

    /// Returns the attributes of the entry at `path`, or of the link there.
    ///
    /// # Errors
    /// As [above](Self#errors).
    pub fn metadata_no_follow(&self, path: impl AsRef<Path>) -> Result<Metadata> {
        self.look_at(path.as_ref(), LastLink::NotFollowed)
    }

    /// Finds the entry at `path`: where its links lead, and which layer supplies it.
    /// [`lookup`](crate::lookup()) of the resulting path also reports the other layers that have
    /// it.
    ///
    /// # Errors
    /// As [above](Self#errors).
    pub fn resolve(&self, path: impl AsRef<Path>) -> Result<StackEntry> {
        self.entry(path.as_ref(), LastLink::Followed)
    }

    /// Finds the entry at `path`, or the link there.
    ///
    /// # Errors
    /// As [above](Self#errors).
    pub fn resolve_no_follow(&self, path: impl AsRef<Path>) -> Result<StackEntry> {
        self.entry(path.as_ref(), LastLink::NotFollowed)
    }

    /// Follows the symbolic links in `path`. Returns the links, and the path to which they lead.
    /// Pass that path to [`lookup`](crate::lookup()) to find the layers that have an entry there,
    /// even if the stack shows nothing at the path.
    ///
    /// # Errors
    /// As [above](Self#errors), but it is not an error if the stack shows nothing at the path.
    pub fn trace(&self, path: impl AsRef<Path>) -> Result<Trace> {
        let (links, end) = follow(&self.view, path.as_ref(), LastLink::Followed)?;
        let path = match end {
            End::Found(Resolved::File { path, .. }) | End::Missing(path, _) => path,
            End::Found(Resolved::Directory(directory)) => directory.path().into(),
        };
        Ok(Trace { links, path })
    }

    /// Returns the target of the symbolic link at `path`.
    ///
    /// # Errors
    /// As [above](Self#errors). Anything but a link is
    /// [`InvalidInput`](std::io::ErrorKind::InvalidInput).
    pub fn read_link(&self, path: impl AsRef<Path>) -> Result<PathBuf> {
        let fail = Error::io("read the stack's link", path.as_ref());
        match self.find(path.as_ref(), LastLink::NotFollowed)? {
            Resolved::File { kind: EntryKind::Symlink, file, .. } => {
                let target = readlinkat(&file, c"", Vec::new()).map_err(fail)?;
                Ok(OsString::from_vec(target.into_bytes()).into())
            }
            _ => Err(fail(Errno::INVAL)),
        }
    }

    fn find(&self, path: &Path, last: LastLink) -> Result<Resolved> {
        resolve(&self.view, path, last)
    }

    fn entry(&self, path: &Path, last: LastLink) -> Result<StackEntry> {
        match self.find(path, last)? {
            Resolved::File { path, tree, kind, .. } => Ok(StackEntry { path, kind, layer: tree }),
            Resolved::Directory(directory) => {
                let layer = directory.topmost().ok_or_else(|| Error::io("find the stack's", path)(Errno::NOENT))?;
                Ok(StackEntry { path: directory.path().into(), kind: EntryKind::Directory, layer })
            }
        }
    }

    fn open_file(&self, path: &Path, last: LastLink) -> Result<File> {
        let fail = Error::io("open the stack's", path);
        match self.find(path, last)? {
            Resolved::File { kind: EntryKind::File, file, .. } => reopen(&file).map_err(fail),
            Resolved::File { kind: EntryKind::Symlink, .. } => Err(fail(Errno::LOOP)),
            Resolved::File { .. } => Err(fail(Errno::NXIO)),
            Resolved::Directory(_) => Err(fail(Errno::ISDIR)),
        }
    }

    fn look_at(&self, path: &Path, last: LastLink) -> Result<Metadata> {
        let file = match self.find(path, last)? {
            Resolved::File { file, .. } => file,
            Resolved::Directory(directory) => {
                let tree = directory.topmost().ok_or_else(|| Error::io("find the stack's", path)(Errno::NOENT))?;
                self.view.open(tree, &directory)?
            }
        };
        File::from(file).metadata().map_err(Error::io("look at the stack's", path))
    }
}

/// Opens for reading what `pinned` refers to: a regular file that was opened without access to its
/// content. Only such a descriptor shows what a file is before the file is opened.
fn reopen(pinned: &OwnedFd) -> rustix::io::Result<File> {
    let path = format!("/proc/self/fd/{}", pinned.as_raw_fd());
    openat(CWD, path, OFlags::RDONLY | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).map(File::from)
}

#[cfg(test)]
mod tests;
