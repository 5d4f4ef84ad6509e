//! The three streams of a container. Decides which of the caller's files the container may have,
//! and puts pipes in the place of the others.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use rustix::event::{PollFd, PollFlags};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{FileType, OFlags, Stat, fcntl_getfl, fcntl_setfl, fstat, fstatfs, makedev};
use rustix::io::{Errno, fcntl_dupfd_cloexec, ioctl_fionread};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use rustix::process::getpgrp;
use rustix::termios::{isatty, tcgetpgrp};

use super::mask;
use super::sinks::{Sink, can_be_reopened, only_file, reopened};
use super::spawn::FREE;
use crate::{Excerpt, Input, Output};

/// `PIPEFS_MAGIC` in linux/magic.h: the file system of pipes without a name.
const PIPEFS_MAGIC: u64 = 0x5049_5045;

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

/// The input on its way to the container.
struct Feed {
    source: Source,
    /// The non-blocking write end; `None` before the terminal has arrived, and after the end.
    sink: Option<OwnedFd>,
    /// Input that the container has no room for yet.
    pending: Vec<u8>,
    /// The read end of the pipe, once all of a regular file is in it.
    rest: Option<OwnedFd>,
    /// Whether the source has been read to its end.
    has_ended: bool,
    /// The number of bytes that have been read from the source.
    taken: u64,
}

struct Source {
    file: File,
    /// The caller's own open file, if `file` is the same one opened again. Only this one reports that
    /// the writers of a FIFO have gone if they had gone before.
    callers: Option<OwnedFd>,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A regular file. The caller's next process can read what the container has left unread.
    Regular,
    /// A terminal. It is read only while the caller is in the foreground.
    Terminal,
    Other,
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
            Direct::Through(file) => {
                let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
                without_blocking(&writer)?;
                (Some(Feed::new(file, Some(writer))?), above(reader)?)
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
        let source = match stdin {
            Input::Null => None,
            Input::Inherit => Some(File::from(fcntl_dupfd_cloexec(std::io::stdin(), 3)?)),
            Input::File(file) => Some(file),
        };
        let input = source.map(|source| Feed::new(source, None)).transpose()?;
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
            feed.sink = Some(fcntl_dupfd_cloexec(&terminal, 3)?);
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
        self.input.as_ref().is_some_and(|feed| feed.sink.is_some() && !feed.source.is_in_front())
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
                log::debug!("no more input is handed on: {error}");
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
        has_terminal && self.input.as_ref().is_some_and(|feed| feed.source.kind == Kind::Terminal && feed.has_ended)
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

impl Direct<File> {
    fn input(input: Input) -> io::Result<Self> {
        let file = match input {
            Input::Null => return Ok(Direct::Given(null()?)),
            Input::Inherit => match fcntl_dupfd_cloexec(std::io::stdin(), FREE) {
                // The caller has closed its standard input.
                Err(Errno::BADF) => return Ok(Direct::Given(null()?)),
                file => file?,
            },
            Input::File(file) => file.into(),
        };
        Ok(if may_be_shared(&file)? { Direct::Given(above(file)?) } else { Direct::Through(file.into()) })
    }
}

impl<'a> Direct<Vec<Sink<'a>>> {
    /// `inherited` is the caller's own stream. If `counted`, the output passes through the caller's
    /// process, which counts its bytes.
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

/// Returns whether the container may have the file as it is: a pipe without a name, a socket, or
/// `/dev/null`. A process with a file or a terminal can open it again through `/proc/self/fd` with
/// other rights, and some runtimes make the command's user its owner.
fn may_be_shared(file: impl AsFd) -> io::Result<bool> {
    let stat = fstat(&file)?;
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Fifo => fstatfs(&file)?.f_type as u64 == PIPEFS_MAGIC,
        FileType::Socket => true,
        FileType::CharacterDevice => stat.st_rdev == makedev(1, 3),
        _ => false,
    })
}

fn null() -> io::Result<OwnedFd> {
    above(File::options().read(true).write(true).open("/dev/null")?.into())
}

/// Returns the same file with a descriptor number that the keeper does not use itself.
pub(super) fn above(file: OwnedFd) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    if file.as_raw_fd() >= FREE { Ok(file) } else { Ok(fcntl_dupfd_cloexec(&file, FREE)?) }
}

/// Affects only this end of the pipe: the other end is a separate open file description.
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

impl Source {
    fn new(file: File) -> io::Result<Self> {
        let file = OwnedFd::from(file);
        let file_type = FileType::from_raw_mode(fstat(&file)?.st_mode);
        let kind = match file_type {
            FileType::RegularFile => Kind::Regular,
            FileType::CharacterDevice if isatty(&file) => Kind::Terminal,
            _ => Kind::Other,
        };
        // Opened again without blocking: another process may read the input that poll(2) has
        // announced here.
        let own = can_be_reopened(&file, file_type).then(|| reopened(&file, OFlags::RDONLY).ok()).flatten();
        Ok(match own {
            Some(own) => Self { file: own.into(), callers: Some(file), kind },
            None => Self { file: file.into(), callers: None, kind },
        })
    }

    /// Returns what poll(2) waits for.
    fn polled(&self) -> BorrowedFd<'_> {
        self.callers.as_ref().map_or(self.file.as_fd(), AsFd::as_fd)
    }

    /// Returns whether the caller may read the source now. Only the terminal of the caller's own
    /// session can deny that.
    fn is_in_front(&self) -> bool {
        self.kind != Kind::Terminal
            || match tcgetpgrp(&self.file) {
                Ok(front) => front == getpgrp(),
                // A terminal of another session does not stop the caller. One that has been hung up
                // is at its end.
                Err(error) => [Errno::NOTTY, Errno::IO].contains(&error),
            }
    }
}

impl Feed {
    fn new(file: File, sink: Option<OwnedFd>) -> io::Result<Self> {
        Ok(Self { source: Source::new(file)?, sink, pending: Vec::new(), rest: None, has_ended: false, taken: 0 })
    }

    /// Ends the container's input. The container can still read what is in the pipe.
    fn end(&mut self) {
        self.has_ended = true;
        self.rest = self.sink.take().filter(|_| self.source.kind == Kind::Regular);
        self.rest = self.rest.take().and_then(|sink| reopened(&sink, OFlags::RDONLY).ok());
    }

    fn poll<'f>(&'f self, fds: &mut Vec<PollFd<'f>>) {
        let Some(sink) = &self.sink else { return };
        let waits_for_room = !self.pending.is_empty() || self.source.kind == Kind::Regular;
        // The sink is polled even without pending input: poll(2) reports when the command has
        // closed its input.
        fds.push(PollFd::new(sink, if waits_for_room { PollFlags::OUT } else { PollFlags::empty() }));
        if !waits_for_room && self.source.is_in_front() {
            fds.push(PollFd::from_borrowed_fd(self.source.polled(), PollFlags::IN));
        }
    }

    /// Copies as much input as is available and as the container has room for.
    ///
    /// # Errors
    /// [`BrokenPipe`](io::ErrorKind::BrokenPipe) if the command has closed its input; else
    /// the kernel's, if the input cannot be read or written.
    fn advance(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let Some(sink) = &self.sink else { return Ok(()) };
        let ready = |file: &dyn AsFd, flags| {
            let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            let mut fds = [PollFd::from_borrowed_fd(file.as_fd(), flags)];
            rustix::event::poll(&mut fds, Some(&now)).map(|_| fds[0].revents())
        };
        if ready(sink, PollFlags::OUT)?.intersects(PollFlags::ERR) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if self.pending.is_empty() && self.source.is_in_front() {
            let readable =
                self.source.kind == Kind::Regular || !ready(&self.source.polled(), PollFlags::IN)?.is_empty();
            if !readable {
                return Ok(());
            }
            match self.source.file.read(buffer) {
                Ok(0) => {
                    self.end();
                    return Ok(());
                }
                Ok(length) => {
                    self.taken += length as u64;
                    self.pending.extend_from_slice(&buffer[..length]);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
                // The caller has moved to the background, or the source was not ready after all.
                Err(error)
                    if error.raw_os_error() == Some(Errno::IO.raw_os_error()) && self.source.kind == Kind::Terminal =>
                {
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        match mask::write(sink, &self.pending) {
            Ok(written) => drop(self.pending.drain(..written)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

impl Drop for Feed {
    /// Sets the offset of a regular file to where the command has stopped reading, so that the next
    /// command of a script continues there.
    fn drop(&mut self) {
        let pipe = self.rest.as_ref().or(self.sink.as_ref()).filter(|_| self.source.kind == Kind::Regular);
        let Some(pipe) = pipe.filter(|pipe| may_be_shared(pipe).unwrap_or_default()) else { return };
        // The command can write to its own standard input, too: no more goes back than was taken.
        let unread = (ioctl_fionread(pipe).unwrap_or(0) + self.pending.len() as u64).min(self.taken);
        if let (Ok(back), true) = (i64::try_from(unread), unread > 0) {
            if let Err(error) = self.source.file.seek(SeekFrom::Current(-back)) {
                log::debug!("the input is not put back to where the command has read up to: {error}");
            }
        }
    }
}
