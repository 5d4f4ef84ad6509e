//! Looks after a container from its start to its end: its streams, its terminal, the signals it
//! gets, and its time limit.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Signal;

use crate::network::Unconnected;
use crate::supervision::OnStart;
use crate::{Init, Input, Output};

mod cancel;
mod feed;
mod helper;
mod keeper;
mod mask;
mod not_executed;
mod pages;
mod program;
mod report;
mod sealed;
mod shareable;
mod signals;
mod sinks;
mod spawn;
mod streams;
mod terminal;

pub use cancel::Cancel;
pub(crate) use helper::PATH_INSIDE;
#[cfg(test)]
pub(crate) use helper::record::NETWORK;
pub(crate) use helper::record::NETWORK_LOG;
use keeper::Keeper;
use mask::Masked;
pub(crate) use program::Program;
pub(crate) use report::Facts;
use report::Report;
pub use signals::Signals;
use spawn::Start;
pub(crate) use spawn::{NETWORK_FILE, close_descriptors};
pub(crate) use streams::Outputs;
use streams::Streams;
use terminal::{Console, Keyboard};
pub(crate) use terminal::{SOCKET, size as terminal_size};

/// How often a run checks whether the caller is in the foreground of its terminal again. The kernel
/// reports no event for that.
const LOOK: Duration = Duration::from_millis(200);

/// A container to start, and the files and streams that it gets.
#[derive(Debug)]
pub(crate) struct Task<'a> {
    /// The program that starts the container and then exits.
    pub(crate) start: Program,
    /// The program that runs after the container has ended.
    pub(crate) end: Option<Program>,
    /// The network to connect before the container starts.
    pub(crate) network: Option<&'a Unconnected>,
    /// The runtime's working directory. The runtime writes the PID of the container's first process
    /// to [`PID_FILE`] in it.
    pub(crate) bundle: &'a Path,
    /// A directory that must appear empty to the runtime.
    pub(crate) hidden: Option<&'a Path>,
    pub(crate) has_terminal: bool,
    pub(crate) init: Init,
    pub(crate) stdin: Input,
    pub(crate) stdout: Output<'a>,
    pub(crate) stderr: Output<'a>,
    pub(crate) output_limit: Option<u64>,
    pub(crate) on_start: Option<OnStart<'a>>,
    /// How long the command runs before the pages of the program are released.
    pub(crate) release_pages: Option<Duration>,
}

/// The limits and requests that can end a command early, and the signals to forward to it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Orders<'a> {
    pub(crate) timeout: Option<Duration>,
    pub(crate) grace: Duration,
    pub(crate) cancel: Option<&'a Cancel>,
    pub(crate) signals: Option<&'a Signals>,
}

/// The PID file that the runtime writes in the bundle.
pub(crate) const PID_FILE: &str = "pid";

/// A container that has been started.
pub(crate) struct Supervised<'a> {
    keeper: Keeper,
    streams: Streams<'a>,
    report: Report,
    console: Option<Console>,
    /// Signals that are kept until the init can take them.
    unsent: Vec<i32>,
    /// `None` after the call.
    on_start: Option<OnStart<'a>>,
    release_pages: Release,
    _masked: Masked,
}

/// When to release the pages of the program.
struct Release {
    delay: Option<Duration>,
    /// `None` after the release.
    when: Option<Instant>,
}

impl Release {
    /// Begins the delay, at the start of the runtime and again at that of the command.
    fn begin(&mut self) {
        self.when = self.delay.and_then(|delay| Instant::now().checked_add(delay));
    }
}

/// Why a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    ByItself,
    TimedOut,
    Cancelled,
    /// The command ended by itself after a signal that asked it to.
    Interrupted,
    OutputLimit,
}

/// How far the end of the command has progressed.
enum Stage {
    /// The command may run until this time.
    Running(Option<Instant>),
    /// The command has been asked to end and may take until this time.
    Asked(Ended, Option<Instant>),
    /// The container has been killed.
    Killed(Ended),
}

impl<'a> Supervised<'a> {
    /// Starts the keeper, which starts the container. The kernel kills all their processes when the
    /// calling thread ends.
    pub(crate) fn start(task: Task<'a>) -> io::Result<Self> {
        let masked = Masked::new()?;
        let keyboard = if matches!(task.stdin, Input::Inherit) { Keyboard::Callers } else { Keyboard::Other };
        let (streams, given) = match task.has_terminal {
            true => Streams::of_terminal(task.stdin, task.stdout, task.output_limit)?,
            false => Streams::new(task.stdin, task.stdout, task.stderr, task.output_limit)?,
        };
        let console = task.has_terminal.then(|| Console::new(task.bundle, keyboard, task.init)).transpose()?;
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        fcntl_setfl(&reader, fcntl_getfl(&reader)? | OFlags::NONBLOCK)?;
        let (writer, program) = (fcntl_dupfd_cloexec(&writer, spawn::FREE)?, helper::program()?);
        let mut arguments =
            vec![c"layered-keeper".to_owned(), c"keeper".to_owned(), program::string(task.bundle.join(PID_FILE))?];
        task.start.append_to(&mut arguments);
        let further = [task.end.as_ref(), task.network.map(Unconnected::program)];
        for program in further {
            arguments.push(CString::default());
            program.iter().for_each(|program| program.append_to(&mut arguments));
        }
        let directory = program::string(task.bundle)?;
        let hidden = task.hidden.map(program::string).transpose()?;
        let runtime = task.start.copy().map(|copy| fcntl_dupfd_cloexec(copy, spawn::FREE)).transpose()?;
        let network = task.network.map(|network| fcntl_dupfd_cloexec(network, spawn::FREE)).transpose()?;
        let [stdin, stdout, stderr] = &given;
        let pid = spawn::spawn(&Start {
            program: program.as_fd(),
            arguments: &arguments,
            environment: task.start.environment(),
            streams: [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()],
            report: writer.as_fd(),
            runtime: runtime.as_ref().map(AsFd::as_fd),
            network: network.as_ref().map(AsFd::as_fd),
            directory: &directory,
            hidden: hidden.as_deref(),
        })?;
        // From here on, dropping the keeper kills the container.
        let keeper = Keeper::new(pid)?;
        let report = Report::new(File::from(reader));
        // Returning drops the container's ends of the pipes. While this process holds them, the
        // readers do not see the end of the streams.
        let (unsent, on_start) = (Vec::new(), task.on_start);
        let mut release_pages = Release { delay: task.release_pages, when: None };
        release_pages.begin();
        Ok(Self { keeper, streams, report, console, unsent, on_start, release_pages, _masked: masked })
    }

    /// Copies the streams until the container has ended. If the timeout expires, the output exceeds
    /// its limit, or `orders` request it, the command gets SIGTERM. After the grace period, the
    /// container is killed.
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
                    // A container that cannot be watched must not keep running.
                    self.keeper.kill();
                    break Err(error);
                }
            }
        };
        // The kernel reports the end of a PID namespace's first process only after all other
        // processes in it have ended.
        let exit = self.keeper.wait_for_end();
        self.report.read_to_end();
        self.report_start();
        let handed_on = self.hand_on_the_last(&stage, orders);
        result.and(exit).and(handed_on)?;
        Ok(match stage.why() {
            Ended::ByItself if self.streams.has_surplus() => Ended::OutputLimit,
            why => why,
        })
    }

    /// Copies the output that is left in the pipes, after all their writers have ended. If a
    /// destination such as a terminal accepts no more, it gets as much time as the command had
    /// left, plus the grace period.
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

    /// Waits until a destination accepts more, `order` becomes readable, or `until` has passed.
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

    /// Sends a signal to the command. Keeps it until the init is ready to forward it.
    fn send(&mut self, signal: i32) {
        match &self.console {
            Some(console) if signal == Signal::WINCH.as_raw() => console.resize(),
            _ => self.unsent.push(signal),
        }
        self.send_the_unsent();
    }

    /// Calls the caller's function if the init is ready.
    fn report_start(&mut self) {
        let is_ready = self.report.facts().is_ready;
        if let Some(OnStart(function)) = self.on_start.take_if(|_| is_ready) {
            function();
        }
    }

    /// Sends the kept signals if the init is ready.
    fn send_the_unsent(&mut self) {
        if self.report.facts().is_ready {
            for signal in self.unsent.drain(..) {
                self.keeper.send(signal);
            }
        }
    }

    /// Waits for one event. `order` becomes readable if the caller requests something. Reads output
    /// before it reports the container's end.
    fn wait_for_event(
        &mut self,
        until: Option<Instant>,
        order: Option<BorrowedFd<'_>>,
        signals: Option<&Signals>,
    ) -> io::Result<Event> {
        let looks = self.streams.waits_for_foreground();
        if self.release_pages.when.take_if(|when| Instant::now() >= *when).is_some() {
            pages::release();
        }
        let next = until.into_iter().chain(self.release_pages.when).min();
        let remaining = next.map(|next| next.saturating_duration_since(Instant::now()));
        let timeout = match (remaining, looks) {
            (Some(left), true) => Some(left.min(LOOK)),
            (None, true) => Some(LOOK),
            (left, false) => left,
        };
        let timeout = timeout.map(timespec);
        let console = self.console.as_ref().and_then(Console::socket);
        let readable = [
            Some(self.keeper.as_fd()),
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
            // crun has set the size that the terminal had when the configuration was written. The
            // terminal may have been resized since.
            if self.report.facts().is_ready && !was_ready {
                self.console.iter().for_each(Console::resize);
                self.release_pages.begin();
            }
            self.report_start();
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
        if has_report {
            self.send_the_unsent();
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
            // Checked even while there is progress: a command that never stops writing must not
            // delay its own timeout.
            (false, false) if until.is_some_and(|until| Instant::now() >= until) => Event::Timeout,
            (false, false) if self.streams.has_surplus() => Event::Surplus,
            (false, false) => Event::Progress,
        })
    }

    /// Returns the processor time of all processes of the run that were waited for, the runtime's
    /// included. Known only after [`wait`](Self::wait).
    pub(crate) fn cpu_time(&self) -> Option<Duration> {
        self.keeper.cpu_time()
    }

    /// Returns the facts that the helper reported, and the results of the outputs.
    pub(crate) fn finish(self) -> (Facts, Outputs) {
        (self.report.into_facts(), self.streams.finish())
    }
}

fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: time.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: time.subsec_nanos().into() }
}

/// Whether the destinations of the output accept more.
enum Room {
    /// They may accept more.
    Made,
    /// They accept no more, and the time has run out.
    None,
    /// The caller has requested that the run ends.
    Ordered,
}

enum Event {
    Progress,
    /// The command wrote more output than allowed.
    Surplus,
    End,
    /// The caller requests that the command ends or is killed.
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
