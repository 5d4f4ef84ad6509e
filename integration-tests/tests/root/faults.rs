//! What comes of a run when one of its system calls fails: the right result, or one line that says what has failed and what is
//! left.

use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};

use integration_tests::strace::{Disturbance, Point};
use integration_tests::{KnownRun, Told};

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

#[test]
fn of_a_run_that_stacks() {
    every_call_fails(&KnownRun::stacking());
}

#[test]
fn of_a_run_that_merges() {
    every_call_fails(&KnownRun::merging());
}
