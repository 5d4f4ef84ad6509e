//! Turns an upper that a command has written into a layer that is right in any stack.
//! `capture/directory.rs` changes the tree; `capture/lock.rs` makes the layer appear complete or
//! not at all.

pub(crate) mod barrier;
mod directory;
pub(crate) mod lock;
mod lowers;
pub(crate) mod made;
mod namespace;
mod publish;
pub(crate) mod record;
mod refuse;
#[cfg(test)]
mod tests;
mod upper;
pub(crate) mod upper_id;

use std::num::NonZeroUsize;
use std::ops::AddAssign;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::AtomicUsize;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{Mode, Timespec, fchmod, fstat};
use rustix::io::Errno;
use serde_json::Value;

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
use crate::stack::sources::Unreadable;
use crate::store::hold::Hold;
use crate::tree::size::{self, Inodes, TreeSize};
use crate::tree::walk::work_queue::{self, Threads};

/// Turns the upper directory of an unmounted overlay into a layer.
///
/// The new layer can be stacked anywhere: above or below layers that did not exist when the command
/// ran. Stacked over the same lowers again, it shows exactly what the command left behind.
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
/// # What happens to the contents
/// - **Deleted files** stay deleted. Overlayfs records a deletion as a *whiteout*, a character
///   device 0:0, and `Capture` keeps it. It also sets an empty `origin` xattr on the directory that
///   contains the whiteout. Without that xattr, the kernel would list the name of the whiteout in a
///   directory that no other layer has. Root sets it in both
///   [namespaces](crate::XattrNamespace), for mounts of root and of ordinary users.
/// - **Recreated directories** no longer hide other layers' files. If a command removes a directory
///   and creates it again, overlayfs marks the new directory *opaque*: it hides everything of that
///   name in every layer below, including layers that the command never saw. `Capture` removes the
///   mark and instead adds one whiteout for each entry that the directory hid in the lowers of this
///   run. It does the same for the directories inside it.
/// - **Overlayfs's other xattrs** (`origin`, `impure`, `uuid`, `nlink`, …) are removed: they have a
///   meaning only for the old mount.
/// - **Files that the run itself created** ([`made`](Self::made)) are removed, unless the command
///   changed them. A directory that the kernel copied up only to hold them is removed too. The
///   modification times of directories are restored. A command that wrote nothing leaves an empty
///   tree.
/// - **Everything else** stays as it is: the tree is moved, not copied.
///
/// # After a power cut or a kill
/// The layer is either complete or absent. A sync of the file system (syncfs(2)) makes the tree and
/// the future `layer.json` durable; concurrent captures of one process share the sync. Only then
/// does the capture move the tree. When the move is durable, too, `layer.json` gets its name. In a
/// [draft](Self::publish), `layer.json` gets its name first; one sync makes both durable before the
/// layer appears. A capture of a large upper starts an additional sync early, so that the later one
/// finds less to write.
///
/// A capture that was killed at any moment can be repeated with the same arguments. Either it finds
/// the upper where it was, or it finds the tree moved and completes the layer. A
/// [`Collector`](crate::Collector) does the same for a tree that was moved.
///
/// # Twice at once
/// If two captures make the same layer concurrently, in one process or in two, one of them wins.
/// The other one fails with [`Error::AlreadyCaptured`], and does not change its upper.
///
/// The layer's directory may already exist, with sidecars and a log in it. The capture makes these
/// as durable as the layer. If a run uses the directory and has locked it, the capture fails with
/// [`Error::DestinationLocked`].
#[derive(Debug, Clone)]
#[must_use = "it captures when `into_layer` is called"]
pub struct Capture<'a> {
    lowers: Vec<PathBuf>,
    held: Option<&'a Hold>,
    made: Option<Vec<Made>>,
    upper: Option<UpperId>,
    access: Option<Access>,
    xattrs: XattrNamespace,
    unreadable: Unreadable,
    latest: Option<SystemTime>,
    sidecars: Vec<(String, Value)>,
    threads: Threads,
    progress: Callback<'a, dyn Fn(Step) + Sync + 'a>,
}

/// The result of a capture.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Captured {
    /// The layer's tree, as [`TreeSize::of`] measures it. Its bytes are recorded as `disk_usage`.
    pub size: TreeSize,
    /// The number of files and directories that were removed because the run, and not the command,
    /// had made them.
    pub taken_out: u64,
    /// The number of directories that were opaque.
    pub opaques: u64,
    /// The number of whiteouts that were made, for entries that the opaque directories hid and in
    /// place of whiteouts in the form of xattrs.
    pub whiteouts: u64,
}

/// A step of a capture. The variants are in the order of the steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Step {
    /// The capture removes the files that the run made from the upper.
    TakeOut,
    /// The capture walks the upper, and changes overlay xattrs, opaque directories and times. In a
    /// large upper, a first sync of the file system begins at the same time, and this step waits
    /// for it.
    Settle,
    /// The capture writes `layer.json` under a temporary name.
    Stage,
    /// The capture makes the tree and this file durable, by one sync of the file system.
    Sync,
    /// The capture moves the tree to `fs`. It makes the move durable, except in a draft, where the
    /// last step does that.
    Move,
    /// The capture renames the file to `layer.json`. The layer exists from then on, in a draft once
    /// that is published.
    Publish,
    /// The capture makes the name durable.
    Finish,
}

impl Step {
    /// All steps, in order.
    pub const ALL: [Step; 7] =
        [Step::TakeOut, Step::Settle, Step::Stage, Step::Sync, Step::Move, Step::Publish, Step::Finish];
}

impl<'a> Capture<'a> {
    /// Captures uppers that were made over `lowers`, in the order of the mount: **topmost first**,
    /// the base last. The capture only reads them, and only where the upper has an opaque directory
    /// or the run [made](Self::made) something.
    pub fn new(lowers: impl IntoIterator<Item = impl Into<PathBuf>>) -> Self {
        Self {
            lowers: lowers.into_iter().map(Into::into).collect(),
            held: None,
            made: None,
            upper: None,
            access: None,
            xattrs: XattrNamespace::default(),
            unreadable: Unreadable::default(),
            latest: None,
            sidecars: Vec::new(),
            threads: Threads::Usual,
            progress: Callback::default(),
        }
    }

    /// Takes no second hold on the lowers that `hold` holds already, which saves time if there are
    /// many. The capture holds the others itself.
    pub fn held(mut self, hold: &'a Hold) -> Self {
        self.held = Some(hold);
        self
    }

    /// Sets the files that the run, and not the command, put into the upper. The files that the run
    /// has [recorded](RunRecord) on the upper itself need not be among them.
    pub fn made(mut self, made: impl IntoIterator<Item = Made>) -> Self {
        self.made = Some(made.into_iter().collect());
        self
    }

    /// Captures only the upper with this identity, wherever it has been moved to.
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

    /// Reads and writes the overlay xattrs in `namespace`.
    pub fn xattrs(mut self, namespace: XattrNamespace) -> Self {
        self.xattrs = namespace;
        self
    }

    /// Hides directories of the lowers that this process may not list or search, for an upper that
    /// a command wrote over a [`Skeleton`](crate::Skeleton) of them. The command could not list
    /// these directories, so it has not replaced them. Without this, an opaque directory in the
    /// upper over such a directory is an error: its deletions cannot be recorded.
    pub fn hide_unreadable(mut self) -> Self {
        self.unreadable = Unreadable::Hidden;
        self
    }

    /// Sets every modification time in the tree that is later than `latest` to `latest`, so that a
    /// repeated build results in the same tree: `SOURCE_DATE_EPOCH` of
    /// <https://reproducible-builds.org/specs/source-date-epoch/>.
    pub fn clamp_times(mut self, latest: SystemTime) -> Self {
        self.latest = Some(latest);
        self
    }

    /// Writes a [sidecar](Layer::write_sidecar) with this name into the layer. The sidecar is there
    /// as soon as the layer appears, even if the capture is killed and a later one completes it. If
    /// the layer's directory already has a file of that name, the file stays, and the capture logs
    /// a warning in place of the sidecar.
    pub fn sidecar(mut self, name: impl Into<String>, value: Value) -> Self {
        self.sidecars.push((name.into(), value));
        self
    }

    /// Works with at most `threads` threads.
    pub fn threads(mut self, threads: NonZeroUsize) -> Self {
        self.threads = threads.into();
        self
    }

    /// Calls `progress` before each step.
    pub fn progress(mut self, progress: &'a (dyn Fn(Step) + Sync + 'a)) -> Self {
        self.progress = Callback(Some(progress));
        self
    }

    /// Turns the upper directory `upper` into the tree of `layer`, and writes `meta` as its
    /// `layer.json`. Sets `disk_usage` and `created_at` in it.
    ///
    /// Makes the layer's directory if it is missing; its parent must exist. Moves the upper into
    /// this directory, so the upper must be on the same mount. The upper may also already be `fs`
    /// in the layer's directory. When this returns, the layer is durable.
    ///
    /// It is not an error if a lower does not exist any more, unless the upper has an opaque
    /// directory.
    ///
    /// # Errors
    /// - [`Error::NotADirectory`] if the upper, a lower or the layer is not a directory.
    /// - [`Error::UpperIsLower`], [`Error::UpperOverlapsLower`], [`Error::UpperIsLayers`],
    ///   [`Error::AnotherUpper`], [`Error::LayerInsideTree`], [`Error::RootDirectory`],
    ///   [`Error::AlreadyCaptured`], [`Error::DestinationLocked`], [`Error::TreeInTheWay`],
    ///   [`Error::OtherFileSystem`], [`Error::MadeUnknown`]: the upper is unchanged.
    /// - [`Error::SidecarName`] if a [sidecar](Self::sidecar) cannot have its name.
    /// - [`Error::LowerMissing`] if a missing lower is needed.
    /// - [`Error::Unmergeable`] for an upper that was written with `redirect_dir` or `metacopy` on.
    /// - [`Error::MountInside`] if something is mounted in the upper or in a lower.
    /// - [`Error::Io`] names what could not be read, changed or moved.
    ///
    /// After an error, the upper is not a layer, and it is where it was, unless
    /// [`Error::NotMovedBack`] says otherwise. It can be captured again. Files that the run made
    /// may be gone, and times may already be clamped. Apart from that, the upper shows over the
    /// same lowers what it showed before.
    ///
    /// The only exception is a failure of the last step, [`Step::Finish`]: the layer exists, and
    /// may be gone after a power cut.
    pub fn into_layer(&self, upper: impl AsRef<Path>, layer: &Layer, meta: Meta) -> Result<Captured> {
        self.capture(upper.as_ref(), layer, meta, Appearance::WithMeta)
    }

    fn capture(&self, upper: &Path, layer: &Layer, meta: Meta, appearance: Appearance) -> Result<Captured> {
        let upper = match Upper::open(upper) {
            Err(missing @ Error::NotADirectory { .. }) => return self.finish_killed(upper, layer, missing),
            upper => upper?,
        };
        if self.upper.is_some_and(|id| UpperId::of_open(upper.root.as_fd()) != Ok(id)) {
            return Err(Error::AnotherUpper { upper: upper.path });
        }
        let below = Lowers::open(&self.lowers, self.held, self.xattrs, self.unreadable)?;
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
            let root_mode = record.root_mode;
            let filling = Filling { upper: &upper, below: &below, made, root_mode, lock: &lock, stage, appearance };
            self.fill(&filling, meta)
        });
        if work.is_err() && !matches!(work, Err(Error::NotMovedBack { .. })) {
            lock.give_up();
        }
        work
    }

    /// Decides whether the tree is already in the layer's directory or must be moved there.
    fn place(lock: &CaptureLock<'_>, upper: &Upper) -> Result<Stage> {
        let layer = lock.layer();
        let own = (upper.stat.st_dev, upper.stat.st_ino);
        match lock.look()? {
            Found::Layer => return Err(Error::AlreadyCaptured { layer: layer.path().into() }),
            Found::Sealed { tree } | Found::Unfinished { tree: Some(tree) } if tree == own => return Ok(Stage::Staged),
            Found::Sealed { .. } => {
                // The tree is another upper, whose capture was killed.
                lock.publish()?;
                return Err(Error::AlreadyCaptured { layer: layer.path().into() });
            }
            Found::Unfinished { tree: Some(_) } => return Err(Error::TreeInTheWay { path: layer.fs() }),
            Found::Unfinished { tree: None } => {}
        }
        upper.require_same_mount(lock)?;
        Ok(Stage::Sealed)
    }

    /// Completes a capture that was killed after it had moved `upper`. If there was no such
    /// capture, returns the error `missing`.
    fn finish_killed(&self, upper: &Path, layer: &Layer, missing: Error) -> Result<Captured> {
        let Some(lock) = CaptureLock::take_existing(layer)? else { return Err(missing) };
        let is_ours = match self.upper {
            Some(id) => UpperId::of(layer.fs()).is_ok_and(|tree| tree == id),
            None => lock.has_moved_from(upper, self.xattrs),
        };
        match lock.look()? {
            Found::Sealed { .. } if is_ours => lock.publish()?,
            // Only the last sync may be missing.
            Found::Layer if is_ours => lock.sync()?,
            _ => return Err(missing),
        }
        Ok(Captured { size: layer.measure()?, ..Captured::default() })
    }

    fn fill(&self, filling: &Filling<'_>, meta: Meta) -> Result<Captured> {
        let Filling { upper, below, made, root_mode, lock, stage, appearance } = filling;
        let (root, layer) = (upper.root.as_fd(), lock.layer());
        self.reach(Step::TakeOut);
        let taken_out = TakingOut { root, path: &upper.path, below, xattrs: self.xattrs }.run(made)?;
        self.reach(Step::Settle);
        let mut captured = Captured { taken_out, ..self.settle(upper, below, lock)? };
        // The list in the record may take a block, which must not count as part of the layer.
        RunRecord::shorten(root, &upper.path, self.xattrs, *root_mode)?;
        let stat = fstat(root).map_err(Error::io("look at", &upper.path))?;
        captured.size.bytes += size::allocated(&stat);

        self.reach(Step::Stage);
        let meta = Meta { disk_usage: captured.size.bytes, created_at: SystemTime::now(), ..meta };
        lock.stage(&meta)?;
        self.sidecars.iter().try_for_each(|(name, value)| lock.stage_sidecar(name, value))?;
        // Set the mode before any user can reach the tree through the layer's directory.
        lock.open_to(self.access)?;
        if *stage == Stage::Sealed {
            lock.record_upper(upper, self.xattrs);
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
        // From here on, the capture moves the upper back if a step fails.
        let moved = match appearance {
            Appearance::WithMeta => lock.sync(),
            // The last sync makes the move durable. The layer appears after that.
            Appearance::WithName => Ok(()),
        };
        let published = moved.and_then(|()| {
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

    /// Changes the tree. Concurrently, starts to write a large tree to the disk.
    fn settle(&self, upper: &Upper, below: &Lowers, lock: &CaptureLock<'_>) -> Result<Captured> {
        let early = EarlySync { dir: lock.dir(), outcome: OnceLock::new() };
        let captured = thread::scope(|scope| {
            let shared = Shared {
                root: upper.root.as_fd(),
                path: &upper.path,
                below,
                xattrs: self.xattrs,
                latest: self.latest.map(timespec),
                inodes: Inodes::default(),
                settled: AtomicUsize::default(),
                // Without the thread, the later sync does all of the work.
                many: &|| drop(thread::Builder::new().spawn_scoped(scope, || early.run())),
            };
            let workers = work_queue::run(self.threads, [Job::root()], || Worker::new(&shared), Worker::settle)?;
            let mut captured = Captured::default();
            for worker in workers {
                captured += worker.captured();
            }
            Ok(captured)
        })?;
        early.outcome.into_inner().unwrap_or(Ok(())).map_err(Error::io("sync the file system of", &upper.path))?;
        Ok(captured)
    }
}

/// A sync that begins while the capture still walks the upper. It makes nothing durable that the
/// capture relies on: it only leaves less for the sync in [`Step::Sync`].
struct EarlySync<'a> {
    dir: BorrowedFd<'a>,
    /// The kernel reports a failure to write only once, so the capture must not ignore it.
    outcome: OnceLock<rustix::io::Result<()>>,
}

impl EarlySync<'_> {
    fn run(&self) {
        let _runs_once = self.outcome.set(barrier::sync(self.dir));
    }
}

/// A capture in progress.
struct Filling<'a> {
    upper: &'a Upper,
    below: &'a Lowers,
    made: Vec<Made>,
    /// The mode of the upper's root in the run, if the root has been closed to other users since.
    root_mode: Option<u32>,
    lock: &'a CaptureLock<'a>,
    /// The mark that becomes `layer.json`: [`Stage::Sealed`] if the tree must be moved.
    stage: Stage,
    appearance: Appearance,
}

/// The moment from which on other programs see the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Appearance {
    /// When `layer.json` has its name.
    WithMeta,
    /// When the directory of the layer, which is a draft, gets its name in the store.
    WithName,
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

/// Converts a time to the kernel's form. The time may be before 1970.
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

/// Returns a function for `map_err` that describes a failed system call on a file of an upper.
fn failure(operation: &'static str, path: PathBuf) -> impl FnOnce(Errno) -> Error {
    move |errno| match errno {
        // The path leads into another mount, or the file to remove is a mount point.
        Errno::XDEV | Errno::BUSY => Error::MountInside { path },
        errno => Error::io(operation, path)(errno),
    }
}
