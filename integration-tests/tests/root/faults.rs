//! Injects errors into every system call of a run and of the helper, and keeps mounts busy. The run
//! must give the right result, or one line that names the failure and what is left. `kills` has the
//! same runs, killed.

use std::fs::{self, File};
use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use container::Output;
use integration_tests::processes::{Running, descendants, name};
use integration_tests::strace::{Disturbance, Point, all_points};
use integration_tests::{Fixture, KnownRun, Reported, copy_program, find, shell, until_it_waits};
use runner::{Phase, Report};

const ERRORS: [&str; 4] = ["EIO", "ENOSPC", "ENOMEM", "EINTR"];

/// Returns the number of cases to try: `LAYERED_FAULTS`, `all` for all of them, by default 250.
fn count() -> usize {
    match std::env::var("LAYERED_FAULTS").as_deref() {
        Err(_) => 250,
        Ok("all") => usize::MAX,
        Ok(count) => count.parse().expect("LAYERED_FAULTS is a number, or `all`"),
    }
}

/// Returns the seed that selects the cases: `LAYERED_SEED`, by default a random number.
fn seed() -> u64 {
    let any = || RandomState::new().build_hasher().finish();
    std::env::var("LAYERED_SEED").map_or_else(|_| any(), |seed| seed.parse().expect("LAYERED_SEED is a number"))
}

/// Fails calls of a run, one per run, and checks the result of each run.
fn fail_every_call(run: &KnownRun) {
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
        let reported = if point.call == "write" { Reported::IfPossible } else { Reported::Always };
        wrong.extend(run.wrong(&output, reported).into_iter().map(|what| format!("{error} at {point:?}: {what}")));
    }
    eprintln!("{} points, {all} cases, {} of them tried with seed {seed}", points.len(), cases.len());
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// Performs a run during which a file of the overlay is open. `holder` gets the file and the thread
/// that will unmount.
fn busy(fixture: &Fixture, holder: impl FnOnce(File, rustix::thread::Pid) + Send + 'static) -> runner::Result<Report> {
    let scratch = fixture.scratch();
    let mut holder = Some(holder);
    // The runner calls this on the thread that has mounted the overlay and will unmount it.
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
fn an_overlay_that_stays_busy_is_reported_and_kept() {
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
fn an_overlay_that_is_briefly_busy_is_unmounted() {
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
fn every_failing_syscall_is_reported_when_stacking() {
    fail_every_call(&KnownRun::stacking());
}

#[test]
fn every_failing_syscall_is_reported_when_merging() {
    fail_every_call(&KnownRun::merging());
}

/// Copies the helper program, which a keeper executes, to a file.
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

/// Decodes the helper's report into kinds and values. For a path and for the beginning of a file,
/// the value is a length.
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

// These are the kinds in the helper's `record.rs`.
const RUNTIME_NOT_EXECUTED: u32 = 1;
const RUNTIME_ENDED: u32 = 2;
const READY: u32 = 3;
const NOT_EXECUTED: u32 = 4;
const PATH: u32 = 5;
const HEAD: u32 = 6;
const COMMAND_ENDED: u32 = 7;
const CONTAINER_ENDED: u32 = 8;

/// Runs the helper under strace with `options`. Returns its exit status and its report.
fn traced_helper(options: &[&str], helper: &Path, words: &[&str]) -> (i32, Vec<(u32, i32)>) {
    let mut command = Command::new("sh");
    // strace opens its own files at other descriptors.
    command.args(["-c", "exec 3>&1 >/dev/null 2>&1; exec \"$@\"", "sh"]).arg(find("strace")).arg("-f").args(options);
    let mut run = Running::start(command.arg(helper).args(words).stdin(Stdio::null()).stdout(Stdio::piped()));
    // The report fits into the pipe's buffer.
    let status = run.end().code().expect("an exit status");
    (status, records(&run.rest()))
}

/// Fails every system call of the helper, one per execution. `judge` describes what is wrong with
/// an exit status and a report.
fn fail_every_call_of_the_helper(
    helper: &Path,
    words: &[&str],
    judge: impl Fn(i32, &[(u32, i32)]) -> Option<&'static str>,
) {
    let log = tempfile::NamedTempFile::new().unwrap();
    let log = log.path().to_str().unwrap();
    let (status, report) = traced_helper(&["-o", log], helper, words);
    assert_eq!(judge(status, &report), None, "undisturbed: {status} {report:?}");
    let points = all_points(&fs::read_to_string(log).unwrap());
    // strace itself calls execve(2), too.
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

/// The command is the helper itself: without arguments it makes no system call except to exit, so
/// its own calls never fail. Without a report there must be no result, and a report must never
/// claim another end than the real one.
#[test]
fn every_failing_syscall_of_an_init_is_reported() {
    let fixture = Fixture::new();
    let helper = helper(&fixture);
    let command = helper.to_str().unwrap();
    fail_every_call_of_the_helper(&helper, &["init", "1", command], |status, report| {
        let of = |kind| report.iter().find(|(other, _)| *other == kind).map(|(_, value)| *value);
        match (of(NOT_EXECUTED), of(COMMAND_ENDED)) {
            (Some(errno), _) if errno > 0 => None,
            (None, Some(ended)) if ended == 125 << 8 && status == 125 => None,
            (None, None) => None,
            _ => Some("a false result"),
        }
    });
    fail_every_call_of_the_helper(&helper, &["exec", "1", command], |status, report| {
        let is_ready = report.iter().any(|(kind, _)| *kind == READY);
        let is_reported = report.iter().any(|(kind, errno)| *kind == NOT_EXECUTED && *errno > 0);
        (is_ready && !is_reported && status != 125).then_some("a false result")
    });
}

#[test]
fn every_failing_syscall_of_a_keeper_is_reported() {
    let fixture = Fixture::new();
    let helper = helper(&fixture);
    let program = helper.to_str().unwrap();
    // The process with this PID exists, but the helper cannot wait for it.
    let pid_file = fixture.path().join("pid");
    fs::write(&pid_file, std::process::id().to_string()).unwrap();
    let pid_file = pid_file.to_str().unwrap();
    let judge = |status: i32, report: &[(u32, i32)]| {
        let has = |kind| report.iter().any(|(other, _)| *other == kind);
        match (has(CONTAINER_ENDED), has(RUNTIME_ENDED) || has(RUNTIME_NOT_EXECUTED)) {
            (true, _) => Some("a container that does not exist"),
            // Without any report, the runner treats the runtime as killed.
            (false, false) if status == 0 && !report.is_empty() => Some("no end of the runtime"),
            _ => None,
        }
    };
    for runtime in [program, "/no/such", "/bin/true"] {
        let words = ["keeper", pid_file, runtime, "runtime", "", program, "last"];
        fail_every_call_of_the_helper(&helper, &words, judge);
    }
}
