//! Kills the processes of a run. Afterwards no process lives and nothing is mounted, and a sweep
//! removes the rest. `faults` has the same runs with failing calls.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use integration_tests::processes::{children, descendants, name, state};
use integration_tests::strace::Disturbance;
use integration_tests::{Fixture, KnownRun, RUNTIMES, Reported, stdout};
use layer::Layer;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};

/// The kills are spread over this time, from the start of the runtime into the command.
pub(crate) const SPAN: Duration = Duration::from_millis(80);

/// Returns the number of kills in each test: `LAYERED_KILLS`, by default 40.
pub(crate) fn count() -> u32 {
    std::env::var("LAYERED_KILLS").map_or(40, |count| count.parse().expect("LAYERED_KILLS is a number"))
}

fn start(fixture: &Fixture, layers: &[Layer], script: &str) -> Child {
    command(fixture, RUNTIMES[0], layers, script).spawn().unwrap()
}

fn command(fixture: &Fixture, runtime: &str, layers: &[Layer], script: &str) -> Command {
    let mut command = fixture.layered_run();
    command.args(["--runtime", runtime]);
    for layer in layers {
        command.arg("--layer").arg(layer.path());
    }
    command.args(["--", "sh", "-c", script]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

/// Waits for the n-th moment: for the command's first line if n is a multiple of four, otherwise
/// for the keeper and then for a while.
fn until_moment(run: &mut Child, n: u32) {
    if n % 4 == 0 {
        BufReader::new(run.stdout.as_mut().unwrap()).read_line(&mut String::new()).unwrap();
        return;
    }
    while descendants(run.id()).is_empty() {
        assert_eq!(run.try_wait().unwrap(), None, "the run ended without a keeper");
        std::thread::yield_now();
    }
    std::thread::sleep(SPAN * n / count());
}

/// Returns `count` of `all`, evenly spread.
fn spread<T>(all: &[T], count: usize) -> impl Iterator<Item = &T> {
    (0..count.min(all.len())).map(move |n| &all[n * all.len() / count.min(all.len())])
}

#[test]
fn a_killed_run_takes_its_container_with_it() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(30);
    for n in 0..count() {
        // The first process has left its parent, its session and its process group.
        let mut run = start(&fixture, &layers, "(setsid sleep 1000 &); echo begun; sleep 1000 & sleep 1000");
        until_moment(&mut run, n);
        run.kill().unwrap();
        run.wait().unwrap();
        fixture.assert_nothing_lives();
    }
    fixture.sweep();
    fixture.assert_clean();
}

#[test]
fn a_run_killed_at_any_of_its_system_calls_leaves_nothing() {
    for run in [KnownRun::stacking as fn() -> KnownRun, KnownRun::merging] {
        let run = run();
        let points = run.program().points();
        run.remove_upper();
        let points: Vec<_> = spread(&points, count() as usize / 2).collect();
        let mut killed = 0;
        for point in &points {
            let output = run.program().disturbed(point, Disturbance::Kill);
            run.fixture.assert_nothing_lives();
            if output.status.signal() == Some(9) {
                killed += 1;
                // The upper is complete, or it does not exist.
                run.remove_upper();
                run.fixture.sweep();
                assert_eq!(run.fixture.difference(), "", "{point:?}");
            } else {
                // The killed process was the child that becomes the runtime, or the point was not
                // reached, because the threads of a merge divide the work differently each time.
                assert_eq!(run.wrong(&output, Reported::Always), [""; 0], "{point:?}");
            }
        }
        eprintln!("{killed} of {} points were met", points.len());
        // The threads of a merge divide the work differently each time, so some points are not
        // reached.
        assert!(killed * 2 > points.len(), "{killed} of {} were killed", points.len());
    }
}

/// Kills a process unless it has ended. A zombie accepts every signal, so this stops the process
/// first, which is possible only if it lives. Returns whether the process was killed.
fn kill_if_alive(pid: u32, pidfd: impl AsFd) -> bool {
    use rustix::process::Signal;
    loop {
        // The stop is repeated because the kernel drops it when a thread of a process with several
        // threads, such as runc, executes a program.
        if pidfd_send_signal(&pidfd, Signal::STOP).is_err() {
            return false;
        }
        match state(pid) {
            Some('T' | 't') => return pidfd_send_signal(&pidfd, Signal::KILL).is_ok(),
            Some('Z' | 'X') | None => return false,
            Some(_) => std::thread::yield_now(),
        }
    }
}

/// Kills, in each run, one of the processes that look after it, or the command, at varying moments.
#[test]
fn killing_any_process_of_a_run_leaves_nothing() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(3);
    let mut killed = BTreeMap::new();
    for n in 0..count() {
        let runtime = RUNTIMES[n as usize % RUNTIMES.len()];
        let script = "(setsid sleep 1000 &); sleep 1000 & echo begun; cat; exit 0";
        let mut run = command(&fixture, runtime, &layers, script).stdin(Stdio::piped()).spawn().unwrap();
        until_moment(&mut run, n);
        let name = loop {
            let processes = descendants(run.id());
            assert!(!processes.is_empty(), "the run ended before the kill");
            // Every kill selects another of the processes that exist at that moment.
            let victim = processes[(n / 4) as usize % processes.len()];
            // The process may have ended, and its PID may belong to another process by now. So the
            // check below repeats after the open.
            let Ok(pidfd) = pidfd_open(rustix::process::Pid::from_raw(victim as i32).unwrap(), PidfdFlags::empty())
            else {
                continue;
            };
            let name = name(victim);
            if descendants(run.id()).contains(&victim) && kill_if_alive(victim, &pidfd) {
                break name;
            }
        };
        *killed.entry(name.clone()).or_insert(0) += 1;
        // Without the keeper or the init, the run has no result. Any other process may have done
        // its work already.
        let statuses = match &*name {
            "layered-keeper" => &[125][..],
            "layered-init" => &[125, 137],
            _ => &[0, 125, 137],
        };
        // The end of its input lets a surviving command end.
        let input = run.stdin.take().filter(|_| !statuses.contains(&0));
        let status = run.wait().unwrap();
        assert!(status.code().is_some_and(|code| statuses.contains(&code)), "kill {n} of {name}: {status}");
        drop(input);
        // Nothing is left even without a sweep.
        assert_eq!(fixture.difference(), "", "kill {n} of {name}");
    }
    eprintln!("killed: {killed:?}");
}

#[test]
fn a_killed_keeper_takes_its_container_with_it() {
    let fixture = Fixture::new();
    // This process also has children of other tests. The keeper is the child whose bundle is in
    // this directory.
    let bundles = fixture.scratch().canonicalize().unwrap();
    let options = fixture.options().stdout(container::Output::Callback(Box::new(move |_| {
        let is_keeper = |pid: &&u32| {
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&arguments).contains(&format!("--bundle\0{}/", bundles.display()))
        };
        let children = children(std::process::id());
        let keeper = children.iter().find(is_keeper).expect("the keeper runs the command");
        kill(Pid::from_raw(*keeper as i32), Signal::SIGKILL).unwrap();
    })));
    let template = integration_tests::shell("(setsid sleep 1000 &); echo begun; sleep 1000").build().unwrap();
    let error = runner::run(&fixture.base(), &[], &template, options).unwrap_err();
    assert_eq!((error.phase(), error.left()), (Some(runner::Phase::RuncRun), None), "{error}");
    assert!(error.to_string().contains("it was killed"), "{error}");
    fixture.assert_clean();
}

#[test]
fn a_daemon_does_not_outlive_the_run() {
    let fixture = Fixture::new();
    let report = fixture.run(&[], "(setsid sleep 1000 &); echo done");
    assert_eq!(stdout(&report), "done\n");
    drop(report);
    fixture.assert_clean();
}

#[test]
fn a_sweep_leaves_live_runs_and_results_alone() {
    let fixture = Fixture::new();
    let report = fixture.run(&[], "echo new > /new");
    assert!(fixture.sweep().ends_with("dead runs removed: 0, live runs: 1\n"));
    let kept = report.upper.keep();
    assert!(fixture.sweep().ends_with("dead runs removed: 0, live runs: 0\n"));
    assert_eq!(fs::read(kept.join("new")).unwrap(), b"new\n");
    fs::remove_dir_all(kept.parent().unwrap()).unwrap();
}
