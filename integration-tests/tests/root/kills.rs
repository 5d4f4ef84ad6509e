//! What is left of a run whose process is killed: nothing that lives, nothing that is mounted, and after a sweep nothing at all.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use integration_tests::processes::{children, descendants, name, state};
use integration_tests::strace::Disturbance;
use integration_tests::{Fixture, KnownRun, RUNTIMES, Told, stdout};
use layer::Layer;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};

/// Moments over which the kills are spread, from the start of the runtime into the command.
const SPAN: Duration = Duration::from_millis(80);

/// `LAYERED_KILLS` in each test, 40 if that is not set.
fn count() -> u32 {
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

/// Waits for the n-th moment: once the keeper is there, or, every fourth time, the command, which says so.
fn until_moment(run: &mut Child, n: u32) {
    if n % 4 == 0 {
        BufReader::new(run.stdout.as_mut().unwrap()).read_line(&mut String::new()).unwrap();
        return;
    }
    while descendants(run.id()).is_empty() {
        assert_eq!(run.try_wait().unwrap(), None, "it ended without a keeper");
        std::thread::yield_now();
    }
    std::thread::sleep(SPAN * n / count());
}

/// So many of `all`, evenly spread.
fn spread<T>(all: &[T], count: usize) -> impl Iterator<Item = &T> {
    (0..count.min(all.len())).map(move |n| &all[n * all.len() / count.min(all.len())])
}

#[test]
fn a_killed_run_takes_its_container_with_it() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(30);
    for n in 0..count() {
        // One that has left its parent, its session and its process group.
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
fn a_run_killed_at_its_own_system_calls() {
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
                // It is there whole, or not at all.
                run.remove_upper();
                run.fixture.sweep();
                assert_eq!(run.fixture.difference(), "", "{point:?}");
            } else {
                // That was the child that is to be the runtime, or nobody: a merge's threads share its work as it comes.
                assert_eq!(run.wrong(&output, Told::Always), [""; 0], "{point:?}");
            }
        }
        eprintln!("{killed} of {} points were met", points.len());
        // The threads of a merge share its work as the machine has time for each.
        assert!(killed * 2 > points.len(), "{killed} of {} were killed", points.len());
    }
}

/// Kills a process, unless it ends by itself. One that has ended and was not waited for yet takes every signal, too: so it is
/// stopped first, which only one that lives can be.
fn kill_it_alive(pid: u32, pidfd: impl AsFd) -> bool {
    use rustix::process::Signal;
    loop {
        // Again each time: the kernel drops the stop of a process of several threads, as runc's are, when one of them
        // executes a program.
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

/// Kills one of the processes that look after a run, and the command, one after the other, at any moment.
#[test]
fn any_process_of_a_run_killed_at_any_moment() {
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
            assert!(!processes.is_empty(), "it ended by itself");
            // In every order: each of them, and what they are at that moment.
            let victim = processes[(n / 4) as usize % processes.len()];
            // One may have ended by itself, and its number be another's. What is still there when it is open is meant.
            let Ok(pidfd) = pidfd_open(rustix::process::Pid::from_raw(victim as i32).unwrap(), PidfdFlags::empty())
            else {
                continue;
            };
            let name = name(victim);
            if descendants(run.id()).contains(&victim) && kill_it_alive(victim, &pidfd) {
                break name;
            }
        };
        *killed.entry(name.clone()).or_insert(0) += 1;
        // Without the keeper there is no result, nor without the init. Another process may have done its part.
        let statuses = match &*name {
            "layered-keeper" => &[125][..],
            "layered-init" => &[125, 137],
            _ => &[0, 125, 137],
        };
        // The end of its input lets the command end, if it goes on.
        let input = run.stdin.take().filter(|_| !statuses.contains(&0));
        let status = run.wait().unwrap();
        assert!(status.code().is_some_and(|code| statuses.contains(&code)), "kill {n} of {name}: {status}");
        drop(input);
        // At once, without a sweep.
        assert_eq!(fixture.difference(), "", "kill {n} of {name}");
    }
    eprintln!("killed: {killed:?}");
}

#[test]
fn a_killed_keeper_takes_its_container_with_it() {
    let fixture = Fixture::new();
    // The children of this process are those of other tests, too: the keeper is the one whose bundle lies in this directory.
    let bundles = fixture.scratch().canonicalize().unwrap();
    let options = fixture.options().stdout(container::Output::Callback(Box::new(move |_| {
        let is_keeper = |pid: &&u32| {
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&arguments).contains(&format!("--bundle\0{}/", bundles.display()))
        };
        let children = children(std::process::id());
        let keeper = children.iter().find(is_keeper).expect("it runs the command");
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
    assert!(fixture.sweep().ends_with("0 dead runs removed, 1 live ones left alone\n"));
    let kept = report.upper.keep();
    assert!(fixture.sweep().ends_with("0 dead runs removed, 0 live ones left alone\n"));
    assert_eq!(fs::read(kept.join("new")).unwrap(), b"new\n");
    fs::remove_dir_all(kept.parent().unwrap()).unwrap();
}
