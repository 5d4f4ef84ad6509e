//! Several threads that share jobs, each of which may find more jobs.
//!
//! A thread keeps what it finds and takes the newest first, so that it stays in one part of a tree: the next directory is
//! near, and its parent is no other thread's, who would wait for its lock in the kernel. One that has nothing takes from
//! another what that would do last, mostly a large part.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::error::{Error, Result};

/// Waiting jobs for which another thread is worth its start, some 50 µs.
const BACKLOG: usize = 4;

/// Does `first` and all that comes of it, and returns what the workers have gathered.
///
/// The caller's thread works; up to `threads - 1` more join, one for every few jobs that are waiting. `hire` makes a thread's own state,
/// on that thread; `step` does one job and pushes the jobs that it found.
///
/// # Errors
/// The first error of a `step`. No job is begun after it.
pub(crate) fn run<J: Send, W: Send>(
    threads: NonZeroUsize,
    first: J,
    hire: impl Fn() -> W + Sync,
    step: impl Fn(&mut W, J, &mut Vec<J>) -> Result<()> + Sync,
) -> Result<Vec<W>> {
    let desk = Desk {
        state: Mutex::new(State {
            jobs: vec![VecDeque::from([first])],
            waiting: 1,
            busy: 0,
            idle: 0,
            stopped: false,
            failure: None,
        }),
        changed: Condvar::new(),
    };
    let workers = thread::scope(|scope| {
        let mut helpers = Vec::new();
        let mut wanted = threads.get() - 1;
        let mut worker = hire();
        desk.work(0, &mut worker, &step, |backlog| {
            while wanted > 0 && backlog >= BACKLOG * (helpers.len() + 1) {
                wanted -= 1;
                let seat = desk.seat();
                let (desk, hire, step) = (&desk, &hire, &step);
                let helper = thread::Builder::new().spawn_scoped(scope, move || {
                    let mut worker = hire();
                    desk.work(seat, &mut worker, step, |_| ());
                    worker
                });
                match helper {
                    Ok(helper) => helpers.push(helper),
                    Err(error) => log::warn!("working with {} threads fewer: {error}", wanted + 1),
                }
            }
        });
        let mut workers = vec![worker];
        for helper in helpers {
            workers.push(helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        workers
    });
    match desk.state.into_inner().unwrap_or_else(PoisonError::into_inner).failure {
        Some(error) => Err(error),
        None => Ok(workers),
    }
}

/// Where jobs wait and workers wait for them. A worker has a seat, a number.
struct Desk<J> {
    state: Mutex<State<J>>,
    changed: Condvar,
}

struct State<J> {
    /// Those that each worker has found, the oldest first.
    jobs: Vec<VecDeque<J>>,
    /// How many these are in all.
    waiting: usize,
    /// Workers with a job, which may find more.
    busy: usize,
    /// Workers who wait for one. To wake nobody is a system call too.
    idle: usize,
    stopped: bool,
    failure: Option<Error>,
}

impl<J> Desk<J> {
    /// A seat for one worker more.
    fn seat(&self) -> usize {
        let mut state = self.lock();
        state.jobs.push(VecDeque::new());
        state.jobs.len() - 1
    }

    fn work<W>(
        &self,
        seat: usize,
        worker: &mut W,
        step: &impl Fn(&mut W, J, &mut Vec<J>) -> Result<()>,
        mut after: impl FnMut(usize),
    ) {
        let mut found = Vec::new();
        while let Some(job) = self.next(seat) {
            let unwinding = StopOnUnwind(self);
            let result = step(worker, job, &mut found);
            // Dropped only by a panic. `thread::panicking` would also be true where a guard's drop is what calls this.
            std::mem::forget(unwinding);
            after(self.done(seat, result, &mut found));
        }
    }

    /// A job, or none when all are done or one has failed. Sleeps while there may be more to come.
    fn next(&self, seat: usize) -> Option<J> {
        let mut state = self.lock();
        loop {
            if state.stopped {
                return None;
            }
            if let Some(job) = state.take(seat) {
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

    /// Takes a job off the books, and the jobs that came of it on. Returns how many are waiting.
    fn done(&self, seat: usize, result: Result<()>, found: &mut Vec<J>) -> usize {
        let mut state = self.lock();
        state.busy -= 1;
        state.waiting += found.len();
        state.jobs[seat].extend(found.drain(..));
        if let Err(error) = result {
            state.stopped = true;
            // What the others ran into meanwhile is mostly the same.
            state.failure.get_or_insert(error);
        }
        let (waiting, idle) = (state.waiting, state.idle);
        let over = state.stopped || (waiting == 0 && state.busy == 0);
        drop(state);
        // One of the jobs is this worker's own next one.
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
    /// The newest of this worker's own jobs, or the oldest of one who has the most.
    fn take(&mut self, seat: usize) -> Option<J> {
        let own = self.jobs[seat].pop_back();
        let job = own.or_else(|| self.jobs.iter_mut().max_by_key(|jobs| jobs.len())?.pop_front())?;
        self.waiting -= 1;
        self.busy += 1;
        Some(job)
    }
}

/// Lets the others go home when a worker panics, so that the panic is seen and not waited for.
struct StopOnUnwind<'a, J>(&'a Desk<J>);

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
            let sums = run(threads(number), 6, || 0, step).unwrap();
            // 1 + 6 + 6*5 + … + 6!
            assert_eq!(sums.iter().sum::<u64>(), 1957, "{number} threads");
        }
    }

    #[test]
    fn a_worker_takes_its_own_newest_job_or_the_oldest_of_one_who_has_many() {
        let jobs = [vec![1, 2, 3], vec![4, 5], vec![]].map(VecDeque::from).into();
        let mut state = State { jobs, waiting: 5, busy: 0, idle: 0, stopped: false, failure: None };
        let taken = [1, 2, 2, 1, 0, 0].map(|seat| state.take(seat));
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
            assert!(matches!(run(threads(number), 0, || (), step), Err(Error::TargetNotEmpty { .. })));
            assert!(begun.into_inner() <= 10 + number, "{number} threads");
        }
    }

    #[test]
    fn a_panic_is_passed_on_and_nobody_waits_for_ever() {
        for number in 1..=4 {
            let outcome = std::panic::catch_unwind(|| {
                let step = |(): &mut (), job: u32, found: &mut Vec<u32>| {
                    assert!(job < 3, "as arranged");
                    found.extend([job + 1; 8]);
                    Ok(())
                };
                run(threads(number), 0, || (), step)
            });
            assert!(outcome.is_err(), "{number} threads");
        }
    }
}
