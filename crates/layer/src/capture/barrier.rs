//! Syncs a file system once for all threads that wait for a sync. `capture.rs` decides when.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::fs::{fstat, syncfs};
use rustix::io::Errno;

/// Makes everything durable that has been written to the file system of `dir` so far, with
/// syncfs(2). Threads of this process that call this while a sync is running share the next sync:
/// the running one may miss what they wrote.
pub(crate) fn sync(dir: BorrowedFd<'_>) -> rustix::io::Result<()> {
    static FILE_SYSTEMS: Mutex<Option<HashMap<u64, Arc<Barrier>>>> = Mutex::new(None);
    let device = fstat(dir)?.st_dev;
    let barrier = {
        let mut all = FILE_SYSTEMS.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.get_or_insert_default().entry(device).or_default())
    };
    barrier.pass(|| syncfs(dir))
}

/// The syncs of one file system.
#[derive(Debug, Default)]
struct Barrier {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The number of syncs that have begun, and of those that have ended. At most one is running.
    begun: u64,
    ended: u64,
    /// The number of threads that wait for a sync to end. If it is 0, the system call that wakes
    /// them is saved.
    waiting: usize,
    /// The number of the last sync that failed, and its error.
    failed: Option<(u64, Errno)>,
}

impl Barrier {
    /// Waits until a sync that began after this call has ended. That sync is `sync`, or the one of
    /// another caller.
    fn pass(&self, sync: impl FnOnce() -> rustix::io::Result<()>) -> rustix::io::Result<()> {
        let mut state = self.lock();
        let mine = state.begun + 1;
        while state.begun > state.ended {
            state.waiting += 1;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
            if state.ended >= mine {
                return state.outcome(mine);
            }
        }
        state.begun = mine;
        drop(state);
        let over = Over(self, Err(Errno::CANCELED));
        over.end(sync())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Returns the outcome of the sync with this number. A thread that asks late about an earlier
    /// sync also gets the failure of a later one.
    fn outcome(&self, number: u64) -> rustix::io::Result<()> {
        match self.failed {
            Some((failed, errno)) if failed >= number => Err(errno),
            _ => Ok(()),
        }
    }
}

/// A running sync. Its `Drop` ends the sync even after a panic, so that no thread waits forever.
struct Over<'a>(&'a Barrier, rustix::io::Result<()>);

impl Over<'_> {
    fn end(mut self, outcome: rustix::io::Result<()>) -> rustix::io::Result<()> {
        self.1 = outcome;
        outcome
    }
}

impl Drop for Over<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.ended = state.begun;
        if let Err(errno) = self.1 {
            state.failed = Some((state.ended, errno));
        }
        let waiting = state.waiting;
        drop(state);
        if waiting > 0 {
            self.0.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    /// Lets eight threads arrive during a sync that ends with `first`. Their own syncs end with
    /// `next`. Returns the number of their own syncs, and the result of each thread.
    fn come_together(
        first: rustix::io::Result<()>,
        next: rustix::io::Result<()>,
    ) -> (usize, Vec<rustix::io::Result<()>>) {
        let barrier = Barrier::default();
        barrier.lock().begun = 1;
        let syncs = AtomicUsize::new(0);
        let one = || {
            barrier.pass(|| {
                syncs.fetch_add(1, Ordering::Relaxed);
                next
            })
        };
        let told = thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(one)).collect();
            while barrier.lock().waiting < 8 {
                thread::yield_now();
            }
            drop(Over(&barrier, first));
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        (syncs.into_inner(), told)
    }

    #[test]
    fn threads_that_arrive_during_a_sync_share_the_next_one() {
        assert_eq!(come_together(Ok(()), Ok(())), (1, vec![Ok(()); 8]));
    }

    #[test]
    fn only_the_threads_that_share_a_failed_sync_get_its_error() {
        assert_eq!(come_together(Ok(()), Err(Errno::IO)), (1, vec![Err(Errno::IO); 8]));
        assert_eq!(come_together(Err(Errno::IO), Ok(())), (1, vec![Ok(()); 8]));
    }

    #[test]
    fn successive_calls_each_run_their_own_sync() {
        let barrier = Barrier::default();
        for outcome in [Ok(()), Err(Errno::IO), Ok(())] {
            assert_eq!(barrier.pass(|| outcome), outcome);
        }
        assert_eq!(barrier.lock().ended, 3);
    }

    #[test]
    fn a_real_file_system_is_synced() {
        let dir = tempfile::tempdir().unwrap();
        let file = std::fs::File::open(dir.path()).unwrap();
        sync(std::os::fd::AsFd::as_fd(&file)).unwrap();
    }
}
