//! An upper that a command has written, made a layer that is right in any stack.

mod barrier;
mod claim;
mod directory;
mod made;
#[cfg(test)]
mod tests;
mod upper;

use std::num::NonZeroUsize;
use std::ops::AddAssign;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{Timespec, fsync};
use rustix::io::Errno;

use self::claim::Claim;
pub(crate) use self::claim::MARK;
use self::directory::{Job, Shared, Worker};
pub use self::made::Made;
use self::made::TakingOut;
use self::upper::Upper;
use crate::tree_size::Inodes;
use crate::view::View;
use crate::walk::crew;
use crate::{Error, Hold, Layer, Meta, Result, TreeSize, XattrNamespace, json};

/// How the upper directory of an overlay becomes a layer.
///
/// The layer is right in any later stack, above or below siblings that it never saw, and an overlay of it and the same lowers
/// shows what the overlay of the upper showed. The upper has to be unmounted.
///
/// ```no_run
/// # let (base, zlib) = ("/var/cache/layers/debian/fs", "/var/cache/layers/zlib/fs");
/// use std::time::SystemTime;
/// use layer::{Capture, Layer, Meta};
///
/// let layer = Layer::at("/var/cache/layers/python");
/// let meta = Meta { parent_hashes: vec!["zlib".into()], ..Meta::new("debian", SystemTime::now()) };
/// let captured = Capture::new([zlib, base]).into_layer("/var/cache/layers/scratch/upper", &layer, meta)?; // topmost first
/// println!("{} bytes", captured.size.bytes);
/// # Ok::<(), layer::Error>(())
/// ```
///
/// # What becomes of what
/// - Whiteouts stay, as character devices 0:0. A directory that has some gets an empty `origin` attribute: without it the
///   kernel lists names that cannot be found where no other layer has that directory.
/// - An opaque directory, which a command leaves that removes one and makes it again, hides all of its name in all layers
///   below, those that it never saw among them. It becomes a plain one with whiteouts for what it hid in the lowers that the
///   upper was made over, and so do the directories below it.
/// - Overlayfs's other attributes (`origin`, `impure`, `uuid`, `nlink`, …) mean something to the old mount only, and go.
/// - What the run [made](Self::made) goes, unless the command changed it, and so does a directory that the kernel has copied
///   for nothing else. The modification times of directories stay what they were. A command that wrote nothing leaves an
///   empty tree.
/// - All else stays as it is: it is moved, not copied.
///
/// # After a power cut
/// The layer is whole or not there: `layer.json` gets its name when all else is durable, by one sync of the file system
/// (syncfs(2)), which captures of one process share that come together.
///
/// # Twice at once
/// One wins, and the other is told so by [`Error::AlreadyCaptured`] before it has done anything: also where the other is in
/// another process. The layer's directory may exist, with sidecars and a log in it that are then as durable as the layer; what a
/// capture has left in it that was killed is taken away.
#[derive(Debug, Clone)]
pub struct Capture {
    lowers: Vec<PathBuf>,
    made: Vec<Made>,
    xattrs: XattrNamespace,
    latest: Option<SystemTime>,
    threads: NonZeroUsize,
}

/// What a capture has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Captured {
    /// The layer's tree, as [`TreeSize::of`] measures it. Its bytes are recorded as `disk_usage`.
    pub size: TreeSize,
    /// What was taken out since the run, and not the command, had made it.
    pub taken_out: u64,
    /// Directories that were opaque.
    pub opaques: u64,
    /// Whiteouts that were made in their place.
    pub whiteouts: u64,
}

/// A step of a capture, in the order in which they are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Step {
    /// What the run made is taken out of the upper.
    TakeOut,
    /// The upper is walked: attributes, opaque directories, times.
    Settle,
    /// `layer.json` is written, without its name.
    Stage,
    /// The tree is moved to `fs`.
    Move,
    /// All of it is made durable.
    Sync,
    /// `layer.json` gets its name: the layer is there.
    Publish,
    /// The name is made durable.
    Finish,
}

impl Step {
    /// All steps, in order.
    pub const ALL: [Step; 7] =
        [Step::TakeOut, Step::Settle, Step::Stage, Step::Move, Step::Sync, Step::Publish, Step::Finish];
}

/// Where there are more processors. A capture is all work of the kernel's, and is not alone on its machine.
const MOST_USUAL_THREADS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1);

impl Capture {
    /// Captures uppers that were made over `lowers`, in the order of the mount: **topmost first**, the base last. They are only
    /// read, and only where the upper has an opaque directory or something was [made](Self::made).
    pub fn new(lowers: impl IntoIterator<Item = impl Into<PathBuf>>) -> Self {
        let processors = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Self {
            lowers: lowers.into_iter().map(Into::into).collect(),
            made: Vec::new(),
            xattrs: XattrNamespace::default(),
            latest: None,
            threads: processors.min(MOST_USUAL_THREADS),
        }
    }

    /// What the run put into the upper besides the command.
    pub fn made(mut self, made: impl IntoIterator<Item = Made>) -> Self {
        self.made = made.into_iter().collect();
        self
    }

    /// Reads and writes overlayfs's attributes in `namespace`.
    pub fn xattrs(mut self, namespace: XattrNamespace) -> Self {
        self.xattrs = namespace;
        self
    }

    /// Makes every modification time in the tree that is later than `latest` be `latest`, so that a build that is repeated
    /// comes to the same tree: `SOURCE_DATE_EPOCH` of <https://reproducible-builds.org/specs/source-date-epoch/>.
    pub fn clamp_times(mut self, latest: SystemTime) -> Self {
        self.latest = Some(latest);
        self
    }

    /// Works with at most so many threads.
    pub fn threads(mut self, threads: NonZeroUsize) -> Self {
        self.threads = threads;
        self
    }

    /// Makes the upper directory `upper` the tree of `layer`, and writes `meta` as its `layer.json`, with `disk_usage` and
    /// `created_at` filled in.
    ///
    /// The layer's directory is made if it is missing; the one that it is in must exist. The upper must be on the same file
    /// system, and is moved; it may also stand in the layer's directory as `fs` already. When this returns, the layer is
    /// durable.
    ///
    /// # Errors
    /// - [`Error::NotADirectory`] if the upper, a lower or the layer is none, [`Error::UpperIsLower`].
    /// - [`Error::AlreadyCaptured`], [`Error::TreeInTheWay`], [`Error::OtherFileSystem`]: nothing has been changed.
    /// - [`Error::Unmergeable`] for an upper that was written with `redirect_dir` or `metacopy` on.
    /// - [`Error::MountInside`] if something is mounted in the upper or in a lower.
    /// - [`Error::Io`] names what could not be read, changed or moved.
    ///
    /// There is then no layer, and the upper is where it was, unless [`Error::NotMovedBack`] says otherwise. Over the same lowers
    /// it shows what it showed, and it can be captured again. Only if the very last step fails, [`Step::Finish`], the layer is
    /// there and may not be after a power cut.
    pub fn into_layer(&self, upper: impl AsRef<Path>, layer: &Layer, meta: Meta) -> Result<Captured> {
        self.into_layer_watched(upper, layer, meta, &|_| ())
    }

    /// As [`into_layer`](Self::into_layer), and calls `watch` before each step.
    ///
    /// # Errors
    /// As `into_layer`.
    pub fn into_layer_watched(
        &self,
        upper: impl AsRef<Path>,
        layer: &Layer,
        meta: Meta,
        watch: &dyn Fn(Step),
    ) -> Result<Captured> {
        let upper = Upper::open(upper.as_ref())?;
        // What is half collected would be taken for what the upper was over.
        let layers = self.lowers.iter().filter(|tree| tree.ends_with("fs")).filter_map(|tree| tree.parent());
        let _hold = Hold::of(layers.filter(|layer| Layer::at(*layer).meta_path().symlink_metadata().is_ok()))?;
        let lowers = View::new(&self.lowers)?.xattrs(self.xattrs);
        if lowers.tree_of(&upper.stat).is_some() {
            return Err(Error::UpperIsLower { upper: upper.path });
        }
        let claim = Claim::take(layer, &upper.stat)?;
        let work =
            upper.require_same_mount(&claim).and_then(|()| self.fill(&upper, &lowers, &claim, layer, meta, watch));
        if work.is_err() {
            claim.give_up();
        }
        work
    }

    fn fill(
        &self,
        upper: &Upper,
        lowers: &View,
        claim: &Claim<'_>,
        layer: &Layer,
        meta: Meta,
        watch: &dyn Fn(Step),
    ) -> Result<Captured> {
        watch(Step::TakeOut);
        let root = upper.root.as_fd();
        let taken_out = TakingOut { root, path: &upper.path, lowers, xattrs: self.xattrs }.run(&self.made)?;
        watch(Step::Settle);
        let captured = Captured { taken_out, ..self.settle(upper, lowers)? };

        watch(Step::Stage);
        let meta = Meta { disk_usage: captured.size.bytes, created_at: SystemTime::now(), ..meta };
        let meta_path = layer.meta_path();
        let staged = json::Staged::new(&meta_path, &meta)?;
        watch(Step::Move);
        let moved = claim.moves();
        if moved {
            upper.move_to(claim.dir(), layer)?;
        }
        // From here on the upper has to be moved back.
        watch(Step::Sync);
        let durable = barrier::sync(claim.dir()).map_err(Error::io("sync the file system of", layer.path()));
        let published = durable.and_then(|()| {
            watch(Step::Publish);
            staged.publish()
        });
        if let Err(failure) = published {
            return Err(if moved { upper.move_back(claim.dir(), layer, failure) } else { failure });
        }
        watch(Step::Finish);
        claim.unmark();
        fsync(claim.dir()).map_err(Error::io("sync", layer.path()))?;
        Ok(captured)
    }

    fn settle(&self, upper: &Upper, lowers: &View) -> Result<Captured> {
        let shared = Shared {
            root: upper.root.as_fd(),
            path: &upper.path,
            lowers,
            xattrs: self.xattrs,
            latest: self.latest.map(timespec),
            inodes: Inodes::default(),
        };
        let workers = crew::run(self.threads, Job::root(), || Worker::new(&shared), Worker::settle)?;
        let mut captured = Captured::default();
        for worker in workers {
            captured += worker.captured();
        }
        Ok(captured)
    }
}

impl AddAssign for Captured {
    fn add_assign(&mut self, other: Self) {
        let Self { size, taken_out, opaques, whiteouts } = other;
        self.size += size;
        self.taken_out += taken_out;
        self.opaques += opaques;
        self.whiteouts += whiteouts;
    }
}

/// A time as the kernel has it, also one before 1970.
fn timespec(time: SystemTime) -> Timespec {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => {
            Timespec { tv_sec: since.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: since.subsec_nanos().into() }
        }
        Err(error) => {
            let before = error.duration();
            let (seconds, nanoseconds) = (i64::try_from(before.as_secs()).unwrap_or(i64::MAX), before.subsec_nanos());
            match nanoseconds {
                0 => Timespec { tv_sec: -seconds, tv_nsec: 0 },
                some => Timespec { tv_sec: -seconds - 1, tv_nsec: (1_000_000_000 - some).into() },
            }
        }
    }
}

/// For `map_err`: a failed system call on something below an upper.
fn failure(operation: &'static str, path: PathBuf) -> impl FnOnce(Errno) -> Error {
    move |errno| match errno {
        // The way leads to another mount, or a mount point is to be removed.
        Errno::XDEV | Errno::BUSY => Error::MountInside { path },
        errno => Error::io(operation, path)(errno),
    }
}
