//! The options of a run, which the caller sets.
//!
//! `container::Supervision` has the options of the running command. `run` applies all of them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use container::{Cancel, DeviceNodes, Init, Input, Output, OverlayXattrs, Runtime, Signals, Supervision};
use layer::Rung;

use crate::events::{Event, Watch};
use crate::{BoxError, RecordEnv, Stacks, Upper};

/// The options of a run. Each has a default.
///
/// The options of the running command (its streams, limits and signals) have the same setters here
/// as in [`Supervision`].
///
/// ```
/// # use std::time::Duration;
/// let options = runner::Options::new()
///     .scratch("/var/cache/layers/scratch")
///     .runtime(container::Runtime::new("crun"))
///     .timeout(Duration::from_secs(3600))
///     .prep_upper(|upper, _lowers| Ok(std::fs::create_dir_all(upper.join("home/build"))?));
/// ```
#[must_use]
pub struct Options<'a> {
    pub(crate) scratch: PathBuf,
    pub(crate) skeletons: Option<PathBuf>,
    pub(crate) runtime: Runtime,
    pub(crate) limits: Limits,
    pub(crate) prep_upper: Option<PrepUpper<'a>>,
    pub(crate) devices: DeviceNodes,
    pub(crate) xattrs: OverlayXattrs,
    pub(crate) etc: EtcFiles,
    pub(crate) over: Option<Upper>,
    pub(crate) destination: Option<PathBuf>,
    pub(crate) cleanup: Cleanup,
    pub(crate) stacks: Option<&'a Stacks>,
    pub(crate) record_env: RecordEnv,
    pub(crate) watch: Option<Watch<'a>>,
    pub(crate) supervision: Supervision<'a>,
}

/// The caller's limits on the lowers of the overlay, in addition to the kernel's.
#[derive(Debug)]
pub(crate) struct Limits {
    /// The only rung to mount on. `None` for any rung that the kernel has.
    pub(crate) rung: Option<Rung>,
    pub(crate) max_lowers: usize,
    pub(crate) max_option_bytes: usize,
}

pub(crate) type PrepUpper<'a> = Box<dyn FnOnce(&Path, &[PathBuf]) -> Result<(), BoxError> + Send + 'a>;

/// When a run removes its leftovers: the work directory and merged layers, but not the upper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Cleanup {
    /// Removes them before [`run`](crate::run) returns.
    #[default]
    Awaited,
    /// Removes them on a separate thread, while the caller works with the result: see
    /// [`Report::removal`](crate::Report::removal). Removing waits for the disk, and takes longer
    /// if the disk is busy. A merged tree can have all the entries of its layers.
    Behind,
}

/// Whether the run puts `/etc/hosts` and `/etc/resolv.conf` into the upper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum EtcFiles {
    /// Without a network, creates an `/etc/hosts` with `localhost` and the hostname. With the
    /// host's network or an existing network namespace, copies the host's two files, and adds the
    /// hostname to `/etc/hosts` if it is missing there. With a private network, creates the same
    /// `/etc/hosts` as without a network, and an `/etc/resolv.conf` with name servers that the
    /// container can reach. Leaves a file alone if `prep_upper` has created it or a mount covers
    /// it.
    #[default]
    Provided,
    /// Leaves the stack's own files in place.
    FromLayers,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> Options<'a> {
    /// Returns the defaults: the scratch directory is the system's temporary directory, the runtime
    /// is runc, the command has no input and no time limit, and output is discarded.
    pub fn new() -> Self {
        Self {
            scratch: std::env::temp_dir(),
            skeletons: None,
            runtime: Runtime::default(),
            limits: Limits {
                rung: None,
                max_lowers: container::MAX_LOWERS,
                max_option_bytes: container::MAX_OPTION_BYTES,
            },
            prep_upper: None,
            devices: DeviceNodes::default(),
            xattrs: OverlayXattrs::of_process(),
            etc: EtcFiles::default(),
            over: None,
            destination: None,
            cleanup: Cleanup::default(),
            stacks: None,
            record_env: RecordEnv::default(),
            watch: None,
            supervision: Supervision::new(),
        }
    }

    /// Sets the directory in which the run creates its own directory. If it is on the same file
    /// system as the layers, a merge links files instead of copying them, and the upper can be
    /// renamed to a path beside the layers. The directory cannot be on overlayfs.
    pub fn scratch(mut self, dir: impl Into<PathBuf>) -> Self {
        self.scratch = dir.into();
        self
    }

    /// Sets the directory that keeps the [skeletons](crate::Report::skeleton) of layers that belong
    /// to somebody else, for later runs over the same layers. By default, that is the directory in
    /// which the run creates its own. At most eight skeletons stay there, and a
    /// [sweep](crate::sweep) removes them.
    pub fn skeletons(mut self, dir: impl Into<PathBuf>) -> Self {
        self.skeletons = Some(dir.into());
        self
    }

    /// Sets the runtime. The runtime's own files are in memory, in the run's mount namespace. They
    /// may use at most 64 MiB, and none of them can be executed.
    pub fn runtime(mut self, runtime: Runtime) -> Self {
        self.runtime = runtime;
        self
    }

    /// Sets what the [record of the command](crate::CommandRecord) contains of the environment. By
    /// default, it contains no values.
    pub fn record_env(mut self, env: RecordEnv) -> Self {
        self.record_env = env;
        self
    }

    /// Mounts on `rung`, even if the kernel offers a better one.
    pub fn rung(mut self, rung: impl Into<Option<Rung>>) -> Self {
        self.limits.rung = rung.into();
        self
    }

    /// Stacks at most `lowers` directories, including the base and the merged one, and merges the
    /// rest. The kernel's own limit still applies.
    pub fn max_lowers(mut self, lowers: usize) -> Self {
        self.limits.max_lowers = lowers.min(container::MAX_LOWERS);
        self
    }

    /// Uses at most `bytes` bytes for the options of mount(2), if the run uses mount(2). The
    /// kernel's own limit still applies.
    pub fn max_option_bytes(mut self, bytes: usize) -> Self {
        self.limits.max_option_bytes = bytes.min(container::MAX_OPTION_BYTES);
        self
    }

    /// Sets a function that puts files for the command into the upper before the overlay is
    /// mounted. Its arguments are the upper, and the lowers in mount order: the topmost first, the
    /// base last. The upper's root already has the attributes that the merged root will show.
    pub fn prep_upper(mut self, prepare: impl FnOnce(&Path, &[PathBuf]) -> Result<(), BoxError> + Send + 'a) -> Self {
        self.prep_upper = Some(Box::new(prepare));
        self
    }

    /// Sets whether device nodes in the layers and the upper can be opened, if the template's rules
    /// and the runtime allow it. crun remounts the root file system and thereby loses
    /// [`DeviceNodes::Inert`].
    pub fn devices(mut self, devices: DeviceNodes) -> Self {
        self.devices = devices;
        self
    }

    /// Sets the namespace of the overlay xattrs in the layers and the upper. The default is the one
    /// that this process [can write](OverlayXattrs::of_process). As root, use
    /// [`OverlayXattrs::User`] for layers that unprivileged mounts have created.
    pub fn xattrs(mut self, xattrs: OverlayXattrs) -> Self {
        self.xattrs = xattrs;
        self
    }

    /// Sets the source of `/etc/hosts` and `/etc/resolv.conf`.
    pub fn etc_files(mut self, etc: EtcFiles) -> Self {
        self.etc = etc;
        self
    }

    /// Runs over the upper of an earlier run, usually one that was kept and is [opened
    /// again](Upper::reopen). The command finds the upper as the earlier run left it, and writes to
    /// it.
    ///
    /// The run uses the directory in which the upper was kept, whatever [`scratch`](Self::scratch)
    /// says. After the run the upper is still kept there, even if the run fails. This run's report
    /// does not list what the earlier run [made](crate::Report::made); the earlier run's report
    /// does.
    pub fn over(mut self, upper: Upper) -> Self {
        self.over = Some(upper);
        self
    }

    /// Refuses the run, before it makes anything, if its upper could not be moved to `path` later
    /// because of where that is: in a tree of the layers or the base, where the upper would change
    /// a layer that is in use, or in the directory of a run. The parent of `path` must exist.
    ///
    /// The run then fails with [`Cause::UpperInLayer`](crate::Cause::UpperInLayer) or
    /// [`Cause::InRunDirectory`](crate::Cause::InRunDirectory).
    pub fn destination(mut self, path: impl Into<PathBuf>) -> Self {
        self.destination = Some(path.into());
        self
    }

    /// Sets when the run removes its leftovers.
    pub fn cleanup(mut self, cleanup: Cleanup) -> Self {
        self.cleanup = cleanup;
        self
    }

    /// Shares the lowest layers of the stack with other runs that have the same `stacks`: see
    /// [`Stacks`].
    pub fn stacks(mut self, stacks: impl Into<Option<&'a Stacks>>) -> Self {
        self.stacks = stacks.into();
        self
    }

    /// Sets a function that gets the run's [`Event`]s as they happen: when a phase begins and ends,
    /// and when the command starts. It runs on a thread of the run, which waits for it; a slow
    /// function slows the run down. If it panics, the run ends and leaves nothing, and the panic
    /// continues in the caller of [`run`](crate::run). After a failed unmount, which leaves the
    /// run's directory, it gets no more events.
    ///
    /// ```
    /// use runner::{Event, Options};
    ///
    /// let options = Options::new().watch(|event| match event {
    ///     Event::Began(phase) => eprintln!("{phase} …"),
    ///     Event::Ended(phase, time) => eprintln!("{phase}: {time:?}"),
    ///     _ => {}
    /// });
    /// # drop(options);
    /// ```
    pub fn watch(mut self, function: impl FnMut(&Event) + Send + 'a) -> Self {
        self.watch = Some(Box::new(function));
        self
    }

    /// Changes the options of the running command. The setters below use it.
    fn supervise(mut self, change: impl FnOnce(Supervision<'a>) -> Supervision<'a>) -> Self {
        self.supervision = change(self.supervision);
        self
    }

    /// Sets [`Supervision::stdin`].
    pub fn stdin(self, stdin: Input) -> Self {
        self.supervise(|command| command.stdin(stdin))
    }

    /// Sets [`Supervision::stdout`].
    pub fn stdout(self, stdout: Output<'a>) -> Self {
        self.supervise(|command| command.stdout(stdout))
    }

    /// Sets [`Supervision::stderr`].
    pub fn stderr(self, stderr: Output<'a>) -> Self {
        self.supervise(|command| command.stderr(stderr))
    }

    /// Sets [`Supervision::init`].
    pub fn init(self, init: Init) -> Self {
        self.supervise(|command| command.init(init))
    }

    /// Sets [`Supervision::timeout`].
    pub fn timeout(self, timeout: impl Into<Option<Duration>>) -> Self {
        self.supervise(|command| command.timeout(timeout))
    }

    /// Sets [`Supervision::grace`].
    pub fn grace(self, grace: impl Into<Option<Duration>>) -> Self {
        self.supervise(|command| command.grace(grace))
    }

    /// Sets [`Supervision::release_pages`].
    pub fn release_pages(self, delay: impl Into<Option<Duration>>) -> Self {
        self.supervise(|command| command.release_pages(delay))
    }

    /// Sets [`Supervision::output_limit_bytes`].
    pub fn output_limit_bytes(self, bytes: impl Into<Option<u64>>) -> Self {
        self.supervise(|command| command.output_limit_bytes(bytes))
    }

    /// Sets [`Supervision::signals`].
    pub fn signals(self, signals: impl Into<Option<Signals>>) -> Self {
        self.supervise(|command| command.signals(signals))
    }

    /// Sets [`Supervision::cancel`]. Before the command has started, `cancel` ends the run,
    /// including a merge that is in progress.
    pub fn cancel(self, cancel: impl Into<Option<Cancel>>) -> Self {
        self.supervise(|command| command.cancel(cancel))
    }
}

impl fmt::Debug for Options<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Options")
            .field("scratch", &self.scratch)
            .field("runtime", &self.runtime)
            .field("limits", &self.limits)
            .field("watch", &self.watch.as_ref().map(|_| ".."))
            .field("prep_upper", &self.prep_upper.as_ref().map(|_| ".."))
            .field("supervision", &self.supervision)
            .finish_non_exhaustive()
    }
}
