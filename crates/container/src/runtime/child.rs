use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, fcntl_dupfd_cloexec, retry_on_intr};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, pidfd_send_signal, waitpid};

use super::program::Program;
use super::{Cancel, Input, namespace};
use crate::output::Callback;
use crate::{Excerpt, Output};

/// A started process with its output streams, waited for on one thread.
pub(super) struct Child {
    pid: Pid,
    pidfd: Option<OwnedFd>,
    /// How it ended, once it has been waited for.
    exit: Option<ExitStatus>,
    stdout: Stream,
    stderr: Stream,
    /// What the two may still bring together, in bytes; `None` for no limit.
    allowance: Option<u64>,
}

/// Why a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    ByItself,
    TimedOut,
    Cancelled,
    OutputLimit,
}

/// What comes next if the process does not end.
enum Stage {
    /// It may run until here.
    Running(Option<Instant>),
    /// It has been asked to end, and may take until here.
    Asked(Ended, Option<Instant>),
    /// It has been killed.
    Killed(Ended),
}

impl Child {
    /// Starts a process that is the first of a PID namespace: with it ends everything it has started, wherever that went. It ends
    /// with the calling thread. What passes through here is counted against `output_limit`, in bytes.
    pub(super) fn spawn(
        program: &Program,
        stdin: Input,
        stdout: Output,
        stderr: Output,
        output_limit: Option<u64>,
    ) -> io::Result<Self> {
        let stdin = Given::input(stdin)?;
        let (stdout, given_stdout) = Stream::new(stdout, output_limit.is_some())?;
        let (stderr, given_stderr) = Stream::new(stderr, output_limit.is_some())?;
        let pid = namespace::spawn(program, [stdin.number(0), given_stdout.number(1), given_stderr.number(2)])?;
        // These are the writing ends: without them the readers see the end of the streams.
        drop((given_stdout, given_stderr));
        let mut child = Self { pid, pidfd: None, exit: None, stdout, stderr, allowance: output_limit };
        // If this fails, dropping kills.
        child.pidfd = Some(pidfd_open(pid, PidfdFlags::empty())?);
        Ok(child)
    }

    /// One that has been waited for is left alone: its number may be another's.
    fn kill(&self) {
        let _ = match &self.pidfd {
            _ if self.exit.is_some() => return,
            Some(pidfd) => pidfd_send_signal(pidfd, Signal::KILL),
            None => kill_process(self.pid, Signal::KILL),
        };
    }

    fn wait_for_end(&mut self) -> io::Result<ExitStatus> {
        if let Some(exit) = self.exit {
            return Ok(exit);
        }
        let ended = retry_on_intr(|| waitpid(Some(self.pid), WaitOptions::empty()))?;
        let (_, status) = ended.expect("without WNOHANG there is one");
        Ok(*self.exit.insert(ExitStatus::from_raw(status.as_raw())))
    }

    fn pidfd(&self) -> &OwnedFd {
        self.pidfd.as_ref().expect("a child that was started has one")
    }

    /// Waits for the end and hands on output meanwhile. When the time is over, there is too much output or `cancel` says so, the
    /// process gets SIGTERM, and after `grace` it is killed with all it has started.
    pub(super) fn supervise(
        &mut self,
        timeout: Option<Duration>,
        grace: Duration,
        cancel: Option<&Cancel>,
    ) -> io::Result<(Ended, ExitStatus)> {
        let mut stage = Stage::Running(timeout.and_then(|timeout| Instant::now().checked_add(timeout)));
        let result = loop {
            let order = match stage {
                Stage::Running(_) => cancel.map(Cancel::as_fd),
                Stage::Asked(..) => cancel.map(Cancel::killed),
                Stage::Killed(_) => None,
            };
            match (self.wait(stage.until(), order), &stage) {
                (Ok(Event::End), _) => break Ok(()),
                (Ok(Event::Surplus), Stage::Running(_)) => stage = self.ask(Ended::OutputLimit, grace),
                (Ok(Event::Output | Event::Surplus), _) => {}
                (Ok(Event::Order), Stage::Running(_)) => stage = self.ask(Ended::Cancelled, grace),
                (Ok(Event::Timeout), Stage::Running(_)) => stage = self.ask(Ended::TimedOut, grace),
                (Ok(Event::Order | Event::Timeout), _) => {
                    let _ = pidfd_send_signal(self.pidfd(), Signal::KILL);
                    stage = Stage::Killed(stage.why());
                }
                (Err(error), _) => {
                    // Whoever cannot be watched must not go on.
                    self.kill();
                    break Err(error);
                }
            }
        };
        // The kernel tells the end of a namespace's first process when all others in it have ended.
        let exit = self.wait_for_end();
        // Nobody writes any more; what is in the pipes is all there is.
        self.stdout.drain(&mut self.allowance);
        self.stderr.drain(&mut self.allowance);
        let exit = result.and(exit)?;
        let why = match stage.why() {
            Ended::ByItself if self.stdout.surplus || self.stderr.surplus => Ended::OutputLimit,
            // A signal from a terminal goes to this process and to that one at once.
            Ended::ByItself if exit.signal().is_some() && cancel.is_some_and(Cancel::is_cancelled) => Ended::Cancelled,
            why => why,
        };
        Ok((why, exit))
    }

    fn ask(&self, why: Ended, grace: Duration) -> Stage {
        // A runtime hands it on to the command. One that has ended needs none.
        let _ = pidfd_send_signal(self.pidfd(), Signal::TERM);
        Stage::Asked(why, Instant::now().checked_add(grace))
    }

    /// Waits for one event; `order` is readable if there is one to follow. Output is read before an end is told.
    fn wait(&mut self, until: Option<Instant>, order: Option<BorrowedFd<'_>>) -> io::Result<Event> {
        let remaining = until.map(|until| until.saturating_duration_since(Instant::now()));
        let timeout =
            remaining.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
        let (output, end, ordered) = {
            let mut fds = vec![PollFd::new(self.pidfd(), PollFlags::IN)];
            fds.extend([&self.stdout, &self.stderr].into_iter().filter_map(|stream| {
                stream.pipe.as_ref().map(|pipe| PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN))
            }));
            let streams = 1..fds.len();
            fds.extend(order.map(|order| PollFd::from_borrowed_fd(order, PollFlags::IN)));
            match poll(&mut fds, timeout.as_ref()) {
                Ok(0) => return Ok(Event::Timeout),
                Ok(_) => {}
                Err(Errno::INTR) => return Ok(Event::Output),
                Err(error) => return Err(error.into()),
            }
            let ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
            (fds[streams.clone()].iter().any(ready), ready(&fds[0]), fds[streams.end..].iter().any(ready))
        };
        if output {
            self.stdout.read_once(&mut self.allowance);
            self.stderr.read_once(&mut self.allowance);
        }
        Ok(match (end, ordered) {
            (true, _) => Event::End,
            (false, true) => Event::Order,
            // A process that never stops writing does not put off its own end.
            (false, false) if until.is_some_and(|until| Instant::now() >= until) => Event::Timeout,
            (false, false) if self.stdout.surplus || self.stderr.surplus => Event::Surplus,
            (false, false) => Event::Output,
        })
    }

    pub(super) fn take_excerpts(&mut self) -> (Option<Excerpt>, Option<Excerpt>) {
        (self.stdout.sink.take_excerpt(), self.stderr.sink.take_excerpt())
    }
}

impl Drop for Child {
    /// One that has been waited for is left alone; otherwise a callback panicked.
    fn drop(&mut self) {
        self.kill();
        let _ = self.wait_for_end();
    }
}

enum Event {
    Output,
    /// More output than was allowed.
    Surplus,
    End,
    /// From outside, to end or to be killed.
    Order,
    Timeout,
}

impl Stage {
    fn until(&self) -> Option<Instant> {
        match self {
            Stage::Running(until) | Stage::Asked(_, until) => *until,
            Stage::Killed(_) => None,
        }
    }

    fn why(&self) -> Ended {
        match self {
            Stage::Running(_) => Ended::ByItself,
            Stage::Asked(why, _) | Stage::Killed(why) => *why,
        }
    }
}

/// What the child gets as one of its streams.
enum Given {
    /// The caller's own.
    Inherited,
    /// Another file. It is none of the first three, in whose places they are put.
    File(OwnedFd),
}

impl Given {
    fn input(input: Input) -> io::Result<Self> {
        match input {
            Input::Null => Self::null(),
            Input::Inherit => Ok(Given::Inherited),
            Input::File(file) => Self::file(file),
        }
    }

    fn null() -> io::Result<Self> {
        Self::file(File::options().read(true).write(true).open("/dev/null")?)
    }

    fn file(file: impl Into<OwnedFd>) -> io::Result<Self> {
        let file = file.into();
        match file.as_raw_fd() {
            // Of a caller that has closed its own.
            0..=2 => Ok(Given::File(fcntl_dupfd_cloexec(&file, 3)?)),
            _ => Ok(Given::File(file)),
        }
    }

    fn number(&self, own: RawFd) -> RawFd {
        match self {
            Given::Inherited => own,
            Given::File(file) => file.as_raw_fd(),
        }
    }
}

/// One output stream, as far as it passes through here.
struct Stream {
    /// The reading end, until the end of the stream; `None` from the start if nothing passes through here.
    pipe: Option<File>,
    sink: Sink,
    /// Whether more came than was allowed. The surplus is thrown away.
    surplus: bool,
}

enum Sink {
    None,
    File(File),
    Capture(Excerpt),
    Callback(Callback),
}

impl Stream {
    /// One that passes through here if `counted`, or if it has to.
    fn new(output: Output, counted: bool) -> io::Result<(Self, Given)> {
        let direct = |given| Ok((Self { pipe: None, sink: Sink::None, surplus: false }, given));
        let sink = match output {
            Output::Null => return direct(Given::null()?),
            Output::Inherit => return direct(Given::Inherited),
            Output::File(file) if !counted => return direct(Given::file(file)?),
            Output::File(file) => Sink::File(file),
            Output::Capture(limit) => Sink::Capture(Excerpt::new(limit)),
            Output::Callback(callback) => Sink::Callback(callback),
        };
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        // Only this end: the command's is another open file description.
        fcntl_setfl(&reader, fcntl_getfl(&reader)? | OFlags::NONBLOCK)?;
        Ok((Self { pipe: Some(reader.into()), sink, surplus: false }, Given::file(writer)?))
    }

    /// Reads what is there, one piece at most, and hands on what is allowed of it.
    fn read_once(&mut self, allowance: &mut Option<u64>) -> bool {
        let Some(pipe) = &mut self.pipe else { return false };
        // The capacity of a pipe, pipe(7).
        let mut buffer = [0; 64 << 10];
        match pipe.read(&mut buffer) {
            Ok(length @ 1..) => {
                let allowed = allowance.map_or(length as u64, |left| left.min(length as u64));
                if let Some(left) = allowance {
                    *left -= allowed;
                }
                let allowed = allowed as usize;
                self.surplus |= allowed < length;
                if let Err(error) = self.sink.accept(&buffer[..allowed]) {
                    // The command's next write fails, as it would have if it had written there itself.
                    log::warn!("the command's output cannot be written any more: {error}");
                    self.pipe = None;
                }
                true
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            Ok(0) | Err(_) => {
                self.pipe = None;
                false
            }
        }
    }

    fn drain(&mut self, allowance: &mut Option<u64>) {
        while self.read_once(allowance) {}
    }
}

impl Sink {
    fn accept(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Sink::None => {}
            Sink::File(file) => return file.write_all(bytes),
            Sink::Capture(excerpt) => excerpt.push(bytes),
            Sink::Callback(callback) => callback(bytes),
        }
        Ok(())
    }

    fn take_excerpt(&mut self) -> Option<Excerpt> {
        match std::mem::replace(self, Sink::None) {
            Sink::Capture(excerpt) => Some(excerpt),
            Sink::None | Sink::File(_) | Sink::Callback(_) => None,
        }
    }
}
