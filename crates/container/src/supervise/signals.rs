use std::sync::Arc;

use nix::sys::signal::Signal;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::{Error, Result};

/// Sends signals to the command of one run from other threads. Clones share it.
///
/// The command gets a signal as if a process on its own machine had sent it: a handler of its runs, and without one the signal does
/// what it does by default. With a [terminal](crate::Terminal), SIGWINCH gives it the size of the caller's instead, whereupon the
/// kernel tells the command.
///
/// A signal that is sent before the command has begun waits for it. Nothing ends a command that goes on: see
/// [`Cancel::interrupt`](crate::Cancel::interrupt).
#[derive(Debug, Clone)]
pub struct Signals {
    ends: Arc<Ends>,
}

#[derive(Debug)]
struct Ends {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Signals {
    /// One for one run.
    ///
    /// # Errors
    /// [`Error::Io`] if there is no descriptor left.
    pub fn new() -> Result<Self> {
        let (reader, writer) =
            pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(Error::io("create", "a pipe for signals"))?;
        Ok(Self { ends: Arc::new(Ends { reader, writer }) })
    }

    /// Sends a signal, by its number: `SIGHUP` is 1. Passed over are numbers of no standard signal, SIGCHLD, which says something of
    /// the sender's own children, SIGSTOP, and SIGKILL: see [`Cancel::kill`](crate::Cancel::kill).
    pub fn send(&self, signal: i32) {
        const NONE_OF_THE_COMMANDS: [Signal; 3] = [Signal::SIGCHLD, Signal::SIGSTOP, Signal::SIGKILL];
        let is_one = Signal::try_from(signal).is_ok_and(|signal| !NONE_OF_THE_COMMANDS.contains(&signal));
        if let (Ok(byte), true) = (u8::try_from(signal), is_one) {
            // A pipe that is full of signals loses one more, as the kernel does.
            let _ = rustix::io::write(&self.ends.writer, &[byte]);
        }
    }

    /// Readable when there are any.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.ends.reader.as_fd()
    }

    /// Those that have been sent since.
    pub(super) fn take(&self) -> Vec<i32> {
        let mut bytes = [0; 64];
        let length = rustix::io::read(&self.ends.reader, &mut bytes).unwrap_or(0);
        bytes[..length].iter().map(|byte| i32::from(*byte)).collect()
    }
}
