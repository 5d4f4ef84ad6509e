//! Signals that `layered` gets during a run, as users of other programs expect: the command gets them, once.

use std::fs::OpenOptions;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use container::{Runtime, Signals, Status};
use integration_tests::processes::Running;
use integration_tests::{Fixture, RUNTIMES, find, layered, write_script};
use nix::sys::signal::Signal::{self, *};

/// What the command gets, and nothing else.
const HANDED_ON: [Signal; 6] = [SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGALRM, SIGWINCH];

/// What asks the command to end.
const ENDING: [Signal; 2] = [SIGINT, SIGTERM];

fn start(command: &mut Command) -> Running {
    Running::start(command.stdin(Stdio::null()).stdout(Stdio::piped()))
}

/// The name that a shell knows it by.
fn name(signal: Signal) -> &'static str {
    signal.as_str().trim_start_matches("SIG")
}

/// Waits for signals: the shell runs the traps between two `wait`s.
const WAITS: &str = "echo begun; sleep 1000 & while :; do wait; done";

#[test]
fn each_reaches_the_command_once() {
    let fixture = Fixture::new();
    let traps: String = HANDED_ON.iter().map(|signal| format!("trap 'echo {0}' {0}; ", name(*signal))).collect();
    for runtime in RUNTIMES {
        for init in [&[][..], &["--no-init"]] {
            let options = [&["--runtime", runtime, "--grace", "1h"], init].concat();
            for ending in ENDING {
                let script = format!("{traps} trap 'echo {0}; exit 7' {0}; {WAITS}", name(ending));
                let mut run = start(&mut fixture.layered_script(&options, &script));
                assert_eq!(run.line(), "begun");
                for signal in HANDED_ON.into_iter().chain([SIGUSR1]) {
                    run.send(signal);
                    assert_eq!(run.line(), name(signal), "{runtime} {init:?}");
                }
                // It ends as it sees fit.
                run.send(ending);
                assert_eq!(run.result(), (7, format!("{}\n", name(ending))), "{runtime} {init:?}");
            }
        }
    }
}

#[test]
fn a_command_without_a_handler_ends_by_them() {
    let fixture = Fixture::new();
    for runtime in RUNTIMES {
        for signal in HANDED_ON.into_iter().chain(ENDING).filter(|signal| *signal != SIGWINCH) {
            // No shell, which has handlers of its own until it executes another program.
            let mut layered = fixture.layered_run();
            let mut run = start(layered.args(["--runtime", runtime, "--grace", "1h", "--", "busybox", "yes"]));
            assert_eq!(run.line(), "y");
            run.send(signal);
            assert_eq!(run.end().code(), Some(128 + signal as i32), "{runtime} {signal}");
        }
    }
}

#[test]
fn one_that_comes_while_the_runtime_starts_waits_for_the_command() {
    let fixture = Fixture::new();
    let fifo = fixture.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for runtime in RUNTIMES {
        // It says that it has begun, and goes on when it is told to.
        let waiting = fixture.path().join(format!("{runtime}-that-waits"));
        let wait = format!("case \" $* \" in *' run '*) read line < {} ;; esac", fifo.display());
        write_script(&waiting, &format!("#!/bin/sh\n{wait}\nexec {} \"$@\"\n", find(runtime).display()));
        for signal in HANDED_ON.into_iter().chain(ENDING) {
            let mut layered = fixture.layered_run();
            layered.arg("--runtime").arg(&waiting).args(["--grace", "1h", "--", "sleep", "1000"]);
            let mut run = start(&mut layered);
            // When this is open, the runtime has opened it, too.
            let mut fifo = OpenOptions::new().write(true).open(&fifo).unwrap();
            run.send(signal);
            if signal == SIGWINCH {
                // It ends nothing.
                run.send(SIGHUP);
            }
            fifo.write_all(b"\n").unwrap();
            let expected = 128 + if signal == SIGWINCH { SIGHUP } else { signal } as i32;
            assert_eq!(run.result(), (expected, String::new()), "{runtime} {signal}");
        }
    }
}

#[test]
fn one_that_comes_before_the_runtime_waits_for_the_command() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(6);
    for runtime in RUNTIMES {
        for signal in HANDED_ON.into_iter().filter(|signal| *signal != SIGWINCH) {
            let signals = Signals::new().unwrap();
            signals.send(signal as i32);
            // What is no signal, or none of the command's.
            for other in [0, -1, 65, 1000, SIGKILL as i32, SIGSTOP as i32, SIGCHLD as i32] {
                signals.send(other);
            }
            // Most of the layers are merged first.
            let options = fixture.options().runtime(Runtime::new(runtime)).max_lowers(3).signals(signals);
            let report = fixture.run_with(&layers, "exec sleep 1000", options);
            assert_eq!(report.status, Status::Signaled(signal as i32), "{runtime}");
            assert!(report.merged.is_some());
        }
    }
}

#[test]
fn signals_from_a_thread_while_the_command_runs() {
    let fixture = Fixture::new();
    for runtime in RUNTIMES {
        let signals = Signals::new().unwrap();
        let others = signals.clone();
        let mut said = Vec::new();
        let output = container::Output::lines(|line| {
            others.send(if said.is_empty() { SIGUSR1 } else { SIGTERM } as i32);
            said.extend_from_slice(line);
        });
        let options = fixture.options().runtime(Runtime::new(runtime)).signals(signals).stdout(output);
        // A signal ends nothing that goes on, not even this one.
        let script = format!("trap 'echo heard' USR1; trap 'exit 9' TERM; {WAITS}");
        let report = fixture.run_with(&[], &script, options.timeout(Duration::from_secs(600)));
        assert_eq!(report.status, Status::Exited(9), "{runtime}");
        drop(report);
        assert_eq!(String::from_utf8(said).unwrap(), "begun\nheard\n", "{runtime}");
    }
}

#[test]
fn what_layered_was_started_to_ignore_is_ignored() {
    let fixture = Fixture::new();
    for runtime in RUNTIMES {
        for signal in HANDED_ON.into_iter().chain(ENDING) {
            let run = fixture.layered_script(&["--runtime", runtime, "--grace", "1h"], "echo begun; read line; exit 7");
            let mut shell = Command::new(find("sh"));
            shell.args(["-c", "trap '' $0; exec \"$@\"", name(signal)]);
            shell.arg(layered().get_program()).args(run.get_args());
            let mut run = Running::start(shell.stdin(Stdio::piped()).stdout(Stdio::piped()));
            assert_eq!(run.line(), "begun");
            run.send(signal);
            run.input().write_all(b"\n").unwrap();
            assert_eq!(run.result(), (7, String::new()), "{runtime} {signal}");
        }
    }
}

/// It does not hear them itself until it goes on; then it does.
#[test]
fn a_command_that_is_stopped() {
    let fixture = Fixture::new();
    for runtime in RUNTIMES {
        let script = "trap 'echo heard; exit 7' USR1; echo begun; kill -STOP $$; while :; do :; done";
        let mut run = start(&mut fixture.layered_script(&["--runtime", runtime], script));
        assert_eq!(run.line(), "begun");
        let is_stopped = |pid: &u32| integration_tests::processes::state(*pid) == Some('T');
        let command = loop {
            match integration_tests::processes::descendants(run.pid()).into_iter().find(is_stopped) {
                Some(command) => break command,
                None => std::thread::yield_now(),
            }
        };
        run.send(SIGUSR1);
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(command as i32), SIGCONT).unwrap();
        assert_eq!(run.result(), (7, "heard\n".into()), "{runtime}");

        let mut run =
            start(&mut fixture.layered_script(&["--runtime", runtime, "--grace", "10ms"], "echo begun; kill -STOP $$"));
        assert_eq!(run.line(), "begun");
        run.send(SIGTERM);
        assert_eq!(run.result(), (143, String::new()), "{runtime}");
    }
}
