//! Runs a second with several at a time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use runner::Cleanup;

use crate::markdown::{cells, table};
use crate::places::Places;
use crate::sample::Sample;
use crate::subjects::{Configuration, RUNTIMES, bare, in_process, is_installed, template};

pub(crate) fn measured(places: &Places, rounds: usize) -> Result<String> {
    let template = template(&["/bin/true"])?;
    let mut rows = vec![cells(["runtime", "workers", "bare runtime, runs a second", "`run`, 30 layers", "ratio"])];
    for runtime in RUNTIMES.into_iter().filter(|runtime| is_installed(runtime)) {
        for workers in [1, 2, 4, 16] {
            let count = workers.max(4) * 10;
            let [mut plain, mut prepared, mut ours] = [const { Sample(Vec::new()) }; 3];
            for _ in 0..rounds.min(7) {
                let bare = |how| all(workers, count, || bare(places, runtime, &template, how).map(drop));
                plain.push(bare(Configuration::Plain)?);
                if runtime == "crun" {
                    prepared.push(bare(Configuration::Prepared)?);
                }
                ours.push(all(workers, count, || {
                    Ok(in_process(places, runtime, 30, &template, Cleanup::Awaited)?.upper.close()?)
                })?);
            }
            let rate = |sample: &Sample| format!("{:.0}", count as f64 / sample.median());
            let mut row = |name: &str, bare: &Sample| {
                rows.push(vec![name.into(), workers.to_string(), rate(bare), rate(&ours), bare.ratio(&ours)]);
            };
            row(runtime, &plain);
            if runtime == "crun" {
                row("crun, given the filter ready made", &prepared);
            }
        }
    }
    Ok(table("Throughput", &rows))
}

/// The time that `workers` threads take for `count` pieces of work.
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
