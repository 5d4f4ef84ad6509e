use std::fs::File;
use std::io::{self, Read};
use std::process::{self, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::Cancel;
use crate::output::Callback;
use crate::{Excerpt, Output};

/// A started process with its output streams, waited for on one thread.
pub(super) struct Child {
    process: process::Child,
    pidfd: OwnedFd,
    stdout: Stream,
    stderr: Stream,
    /// Whether anything has come through one of the streams.
    heard: bool,
}

/// How long the first output is held back at most while the process might end.
const FIRST_WORDS: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// Why a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    ByItself,
    TimedOut,
    Cancelled,
}

/// What comes next if the process does not end.
enum Stage {
    /// It may run until here.
    Running(Option<Instant>),
    /// It has been asked to end, and may take until here.
    Asked(Ended, Instant),
    /// What it started has been killed, and it may take until here to notice.
    Emptied(Ended, Instant),
    /// It has been killed itself.
    Killed(Ended),
}

impl Child {
    pub(super) fn spawn(mut command: Command, stdout: Output, stderr: Output) -> io::Result<Self> {
        let (stdout, stdio) = Stream::new(stdout)?;
        command.stdout(stdio);
        let (stderr, stdio) = Stream::new(stderr)?;
        command.stderr(stdio);
        let mut process = command.spawn()?;
        // `command` holds the writing ends: without them the readers see the end of the streams.
        drop(command);
        let pid = Pid::from_child(&process);
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self { process, pidfd, stdout, stderr, heard: false }),
            Err(error) => {
                let _ = process.kill();
                let _ = process.wait();
                Err(error.into())
            }
        }
    }

    /// Hands on only so many leading bytes of each piece of standard error as `own` says of it.
    pub(super) fn filter_stderr(&mut self, own: impl Fn(&[u8]) -> usize + 'static) {
        self.stderr.own = Some(Box::new(own));
    }

    /// Waits for the end and hands on output meanwhile. When the time is over or `cancel` says so, the process gets SIGTERM,
    /// after `grace` `empty` is called to kill what it started, and after another `grace` it is killed itself.
    pub(super) fn supervise(
        &mut self,
        timeout: Option<Duration>,
        grace: Duration,
        cancel: Option<&Cancel>,
        empty: impl Fn(),
    ) -> io::Result<(Ended, ExitStatus)> {
        let mut stage = Stage::Running(timeout.and_then(|timeout| Instant::now().checked_add(timeout)));
        let result = loop {
            match self.wait(stage.until(), cancel.filter(|_| matches!(stage, Stage::Running(_)))) {
                Ok(Event::Output) => {}
                Ok(Event::End) => break Ok(()),
                Ok(Event::Cancel) => stage = self.ask(Ended::Cancelled, grace),
                Ok(Event::Timeout) => {
                    stage = match stage {
                        Stage::Running(_) => self.ask(Ended::TimedOut, grace),
                        Stage::Asked(why, _) => {
                            empty();
                            Stage::Emptied(why, Instant::now() + grace.max(Duration::from_secs(1)))
                        }
                        Stage::Emptied(why, _) | Stage::Killed(why) => {
                            let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
                            Stage::Killed(why)
                        }
                    }
                }
                Err(error) => {
                    // Whoever cannot be watched must not go on.
                    empty();
                    let _ = self.process.kill();
                    break Err(error);
                }
            }
        };
        let exit = self.process.wait();
        // Nobody writes any more; what is in the pipes is all there is.
        self.stdout.drain();
        self.stderr.drain();
        result.and(exit).map(|exit| (stage.why(), exit))
    }

    fn ask(&self, why: Ended, grace: Duration) -> Stage {
        // A runtime hands it on to the command. One that has ended needs none.
        let _ = pidfd_send_signal(&self.pidfd, Signal::TERM);
        Stage::Asked(why, Instant::now() + grace)
    }

    /// Waits for one event. Output is read before an end is told.
    fn wait(&mut self, until: Option<Instant>, cancel: Option<&Cancel>) -> io::Result<Event> {
        let remaining = until.map(|until| until.saturating_duration_since(Instant::now()));
        let timeout =
            remaining.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
        let (output, end, cancelled) = {
            let mut fds = vec![PollFd::new(&self.pidfd, PollFlags::IN)];
            fds.extend([&self.stdout, &self.stderr].into_iter().filter_map(|stream| {
                stream.pipe.as_ref().map(|pipe| PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN))
            }));
            let streams = 1..fds.len();
            fds.extend(cancel.map(|cancel| PollFd::new(cancel, PollFlags::IN)));
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
            if self.stderr.own.is_some() && !std::mem::replace(&mut self.heard, true) {
                // First words may be last ones: crun logs its failure a moment after it has told it, and ends.
                let _ = poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&FIRST_WORDS));
            }
            self.stdout.read_once();
            self.stderr.read_once();
        }
        Ok(match (end, cancelled) {
            (true, _) => Event::End,
            (false, true) => Event::Cancel,
            // A process that never stops writing does not put off its own end.
            (false, false) if until.is_some_and(|until| Instant::now() >= until) => Event::Timeout,
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
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

enum Event {
    Output,
    End,
    Cancel,
    Timeout,
}

impl Stage {
    fn until(&self) -> Option<Instant> {
        match self {
            Stage::Running(until) => *until,
            Stage::Asked(_, until) | Stage::Emptied(_, until) => Some(*until),
            Stage::Killed(_) => None,
        }
    }

    fn why(&self) -> Ended {
        match self {
            Stage::Running(_) => Ended::ByItself,
            Stage::Asked(why, _) | Stage::Emptied(why, _) | Stage::Killed(why) => *why,
        }
    }
}

/// One output stream, as far as it passes through here.
struct Stream {
    /// The reading end, until the end of the stream; `None` from the start if nothing passes through here.
    pipe: Option<File>,
    sink: Sink,
    own: Option<Own>,
}

/// How many leading bytes of a piece are to be handed on.
type Own = Box<dyn Fn(&[u8]) -> usize>;

enum Sink {
    None,
    Capture(Excerpt),
    Callback(Callback),
}

impl Stream {
    fn new(output: Output) -> io::Result<(Self, Stdio)> {
        let sink = match output {
            Output::Null => return Ok((Self { pipe: None, sink: Sink::None, own: None }, Stdio::null())),
            Output::Inherit => return Ok((Self { pipe: None, sink: Sink::None, own: None }, Stdio::inherit())),
            Output::File(file) => return Ok((Self { pipe: None, sink: Sink::None, own: None }, file.into())),
            Output::Capture(limit) => Sink::Capture(Excerpt::new(limit)),
            Output::Callback(callback) => Sink::Callback(callback),
        };
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        // Only this end: the command's is another open file description.
        fcntl_setfl(&reader, fcntl_getfl(&reader)? | OFlags::NONBLOCK)?;
        Ok((Self { pipe: Some(reader.into()), sink, own: None }, writer.into()))
    }

    /// Reads what is there, one piece at most, and hands it on.
    fn read_once(&mut self) -> bool {
        let Some(pipe) = &mut self.pipe else { return false };
        // The capacity of a pipe, pipe(7).
        let mut buffer = [0; 64 << 10];
        match pipe.read(&mut buffer) {
            Ok(length @ 1..) => {
                let length = self.own.as_ref().map_or(length, |own| own(&buffer[..length]));
                self.sink.accept(&buffer[..length]);
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

    fn drain(&mut self) {
        while self.read_once() {}
    }
}

impl Sink {
    fn accept(&mut self, bytes: &[u8]) {
        match self {
            _ if bytes.is_empty() => {}
            Sink::None => {}
            Sink::Capture(excerpt) => excerpt.push(bytes),
            Sink::Callback(callback) => callback(bytes),
        }
    }

    fn take_excerpt(&mut self) -> Option<Excerpt> {
        match std::mem::replace(self, Sink::None) {
            Sink::Capture(excerpt) => Some(excerpt),
            Sink::None | Sink::Callback(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CaptureLimit;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    fn capture() -> Output {
        Output::Capture(CaptureLimit { head_bytes: 8, tail_bytes: 8 })
    }

    fn supervise(
        script: &str,
        timeout: Option<Duration>,
        cancel: Option<&Cancel>,
    ) -> (Ended, ExitStatus, String, String) {
        let mut child = Child::spawn(shell(script), capture(), capture()).unwrap();
        let (ended, exit) = child.supervise(timeout, Duration::from_secs(60), cancel, || {}).unwrap();
        let (stdout, stderr) = child.take_excerpts();
        (ended, exit, stdout.unwrap().to_string(), stderr.unwrap().to_string())
    }

    #[test]
    fn streams_are_kept_apart_and_bounded() {
        let (ended, exit, stdout, stderr) = supervise("echo out; echo err >&2; exit 3", None, None);
        assert_eq!((ended, exit.code(), &*stdout, &*stderr), (Ended::ByItself, Some(3), "out\n", "err\n"));

        let (_, _, stdout, _) = supervise("head -c 300000 /dev/zero | tr '\\0' x", None, None);
        assert_eq!(stdout, "xxxxxxxx\n[... 299984 bytes omitted ...]\nxxxxxxxx");
    }

    #[test]
    fn a_callback_gets_every_byte_in_order() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let callback = Output::Callback(Box::new(move |piece| sender.send(piece.to_vec()).unwrap()));
        let mut child = Child::spawn(shell("seq 1 50000"), callback, Output::Null).unwrap();
        child.supervise(None, Duration::ZERO, None, || {}).unwrap();
        drop(child);
        let all: Vec<u8> = receiver.iter().flatten().collect();
        let expected: String = (1..=50000).map(|n| format!("{n}\n")).collect();
        assert_eq!(all, expected.as_bytes());
    }

    #[test]
    fn a_process_that_holds_the_pipe_delays_nothing() {
        // The background process would hold the pipe open until it is killed at the end of the test.
        let (_, _, stdout, _) = supervise("sleep 1000 & echo $!", None, None);
        let pid = Pid::from_raw(stdout.trim().parse().unwrap()).unwrap();
        rustix::process::kill_process(pid, Signal::KILL).unwrap();
    }

    #[test]
    fn the_deadline_and_a_cancel_end_it() {
        let (ended, exit, _, _) = supervise("exec sleep 1000", Some(Duration::from_millis(1)), None);
        assert_eq!((ended, exit.code()), (Ended::TimedOut, None));

        let cancel = Cancel::new().unwrap();
        cancel.clone().cancel();
        let (ended, exit, _, _) = supervise("exec sleep 1000", None, Some(&cancel));
        assert_eq!((ended, exit.code()), (Ended::Cancelled, None));

        // One that writes without end has an end too.
        let (ended, ..) = supervise("exec yes", Some(Duration::from_millis(1)), None);
        assert_eq!(ended, Ended::TimedOut);
    }

    #[test]
    fn one_that_does_not_listen_is_killed() {
        let mut child =
            Child::spawn(shell("trap '' TERM; echo ready; exec sleep 1000"), Output::Null, Output::Null).unwrap();
        let emptied = std::cell::Cell::new(0);
        let (ended, _) = child
            .supervise(Some(Duration::from_millis(50)), Duration::ZERO, None, || emptied.set(emptied.get() + 1))
            .unwrap();
        assert_eq!((ended, emptied.get()), (Ended::TimedOut, 1));
    }
}
