use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use container::{Cancel, DeviceNodes, Init, Input, Output, OverlayXattrs, Runtime, Signals};
use layer::Rung;

use crate::{BoxError, Upper};

/// How a run is made; everything has a default.
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
    pub(crate) runtime: Runtime,
    pub(crate) rung: Option<Rung>,
    pub(crate) max_lowers: usize,
    pub(crate) max_option_bytes: usize,
    pub(crate) prep_upper: Option<PrepUpper<'a>>,
    pub(crate) devices: DeviceNodes,
    pub(crate) xattrs: OverlayXattrs,
    pub(crate) etc: EtcFiles,
    pub(crate) over: Option<Upper>,
    pub(crate) cleanup: Cleanup,
    pub(crate) stdin: Input,
    pub(crate) stdout: Output<'a>,
    pub(crate) stderr: Output<'a>,
    pub(crate) init: Init,
    pub(crate) timeout: Option<Duration>,
    pub(crate) grace: Option<Duration>,
    pub(crate) cancel: Option<Cancel>,
    pub(crate) signals: Option<Signals>,
    pub(crate) output_limit_bytes: Option<u64>,
}

pub(crate) type PrepUpper<'a> = Box<dyn FnOnce(&Path, &[PathBuf]) -> Result<(), BoxError> + Send + 'a>;

/// When a run removes what is left but for the upper: the work directory, what was merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Cleanup {
    /// Before [`run`](crate::run) returns.
    #[default]
    Awaited,
    /// On a thread of its own, while the caller goes on with the result: see [`Report::removal`](crate::Report::removal). Removing
    /// waits for the disk, most of all where that is busy, and a merge has as many entries as its layers.
    Behind,
}

/// Whether the run puts `/etc/hosts` and `/etc/resolv.conf` into the upper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum EtcFiles {
    /// With an own network: an `/etc/hosts` with `localhost` and the hostname. With the host's network: copies of the host's
    /// two files. A file that `prep_upper` has made or that a mount covers is left alone.
    #[default]
    Provided,
    /// The stack's own files stay.
    FromLayers,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> Options<'a> {
    /// The defaults: scratch in the system's temporary directory, runc, no input, output thrown away, no time limit.
    pub fn new() -> Self {
        Self {
            scratch: std::env::temp_dir(),
            runtime: Runtime::default(),
            rung: None,
            max_lowers: container::MAX_LOWERS,
            max_option_bytes: container::MAX_OPTION_BYTES,
            prep_upper: None,
            devices: DeviceNodes::default(),
            xattrs: OverlayXattrs::default(),
            etc: EtcFiles::default(),
            over: None,
            cleanup: Cleanup::default(),
            stdin: Input::Null,
            stdout: Output::Null,
            stderr: Output::Null,
            init: Init::default(),
            timeout: None,
            grace: None,
            cancel: None,
            signals: None,
            output_limit_bytes: None,
        }
    }

    /// Where the run's own directory is made. On the file system of the layers, merging links files instead of copying them
    /// and the upper can be moved beside them. overlayfs itself cannot hold it.
    pub fn scratch(mut self, dir: impl Into<PathBuf>) -> Self {
        self.scratch = dir.into();
        self
    }

    /// The runtime. Its own files are in memory, in the run's mount namespace: 64 MiB at most, and nothing there can be executed.
    pub fn runtime(mut self, runtime: Runtime) -> Self {
        self.runtime = runtime;
        self
    }

    /// Mounts on `rung`, whether the kernel has a better one or not.
    pub fn rung(mut self, rung: Rung) -> Self {
        self.rung = Some(rung);
        self
    }

    /// Stacks at most so many directories, the base and the merged one included, and merges the rest. The kernel's own limit
    /// holds in any case.
    pub fn max_lowers(mut self, lowers: usize) -> Self {
        self.max_lowers = lowers.min(container::MAX_LOWERS);
        self
    }

    /// Uses at most so many bytes for the options of mount(2), where it is used. The kernel's own limit holds in any case.
    pub fn max_option_bytes(mut self, bytes: usize) -> Self {
        self.max_option_bytes = bytes.min(container::MAX_OPTION_BYTES);
        self
    }

    /// Is called before the overlay is mounted, to put into the upper what the command is to find: with the upper and the
    /// lowers in the order of the mount, topmost first, the base last. The upper's root has the attributes that it will show.
    pub fn prep_upper(mut self, prepare: impl FnOnce(&Path, &[PathBuf]) -> Result<(), BoxError> + Send + 'a) -> Self {
        self.prep_upper = Some(Box::new(prepare));
        self
    }

    /// Whether device nodes in the layers and the upper can be opened: those that the template's rules and the runtime allow. crun
    /// mounts its root anew and does not keep [`DeviceNodes::Inert`].
    pub fn devices(mut self, devices: DeviceNodes) -> Self {
        self.devices = devices;
        self
    }

    /// Where overlayfs's notes are, in the layers and in the upper: [`OverlayXattrs::User`] for layers that unprivileged mounts
    /// have made.
    pub fn xattrs(mut self, xattrs: OverlayXattrs) -> Self {
        self.xattrs = xattrs;
        self
    }

    /// Where `/etc/hosts` and `/etc/resolv.conf` come from.
    pub fn etc_files(mut self, etc: EtcFiles) -> Self {
        self.etc = etc;
        self
    }

    /// Runs over an upper of an earlier run, mostly one that was kept and is [opened again](Upper::reopen): the command finds it
    /// as it was left, and writes to it. The run's directory is the one it was kept in, whatever [`scratch`](Self::scratch) says,
    /// and in the end the upper is still kept there, also if the run fails. What the earlier run [made](crate::Report::made) is in
    /// that one's report, not in this one's.
    pub fn over(mut self, upper: Upper) -> Self {
        self.over = Some(upper);
        self
    }

    /// When what is left is removed.
    pub fn cleanup(mut self, cleanup: Cleanup) -> Self {
        self.cleanup = cleanup;
        self
    }

    /// Where the command's standard input comes from.
    pub fn stdin(mut self, stdin: Input) -> Self {
        self.stdin = stdin;
        self
    }

    /// Where the command's standard output goes.
    pub fn stdout(mut self, stdout: Output<'a>) -> Self {
        self.stdout = stdout;
        self
    }

    /// Where the command's standard error goes.
    pub fn stderr(mut self, stderr: Output<'a>) -> Self {
        self.stderr = stderr;
        self
    }

    /// What process 1 of the container is.
    pub fn init(mut self, init: Init) -> Self {
        self.init = init;
        self
    }

    /// Ends the command when the runtime has run this long.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// How long the command may go on after it was asked to end.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = Some(grace);
        self
    }

    /// Ends the command when its streams have brought more than `bytes`: [`Invocation::output_limit_bytes`].
    ///
    /// [`Invocation::output_limit_bytes`]: container::Invocation::output_limit_bytes
    pub fn output_limit_bytes(mut self, bytes: u64) -> Self {
        self.output_limit_bytes = Some(bytes);
        self
    }

    /// Hands on to the command the signals that come this way.
    pub fn signals(mut self, signals: Signals) -> Self {
        self.signals = Some(signals);
        self
    }

    /// Ends the command when `cancel` says so; before it has begun, a merge that is under way and the run.
    pub fn cancel(mut self, cancel: Cancel) -> Self {
        self.cancel = Some(cancel);
        self
    }
}

impl fmt::Debug for Options<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Options")
            .field("scratch", &self.scratch)
            .field("runtime", &self.runtime)
            .field("rung", &self.rung)
            .field("max_lowers", &self.max_lowers)
            .field("max_option_bytes", &self.max_option_bytes)
            .field("prep_upper", &self.prep_upper.as_ref().map(|_| ".."))
            .field("stdin", &self.stdin)
            .field("stdout", &self.stdout)
            .field("stderr", &self.stderr)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}
