//! Measures the time of a run with a trivial command, and of its phases. [`chart`](crate::chart)
//! draws the phases.

use std::time::{Duration, Instant};

use anyhow::Result;
use runner::{Cleanup, Phase, Report};

use crate::bare::{Configuration, bare};
use crate::chart::Bar;
use crate::markdown::{cells, explained_table, table};
use crate::places::Places;
use crate::sample::Sample;
use crate::subjects::{RUNTIMES, command, in_process, is_installed, replaced_sequence, run, template};
use crate::{LAYERS, Missing};

/// The times of one runtime over one number of layers, by round.
#[derive(Default)]
struct Samples {
    bare: Sample,
    /// Bare, with the configuration that `RUNTIME spec` writes.
    spec: Sample,
    own: Sample,
    whole: Sample,
    /// The times of `run` and the removal of the upper.
    closed: Sample,
    behind: Sample,
    process: Sample,
    replaced: Option<Sample>,
    phases: [Sample; Phase::TIMED.len()],
}

/// The subjects of every round.
#[derive(Clone, Copy)]
enum Subject {
    Bare,
    Spec,
    Run,
    RunBehind,
    Process,
}

const SUBJECTS: [Subject; 5] = [Subject::Bare, Subject::Run, Subject::Spec, Subject::RunBehind, Subject::Process];

/// The number of rounds that also measure the replaced sequence.
const MOST_REPLACED: usize = 7;

/// Explains the columns.
const EXPLANATION: &str = "\
The command is `/bin/true`. \"Bare\" is `RUNTIME run --bundle …` in the foreground, on a prepared directory. It has the configuration \
that `run` gives the same runtime: the same mounts, limits, capabilities, `HOME`, cgroup and seccomp profile, and for crun the same \
precompiled filter. Only the init of a run is missing. \"Bare, `spec`\" is the bare runtime with the configuration that `runc spec` or \
`crun spec` writes, which has no seccomp profile. \"Own time\" is the time of `run` without the phase of the runtime. `layered run` also removes the upper. \
Its difference is therefore taken from the time of `run` plus the removal of the upper.

";

pub(crate) fn measured(places: &Places, rounds: usize, missing: &mut Missing) -> Result<(String, Vec<Bar>)> {
    let head = [
        "runtime",
        "layers",
        "bare",
        "own time / bare",
        "`run` / bare",
        "`run`, `Cleanup::Behind` / bare",
        "`layered run` / bare",
        "(`layered run` − `run`) / bare",
        "bare, `spec` / bare",
        "`run` / bare, `spec`",
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
    let Samples { bare, spec, own, whole, closed, behind, process, replaced, .. } = samples;
    vec![
        runtime.into(),
        layers.to_string(),
        bare.milliseconds(),
        own.ratio(bare),
        whole.ratio(bare),
        behind.ratio(bare),
        process.ratio(bare),
        process.difference(closed, bare),
        spec.ratio(bare),
        whole.ratio(spec),
        replaced.as_ref().map_or_else(|| "–".into(), |replaced| replaced.ratio(whole)),
    ]
}

fn sampled(places: &Places, runtime: &str, layers: usize, rounds: usize, missing: &mut Missing) -> Result<Samples> {
    let template = template(&["/bin/true"])?;
    // Without `run`, crun does not start on a machine with both cgroup versions.
    let replaced = (runtime == "runc").then(Sample::default);
    let mut samples = Samples { replaced, ..Samples::default() };
    let run_with = |cleanup| in_process(places, runtime, layers, &template, cleanup);
    for round in 0..rounds {
        // After a pause, the kernel lets the first process that changes its cgroup wait. This run
        // takes that wait, so that no subject does.
        bare(places, runtime, &template, Configuration::Same)?;
        // Over the rounds, each subject follows each of the others, so that all get the same share
        // of the work that a subject leaves to the next. This needs a prime number of subjects.
        let step = 1 + round % (SUBJECTS.len() - 1);
        for index in 0..SUBJECTS.len() {
            match SUBJECTS[(round + index * step) % SUBJECTS.len()] {
                Subject::Bare => samples.bare.push(bare(places, runtime, &template, Configuration::Same)?),
                Subject::Spec => samples.spec.push(bare(places, runtime, &template, Configuration::Spec)?),
                Subject::Run => {
                    let start = Instant::now();
                    let report = samples.whole.time(|| run_with(Cleanup::Awaited))?;
                    samples.own.push(own_time(&report));
                    for (sample, phase) in samples.phases.iter_mut().zip(Phase::TIMED) {
                        sample.push(report.timings.phase(phase));
                    }
                    report.upper.close()?;
                    samples.closed.push(start.elapsed());
                }
                Subject::RunBehind => {
                    samples.behind.time(|| run_with(Cleanup::Behind))?.upper.close()?;
                }
                Subject::Process => {
                    samples.process.time(|| run(&mut command(places, runtime, layers, &["/bin/true"])))?;
                }
            }
        }
        // The replaced sequence takes seconds over many layers, and a few rounds are enough to see
        // that.
        if let Some(replaced) = samples.replaced.as_mut().filter(|_| round < MOST_REPLACED) {
            if let Err(error) = replaced.time(|| replaced_sequence(places, runtime, layers, &template)) {
                missing.add(&format!("the replaced sequence, {runtime}, {layers} layers"), &format!("{error:#}"));
                samples.replaced = None;
            }
        }
    }
    Ok(samples)
}

/// Returns the time of a run without the phase of the runtime.
fn own_time(report: &Report) -> Duration {
    report.timings.total().saturating_sub(report.timings.phase(Phase::RuncRun))
}
