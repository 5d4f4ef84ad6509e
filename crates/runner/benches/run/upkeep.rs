//! Compares a capture with `mv` and `sync`, and a collector with `rm -rf`. [`costs`](crate::costs)
//! measures runs, and the benchmark `merge` of the crate `layer` merges and removals.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, ensure};
use layer::{Capture, Collector, Layer, Meta};
use nix::sys::resource::{UsageWho, getrusage};

use crate::markdown::{cells, explained_table};
use crate::places::Places;
use crate::sample::Sample;
use crate::subjects::{quiet, run};

/// The number of layers that the collector removes. Each has 100 files.
const LAYERS: usize = 300;

/// The files of the upper: 100 directories of 100 files.
const FILES: usize = 10_000;

const EXPLANATION: &str = "\
The collector removes 300 layers with 100 files of 1 kB each, in six directories. `layer.json` has their sizes. The capture makes a layer of an upper with 10,000 \
files of 1 kB that was written a moment ago. `mv` and `sync -f` move the same upper and make it durable. A capture also walks the upper, \
writes `layer.json`, and makes the tree durable before the layer appears. The last columns have the processor time of the processes and \
their threads, without that of the kernel's own.

";

pub(crate) fn measured(places: &Places, rounds: usize) -> Result<String> {
    let head =
        ["", "tool", "layered", "tool / layered", "layered / tool", "processor time, tool", "processor time, layered"];
    let mut rows = vec![cells(head)];
    let dir = places.new_dir()?;
    let make_store = |path: &Path| make_store(path);
    let remove = |path: &Path| run(quiet("rm").arg("-rf").arg(path));
    let collect = |path: &Path| {
        let collected = Collector::new().max_bytes(0).collect(path)?;
        ensure!((collected.layers.len(), collected.failed.len()) == (LAYERS, 0), "{collected:?}");
        Ok(())
    };
    rows.push(compared("a collector / `rm -rf`", dir.path(), rounds, make_store, remove, collect)?);
    let move_away = |path: &Path| {
        run(quiet("mv").arg(path.join("upper")).arg(path.join("fs")))?;
        run(quiet("sync").arg("-f").arg(path))
    };
    let capture = |path: &Path| {
        let (lowers, layer) = ([places.base.fs()], Layer::at(path.join("layer")));
        let meta = Meta::new("base", SystemTime::now());
        let captured = Capture::new(lowers).made([]).into_layer(path.join("upper"), &layer, meta)?;
        ensure!(captured.size.entries as usize == FILES + FILES / 100, "{captured:?}");
        Ok(())
    };
    rows.push(compared("a capture / `mv` and `sync -f`", dir.path(), rounds, make_upper, move_away, capture)?);
    Ok(explained_table("Captures and collections", EXPLANATION, &rows))
}

/// Measures two ways to do the same, in turn, each with files of its own.
fn compared(
    name: &str,
    dir: &Path,
    rounds: usize,
    make: impl Fn(&Path) -> Result<()>,
    tool: impl Fn(&Path) -> Result<()>,
    ours: impl Fn(&Path) -> Result<()>,
) -> Result<Vec<String>> {
    let mut times = [Sample::default(), Sample::default()];
    let mut processor = [Sample::default(), Sample::default()];
    // Of the uppers, the one that is measured must be new.
    for round in 0..rounds.min(9) * 2 {
        let (index, path) = (round % 2, dir.join(round.to_string()));
        // Nothing of the other way's files is left for this one to write.
        rustix::fs::syncfs(File::open(dir)?)?;
        make(&path)?;
        let (start, before) = (Instant::now(), processor_time()?);
        if index == 0 {
            tool(&path)?
        } else {
            ours(&path)?
        }
        times[index].push(start.elapsed());
        processor[index].push(processor_time()?.saturating_sub(before));
        layer::remove_tree(&path)?;
    }
    let [theirs, own] = times;
    Ok(vec![
        name.into(),
        theirs.milliseconds(),
        own.milliseconds(),
        theirs.ratio(&own),
        own.ratio(&theirs),
        processor[0].milliseconds(),
        processor[1].milliseconds(),
    ])
}

/// Returns the processor time of this process and of its children that have ended.
fn processor_time() -> Result<Duration> {
    let mut sum = Duration::ZERO;
    for who in [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN] {
        let usage = getrusage(who)?;
        for time in [usage.user_time(), usage.system_time()] {
            sum += Duration::new(time.tv_sec().try_into()?, u32::try_from(time.tv_usec())? * 1000);
        }
    }
    Ok(sum)
}

fn make_store(store: &Path) -> Result<()> {
    for number in 0..LAYERS {
        let layer = Layer::at(store.join(format!("{number:040x}")));
        for (sub, files) in [("usr/bin", 20), ("usr/lib/lib", 30), ("usr/share/doc", 30), ("etc", 20)] {
            fill(&layer.fs().join(sub), files)?;
        }
        // As a capture records it.
        let meta = Meta { disk_usage: layer.measure()?.bytes, ..Meta::new("debian", SystemTime::UNIX_EPOCH) };
        fs::write(layer.meta_path(), serde_json::to_vec(&meta)?)?;
        layer.touch()?;
    }
    Ok(rustix::fs::syncfs(File::open(store)?)?)
}

fn make_upper(dir: &Path) -> Result<()> {
    (0..FILES / 100).try_for_each(|number| fill(&dir.join("upper").join(number.to_string()), 100))
}

fn fill(dir: &Path, files: usize) -> Result<()> {
    fs::create_dir_all(dir)?;
    (0..files).try_for_each(|number| Ok(fs::write(dir.join(number.to_string()), [b'x'; 1000])?))
}
