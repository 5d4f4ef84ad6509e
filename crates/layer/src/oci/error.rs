//! The errors of images. Each names the image or the entry of a layer that is refused.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::digest::Digest;
use crate::display::{escaped, quoted};
use crate::error::Chain;

/// An error about an image.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text does not name an image.
    #[error("{text:?} is not an image: {reason}")]
    NotAnImage {
        /// The text.
        text: String,
        /// The reason, and what to write instead.
        reason: &'static str,
    },
    /// The image is in a registry.
    #[error(
        "{image} is in a registry, which needs the feature `registry` of layered; build with it, or copy the image as in `skopeo copy {image} oci:DIR:TAG`",
        image = escaped(image)
    )]
    InRegistry {
        /// The image as the caller wrote it.
        image: String,
    },
    /// A request to a registry failed.
    #[cfg(feature = "registry")]
    #[error("cannot {operation} {}", escaped(place))]
    Registry {
        /// The operation that failed.
        operation: &'static str,
        /// The image, the layer or the blob.
        place: String,
        /// The reason.
        #[source]
        problem: super::registry::RegistryProblem,
    },
    /// The registry has no such layer.
    #[error("{name} is not in {repository}; push it first, or correct the name")]
    NotInRegistry {
        /// The name, with its digest if it is pinned.
        name: String,
        /// The repository.
        repository: super::reference::Repository,
    },
    /// A layer cannot be in a registry under its name.
    #[error("{} cannot be the name of a layer in a registry: {reason}", quoted(std::path::Path::new(name)))]
    NotATag {
        /// The name.
        name: std::ffi::OsString,
        /// The reason.
        reason: &'static str,
    },
    /// A layer of this name is in the store, and is not the pinned one.
    #[error(
        "{} exists, but is not the layer with the manifest {digest}; remove it, or pull into another store",
        quoted(layer)
    )]
    NotPinned {
        /// The layer that exists.
        layer: PathBuf,
        /// The digest that the caller wants.
        digest: Digest,
    },
    /// A pin, or the directory of the pins, cannot be read or written.
    #[error("cannot {operation} {} (mount the directory of the pins, or correct its permissions)", quoted(path))]
    Pins {
        /// The operation that failed.
        operation: &'static str,
        /// The pin or the directory.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The files beside the tree of a layer are too large for a registry.
    #[error(
        "layer.json and the sidecars of {} have more than {max_bytes} bytes together, which no pull accepts; make them smaller",
        quoted(layer)
    )]
    SidecarsTooLarge {
        /// The layer.
        layer: PathBuf,
        /// The limit of all files together, in bytes.
        max_bytes: u64,
    },
    /// The operation was not begun, because another one of the same call failed.
    #[error("it was not begun, because of the error of another layer")]
    NotBegun,
    /// The caller has cancelled the operation.
    #[error("it was cancelled")]
    Cancelled,
    /// The image cannot be read or written.
    #[error("cannot {operation} {}", quoted(path))]
    Io {
        /// The operation that failed.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The file system has no room for a part of the image.
    #[error(
        "cannot {operation} {}: its file system or a quota is full; free some space, or choose another place",
        quoted(path)
    )]
    NoSpace {
        /// The operation that failed.
        operation: &'static str,
        /// The file, or the directory in which it would be.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The image needs more space than its destination has.
    #[error(
        "{} needs more than the {free_bytes} bytes that are free at {}; free some space, or choose another place",
        quoted(archive),
        quoted(place)
    )]
    TooLittleSpace {
        /// The layer or the archive for which the space is not enough.
        archive: PathBuf,
        /// The directory of the destination.
        place: PathBuf,
        /// The space that was free when the import began, in bytes.
        free_bytes: u64,
    },
    /// A file of the image is not what it should be.
    #[error("{} is not {expected}", quoted(path))]
    Malformed {
        /// The file, which can be one in an archive.
        path: PathBuf,
        /// The form that it should have.
        expected: &'static str,
        /// The reason, if a parser knows one.
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// The image has several manifests and the caller chose none, or the one that the caller chose
    /// is not there.
    #[error("{} has no image {}; it has: {}", quoted(path), escaped(wanted), escaped(available.join(", ")))]
    NoSuchImage {
        /// The layout or archive.
        path: PathBuf,
        /// The tag or platform that was looked for.
        wanted: String,
        /// The tags or platforms that exist.
        available: Vec<String>,
    },
    /// The image has a part that layered cannot use.
    #[error("{} has {}: {reason}", quoted(path), escaped(part))]
    Unsupported {
        /// The layout or archive.
        path: PathBuf,
        /// The part.
        part: String,
        /// The reason, and what to do.
        reason: &'static str,
    },
    /// A blob has other bytes than the image says.
    #[error("the blob {expected} of {} has the digest {found}: it is damaged; copy the image again", quoted(path))]
    WrongDigest {
        /// The layout or archive.
        path: PathBuf,
        /// The digest that the image names.
        expected: Digest,
        /// The digest of the bytes that were read.
        found: Digest,
    },
    /// A blob has another size than the image says.
    #[error(
        "the blob {digest} of {} has {found} bytes instead of {expected}: it is damaged; copy the image again",
        quoted(path)
    )]
    WrongSize {
        /// The layout or archive.
        path: PathBuf,
        /// The digest that the image names.
        digest: Digest,
        /// The size that the image names, in bytes.
        expected: u64,
        /// The bytes that were read; reading stops behind the expected size.
        found: u64,
    },
    /// A layer that was decompressed is not the one of the image's configuration.
    #[error(
        "a layer of {} has the diff ID {found} instead of {expected}: the image is wrong; build it again",
        quoted(path)
    )]
    WrongDiffId {
        /// The layout or archive.
        path: PathBuf,
        /// The diff ID of the configuration.
        expected: Digest,
        /// The diff ID of the bytes that were read.
        found: Digest,
    },
    /// An entry of a layer's archive cannot be unpacked or packed.
    #[error("cannot {operation} {} of {}", quoted(entry), quoted(archive))]
    Entry {
        /// `unpack` or `pack`.
        operation: &'static str,
        /// The layer: its blob, its archive or its tree.
        archive: PathBuf,
        /// The path of the entry as the archive has it.
        entry: PathBuf,
        /// The reason.
        #[source]
        problem: Problem,
    },
    /// A layer's archive cannot be read at a place that belongs to no entry.
    #[error("cannot unpack {} after its entry {}", quoted(archive), quoted(after))]
    Archive {
        /// The layer: its blob or its archive.
        archive: PathBuf,
        /// The path of the last entry that was read, or `.`.
        after: PathBuf,
        /// The reason.
        #[source]
        problem: Problem,
    },
    /// The image is larger than the caller allows.
    #[error("{} has more than {max_bytes} bytes of archives; raise the limit if it is trusted", quoted(archive))]
    TooLarge {
        /// The layer at which the limit was exceeded.
        archive: PathBuf,
        /// The limit of all layers together, decompressed, in bytes.
        max_bytes: u64,
    },
    /// The directory or file to write exists.
    #[error("{} exists; choose another place, or remove it", quoted(path))]
    Exists {
        /// The directory or file.
        path: PathBuf,
    },
    /// A layer of this name is in the store, and is another one.
    #[error("{} exists, but is not the layer {diff_id}; remove it, or import into another store", quoted(layer))]
    OtherLayer {
        /// The layer that exists.
        layer: PathBuf,
        /// The diff ID of the layer to import.
        diff_id: Digest,
    },
    /// The store has the layer from an import without the privilege for all of it.
    #[error(
        "{} was imported without root and lacks owners, attributes or devices; remove it with `layered rm`, or import into another store",
        quoted(layer)
    )]
    NotWhole {
        /// The layer that exists.
        layer: PathBuf,
    },
    /// An operation on a layer or a store failed.
    #[error(transparent)]
    Layer(crate::Error),
}

/// The result of an operation on images.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The reason why an entry of an archive is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The path has a `..`.
    #[error("its path has a `..` and could lead out of the layer")]
    LeadsOut,
    /// The path or the link's target has a NUL.
    #[error("its name has a NUL, which no file can have")]
    NulInName,
    /// A `.wh.` without a name, or with `.` or `..`.
    #[error("it is a whiteout of nothing")]
    WhiteoutOfNothing,
    /// A path has a whiteout as a directory.
    #[error("its directory is the name of a whiteout")]
    BelowAWhiteout,
    /// A whiteout or an opaque mark that is not a file.
    #[error("it has the name of a whiteout and is not a file")]
    WhiteoutNotAFile,
    /// The root of the tree is not a directory.
    #[error("it is the root and not a directory")]
    RootNotADirectory,
    /// A character device 0:0, which is a whiteout to overlayfs.
    #[error("it is a character device 0:0, which only overlayfs may make; images write whiteouts as .wh.NAME")]
    WhiteoutDevice,
    /// A type that no tree can have.
    #[error("it has the unknown type {:?}", char::from(*kind))]
    UnknownType {
        /// The type, a byte of the header.
        kind: u8,
    },
    /// An entry without content that says that it has some.
    #[error("it has content, although it is not a file")]
    UnexpectedContent,
    /// A link without a target.
    #[error("it is a link without a target")]
    NoTarget,
    /// A hard link to a file that is not there.
    #[error("it is a hard link to {}, which is not in the image", quoted(target))]
    TargetMissing {
        /// The target.
        target: PathBuf,
    },
    /// A hard link to a directory, or one that leads out of the tree.
    #[error("it is a hard link to {}, which cannot be linked", quoted(target))]
    NotLinkable {
        /// The target.
        target: PathBuf,
    },
    /// Something other than a directory is on the way.
    #[error("a part of its path is not a directory")]
    NotADirectory,
    /// An owner beyond 32 bits, or the one that means "no change".
    #[error("its owner {id} does not exist; owners go up to 4294967294")]
    Owner {
        /// The user or group.
        id: u64,
    },
    /// A pax record that cannot be understood.
    #[error("its pax record {key:?} has the value {value:?}, which is not valid")]
    PaxValue {
        /// The key.
        key: String,
        /// The value.
        value: String,
    },
    /// Pax records whose lengths do not add up.
    #[error("its pax records are malformed")]
    PaxMalformed,
    /// A global pax header that changes later entries.
    #[error("a global pax header sets {key:?}; archives of layers have no such headers")]
    GlobalHeader {
        /// The key.
        key: String,
    },
    /// The pieces of a sparse file overlap, or do not fit.
    #[error("the pieces of the sparse file do not fit into it")]
    SparseMap,
    /// The header with its extensions is larger than any that is needed.
    #[error("its header has more than {max_bytes} bytes")]
    HeaderTooLarge {
        /// The limit in bytes.
        max_bytes: usize,
    },
    /// The archive has more entries than a file system should take.
    #[error("the archive has more than {max} entries")]
    TooManyEntries {
        /// The limit.
        max: u64,
    },
    /// The files of the image would take more than the caller allows.
    #[error("with it, the files of the image take more than {max_bytes} bytes; raise the limit if it is trusted")]
    TreeTooLarge {
        /// The limit in bytes. Each file counts with its size, holes included, and 4096 bytes.
        max_bytes: u64,
    },
    /// The directories' attributes take too much memory.
    #[error("the attributes of the directories have more than {max_bytes} bytes")]
    AttributesTooLarge {
        /// The limit in bytes.
        max_bytes: usize,
    },
    /// The names of devices that are left out, or of hard links to files of the layers below, take
    /// too much memory.
    #[error(
        "too many devices are left out, or too many names link to the layers below ({max_bytes} bytes of names); \
         import the image as root, as separate layers"
    )]
    NamesTooLarge {
        /// The limit in bytes.
        max_bytes: usize,
    },
    /// The file system has room, but not for so large extended attributes.
    #[error("this file system cannot hold extended attributes of {bytes} bytes in one file; choose another one")]
    XattrsDoNotFit {
        /// The names and values of the attributes, in bytes.
        bytes: usize,
    },
    /// The names of files with several names take too much memory.
    #[error(
        "too many files before it have several names ({max_bytes} bytes of names); copy the layer with cp -a first"
    )]
    TooManyLinks {
        /// The limit in bytes.
        max_bytes: usize,
    },
    /// The archive ends too early.
    #[error("the archive ends in the middle")]
    Truncated,
    /// The archive has no end mark.
    #[error("the archive ends without its end mark, so it may be cut off")]
    NoEnd,
    /// The header is malformed in another way.
    #[error("{0}")]
    Header(tar_core::parse::ParseError),
    /// The name has the prefix of a whiteout, so that an archive cannot have it.
    #[error("its name begins with .wh., which means a whiteout in an image; rename it")]
    WhiteoutName,
    /// An extended attribute whose name an archive cannot have.
    #[error("the name of its extended attribute {name:?} cannot be written into an archive; remove the attribute")]
    AttributeName {
        /// The name.
        name: String,
    },
    /// A file changed while it was packed.
    #[error("it changed while it was read; pack a layer that nothing changes")]
    Changed,
    /// The file system has no room for the file.
    #[error("cannot {operation} it: the file system or a quota is full; free some space, or choose another place")]
    NoSpace {
        /// The operation that failed.
        operation: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// A system call failed.
    #[error("cannot {operation} it")]
    Io {
        /// The operation that failed.
        operation: &'static str,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// An operation on the tree or on a layer below failed.
    #[error(transparent)]
    Below(Box<crate::Error>),
}

impl Problem {
    pub(crate) fn io<E: Into<io::Error>>(operation: &'static str) -> impl FnOnce(E) -> Self {
        move |source| match source.into() {
            source if is_full(&source) => Self::NoSpace { operation, source },
            source => Self::Io { operation, source },
        }
    }
}

impl Error {
    pub(crate) fn io<E: Into<io::Error>>(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| match source.into() {
            source if is_full(&source) => Self::NoSpace { operation, path, source },
            source => Self::Io { operation, path, source },
        }
    }

    /// Returns whether the same operation can succeed later: the registry is away or busy, the disk
    /// is full, the pins are not mounted, or a layer that must be replaced is in use. A scheduler
    /// can try again then.
    pub fn is_temporary(&self) -> bool {
        let is_in_use = matches!(self, Self::Layer(crate::Error::LayerHeld { .. } | crate::Error::BaseOfOthers { .. }));
        is_in_use || self.affects_others()
    }

    /// Returns whether it is a temporary error that other layers would have, too: of the registry,
    /// the disk or the pins.
    pub(crate) fn affects_others(&self) -> bool {
        match self {
            #[cfg(feature = "registry")]
            Self::Registry { problem, .. } => return problem.is_temporary(),
            Self::NotBegun => return true,
            // A wrong path stays wrong.
            Self::Pins { source, .. } => {
                return !matches!(source.kind(), io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory);
            }
            _ => {}
        }
        let chain = std::iter::successors(Some(self as &dyn std::error::Error), |error| error.source());
        chain.filter_map(|error| error.downcast_ref()).any(is_full)
    }

    pub(crate) fn malformed(path: impl AsRef<Path>, expected: &'static str) -> Self {
        Self::Malformed { path: path.as_ref().into(), expected, source: None }
    }
}

impl From<crate::Error> for Error {
    fn from(error: crate::Error) -> Self {
        match error {
            crate::Error::Io { operation, path, source } if is_full(&source) => {
                Self::NoSpace { operation, path, source }
            }
            error => Self::Layer(error),
        }
    }
}

/// Returns whether the file system or a quota has no blocks or inodes left.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl fmt::Debug for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", Chain(self))
    }
}
