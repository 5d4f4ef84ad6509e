//! Turns an upper that a command has written into a layer that is right in any stack.
//! `capture/directory.rs` changes the tree; `capture/lock.rs` makes the layer appear whole or not
//! at all.

mod barrier;
mod directory;
pub(crate) mod lock;
mod lowers;
pub(crate) mod made;
pub(crate) mod record;
mod refuse;
#[cfg(test)]
mod tests;
mod upper;
pub(crate) mod upper_id;

use std::num::NonZeroUsize;
use std::ops::AddAssign;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{Mode, Timespec, fchmod, fstat};
use rustix::io::Errno;

use self::directory::{Job, Shared, Worker};
use self::lock::{CaptureLock, Found, Stage};
use self::lowers::Lowers;
use self::made::{Made, TakingOut};
use self::record::RunRecord;
use self::upper::Upper;
use self::upper_id::UpperId;
use crate::callback::Callback;
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::layer::access::Access;
use crate::layer::meta::Meta;
use crate::stack::overlayfs::XattrNamespace;
use crate::tree::size::{self, Inodes, TreeSize};
use crate::tree::walk::work_queue;

/// How the upper directory of an overlay becomes a layer.
///
/// The layer is right in any later stack, above or below siblings that it never saw, and an overlay
/// of it and the same lowers shows what the overlay of the upper showed. The upper has to be
/// unmounted.
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
/// - Whiteouts stay, as character devices 0:0. A directory that has some gets an empty `origin`
///   attribute: without it the kernel lists names that cannot be found where no other layer has
///   that directory.
/// - An opaque directory, which a command leaves that removes one and makes it again, hides all of
///   its name in all layers below, those that it never saw among them. It becomes a plain one with
///   whiteouts for what it hid in the lowers that the upper was made over, and so do the
///   directories below it.
/// - Overlayfs's other attributes (`origin`, `impure`, `uuid`, `nlink`, …) mean something to the
///   old mount only, and go.
/// - What the run [made](Self::made) goes, unless the command changed it, and so does a directory
///   that the kernel has copied for nothing else. The modification times of directories stay what
///   they were. A command that wrote nothing leaves an empty tree.
/// - All else stays as it is: it is moved, not copied.
///
/// # After a power cut or a kill
/// The layer is whole or not there. The tree and the future `layer.json` are made durable by one
/// sync of the file system (syncfs(2)), which concurrent captures of one process share. Only then
/// is the tree moved. When that is durable, too, `layer.json` gets its name.
///
/// A capture that was killed at any moment can be repeated with the same arguments: it finds the
/// upper where it was, or it finds the tree moved and completes the layer. A
/// [`Collector`](crate::Collector) does the same for a tree that was moved.
///
/// # Twice at once
/// One of two concurrent captures of a layer wins. The other, in whichever process, fails with
/// [`Error::AlreadyCaptured`] and has changed nothing. The layer's directory may exist, with
/// sidecars and a log in it, which are then as durable as the layer.
#[derive(Debug, Clone)]
#[must_use = "it captures when `into_layer` is called"]
pub struct Capture<'a> {
    lowers: Vec<PathBuf>,
    made: Option<Vec<Made>>,
    upper: Option<UpperId>,
    access: Option<Access>,
    xattrs: XattrNamespace,
    latest: Option<SystemTime>,
    threads: NonZeroUsize,
    progress: Callback<'a, dyn Fn(Step) + Sync + 'a>,
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
    /// All of it is made durable.
    Sync,
    /// The tree is moved to `fs`, durably.
    Move,
    /// `layer.json` gets its name: the layer is there.
    Publish,
    /// The name is made durable.
    Finish,
}

impl Step {
    /// All steps, in order.
    pub const ALL: [Step; 7] =
        [Step::TakeOut, Step::Settle, Step::Stage, Step::Sync, Step::Move, Step::Publish, Step::Finish];
}

impl<'a> Capture<'a> {
    /// Captures uppers that were made over `lowers`, in the order of the mount: **topmost first**,
    /// the base last. They are only read, and only where the upper has an opaque directory or
    /// something was [made](Self::made).
    pub fn new(lowers: impl IntoIterator<Item = impl Into<PathBuf>>) -> Self {
        Self {
            lowers: lowers.into_iter().map(Into::into).collect(),
            made: None,
            upper: None,
            access: None,
            xattrs: XattrNamespace::default(),
            latest: None,
            threads: work_queue::usual_threads(),
            progress: Callback::default(),
        }
    }

    /// What the run put into the upper besides the command. What the run has [recorded](RunRecord)
    /// on the upper itself is known without this.
    pub fn made(mut self, made: impl IntoIterator<Item = Made>) -> Self {
        self.made = Some(made.into_iter().collect());
        self
    }

    /// Captures no upper but this one, wherever it has been moved to.
    pub fn of_upper(mut self, id: UpperId) -> Self {
        self.upper = Some(id);
        self
    }

    /// Gives the layer's directory this mode and group. Without this, a directory that the capture
    /// makes is only for its owner (0700), and one that exists keeps its mode.
    pub fn access(mut self, access: Access) -> Self {
        self.access = Some(access);
        self
    }

    /// Reads and writes overlayfs's attributes in `namespace`.
    pub fn xattrs(mut self, namespace: XattrNamespace) -> Self {
        self.xattrs = namespace;
        self
    }

    /// Makes every modification time in the tree that is later than `latest` be `latest`, so that a
    /// build that is repeated comes to the same tree: `SOURCE_DATE_EPOCH` of
    /// <https://reproducible-builds.org/specs/source-date-epoch/>.
    pub fn clamp_times(mut self, latest: SystemTime) -> Self {
        self.latest = Some(latest);
        self
    }

    /// Works with at most `threads` threads.
    pub fn threads(mut self, threads: NonZeroUsize) -> Self {
        self.threads = threads;
        self
    }

    /// Calls `progress` before each step.
    pub fn progress(mut self, progress: &'a (dyn Fn(Step) + Sync + 'a)) -> Self {
        self.progress = Callback(Some(progress));
        self
    }

    /// Makes the upper directory `upper` the tree of `layer`, and writes `meta` as its
    /// `layer.json`, with `disk_usage` and `created_at` filled in.
    ///
    /// The layer's directory is made if it is missing; the one that it is in must exist. The upper
    /// must be on the same file system, and is moved; it may also stand in the layer's directory as
    /// `fs` already. When this returns, the layer is durable.
    ///
    /// A lower that does not exist any more is no error unless the upper replaces a directory of
    /// the lowers.
    ///
    /// # Errors
    /// - [`Error::NotADirectory`] if the upper, a lower or the layer is not a directory.
    /// - [`Error::UpperIsLower`], [`Error::UpperOverlapsLower`], [`Error::UpperIsLayers`],
    ///   [`Error::AnotherUpper`], [`Error::LayerInsideTree`], [`Error::RootDirectory`],
    ///   [`Error::AlreadyCaptured`], [`Error::TreeInTheWay`], [`Error::OtherFileSystem`],
    ///   [`Error::MadeUnknown`]: nothing has been changed.
    /// - [`Error::LowerMissing`] if a missing lower is needed.
    /// - [`Error::Unmergeable`] for an upper that was written with `redirect_dir` or `metacopy` on.
    /// - [`Error::MountInside`] if something is mounted in the upper or in a lower.
    /// - [`Error::Io`] names what could not be read, changed or moved.
    ///
    /// There is then no layer, and the upper is where it was, unless [`Error::NotMovedBack`] says
    /// otherwise. Over the same lowers it shows what it showed, and it can be captured again. Only
    /// if the very last step fails, [`Step::Finish`], the layer is there and may not be after a
    /// power cut.
    pub fn into_layer(&self, upper: impl AsRef<Path>, layer: &Layer, meta: Meta) -> Result<Captured> {
        let upper = match Upper::open(upper.as_ref()) {
            Err(missing @ Error::NotADirectory { .. }) => return self.finish_killed(upper.as_ref(), layer, missing),
            upper => upper?,
        };
        if self.upper.is_some_and(|id| UpperId::of_open(upper.root.as_fd()) != Ok(id)) {
            return Err(Error::AnotherUpper { upper: upper.path });
        }
        let below = Lowers::open(&self.lowers, self.xattrs)?;
        refuse::refuse(&upper, below.present(), layer, self.xattrs)?;
        let record = RunRecord::of(upper.root.as_fd(), &upper.path, self.xattrs)?.unwrap_or_default();
        let made = match (&self.made, record.made) {
            (made, Some(mut recorded)) => {
                recorded
                    .extend(made.iter().flatten().filter(|made| !recorded.contains(made)).cloned().collect::<Vec<_>>());
                recorded
            }
            (Some(made), None) => made.clone(),
            (None, None) => return Err(Error::MadeUnknown { upper: upper.path }),
        };
        let lock = CaptureLock::take(layer)?;
        let work = Self::place(&lock, &upper).and_then(|stage| {
            let filling =
                Filling { upper: &upper, below: &below, made, root_mode: record.root_mode, lock: &lock, stage };
            self.fill(&filling, meta)
        });
        if work.is_err() && !matches!(work, Err(Error::NotMovedBack { .. })) {
            lock.give_up();
        }
        work
    }

    /// Whether the tree stands in the layer's directory already, or will be moved there.
    fn place(lock: &CaptureLock<'_>, upper: &Upper) -> Result<Stage> {
        let layer = lock.layer();
        let own = (upper.stat.st_dev, upper.stat.st_ino);
        match lock.look()? {
            Found::Layer => return Err(Error::AlreadyCaptured { layer: layer.path().into() }),
            Found::Sealed { tree } | Found::Unfinished { tree: Some(tree) } if tree == own => return Ok(Stage::Staged),
            Found::Sealed { .. } => {
                // Of another upper, whose capture was killed.
                lock.publish()?;
                return Err(Error::AlreadyCaptured { layer: layer.path().into() });
            }
            Found::Unfinished { tree: Some(_) } => return Err(Error::TreeInTheWay { path: layer.fs() }),
            Found::Unfinished { tree: None } => {}
        }
        upper.require_same_mount(lock)?;
        Ok(Stage::Sealed)
    }

    /// Completes a capture that was killed after it had moved `upper`, which is `missing` now.
    fn finish_killed(&self, upper: &Path, layer: &Layer, missing: Error) -> Result<Captured> {
        let Some(lock) = CaptureLock::take_existing(layer)? else { return Err(missing) };
        let is_ours = match self.upper {
            Some(id) => UpperId::of(layer.fs()).is_ok_and(|tree| tree == id),
            None => lock.has_moved_from(upper, self.xattrs),
        };
        match lock.look()? {
            Found::Sealed { .. } if is_ours => lock.publish()?,
            // Nothing but the last sync may be missing.
            Found::Layer if is_ours => lock.sync()?,
            _ => return Err(missing),
        }
        Ok(Captured { size: layer.measure()?, ..Captured::default() })
    }

    fn fill(&self, filling: &Filling<'_>, meta: Meta) -> Result<Captured> {
        let Filling { upper, below, made, root_mode, lock, stage } = filling;
        let (root, layer) = (upper.root.as_fd(), lock.layer());
        self.reach(Step::TakeOut);
        let taken_out = TakingOut { root, path: &upper.path, below, xattrs: self.xattrs }.run(made)?;
        self.reach(Step::Settle);
        let mut captured = Captured { taken_out, ..self.settle(upper, below)? };
        // The list in it may have a block of its own, which is not the layer's.
        RunRecord::shorten(root, &upper.path, self.xattrs, *root_mode)?;
        let stat = fstat(root).map_err(Error::io("look at", &upper.path))?;
        captured.size.bytes += size::allocated(&stat);

        self.reach(Step::Stage);
        let meta = Meta { disk_usage: captured.size.bytes, created_at: SystemTime::now(), ..meta };
        lock.stage(&meta)?;
        // Before anything can be reached by its name in the layer.
        lock.open_to(self.access)?;
        if *stage == Stage::Sealed {
            lock.record_upper(&upper.path, self.xattrs);
        }
        self.reach(Step::Sync);
        barrier::sync(lock.dir()).map_err(Error::io("sync the file system of", layer.path()))?;
        if let Some(mode) = root_mode {
            let mode = Mode::from_raw_mode(*mode);
            fchmod(root, mode).map_err(Error::io("change the mode of", &upper.path))?;
        }
        RunRecord::shorten(root, &upper.path, self.xattrs, None)?;
        self.reach(Step::Move);
        if *stage == Stage::Sealed {
            lock.seal()?;
            upper.move_to(lock.dir(), layer)?;
        }
        // From here on a failure has to move the upper back.
        let published = lock.sync().and_then(|()| {
            self.reach(Step::Publish);
            lock.publish_from(*stage)
        });
        if let Err(failure) = published {
            return Err(match stage {
                Stage::Sealed => upper.move_back(lock.dir(), layer, failure),
                Stage::Staged => failure,
            });
        }
        self.reach(Step::Finish);
        lock.sync()?;
        Ok(captured)
    }

    fn reach(&self, step: Step) {
        if let Some(progress) = self.progress.0 {
            progress(step);
        }
    }

    fn settle(&self, upper: &Upper, below: &Lowers) -> Result<Captured> {
        let shared = Shared {
            root: upper.root.as_fd(),
            path: &upper.path,
            below,
            xattrs: self.xattrs,
            latest: self.latest.map(timespec),
            inodes: Inodes::default(),
        };
        let workers = work_queue::run(self.threads, Job::root(), || Worker::new(&shared), Worker::settle)?;
        let mut captured = Captured::default();
        for worker in workers {
            captured += worker.captured();
        }
        Ok(captured)
    }
}

/// A capture under way.
struct Filling<'a> {
    upper: &'a Upper,
    below: &'a Lowers,
    made: Vec<Made>,
    /// The mode of the upper's root, if it was closed since the run.
    root_mode: Option<u32>,
    lock: &'a CaptureLock<'a>,
    /// The mark by which `layer.json` is published: [`Stage::Sealed`] if the tree has to be moved.
    stage: Stage,
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
