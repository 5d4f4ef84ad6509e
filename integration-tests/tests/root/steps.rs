//! The steps of one run, each looked at from outside when it has ended: which files are there,
//! which layers are marked as used, and what is mounted.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;
use std::time::SystemTime;

use container::Status;
use integration_tests::{Fixture, stdout};
use layer::{Layer, Rung, XattrNamespace};
use runner::{Event, Phase};

/// Returns the names in a directory, in order. Empty if the directory does not exist.
fn names(dir: impl AsRef<Path>) -> String {
    let entries = fs::read_dir(dir).into_iter().flatten();
    let names: BTreeSet<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.into_iter().collect::<Vec<_>>().join(" ")
}

/// Describes the outside of a run in the only directory of `scratch`.
fn outside(scratch: &Path, layers: &[Layer]) -> String {
    let Some(run) = fs::read_dir(scratch).unwrap().next() else { return "nothing".into() };
    let run = run.unwrap().path();
    let is_used = layers.iter().all(|layer| layer.last_used().unwrap().unwrap() > SystemTime::UNIX_EPOCH);
    // The watching thread is in the mount namespace of the run.
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let is_mounted = mounts.lines().any(|line| line.contains(" - overlay ") && line.contains(run.to_str().unwrap()));
    let words = [
        if is_used { "used" } else { "unused" },
        if is_mounted { "mounted" } else { "unmounted" },
        &format!("run: {}", names(&run)),
        &format!("upper: {}", names(run.join("upper"))),
        if run.join("bundle/config.json").exists() { "configured" } else { "unconfigured" },
    ];
    words.join("; ")
}

#[test]
fn each_step_of_a_run_is_seen_from_outside() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(4);
    for layer in &layers {
        layer.touch().unwrap();
        File::open(layer.last_used_path()).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    }
    let scratch = fixture.scratch();
    let (mut seen, mut given) = (Vec::new(), Vec::new());
    let options = fixture.options().rung(Rung::LowerdirPlus).max_lowers(3).watch(|event| {
        if let Event::Ended(phase, _) = event {
            seen.push((*phase, outside(&scratch, &layers)));
        }
    });
    let options = options.prep_upper(|upper, lowers| {
        given = lowers.to_vec();
        Ok(fs::write(upper.join("seed"), "from prep_upper\n")?)
    });
    let report = fixture.run_with(&layers, "cat /top /deps/* /seed; echo new >/out; rm /deps/3; exit 7", options);

    // The run creates `dev`, `etc`, `proc` and `sys`. The tmpfs of the bundle ends with the
    // namespace.
    let expected = [
        (Phase::Inputs, "nothing"),
        (Phase::Scratch, "unused; unmounted; run: bundle upper work; upper: ; unconfigured"),
        (Phase::Touch, "used; unmounted; run: bundle upper work; upper: ; unconfigured"),
        (Phase::Plan, "used; unmounted; run: bundle upper work; upper: ; unconfigured"),
        (Phase::Merge, "used; unmounted; run: bundle lower upper work; upper: ; unconfigured"),
        (Phase::PrepUpper, "used; unmounted; run: bundle lower upper work; upper: seed; unconfigured"),
        (Phase::OverlayMount, "used; mounted; run: bundle lower upper work; upper: seed; unconfigured"),
        (Phase::Config, "used; mounted; run: bundle lower upper work; upper: dev etc proc seed sys; configured"),
        (
            Phase::RuncRun,
            "used; mounted; run: bundle lower upper work; upper: deps dev etc out proc seed sys; configured",
        ),
        (
            Phase::OverlayUmount,
            "used; unmounted; run: bundle lower upper work; upper: deps dev etc out proc seed sys; configured",
        ),
        (Phase::Cleanup, "used; unmounted; run: upper; upper: deps dev etc out proc seed sys; unconfigured"),
    ];
    assert_eq!(seen.iter().map(|(phase, seen)| (*phase, &**seen)).collect::<Vec<_>>(), expected);
    let run = report.upper.path().parent().unwrap();
    assert_eq!(given, [layers[0].fs(), run.join("lower"), fixture.base().fs()]);
    assert_eq!((report.status, stdout(&report)), (Status::Exited(7), "0\n0\n1\n2\n3\nfrom prep_upper\n".into()));
    assert_eq!(fs::read_to_string(report.upper.path().join("out")).unwrap(), "new\n");
    assert!(layer::is_whiteout(report.upper.path().join("deps/3"), XattrNamespace::Trusted).unwrap());
    assert!(layers.iter().all(|layer| !layer.meta_path().exists()), "a run writes no layer.json");
    report.upper.close().unwrap();
    assert_eq!(names(&scratch), "");
}
