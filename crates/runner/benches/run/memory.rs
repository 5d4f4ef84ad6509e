//! The runner's memory, and what the caller's own has to do with the time.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use runner::Cleanup;

use crate::LAYERS;
use crate::markdown::{cells, table};
use crate::places::Places;
use crate::sample::Sample;
use crate::subjects::{command, in_process, template};

/// How many runs there are before what is there is looked at, and again.
const RUNS: [usize; 2] = [100, 10_000];

/// What a process has, as proc(5) tells.
struct Had {
    threads: usize,
    descriptors: usize,
    resident_kilobytes: usize,
}

/// While a command runs over 400 layers.
pub(crate) fn peak(places: &Places) -> Result<String> {
    let layers = LAYERS[LAYERS.len() - 1];
    let mut waiting = command(places, "runc", layers, &["/bin/sh", "-c", "echo; read line"]);
    let mut child = waiting.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    BufReader::new(child.stdout.take().context("a pipe")?).read_line(&mut String::new())?;
    let status = fs::read_to_string(format!("/proc/{}/status", child.id()))?;
    drop(child.stdin.take());
    // `read` fails at the end of the file.
    ensure!(child.wait()?.code() == Some(1), "the command has not ended as it should");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(format!("## Memory\n\nPeak of `layered run` with {layers} layers: {}\n", peak.trim()))
}

/// In this process, after some runs and after many: nothing may grow.
pub(crate) fn steady(places: &Places, runtime: &str) -> Result<String> {
    let template = template(&["/bin/true"])?;
    let mut rows = vec![cells(["runs", "threads", "descriptors", "resident memory"])];
    let mut done = 0;
    for runs in RUNS {
        for _ in done..runs {
            in_process(places, runtime, 30, &template, Cleanup::Behind)?.upper.close()?;
        }
        done = runs;
        // A thread that has been joined is listed for a moment longer.
        let mut had = Had::now()?;
        for _ in 0..100 {
            had.threads = had.threads.min(Had::now()?.threads);
        }
        rows.push(vec![
            runs.to_string(),
            had.threads.to_string(),
            had.descriptors.to_string(),
            format!("{} kB", had.resident_kilobytes),
        ]);
    }
    Ok(table(&format!("Many runs in one process, {runtime}, 30 layers"), &rows))
}

impl Had {
    fn now() -> Result<Self> {
        let status = fs::read_to_string("/proc/self/status")?;
        let number = |name: &str| -> Result<usize> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
            Ok(line.trim().trim_end_matches(" kB").parse()?)
        };
        let descriptors = fs::read_dir("/proc/self/fd")?.count();
        Ok(Self { threads: number("Threads:")?, descriptors, resident_kilobytes: number("VmRSS:")? })
    }
}

/// A caller that has a gigabyte of its own, against one that has not.
pub(crate) fn large_caller(places: &Places, runtime: &str, rounds: usize) -> Result<String> {
    let template = template(&["/bin/true"])?;
    let [mut small, mut large] = [Sample::default(), Sample::default()];
    let once = || in_process(places, runtime, 30, &template, Cleanup::Awaited);
    for _ in 0..rounds {
        // As in `costs`: the first after a pause, and to fill such a lot of memory is one, waits.
        drop(once()?);
        drop(small.time(once)?);
        let memory = std::hint::black_box(vec![1_u8; 1 << 30]);
        drop(once()?);
        drop(large.time(once)?);
        drop(memory);
    }
    let head = cells(["a caller", "with 1 GiB of its own", "ratio"]);
    let rows = [head, vec![small.milliseconds(), large.milliseconds(), large.ratio(&small)]];
    Ok(table(&format!("A large caller, {runtime}, 30 layers"), &rows))
}
