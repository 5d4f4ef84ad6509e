//! The three streams of a container. Puts pipes in the place of the caller's files, unless
//! `shareable` lets the container have them.

use std::fs::File;
use std::io::{self, Read};

use rustix::event::{PollFd, PollFlags};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{OFlags, Stat, fcntl_getfl, fcntl_setfl, fstat};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use super::feed::Feed;
use super::shareable::may_be_shared;
use super::sinks::{Sink, only_file};
use super::spawn::FREE;
use crate::{Excerpt, Input, Output};

/// The most bytes that one read takes. Also the requested size of the pipes of the outputs.
const PIECE_BYTES: usize = 512 << 10;

/// The most pieces that are read before the run checks for other events.
const MOST_PIECES: usize = 8;

/// The container's streams, if they pass through the caller's process.
pub(super) struct Streams<'a> {
    input: Option<Feed>,
    outputs: Vec<Drain<'a>>,
    /// The bytes that the outputs may still write together; `None` for no limit.
    allowance: Option<u64>,
    buffer: Vec<u8>,
}

/// The files that the container gets as its three streams.
pub(super) type Given = [OwnedFd; 3];

/// An output on its way to the caller's destinations.
struct Drain<'a> {
    /// The non-blocking read end; `None` after the end, and before the terminal has arrived.
    source: Option<File>,
    sinks: Vec<Sink<'a>>,
    stream: Stream,
    /// Whether the source is a pipe whose write end the container has.
    is_pipe: bool,
    /// Whether the outputs exceeded the limit. The surplus is discarded.
    surplus: bool,
    /// The first failure of a sink.
    failure: Option<io::Error>,
}

/// One of the two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stream {
    Stdout,
    Stderr,
}

impl<'a> Streams<'a> {
    /// Creates the streams of a container without a terminal. Returns the container's own ends as
    /// [`Given`].
    pub(super) fn new(
        stdin: Input,
        stdout: Output<'a>,
        stderr: Output<'a>,
        output_limit: Option<u64>,
    ) -> io::Result<(Self, Given)> {
        let (input, given_stdin) = match Direct::input(stdin)? {
            Direct::Given(file) => (None, file),
            Direct::Through(mut feed) => {
                let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
                without_blocking(&writer)?;
                feed.attach(writer);
                (Some(feed), above(reader)?)
            }
        };
        let counted = output_limit.is_some();
        let mut outputs = Vec::new();
        let given_stdout = match Direct::output(stdout, std::io::stdout().as_fd(), counted)? {
            Direct::Given(file) => file,
            Direct::Through(sinks) => {
                let (drain, given) = Drain::piped(sinks, Stream::Stdout)?;
                outputs.push(drain);
                given
            }
        };
        let given_stderr = match Direct::output(stderr, std::io::stderr().as_fd(), counted)? {
            Direct::Given(file) => file,
            Direct::Through(sinks) => match outputs.first() {
                // If both streams go to the same file, one pipe keeps the order of their output.
                Some(first) if is_same_file(&first.sinks, &sinks) => fcntl_dupfd_cloexec(&given_stdout, FREE)?,
                _ => {
                    let (drain, given) = Drain::piped(sinks, Stream::Stderr)?;
                    outputs.push(drain);
                    given
                }
            },
        };
        let streams = Self { input, outputs, allowance: output_limit, buffer: Vec::new() };
        Ok((streams, [given_stdin, given_stdout, given_stderr]))
    }

    /// Creates the streams of a container with a terminal, whose output goes to `stdout`. The
    /// container gets none of the caller's streams; the runtime gets the caller's standard error.
    pub(super) fn of_terminal(
        stdin: Input,
        stdout: Output<'a>,
        output_limit: Option<u64>,
    ) -> io::Result<(Self, Given)> {
        let input = match stdin {
            Input::Null => None,
            Input::Inherit => Some(Feed::of_file(fcntl_dupfd_cloexec(std::io::stdin(), 3)?.into())?),
            Input::File(file) => Some(Feed::of_file(file)?),
            Input::Bytes(bytes) => Some(Feed::of_bytes(bytes)),
        };
        let sinks = Sink::all(stdout, std::io::stdout().as_fd())?;
        let outputs =
            vec![Drain { source: None, sinks, stream: Stream::Stdout, is_pipe: false, surplus: false, failure: None }];
        let streams = Self { input, outputs, allowance: output_limit, buffer: Vec::new() };
        let stderr = fcntl_dupfd_cloexec(std::io::stderr(), FREE).or_else(|_| null())?;
        Ok((streams, [null()?, null()?, stderr]))
    }

    /// Connects the streams to the container's terminal.
    pub(super) fn attach(&mut self, terminal: OwnedFd) -> io::Result<()> {
        without_blocking(&terminal)?;
        if let Some(feed) = &mut self.input {
            feed.attach(fcntl_dupfd_cloexec(&terminal, 3)?);
        }
        for drain in &mut self.outputs {
            drain.source = Some(fcntl_dupfd_cloexec(&terminal, 3)?.into());
        }
        Ok(())
    }

    /// Returns the descriptors to poll.
    pub(super) fn poll_fds(&self) -> Vec<PollFd<'_>> {
        let mut fds = Vec::new();
        for drain in &self.outputs {
            let before = fds.len();
            let pending = drain.sinks.iter().filter_map(Sink::pending);
            fds.extend(pending.map(|file| PollFd::from_borrowed_fd(file, PollFlags::OUT)));
            if let (Some(source), true) = (&drain.source, fds.len() == before) {
                fds.push(PollFd::new(source, PollFlags::IN));
            }
        }
        if let Some(feed) = &self.input {
            feed.poll(&mut fds);
        }
        fds
    }

    /// Returns whether the caller's terminal must be checked periodically: no event reports that
    /// the caller is in the foreground again.
    pub(super) fn waits_for_foreground(&self) -> bool {
        self.input.as_ref().is_some_and(Feed::waits_for_foreground)
    }

    /// Allocates the buffer before the first piece. The kernel provides its pages only when they
    /// are written to: a line of output takes one.
    fn make_buffer(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = vec![0; PIECE_BYTES];
        }
    }

    /// Copies what is available in both directions.
    pub(super) fn advance(&mut self) {
        self.make_buffer();
        for drain in &mut self.outputs {
            drain.flush();
            for _ in 0..MOST_PIECES {
                if !drain.read_once(&mut self.allowance, &mut self.buffer) {
                    break;
                }
            }
        }
        if let Some(feed) = &mut self.input {
            if let Err(error) = feed.advance(&mut self.buffer) {
                log::debug!("no more input is forwarded to the command: {error}");
                self.input = None;
            }
        }
    }

    /// Copies what is left in the pipes after the container has ended. Returns whether all of it
    /// has reached its destinations: a terminal may not accept more for now.
    pub(super) fn drain(&mut self) -> bool {
        // Dropping the input leaves the unread part to the caller's next process.
        self.input = None;
        if self.outputs.is_empty() {
            return true;
        }
        self.make_buffer();
        for drain in &mut self.outputs {
            drain.flush();
            while drain.read_once(&mut self.allowance, &mut self.buffer) {}
        }
        self.outputs.iter().all(|drain| drain.sinks.iter().all(|sink| sink.pending().is_none()))
    }

    /// Returns whether the caller's terminal has been hung up while the container has a terminal.
    /// In raw mode, the container's terminal would not notice.
    pub(super) fn have_lost_their_terminal(&self) -> bool {
        let has_terminal = self.outputs.iter().any(|drain| !drain.is_pipe);
        has_terminal && self.input.as_ref().is_some_and(Feed::is_terminal_at_its_end)
    }

    /// Closes the container's terminal.
    pub(super) fn hang_up(&mut self) {
        self.input = None;
        self.outputs.iter_mut().for_each(|drain| drain.source = None);
    }

    /// Discards the output that its destinations have not accepted.
    pub(super) fn give_up(&mut self) {
        for drain in &mut self.outputs {
            for sink in drain.sinks.iter_mut().filter(|sink| sink.pending().is_some()) {
                sink.give_up();
                let lost = io::Error::new(io::ErrorKind::TimedOut, "nobody takes it");
                note(&mut drain.failure, Err(lost));
            }
            drain.source = None;
        }
    }

    /// Returns whether the command wrote more than allowed.
    pub(super) fn has_surplus(&self) -> bool {
        self.outputs.iter().any(|drain| drain.surplus)
    }

    /// Returns the excerpts and the first failure.
    pub(super) fn finish(self) -> Outputs {
        let mut outcome = Outputs::default();
        for mut drain in self.outputs {
            for mut sink in drain.sinks {
                sink.finish();
                let kept = match drain.stream {
                    Stream::Stdout => &mut outcome.stdout,
                    Stream::Stderr => &mut outcome.stderr,
                };
                if let (Sink::Excerpt(excerpt), None) = (sink, &kept) {
                    *kept = Some(excerpt);
                }
            }
            outcome.failure = outcome.failure.or(drain.failure.take());
        }
        outcome
    }
}

/// The result of a run's outputs.
#[derive(Debug, Default)]
pub(crate) struct Outputs {
    pub(crate) stdout: Option<Excerpt>,
    pub(crate) stderr: Option<Excerpt>,
    /// Why a part of the output is lost, if it is.
    pub(crate) failure: Option<io::Error>,
}

/// A stream that the container gets directly, or one that passes through the caller's process.
enum Direct<T> {
    Given(OwnedFd),
    Through(T),
}

impl Direct<Feed> {
    fn input(input: Input) -> io::Result<Self> {
        let file = match input {
            Input::Null => return Ok(Direct::Given(null()?)),
            Input::Inherit => match fcntl_dupfd_cloexec(std::io::stdin(), FREE) {
                // The caller has closed its standard input.
                Err(Errno::BADF) => return Ok(Direct::Given(null()?)),
                file => file?,
            },
            Input::File(file) => file.into(),
            Input::Bytes(bytes) => return Ok(Direct::Through(Feed::of_bytes(bytes))),
        };
        Ok(match may_be_shared(&file)? {
            true => Direct::Given(above(file)?),
            false => Direct::Through(Feed::of_file(file.into())?),
        })
    }
}

impl<'a> Direct<Vec<Sink<'a>>> {
    /// Decides how the container gets an output. `inherited` is the caller's own stream. If
    /// `counted`, the output passes through the caller's process, which counts its bytes.
    fn output(output: Output<'a>, inherited: BorrowedFd<'_>, counted: bool) -> io::Result<Self> {
        Ok(match output {
            Output::Null => Direct::Given(null()?),
            // The caller has closed its own stream.
            Output::Inherit if fstat(inherited).err() == Some(Errno::BADF) => Direct::Given(null()?),
            Output::Inherit if !counted && may_be_shared(inherited)? => {
                Direct::Given(fcntl_dupfd_cloexec(inherited, FREE)?)
            }
            Output::File(file) if !counted && may_be_shared(&file)? => Direct::Given(above(file.into())?),
            other => Direct::Through(Sink::all(other, inherited)?),
        })
    }
}

fn null() -> io::Result<OwnedFd> {
    above(File::options().read(true).write(true).open("/dev/null")?.into())
}

/// Returns the same file with a descriptor number that the keeper does not use itself.
pub(super) fn above(file: OwnedFd) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    if file.as_raw_fd() >= FREE { Ok(file) } else { Ok(fcntl_dupfd_cloexec(&file, FREE)?) }
}

/// Makes `file` non-blocking. The other end of a pipe does not change: it is a separate open file
/// description.
fn without_blocking(file: &OwnedFd) -> io::Result<()> {
    Ok(fcntl_setfl(file, fcntl_getfl(file)? | OFlags::NONBLOCK)?)
}

fn is_same_file(left: &[Sink<'_>], right: &[Sink<'_>]) -> bool {
    let identity = |stat: Stat| (stat.st_dev, stat.st_ino);
    match (only_file(left), only_file(right)) {
        (Some(left), Some(right)) => fstat(left).map(identity).ok() == fstat(right).map(identity).ok(),
        _ => false,
    }
}

impl<'a> Drain<'a> {
    fn piped(sinks: Vec<Sink<'a>>, stream: Stream) -> io::Result<(Self, OwnedFd)> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        without_blocking(&reader)?;
        // The kernel limits the total size of a user's pipes. Beyond that limit, the pipe keeps its
        // default size.
        let _ = fcntl_setpipe_size(&reader, PIECE_BYTES);
        let drain = Self { source: Some(reader.into()), sinks, stream, is_pipe: true, surplus: false, failure: None };
        Ok((drain, above(writer)?))
    }

    fn flush(&mut self) {
        for sink in &mut self.sinks {
            note(&mut self.failure, sink.flush());
        }
        self.close_with_its_reader();
    }

    /// Closes the pipe if the readers of all destinations have closed theirs. The command then gets
    /// SIGPIPE, as if it wrote to them directly.
    fn close_with_its_reader(&mut self) {
        if self.is_pipe && !self.sinks.is_empty() && self.sinks.iter().all(Sink::is_closed) {
            self.source = None;
        }
    }

    /// Reads at most one piece and passes on the allowed part of it. Reads nothing while a
    /// destination has no room. Returns whether there may be more.
    fn read_once(&mut self, allowance: &mut Option<u64>, buffer: &mut [u8]) -> bool {
        let Some(source) = &mut self.source else { return false };
        if self.sinks.iter().any(|sink| sink.pending().is_some()) {
            return false;
        }
        match source.read(buffer) {
            Ok(length @ 1..) => {
                let allowed = allowance.map_or(length as u64, |left| left.min(length as u64));
                if let Some(left) = allowance {
                    *left -= allowed;
                }
                let allowed = allowed as usize;
                self.surplus |= allowed < length;
                for sink in &mut self.sinks {
                    note(&mut self.failure, sink.accept(&buffer[..allowed]));
                }
                self.close_with_its_reader();
                true
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            // EIO is the end of a terminal.
            Ok(0) | Err(_) => {
                self.source = None;
                false
            }
        }
    }
}

/// Keeps only the first failure.
fn note(first: &mut Option<io::Error>, result: io::Result<()>) {
    if let (Err(error), None) = (result, &first) {
        *first = Some(error);
    }
}
