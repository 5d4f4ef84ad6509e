//! Looks after a container from its start to its end: its streams, its terminal, the signals it gets, the time it may take.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, fcntl_dupfd_cloexec, retry_on_intr};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, pidfd_send_signal, waitpid};

use crate::{Input, Output};

mod cancel;
mod helper;
mod mask;
mod not_executed;
mod program;
mod report;
mod sealed;
mod signals;
mod sinks;
mod spawn;
mod streams;
mod terminal;

pub use cancel::Cancel;
pub(crate) use helper::PATH_INSIDE;
use mask::Masked;
pub(crate) use program::Program;
pub(crate) use report::Facts;
use report::Report;
pub use signals::Signals;
use spawn::Start;
pub(crate) use spawn::close_descriptors;
pub(crate) use streams::Outputs;
use streams::Streams;
use terminal::{Console, Keyboard};
pub(crate) use terminal::{SOCKET, size as terminal_size};

/// Nobody looks at a terminal in the background more often. No event says that the caller is in front of it again.
const LOOK: Duration = Duration::from_millis(200);

/// What is started, and with what.
#[derive(Debug)]
pub(crate) struct Task<'a> {
    /// What starts the container and ends.
    pub(crate) start: Program,
    /// What runs when the container has ended.
    pub(crate) end: Option<Program>,
    /// The directory that the runtime works in, where it leaves the number of the container's first process in
    /// [`PID_FILE`].
    pub(crate) bundle: &'a Path,
    /// A directory that the runtime must find empty.
    pub(crate) hidden: Option<&'a Path>,
    pub(crate) has_terminal: bool,
    pub(crate) stdin: Input,
    pub(crate) stdout: Output<'a>,
    pub(crate) stderr: Output<'a>,
    pub(crate) output_limit: Option<u64>,
}

/// What may end a command before it ends by itself, and what it gets told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Orders<'a> {
    pub(crate) timeout: Option<Duration>,
    pub(crate) grace: Duration,
    pub(crate) cancel: Option<&'a Cancel>,
    pub(crate) signals: Option<&'a Signals>,
}

/// The file in the bundle that the runtime writes.
pub(crate) const PID_FILE: &str = "pid";

/// A container that has been started.
pub(crate) struct Supervised<'a> {
    keeper: Keeper,
    streams: Streams<'a>,
    report: Report,
    console: Option<Console>,
    /// The signals that wait for the init.
    unsent: Vec<i32>,
    _masked: Masked,
}

/// Why a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    ByItself,
    TimedOut,
    Cancelled,
    /// By itself, after a signal that asked for it.
    Interrupted,
    OutputLimit,
}

/// What comes next if the command does not end.
enum Stage {
    /// It may run until here.
    Running(Option<Instant>),
    /// It has been asked to end, and may take until here.
    Asked(Ended, Option<Instant>),
    /// It has been killed.
    Killed(Ended),
}

/// The process that everything else ends with.
struct Keeper {
    pid: Pid,
    pidfd: Option<OwnedFd>,
    /// How it ended, once it has been waited for.
    exit: Option<ExitStatus>,
}

impl<'a> Supervised<'a> {
    /// Starts the keeper, which starts the container. Everything ends with the calling thread.
    pub(crate) fn start(task: Task<'a>) -> io::Result<Self> {
        let masked = Masked::new()?;
        let keyboard = if matches!(task.stdin, Input::Inherit) { Keyboard::Callers } else { Keyboard::Other };
        let (streams, given) = match task.has_terminal {
            true => Streams::of_terminal(task.stdin, task.stdout, task.output_limit)?,
            false => Streams::new(task.stdin, task.stdout, task.stderr, task.output_limit)?,
        };
        let console = task.has_terminal.then(|| Console::new(task.bundle, keyboard)).transpose()?;
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        fcntl_setfl(&reader, fcntl_getfl(&reader)? | OFlags::NONBLOCK)?;
        let (writer, program) =
            (fcntl_dupfd_cloexec(&writer, spawn::FREE)?, fcntl_dupfd_cloexec(helper::program()?, spawn::FREE)?);
        let mut arguments =
            vec![c"layered-keeper".to_owned(), c"keeper".to_owned(), program::string(task.bundle.join(PID_FILE))?];
        task.start.append_to(&mut arguments);
        if let Some(end) = &task.end {
            arguments.push(CString::default());
            end.append_to(&mut arguments);
        }
        let directory = program::string(task.bundle)?;
        let hidden = task.hidden.map(program::string).transpose()?;
        let runtime = task.start.copy().map(|copy| fcntl_dupfd_cloexec(copy, spawn::FREE)).transpose()?;
        let [stdin, stdout, stderr] = &given;
        let pid = spawn::spawn(&Start {
            program: program.as_fd(),
            arguments: &arguments,
            environment: task.start.environment(),
            streams: [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()],
            report: writer.as_fd(),
            runtime: runtime.as_ref().map(AsFd::as_fd),
            directory: &directory,
            hidden: hidden.as_deref(),
        })?;
        // From here on dropping kills.
        let mut keeper = Keeper { pid, pidfd: None, exit: None };
        keeper.pidfd = Some(pidfd_open(pid, PidfdFlags::empty())?);
        let report = Report::new(File::from(reader));
        // The writing ends go here: without them the readers see the end of the streams.
        Ok(Self { keeper, streams, report, console, unsent: Vec::new(), _masked: masked })
    }

    /// Waits for the end and hands on output meanwhile. When the time is over, there is too much output or `orders` say so, the
    /// command gets SIGTERM, and after the time of grace it is killed with all it has started.
    pub(crate) fn wait(&mut self, orders: Orders<'_>) -> io::Result<Ended> {
        let mut stage = Stage::Running(orders.timeout.and_then(|timeout| Instant::now().checked_add(timeout)));
        let result = loop {
            let order = match stage {
                Stage::Running(_) => orders.cancel.map(Cancel::as_fd),
                Stage::Asked(..) => orders.cancel.map(Cancel::killed),
                Stage::Killed(_) => None,
            };
            let event = self.wait_for_event(stage.until(), order, orders.signals);
            match (event, &stage) {
                (Ok(Event::End), _) => break Ok(()),
                (Ok(Event::Surplus), Stage::Running(_)) => {
                    stage = self.ask(Ended::OutputLimit, Signal::TERM, orders.grace)
                }
                (Ok(Event::Progress | Event::Surplus), _) => {}
                (Ok(Event::Order), Stage::Running(_)) => {
                    let interrupt = orders.cancel.and_then(Cancel::interrupt_signal).and_then(Signal::from_named_raw);
                    stage = match interrupt {
                        Some(signal) => self.ask(Ended::Interrupted, signal, orders.grace),
                        None => self.ask(Ended::Cancelled, Signal::TERM, orders.grace),
                    };
                }
                (Ok(Event::Timeout), Stage::Running(_)) => {
                    stage = self.ask(Ended::TimedOut, Signal::TERM, orders.grace)
                }
                (Ok(Event::Order | Event::Timeout), _) => {
                    self.keeper.kill();
                    stage = Stage::Killed(match stage.why() {
                        Ended::Interrupted => Ended::Cancelled,
                        why => why,
                    });
                }
                (Err(error), _) => {
                    // What cannot be watched must not go on.
                    self.keeper.kill();
                    break Err(error);
                }
            }
        };
        // The kernel tells the end of a namespace's first process when all others in it have ended.
        let exit = self.keeper.wait_for_end();
        self.report.read_to_end();
        let handed_on = self.hand_on_the_last(&stage, orders);
        result.and(exit.map(drop)).and(handed_on)?;
        Ok(match stage.why() {
            Ended::ByItself if self.streams.has_surplus() => Ended::OutputLimit,
            why => why,
        })
    }

    /// Hands on what is in the pipes, to which nobody writes any more. A terminal or the like that takes no more has as long for it
    /// as the command had, and the time of grace.
    fn hand_on_the_last(&mut self, stage: &Stage, orders: Orders<'_>) -> io::Result<()> {
        let after_grace = |from: Instant| from.checked_add(orders.grace);
        let (mut until, mut order) = match stage {
            Stage::Running(until) => (until.and_then(after_grace), orders.cancel.map(Cancel::as_fd)),
            Stage::Asked(..) => (after_grace(Instant::now()), orders.cancel.map(Cancel::killed)),
            Stage::Killed(_) => (after_grace(Instant::now()), None),
        };
        let mut is_asked = !matches!(stage, Stage::Running(_));
        while !self.streams.drain() {
            match self.wait_for_room(until, order)? {
                Room::Made => {}
                Room::Ordered if !is_asked => {
                    is_asked = true;
                    until = until.into_iter().chain(after_grace(Instant::now())).min();
                    order = orders.cancel.map(Cancel::killed);
                }
                Room::Ordered | Room::None => {
                    self.streams.give_up();
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Waits until a terminal or the like takes more, or `order` is readable, or it is too late.
    fn wait_for_room(&self, until: Option<Instant>, order: Option<BorrowedFd<'_>>) -> io::Result<Room> {
        let timeout = until.map(|until| timespec(until.saturating_duration_since(Instant::now())));
        let mut fds = self.streams.poll_fds();
        let rooms = fds.len();
        fds.extend(order.map(|order| PollFd::from_borrowed_fd(order, PollFlags::IN)));
        let ready = match poll(&mut fds, timeout.as_ref()) {
            Err(Errno::INTR) => return Ok(Room::Made),
            ready => ready?,
        };
        Ok(match (ready, fds[rooms..].iter().all(|fd| fd.revents().is_empty())) {
            (0, _) => Room::None,
            (_, true) => Room::Made,
            (_, false) => Room::Ordered,
        })
    }

    fn ask(&mut self, why: Ended, signal: Signal, grace: Duration) -> Stage {
        self.send(signal.as_raw());
        Stage::Asked(why, Instant::now().checked_add(grace))
    }

    /// Sends a signal to the command, once there is an init to hand it on.
    fn send(&mut self, signal: i32) {
        match &self.console {
            Some(console) if signal == Signal::WINCH.as_raw() => console.resize(),
            _ => self.unsent.push(signal),
        }
        if self.report.facts().is_ready {
            for signal in self.unsent.drain(..) {
                self.keeper.send(signal);
            }
        }
    }

    /// Waits for one event; `order` is readable if there is one to follow. Output is read before an end is told.
    fn wait_for_event(
        &mut self,
        until: Option<Instant>,
        order: Option<BorrowedFd<'_>>,
        signals: Option<&Signals>,
    ) -> io::Result<Event> {
        let looks = self.streams.waits_for_foreground();
        let remaining = until.map(|until| until.saturating_duration_since(Instant::now()));
        let timeout = match (remaining, looks) {
            (Some(left), true) => Some(left.min(LOOK)),
            (None, true) => Some(LOOK),
            (left, false) => left,
        };
        let timeout = timeout.map(timespec);
        let console = self.console.as_ref().and_then(Console::socket);
        let readable = [
            Some(self.keeper.pidfd().as_fd()),
            order,
            self.report.pipe().map(AsFd::as_fd),
            signals.map(Signals::as_fd),
            console.map(AsFd::as_fd),
        ];
        let mut fds: Vec<PollFd<'_>> =
            readable.iter().flatten().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        let streams = fds.len();
        fds.extend(self.streams.poll_fds());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Event::Progress),
            Err(error) => return Err(error.into()),
        }
        let is_ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        let mut seen = fds[..streams].iter().map(is_ready);
        let [has_ended, is_ordered, has_report, has_signals, has_console] =
            readable.map(|fd| fd.is_some() && seen.next().unwrap_or_default());
        let has_stream = fds[streams..].iter().any(is_ready);
        drop(fds);
        if has_report {
            let was_ready = self.report.facts().is_ready;
            self.report.read();
            // crun sets the size that the terminal had when the configuration was written, at some moment before this.
            if self.report.facts().is_ready && !was_ready {
                self.console.iter().for_each(Console::resize);
            }
        }
        if has_console {
            if let Some(terminal) = self.console.as_mut().map(Console::receive).transpose()?.flatten() {
                let terminal = fcntl_dupfd_cloexec(terminal, 3)?;
                self.streams.attach(terminal)?;
            }
        }
        for signal in if has_signals { signals.map(Signals::take).unwrap_or_default() } else { Vec::new() } {
            self.send(signal);
        }
        if has_report && self.report.facts().is_ready {
            for signal in self.unsent.drain(..) {
                self.keeper.send(signal);
            }
        }
        if has_stream || looks {
            self.streams.advance();
        }
        if self.streams.have_lost_their_terminal() {
            self.streams.hang_up();
            self.console.iter_mut().for_each(Console::hang_up);
        }
        Ok(match (has_ended, is_ordered) {
            (true, _) => Event::End,
            (false, true) => Event::Order,
            // A process that never stops writing does not put off its own end.
            (false, false) if until.is_some_and(|until| Instant::now() >= until) => Event::Timeout,
            (false, false) if self.streams.has_surplus() => Event::Surplus,
            (false, false) => Event::Progress,
        })
    }

    /// What came of it.
    pub(crate) fn finish(self) -> (Facts, Outputs) {
        (self.report.into_facts(), self.streams.finish())
    }
}

fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: time.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: time.subsec_nanos().into() }
}

impl Keeper {
    /// Sends it a signal to hand on. One that has ended needs none.
    fn send(&self, signal: i32) {
        if let Some(signal) = Signal::from_named_raw(signal) {
            let _ = pidfd_send_signal(self.pidfd(), signal);
        }
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
}

impl Drop for Keeper {
    /// One that has been waited for is left alone; otherwise a callback panicked.
    fn drop(&mut self) {
        self.kill();
        let _ = self.wait_for_end();
    }
}

/// Whether the places that the output goes to take more of it.
enum Room {
    /// They may.
    Made,
    /// They do not, and the time is over.
    None,
    /// Somebody says that nobody waits any more.
    Ordered,
}

enum Event {
    Progress,
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
