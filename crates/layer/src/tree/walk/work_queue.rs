//! Shares jobs among several threads, where each job may find more jobs. `walk.rs` describes how a
//! job opens its directory.
//!
//! The queue uses work stealing. Each thread works on its own queue, newest job first, so it stays
//! in one subtree. Its next directory is near, and two threads rarely contend for one directory's
//! lock in the kernel. An idle thread steals the oldest job from the longest queue; that job is
//! usually a large subtree.

use std::cell::LazyCell;
use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::error::{Error, Result};

/// The number of waiting jobs that justifies another thread. Starting a thread takes about 50 µs.
const BACKLOG: usize = 4;

/// The number of threads that may share the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Threads {
    /// Two, or one if there is only one processor. This is the default of a merge and of a capture:
    /// both spend their time in the kernel and share the machine with other runs.
    #[default]
    Usual,
    AtMost(NonZeroUsize),
}

impl From<NonZeroUsize> for Threads {
    fn from(threads: NonZeroUsize) -> Self {
        Self::AtMost(threads)
    }
}

impl Threads {
    /// Returns the number of threads besides the caller's. Counting the processors takes a dozen
    /// system calls, so [`run`] calls this only if there is work for a second thread.
    fn additional(self) -> usize {
        match self {
            Threads::Usual => thread::available_parallelism().map_or(0, |processors| (processors.get() - 1).min(1)),
            Threads::AtMost(threads) => threads.get() - 1,
        }
    }
}

/// Runs the jobs `first`, the last one first, and all jobs that result from them. Returns the
/// workers with the data that they have gathered.
///
/// The caller's thread is one of the `threads`. The others join one by one, one for every few jobs
/// that are waiting. Each thread calls `new_worker` for its own state. `step` does one job and
/// pushes the jobs that it found.
///
/// # Errors
/// Returns the first error of a `step`. No job begins after it.
pub(crate) fn run<J: Send, W: Send>(
    threads: impl Into<Threads>,
    first: impl IntoIterator<Item = J>,
    new_worker: impl Fn() -> W + Sync,
    step: impl Fn(&mut W, J, &mut Vec<J>) -> Result<()> + Sync,
) -> Result<Vec<W>> {
    let first = VecDeque::from_iter(first);
    let queue = Queue {
        state: Mutex::new(State {
            waiting: first.len(),
            jobs: vec![first],
            busy: 0,
            idle: 0,
            stopped: false,
            failure: None,
        }),
        changed: Condvar::new(),
    };
    let workers = thread::scope(|scope| {
        let mut threads_spawned = Vec::new();
        let additional = LazyCell::new(|| threads.into().additional());
        let mut begun = 0;
        let mut worker = new_worker();
        queue.work(0, &mut worker, &step, |backlog| {
            while backlog >= BACKLOG * (threads_spawned.len() + 1) && begun < *additional {
                begun += 1;
                let index = queue.add_worker();
                let (queue, new_worker, step) = (&queue, &new_worker, &step);
                let spawned = thread::Builder::new().spawn_scoped(scope, move || {
                    let mut worker = new_worker();
                    queue.work(index, &mut worker, step, |_| ());
                    worker
                });
                match spawned {
                    Ok(spawned) => threads_spawned.push(spawned),
                    Err(error) => log::warn!("cannot start thread {} of the work: {error}", begun + 1),
                }
            }
        });
        let mut workers = vec![worker];
        for spawned in threads_spawned {
            workers.push(spawned.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        workers
    });
    match queue.state.into_inner().unwrap_or_else(PoisonError::into_inner).failure {
        Some(error) => Err(error),
        None => Ok(workers),
    }
}

/// The jobs that wait, and the state of the workers. Each worker has an index.
struct Queue<J> {
    state: Mutex<State<J>>,
    changed: Condvar,
}

struct State<J> {
    /// One queue per worker: the jobs that it has found, oldest first.
    jobs: Vec<VecDeque<J>>,
    /// The number of jobs in all queues.
    waiting: usize,
    /// The number of workers that have a job. Each may still find more jobs.
    busy: usize,
    /// The number of workers that wait for a job. Without this number, each notification would cost
    /// a system call even if no worker waits.
    idle: usize,
    stopped: bool,
    failure: Option<Error>,
}

impl<J> Queue<J> {
    /// Adds a queue for one more worker and returns its index.
    fn add_worker(&self) -> usize {
        let mut state = self.lock();
        state.jobs.push(VecDeque::new());
        state.jobs.len() - 1
    }

    fn work<W>(
        &self,
        index: usize,
        worker: &mut W,
        step: &impl Fn(&mut W, J, &mut Vec<J>) -> Result<()>,
        mut after: impl FnMut(usize),
    ) {
        let mut found = Vec::new();
        while let Some(job) = self.next(index) {
            let unwinding = StopOnUnwind(self);
            let result = step(worker, job, &mut found);
            // Only a panic drops this guard. A check of `thread::panicking` would not be enough: it
            // also returns true if a destructor calls this function during a panic.
            std::mem::forget(unwinding);
            after(self.done(index, result, &mut found));
        }
    }

    /// Takes a job, or returns `None` when all are done or one has failed. Sleeps while a busy
    /// worker may still find more.
    fn next(&self, index: usize) -> Option<J> {
        let mut state = self.lock();
        loop {
            if state.stopped {
                return None;
            }
            if let Some(job) = state.take(index) {
                return Some(job);
            }
            if state.busy == 0 {
                return None;
            }
            state.idle += 1;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    /// Records that a worker has done its job, and adds the jobs that it found. Returns the number
    /// of jobs that are waiting.
    fn done(&self, index: usize, result: Result<()>, found: &mut Vec<J>) -> usize {
        let mut state = self.lock();
        state.busy -= 1;
        state.waiting += found.len();
        state.jobs[index].extend(found.drain(..));
        if let Err(error) = result {
            state.stopped = true;
            // The errors of other workers usually have the same cause.
            state.failure.get_or_insert(error);
        }
        let (waiting, idle) = (state.waiting, state.idle);
        let over = state.stopped || (waiting == 0 && state.busy == 0);
        drop(state);
        // This worker takes one of the jobs itself.
        let wanted = if over { idle } else { idle.min(waiting.saturating_sub(1)) };
        for _ in 0..wanted {
            self.changed.notify_one();
        }
        waiting
    }

    fn lock(&self) -> MutexGuard<'_, State<J>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<J> State<J> {
    /// Takes the newest job of this worker, or the oldest job from the longest queue.
    fn take(&mut self, index: usize) -> Option<J> {
        let own = self.jobs[index].pop_back();
        let job = own.or_else(|| self.jobs.iter_mut().max_by_key(|jobs| jobs.len())?.pop_front())?;
        self.waiting -= 1;
        self.busy += 1;
        Some(job)
    }
}

/// A guard that stops the other workers when one panics. The caller then sees the panic instead of
/// waiting forever.
struct StopOnUnwind<'a, J>(&'a Queue<J>);

impl<J> Drop for StopOnUnwind<'_, J> {
    fn drop(&mut self) {
        self.0.lock().stopped = true;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn threads(number: usize) -> NonZeroUsize {
        NonZeroUsize::new(number).unwrap()
    }

    #[test]
    fn every_job_is_done_once_by_any_number_of_threads() {
        for number in 1..=4 {
            let step = |sum: &mut u64, job: u32, found: &mut Vec<u32>| {
                *sum += 1;
                found.extend((0..job).map(|_| job - 1));
                Ok(())
            };
            let sums = run(threads(number), [6], || 0, step).unwrap();
            // 1 + 6 + 6*5 + … + 6!
            assert_eq!(sums.iter().sum::<u64>(), 1957, "{number} threads");
        }
    }

    #[test]
    fn a_worker_takes_its_own_newest_job_or_the_oldest_of_the_longest_queue() {
        let jobs = [vec![1, 2, 3], vec![4, 5], vec![]].map(VecDeque::from).into();
        let mut state = State { jobs, waiting: 5, busy: 0, idle: 0, stopped: false, failure: None };
        let taken = [1, 2, 2, 1, 0, 0].map(|index| state.take(index));
        assert_eq!(taken, [Some(5), Some(1), Some(2), Some(4), Some(3), None]);
        assert_eq!((state.waiting, state.busy), (0, 5));
    }

    #[test]
    fn the_first_error_ends_the_work() {
        for number in 1..=4 {
            let begun = AtomicUsize::new(0);
            let step = |(): &mut (), job: u32, found: &mut Vec<u32>| {
                if begun.fetch_add(1, Ordering::Relaxed) >= 10 {
                    return Err(Error::TargetNotEmpty { path: PathBuf::from(job.to_string()) });
                }
                found.extend([job + 1, job + 1]);
                Ok(())
            };
            assert!(matches!(run(threads(number), [0], || (), step), Err(Error::TargetNotEmpty { .. })));
            assert!(begun.into_inner() <= 10 + number, "{number} threads");
        }
    }

    #[test]
    fn a_panic_stops_the_other_workers_and_reaches_the_caller() {
        for number in 1..=4 {
            let outcome = std::panic::catch_unwind(|| {
                let step = |(): &mut (), job: u32, found: &mut Vec<u32>| {
                    assert!(job < 3, "as arranged");
                    found.extend([job + 1; 8]);
                    Ok(())
                };
                run(threads(number), [0], || (), step)
            });
            assert!(outcome.is_err(), "{number} threads");
        }
    }
}
