//! The events of a run, which a caller can watch.
//!
//! `timings::Clock` reports the phases, and `run` the start of the command.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::Phase;

/// What happens in a run while it is in progress: see [`Options::watch`](crate::Options::watch).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A phase begins.
    Began(Phase),
    /// A phase has ended, successfully or not, after this time.
    Ended(Phase, Duration),
    /// The container is ready, and its init executes the command. Within [`Phase::RuncRun`].
    CommandStarted,
}

/// A function of the caller's that gets the events.
pub(crate) type Watch<'a> = Box<dyn FnMut(&Event) + Send + 'a>;

/// The caller's function, if the caller watches. Clones share it.
#[derive(Clone)]
pub(crate) struct Watcher<'a>(Option<Arc<Mutex<Option<Watch<'a>>>>>);

impl<'a> Watcher<'a> {
    pub(crate) fn new(watch: Option<Watch<'a>>) -> Self {
        Self(watch.map(|watch| Arc::new(Mutex::new(Some(watch)))))
    }

    pub(crate) fn is_watching(&self) -> bool {
        self.0.is_some()
    }

    pub(crate) fn tell(&self, event: Event) {
        let mut watch = self.0.as_ref().map(|watch| watch.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(watch) = watch.as_mut().and_then(|watch| watch.as_mut()) {
            watch(&event);
        }
    }

    /// Reports no more events. After a failed unmount, a panic of the caller's function would drop
    /// the run's directory, and so delete files below the mount.
    pub(crate) fn stop(&self) {
        if let Some(watch) = &self.0 {
            *watch.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }
}

impl fmt::Debug for Watcher<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(if self.is_watching() { "Watcher(..)" } else { "None" })
    }
}
