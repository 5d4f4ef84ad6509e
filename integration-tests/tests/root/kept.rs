//! Failed builds that are kept: `layered run --keep-failed`, `shell` and `discard`. Commits of kept
//! runs are also tested in module `commit`.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use integration_tests::tree::Snapshot;
use integration_tests::{Fixture, layered};

/// Makes a build over five layers that deletes and writes files and then fails. Returns the
/// directory in which it is kept.
fn failed_build(fixture: &Fixture) -> PathBuf {
    let layers = fixture.numbered_layers(5);
    let mut command = layered();
    command.args(["run", "--keep-failed", "--base"]).arg(fixture.base().path()).arg("--scratch").arg(fixture.scratch());
    for layer in &layers {
        command.arg("--layer").arg(layer.path());
    }
    let script = "rm -r /deps/3 /etc; mkdir /new; echo made > /new/made; echo $COLOUR; exit 3";
    let output = command.args(["--env", "COLOUR=green", "--", "sh", "-c", script]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), output.stdout), (Some(3), b"green\n".to_vec()), "{stderr}");
    let kept: Vec<_> = fs::read_dir(fixture.scratch()).unwrap().map(|entry| entry.unwrap().path()).collect();
    let [kept] = &kept[..] else { panic!("{kept:?}") };
    assert!(stderr.contains(&format!("`layered shell {}`", kept.display())), "{stderr}");
    kept.clone()
}

fn shell(kept: &PathBuf) -> Command {
    let mut command = layered();
    command.arg("shell").arg(kept).stdin(Stdio::null());
    command
}

/// Returns what a script prints in the kept state.
fn says(kept: &PathBuf, script: &str) -> String {
    let output = shell(kept).args(["--", "sh", "-c", script]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn discard(kept: &PathBuf) {
    assert!(layered().arg("discard").arg(kept).status().unwrap().success());
}

#[test]
fn a_visit_finds_the_kept_state_and_keeps_changes() {
    let fixture = Fixture::new();
    let kept = failed_build(&fixture);
    let before = Snapshot::of_path(&kept.join("upper")).unwrap();
    for _ in 0..2 {
        assert_eq!(
            says(&kept, "cat /new/made; echo /deps/*; ls /etc; echo $COLOUR"),
            "made\n/deps/0 /deps/1 /deps/2 /deps/4\ngreen\n"
        );
        assert_eq!(before.diff(&Snapshot::of_path(&kept.join("upper")).unwrap()), "");
    }
    // Changes stay. Without a command, the shell reads its standard input.
    let mut visit = shell(&kept).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    visit.stdin.take().unwrap().write_all(b"echo later > /new/later\necho /new/*\n").unwrap();
    let output = visit.wait_with_output().unwrap();
    assert_eq!((output.status.code(), &*output.stdout), (Some(0), &b"/new/later /new/made\n"[..]));
    assert_eq!(says(&kept, "cat /new/later"), "later\n");
    // The kept run can be given by its name alone. `shell` returns the command's own exit status.
    let named = layered()
        .args(["shell", "--scratch"])
        .arg(fixture.scratch())
        .arg(kept.file_name().unwrap())
        .args(["--", "sh", "-c", "exit 7"])
        .stdin(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(named.code(), Some(7));

    assert!(layered().arg("sweep").arg(fixture.scratch()).status().unwrap().success());
    assert!(kept.exists());
    discard(&kept);
    fixture.assert_clean();
}

#[test]
fn a_fixed_build_becomes_a_layer() {
    let fixture = Fixture::new();
    let kept = failed_build(&fixture);
    says(&kept, "echo fixed > /new/made");
    let layer = fixture.store().join("fixed");
    let output = layered().arg("commit").args([&kept, &layer]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let layer = layer::Layer::open(layer).unwrap();
    let meta = layer.meta().unwrap().expect("the layer is complete");
    assert_eq!((meta.exit_status, meta.parent_hashes.len()), (3, 5));
    // Over a base alone, the layer shows what the build wrote and nothing else of the stack.
    let report = fixture.run(&[layer], "cat /new/made; echo /deps/* /etc/*");
    assert_eq!(integration_tests::stdout(&report), "fixed\n/deps/* /etc/hosts\n");
    drop(report);
    fixture.assert_clean();
}

#[test]
fn visits_exclude_each_other_and_a_killed_one_does_no_harm() {
    let fixture = Fixture::new();
    let kept = failed_build(&fixture);
    let mut visit = shell(&kept)
        .args(["--", "sh", "-c", "rm /new/made; echo deleted; sleep 1000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut said = BufReader::new(visit.stdout.take().unwrap());
    said.read_line(&mut line).unwrap();
    for command in [&mut shell(&kept), layered().arg("discard").arg(&kept)] {
        let output = command.output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), stderr.lines().count()), (Some(125), 1), "{stderr}");
        assert!(stderr.contains("is in use"), "{stderr}");
    }
    visit.kill().unwrap();
    visit.wait().unwrap();
    // The container keeps its end of the pipe open until it is gone.
    said.read_to_end(&mut Vec::new()).unwrap();
    assert_eq!(says(&kept, "echo /new/*"), "/new/*\n");
    discard(&kept);
    fixture.assert_clean();
}

#[test]
fn a_kept_run_refuses_another_base() {
    let fixture = Fixture::new();
    let kept = failed_build(&fixture);
    let mut commit = layered();
    commit.arg("commit").arg(&kept).arg(fixture.store().join("new")).arg("--base").arg(fixture.base().path());
    let output = commit.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(125), 1), "{stderr}");
    assert!(stderr.contains("leave out --run and --base"), "{stderr}");
    assert!(kept.join("upper/new").is_dir() && !fixture.store().join("new").exists());
    // This is the state after a discard that was killed half way. The rest can be discarded.
    fs::remove_dir_all(kept.join("upper")).unwrap();
    discard(&kept);
    fixture.assert_clean();
}

#[test]
fn paths_that_are_not_kept_runs_are_refused() {
    let fixture = Fixture::new();
    let store = fixture.store();
    for (command, path) in [("shell", &store), ("discard", &store), ("shell", &store.join("missing"))] {
        let output = layered().arg(command).arg(path).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), stderr.lines().count()), (Some(125), 1), "{stderr}");
        assert!(stderr.contains("is not a kept run"), "{stderr}");
    }
    assert!(store.exists());
    // A successful run keeps nothing.
    let mut run = layered();
    run.args(["run", "--keep-failed", "--base"]).arg(fixture.base().path()).arg("--scratch").arg(fixture.scratch());
    assert!(run.args(["--", "true"]).stdin(Stdio::null()).status().unwrap().success());
}
