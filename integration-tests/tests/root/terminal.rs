//! Runs with their own terminal (`--tty`), and runs that the caller starts at a terminal. Streams
//! without a terminal of the container are tested in module `streams`.

use std::fs::{self, File};
use std::io::Write;
use std::process::{Command, Stdio};

use integration_tests::processes::Running;
use integration_tests::terminal::Terminal;
use integration_tests::{Fixture, RUNTIMES, WAITS, find};
use nix::sys::signal::Signal;
use rustix::fs::fstat;

/// Returns `layered run --tty` for a shell script, with an hour of grace.
fn with_terminal(fixture: &Fixture, runtime: &str, options: &[&str], script: &str) -> Command {
    fixture.layered_script(&[&["--tty", "--runtime", runtime, "--grace", "1h"], options].concat(), script)
}

/// Control characters of the terminal.
const INTERRUPT: &str = "\x03";
const SUSPEND: &str = "\x1a";
const QUIT: &str = "\x1c";
const END: &str = "\x04";

#[test]
fn the_terminal_has_the_size_of_the_callers() {
    let fixture = Fixture::new();
    for runtime in RUNTIMES {
        for init in [&[][..], &["--no-init"]] {
            let mut terminal = Terminal::new();
            terminal.resize(33, 101);
            let script = format!("stty size; trap 'stty size' WINCH; trap 'exit 7' TERM; {WAITS}");
            let mut run = terminal.start(&with_terminal(&fixture, runtime, init, &script));
            assert_eq!(terminal.until("begun").trim(), "33 101", "{runtime} {init:?}");
            for (rows, columns) in [(44, 55), (5, 1000), (24, 80)] {
                terminal.resize(rows, columns);
                terminal.until(&format!("{rows} {columns}"));
            }
            run.send(Signal::SIGTERM);
            // Every change of the size reached the command once.
            assert_eq!((terminal.rest().trim(), run.end().code()), ("", Some(7)), "{runtime} {init:?}");
        }
    }
}

#[test]
fn a_resize_during_the_start_of_the_runtime_is_not_lost() {
    let fixture = Fixture::new();
    for runtime in RUNTIMES {
        let (waiting, fifo) = fixture.runtime_that_waits(runtime);
        let mut terminal = Terminal::new();
        let script = format!("trap 'stty size' WINCH; trap 'exit 7' TERM; stty size; {WAITS}");
        let run = with_terminal(&fixture, waiting.to_str().unwrap(), &[], &script);
        let mut run = terminal.start(&run);
        let mut fifo = File::options().write(true).open(&fifo).unwrap();
        terminal.resize(33, 101);
        fifo.write_all(b"\n").unwrap();
        // The command starts with this size, or gets it as a change. crun itself sets the size that
        // it was started with.
        terminal.until("33 101");
        run.send(Signal::SIGTERM);
        assert_eq!(run.end().code(), Some(7), "{runtime}");
    }
}

#[test]
fn keys_reach_the_command_as_they_are_pressed() {
    let fixture = Fixture::new();
    for runtime in RUNTIMES {
        let mut terminal = Terminal::new();
        // The shell first reads a line in the terminal's normal mode. Then raw mode lets it read
        // single keys.
        let script = "read line; echo \"line: $line\"; stty raw -echo; echo begun
            for n in 1 2 3 4; do dd bs=1 count=1 2>/dev/null | od -An -tu1; done; stty sane; exit 7";
        let script = script.replace("od -An -tu1", "busybox od -An -tu1");
        let mut run = terminal.start(&with_terminal(&fixture, runtime, &[], &script));
        terminal.press("typde\x7f\x7fed\n");
        terminal.until("line: typed");
        terminal.until("begun");
        assert!(terminal.is_raw(), "{runtime}");
        for (key, number) in [("a", "97"), (INTERRUPT, "3"), (SUSPEND, "26"), ("\r", "13")] {
            terminal.press(key);
            terminal.until(number);
        }
        assert_eq!((terminal.rest().trim(), run.end().code()), ("", Some(7)), "{runtime}");
    }
}

#[test]
fn an_interrupt_reaches_the_command_once() {
    let fixture = Fixture::new();
    for runtime in RUNTIMES {
        for init in [&[][..], &["--no-init"]] {
            let mut terminal = Terminal::new();
            let script =
                format!("n=0; trap 'n=$((n + 1)); echo interrupt $n' INT; trap 'echo $n in all; exit 7' QUIT; {WAITS}");
            let mut run = terminal.start(&with_terminal(&fixture, runtime, init, &script));
            terminal.until("begun");
            for n in 1..=3 {
                terminal.press(INTERRUPT);
                terminal.until(&format!("interrupt {n}"));
            }
            terminal.press(QUIT);
            terminal.until("3 in all");
            assert_eq!(run.end().code(), Some(7), "{runtime} {init:?}");
        }
        // An interrupt ends a command without a handler. A signal that a command sends to its own
        // group reaches it once.
        let mut terminal = Terminal::new();
        let mut run = terminal.start(&with_terminal(&fixture, runtime, &[], "echo begun; exec sleep 1000"));
        terminal.until("begun");
        terminal.press(INTERRUPT);
        assert_eq!(run.end().code(), Some(130), "{runtime}");
        let mut terminal = Terminal::new();
        let script =
            format!("n=0; trap 'n=$((n + 1))' USR1; trap 'echo $n in all; exit 7' USR2; kill -USR1 0; {WAITS}");
        let mut run = terminal.start(&with_terminal(&fixture, runtime, &[], &script));
        terminal.until("begun");
        run.send(Signal::SIGUSR2);
        terminal.until("1 in all");
        assert_eq!(run.end().code(), Some(7), "{runtime}");
    }
}

#[test]
fn ctrl_z_does_not_stop_a_command_that_nothing_can_continue() {
    let fixture = Fixture::new();
    for runtime in RUNTIMES {
        let mut terminal = Terminal::new();
        let mut run = terminal.start(&with_terminal(&fixture, runtime, &[], "echo begun; exec cat"));
        terminal.until("begun");
        terminal.press(SUSPEND);
        terminal.press("line\n");
        terminal.until("line\r\nline");
        terminal.press(END);
        assert_eq!(run.end().code(), Some(0), "{runtime}");
    }
}

#[test]
fn a_shell_inside_controls_its_jobs() {
    let fixture = Fixture::new();
    for runtime in RUNTIMES {
        for init in [&[][..], &["--no-init"]] {
            let mut terminal = Terminal::new();
            let options = [&["--env", "PS1=prompt> "], init].concat();
            let mut layered = fixture.layered_run();
            layered.args(["--tty", "--runtime", runtime]).args(options).args(["--", "sh", "-i"]);
            let mut run = terminal.start(&layered);
            let greeting = terminal.until("prompt> ");
            assert!(!greeting.contains("job control"), "{runtime}: {greeting}");
            // The terminal echoes typed text, so the test waits for text that only the command
            // prints. The shell must read a line before the next is typed.
            terminal.press("echo $((40 + 1)) begun; cat\n");
            terminal.until("41 begun");
            terminal.press("a line\n");
            terminal.until("a line\r\na line");
            terminal.press(SUSPEND);
            terminal.until("Stopped");
            terminal.until("prompt> ");
            terminal.press("echo in $((40 + 2)) front; fg\n");
            terminal.until("in 42 front");
            // `fg` prints this before it waits. A line that is typed earlier would be echoed before
            // it.
            terminal.until("cat\r\n");
            terminal.press("another\n");
            terminal.until("another\r\nanother");
            terminal.press(INTERRUPT);
            terminal.until("prompt> ");
            terminal.press("sleep 0.01 & wait; echo $((60 + 3)) done\n");
            terminal.until("63 done");
            terminal.until("prompt> ");
            terminal.press("exit 7\n");
            assert_eq!(run.end().code(), Some(7), "{runtime} {init:?}");
        }
    }
}

#[test]
fn the_settings_are_restored_after_any_end() {
    let fixture = Fixture::new();
    let endless = "echo begun; exec sleep 1000";
    let deaf = "trap '' TERM; echo begun; while :; do sleep 1; done";
    for runtime in RUNTIMES {
        // (options, script, the signal that ends the run, the exit status)
        let table: [(&[&str], &str, Option<Signal>, i32); 8] = [
            (&[], "exit 7", None, 7),
            (&[], "stty raw -echo; kill -9 $$", None, 137),
            (&["--timeout", "1s"], endless, None, 124),
            (&["--timeout", "1s", "--grace", "10ms"], deaf, None, 124),
            (&[], endless, Some(Signal::SIGTERM), 143),
            (&["--grace", "10ms"], deaf, Some(Signal::SIGTERM), 143),
            (&[], endless, Some(Signal::SIGHUP), 129),
            (&["--no-init"], "exit 7", None, 7),
        ];
        for (options, script, signal, status) in table {
            let mut terminal = Terminal::new();
            let before = format!("{:?}", terminal.settings());
            let options = [&["--tty", "--runtime", runtime], options].concat();
            let mut run = terminal.start(&fixture.layered_script(&options, script));
            if let Some(signal) = signal {
                terminal.until("begun");
                assert!(terminal.is_raw(), "{runtime} {options:?}");
                run.send(signal);
            }
            let shown = terminal.rest();
            assert_eq!(run.end().code(), Some(status), "{runtime} {options:?} {script}: {shown}");
            assert_eq!(format!("{:?}", terminal.settings()), before, "{runtime} {options:?} {script}");
        }
        let mut layered = fixture.layered_run();
        layered.args(["--tty", "--runtime", runtime, "--", "/no/such"]);
        check_failure_on_terminal(&layered, 127, "layered: the command does not exist in the container: /no/such");
    }
    // Neither of these sends a terminal.
    for runtime in ["false", "true"].map(find) {
        let run = with_terminal(&fixture, runtime.to_str().unwrap(), &[], "true");
        check_failure_on_terminal(&run, 125, "layered: ");
    }
}

/// Checks that a failing run prints one line and leaves the terminal as it was.
fn check_failure_on_terminal(command: &Command, status: i32, message: &str) {
    let mut terminal = Terminal::new();
    let before = format!("{:?}", terminal.settings());
    let mut run = terminal.start(command);
    let shown = terminal.rest();
    assert_eq!((run.end().code(), shown.lines().count()), (Some(status), 1), "{shown}");
    assert!(shown.starts_with(message), "{shown}");
    assert_eq!(format!("{:?}", terminal.settings()), before, "{shown}");
}

#[test]
fn a_hangup_of_the_callers_terminal_reaches_the_command() {
    let fixture = Fixture::new();
    let upper = fixture.path().join("upper");
    for runtime in RUNTIMES {
        // (the caller's first command, the script, the exit statuses)
        let table: [(&str, &str, &[i32]); 5] = [
            (":", "echo begun; exec sleep 1000", &[129]),
            // The kernel also gives a reading command an end of input or an error, and does so
            // first.
            (":", "echo begun; exec cat", &[129, 1, 0]),
            (":", "trap 'echo heard > /heard; exit 7' HUP; echo begun; sleep 1000 & while :; do wait; done", &[7]),
            // Every process ignores the signal. The command notices only the end of its input.
            ("trap '' HUP", "trap '' HUP; echo begun; cat; exit 8", &[8]),
            (":", "trap '' HUP; echo begun; cat; echo lost; exit 9", &[9]),
        ];
        for (first, script, statuses) in table {
            let run = with_terminal(&fixture, runtime, &["--upper", upper.to_str().unwrap()], script);
            let mut sh = Command::new(find("sh"));
            sh.args(["-c", &format!("{first}; exec \"$@\""), "sh"]).arg(run.get_program()).args(run.get_args());
            let mut terminal = Terminal::new();
            let mut run = terminal.start(&sh);
            terminal.until("begun");
            drop(terminal);
            let status = run.end().code().unwrap();
            assert!(statuses.contains(&status), "{runtime} {first} {script}: {status}");
            assert_eq!(upper.join("heard").exists(), status == 7, "{runtime}");
            fs::remove_dir_all(&upper).unwrap();
        }
    }
}

#[test]
fn the_callers_terminal_keeps_its_owner() {
    let fixture = Fixture::new();
    for runtime in RUNTIMES {
        for user in ["0", "1000"] {
            let mut terminal = Terminal::new();
            let side = terminal.side_of_programs();
            let owner = || {
                let stat = fstat(&side).unwrap();
                (stat.st_uid, stat.st_gid, stat.st_mode)
            };
            let before = owner();
            // The command's own terminal belongs to its user, who can open it by its name.
            let script = "chown 7:7 /proc/self/fd/0 2>/dev/null; chmod 600 /proc/self/fd/1 2>/dev/null
                [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo opened > /dev/tty; echo $TERM";
            let mut run = terminal.start(&with_terminal(&fixture, runtime, &["--user", user], script));
            terminal.until("opened\r\nxterm");
            assert_eq!((run.end().code(), owner()), (Some(0), before), "{runtime} {user}");
        }
    }
}

#[test]
fn much_output_is_shown_completely_and_in_order() {
    let fixture = Fixture::new();
    for runtime in RUNTIMES {
        let mut terminal = Terminal::new();
        let script = "i=0; while [ $i -lt 20000 ]; do echo $i; echo $((i + 1)) >&2; i=$((i + 2)); done; exit 7";
        let mut run = terminal.start(&with_terminal(&fixture, runtime, &[], script));
        let shown = terminal.rest();
        let expected: String = (0..20_000).map(|n| format!("{n}\n")).collect();
        assert!(shown == expected, "{runtime}: {} bytes", shown.len());
        assert_eq!(run.end().code(), Some(7), "{runtime}");
    }
}

/// Without `--tty`, an interrupt at the caller's terminal goes to layered only.
#[test]
fn an_interrupt_at_the_callers_terminal_reaches_the_command_once() {
    let fixture = Fixture::new();
    for runtime in RUNTIMES {
        let script =
            format!("n=0; trap 'n=$((n + 1)); echo interrupt' INT; trap 'echo $n in all; exit 7' QUIT; {WAITS}");
        let mut terminal = Terminal::new();
        let run = fixture.layered_script(&["--runtime", runtime, "--grace", "1h"], &script);
        let mut run = terminal.start(&run);
        terminal.until("begun");
        terminal.press(INTERRUPT);
        terminal.until("interrupt");
        terminal.press(QUIT);
        terminal.until("1 in all");
        assert_eq!(run.end().code(), Some(7), "{runtime}");
    }
}

/// ^Z at the caller's terminal stops layered. It can be continued in the foreground and in the
/// background like any other program.
#[test]
fn a_suspended_run_can_be_continued() {
    let fixture = Fixture::new();
    let go = fixture.path().join("go");
    fs::create_dir(&go).unwrap();
    let mount = format!("type=bind,source={},target=/go", go.display());
    for runtime in RUNTIMES {
        let script = "echo begun; until [ -e /go/on ]; do sleep 0.01; done; echo on; exit 7";
        let run = fixture.layered_script(&["--runtime", runtime, "--mount", &mount], script);
        let session = "set -m; \"$@\"; echo suspended; >$0/on; fg >/dev/null; echo status $?";
        let mut bash = Command::new(find("bash"));
        bash.args(["-c", session]).arg(&go).arg(run.get_program()).args(run.get_args());
        let mut terminal = Terminal::new();
        let mut bash: Running = terminal.start(bash.stdin(Stdio::null()));
        terminal.until("begun");
        terminal.press(SUSPEND);
        terminal.until("suspended");
        terminal.until("status 7");
        assert_eq!(bash.end().code(), Some(0), "{runtime}");
        fs::remove_file(go.join("on")).unwrap();
    }
}

/// Without an init, only the command has its terminal open. Closing it does not end the terminal.
#[test]
fn a_terminal_that_the_command_closes_can_be_opened_again() {
    let fixture = Fixture::new();
    // The loop gives the run time to notice that the terminal is closed.
    let script = "echo first; exec </dev/null >/dev/null 2>&1
        n=0; while [ $n -lt 20000 ]; do n=$((n + 1)); done; echo later >/dev/tty";
    for runtime in RUNTIMES {
        for options in [&[][..], &["--no-init"]] {
            let mut terminal = Terminal::new();
            let mut run = terminal.start(&with_terminal(&fixture, runtime, options, script));
            assert_eq!((&*terminal.rest(), run.end().code()), ("first\nlater\n", Some(0)), "{runtime} {options:?}");
        }
    }
}
