//! What is left of a run whose process is killed: nothing that lives, nothing that is mounted, and after a sweep nothing at all.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use integration_tests::{Fixture, Traces, layered, stdout};
use layer::Layer;

/// Moments over which the kills are spread: from before the first phase into the command.
const SPAN: Duration = Duration::from_millis(120);

/// `LAYERED_KILLS` of them, 40 if that is not set.
fn count() -> u32 {
    std::env::var("LAYERED_KILLS").map_or(40, |count| count.parse().expect("LAYERED_KILLS is a number"))
}

fn start(fixture: &Fixture, layers: &[Layer], script: &str) -> std::process::Child {
    let mut command = layered();
    command.args(["run", "--base"]).arg(fixture.base().path()).arg("--scratch").arg(fixture.scratch());
    for layer in layers {
        command.arg("--layer").arg(layer.path());
    }
    command.args(["--", "sh", "-c", script]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

/// The kernel ends a PID namespace by itself, and nobody outside is told when it has.
fn until_nothing_lives() -> Traces {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let traces = Traces::now();
        // A process that is ending has its mounts for a moment longer.
        if !(traces.lives() || traces.mounts()) || Instant::now() > deadline {
            return traces;
        }
        std::thread::yield_now();
    }
}

fn sweep(fixture: &Fixture) -> String {
    let output = layered().arg("sweep").arg(fixture.scratch()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_killed_run_takes_its_container_with_it() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(30);
    let count = count();
    for n in 0..count {
        // One that has left its parent, its session and its process group.
        let mut run = start(&fixture, &layers, "(setsid sleep 1000 &); sleep 1000 & sleep 1000");
        std::thread::sleep(SPAN * n / count);
        run.kill().unwrap();
        run.wait().unwrap();
        let traces = until_nothing_lives();
        assert!(!traces.lives(), "kill {n}: {traces:?}");
        assert!(!traces.mounts(), "kill {n}: {traces:?}");
    }
    sweep(&fixture);
    fixture.assert_clean();
}

#[test]
fn a_killed_runtime_takes_its_container_with_it() {
    let fixture = Fixture::new();
    let options = fixture.options().stdout(container::Output::Callback(Box::new(|_| {
        // The runtime is a child of this process, of another thread.
        let mine = std::process::id().to_string();
        let status = Command::new("pkill").args(["-KILL", "-P", &mine, "-x", "runc"]).status().unwrap();
        assert!(status.success());
    })));
    let template = integration_tests::shell("(setsid sleep 1000 &); echo begun; sleep 1000").build().unwrap();
    let error = runner::run(&fixture.base(), &[], &template, options).unwrap_err();
    assert_eq!((error.phase(), error.left()), (runner::Phase::RuncRun, None), "{error}");
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
    assert!(sweep(&fixture).ends_with("0 dead runs removed, 1 live ones left alone\n"));
    let kept = report.upper.keep();
    assert!(sweep(&fixture).ends_with("0 dead runs removed, 0 live ones left alone\n"));
    assert_eq!(fs::read(kept.join("new")).unwrap(), b"new\n");
    fs::remove_dir_all(kept.parent().unwrap()).unwrap();
}
