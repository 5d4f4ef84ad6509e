//! What comes of a run when one of its system calls fails, or a mount is busy: the right result, or one line that says what has
//! failed and what is left.

use std::fs::{self, File};
use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use container::Output;
use integration_tests::processes::{Running, descendants, name};
use integration_tests::strace::{Disturbance, Point, all_points};
use integration_tests::{Fixture, KnownRun, Told, copy_program, find, shell, until_it_waits};
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
    assert_eq!((error.phase(), error.left()), (Some(Phase::OverlayUmount), Some(&*fixture.left()[0])), "{error}");
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

/// The helper program in a file: what a keeper executes.
fn helper(fixture: &Fixture) -> PathBuf {
    let mut command = fixture.layered_script(&[], "echo begun; read line");
    let mut run = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
    assert_eq!(run.line(), "begun");
    let keeper = descendants(run.pid()).into_iter().find(|pid| name(*pid) == "layered-keeper").expect("a keeper");
    let path = fixture.path().join("helper");
    copy_program(Path::new(&format!("/proc/{keeper}/exe")), &path);
    drop(run.input());
    run.end();
    path
}

/// What the helper has reported: the kinds and the values, of which that of a path and of a file's beginning are lengths.
fn records(report: &[u8]) -> Vec<(u32, i32)> {
    let mut rest = report;
    let mut records = Vec::new();
    while let Some((header, after)) = rest.split_first_chunk::<8>() {
        let kind = u32::from_ne_bytes(header[..4].try_into().unwrap());
        let value = i32::from_ne_bytes(header[4..].try_into().unwrap());
        records.push((kind, value));
        rest = if [PATH, HEAD].contains(&kind) { &after[value as usize..] } else { after };
    }
    records
}

// As in the helper's `record.rs`.
const RUNTIME_NOT_EXECUTED: u32 = 1;
const RUNTIME_ENDED: u32 = 2;
const READY: u32 = 3;
const NOT_EXECUTED: u32 = 4;
const PATH: u32 = 5;
const HEAD: u32 = 6;
const COMMAND_ENDED: u32 = 7;
const CONTAINER_ENDED: u32 = 8;

/// Runs the helper by itself under strace with `options`. Returns its exit status and its report.
fn traced_helper(options: &[&str], helper: &Path, words: &[&str]) -> (i32, Vec<(u32, i32)>) {
    let mut command = Command::new("sh");
    // `strace` opens its own files above these.
    command.args(["-c", "exec 3>&1 >/dev/null 2>&1; exec \"$@\"", "sh"]).arg(find("strace")).arg("-f").args(options);
    let mut run = Running::start(command.arg(helper).args(words).stdin(Stdio::null()).stdout(Stdio::piped()));
    // A pipe has room for the report.
    let status = run.end().code().expect("an exit status");
    (status, records(&run.rest()))
}

/// Lets every system call of the helper fail, each by itself. `judge` says what is wrong with its exit status and its report.
fn every_call_of_the_helper_fails(
    helper: &Path,
    words: &[&str],
    judge: impl Fn(i32, &[(u32, i32)]) -> Option<&'static str>,
) {
    let log = tempfile::NamedTempFile::new().unwrap();
    let log = log.path().to_str().unwrap();
    let (status, report) = traced_helper(&["-o", log], helper, words);
    assert_eq!(judge(status, &report), None, "undisturbed: {status} {report:?}");
    let points = all_points(&fs::read_to_string(log).unwrap());
    // execve(2) is strace's own, too.
    let points: Vec<_> = points.into_iter().filter(|point| !["execve", "exit_group"].contains(&&*point.call)).collect();
    let mut wrong = Vec::new();
    for Point { call, nth } in &points {
        for error in ["EIO", "EINTR", "EAGAIN"] {
            let inject = format!("inject={call}:error={error}:when={nth}");
            let (status, report) = traced_helper(&["-o", "/dev/null", "-e", &inject], helper, words);
            if let Some(what) = judge(status, &report) {
                wrong.push(format!("{error} at the {nth}. {call} of {words:?}: {what}: {status} {report:?}"));
            }
        }
    }
    eprintln!("{} points of {words:?}", points.len());
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// The command is the helper, which makes no system call but to end when it gets no words: its own never fail. A result without a
/// report is none; and the report of an end is never one of another end.
#[test]
fn of_an_init() {
    let fixture = Fixture::new();
    let helper = helper(&fixture);
    let command = helper.to_str().unwrap();
    every_call_of_the_helper_fails(&helper, &["init", "1", command], |status, report| {
        let of = |kind| report.iter().find(|(other, _)| *other == kind).map(|(_, value)| *value);
        match (of(NOT_EXECUTED), of(COMMAND_ENDED)) {
            (Some(errno), _) if errno > 0 => None,
            (None, Some(ended)) if ended == 125 << 8 && status == 125 => None,
            (None, None) => None,
            _ => Some("a false result"),
        }
    });
    every_call_of_the_helper_fails(&helper, &["exec", "1", command], |status, report| {
        let is_ready = report.iter().any(|(kind, _)| *kind == READY);
        let is_told = report.iter().any(|(kind, errno)| *kind == NOT_EXECUTED && *errno > 0);
        (is_ready && !is_told && status != 125).then_some("a false result")
    });
}

#[test]
fn of_a_keeper() {
    let fixture = Fixture::new();
    let helper = helper(&fixture);
    let program = helper.to_str().unwrap();
    // Of a process that is there, but none that it could wait for.
    let pid_file = fixture.path().join("pid");
    fs::write(&pid_file, std::process::id().to_string()).unwrap();
    let pid_file = pid_file.to_str().unwrap();
    let judge = |status: i32, report: &[(u32, i32)]| {
        let has = |kind| report.iter().any(|(other, _)| *other == kind);
        match (has(CONTAINER_ENDED), has(RUNTIME_ENDED) || has(RUNTIME_NOT_EXECUTED)) {
            (true, _) => Some("a container that is none"),
            // Without any report the runtime counts as killed.
            (false, false) if status == 0 && !report.is_empty() => Some("no end of the runtime"),
            _ => None,
        }
    };
    for runtime in [program, "/no/such", "/bin/true"] {
        let words = ["keeper", pid_file, runtime, "runtime", "", program, "last"];
        every_call_of_the_helper_fails(&helper, &words, judge);
    }
}
