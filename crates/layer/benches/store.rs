//! Measures a scan of a store, and the holds that protect its layers from collectors. To run it:
//! `cargo bench -p layer --bench store`.
//!
//! Prints ratios within one run, for the same reason as `merge.rs`. `LAYERED_LAYERS` sets the
//! number of layers in the store, 100,000 by default.

// A benchmark prints its results.
#![allow(clippy::print_stdout)]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use layer::{Collector, Hold, Layer, Meta};

const ROUNDS: usize = 7;

fn main() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    holds(&dir.path().join("holds"));
    scans(&dir.path().join("store"));
}

/// Compares a hold with marking the same layers as used, which a run does anyway.
fn holds(store: &Path) {
    make(store, 400);
    let layers: Vec<_> = names(400).map(|name| Layer::at(store.join(name))).collect();
    layers.iter().for_each(|layer| layer.touch().expect("touched"));
    println!("\nhold and release, and touch: median of a layer");
    for count in [1, 10, 30, 100, 400] {
        let layers = &layers[..count];
        let [mut hold, mut touch] = [const { Vec::new() }; 2];
        for _ in 0..ROUNDS * 30 {
            hold.push(timed(|| {
                Hold::of(layers.iter().map(Layer::path)).and_then(Hold::release).expect("held");
            }));
            touch.push(timed(|| layers.iter().for_each(|layer| layer.touch().expect("touched"))));
        }
        let [hold, touch] = [hold, touch].map(|times| median(times) / count as u32);
        println!("  {count:>3} layers: hold {hold:>9.1?}, touch {touch:>9.1?}, ratio {:.2}", ratio(hold, touch));
    }
    let at_once = timed(|| {
        std::thread::scope(|scope| {
            for _ in 0..64 {
                scope.spawn(|| {
                    (0..100)
                        .for_each(|_| Hold::of(layers.iter().map(Layer::path)).and_then(Hold::release).expect("held"))
                });
            }
            let mut looks = Vec::new();
            for _ in 0..ROUNDS {
                looks.push(timed(|| drop(Collector::new().collect(store).expect("collected"))));
            }
            println!(
                "  a collector with nothing to do beside 64 threads that hold and release all the time: {:.1?}",
                median(looks)
            );
        });
    });
    println!("  6,400 holds of 400 layers by 64 concurrent threads: {:.0?} per layer", at_once / (6_400 * 400));
    // A collector reads the holds of other processes, and a holder does not.
    let others: Vec<_> = (0..64).map(|_| Hold::of(layers.iter().map(Layer::path)).expect("held")).collect();
    let look = || drop(Collector::new().max_bytes(0).collect(store).expect("collected"));
    println!(
        "  a collector over 400 layers, all of which 64 runs hold: {:.1?}",
        median((0..ROUNDS).map(|_| timed(look)).collect())
    );
    drop(others);
}

/// Compares a scan with `find`, which opens each directory.
fn scans(store: &Path) {
    let count = std::env::var("LAYERED_LAYERS").map_or(100_000, |count| count.parse().expect("LAYERED_LAYERS"));
    make(store, count);
    let before = peak_memory_kib();
    let mut peak = before;
    let [mut find, mut scan, mut survey] = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        find.push(timed(|| {
            let mut command = Command::new("find");
            command.arg(store).args(["-maxdepth", "2", "-name", "layer.json"]).stdout(Stdio::null());
            assert!(command.status().expect("find").success());
        }));
        scan.push(timed(|| assert_eq!(layer::scan(store).expect("a store").filter(Result::is_ok).count(), count)));
        if scan.len() == 1 {
            peak = peak_memory_kib();
        }
        survey.push(timed(|| {
            Collector::new().max_bytes(0).dry_run(store).expect("a store");
        }));
    }
    let [find, scan, survey] = [find, scan, survey].map(median);
    println!("\n{count} layers, median, times as long as find");
    println!("  find -maxdepth 2 -name layer.json       {find:>9.1?}   1");
    println!("  scan                                    {scan:>9.1?}   {:.2}", ratio(scan, find));
    println!("  a dry run of a collector that wants all {survey:>9.1?}   {:.2}", ratio(survey, find));
    println!("memory: a scan {} KiB, the dry run {} KiB", peak - before, peak_memory_kib() - peak);
    let time = timed(|| {
        let collected = Collector::new().max_bytes(0).collect(store).expect("collected");
        assert_eq!((collected.layers.len(), collected.failed.len()), (count, 0));
    });
    println!("collecting them all: {:.1?} a layer", time / u32::try_from(count).expect("not that many"));
}

/// Returns names as long as hashes.
fn names(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|number| format!("{number:040x}"))
}

fn make(store: &Path, count: usize) {
    let meta = Meta { disk_usage: 1000, ..Meta::new("debian-12", SystemTime::UNIX_EPOCH) };
    let meta = serde_json::to_vec(&meta).expect("JSON");
    for name in names(count) {
        let layer = Layer::at(store.join(name));
        fs::create_dir_all(layer.fs()).expect("a directory");
        // The file is not synced: that would take too long for 100,000 layers.
        fs::write(layer.meta_path(), &meta).expect("a file");
    }
}

/// Returns the peak memory of this process, in KiB: proc_pid_status(5).
fn peak_memory_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn ratio(one: Duration, other: Duration) -> f64 {
    one.as_secs_f64() / other.as_secs_f64()
}
