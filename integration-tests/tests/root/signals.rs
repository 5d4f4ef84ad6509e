//! Signals that `layered` gets during a run: it passes each on to the command once, as users of
//! other programs expect. Keys at a terminal are tested in module `terminal`.

use std::fs::OpenOptions;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use container::{Runtime, Signals, Status};
use integration_tests::processes::Running;
use integration_tests::{Fixture, RUNTIMES, WAITS, find, layered};
use nix::sys::signal::Signal::{self, *};

/// Signals that `layered` passes on without any other effect.
const PASSED_ON: [Signal; 6] = [SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGALRM, SIGWINCH];

/// Signals that also ask the command to end.
const ENDING: [Signal; 2] = [SIGINT, SIGTERM];

fn start(command: &mut Command) -> Running {
    Running::start(command.stdin(Stdio::null()).stdout(Stdio::piped()))
}

/// Returns the name of a signal in a shell.
fn name(signal: Signal) -> &'static str {
    signal.as_str().trim_start_matches("SIG")
}

#[test]
fn each_signal_reaches_the_command_once() {
    let fixture = Fixture::new();
    let traps: String = PASSED_ON.iter().map(|signal| format!("trap 'echo {0}' {0}; ", name(*signal))).collect();
    for runtime in RUNTIMES {
        for init in [&[][..], &["--no-init"]] {
            let options = [&["--runtime", runtime, "--grace", "1h"], init].concat();
            for ending in ENDING {
                let script = format!("{traps} trap 'echo {0}; exit 7' {0}; {WAITS}", name(ending));
                let mut run = start(&mut fixture.layered_script(&options, &script));
                assert_eq!(run.line(), "begun");
                for signal in PASSED_ON.into_iter().chain([SIGUSR1]) {
                    run.send(signal);
                    assert_eq!(run.line(), name(signal), "{runtime} {init:?}");
                }
                // The command decides how it ends.
                run.send(ending);
                assert_eq!(run.result(), (7, format!("{}\n", name(ending))), "{runtime} {init:?}");
            }
        }
    }
}

#[test]
fn each_signal_ends_a_command_without_a_handler() {
    let fixture = Fixture::new();
    for runtime in RUNTIMES {
        for signal in PASSED_ON.into_iter().chain(ENDING).filter(|signal| *signal != SIGWINCH) {
            // This is not a shell, because a shell has its own handlers until it executes another
            // program.
            let mut layered = fixture.layered_run();
            let mut run = start(layered.args(["--runtime", runtime, "--grace", "1h", "--", "busybox", "yes"]));
            assert_eq!(run.line(), "y");
            run.send(signal);
            assert_eq!(run.end().code(), Some(128 + signal as i32), "{runtime} {signal}");
        }
    }
}

#[test]
fn a_signal_during_the_start_of_the_runtime_reaches_the_command() {
    let fixture = Fixture::new();
    for runtime in RUNTIMES {
        let (waiting, fifo) = fixture.runtime_that_waits(runtime);
        for signal in PASSED_ON.into_iter().chain(ENDING) {
            let mut layered = fixture.layered_run();
            layered.arg("--runtime").arg(&waiting).args(["--grace", "1h", "--", "sleep", "1000"]);
            let mut run = start(&mut layered);
            // The open returns once the runtime has opened the FIFO, too.
            let mut fifo = OpenOptions::new().write(true).open(&fifo).unwrap();
            run.send(signal);
            if signal == SIGWINCH {
                // SIGWINCH ends nothing, so this signal ends the run.
                run.send(SIGHUP);
            }
            fifo.write_all(b"\n").unwrap();
            let expected = 128 + if signal == SIGWINCH { SIGHUP } else { signal } as i32;
            assert_eq!(run.result(), (expected, String::new()), "{runtime} {signal}");
        }
    }
}

#[test]
fn a_signal_before_the_runtime_reaches_the_command() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(6);
    for runtime in RUNTIMES {
        for signal in PASSED_ON.into_iter().filter(|signal| *signal != SIGWINCH) {
            let signals = Signals::new().unwrap();
            signals.send(signal as i32);
            // These numbers are not signals, or are signals that a command cannot get this way.
            for other in [0, -1, 65, 1000, SIGKILL as i32, SIGSTOP as i32, SIGCHLD as i32] {
                signals.send(other);
            }
            // The run first merges most of the layers.
            let options = fixture.options().runtime(Runtime::new(runtime)).max_lowers(3).signals(signals);
            let report = fixture.run_with(&layers, "exec sleep 1000", options);
            assert_eq!(report.status, Status::Signaled(signal as i32), "{runtime}");
            assert!(report.merged.is_some());
        }
    }
}

#[test]
fn another_thread_can_send_signals_to_the_command() {
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
        // A signal that is passed on does not end the run itself, not even SIGTERM.
        let script = format!("trap 'echo heard' USR1; trap 'exit 9' TERM; {WAITS}");
        let report = fixture.run_with(&[], &script, options.timeout(Duration::from_secs(600)));
        assert_eq!(report.status, Status::Exited(9), "{runtime}");
        drop(report);
        assert_eq!(String::from_utf8(said).unwrap(), "begun\nheard\n", "{runtime}");
    }
}

#[test]
fn signals_ignored_at_the_start_stay_ignored() {
    let fixture = Fixture::new();
    for runtime in RUNTIMES {
        for signal in PASSED_ON.into_iter().chain(ENDING) {
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

/// A stopped command receives signals only after it was continued.
#[test]
fn a_stopped_command_gets_its_signals_when_continued() {
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
