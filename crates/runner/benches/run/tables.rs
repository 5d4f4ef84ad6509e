//! The parts of the results, as Markdown.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use container::Template;
use nix::mount::{MsFlags, mount, umount};
use runner::{Cleanup, Phase, Report};

use crate::LAYERS;
use crate::chart::Bar;
use crate::places::Places;
use crate::sample::Sample;
use crate::subjects::{bare, command, in_process, peers, quiet, replaced_sequence, run, template};

const RUNTIMES: [&str; 2] = ["runc", "crun"];

/// A table with a heading; the first row is the head.
fn table(heading: &str, rows: &[Vec<String>]) -> String {
    let mut text = format!("## {heading}\n\n");
    for (index, row) in rows.iter().enumerate() {
        text.push_str(&format!("| {} |\n", row.join(" | ")));
        if index == 0 {
            text.push_str(&format!("|{}\n", "---|".repeat(row.len())));
        }
    }
    text
}

fn cells<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(String::from).to_vec()
}

fn is_installed(program: &str) -> bool {
    quiet(program).arg("--version").status().is_ok_and(|status| status.success())
}

/// A trivial command: what a run costs, and where the time goes.
pub(crate) fn costs(places: &Places, rounds: usize) -> Result<(String, Vec<Bar>)> {
    let template = template(&["/bin/true"])?;
    let mut rows = vec![cells([
        "runtime",
        "layers",
        "bare runtime",
        "own time / bare",
        "`run` / bare",
        "own time / bare, cleanup behind",
        "`run` / bare, cleanup behind",
        "`layered run` / bare",
        "replaced sequence / `run`",
    ])];
    let (mut bars, mut missing) = (Vec::new(), Vec::new());
    for runtime in RUNTIMES {
        if !is_installed(runtime) {
            missing.push(format!("{runtime}: not installed"));
            continue;
        }
        for layers in LAYERS {
            let [mut alone, mut own, mut whole, mut process, mut replaced] = [const { Sample(Vec::new()) }; 5];
            let [mut own_behind, mut whole_behind] = [const { Sample(Vec::new()) }; 2];
            let mut phases = [const { Sample(Vec::new()) }; Phase::TIMED.len()];
            // crun itself does not start on a hybrid machine, where only `run` arranges what it needs.
            let mut sequence_runs = runtime == "runc";
            for _ in 0..rounds {
                alone.push(bare(places, runtime, &template)?);
                let report = whole_behind.time(|| in_process(places, runtime, layers, &template, Cleanup::Behind))?;
                own_behind.push(own_time(&report));
                drop(report);
                let report = whole.time(|| in_process(places, runtime, layers, &template, Cleanup::Awaited))?;
                own.push(own_time(&report));
                for (sample, phase) in phases.iter_mut().zip(Phase::TIMED) {
                    sample.push(report.timings.phase(phase));
                }
                report.upper.close()?;
                process.time(|| run(&mut command(places, runtime, layers, &["/bin/true"])))?;
                if sequence_runs {
                    let outcome = replaced.time(|| replaced_sequence(places, runtime, layers, &template));
                    if let Err(error) = outcome {
                        missing.push(format!("the replaced sequence, {runtime}, {layers} layers: {error:#}"));
                        sequence_runs = false;
                    }
                }
            }
            rows.push(vec![
                runtime.into(),
                layers.to_string(),
                alone.milliseconds(),
                own.ratio(&alone),
                whole.ratio(&alone),
                own_behind.ratio(&alone),
                whole_behind.ratio(&alone),
                process.ratio(&alone),
                if sequence_runs { replaced.ratio(&whole) } else { "–".into() },
            ]);
            let parts = Phase::TIMED.iter().zip(&phases).map(|(phase, sample)| (phase.name(), sample.median()));
            bars.push(Bar {
                label: format!("{runtime}, {layers} layer{}", if layers == 1 { "" } else { "s" }),
                parts: parts.collect(),
            });
        }
    }
    let mut text = table("A trivial command", &rows);
    text.push_str(&others(places, rounds, &template, &mut missing)?);
    for line in missing {
        text.push_str(&format!("\nMissing: {line}\n"));
    }
    Ok((text, bars))
}

/// The time that is not the runtime's.
fn own_time(report: &Report) -> Duration {
    report.timings.total().saturating_sub(report.timings.phase(Phase::RuncRun))
}

/// What else runs a command in a root of its own, with nothing stacked.
fn others(places: &Places, rounds: usize, template: &Template, missing: &mut Vec<String>) -> Result<String> {
    let mut rows = vec![cells(["with one root, no layers", "time", "/ bare runc"])];
    for (name, argv) in peers(places) {
        let once = || run(quiet(&argv[0]).args(&argv[1..]));
        if let Err(error) = once() {
            let reason = error.to_string();
            missing.push(format!("{name}: {}", reason.lines().next().unwrap_or_default()));
            continue;
        }
        let [mut theirs, mut alone] = [const { Sample(Vec::new()) }; 2];
        for _ in 0..rounds {
            theirs.time(once)?;
            alone.push(bare(places, "runc", template)?);
        }
        rows.push(vec![name.into(), theirs.milliseconds(), theirs.ratio(&alone)]);
    }
    Ok(if rows.len() == 1 { String::new() } else { format!("\n{}", table("Others", &rows)) })
}

/// A job that writes 100 MB: what unmounting costs, and what it would without `volatile`.
pub(crate) fn large_job(places: &Places, rounds: usize) -> Result<String> {
    let write = template(&["/bin/dd", "if=/dev/zero", "of=/large", "bs=1M", "count=100"])?;
    let [mut ours, mut flushed, mut whole, mut alone] = [const { Sample(Vec::new()) }; 4];
    for _ in 0..rounds.min(7) {
        alone.push(bare(places, "runc", &write)?);
        // What the bare runtime has written is its root's own.
        fs::remove_file(places.root().join("large"))?;
        let report = whole.time(|| in_process(places, "runc", 30, &write, Cleanup::Awaited))?;
        ours.push(report.timings.phase(Phase::OverlayUmount));
        report.upper.close()?;
        flushed.push(unmounted_without_volatile(places)?);
    }
    Ok(table(
        "A job that writes 100 MB, 30 layers, runc",
        &[
            cells(["`run` / bare runtime", "unmount", "unmount without `volatile`", "ratio"]),
            vec![
                whole.ratio(&alone),
                ours.milliseconds(),
                flushed.milliseconds(),
                format!("{:.4}", ours.median() / flushed.median()),
            ],
        ],
    ))
}

fn unmounted_without_volatile(places: &Places) -> Result<Duration> {
    let dir = places.new_dir()?;
    let [upper, work, merged] = ["upper", "work", "merged"].map(|name| dir.path().join(name));
    for path in [&upper, &work, &merged] {
        fs::create_dir(path)?;
    }
    let options =
        format!("lowerdir={},upperdir={},workdir={}", places.base.fs().display(), upper.display(), work.display());
    mount(Some("overlay"), &merged, Some("overlay"), MsFlags::empty(), Some(&*options))?;
    let mut file = fs::File::create(merged.join("large"))?;
    let written = (0..100).try_for_each(|_| file.write_all(&[0; 1 << 20]));
    drop(file);
    let start = Instant::now();
    umount(&merged)?;
    let time = start.elapsed();
    written?;
    Ok(time)
}

/// Runs a second with several at a time.
pub(crate) fn throughput(places: &Places, rounds: usize) -> Result<String> {
    let template = template(&["/bin/true"])?;
    let mut rows = vec![cells(["runtime", "workers", "bare runtime, runs a second", "`run`, 30 layers", "ratio"])];
    for runtime in RUNTIMES.into_iter().filter(|runtime| is_installed(runtime)) {
        for workers in [1, 2, 4, 16] {
            let count = workers.max(4) * 5;
            let [mut bare_times, mut our_times] = [const { Sample(Vec::new()) }; 2];
            for _ in 0..rounds.min(5) {
                bare_times.push(all(workers, count, || bare(places, runtime, &template).map(drop))?);
                our_times.push(all(workers, count, || {
                    Ok(in_process(places, runtime, 30, &template, Cleanup::Awaited)?.upper.close()?)
                })?);
            }
            let rate = |sample: &Sample| format!("{:.0}", count as f64 / sample.median());
            rows.push(vec![
                runtime.into(),
                workers.to_string(),
                rate(&bare_times),
                rate(&our_times),
                bare_times.ratio(&our_times),
            ]);
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

/// The runner's own memory while a command runs over 400 layers.
pub(crate) fn memory(places: &Places) -> Result<String> {
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
