//! Signals from other threads to the command. `supervise` forwards them.

use std::sync::Arc;

use nix::sys::signal::Signal;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::{Error, Result};

/// Sends signals to the command of one run from other threads. Clones send to the same command.
///
/// The command gets a signal as if another process on the machine had sent it: its handler runs, or
/// the signal has its default action. With a [terminal](crate::Terminal), SIGWINCH instead sets the
/// size of the command's terminal to that of the caller's, and the kernel then notifies the
/// command.
///
/// A signal that is sent before the command has started is delivered after the start. Signals sent
/// this way never make the run kill a command that keeps running: use
/// [`Cancel::interrupt`](crate::Cancel::interrupt) for that.
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
    /// Creates the signals of one run.
    ///
    /// # Errors
    /// [`Error::Io`] if the process cannot open another descriptor.
    pub fn new() -> Result<Self> {
        let (reader, writer) =
            pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(Error::io("create", "a pipe for signals"))?;
        Ok(Self { ends: Arc::new(Ends { reader, writer }) })
    }

    /// Sends the signal with this number: `SIGHUP` is 1.
    ///
    /// Ignores numbers that are not a standard signal, as well as SIGCHLD (which concerns the
    /// sender's own children), SIGSTOP, and SIGKILL (use [`Cancel::kill`](crate::Cancel::kill)).
    pub fn send(&self, signal: i32) {
        const NONE_OF_THE_COMMANDS: [Signal; 3] = [Signal::SIGCHLD, Signal::SIGSTOP, Signal::SIGKILL];
        let is_one = Signal::try_from(signal).is_ok_and(|signal| !NONE_OF_THE_COMMANDS.contains(&signal));
        if let (Ok(byte), true) = (u8::try_from(signal), is_one) {
            // If the pipe is full, the signal is lost. The kernel merges pending signals, too.
            let _ = rustix::io::write(&self.ends.writer, &[byte]);
        }
    }

    /// Returns a descriptor that becomes readable when signals have been sent.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.ends.reader.as_fd()
    }

    /// Takes the signals that have been sent since the last call.
    pub(super) fn take(&self) -> Vec<i32> {
        let mut bytes = [0; 64];
        let length = rustix::io::read(&self.ends.reader, &mut bytes).unwrap_or(0);
        bytes[..length].iter().map(|byte| i32::from(*byte)).collect()
    }
}
