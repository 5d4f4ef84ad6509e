//! The destinations of a command's output after it has passed through the caller's process: files,
//! memory, and functions.

use std::io;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::net::{SendFlags, send};
use rustix::pty::ptsname;
use rustix::termios::isatty;

use super::mask;
use crate::output::{Callback, Output};
use crate::{CaptureLimit, Excerpt};

/// One destination.
pub(super) enum Sink<'a> {
    File(FileSink),
    Excerpt(Excerpt),
    Callback(Callback<'a>),
    Lines { function: Callback<'a>, begun: Vec<u8> },
}

/// A file, a terminal, a pipe or a socket of the caller's. Only a regular file blocks the writer,
/// unless a FIFO or a terminal could not be opened again.
pub(super) struct FileSink {
    file: OwnedFd,
    way: Way,
    /// Output that the file has not accepted yet.
    pending: Vec<u8>,
    /// The first failure. After it, nothing more is written.
    failure: Option<io::ErrorKind>,
}

/// How a file is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Accepts everything that is written. It may block if it could not be opened again.
    Whole,
    /// Accepts as much as it has room for.
    Room,
    /// A socket: like `Room`, but needs MSG_DONTWAIT on every call.
    Socket,
}

impl<'a> Sink<'a> {
    /// Returns the destinations that `output` names. `inherited` is the caller's own stream.
    ///
    /// # Errors
    /// The kernel's error, if the process cannot open another descriptor.
    pub(super) fn all(output: Output<'a>, inherited: BorrowedFd<'_>) -> io::Result<Vec<Self>> {
        Ok(match output {
            Output::Null => Vec::new(),
            Output::Inherit => vec![Sink::File(FileSink::new(fcntl_dupfd_cloexec(inherited, 3)?)?)],
            Output::File(file) => vec![Sink::File(FileSink::new(file.into())?)],
            Output::Capture(limit) => vec![Sink::excerpt(limit)],
            Output::Callback(function) => vec![Sink::Callback(function)],
            Output::Lines(function) => vec![Sink::Lines { function, begun: Vec::new() }],
            Output::Tee(outputs) => {
                let mut all = Vec::new();
                for output in outputs {
                    all.extend(Sink::all(output, inherited)?);
                }
                all
            }
        })
    }

    fn excerpt(limit: CaptureLimit) -> Self {
        Sink::Excerpt(Excerpt::new(limit))
    }

    /// Takes all of `bytes`. The part that a file has no room for stays
    /// [pending](FileSink::pending).
    pub(super) fn accept(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Sink::File(file) => return file.accept(bytes),
            Sink::Excerpt(excerpt) => excerpt.push(bytes),
            Sink::Callback(function) => function(bytes),
            Sink::Lines { function, begun } => by_line(function, begun, bytes),
        }
        Ok(())
    }

    /// Delivers an incomplete last line at the end of the stream.
    pub(super) fn finish(&mut self) {
        if let Sink::Lines { function, begun } = self {
            if !begun.is_empty() {
                function(&std::mem::take(begun));
            }
        }
    }

    /// Returns the file if some output is still pending for it.
    pub(super) fn pending(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Sink::File(sink) if !sink.pending.is_empty() => Some(sink.file.as_fd()),
            _ => None,
        }
    }

    /// Returns whether the reader of a pipe or socket has closed it.
    pub(super) fn is_closed(&self) -> bool {
        matches!(self, Sink::File(FileSink { failure: Some(io::ErrorKind::BrokenPipe), .. }))
    }

    /// Discards pending output and all output that follows.
    pub(super) fn give_up(&mut self) {
        if let Sink::File(sink) = self {
            sink.fail(io::ErrorKind::TimedOut);
        }
    }

    /// Tries to write the pending output.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        match self {
            Sink::File(sink) => sink.accept(&[]),
            _ => Ok(()),
        }
    }
}

/// Calls `function` with each line that `bytes` completes. Keeps the rest in `begun`.
fn by_line(function: &mut Callback<'_>, begun: &mut Vec<u8>, bytes: &[u8]) {
    for part in bytes.split_inclusive(|byte| *byte == b'\n') {
        if begun.is_empty() && part.ends_with(b"\n") {
            function(part);
            continue;
        }
        begun.extend_from_slice(part);
        if begun.ends_with(b"\n") || begun.len() >= Output::MAX_LINE_BYTES {
            function(begun);
            begun.clear();
        }
    }
}

impl FileSink {
    fn new(file: OwnedFd) -> io::Result<Self> {
        let way = |file, way| Ok(Self { file, way, pending: Vec::new(), failure: None });
        match FileType::from_raw_mode(fstat(&file)?.st_mode) {
            FileType::Socket => way(file, Way::Socket),
            // The sink opens the file again so that only its own descriptor is non-blocking. Other
            // processes may share the caller's descriptor and expect it to block.
            kind if can_be_reopened(&file, kind) => match reopened(&file, OFlags::WRONLY) {
                Ok(own) => way(own, Way::Room),
                Err(error) => {
                    log::debug!("the command's output may block: its file cannot be opened again ({error})");
                    way(file, Way::Whole)
                }
            },
            _ => way(file, Way::Whole),
        }
    }

    fn accept(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.failure.is_some() {
            return Ok(());
        }
        let result = match self.pending.is_empty() {
            true => self.write(bytes).map(|written| self.pending.extend_from_slice(&bytes[written..])),
            false => {
                self.pending.extend_from_slice(bytes);
                let pending = std::mem::take(&mut self.pending);
                self.write(&pending).map(|written| self.pending.extend_from_slice(&pending[written..]))
            }
        };
        result.inspect_err(|error| self.fail(error.kind()))
    }

    fn fail(&mut self, failure: io::ErrorKind) {
        self.failure = Some(failure);
        self.pending = Vec::new();
    }

    /// Writes as much as there is room for. Returns the number of bytes written.
    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let written = match self.way {
                Way::Socket => send(&self.file, rest, SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
                Way::Whole | Way::Room => mask::write(&self.file, rest),
            };
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => rest = &rest[written..],
                Err(Errno::INTR) => {}
                // The caller's file is itself non-blocking. The rest stays pending until poll(2)
                // reports room.
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(bytes.len() - rest.len())
    }
}

/// Returns whether opening the file again yields the same file. That holds for FIFOs and terminals.
/// It does not hold for the master of a pseudoterminal, because each open creates a new pair. For
/// other devices it is unknown, so the result is `false`.
pub(super) fn can_be_reopened(file: &OwnedFd, kind: FileType) -> bool {
    match kind {
        FileType::Fifo => true,
        FileType::CharacterDevice => isatty(file) && ptsname(file, Vec::new()).is_err(),
        _ => false,
    }
}

/// Opens the same file again with a non-blocking descriptor.
pub(super) fn reopened(file: &OwnedFd, access: OFlags) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(openat(CWD, path, access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Returns the file if it is the only destination, for comparison with another one.
pub(super) fn only_file<'s>(sinks: &'s [Sink<'_>]) -> Option<&'s OwnedFd> {
    match sinks {
        [Sink::File(sink)] => Some(&sink.file),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use rustix::pipe::pipe;

    use super::*;

    #[test]
    fn lines_are_whole_however_the_pieces_fall() {
        let text = b"one\n\ntwo\nlast";
        for size in 1..=text.len() {
            let mut lines = Vec::new();
            let output = Output::lines(|line| lines.push(line.to_vec()));
            let mut sinks = Sink::all(output, std::io::stdout().as_fd()).unwrap();
            text.chunks(size).for_each(|piece| sinks[0].accept(piece).unwrap());
            sinks[0].finish();
            drop(sinks);
            assert_eq!(lines, [&b"one\n"[..], b"\n", b"two\n", b"last"], "pieces of {size}");
        }
    }

    #[test]
    fn a_line_without_an_end_comes_in_parts() {
        let mut lengths = Vec::new();
        let mut sinks = Sink::all(Output::lines(|line| lengths.push(line.len())), std::io::stdout().as_fd()).unwrap();
        for _ in 0..3 {
            sinks[0].accept(&vec![b'x'; Output::MAX_LINE_BYTES / 2]).unwrap();
        }
        sinks[0].finish();
        drop(sinks);
        assert_eq!(lengths, [Output::MAX_LINE_BYTES, Output::MAX_LINE_BYTES / 2]);
    }

    #[test]
    fn a_pipe_that_nobody_reads_does_not_block() {
        let (reader, writer) = pipe().unwrap();
        let mut sink = Sink::File(FileSink::new(writer).unwrap());
        let bytes: Vec<u8> = (0..1_000_000_u32).map(|n| n as u8).collect();
        sink.accept(&bytes).unwrap();
        assert!(sink.pending().is_some());
        let mut reader = File::from(reader);
        let (mut read, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
        while sink.pending().is_some() {
            let length = reader.read(&mut buffer).unwrap();
            read.extend_from_slice(&buffer[..length]);
            sink.flush().unwrap();
        }
        drop(sink);
        reader.read_to_end(&mut read).unwrap();
        assert!(read == bytes);
    }

    #[test]
    fn a_full_disk_is_reported_once() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut sink = Sink::File(FileSink::new(full.into()).unwrap());
        assert_eq!(sink.accept(b"x").unwrap_err().kind(), io::ErrorKind::StorageFull);
        sink.accept(b"y").unwrap();
        assert!(sink.pending().is_none());
    }

    #[test]
    fn a_tee_writes_to_all_of_its_outputs() {
        let mut log = tempfile::tempfile().unwrap();
        let mut seen = Vec::new();
        let outputs = [
            Output::File(log.try_clone().unwrap()),
            Output::Null,
            Output::Tee(vec![Output::callback(|piece| seen.extend_from_slice(piece))]),
        ];
        let mut sinks = Sink::all(Output::tee(outputs), std::io::stdout().as_fd()).unwrap();
        assert_eq!(sinks.len(), 2);
        sinks.iter_mut().for_each(|sink| sink.accept(b"text").unwrap());
        drop(sinks);
        let mut text = String::new();
        std::io::Seek::rewind(&mut log).unwrap();
        log.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), &*seen), ("text", &b"text"[..]));
    }
}
