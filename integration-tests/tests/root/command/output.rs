//! The outputs on a terminal: colours, narrow tables and progress.

use std::fs::{self, File};
use std::process::Command;
use std::time::SystemTime;

use integration_tests::terminal::Terminal;
use integration_tests::{Fixture, layered};
use layer::{Hold, Layer, Meta};
use rustix::fs::{FlockOperation, flock};

use super::run;

const RED: &str = "\u{1b}[31m";

/// Clears the line of the cursor.
const CLEAR: &str = "\u{1b}[2K";

/// Makes a layer of a command that failed.
fn failed_layer(fixture: &Fixture, name: &str) -> Layer {
    let layer = fixture.layer(name, |_| {});
    let meta = Meta { exit_status: 2, disk_usage: 3 << 20, ..Meta::new("base", SystemTime::now()) };
    layer.write_meta(&meta).unwrap();
    layer
}

/// Returns the output of a command on a terminal of `columns` columns.
fn shown(command: &Command, columns: u16) -> String {
    let mut terminal = Terminal::new();
    terminal.resize(24, columns);
    let mut running = terminal.start(command);
    let shown = terminal.rest();
    assert!(running.end().success(), "{shown}");
    shown
}

#[test]
fn colours_are_for_terminals_unless_the_caller_decides() {
    let fixture = Fixture::new();
    failed_layer(&fixture, "failed");
    let ls = |variables: &[(&str, &str)], options: &[&str]| {
        let mut command = layered();
        command.arg("ls").arg(fixture.store()).args(options).env("TERM", "xterm");
        for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "CI"] {
            command.env_remove(name);
        }
        command.envs(variables.iter().copied());
        command
    };
    for (variables, options, on_terminal, in_pipe) in [
        (&[][..], &[][..], true, false),
        (&[("NO_COLOR", "1")], &[], false, false),
        (&[("TERM", "dumb")], &[], false, false),
        (&[], &["--color", "never"], false, false),
        (&[("NO_COLOR", "1")], &["--color", "always"], true, true),
        (&[], &["--json"], false, false),
    ] {
        let mut command = ls(variables, options);
        let terminal = shown(&command, 80);
        assert_eq!(terminal.contains(RED), on_terminal, "{variables:?} {options:?}: {terminal:?}");
        let (_, pipe, _) = run(&mut command);
        assert_eq!(pipe.contains(RED), in_pipe, "{variables:?} {options:?}: {pipe:?}");
    }
}

#[test]
fn a_narrow_terminal_costs_columns_but_no_name() {
    let fixture = Fixture::new();
    let name = "03325b056f00-a-long-name";
    failed_layer(&fixture, name);
    let mut command = layered();
    command.args(["ls", "--color", "never"]).arg(fixture.store());
    // NAME, STATUS and SIZE take 41 columns, LAST USED 11, and CREATED at least 14.
    for (columns, heading) in [
        (100, "NAME STATUS SIZE LAST USED CREATED"),
        (55, "NAME STATUS SIZE LAST USED"),
        (45, "NAME STATUS SIZE"),
        (10, "NAME STATUS SIZE"),
    ] {
        let shown = shown(&command, columns);
        let lines: Vec<_> = shown.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
        assert_eq!(lines[0].join(" "), heading, "{columns}");
        assert_eq!(lines[1][0], name, "{columns}");
    }
}

/// Returns the lock of a store, for which the collectors and the new holds of the store wait.
fn lock(fixture: &Fixture, layer: &Layer) -> File {
    // The store's own directory exists from the first hold on.
    drop(Hold::of([layer.path()]).unwrap());
    let lock = File::open(fixture.store().join(".layered")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    lock
}

#[test]
fn progress_is_shown_while_a_step_takes_long_and_removed_afterwards() {
    let fixture = Fixture::new();
    let layer = failed_layer(&fixture, "layer");
    let target = fixture.path().join("merged");
    let mut gc = layered();
    gc.arg("gc").arg(fixture.store()).args(["--max-bytes", "1t", "--dry-run"]).env("TERM", "xterm");
    let mut merge = layered();
    merge.arg("merge").arg(&target).arg(layer.path()).env("TERM", "xterm");
    for (command, progress, result) in [
        (&mut gc, "1 layer examined", "0 layers would be removed, 0 B\n"),
        (&mut merge, "waiting for the lock of the store", "1 layer merged: "),
    ] {
        let held = lock(&fixture, &layer);
        let mut terminal = Terminal::new();
        let mut running = terminal.start(command);
        terminal.until(progress);
        drop(held);
        let rest = terminal.rest();
        assert!(running.end().success(), "{rest}");
        // The line is cleared before the result is printed, and not drawn again.
        let (_, after) = rest.rsplit_once(CLEAR).unwrap_or_else(|| panic!("not cleared: {rest:?}"));
        assert!(after.starts_with(result) && !after.contains(progress), "{rest:?}");
    }
    fs::remove_dir_all(&target).unwrap();

    let (status, _, stderr) = run(&mut gc);
    assert_eq!((status, &*stderr), (0, ""));
}
