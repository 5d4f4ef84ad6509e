//! `layered run`: signals, limits and timeouts that end the command, and the terminal afterwards.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use integration_tests::{Fixture, find, layered};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::{script, text};

#[test]
fn a_signal_ends_the_command_and_leaves_nothing() {
    let fixture = Fixture::new();
    for (signal, status) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130), (Signal::SIGHUP, 129)] {
        let mut child = fixture
            .layered_run()
            .args(["--grace", "10ms", "--", "sh", "-c", "echo begun; sleep 1000"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(status));
        fixture.assert_clean();
    }
}

#[test]
fn a_second_signal_kills_immediately() {
    let fixture = Fixture::new();
    let stubborn = "trap 'echo no' TERM; echo begun; while :; do sleep 0.01; done";
    let mut child = fixture
        .layered_run()
        .args(["--grace", "1h", "--", "sh", "-c", stubborn])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
    for (line, signal) in [("begun", Signal::SIGTERM), ("no", Signal::SIGINT)] {
        assert_eq!(said.next().unwrap().unwrap(), line);
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
    }
    assert_eq!(child.wait().unwrap().code(), Some(143));
    fixture.assert_clean();
}

#[test]
fn the_cause_of_the_end_is_reported() {
    let fixture = Fixture::new();
    let (log, json) = (fixture.path().join("log"), fixture.path().join("report.json"));
    let paths = ["--output", log.to_str().unwrap(), "--json", json.to_str().unwrap()];
    for (options, command, expected, ending, said) in [
        (["--memory", "32m"], "exec dd if=/dev/zero of=/dev/null bs=100M count=1", 137, "out_of_memory", "--memory"),
        (["--output-limit", "64k"], "while :; do echo 0123456789; done", 143, "output_limit", "--output-limit"),
    ] {
        let options = [&paths[..], &["--grace", "50ms"], &options].concat();
        let (status, _, stderr) = script(&fixture, &options, command);
        assert_eq!((status, stderr.lines().count()), (expected, 1), "{stderr}");
        assert!(stderr.contains(said), "{stderr}");
        let report: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
        assert_eq!(report["status"], ending);
    }
    // The timeouts increase until the command begins before one.
    let upper = fixture.path().join("upper");
    let paths = [&paths[..], &["--upper", upper.to_str().unwrap(), "--grace", "50ms"]].concat();
    for timeout in ["500ms", "5s", "50s", "500s"] {
        let options = [&paths[..], &["--timeout", timeout]].concat();
        let (status, _, stderr) = script(&fixture, &options, "echo > /begun; sleep 1000");
        assert_eq!((status, &*stderr), (124, ""));
        let report: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
        assert_eq!(report["status"], "timed_out");
        if upper.join("begun").exists() {
            assert_eq!(fs::metadata(&log).unwrap().len(), 0);
            return;
        }
        fs::remove_dir_all(&upper).unwrap();
    }
    panic!("the command never begins");
}

/// script(1) provides the terminal.
#[test]
fn the_terminal_is_passed_to_the_command_and_restored() {
    let fixture = Fixture::new();
    find("script");
    let run = format!(
        "{} run --base {} --scratch {}",
        layered().get_program().to_str().unwrap(),
        fixture.base().path().display(),
        fixture.scratch().display()
    );
    let fifo = fixture.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let fifo = fifo.display();
    let session = format!(
        "exec 3<&0; stty rows 40 cols 101; before=$(stty -g)
         {run} --tty -- sh -c 'stty size; [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo $TERM; exit 5'; echo status $?
         [ \"$before\" = \"$(stty -g)\" ] && echo as before
         # Killed, the runtime cannot tidy up.
         {run} --tty --grace 10ms --mount type=bind,source={fifo},target=/fifo -- \\
             sh -c 'echo begun > /fifo; sleep 1000' <&3 &
         read begun <{fifo}; kill -TERM $!; wait $!; echo status $?
         [ \"$before\" = \"$(stty -g)\" ] && echo as before"
    );
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &session, "/dev/null"]);
    let mut script = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // The keyboard stays open without input. At its end, script(1) would type an end of file.
    let _keyboard = script.stdin.take();
    let output = script.wait_with_output().unwrap();
    let stdout = text(&output.stdout);
    assert!(output.status.success(), "{stdout}");
    let lines: Vec<_> = stdout.lines().map(str::trim_end).collect();
    assert_eq!(lines, ["40 101", "xterm", "status 5", "as before", "status 143", "as before"], "{stdout}");
}
