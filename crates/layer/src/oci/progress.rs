//! Sums up how far an import, an export, a push or a pull is, for the caller's function.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::callback::Callback;

/// The progress of an import, an export, a push or a pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// The bytes of the image or of the layers that were read or written so far.
    pub done_bytes: u64,
    /// The bytes in all, if they are known.
    pub total_bytes: Option<u64>,
}

/// A function of the caller's that is called with the progress.
pub(crate) type OnProgress<'a> = Callback<'a, dyn Fn(Progress) + Sync + 'a>;

/// The bytes that were read or written so far, on any thread.
#[derive(Debug)]
pub(crate) struct Meter<'a> {
    done: AtomicU64,
    total_bytes: Option<u64>,
    progress: OnProgress<'a>,
}

impl<'a> Meter<'a> {
    /// Begins at 0 of `total_bytes`.
    pub(crate) fn new(total_bytes: Option<u64>, progress: OnProgress<'a>) -> Self {
        Self { done: AtomicU64::new(0), total_bytes, progress }
    }

    /// Adds `bytes`, and calls the caller's function.
    pub(crate) fn add(&self, bytes: u64) {
        let done_bytes = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if let Some(progress) = self.progress.0 {
            progress(Progress { done_bytes, total_bytes: self.total_bytes });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn the_sum_grows_with_each_part() {
        let seen = Mutex::new(Vec::new());
        let progress = |progress: Progress| seen.lock().unwrap().push((progress.done_bytes, progress.total_bytes));
        let meter = Meter::new(Some(9), Callback(Some(&progress)));
        [1, 0, 8].into_iter().for_each(|bytes| meter.add(bytes));
        assert_eq!(*seen.lock().unwrap(), [(1, Some(9)), (1, Some(9)), (9, Some(9))]);
        Meter::new(None, Callback::default()).add(1);
    }
}
