//! Ends what a process does with registries, from another thread.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A handle that ends pushes, pulls and imports from another thread, such as one that waits for
/// signals.
///
/// Connections end immediately, and the operation returns
/// [`Error::Cancelled`](crate::oci::Error::Cancelled). It leaves nothing but what was complete.
///
/// ```
/// use layer::oci::registry::Cancel;
///
/// let cancel = Cancel::default();
/// let handle = cancel.clone();
/// std::thread::spawn(move || handle.cancel()).join().unwrap();
/// assert!(cancel.is_cancelled());
/// ```
#[derive(Clone, Default)]
pub struct Cancel(Arc<State>);

#[derive(Default)]
struct State {
    is_cancelled: AtomicBool,
    agents: Mutex<Vec<ureq::Agent>>,
    changed: Condvar,
}

impl Cancel {
    /// Ends every operation that has this handle, now and later.
    pub fn cancel(&self) {
        let agents = {
            let mut agents = self.0.agents.lock().unwrap_or_else(PoisonError::into_inner);
            self.0.is_cancelled.store(true, Ordering::Release);
            std::mem::take(&mut *agents)
        };
        self.0.changed.notify_all();
        agents.into_iter().for_each(ureq::Agent::shutdown);
    }

    /// Returns whether [`cancel`](Self::cancel) was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.is_cancelled.load(Ordering::Acquire)
    }

    /// Lets [`cancel`](Self::cancel) end the connections of `agent`.
    pub(super) fn add(&self, agent: &ureq::Agent) {
        let mut agents = self.0.agents.lock().unwrap_or_else(PoisonError::into_inner);
        agents.push(agent.clone());
        drop(agents);
        if self.is_cancelled() {
            self.cancel();
        }
    }

    /// Waits for `duration`, or until the operation is cancelled.
    pub(super) fn wait(&self, duration: Duration) {
        let end = Instant::now() + duration;
        let mut agents = self.0.agents.lock().unwrap_or_else(PoisonError::into_inner);
        while !self.is_cancelled() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            agents = self.0.changed.wait_timeout(agents, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl fmt::Debug for Cancel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Cancel").field(&self.is_cancelled()).finish()
    }
}
