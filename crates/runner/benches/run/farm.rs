//! Measures a farm of small builds that depend on each other, as the example `farm` has them, with
//! and without shared layers. [`stacks`](crate::stacks) measures single runs.

use std::collections::BTreeSet;
use std::fs;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use container::{CaptureLimit, Output, Runtime, Template};
use layer::{Layer, Store};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike};
use runner::{Options, Stacks};

use crate::markdown::{cells, explained_table};
use crate::places::Places;
use crate::sample::Sample;

const PACKAGES: usize = 500;
const WORKERS: usize = 4;

/// The number of layers below every build, as a build of a Debian package has those of
/// build-essential.
const TOOLCHAIN: usize = 100;

/// Explains the columns.
const EXPLANATION: &str = "\
500 builds by 4 workers. Each runs over 100 layers that all builds have, and the layers of all builds that it depends on, 125 on average \
and at most 210. It looks up 200 names, computes for about 50 ms, writes two files, and becomes a layer. Its own time is what its \
command measures from its first to its last line. Processor time is that of all processes, the commands included.

";

/// What a command does between its two looks at the clock, with a resolution of 10 ms.
const SCRIPT: &str = "\
read start rest < /proc/uptime
n=0; while [ $n -lt 100 ]; do [ -e /opt/package-$n ]; [ -e /usr/include/header-$n ]; n=$((n + 1)); done
n=0; while [ $n -lt 40000 ]; do n=$((n + 1)); done
mkdir -p /opt; echo $n > /opt/package-PACKAGE; echo $n > /opt/more-PACKAGE
read end rest < /proc/uptime
echo $start $end";

pub(crate) fn measured(places: &Places, runtime: &str, rounds: usize) -> Result<String> {
    let head = ["", "wall time", "processor time", "builds/s", "wall time / (own time of the commands / 4)"];
    let [mut walls, mut used, mut own] = [const { [Sample(Vec::new()), Sample(Vec::new())] }; 3];
    for round in 0..rounds.min(5) {
        for index in 0..2 {
            let index = (round + index) % 2;
            let stacks = (index == 1).then(Stacks::new);
            let before = processor_time()?;
            let (wall, commands) = built(places, runtime, stacks.as_ref())?;
            used[index].push(processor_time()?.saturating_sub(before));
            walls[index].push(wall);
            own[index].push(commands / WORKERS as u32);
        }
    }
    let mut rows = vec![cells(head)];
    let seconds = |sample: &Sample| format!("{:.2} s ({:.2})", sample.median(), sample.minimum());
    for (index, name) in ["without `Stacks`", "with `Stacks`"].into_iter().enumerate() {
        let (wall, used, own) = (&walls[index], &used[index], &own[index]);
        let rate = format!("{:.1}", PACKAGES as f64 / wall.median());
        rows.push(vec![name.into(), seconds(wall), seconds(used), rate, wall.ratio(own)]);
    }
    let [walls, used] = [walls, used].map(|samples| samples[1].ratio(&samples[0]));
    rows.push(vec!["with / without".into(), walls, used, String::new(), String::new()]);
    Ok(explained_table(&format!("A farm of {PACKAGES} builds, {runtime}"), EXPLANATION, &rows))
}

/// Returns the processor time of this process and of the processes that it has waited for.
fn processor_time() -> Result<Duration> {
    let seconds = |time: TimeVal| time.num_microseconds() as f64 / 1e6;
    let mut sum = 0.0;
    for who in [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN] {
        let usage = getrusage(who)?;
        sum += seconds(usage.user_time()) + seconds(usage.system_time());
    }
    Ok(Duration::from_secs_f64(sum))
}

/// The packages that a package depends on. Their numbers are smaller.
fn dependencies(package: usize) -> BTreeSet<usize> {
    if package < 6 { BTreeSet::new() } else { [package / 2, package / 3, package - 5].into() }
}

/// For each package, its dependencies, theirs, and so on.
fn closures() -> Vec<BTreeSet<usize>> {
    let mut all: Vec<BTreeSet<usize>> = Vec::with_capacity(PACKAGES);
    for package in 0..PACKAGES {
        let direct = dependencies(package);
        let below = direct.iter().flat_map(|other| all[*other].iter().copied()).chain(direct.iter().copied());
        all.push(below.collect());
    }
    all
}

/// Builds all packages in a new store. Returns the time that this takes, and the sum of the times
/// that the commands measure.
fn built(places: &Places, runtime: &str, stacks: Option<&Stacks>) -> Result<(Duration, Duration)> {
    let dir = places.new_dir()?;
    fs::create_dir(dir.path().join("scratch"))?;
    let (store, closures) = (Store::open(dir.path())?, closures());
    let (next, built, ended) = (Mutex::new(0..PACKAGES), Mutex::new(vec![false; PACKAGES]), Condvar::new());
    let build = |package: usize| -> Result<Duration> {
        let all = &closures[package];
        // Other workers have already begun the dependencies, because their numbers are smaller.
        drop(ended.wait_while(built.lock().expect("no worker panics"), |built| !all.iter().all(|other| built[*other])));
        let layers = all.iter().rev().map(|other| store.layer(format!("package-{other}")));
        let toolchain = places.layers[..TOOLCHAIN].iter().cloned().map(Ok);
        let layers: Vec<Layer> = layers.chain(toolchain).collect::<layer::Result<_>>()?;
        let template = Template::builder(["sh", "-c", &SCRIPT.replace("PACKAGE", &package.to_string())]).build()?;
        let options = Options::new()
            .scratch(store.path().join("scratch"))
            .runtime(Runtime::new(runtime))
            .stdout(Output::Capture(CaptureLimit::default()))
            .stacks(stacks);
        let report = runner::run(&places.base, &layers, &template, options)?;
        ensure!(report.status.success(), "{:?}", report.status);
        let clock = report.stdout.as_ref().context("standard output is captured")?.to_string();
        let (start, end) = clock.trim().split_once(' ').context("the command prints two times")?;
        let own = Duration::from_secs_f64(end.parse::<f64>()? - start.parse::<f64>()?);
        report.publish(&store, format!("package-{package}"), |_| Ok(()))?;
        Ok(own)
    };
    let work = || -> Result<Duration> {
        let mut own = Duration::ZERO;
        loop {
            let Some(package) = next.lock().expect("no worker panics").next() else { return Ok(own) };
            let result = build(package);
            // After a failure, the others must not wait for ever.
            built.lock().expect("no worker panics")[package] = true;
            ended.notify_all();
            own += result?;
        }
    };
    let start = Instant::now();
    let own = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(work)).collect();
        let times: Vec<_> = workers.into_iter().map(|worker| worker.join().expect("no worker panics")).collect();
        times.into_iter().sum::<Result<Duration>>()
    })?;
    Ok((start.elapsed(), own))
}
