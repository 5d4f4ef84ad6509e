use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::{Error, Result};

/// Ends a run from another thread. Clones share one decision, which cannot be taken back.
#[derive(Debug, Clone)]
pub struct Cancel {
    events: Arc<Events>,
}

/// Each is readable from the moment on which it is true.
#[derive(Debug)]
struct Events {
    cancelled: OwnedFd,
    killed: OwnedFd,
    /// The signal of an [interrupt](Cancel::interrupt); 0 if it is none.
    signal: AtomicI32,
}

impl Cancel {
    /// One that has not been used.
    ///
    /// # Errors
    /// [`Error::Io`] if there is no descriptor left.
    pub fn new() -> Result<Self> {
        let event =
            || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(Error::io("create", "an eventfd"));
        Ok(Self { events: Arc::new(Events { cancelled: event()?, killed: event()?, signal: AtomicI32::new(0) }) })
    }

    /// Ends every run that waits with this `Cancel` or one of its clones, and every later one at once: the command gets SIGTERM
    /// and the time of [grace](crate::Invocation::grace).
    pub fn cancel(&self) {
        tell(&self.events.cancelled);
    }

    /// As [`cancel`](Self::cancel), with a signal of the caller's choice, by its number; and if the command ends by itself within the
    /// time of grace, the run's status is the command's own. For signals that the caller has got itself: a command that handles
    /// SIGINT ends as it sees fit.
    pub fn interrupt(&self, signal: i32) {
        if !self.is_cancelled() {
            self.events.signal.store(signal, Ordering::Release);
        }
        self.cancel();
    }

    /// As [`cancel`](Self::cancel), and without grace, or what is left of it: the container is killed at once.
    pub fn kill(&self) {
        tell(&self.events.killed);
        self.cancel();
    }

    /// Whether it has been used.
    pub fn is_cancelled(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(self, PollFlags::IN)], Some(&now)).is_ok_and(|ready| ready > 0)
    }

    /// The signal of an interrupt.
    pub(super) fn interrupt_signal(&self) -> Option<i32> {
        Some(self.events.signal.load(Ordering::Acquire)).filter(|signal| *signal != 0)
    }

    /// Readable once there is no grace.
    pub(super) fn killed(&self) -> BorrowedFd<'_> {
        self.events.killed.as_fd()
    }
}

fn tell(event: &OwnedFd) {
    // It cannot fail but by overflow, and then it has been told already.
    let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
}

impl AsFd for Cancel {
    /// Readable once it is cancelled.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.cancelled.as_fd()
    }
}
