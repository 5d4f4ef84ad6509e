//! The example `mini_runner` of the crate `container`: the output and the end of each command.

use std::process::Command;

use integration_tests::terminal::Terminal;
use integration_tests::tree::Snapshot;
use integration_tests::{Fixture, RUNTIMES};

/// The output of the program without a terminal.
const PRINTED: &str = "  from the host
  1
  1000
  touch: /new: Read-only file system
limited: Exited(3)
slow: TimedOut
large: OutOfMemory
missing: the command does not exist in the container: no-such-command: No such file or directory (os error 2)
  runc
  0
spec: Exited(0)
fifty at once: 50 succeeded
";

fn mini_runner(fixture: &Fixture, runtime: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mini-runner"));
    command.arg(fixture.base().fs()).arg(fixture.path().join(runtime)).arg(runtime).env("TMPDIR", fixture.scratch());
    command
}

#[test]
fn each_command_ends_as_expected_and_leaves_the_root_as_it_was() {
    let fixture = Fixture::new();
    let root = Snapshot::of_path(&fixture.base().fs()).unwrap();
    for runtime in RUNTIMES {
        let output = mini_runner(&fixture, runtime).output().unwrap();
        let printed = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        assert_eq!(printed, [PRINTED, ""], "{runtime}");
        assert!(output.status.success(), "{runtime}");
        assert_eq!(root.diff(&Snapshot::of_path(&fixture.base().fs()).unwrap()), "", "{runtime}");
    }
}

#[test]
fn at_a_terminal_the_last_command_has_one_of_its_size() {
    let fixture = Fixture::new();
    for runtime in RUNTIMES {
        let mut terminal = Terminal::new();
        let mut run = terminal.start(&mini_runner(&fixture, runtime));
        let expected = format!("{PRINTED}24 80\nterminal: Exited(0)\n");
        assert_eq!((terminal.rest(), run.end().code()), (expected, Some(0)), "{runtime}");
    }
}
