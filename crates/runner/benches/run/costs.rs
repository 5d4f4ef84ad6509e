//! A trivial command: what a run costs, and where the time goes.

use std::time::Duration;

use anyhow::Result;
use runner::{Cleanup, Phase, Report};

use crate::chart::Bar;
use crate::markdown::{cells, table};
use crate::places::Places;
use crate::sample::Sample;
use crate::subjects::{
    Configuration, RUNTIMES, bare, command, in_process, is_installed, replaced_sequence, run, template,
};
use crate::{LAYERS, Missing};

/// What one runtime took over so many layers, round by round.
#[derive(Default)]
struct Samples {
    bare: Sample,
    /// With the configuration as a run prepares it.
    prepared: Sample,
    own: Sample,
    whole: Sample,
    own_behind: Sample,
    whole_behind: Sample,
    process: Sample,
    replaced: Option<Sample>,
    phases: [Sample; Phase::TIMED.len()],
}

/// What is timed in every round.
#[derive(Clone, Copy)]
enum Subject {
    Bare,
    Prepared,
    Run,
    RunBehind,
    Process,
}

const SUBJECTS: [Subject; 5] = [Subject::Bare, Subject::Run, Subject::Prepared, Subject::RunBehind, Subject::Process];

pub(crate) fn measured(places: &Places, rounds: usize, missing: &mut Missing) -> Result<(String, Vec<Bar>)> {
    let head = [
        "runtime",
        "layers",
        "bare runtime",
        "own time / bare",
        "`run` / bare",
        "own time / bare, cleanup behind",
        "`run` / bare, cleanup behind",
        "`layered run` / bare",
        "replaced sequence / `run`",
    ];
    let (mut rows, mut bars) = (vec![cells(head)], Vec::new());
    for runtime in RUNTIMES {
        if !is_installed(runtime) {
            missing.add(runtime, "not installed");
            continue;
        }
        for layers in LAYERS {
            let samples = sampled(places, runtime, layers, rounds, missing)?;
            rows.push(row(runtime, layers, &samples, &samples.bare));
            if runtime == "crun" {
                rows.push(row("crun, given the filter ready made", layers, &samples, &samples.prepared));
            }
            let parts = Phase::TIMED.iter().zip(&samples.phases).map(|(phase, sample)| (phase.name(), sample.median()));
            bars.push(Bar {
                label: format!("{runtime}, {layers} layer{}", if layers == 1 { "" } else { "s" }),
                parts: parts.collect(),
            });
        }
    }
    Ok((table("A trivial command", &rows), bars))
}

fn row(name: &str, layers: usize, samples: &Samples, bare: &Sample) -> Vec<String> {
    let replaced = samples.replaced.as_ref().map_or_else(|| "–".into(), |sample| sample.ratio(&samples.whole));
    let ratios = [&samples.own, &samples.whole, &samples.own_behind, &samples.whole_behind, &samples.process];
    let mut row = vec![name.into(), layers.to_string(), bare.milliseconds()];
    row.extend(ratios.map(|sample| sample.ratio(bare)));
    row.push(replaced);
    row
}

fn sampled(places: &Places, runtime: &str, layers: usize, rounds: usize, missing: &mut Missing) -> Result<Samples> {
    let template = template(&["/bin/true"])?;
    // crun itself does not start on a hybrid machine, where only `run` arranges what it needs.
    let replaced = (runtime == "runc").then(Sample::default);
    let mut samples = Samples { replaced, ..Samples::default() };
    let run_with = |cleanup| in_process(places, runtime, layers, &template, cleanup);
    for round in 0..rounds {
        // The kernel lets the first process after a pause wait before it changes its control group: that is for none of them.
        bare(places, runtime, &template, Configuration::Plain)?;
        // Over the rounds each comes after each of the others: what one leaves to the next is for all of them. Their number is prime.
        let step = 1 + round % (SUBJECTS.len() - 1);
        for index in 0..SUBJECTS.len() {
            match SUBJECTS[(round + index * step) % SUBJECTS.len()] {
                Subject::Bare => samples.bare.push(bare(places, runtime, &template, Configuration::Plain)?),
                Subject::Prepared => {
                    samples.prepared.push(bare(places, runtime, &template, Configuration::Prepared)?);
                }
                Subject::Run => {
                    let report = samples.whole.time(|| run_with(Cleanup::Awaited))?;
                    samples.own.push(own_time(&report));
                    for (sample, phase) in samples.phases.iter_mut().zip(Phase::TIMED) {
                        sample.push(report.timings.phase(phase));
                    }
                    report.upper.close()?;
                }
                Subject::RunBehind => {
                    let report = samples.whole_behind.time(|| run_with(Cleanup::Behind))?;
                    samples.own_behind.push(own_time(&report));
                    drop(report);
                }
                Subject::Process => {
                    samples.process.time(|| run(&mut command(places, runtime, layers, &["/bin/true"])))?;
                }
            }
        }
        if let Some(replaced) = &mut samples.replaced {
            if let Err(error) = replaced.time(|| replaced_sequence(places, runtime, layers, &template)) {
                missing.add(&format!("the replaced sequence, {runtime}, {layers} layers"), &format!("{error:#}"));
                samples.replaced = None;
            }
        }
    }
    Ok(samples)
}

/// The time that is not the runtime's.
fn own_time(report: &Report) -> Duration {
    report.timings.total().saturating_sub(report.timings.phase(Phase::RuncRun))
}
