//! Runs with a terminal of their own (`--tty`), and runs that the caller starts at a terminal.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use integration_tests::processes::Running;
use integration_tests::terminal::Terminal;
use integration_tests::{Fixture, RUNTIMES, find, write_script};
use nix::sys::signal::Signal;
use rustix::fs::fstat;

/// `layered run --tty` of a shell script, with an hour of grace.
fn with_terminal(fixture: &Fixture, runtime: &str, options: &[&str], script: &str) -> Command {
    fixture.layered_script(&[&["--tty", "--runtime", runtime, "--grace", "1h"], options].concat(), script)
}

/// Waits for signals: the shell runs the traps between two `wait`s.
const WAITS: &str = "echo begun; sleep 1000 & while :; do wait; done";

/// Control and a letter.
const INTERRUPT: &str = "\x03";
const SUSPEND: &str = "\x1a";
const QUIT: &str = "\x1c";
const END: &str = "\x04";

#[test]
fn it_has_the_size_of_the_callers() {
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
            // Each size has been told once.
            assert_eq!((terminal.rest().trim(), run.end().code()), ("", Some(7)), "{runtime} {init:?}");
        }
    }
}

#[test]
fn a_size_that_changes_while_the_runtime_starts() {
    let fixture = Fixture::new();
    let fifo = fixture.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for runtime in RUNTIMES {
        let waiting = fixture.path().join(format!("{runtime}-that-waits"));
        let wait = format!("case \" $* \" in *' run '*) read line < {} ;; esac", fifo.display());
        write_script(&waiting, &format!("#!/bin/sh\n{wait}\nexec {} \"$@\"\n", find(runtime).display()));
        let mut terminal = Terminal::new();
        let script = format!("trap 'stty size' WINCH; trap 'exit 7' TERM; stty size; {WAITS}");
        let run = with_terminal(&fixture, waiting.to_str().unwrap(), &[], &script);
        let mut run = terminal.start(&run);
        let mut fifo = File::options().write(true).open(&fifo).unwrap();
        terminal.resize(33, 101);
        fifo.write_all(b"\n").unwrap();
        // At once, or as a change: crun itself sets the size that it was started with.
        terminal.until("33 101");
        run.send(Signal::SIGTERM);
        assert_eq!(run.end().code(), Some(7), "{runtime}");
    }
}

#[test]
fn keys_arrive_as_they_are_pressed() {
    let fixture = Fixture::new();
    for runtime in RUNTIMES {
        let mut terminal = Terminal::new();
        // The second shell is raw, and reads keys one by one. The first one shows what is typed, and waits for the line.
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
        // One that has no handler ends; and what a command sends to its group, it gets once.
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
fn a_suspended_command_that_nobody_could_continue_goes_on() {
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
            // What is shown of a line that is typed is not what it prints. The shell takes what is typed before that.
            terminal.press("echo $((40 + 1)) begun; cat\n");
            terminal.until("41 begun");
            terminal.press("a line\n");
            terminal.until("a line\r\na line");
            terminal.press(SUSPEND);
            terminal.until("Stopped");
            terminal.until("prompt> ");
            terminal.press("echo in $((40 + 2)) front; fg\n");
            terminal.until("in 42 front");
            // What `fg` prints before it waits: a line that is typed earlier would stand before that.
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

/// A runtime that fails when it has sent its terminal, and one that never comes so far.
fn failing_runtimes(fixture: &Fixture) -> [PathBuf; 2] {
    ["/bin/false", "/bin/true"].map(|program| {
        let path = fixture.path().join(Path::new(program).file_name().unwrap());
        write_script(&path, &format!("#!/bin/sh\nexec {program}\n"));
        path
    })
}

#[test]
fn the_settings_are_put_back_after_any_end() {
    let fixture = Fixture::new();
    let endless = "echo begun; exec sleep 1000";
    let deaf = "trap '' TERM; echo begun; while :; do sleep 1; done";
    for runtime in RUNTIMES {
        // (options, script, the signal that ends it, the exit status)
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
        told_on_terminal(&layered, 127, "layered: the command does not exist in the container: /no/such");
    }
    for runtime in failing_runtimes(&fixture) {
        let run = with_terminal(&fixture, runtime.to_str().unwrap(), &[], "true");
        told_on_terminal(&run, 125, "layered: ");
    }
}

/// Sees that a run that comes to nothing says so on a terminal that is as it was.
fn told_on_terminal(command: &Command, status: i32, told: &str) {
    let mut terminal = Terminal::new();
    let before = format!("{:?}", terminal.settings());
    let mut run = terminal.start(command);
    let shown = terminal.rest();
    assert_eq!((run.end().code(), shown.lines().count()), (Some(status), 1), "{shown}");
    assert!(shown.starts_with(told), "{shown}");
    assert_eq!(format!("{:?}", terminal.settings()), before, "{shown}");
}

#[test]
fn a_terminal_that_is_hung_up_hangs_up_the_commands() {
    let fixture = Fixture::new();
    let upper = fixture.path().join("upper");
    for runtime in RUNTIMES {
        // (what layered does first, the script, the exit statuses)
        let table: [(&str, &str, &[i32]); 5] = [
            (":", "echo begun; exec sleep 1000", &[129]),
            // The kernel tells one that reads by the end of the input, or by an error, too, and first.
            (":", "echo begun; exec cat", &[129, 1, 0]),
            (":", "trap 'echo heard > /heard; exit 7' HUP; echo begun; sleep 1000 & while :; do wait; done", &[7]),
            // Nobody hears of the signal: the end of the input tells.
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
fn the_callers_terminal_stays_the_callers() {
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
            // Its own is the user's: it can be opened by its name.
            let script = "chown 7:7 /proc/self/fd/0 2>/dev/null; chmod 600 /proc/self/fd/1 2>/dev/null
                [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo opened > /dev/tty; echo $TERM";
            let mut run = terminal.start(&with_terminal(&fixture, runtime, &["--user", user], script));
            terminal.until("opened\r\nxterm");
            assert_eq!((run.end().code(), owner()), (Some(0), before), "{runtime} {user}");
        }
    }
}

#[test]
fn much_is_shown_whole_and_in_order() {
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

/// Without `--tty` the caller's terminal is what interrupts layered, and layered alone.
#[test]
fn an_interrupt_at_the_callers_terminal_reaches_the_command_once() {
    let fixture = Fixture::new();
    for runtime in RUNTIMES {
        let script = "n=0; trap 'n=$((n + 1)); echo interrupt' INT; echo begun
            until read line; do :; done; until [ $n = 1 ]; do read line; done; echo $n in all; exit 7";
        let mut terminal = Terminal::new();
        let run = fixture.layered_script(&["--runtime", runtime, "--grace", "1h"], script);
        let mut run = terminal.start(&run);
        terminal.until("begun");
        terminal.press(INTERRUPT);
        terminal.until("interrupt");
        terminal.press("line\nline\n");
        terminal.until("1 in all");
        assert_eq!(run.end().code(), Some(7), "{runtime}");
    }
}

/// ^Z at the caller's terminal stops layered, which goes on in front or in the background like any other program.
#[test]
fn a_run_that_is_suspended_goes_on_later() {
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

/// Without an init the command alone has its terminal open, which is not at its end when it is closed.
#[test]
fn a_terminal_that_the_command_closes_can_be_opened_again() {
    let fixture = Fixture::new();
    // While it is closed, the run has time to look.
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
