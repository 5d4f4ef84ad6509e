//! What can go wrong with a layer, a store or a stack, and what the user can do about it.
//! `display.rs` makes the names printable.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::display::quoted;

/// What went wrong with a layer on disk, at which path, and what to do about it.
///
/// The message never repeats its [source](std::error::Error::source): print the chain to see the
/// kernel's own words.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed.
    #[error("cannot {operation} {}", quoted(path))]
    Io {
        /// What was tried, as a verb: `open`, `link`, `rename`.
        operation: &'static str,
        /// The path it was tried on.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The path given for a layer, a base or a store does not exist or is not a directory.
    #[error("{} is not a directory: give the path of {expected}", quoted(path))]
    NotADirectory {
        /// The path that was given.
        path: PathBuf,
        /// What is expected there: `a layer`, `a store of layers`.
        expected: &'static str,
    },
    /// A layer without its tree.
    #[error(
        "{} has no directory `fs`: a layer's tree stands there (a root file system on its own must be moved to `fs` first)",
        quoted(layer)
    )]
    NoTree {
        /// The layer's directory.
        layer: PathBuf,
    },
    /// A file of a layer or a store is not a regular file but a FIFO, a device or a symbolic link.
    #[error("{} is not a regular file: remove it", quoted(path))]
    NotARegularFile {
        /// The path.
        path: PathBuf,
    },
    /// A file of a layer or a store is larger than any that is read.
    #[error("{} has more than {max_bytes} bytes: remove it", quoted(path))]
    FileTooLarge {
        /// The path.
        path: PathBuf,
        /// The largest size that is read.
        max_bytes: u64,
    },
    /// A JSON file that cannot be read as what it should be. The file is left as it is.
    #[error("{} is not valid: correct or remove the file", quoted(path))]
    Json {
        /// The file.
        path: PathBuf,
        /// Line, column and reason.
        source: serde_json::Error,
    },
    /// A value that cannot be written as JSON. The file is left as it was.
    #[error("cannot write the value of {} as JSON", quoted(path))]
    Serialize {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: serde_json::Error,
    },
    /// A sidecar's name that cannot be the name of a file, or that belongs to `layer.json`.
    #[error("{name:?} cannot name a sidecar: use a file name without `/` and without `.json`, other than `layer`")]
    SidecarName {
        /// The name that was given.
        name: String,
    },
    /// A text that is not the mode of a directory.
    #[error("{text:?} is not a mode: write octal permission bits like 0750")]
    NotAMode {
        /// The text.
        text: String,
    },
    /// A name that no rung has.
    #[error("{name:?} is not a rung: use lowerdir+, mount-paths or mount-names")]
    UnknownRung {
        /// The name.
        name: String,
    },
    /// The target of a merge exists and holds something. It is left as it is.
    #[error("{} is not empty: a merge needs a new or an empty directory", quoted(path))]
    TargetNotEmpty {
        /// The target.
        path: PathBuf,
    },
    /// Another merge is filling the target.
    #[error("{} is being filled by another merge: wait for it, or choose another directory", quoted(path))]
    TargetInUse {
        /// The target.
        path: PathBuf,
    },
    /// The target of a merge lies inside one of its sources, or is one.
    #[error(
        "{} lies inside the source {}: merge into a directory outside the layers",
        quoted(target),
        quoted(source_tree)
    )]
    TargetInsideSource {
        /// The target.
        target: PathBuf,
        /// The source that holds it.
        source_tree: PathBuf,
    },
    /// A layer that only makes sense to the mount that wrote it: merged, captured or looked up, it
    /// would show wrong content.
    #[error(
        "{} carries {xattr}: it was written with redirect_dir or metacopy on; mount it as a separate lower or build it again with both off",
        quoted(path)
    )]
    Unmergeable {
        /// The file or directory that carries the attribute.
        path: PathBuf,
        /// The extended attribute.
        xattr: &'static str,
    },
    /// The layer exists already, or another capture of it is running. The layer and the upper are
    /// unchanged.
    #[error("{} is captured already, or is being captured: choose another layer, or use this one", quoted(layer))]
    AlreadyCaptured {
        /// The layer's directory.
        layer: PathBuf,
    },
    /// The directory of the new layer has a tree without `layer.json` that no capture left.
    #[error("{} is in the place of the new tree: remove it, or capture it instead", quoted(path))]
    TreeInTheWay {
        /// The tree.
        path: PathBuf,
    },
    /// The upper is on another file system than the layer, or is reached through another mount.
    /// Both are unchanged.
    #[error(
        "{} and {} are on different file systems: a tree is moved by a rename, so choose a scratch directory beside the layer",
        quoted(upper),
        quoted(layer)
    )]
    OtherFileSystem {
        /// The upper.
        upper: PathBuf,
        /// The layer's directory.
        layer: PathBuf,
    },
    /// The upper that should be captured is one of its own lowers.
    #[error("{} is one of the lowers: give the upper that was written to", quoted(upper))]
    UpperIsLower {
        /// The path that was given for the upper.
        upper: PathBuf,
    },
    /// The upper that should be captured lies inside a lower, or a lower inside the upper.
    #[error("the upper {} overlaps the lower {}: give the upper that was written to", quoted(upper), quoted(lower))]
    UpperOverlapsLower {
        /// The path that was given for the upper.
        upper: PathBuf,
        /// The lower.
        lower: PathBuf,
    },
    /// The upper that should be captured belongs to a layer that is complete or in use, or is a
    /// layer or a store itself. It is unchanged.
    #[error("{} belongs to the layer {}: give an upper that a command has written", quoted(upper), quoted(layer))]
    UpperIsLayers {
        /// The path that was given for the upper.
        upper: PathBuf,
        /// The directory of the layer.
        layer: PathBuf,
    },
    /// The report of a run describes another upper than the one that was given.
    #[error("{} is not the upper that the report describes: give that one, or the report of this one", quoted(upper))]
    AnotherUpper {
        /// The path that was given for the upper.
        upper: PathBuf,
    },
    /// The new layer would lie inside a lower, inside the tree of another layer or inside the
    /// upper.
    #[error("{} lies inside {}: choose a directory outside of layers and uppers", quoted(layer), quoted(tree))]
    LayerInsideTree {
        /// The path that was given for the layer.
        layer: PathBuf,
        /// The tree around it.
        tree: PathBuf,
    },
    /// The directory given for a layer is the root directory.
    #[error("{} is the root directory: choose another directory for the layer", quoted(path))]
    RootDirectory {
        /// The path that was given for the layer.
        path: PathBuf,
    },
    /// A lower does not exist any more, and the upper cannot be captured without it: the upper
    /// replaced a directory, whose entries in the lowers have to be hidden by name. The upper is
    /// unchanged.
    #[error(
        "{} replaces a directory of the lowers, of which {} does not exist (any more): a collector may have removed it; make it again",
        quoted(path),
        quoted(lower)
    )]
    LowerMissing {
        /// The directory in the upper.
        path: PathBuf,
        /// The lower.
        lower: PathBuf,
    },
    /// The run made more files in its upper than could be recorded there.
    #[error("{} holds files that its run made, and does not say which: give the report of the run", quoted(upper))]
    MadeUnknown {
        /// The upper.
        upper: PathBuf,
    },
    /// A capture failed after it had moved the upper, and could not move it back: see `left`.
    #[error("a capture failed half way, and its upper could not be moved back ({cleanup}): it is at {}", quoted(left))]
    NotMovedBack {
        /// Where the upper is.
        left: PathBuf,
        /// The first failure.
        #[source]
        failure: Box<Error>,
        /// Why it could not be moved back.
        cleanup: io::Error,
    },
    /// Something is mounted inside a tree that should be removed, merged or captured. The mount is
    /// not touched.
    #[error("{} is a mount point: unmount it first", quoted(path))]
    MountInside {
        /// The mount point.
        path: PathBuf,
    },
    /// The caller stopped a merge. What the merge had made has been removed.
    #[error("the merge into {} was stopped", quoted(target))]
    Stopped {
        /// The target.
        target: PathBuf,
    },
    /// A merge failed, and what it had made could not be removed: see `left`.
    #[error(
        "a merge failed half way, and {} could not be removed ({}): remove it by hand",
        quoted(left),
        Chain(cleanup)
    )]
    Leftover {
        /// What is left on disk.
        left: PathBuf,
        /// The first failure.
        #[source]
        failure: Box<Error>,
        /// Why it could not be removed.
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

/// The result of an operation on layers.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The path that the error is about.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Error::Io { path, .. }
            | Error::NotADirectory { path, .. }
            | Error::NotARegularFile { path }
            | Error::FileTooLarge { path, .. }
            | Error::Json { path, .. }
            | Error::Serialize { path, .. }
            | Error::TargetNotEmpty { path }
            | Error::TargetInUse { path }
            | Error::TreeInTheWay { path }
            | Error::MountInside { path }
            | Error::RootDirectory { path }
            | Error::LowerMissing { path, .. }
            | Error::Unmergeable { path, .. } => Some(path),
            Error::NoTree { layer } | Error::AlreadyCaptured { layer } | Error::LayerInsideTree { layer, .. } => {
                Some(layer)
            }
            Error::OtherFileSystem { upper, .. }
            | Error::UpperIsLower { upper }
            | Error::UpperOverlapsLower { upper, .. }
            | Error::UpperIsLayers { upper, .. }
            | Error::AnotherUpper { upper }
            | Error::MadeUnknown { upper } => Some(upper),
            Error::TargetInsideSource { target, .. } | Error::Stopped { target } => Some(target),
            Error::Leftover { left, .. } | Error::NotMovedBack { left, .. } => Some(left),
            Error::SidecarName { .. } | Error::NotAMode { .. } | Error::UnknownRung { .. } => None,
        }
    }

    /// For `map_err`: names the operation and the path of a failed system call.
    pub(crate) fn io<E: Into<io::Error>>(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(E) -> Error {
        let path = path.into();
        move |source| Error::Io { operation, path, source: source.into() }
    }

    /// Whether the disk or a quota is full, of blocks or of inodes.
    pub(crate) fn is_disk_full(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, Error::Io { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded))
    }

    /// Whether the file system, or the mount, is read-only.
    pub(crate) fn is_read_only(&self) -> bool {
        matches!(self, Error::Io { source, .. } if source.kind() == io::ErrorKind::ReadOnlyFilesystem)
    }
}
