//! The errors of this crate, and their messages for users. [`display`](crate::display)
//! escapes the paths in the messages.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::display::quoted;
use crate::stack::overlayfs::XattrNamespace;
use crate::store::hold::Holder;

/// An error about a layer on disk, with its path and a remedy.
///
/// A message says what failed, on which path, and why. After a semicolon, it names the remedy. It
/// never repeats its [source](std::error::Error::source): print the chain to see the kernel's
/// reason.
///
/// `Debug` prints that chain, because a `main` that returns an error prints its `Debug`.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed.
    #[error("cannot {operation} {}", quoted(path))]
    Io {
        /// The operation, as a verb: `open`, `link`, `rename`.
        operation: &'static str,
        /// The path of the operation.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The path of a layer, a base or a store does not exist (any more), or is not a directory.
    #[error("{} {instead}; pass the path of {expected}", quoted(path))]
    NotADirectory {
        /// The path that the caller passed.
        path: PathBuf,
        /// The kind of entry at the path, if any.
        instead: Instead,
        /// The kind of path that is needed: `a layer`, `a store of layers`.
        expected: &'static str,
    },
    /// A layer or a base has no tree.
    #[error("{} has no directory `fs`; move the tree of the layer or the root file system there", quoted(layer))]
    NoTree {
        /// The directory of the layer.
        layer: PathBuf,
    },
    /// A file of a layer or a store is not a regular file, but a FIFO, a device or a symbolic link.
    #[error("{} is not a regular file; remove it", quoted(path))]
    NotARegularFile {
        /// The path.
        path: PathBuf,
    },
    /// A file of a layer or a store is too large to be read.
    #[error("{} has more than {max_bytes} bytes; remove it", quoted(path))]
    FileTooLarge {
        /// The path.
        path: PathBuf,
        /// The largest size that is read, in bytes.
        max_bytes: u64,
    },
    /// A JSON file does not parse, or lacks what it must have. The file is left as it is.
    #[error("cannot parse {} (correct or remove it)", quoted(path))]
    Json {
        /// The file.
        path: PathBuf,
        /// Line, column and reason.
        source: serde_json::Error,
    },
    /// A value cannot be written as JSON. The file is left as it was.
    #[error("cannot write the value of {} as JSON", quoted(path))]
    Serialize {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: serde_json::Error,
    },
    /// The name of a sidecar cannot be the name of a file, or is the one of `layer.json`.
    #[error("{name:?} cannot name a sidecar; use a file name without `/` and without `.json`, other than `layer`")]
    SidecarName {
        /// The name that the caller passed.
        name: String,
    },
    /// The name cannot be that of a layer in a store.
    #[error("{} cannot name a layer; use a file name without `/` and without a leading dot", quoted(name))]
    LayerName {
        /// The name that the caller passed.
        name: OsString,
    },
    /// The directory has no `layer.json`, so it is not a complete layer. It is left as it is.
    #[error(
        "{} has no layer.json: another process may be making this layer; wait for it, or remove the directory by hand",
        quoted(layer)
    )]
    Incomplete {
        /// The directory.
        layer: PathBuf,
    },
    /// The layer that should be removed or replaced is in use. It is left as it is.
    #[error("cannot remove or replace {}: {by}", quoted(layer))]
    LayerHeld {
        /// The layer.
        layer: PathBuf,
        /// One of those that hold it.
        by: Holder,
    },
    /// The name of a new layer is taken. Both are left as they are.
    #[error("{} exists; choose another name, or remove it first", quoted(path))]
    LayerExists {
        /// The path of the existing layer, or of another file.
        path: PathBuf,
    },
    /// The layer that should be replaced is not the result of a failed command. It is left as it
    /// is.
    #[error("cannot replace {}: its command succeeded; choose another name, or remove it first", quoted(layer))]
    NotFailed {
        /// The layer.
        layer: PathBuf,
    },
    /// A layer cannot be moved from one store to the other with a rename.
    #[error(
        "cannot move layers from {} to {}: they are on different mounts; use stores below one mount point",
        quoted(from),
        quoted(to)
    )]
    StoresApart {
        /// The store that has the layer.
        from: PathBuf,
        /// The store that should get it.
        to: PathBuf,
    },
    /// The layer that should be removed or replaced is the base of another layer. It is left as it
    /// is.
    #[error("cannot remove or replace {}: it is the base of {}; remove that layer first", quoted(layer), quoted(other))]
    BaseOfOthers {
        /// The layer.
        layer: PathBuf,
        /// One of the layers that name it as their base.
        other: PathBuf,
    },
    /// The text is not the mode of a directory.
    #[error("{text:?} is not a mode; write octal permission bits like 0750")]
    NotAMode {
        /// The text that the caller passed.
        text: String,
    },
    /// No rung has this name.
    #[error("{name:?} is not a rung; use lowerdir+, mount-paths or mount-names")]
    UnknownRung {
        /// The name that the caller passed.
        name: String,
    },
    /// The target of a merge is not empty. It is left as it is.
    #[error("cannot merge into {}: it is not empty; choose a new or an empty directory", quoted(path))]
    TargetNotEmpty {
        /// The target.
        path: PathBuf,
    },
    /// Another merge is filling the target.
    #[error(
        "cannot merge into {}: another merge is filling it; wait for it, or choose another directory",
        quoted(path)
    )]
    TargetInUse {
        /// The target.
        path: PathBuf,
    },
    /// The target of a merge lies inside one of its sources, or is one.
    #[error(
        "cannot merge into {}: it lies inside the source {}; choose a directory outside of the layers",
        quoted(target),
        quoted(source_tree)
    )]
    TargetInsideSource {
        /// The target.
        target: PathBuf,
        /// The source that contains the target.
        source_tree: PathBuf,
    },
    /// Only the mount that wrote the layer can read it. A merge, a capture or a lookup would show
    /// wrong content.
    #[error(
        "{} has {xattr}, because it was written with redirect_dir or metacopy on; mount it as a separate lower, or build it again with both off",
        quoted(path)
    )]
    Unmergeable {
        /// The file or directory with the xattr.
        path: PathBuf,
        /// The name of the xattr.
        xattr: &'static str,
    },
    /// The layer exists already, or another process is capturing it. The layer and the upper are
    /// left as they are.
    #[error(
        "cannot capture into {}: it is a layer already, or is becoming one; use it, or choose another layer",
        quoted(layer)
    )]
    AlreadyCaptured {
        /// The directory of the layer.
        layer: PathBuf,
    },
    /// The directory that a capture should make a layer of is in use: a [`Hold`](crate::Hold) has
    /// locked it.
    #[error(
        "cannot capture into {}: a process, such as a run, has locked it; wait for its end, or choose another layer",
        quoted(layer)
    )]
    DestinationLocked {
        /// The directory of the layer.
        layer: PathBuf,
    },
    /// The destination of a capture has a tree without `layer.json`, and no killed capture left it
    /// there.
    #[error("cannot move an upper to {}: a tree is there already; remove it, or capture it instead", quoted(path))]
    TreeInTheWay {
        /// The tree.
        path: PathBuf,
    },
    /// The upper of a capture is on another file system than the layer, or on another mount. Both
    /// are left as they are.
    #[error(
        "cannot move the upper {} to the layer {}: they are on different file systems; choose a scratch directory beside the layer",
        quoted(upper),
        quoted(layer)
    )]
    OtherFileSystem {
        /// The upper.
        upper: PathBuf,
        /// The directory of the layer.
        layer: PathBuf,
    },
    /// The upper of a capture is one of its lowers.
    #[error("cannot capture {}: it is one of the lowers; pass the upper that a command wrote", quoted(upper))]
    UpperIsLower {
        /// The path that the caller passed as the upper.
        upper: PathBuf,
    },
    /// The upper of a capture lies inside a lower, or a lower inside the upper.
    #[error(
        "cannot capture {}: it overlaps the lower {}; pass the upper that a command wrote",
        quoted(upper),
        quoted(lower)
    )]
    UpperOverlapsLower {
        /// The path that the caller passed as the upper.
        upper: PathBuf,
        /// The lower.
        lower: PathBuf,
    },
    /// The upper of a capture belongs to a layer that is complete or in use, or is a layer or a
    /// store. It is left as it is.
    #[error(
        "cannot capture {}: it belongs to the layer {}; pass the upper that a command wrote",
        quoted(upper),
        quoted(layer)
    )]
    UpperIsLayers {
        /// The path that the caller passed as the upper.
        upper: PathBuf,
        /// The directory of the layer.
        layer: PathBuf,
    },
    /// The report of a run describes another upper than the one of the capture.
    #[error(
        "cannot capture {}: it is not the upper that the report describes; pass that upper, or the report of this one",
        quoted(upper)
    )]
    AnotherUpper {
        /// The path that the caller passed as the upper.
        upper: PathBuf,
    },
    /// The destination of a capture lies inside a lower, inside the tree of another layer, or
    /// inside the upper.
    #[error(
        "cannot create the layer {}: it lies inside {}; choose a directory outside of layers and uppers",
        quoted(layer),
        quoted(tree)
    )]
    LayerInsideTree {
        /// The path that the caller passed as the layer.
        layer: PathBuf,
        /// The tree that contains the path.
        tree: PathBuf,
    },
    /// The destination of a capture is the root directory.
    #[error("cannot create the layer {}: it is the root directory; choose another directory", quoted(path))]
    RootDirectory {
        /// The path that the caller passed as the layer.
        path: PathBuf,
    },
    /// A lower does not exist any more, and the capture needs it: the upper replaced a directory,
    /// and the layer must hide by name the entries that the lowers have there. The upper is left as
    /// it is.
    #[error(
        "cannot capture {}: it replaced a directory, but the lower {} does not exist (any more); build that layer again, a collector may have removed it",
        quoted(path),
        quoted(lower)
    )]
    LowerMissing {
        /// The replaced directory in the upper.
        path: PathBuf,
        /// The lower.
        lower: PathBuf,
    },
    /// The run created more files in its upper than it could record there.
    #[error(
        "cannot capture {}: it does not record which files its run created; pass the report of the run",
        quoted(upper)
    )]
    MadeUnknown {
        /// The upper.
        upper: PathBuf,
    },
    /// The opaque directories of an upper are marked in another namespace than expected, and its
    /// root does not say that this is its namespace.
    #[error(
        "cannot read the deletions of {}: its opaque directories have {}; pass the report of its run, or run this as \
         its user",
        quoted(upper),
        found.opaque()
    )]
    OtherNamespace {
        /// The upper.
        upper: PathBuf,
        /// The namespace of the marks.
        found: XattrNamespace,
    },
    /// A capture failed after it had moved the upper, and could not move it back. The upper is at
    /// `left`.
    #[error("the capture failed and left its upper at {}, because it could not move it back ({cleanup})", quoted(left))]
    NotMovedBack {
        /// The path of the upper.
        left: PathBuf,
        /// The first failure.
        #[source]
        failure: Box<Error>,
        /// Why the upper could not be moved back.
        cleanup: io::Error,
    },
    /// Root would make or remove layers in a store of an ordinary user. The user could replace any
    /// directory in it with a link, and root would write or remove elsewhere.
    #[error("cannot change the store {}: it belongs to user {owner}; run this as that user", quoted(store))]
    OthersStore {
        /// The directory of the store.
        store: PathBuf,
        /// The number of the user that owns it.
        owner: u32,
    },
    /// A tree that should be removed, merged or captured contains a mount. The mount is not
    /// touched.
    #[error("{} is a mount point; unmount it first", quoted(path))]
    MountInside {
        /// The mount point.
        path: PathBuf,
    },
    /// The caller stopped a merge. The merge has removed the entries that it had created.
    #[error("the merge into {} was stopped", quoted(target))]
    Stopped {
        /// The target.
        target: PathBuf,
    },
    /// A merge failed, and could not remove the entries that it had created. They are at `left`.
    #[error(
        "the merge failed and left {}, because it could not remove it ({}; remove it by hand)",
        quoted(left),
        Chain(cleanup)
    )]
    Leftover {
        /// The path that is left on disk.
        left: PathBuf,
        /// The first failure.
        #[source]
        failure: Box<Error>,
        /// Why the path could not be removed.
        cleanup: Box<Error>,
    },
}

/// Displays an error and all its sources on one line.
pub(crate) struct Chain<'a>(pub(crate) &'a dyn std::error::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.0)?;
        let sources = std::iter::successors(self.0.source(), |error| error.source());
        sources.into_iter().try_for_each(|source| write!(formatter, ": {source}"))
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", Chain(self))
    }
}

/// The result of an operation on layers.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The kind of entry at a path that must be a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Instead {
    /// The path does not exist.
    Nothing,
    /// A symbolic link whose target does not exist.
    DanglingLink,
    /// A file, or a link where the directory itself is needed.
    File,
}

impl fmt::Display for Instead {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Instead::Nothing => "does not exist",
            Instead::DanglingLink => "is a symbolic link to a path that does not exist",
            Instead::File => "is not a directory",
        })
    }
}

impl Error {
    /// Returns [`NotADirectory`](Self::NotADirectory) with what is at `path`.
    pub(crate) fn not_a_directory(path: impl Into<PathBuf>, expected: &'static str) -> Self {
        let path = path.into();
        let instead = match (path.symlink_metadata(), path.metadata()) {
            (Err(_), _) => Instead::Nothing,
            // It exists by now, but did not when the caller needed it.
            (Ok(found), _) if found.is_dir() => Instead::Nothing,
            (Ok(_), Err(error)) if error.kind() == io::ErrorKind::NotFound => Instead::DanglingLink,
            _ => Instead::File,
        };
        Self::NotADirectory { path, instead, expected }
    }

    /// Returns the path that the error is about.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Error::Io { path, .. }
            | Error::NotADirectory { path, .. }
            | Error::NotARegularFile { path }
            | Error::FileTooLarge { path, .. }
            | Error::Json { path, .. }
            | Error::Serialize { path, .. }
            | Error::LayerExists { path }
            | Error::TargetNotEmpty { path }
            | Error::TargetInUse { path }
            | Error::TreeInTheWay { path }
            | Error::MountInside { path }
            | Error::RootDirectory { path }
            | Error::LowerMissing { path, .. }
            | Error::Unmergeable { path, .. } => Some(path),
            Error::NoTree { layer }
            | Error::Incomplete { layer }
            | Error::LayerHeld { layer, .. }
            | Error::NotFailed { layer }
            | Error::BaseOfOthers { layer, .. }
            | Error::AlreadyCaptured { layer }
            | Error::DestinationLocked { layer }
            | Error::LayerInsideTree { layer, .. } => Some(layer),
            Error::OtherFileSystem { upper, .. }
            | Error::UpperIsLower { upper }
            | Error::UpperOverlapsLower { upper, .. }
            | Error::UpperIsLayers { upper, .. }
            | Error::AnotherUpper { upper }
            | Error::OtherNamespace { upper, .. }
            | Error::MadeUnknown { upper } => Some(upper),
            Error::OthersStore { store, .. } | Error::StoresApart { from: store, .. } => Some(store),
            Error::TargetInsideSource { target, .. } | Error::Stopped { target } => Some(target),
            Error::Leftover { left, .. } | Error::NotMovedBack { left, .. } => Some(left),
            Error::SidecarName { .. }
            | Error::LayerName { .. }
            | Error::NotAMode { .. }
            | Error::UnknownRung { .. } => None,
        }
    }

    /// Returns a function for `map_err` that adds the operation and the path to a failed system
    /// call.
    pub(crate) fn io<E: Into<io::Error>>(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(E) -> Error {
        let path = path.into();
        move |source| Error::Io { operation, path, source: source.into() }
    }

    /// Returns whether this user may not do what failed. In a store, this is usually a layer of
    /// another user, which only that user can enter.
    pub fn is_permission_denied(&self) -> bool {
        matches!(self, Error::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }

    /// Returns whether the disk or a quota has no blocks or inodes left.
    pub(crate) fn is_disk_full(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, Error::Io { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded))
    }

    /// Returns whether the file system or the mount is read-only.
    pub(crate) fn is_read_only(&self) -> bool {
        matches!(self, Error::Io { source, .. } if source.kind() == io::ErrorKind::ReadOnlyFilesystem)
    }
}
