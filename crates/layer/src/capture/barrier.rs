//! Syncs a file system once for all threads that wait for a sync. `capture.rs` decides when.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::fs::{fstat, syncfs};
use rustix::io::Errno;

/// Makes durable what has been written to the file system of `dir` by now: syncfs(2), once for all
/// threads of this process that ask while another sync is running. A sync that has begun already
/// may miss what the caller wrote, so those threads wait for the next one.
pub(super) fn sync(dir: BorrowedFd<'_>) -> rustix::io::Result<()> {
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
    /// How many syncs have begun, and how many of them have ended. At most one is under way.
    begun: u64,
    ended: u64,
    /// The threads that wait for a sync to end. Waking none of them would cost a system call as
    /// well.
    waiting: usize,
    /// The last that failed, and why.
    failed: Option<(u64, Errno)>,
}

impl Barrier {
    /// Returns when a sync that began after this call has ended: one by `sync`, or by that of
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
    /// Returns the outcome of the sync of this number. Threads that ask late about an earlier sync
    /// also get the failure of a later one.
    fn outcome(&self, number: u64) -> rustix::io::Result<()> {
        match self.failed {
            Some((failed, errno)) if failed >= number => Err(errno),
            _ => Ok(()),
        }
    }
}

/// Ends a sync even if it panics, so that no thread waits forever.
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

    /// Lets eight threads come while a sync is under way that ends with `first`; all of theirs end
    /// with `next`. Returns how many of theirs there were, and what they were told.
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
    fn those_who_come_while_one_is_under_way_share_the_next() {
        assert_eq!(come_together(Ok(()), Ok(())), (1, vec![Ok(()); 8]));
    }

    #[test]
    fn a_failure_is_told_to_all_whose_it_is_and_to_nobody_else() {
        assert_eq!(come_together(Ok(()), Err(Errno::IO)), (1, vec![Err(Errno::IO); 8]));
        assert_eq!(come_together(Err(Errno::IO), Ok(())), (1, vec![Ok(()); 8]));
    }

    #[test]
    fn one_after_the_other_each_has_its_own() {
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
