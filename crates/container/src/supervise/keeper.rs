//! The keeper's process, as its parent sees it. `helper/keeper.rs` is the program that it runs.

use std::io;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, pidfd_send_signal, waitpid};

use super::spawn;

/// The process whose end makes the kernel kill all other processes of the run. Dropping this value
/// kills and reaps it.
pub(super) struct Keeper {
    pid: Pid,
    pidfd: OwnedFd,
    /// Whether the keeper has been reaped.
    has_ended: bool,
    /// The processor time of the keeper and of everything that it started.
    cpu_time: Option<Duration>,
}

impl Keeper {
    /// Takes charge of the child `pid`.
    ///
    /// # Errors
    /// The kernel's error, if the process cannot open another descriptor. The child has then been
    /// killed.
    pub(super) fn new(pid: Pid) -> io::Result<Self> {
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self { pid, pidfd, has_ended: false, cpu_time: None }),
            Err(error) => {
                let _ = kill_process(pid, Signal::KILL);
                let _ = retry_on_intr(|| waitpid(Some(pid), WaitOptions::empty()));
                Err(error.into())
            }
        }
    }

    /// Sends the keeper a signal to forward. It is not an error if the keeper has ended.
    pub(super) fn send(&self, signal: i32) {
        if let Some(signal) = Signal::from_named_raw(signal) {
            let _ = pidfd_send_signal(&self.pidfd, signal);
        }
    }

    /// Kills the keeper and with it the container.
    pub(super) fn kill(&self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Waits until the keeper and all other processes in its namespace have ended.
    pub(super) fn wait_for_end(&mut self) -> io::Result<()> {
        if self.has_ended {
            return Ok(());
        }
        match spawn::reap(self.pid) {
            Ok(cpu_time) => self.cpu_time = Some(cpu_time),
            // The caller ignores SIGCHLD, or another of its threads reaps every child.
            Err(Errno::CHILD) => {
                let mut end = [PollFd::new(&self.pidfd, PollFlags::IN)];
                retry_on_intr(|| poll(&mut end, None))?;
            }
            Err(error) => return Err(error.into()),
        }
        self.has_ended = true;
        Ok(())
    }

    /// Returns the processor time of the keeper and of all processes that it or its children have
    /// waited for. Processes that were killed at the end are not among them. Returns `None` before
    /// the end, and if something else has reaped the keeper.
    pub(super) fn cpu_time(&self) -> Option<Duration> {
        self.cpu_time
    }
}

impl AsFd for Keeper {
    /// Returns a descriptor that becomes readable when the keeper has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if !self.has_ended {
            self.kill();
            let _ = self.wait_for_end();
        }
    }
}
