//! The example `farm` of the crate `runner`: packages that depend on each other, a package that
//! fails, and Ctrl-C.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use integration_tests::terminal::Terminal;
use integration_tests::{Fixture, write_script};
use layer::Store;

/// Returns a store that `fixture` watches, and a command that builds in it.
fn farm(fixture: &Fixture) -> (Store, Command) {
    let store = Store::open(fixture.store()).unwrap();
    fs::create_dir(store.path().join("scratch")).unwrap();
    fixture.watch(&store.path().join("scratch"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_farm"));
    command.arg(fixture.base().path()).arg(store.path());
    (store, command)
}

fn entries(dir: impl AsRef<Path>) -> Vec<PathBuf> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// Runs the farm. Returns its exit status and what it prints.
fn output(farm: &mut Command) -> (Option<i32>, [String; 2]) {
    let output = farm.output().unwrap();
    (output.status.code(), [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()))
}

#[test]
fn packages_over_a_broken_one_are_built_once_it_is_mended() {
    let fixture = Fixture::new();
    let (store, mut farm) = farm(&fixture);

    let mut broken = Command::new(farm.get_program());
    let (status, [printed, message]) = output(broken.args(farm.get_args()).arg("--break"));
    let [kept] = &entries(store.path().join("scratch"))[..] else { panic!("one upper is kept: {message}") };
    let upper = kept.join("upper");
    let expected = format!("package-13: Exited(3), kept in {}: over 6 layers\noh no\n", upper.display());
    assert_eq!((&*printed, &*message), ("{Built: 27, Failed: 1, DepFailed: 32}\n", &*expected));
    assert_eq!(status, Some(1));
    assert_eq!(fs::metadata(upper.join("opt/package-13")).unwrap().uid(), 1000);
    assert!(store.layer("package-13").unwrap().meta().unwrap().is_none());
    let meta = store.layer("package-26").unwrap().meta().unwrap().unwrap();
    assert_eq!((meta.exit_status, meta.failed_dep.as_deref()), (1, Some("package-13")));

    for expected in ["{Built: 33, Cached: 27}\n", "{Cached: 60}\n"] {
        assert_eq!(output(&mut farm), (Some(0), [expected.into(), String::new()]));
    }
    let last = store.layer("package-59").unwrap();
    let meta = last.meta().unwrap().unwrap();
    assert_eq!((meta.exit_status, meta.uid, meta.parent_hashes.len()), (0, 1000, 26));
    assert_eq!(fs::read_to_string(last.log_path()).unwrap(), "over 26 layers\nbuilt\n");
}

#[test]
fn an_interrupt_ends_the_builds_and_leaves_nothing() {
    let fixture = Fixture::new();
    let shell = fixture.base().fs().join("bin/sh");
    fs::remove_file(&shell).unwrap();
    write_script(&shell, "#!/bin/busybox sh\nexec sleep 1000\n");
    let (store, farm) = farm(&fixture);

    let mut terminal = Terminal::new();
    let mut run = terminal.start(&farm);
    // Each worker has a line.
    assert!(terminal.until(": CommandStarted").contains("package-"));
    terminal.press("\x03");
    assert!(terminal.rest().ends_with("{Cancelled: 60}\n"));
    assert_eq!(run.end().code(), Some(1));
    let scratch = store.path().join("scratch");
    assert_eq!((entries(store.path()), entries(&scratch)), (vec![scratch], vec![]));
}
