//! What comes of a run when one of its system calls fails, or a mount is busy: the right result, or one line that says what has
//! failed and what is left.

use std::fs::{self, File};
use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};
use std::sync::{Arc, Mutex};

use container::Output;
use integration_tests::strace::{Disturbance, Point};
use integration_tests::{Fixture, KnownRun, Told, shell, until_it_waits};
use runner::{Phase, Report};

const ERRORS: [&str; 4] = ["EIO", "ENOSPC", "ENOMEM", "EINTR"];

/// `LAYERED_FAULTS` of the cases, `all` for all of them; 250 if that is not set.
fn count() -> usize {
    match std::env::var("LAYERED_FAULTS").as_deref() {
        Err(_) => 250,
        Ok("all") => usize::MAX,
        Ok(count) => count.parse().expect("LAYERED_FAULTS is a number, or `all`"),
    }
}

/// What chooses among the cases: `LAYERED_SEED`, or something else every time.
fn seed() -> u64 {
    let any = || RandomState::new().build_hasher().finish();
    std::env::var("LAYERED_SEED").map_or_else(|_| any(), |seed| seed.parse().expect("LAYERED_SEED is a number"))
}

fn every_call_fails(run: &KnownRun) {
    let points = run.program().points();
    run.remove_upper();
    let seed = seed();
    let mut cases: Vec<(&Point, &str)> = points
        .iter()
        .filter(|point| point.can_fail())
        .flat_map(|point| ERRORS.iter().map(move |error| (point, *error)))
        .collect();
    let all = cases.len();
    cases.sort_by_cached_key(|case| {
        let mut hasher = DefaultHasher::new();
        (seed, case).hash(&mut hasher);
        hasher.finish()
    });
    cases.truncate(count());
    let mut wrong = Vec::new();
    for (point, error) in &cases {
        let output = run.program().disturbed(point, Disturbance::Error(error));
        let told = if point.call == "write" { Told::IfPossible } else { Told::Always };
        wrong.extend(run.wrong(&output, told).into_iter().map(|what| format!("{error} at {point:?}: {what}")));
    }
    eprintln!("{} points, {all} cases, {} of them tried with seed {seed}", points.len(), cases.len());
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// A run during which somebody opens a file in the overlay, and what `holder` does with it.
fn busy(fixture: &Fixture, holder: impl FnOnce(File, rustix::thread::Pid) + Send + 'static) -> runner::Result<Report> {
    let scratch = fixture.scratch();
    let mut holder = Some(holder);
    // It is called on the thread that has mounted and will unmount.
    let hold = move |_: &[u8]| {
        if let Some(holder) = holder.take() {
            let run = fs::read_dir(&scratch).unwrap().next().unwrap().unwrap().path();
            holder(File::open(run.join("bundle/merged/new")).unwrap(), rustix::thread::gettid());
        }
    };
    let options = fixture.options().stdout(Output::Callback(Box::new(hold)));
    let template = shell("echo new > /new; echo begun").build().unwrap();
    runner::run(&fixture.base(), &fixture.numbered_layers(3), &template, options)
}

#[test]
fn an_overlay_that_stays_busy_is_told_and_nothing_below_it_is_deleted() {
    let fixture = Fixture::new();
    let held = Arc::new(Mutex::new(None));
    let holder = Arc::clone(&held);
    let error = busy(&fixture, move |file, _| *holder.lock().unwrap() = Some(file)).unwrap_err();
    assert_eq!((error.phase(), error.left()), (Phase::OverlayUmount, Some(&*fixture.left()[0])), "{error}");
    assert!(error.to_string().contains("cannot unmount"), "{error}");
    assert_eq!(fs::read(fixture.left()[0].join("upper/new")).unwrap(), b"new\n");
    drop(held.lock().unwrap().take());
    fixture.sweep();
}

#[test]
fn an_overlay_that_is_busy_for_a_while_costs_nothing() {
    let fixture = Fixture::new();
    let report = busy(&fixture, |file, unmounting| {
        std::thread::spawn(move || {
            until_it_waits(unmounting);
            drop(file);
        });
    })
    .unwrap();
    assert_eq!(fs::read(report.upper.path().join("new")).unwrap(), b"new\n");
}

#[test]
fn of_a_run_that_stacks() {
    every_call_fails(&KnownRun::stacking());
}

#[test]
fn of_a_run_that_merges() {
    every_call_fails(&KnownRun::merging());
}
