//! New layers in one step: `layered run --commit`, `Report::publish` and replaced layers. Module
//! `commit` has `layered commit`, and module `capture` what a captured tree contains.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use integration_tests::strace::{Disturbance, Point, Program};
use integration_tests::{Fixture, layered};
use layer::{Existing, Hold, Layer, Store};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use runner::{Cause, CommandRecord};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};

fn run(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// Returns the command that runs a script and makes the layer `name` of it.
fn making(fixture: &Fixture, name: &str, options: &[&str], script: &str) -> Command {
    let mut command = fixture.layered_run();
    command.arg("--commit").arg(fixture.store().join(name)).args(options).args(["--", "sh", "-c", script]);
    command
}

fn make(fixture: &Fixture, name: &str, options: &[&str], script: &str) -> (i32, String, String) {
    run(&mut making(fixture, name, options, script))
}

fn layer(fixture: &Fixture, name: &str) -> Layer {
    Layer::at(fixture.store().join(name))
}

/// Returns the exit status that a layer records, or `None` if there is no layer.
fn recorded(layer: &Layer) -> Option<i64> {
    layer.meta().unwrap().map(|meta| meta.exit_status)
}

/// Returns the only kept run, and checks that `stderr` names it.
fn kept(fixture: &Fixture, stderr: &str) -> PathBuf {
    let [kept] = &fixture.left()[..] else { panic!("{:?}: {stderr}", fixture.left()) };
    assert!(stderr.contains("the run is kept") && stderr.contains(kept.to_str().unwrap()), "{stderr}");
    kept.clone()
}

#[test]
fn a_command_and_its_layer_take_one_step() {
    let fixture = Fixture::new();
    let below = fixture.layer("dep", |fs| fs::write(fs.join("old"), "old").unwrap());
    let report = fixture.path().join("report");
    let options = ["--layer", below.path().to_str().unwrap(), "--json", report.to_str().unwrap(), "-e", "TOKEN=secret"];
    let (status, stdout, stderr) = make(&fixture, "new", &options, "rm /old; echo new >/new; echo done");
    assert_eq!((status, &*stdout, &*stderr), (0, "done\n", ""));

    let new = layer(&fixture, "new");
    assert_eq!(new.sidecars().unwrap(), [CommandRecord::SIDECAR]);
    let meta = new.meta().unwrap().unwrap();
    assert_eq!((meta.exit_status, meta.parent_hashes, meta.base_hash), (0, vec!["dep".into()], "base".into()));
    let record: Value = new.read_sidecar(CommandRecord::SIDECAR).unwrap().unwrap();
    assert_eq!(record["argv"], json!(["sh", "-c", "rm /old; echo new >/new; echo done"]));
    assert_eq!((&record["env"]["TOKEN"], &record["user"], &record["cwd"]), (&json!(null), &json!("0:0"), &json!("/")));
    let report: Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
    assert_eq!((&report["command"], &report["upper"]), (&record, &Value::Null));
    assert_eq!(report["layer"], json!(new.path()));

    // The next run sees what the command left behind.
    let seen = integration_tests::stdout(&fixture.run(&[new, below], "ls /old 2>/dev/null; cat /new"));
    assert_eq!(seen, "new\n");
    let (status, shown, _) = run(layered().arg("show").arg(fixture.store().join("new")));
    assert!(status == 0 && shown.contains("sh -c 'rm /old; echo new >/new; echo done'"), "{shown}");
    assert!(shown.contains("runc") && !shown.contains("secret") && !shown.contains("run.json"), "{shown}");

    let (status, ..) = make(&fixture, "values", &["-e", "TOKEN=secret", "--record-env", "values"], "true");
    assert_eq!(status, 0);
    let record: Value = layer(&fixture, "values").read_sidecar(CommandRecord::SIDECAR).unwrap().unwrap();
    assert_eq!(record["env"]["TOKEN"], "secret");
}

#[test]
fn a_bare_name_is_in_the_store_of_the_environment() {
    let fixture = Fixture::new();
    let mut command = fixture.layered_run();
    command.args(["--commit", "new", "--", "true"]).current_dir(fixture.path());
    assert_eq!(run(command.env("LAYERED_STORE", fixture.store())).0, 0);
    assert!(layer(&fixture, "new").meta().unwrap().is_some());
    // Without a scratch directory, the store is the scratch directory, and has nothing else then.
    let mut command = layered();
    command.args(["run", "--commit", "other", "--base"]).arg(fixture.base().path()).args(["--", "false"]);
    assert_eq!(run(command.env("LAYERED_STORE", fixture.store()).env_remove("LAYERED_SCRATCH")).0, 1);
    let mut names: Vec<_> = fs::read_dir(fixture.store()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, [".layered", "new"]);
}

#[test]
fn a_layer_that_cannot_be_made_is_refused_before_the_command_runs() {
    let fixture = Fixture::new();
    assert_eq!(make(&fixture, "good", &[], "true").0, 0);
    assert_eq!(make(&fixture, "bad", &["--commit-failed"], "exit 3").0, 3);
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    let elsewhere = elsewhere.path().join("new");
    let bad = fixture.store().join("bad");
    // The base and the layers of a run, however they are named.
    for (option, path) in [("--layer", &bad), ("--base", &bad), ("--rootfs", &bad.join("fs"))] {
        let mut command = layered();
        command.arg("run").arg("--scratch").arg(fixture.scratch()).arg(option).arg(path);
        if option == "--layer" {
            command.arg("--base").arg(fixture.base().path());
        }
        let (status, _, stderr) = run(command.arg("--commit").arg(&bad).args(["--replace", "--", "echo", "ran"]));
        assert!(status == 125 && stderr.contains("this run stacks it"), "{option}: {stderr}");
    }
    for (path, options, message) in [
        ("store/good", &[][..], "exists; choose another name, or remove it with `layered rm"),
        ("store/bad", &[], "or replace it with --replace, because its command failed"),
        ("store/good", &["--replace"], "its command succeeded"),
        ("missing/new", &[], "create it with `mkdir"),
        ("store/..", &[], "does not end in the name of a layer"),
        ("store/.new", &[], "cannot name a layer"),
        ("store/kept-0123456789abcdef", &[], "kept-0123456789abcdef cannot name a layer"),
        ("store/layered-0123456789abcdef", &[], "layered-0123456789abcdef cannot name a layer"),
        ("base/fs/new", &[], "lies in"),
        (elsewhere.to_str().unwrap(), &[], "they are on different file systems; choose another --scratch"),
        ("store/new", &["--upper", "upper"], "cannot be used with '--upper"),
    ] {
        let mut command = fixture.layered_run();
        command.arg("--commit").arg(fixture.path().join(path)).args(options).args(["--", "echo", "ran"]);
        let (status, stdout, stderr) = run(&mut command);
        assert!(status == 125 && stdout.is_empty() && stderr.contains(message), "{path} {options:?}: {stderr}");
    }
    // The kernel renames nothing between two mounts, and a file is in the way of the drafts.
    let aside = fixture.path().join("aside");
    fs::create_dir(&aside).unwrap();
    let mounted = format!("mount --bind {0} {0} && exec \"$@\"", aside.display());
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "sh", "-c", &mounted, "sh"]).arg(layered().get_program());
    command.args(["run", "--scratch"]).arg(&aside).arg("--base").arg(fixture.base().path());
    command.arg("--commit").arg(fixture.store().join("new")).args(["--", "echo", "ran"]);
    let (status, stdout, stderr) = run(&mut command);
    assert!(status == 125 && stdout.is_empty(), "{stdout}{stderr}");
    assert!(stderr.contains("they are on different mounts of one file system; choose another --scratch"), "{stderr}");
    let unusable = fixture.path().join("unusable");
    fs::create_dir(&unusable).unwrap();
    fs::write(unusable.join(".layered"), "").unwrap();
    let mut command = fixture.layered_run();
    let (status, stdout, stderr) = run(command.arg("--commit").arg(unusable.join("new")).args(["--", "echo", "ran"]));
    assert!(status == 125 && stdout.is_empty() && stderr.contains("unusable/.layered"), "{stdout}{stderr}");
    for option in ["--replace", "--commit-failed"] {
        let (status, _, stderr) = run(fixture.layered_run().args([option, "--", "echo", "ran"]));
        assert!(status == 125 && stderr.contains("--commit <STORE/NAME>"), "{stderr}");
    }
    let mut bare = fixture.layered_run();
    let (_, _, stderr) = run(bare.args(["--commit", "new", "--", "true"]).env_remove("LAYERED_STORE"));
    assert!(stderr.contains("write STORE/NAME, or set LAYERED_STORE"), "{stderr}");
}

#[test]
fn a_failed_command_makes_a_layer_only_on_request() {
    let fixture = Fixture::new();
    let failed = layer(&fixture, "failed");
    let (status, _, stderr) = make(&fixture, "failed", &[], "exit 3");
    assert!(status == 3 && stderr.contains("was not created: the command failed"), "{stderr}");
    assert!(!failed.path().exists());

    let (status, _, stderr) = make(&fixture, "failed", &["--keep-failed"], "echo new >/new; exit 3");
    let kept = kept(&fixture, &stderr);
    assert_eq!((status, failed.path().exists()), (3, false));
    assert_eq!(run(layered().arg("commit").args([&kept, failed.path()])).0, 0);
    // A kept run records what was run, too.
    let record: Value = failed.read_sidecar(CommandRecord::SIDECAR).unwrap().unwrap();
    assert_eq!((recorded(&failed), &record["argv"][2]), (Some(3), &json!("echo new >/new; exit 3")));

    let (status, ..) = make(&fixture, "other", &["--commit-failed"], "kill -9 $$");
    assert_eq!((status, recorded(&layer(&fixture, "other"))), (137, Some(137)));
}

/// Starts a command that waits for a line, and waits until it runs.
fn begin(command: &mut Command) -> Child {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "begun\n");
    child
}

/// Lets a command go on that [`begin`] has started. Returns its exit status and standard error.
fn finish(mut child: Child) -> (Option<i32>, String) {
    child.stdin.take().unwrap().write_all(b"on\n").unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_command_that_did_not_end_by_itself_makes_no_layer() {
    let fixture = Fixture::new();
    let options = ["--commit-failed", "--timeout", "0.1", "--grace", "0"];
    let (status, _, stderr) = make(&fixture, "new", &options, "sleep 1000");
    assert!(status == 124 && stderr.contains("did not end by itself"), "{stderr}");

    let mut command =
        making(&fixture, "new", &["--commit-failed", "--grace", "0"], "trap '' TERM; echo begun; sleep 1000");
    let child = begin(&mut command);
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(143));
    assert!(!layer(&fixture, "new").path().exists());
}

#[test]
fn a_command_that_handles_a_signal_makes_no_layer() {
    let fixture = Fixture::new();
    let script = "trap 'exit 0' INT TERM; echo half >/half; echo begun; while :; do sleep 0.01; done";
    for (signal, status) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let child = begin(&mut making(&fixture, "new", &["--commit-failed"], script));
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{stderr}");
        assert!(stderr.contains("was not created: a signal to layered asked the command to end"), "{stderr}");
        assert!(!layer(&fixture, "new").path().exists() && fixture.left().is_empty(), "{stderr}");
    }
    let child = begin(&mut making(&fixture, "new", &["--keep-failed"], script));
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    let output = child.wait_with_output().unwrap();
    let kept = kept(&fixture, &String::from_utf8(output.stderr).unwrap());
    assert_eq!((output.status.code(), kept.join("upper/half").exists()), (Some(143), true));
    assert!(!layer(&fixture, "new").path().exists());
    assert_eq!(run(layered().arg("discard").arg(kept)).0, 0);
}

#[test]
fn of_two_runs_with_one_name_the_later_keeps_its_result() {
    let fixture = Fixture::new();
    let script = |text: &str| format!("echo begun; read line; echo {text} >/text");
    let [first, second] = ["first", "second"].map(|text| begin(&mut making(&fixture, "new", &[], &script(text))));
    assert_eq!(finish(second), (Some(0), String::new()));
    let (status, stderr) = finish(first);
    let kept = kept(&fixture, &stderr);
    assert!(status == Some(125) && stderr.contains("store/new exists"), "{stderr}");

    let text = |name: &str| fs::read_to_string(layer(&fixture, name).fs().join("text")).unwrap();
    assert_eq!(text("new"), "second\n");
    assert_eq!(run(layered().arg("commit").args([&kept, &fixture.store().join("other")])).0, 0);
    let other = layer(&fixture, "other");
    assert_eq!((&*text("other"), recorded(&other)), ("first\n", Some(0)));
    assert_eq!(other.sidecars().unwrap(), [CommandRecord::SIDECAR]);
    assert_eq!(fs::read_dir(fixture.store().join(".layered/new")).unwrap().count(), 0);
}

#[test]
fn only_a_failed_layer_that_no_run_uses_is_replaced() {
    let fixture = Fixture::new();
    let failed = layer(&fixture, "failed");
    assert_eq!(make(&fixture, "failed", &["--commit-failed"], "echo old >/text; exit 3").0, 3);

    let using = ["--layer", failed.path().to_str().unwrap()];
    let user = begin(fixture.layered_run().args(using).args(["--", "sh", "-c", "echo begun; read line; cat /text"]));
    let (status, _, stderr) = make(&fixture, "failed", &["--replace"], "true");
    assert!(status == 125 && stderr.contains("a run that is in progress uses it"), "{stderr}");
    let (_, _, stderr) = run(layered().arg("rm").arg(failed.path()));
    assert!(stderr.contains("a run that is in progress uses it"), "{stderr}");
    assert_eq!(finish(user).0, Some(0));

    // Without another choice, the new layer is as open as the old one was.
    fs::set_permissions(failed.path(), fs::Permissions::from_mode(0o750)).unwrap();
    // A failure replaces a failure, and a success a failure, but nothing replaces a success.
    for (number, (script, status, text)) in
        [("echo new >/text; exit 4", 4, "new"), ("echo good >/text", 0, "good"), ("echo late >/text", 125, "good")]
            .into_iter()
            .enumerate()
    {
        let upper = fixture.path().join(format!("upper{number}"));
        let report = fixture.path().join(format!("report{number}"));
        let mut command = fixture.layered_run();
        command.arg("--upper").arg(&upper).arg("--json").arg(&report).args(["--", "sh", "-c", script]);
        run(&mut command);
        let mut commit = layered();
        commit.arg("commit").args([upper.as_path(), failed.path()]).arg("--run").arg(&report).arg("--replace");
        let (committed, _, stderr) = run(&mut commit);
        assert_eq!(committed, if status == 125 { 125 } else { 0 }, "{stderr}");
        // A refused upper is unchanged.
        assert_eq!(upper.join("text").exists(), status == 125);
        assert_eq!(fs::read_to_string(failed.fs().join("text")).unwrap().trim(), text);
        assert_eq!(failed.sidecars().unwrap(), [CommandRecord::SIDECAR]);
        assert_eq!(fs::metadata(failed.path()).unwrap().permissions().mode() & 0o7777, 0o750);
    }
    let (status, _, stderr) = make(&fixture, "failed", &["--replace"], "true");
    assert!(status == 125 && stderr.contains("its command succeeded"), "{stderr}");
    assert_eq!(fs::read_dir(fixture.store().join(".layered/new")).unwrap().count(), 0);
}

#[test]
fn a_report_that_cannot_be_published_gives_its_upper_back() {
    let fixture = Fixture::new();
    let store = Store::open(fixture.store()).unwrap();
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    let report = fixture.run(&[], "echo text >/text");
    let refused = report.publish(&store, "a/b", |_| Ok(())).unwrap_err();
    assert!(matches!(refused.source.cause(), Cause::Layer(layer::Error::LayerName { .. })), "{refused:?}");
    let failed = refused.report.publish(&store, "new", |_| Err("no log".into())).unwrap_err();
    assert_eq!(
        format!("{failed:?}"),
        format!(
            "cannot create the layer {} from the upper: the caller's function that prepares the layer failed: no log",
            fixture.store().join("new").display()
        )
    );
    let far = failed.report.publish(&Store::open(&elsewhere).unwrap(), "new", |_| Ok(())).unwrap_err();
    assert!(matches!(far.source.cause(), Cause::Layer(layer::Error::OtherFileSystem { .. })), "{far:?}");
    assert_eq!(fs::read_dir(elsewhere.path().join(".layered/new")).unwrap().count(), 0);

    // The name is taken between the check and the rename.
    let taken = fixture.store().join("new");
    let late = far.report.publish(&store, "new", |_| Ok(fs::create_dir(&taken)?)).unwrap_err();
    assert!(matches!(late.source.cause(), Cause::Layer(layer::Error::LayerExists { .. })), "{late:?}");
    fs::remove_dir(&taken).unwrap();

    let published = late.report.publish(&store, "new", |new| {
        new.meta.failed_dep = Some("dep".into());
        new.existing = Existing::ReplacedIfFailed;
        fs::write(new.layer.log_path(), "log")?;
        Ok(new.layer.write_sidecar("package", "new")?)
    });
    let layer = published.unwrap();
    assert_eq!(layer.sidecars().unwrap(), ["package", CommandRecord::SIDECAR]);
    assert_eq!(layer.meta().unwrap().unwrap().failed_dep.as_deref(), Some("dep"));
    assert_eq!(fs::read_to_string(layer.fs().join("text")).unwrap(), "text\n");
    assert!(!layer.fs().join("etc/hosts").exists(), "the file that the run created is in the layer");
    Hold::of([layer.path()]).unwrap().release().unwrap();
}

/// Runs that make a layer and can be killed at one of their system calls.
struct Killed {
    fixture: Fixture,
    fifo: PathBuf,
}

impl Killed {
    fn new() -> Self {
        let fixture = Fixture::new();
        let fifo = fixture.path().join("fifo");
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();
        Self { fixture, fifo }
    }

    fn program(&self) -> Program<'_> {
        let options = ["--replace", "--layers-from", self.fifo.to_str().unwrap()];
        let command = making(&self.fixture, "new", &options, "echo new >/text");
        Program { command, fifo: self.fifo.clone(), text: "# no layers\n" }
    }

    /// Makes the failed layer that the run replaces.
    fn fail(&self) {
        assert_eq!(make(&self.fixture, "new", &["--commit-failed"], "echo old >/text; exit 3").0, 3);
    }
}

fn text_in(tree: &Path) -> String {
    fs::read_to_string(tree.join("text")).unwrap()
}

#[test]
fn a_killed_run_leaves_the_old_layer_or_the_whole_new_one() {
    let count = crate::kills::count() as usize;
    let runs = Killed::new();
    runs.fail();
    let points = runs.program().points();
    let new = layer(&runs.fixture, "new");
    layer::remove_tree(new.path()).unwrap();
    // The layer is made at the end.
    let last: Vec<&Point> = points[points.len() * 2 / 3..].iter().collect();
    let (mut kills, mut olds) = (0, 0);
    for point in last.iter().step_by(last.len().div_ceil(count)) {
        runs.fail();
        let output = runs.program().disturbed(point, Disturbance::Kill);
        kills += usize::from(output.status.signal() == Some(9));
        runs.fixture.assert_nothing_lives();
        let seen = (recorded(&new).unwrap(), text_in(&new.fs()));
        let whole = [(3, "old\n".into()), (0, "new\n".into())];
        assert!(whole.contains(&seen), "{point:?}: {seen:?}");
        assert_eq!(new.sidecars().unwrap(), [CommandRecord::SIDECAR], "{point:?}");
        olds += usize::from(seen.0 == 3);
        runs.fixture.sweep();
        assert_eq!(run(layered().arg("gc").arg(runs.fixture.store()).args(["--max-age", "1000d"])).0, 0);
        assert_eq!(fs::read_dir(runs.fixture.store().join(".layered/new")).unwrap().count(), 0, "{point:?}");
        layer::remove_tree(new.path()).unwrap();
    }
    assert!(kills > 10 && olds > 0, "{kills} of {} were killed, {olds} before the end", last.len());
}
