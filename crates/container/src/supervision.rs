//! The options that concern a running command: its streams, its limits, and how it is ended.
//!
//! [`Runtime::run`](crate::Runtime::run) in `runtime` takes them; `supervise` acts on them.

use std::fmt;
use std::time::Duration;

use crate::{Cancel, Init, Input, Output, Signals};

/// How long a command may keep running after it was asked to end, if the caller sets nothing else.
const GRACE: Duration = Duration::from_secs(5);

/// The options of a running command: its streams, its limits and its signals.
///
/// By default the command has no input and no limits, and its output is discarded. Each setter of
/// an optional value takes the value or an `Option` of it; `None` restores the default.
///
/// ```
/// use std::time::Duration;
///
/// use container::{CaptureLimit, Output, Supervision};
///
/// let supervision = Supervision::new()
///     .stdout(Output::Capture(CaptureLimit::default()))
///     .stderr(Output::Inherit)
///     .timeout(Duration::from_secs(60))
///     .grace(None);
/// # drop(supervision);
/// ```
#[derive(Debug, Default)]
#[must_use]
pub struct Supervision<'a> {
    pub(crate) stdin: Input,
    pub(crate) stdout: Output<'a>,
    pub(crate) stderr: Output<'a>,
    pub(crate) init: Init,
    pub(crate) timeout: Option<Duration>,
    grace: Option<Duration>,
    pub(crate) cancel: Option<Cancel>,
    pub(crate) signals: Option<Signals>,
    pub(crate) output_limit_bytes: Option<u64>,
    pub(crate) on_start: Option<OnStart<'a>>,
    pub(crate) release_pages: Option<Duration>,
}

/// A function that is called when the command starts.
pub(crate) struct OnStart<'a>(pub(crate) Box<dyn FnOnce() + Send + 'a>);

impl fmt::Debug for OnStart<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("OnStart(..)")
    }
}

impl<'a> Supervision<'a> {
    /// Returns the defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the source of standard input.
    pub fn stdin(mut self, stdin: Input) -> Self {
        self.stdin = stdin;
        self
    }

    /// Sets the destination of standard output.
    pub fn stdout(mut self, stdout: Output<'a>) -> Self {
        self.stdout = stdout;
        self
    }

    /// Sets the destination of standard error. A runtime that fails also writes its reason there. A
    /// command with a terminal writes everything to the terminal, whose output goes to standard
    /// output's destination.
    pub fn stderr(mut self, stderr: Output<'a>) -> Self {
        self.stderr = stderr;
        self
    }

    /// Sets the program that is process 1 of the container.
    pub fn init(mut self, init: Init) -> Self {
        self.init = init;
        self
    }

    /// Limits how long the command may run, counted from the start of the runtime. After this time
    /// the command gets SIGTERM, and after the [grace period](Self::grace) the whole container is
    /// killed. By default there is no limit.
    pub fn timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.timeout = timeout.into();
        self
    }

    /// Sets how long the command may keep running after it was asked to end. The default is 5 s.
    pub fn grace(mut self, grace: impl Into<Option<Duration>>) -> Self {
        self.grace = grace.into();
        self
    }

    /// Ends the command, like a timeout, when its two streams together have exceeded `bytes`.
    /// Output beyond that is discarded. By default there is no limit.
    pub fn output_limit_bytes(mut self, bytes: impl Into<Option<u64>>) -> Self {
        self.output_limit_bytes = bytes.into();
        self
    }

    /// Ends the command, like a timeout, when another thread uses `cancel`.
    pub fn cancel(mut self, cancel: impl Into<Option<Cancel>>) -> Self {
        self.cancel = cancel.into();
        self
    }

    /// Forwards to the command the signals that are sent through `signals`.
    pub fn signals(mut self, signals: impl Into<Option<Signals>>) -> Self {
        self.signals = signals.into();
        self
    }

    /// Sets a function that is called when the container is ready and its init executes the
    /// command, on the thread that waits for the command. If the command cannot be executed, the
    /// function is called nevertheless. It is not called if the runtime fails.
    pub fn on_start(mut self, function: impl FnOnce() + Send + 'a) -> Self {
        self.on_start = Some(OnStart(Box::new(function)));
        self
    }

    /// Lets the process use less memory while it waits for a command that takes longer than
    /// `delay`: unmaps the pages of this program's code and constants. The process gets a page back
    /// from the page cache when it needs it again, so this pays off in a program that only waits.
    /// By default, the pages stay.
    pub fn release_pages(mut self, delay: impl Into<Option<Duration>>) -> Self {
        self.release_pages = delay.into();
        self
    }

    /// Returns the value that [`cancel`](Self::cancel) has set. A caller can use it to end its own
    /// work, too.
    pub fn get_cancel(&self) -> Option<&Cancel> {
        self.cancel.as_ref()
    }

    /// Returns the grace period that applies.
    pub(crate) fn grace_period(&self) -> Duration {
        self.grace.unwrap_or(GRACE)
    }
}
