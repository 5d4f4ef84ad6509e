//! Measures runs per second with one and with several workers. [`output`](crate::output) measures
//! the throughput of a command's output.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use runner::Cleanup;

use crate::bare::{Configuration, bare};
use crate::markdown::{cells, table};
use crate::places::Places;
use crate::sample::Sample;
use crate::subjects::{RUNTIMES, in_process, is_installed, template};

pub(crate) fn measured(places: &Places, rounds: usize) -> Result<String> {
    let template = template(&["/bin/true"])?;
    let mut rows = vec![cells(["runtime", "workers", "bare runtime, runs/s", "`run`, 30 layers, runs/s", "ratio"])];
    for runtime in RUNTIMES.into_iter().filter(|runtime| is_installed(runtime)) {
        for workers in [1, 2, 4, 16] {
            let count = workers.max(4) * 10;
            let [mut alone, mut ours] = [const { Sample(Vec::new()) }; 2];
            for _ in 0..rounds.min(7) {
                let once = || bare(places, runtime, &template, Configuration::Same).map(drop);
                alone.push(all(workers, count, once)?);
                ours.push(all(workers, count, || {
                    Ok(in_process(places, runtime, 30, &template, Cleanup::Awaited)?.upper.close()?)
                })?);
            }
            let rate = |sample: &Sample| format!("{:.0}", count as f64 / sample.median());
            rows.push(vec![runtime.into(), workers.to_string(), rate(&alone), rate(&ours), alone.ratio(&ours)]);
        }
    }
    Ok(table("Throughput", &rows))
}

/// Returns the time that `workers` threads take for `count` calls of `work`.
fn all(workers: usize, count: usize, work: impl Fn() -> Result<()> + Sync) -> Result<Duration> {
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let worker = || -> Result<()> {
            while next.fetch_add(1, Ordering::Relaxed) < count {
                work()?;
            }
            Ok(())
        };
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|thread| thread.join().expect("no worker panics"))
    })?;
    Ok(start.elapsed())
}
