//! Measures runs that share the lowest layers of their stacks: [`Stacks`]. [`farm`](crate::farm)
//! measures builds that do.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use container::{Runtime, Template};
use runner::{Event, Options, Phase, Stacks};

use crate::markdown::{cells, explained_table};
use crate::places::Places;
use crate::sample::Sample;
use crate::subjects::template;

/// The numbers of layers over the base.
const LAYERS: [usize; 3] = [30, 100, 400];

/// Explains the columns.
const EXPLANATION: &str = "\
Each time is that of the mount, 200 first lookups (100 names that exist and 100 that do not) and the unmount. \"First\" is the first \
run with new `Stacks`, which mounts the shared overlay. \"Second\" is another run over the same layers.

";

/// The times of one number of layers, by round.
#[derive(Default)]
struct Samples {
    flat: Sample,
    first: Sample,
    second: Sample,
    /// The times of whole runs.
    flat_run: Sample,
    second_run: Sample,
}

pub(crate) fn measured(places: &Places, runtime: &str, rounds: usize) -> Result<String> {
    let template = template(&["/bin/true"])?;
    let head = [
        "layers",
        "without `Stacks`",
        "first",
        "second",
        "second / first",
        "second / without",
        "whole run, second / without",
    ];
    let mut rows = vec![cells(head)];
    for layers in LAYERS {
        let mut samples = Samples::default();
        for _ in 0..rounds {
            let stacks = Stacks::new();
            let (time, run) = looked_up(places, runtime, layers, &template, None)?;
            samples.flat.push(time);
            samples.flat_run.push(run);
            samples.first.push(looked_up(places, runtime, layers, &template, Some(&stacks))?.0);
            let (time, run) = looked_up(places, runtime, layers, &template, Some(&stacks))?;
            samples.second.push(time);
            samples.second_run.push(run);
        }
        let Samples { flat, first, second, flat_run, second_run } = samples;
        rows.push(vec![
            layers.to_string(),
            flat.milliseconds(),
            first.milliseconds(),
            second.milliseconds(),
            second.ratio(&first),
            second.ratio(&flat),
            second_run.ratio(&flat_run),
        ]);
    }
    Ok(explained_table(&format!("Shared layers, {runtime}"), EXPLANATION, &rows))
}

/// Runs the command over the first layers. Returns the time of the mount, the lookups and the
/// unmount, and that of the whole run.
fn looked_up(
    places: &Places,
    runtime: &str,
    layers: usize,
    template: &Template,
    stacks: Option<&Stacks>,
) -> Result<(Duration, Duration)> {
    let mut lookups = Ok(Duration::ZERO);
    let watch = |event: &Event| {
        // This thread of the run sees the overlay, which nothing has used but the preparation.
        if let Event::Ended(Phase::OverlayMount, _) = event {
            lookups = look_up(&places.scratch(), layers);
        }
    };
    let options = Options::new().scratch(places.scratch()).runtime(Runtime::new(runtime)).stacks(stacks).watch(watch);
    let report = runner::run(&places.base, &places.layers[..layers], template, options)?;
    ensure!(report.status.success(), "{:?}", report.status);
    ensure!(report.shared == stacks.map_or(0, |_| layers), "{} layers are shared", report.shared);
    let phases = [Phase::Plan, Phase::OverlayMount, Phase::OverlayUmount].map(|phase| report.timings.phase(phase));
    let total = report.timings.total();
    report.upper.close()?;
    // The watcher's own time is not in a phase.
    Ok((phases.iter().sum::<Duration>() + lookups?, total))
}

/// Looks up 200 names in the overlay of the only run.
fn look_up(scratch: &Path, layers: usize) -> Result<Duration> {
    let run = fs::read_dir(scratch)?.next().context("no run is in progress")??;
    let all = run.path().join("bundle/merged/usr/share/all");
    let start = Instant::now();
    let found = (0..100).filter(|n| all.join(format!("one-{}", n % layers)).symlink_metadata().is_ok()).count();
    let missing = (0..100).filter(|n| all.join(format!("missing-{n}")).symlink_metadata().is_err()).count();
    let time = start.elapsed();
    ensure!((found, missing) == (100, 100), "{found} found, {missing} missing");
    Ok(time)
}
