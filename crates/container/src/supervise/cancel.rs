//! The request of another thread to end a run. `supervise` acts on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::{Error, Result};

/// Ends a run from another thread. Clones share one state. A cancellation cannot be undone.
#[derive(Debug, Clone)]
pub struct Cancel {
    events: Arc<Events>,
}

/// The events of a cancellation. Each is a descriptor that becomes readable when the event happens
/// and then stays so.
#[derive(Debug)]
struct Events {
    cancelled: OwnedFd,
    killed: OwnedFd,
    /// The signal of an [interrupt](Cancel::interrupt), or 0 without one.
    signal: AtomicI32,
}

impl Cancel {
    /// Creates a `Cancel` that has not been used.
    ///
    /// # Errors
    /// [`Error::Io`] if the process cannot open another descriptor.
    pub fn new() -> Result<Self> {
        let event =
            || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(Error::io("create", "an eventfd"));
        Ok(Self { events: Arc::new(Events { cancelled: event()?, killed: event()?, signal: AtomicI32::new(0) }) })
    }

    /// Ends every run that uses this `Cancel` or one of its clones: the command gets SIGTERM and
    /// then has the [grace period](crate::Supervision::grace) to end. A run that starts later ends
    /// before its command starts.
    pub fn cancel(&self) {
        tell(&self.events.cancelled);
    }

    /// Like [`cancel`](Self::cancel), but sends the command the signal with this number instead of
    /// SIGTERM. If the command ends by itself within the grace period, the run's status is the
    /// command's own.
    ///
    /// Use it to forward a signal that the caller has received itself: a command with a handler for
    /// SIGINT then decides how it ends.
    pub fn interrupt(&self, signal: i32) {
        if !self.is_cancelled() {
            self.events.signal.store(signal, Ordering::Release);
        }
        self.cancel();
    }

    /// Like [`cancel`](Self::cancel), but kills the container immediately, even during the grace
    /// period.
    pub fn kill(&self) {
        tell(&self.events.killed);
        self.cancel();
    }

    /// Returns whether any of the three methods has been called.
    pub fn is_cancelled(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(self, PollFlags::IN)], Some(&now)).is_ok_and(|ready| ready > 0)
    }

    /// Returns the signal of an interrupt, or `None` without one.
    pub(super) fn interrupt_signal(&self) -> Option<i32> {
        Some(self.events.signal.load(Ordering::Acquire)).filter(|signal| *signal != 0)
    }

    /// Returns a descriptor that becomes readable when the container must be killed immediately.
    pub(super) fn killed(&self) -> BorrowedFd<'_> {
        self.events.killed.as_fd()
    }
}

fn tell(event: &OwnedFd) {
    // The write can only fail by overflow, and then the event is already readable.
    let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
}

impl AsFd for Cancel {
    /// Returns a descriptor that becomes readable when the run is cancelled.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.cancelled.as_fd()
    }
}
