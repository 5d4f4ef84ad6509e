//! A trivial command: what a run costs, and where the time goes.

use std::time::Duration;

use anyhow::Result;
use runner::{Cleanup, Phase, Report};

use crate::bare::{Configuration, bare};
use crate::chart::Bar;
use crate::markdown::{cells, explained_table, table};
use crate::places::Places;
use crate::sample::Sample;
use crate::subjects::{RUNTIMES, command, in_process, is_installed, replaced_sequence, run, template};
use crate::{LAYERS, Missing};

/// What one runtime took over so many layers, round by round.
#[derive(Default)]
struct Samples {
    bare: Sample,
    /// As `RUNTIME spec` writes it.
    spec: Sample,
    own: Sample,
    whole: Sample,
    behind: Sample,
    process: Sample,
    replaced: Option<Sample>,
    phases: [Sample; Phase::TIMED.len()],
}

/// What is timed in every round.
#[derive(Clone, Copy)]
enum Subject {
    Bare,
    Spec,
    Run,
    RunBehind,
    Process,
}

const SUBJECTS: [Subject; 5] = [Subject::Bare, Subject::Run, Subject::Spec, Subject::RunBehind, Subject::Process];

/// The rounds in which the replaced sequence is measured, too.
const MOST_REPLACED: usize = 7;

/// What the columns are about.
const EXPLANATION: &str = "\
`/bin/true`. Bare is `RUNTIME run --bundle …` in the foreground, on a prepared directory, with the configuration that `run` gives the same
runtime: the same mounts, limits, capabilities, `HOME`, control group and seccomp profile, and for crun the same filter, compiled
beforehand. Only the init of a run is missing. \"As `spec` writes it\" is the bare runtime with what `runc spec` or `crun spec` writes,
without a seccomp profile. Own time is `run` without the phase of the runtime.

";

pub(crate) fn measured(places: &Places, rounds: usize, missing: &mut Missing) -> Result<(String, Vec<Bar>)> {
    let head = [
        "runtime",
        "layers",
        "bare",
        "own time / bare",
        "`run` / bare",
        "`run`, cleanup behind / bare",
        "`layered run` / bare",
        "`layered run` − `run`, of bare",
        "bare, as `spec` writes it / bare",
        "`run` / bare, as `spec` writes it",
        "replaced sequence / `run`",
    ];
    let (mut rows, mut bars) = (vec![cells(head)], Vec::new());
    let mut phases = vec![vec!["runtime".into(), "layers".into()]];
    phases[0].extend(Phase::TIMED.map(|phase| phase.name().into()));
    for runtime in RUNTIMES {
        if !is_installed(runtime) {
            missing.add(runtime, "not installed");
            continue;
        }
        for layers in LAYERS {
            let samples = sampled(places, runtime, layers, rounds, missing)?;
            rows.push(row(runtime, layers, &samples));
            let times = samples.phases.iter().map(Sample::milliseconds);
            phases.push([runtime.into(), layers.to_string()].into_iter().chain(times).collect());
            let parts = Phase::TIMED.iter().zip(&samples.phases).map(|(phase, sample)| (phase.name(), sample.median()));
            bars.push(Bar {
                label: format!("{runtime}, {layers} layer{}", if layers == 1 { "" } else { "s" }),
                parts: parts.collect(),
            });
        }
    }
    let costs = explained_table("A trivial command", EXPLANATION, &rows);
    Ok((format!("{costs}\n{}", table("The phases of `run`", &phases)), bars))
}

fn row(runtime: &str, layers: usize, samples: &Samples) -> Vec<String> {
    let Samples { bare, spec, own, whole, behind, process, replaced, .. } = samples;
    vec![
        runtime.into(),
        layers.to_string(),
        bare.milliseconds(),
        own.ratio(bare),
        whole.ratio(bare),
        behind.ratio(bare),
        process.ratio(bare),
        process.difference(whole, bare),
        spec.ratio(bare),
        whole.ratio(spec),
        replaced.as_ref().map_or_else(|| "–".into(), |replaced| replaced.ratio(whole)),
    ]
}

fn sampled(places: &Places, runtime: &str, layers: usize, rounds: usize, missing: &mut Missing) -> Result<Samples> {
    let template = template(&["/bin/true"])?;
    // crun itself does not start on a hybrid machine, where only `run` arranges what it needs.
    let replaced = (runtime == "runc").then(Sample::default);
    let mut samples = Samples { replaced, ..Samples::default() };
    let run_with = |cleanup| in_process(places, runtime, layers, &template, cleanup);
    for round in 0..rounds {
        // The kernel lets the first process after a pause wait before it changes its control group: that is for none of them.
        bare(places, runtime, &template, Configuration::Same)?;
        // Over the rounds each comes after each of the others: what one leaves to the next is for all of them. Their number is prime.
        let step = 1 + round % (SUBJECTS.len() - 1);
        for index in 0..SUBJECTS.len() {
            match SUBJECTS[(round + index * step) % SUBJECTS.len()] {
                Subject::Bare => samples.bare.push(bare(places, runtime, &template, Configuration::Same)?),
                Subject::Spec => samples.spec.push(bare(places, runtime, &template, Configuration::Spec)?),
                Subject::Run => {
                    let report = samples.whole.time(|| run_with(Cleanup::Awaited))?;
                    samples.own.push(own_time(&report));
                    for (sample, phase) in samples.phases.iter_mut().zip(Phase::TIMED) {
                        sample.push(report.timings.phase(phase));
                    }
                    report.upper.close()?;
                }
                Subject::RunBehind => {
                    samples.behind.time(|| run_with(Cleanup::Behind))?.upper.close()?;
                }
                Subject::Process => {
                    samples.process.time(|| run(&mut command(places, runtime, layers, &["/bin/true"])))?;
                }
            }
        }
        // It takes seconds over many layers, and its ratio is none that a few rounds could miss.
        if let Some(replaced) = samples.replaced.as_mut().filter(|_| round < MOST_REPLACED) {
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
