//! The input of a container, if it passes through the caller's process. `streams` has its outputs.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use rustix::event::{PollFd, PollFlags};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{FileType, OFlags, fstat};
use rustix::io::{Errno, ioctl_fionread};
use rustix::process::getpgrp;
use rustix::termios::{isatty, tcgetpgrp};

use super::mask;
use super::shareable::may_be_shared;
use super::sinks::{can_be_reopened, reopened};

/// The input on its way to the container.
pub(super) struct Feed {
    /// `None` if the whole input is in memory.
    source: Option<Source>,
    /// The non-blocking write end; `None` before the terminal has arrived, and after the end.
    sink: Option<OwnedFd>,
    /// Input that the container has no room for yet.
    pending: VecDeque<u8>,
    /// The read end of the pipe, once all of a regular file is in it.
    rest: Option<OwnedFd>,
    /// Whether the source has been read to its end.
    has_ended: bool,
    /// The number of bytes that have been read from the source.
    taken: u64,
}

struct Source {
    file: File,
    /// The caller's own open file, if `file` is the same one opened again. If the writers of a FIFO
    /// had gone before it was opened again, only the caller's open file reports that.
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

impl Source {
    fn new(file: File) -> io::Result<Self> {
        let file = OwnedFd::from(file);
        let file_type = FileType::from_raw_mode(fstat(&file)?.st_mode);
        let kind = match file_type {
            FileType::RegularFile => Kind::Regular,
            FileType::CharacterDevice if isatty(&file) => Kind::Terminal,
            _ => Kind::Other,
        };
        // Open the file again without blocking. Otherwise a read would block if another process
        // takes the input that poll(2) has announced.
        let own = can_be_reopened(&file, file_type).then(|| reopened(&file, OFlags::RDONLY).ok()).flatten();
        Ok(match own {
            Some(own) => Self { file: own.into(), callers: Some(file), kind },
            None => Self { file: file.into(), callers: None, kind },
        })
    }

    /// Returns the descriptor to poll for input.
    fn polled(&self) -> BorrowedFd<'_> {
        self.callers.as_ref().map_or(self.file.as_fd(), AsFd::as_fd)
    }

    /// Returns whether the caller may read the source now. Only the terminal of the caller's own
    /// session can deny that.
    fn is_in_front(&self) -> bool {
        self.kind != Kind::Terminal
            || match tcgetpgrp(&self.file) {
                Ok(front) => front == getpgrp(),
                // A terminal of another session does not stop the caller. A terminal that has been
                // hung up is at its end.
                Err(error) => [Errno::NOTTY, Errno::IO].contains(&error),
            }
    }
}

impl Feed {
    /// Creates an input that copies `file` once a sink is [attached](Self::attach).
    pub(super) fn of_file(file: File) -> io::Result<Self> {
        let mut feed = Self::of_bytes(Vec::new());
        feed.source = Some(Source::new(file)?);
        Ok(feed)
    }

    /// Creates an input that copies `bytes` once a sink is attached.
    pub(super) fn of_bytes(bytes: Vec<u8>) -> Self {
        Self { source: None, sink: None, pending: bytes.into(), rest: None, has_ended: false, taken: 0 }
    }

    fn kind(&self) -> Option<Kind> {
        self.source.as_ref().map(|source| source.kind)
    }

    fn is_in_front(&self) -> bool {
        self.source.as_ref().is_none_or(Source::is_in_front)
    }

    /// Ends the container's input. The container can still read what is in the pipe.
    fn end(&mut self) {
        self.has_ended = true;
        self.rest = self.sink.take().filter(|_| self.kind() == Some(Kind::Regular));
        self.rest = self.rest.take().and_then(|sink| reopened(&sink, OFlags::RDONLY).ok());
    }

    /// Sets the non-blocking pipe or terminal that the input is written to.
    pub(super) fn attach(&mut self, sink: OwnedFd) {
        self.sink = Some(sink);
    }

    /// Returns whether the input waits until the caller is in the foreground of its terminal.
    pub(super) fn waits_for_foreground(&self) -> bool {
        self.sink.is_some() && !self.is_in_front()
    }

    /// Returns whether the input is a terminal that has been read to its end.
    pub(super) fn is_terminal_at_its_end(&self) -> bool {
        self.kind() == Some(Kind::Terminal) && self.has_ended
    }

    pub(super) fn poll<'f>(&'f self, fds: &mut Vec<PollFd<'f>>) {
        let Some(sink) = &self.sink else { return };
        let events = self.source.as_ref().filter(|source| self.pending.is_empty() && source.kind != Kind::Regular);
        // The sink is polled even without pending input: poll(2) reports when the command has
        // closed its input.
        fds.push(PollFd::new(sink, if events.is_some() { PollFlags::empty() } else { PollFlags::OUT }));
        if let Some(source) = events.filter(|source| source.is_in_front()) {
            fds.push(PollFd::from_borrowed_fd(source.polled(), PollFlags::IN));
        }
    }

    /// Copies as much input as is available and as the container has room for.
    ///
    /// # Errors
    /// [`BrokenPipe`](io::ErrorKind::BrokenPipe) if the command has closed its input. Otherwise the
    /// kernel's error, if the input cannot be read or written.
    pub(super) fn advance(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let Some(sink) = &self.sink else { return Ok(()) };
        let ready = |file: &dyn AsFd, flags| {
            let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            let mut fds = [PollFd::from_borrowed_fd(file.as_fd(), flags)];
            rustix::event::poll(&mut fds, Some(&now)).map(|_| fds[0].revents())
        };
        if ready(sink, PollFlags::OUT)?.intersects(PollFlags::ERR) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if self.pending.is_empty() && self.is_in_front() {
            let Some(source) = &mut self.source else {
                self.end();
                return Ok(());
            };
            let readable = source.kind == Kind::Regular || !ready(&source.polled(), PollFlags::IN)?.is_empty();
            if !readable {
                return Ok(());
            }
            match source.file.read(buffer) {
                Ok(0) => {
                    self.end();
                    return Ok(());
                }
                Ok(length) => {
                    self.taken += length as u64;
                    self.pending.extend(&buffer[..length]);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
                // The caller has moved to the background, or the source was not ready after all.
                Err(error)
                    if error.raw_os_error() == Some(Errno::IO.raw_os_error()) && source.kind == Kind::Terminal =>
                {
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        match mask::write(sink, self.pending.as_slices().0) {
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
        let Some(source) = self.source.as_mut().filter(|source| source.kind == Kind::Regular) else { return };
        let pipe = self.rest.as_ref().or(self.sink.as_ref());
        let Some(pipe) = pipe.filter(|pipe| may_be_shared(pipe).unwrap_or_default()) else { return };
        // The command can also write to its own standard input. Do not move the offset back by more
        // bytes than were read from the file.
        let unread = (ioctl_fionread(pipe).unwrap_or(0) + self.pending.len() as u64).min(self.taken);
        if let (Ok(back), true) = (i64::try_from(unread), unread > 0) {
            if let Err(error) = source.file.seek(SeekFrom::Current(-back)) {
                log::debug!("cannot set the offset of the input to where the command stopped reading: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    #[test]
    fn bytes_arrive_completely_and_then_end() {
        for length in [0, 1, 1 << 20] {
            let bytes: Vec<u8> = (0..=250).cycle().take(length).collect();
            let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
            let mut feed = Feed::of_bytes(bytes.clone());
            feed.attach(writer);
            let (mut reader, mut seen) = (File::from(reader), Vec::new());
            // Reading fails while the pipe is empty but still has a writer.
            while reader.read_to_end(&mut seen).is_err() {
                feed.advance(&mut []).unwrap();
            }
            assert!(seen == bytes, "{length}");
            assert!(!feed.waits_for_foreground() && !feed.is_terminal_at_its_end());
        }
    }
}
