use std::sync::Arc;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::{Error, Result};

/// Ends a run from another thread. Clones share one decision, which cannot be taken back.
#[derive(Debug, Clone)]
pub struct Cancel {
    event: Arc<OwnedFd>,
}

impl Cancel {
    /// One that has not been used.
    ///
    /// # Errors
    /// [`Error::Io`] if there is no descriptor left.
    pub fn new() -> Result<Self> {
        let event =
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(Error::io("create", "an eventfd"))?;
        Ok(Self { event: Arc::new(event) })
    }

    /// Ends every run that waits with this `Cancel` or one of its clones, and every later one at once.
    pub fn cancel(&self) {
        // It cannot fail but by overflow, and then it has been told already.
        let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
    }
}

impl Cancel {
    /// Whether it has been used.
    pub fn is_cancelled(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(&self.event, PollFlags::IN)], Some(&now)).is_ok_and(|ready| ready > 0)
    }
}

impl AsFd for Cancel {
    /// Readable once it is cancelled.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
