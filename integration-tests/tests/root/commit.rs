//! `layered commit`: a kill at any point loses no result, and nothing that belongs to another run
//! or layer is taken. The library's captures are tested in module `capture`.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use integration_tests::strace::{Disturbance, Point, Program};
use integration_tests::tree::Snapshot;
use integration_tests::{Fixture, layered};
use layer::{Layer, UpperId};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};

fn commit(upper: &Path, layer: &Path) -> Command {
    let mut command = layered();
    command.arg("commit").args([upper, layer]).stdin(Stdio::null());
    command
}

/// Runs a command that must fail. Returns its one line of standard error.
fn refusal(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!((status.code(), &*stdout, stderr.lines().count()), (Some(125), &b""[..], 1), "{stderr}");
    stderr
}

fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The ways to commit the same result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// With the report of the run.
    Report,
    /// With the base and the layers as options.
    Base,
    /// A tree that is in its layer's directory already.
    InPlace,
    /// From a kept run.
    Kept,
}

/// The kept result of a run over one layer, and copies of it.
struct Result {
    fixture: Fixture,
    layer: Layer,
    kept: PathBuf,
    copies: u32,
}

impl Result {
    fn new() -> Self {
        let fixture = Fixture::new();
        let layer = fixture.layer("dep", |tree| {
            fs::create_dir(tree.join("dir")).unwrap();
            fs::write(tree.join("dir/old"), "").unwrap();
        });
        let mut run = fixture.layered_run();
        run.arg("--layer").arg(layer.path()).args(["--keep-failed", "--", "sh", "-c"]);
        let status = run.arg("rm -r /dir; mkdir /dir; echo new > /dir/new; exit 3").stdin(Stdio::null()).status();
        assert_eq!(status.unwrap().code(), Some(3));
        let [kept] = &fixture.left()[..] else { panic!("{:?}", fixture.left()) };
        let kept = kept.clone();
        Self { fixture, layer, kept, copies: 0 }
    }

    /// Copies the result. Returns the arguments that commit the copy, and the layer that the commit
    /// makes.
    fn commit(&mut self, how: How) -> (Vec<std::ffi::OsString>, Layer) {
        self.copies += 1;
        let name = format!("kept-{:016x}", self.copies);
        let dir = self.kept.with_file_name(name);
        succeeds(Command::new("cp").arg("-a").args([&self.kept, &dir]));
        let (upper, layer) = (dir.join("upper"), Layer::at(self.fixture.store().join(format!("new{}", self.copies))));
        let description = dir.join("run.json");
        let mut text: Value = serde_json::from_slice(&fs::read(&description).unwrap()).unwrap();
        text["capture"]["upper"] = serde_json::to_value(UpperId::of(&upper).unwrap()).unwrap();
        // A copy has other inodes, so the list of files that the run made does not apply.
        text["capture"]["made"] = json!([]);
        fs::write(&description, text.to_string()).unwrap();
        let below = [
            OsStr::new("--base"),
            self.fixture.base().path().as_os_str(),
            OsStr::new("--layer"),
            self.layer.path().as_os_str(),
        ]
        .map(OsStr::to_owned);
        let moved = self.fixture.path().join(format!("upper{}", self.copies));
        let arguments = match how {
            How::Kept => vec![dir.into(), layer.path().into()],
            How::Report => {
                let report = self.fixture.path().join(format!("report{}", self.copies));
                fs::rename(&description, &report).unwrap();
                fs::rename(&upper, &moved).unwrap();
                fs::remove_dir_all(&dir).unwrap();
                vec![moved.into(), layer.path().into(), "--run".into(), report.into()]
            }
            How::Base => {
                fs::rename(&upper, &moved).unwrap();
                fs::remove_dir_all(&dir).unwrap();
                [moved.into(), layer.path().into()].into_iter().chain(below).collect()
            }
            How::InPlace => {
                fs::create_dir(layer.path()).unwrap();
                fs::rename(&upper, layer.fs()).unwrap();
                fs::remove_dir_all(&dir).unwrap();
                [layer.fs().into(), layer.path().into()].into_iter().chain(below).collect()
            }
        };
        (arguments, layer)
    }

    /// Lists what is wrong with a committed layer.
    fn wrong(&self, layer: &Layer) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut names: Vec<_> = fs::read_dir(layer.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        // A report and a kept run say what was run.
        if names != ["fs", "layer.json"] && names != ["fs", "layer.json", "run.json"] {
            wrong.push(format!("the layer has {names:?}"));
        }
        let tree = Snapshot::of_path(&layer.fs()).unwrap();
        let paths: Vec<_> = tree.entries.keys().map(|path| path.display().to_string()).collect();
        // The layer also has the files that the run made, because the commit does not recognise
        // their copies.
        if !["", "dir", "dir/new", "dir/old"].iter().all(|path| paths.contains(&path.to_string())) {
            wrong.push(format!("the tree has {paths:?}"));
        }
        if layer.meta().unwrap().map(|meta| meta.disk_usage) != Some(layer.measure().unwrap().bytes) {
            wrong.push("the size is not that of the tree".into());
        }
        if fs::metadata(layer.path()).unwrap().mode() & 0o1000 != 0 {
            wrong.push("the directory still says that it is being made".into());
        }
        wrong
    }
}

/// Kills a commit at `point`. Returns whether the kill took effect.
fn killed(result: &Result, arguments: &[std::ffi::OsString], point: &Point) -> bool {
    let output = program(result, arguments).disturbed(point, Disturbance::Kill);
    output.status.signal() == Some(9)
}

fn program<'a>(result: &Result, arguments: &[std::ffi::OsString]) -> Program<'a> {
    let fifo = result.fixture.path().join("fifo");
    if !fifo.exists() {
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();
    }
    let mut command = layered();
    command.arg("commit").args(arguments).arg("--meta").arg(&fifo);
    Program { command, fifo, text: "{}" }
}

#[test]
fn a_killed_commit_can_be_repeated_even_after_a_collector() {
    let mut result = Result::new();
    for how in [How::Report, How::Base, How::InPlace, How::Kept] {
        let (arguments, layer) = result.commit(how);
        let points = program(&result, &arguments).points();
        assert_eq!(result.wrong(&layer), [""; 0], "{how:?}");
        layer::remove_tree(layer.path()).unwrap();
        let step = points.len().div_ceil(crate::kills::count() as usize).max(1);
        let mut kills = 0;
        for (number, point) in points.iter().enumerate().step_by(step) {
            let (arguments, layer) = result.commit(how);
            kills += usize::from(killed(&result, &arguments, point));
            if number / step % 2 == 0 {
                succeeds(layered().arg("gc").arg(result.fixture.store()).args(["--max-age", "1000d"]));
            }
            // A finished commit in place has nothing left to repeat.
            if how != How::InPlace || layer.meta().unwrap().is_none() {
                succeeds(layered().arg("commit").args(&arguments));
            }
            assert_eq!(result.wrong(&layer), [""; 0], "{how:?} {point:?}");
            layer::remove_tree(layer.path()).unwrap();
            let left: Vec<_> = result.fixture.left().into_iter().filter(|path| *path != result.kept).collect();
            assert_eq!(left, [""; 0].map(PathBuf::from), "{how:?} {point:?}");
        }
        assert!(kills > 10, "{how:?}: {kills} of {} were killed", points.len());
    }
    fs::remove_dir_all(&result.kept).unwrap();
}

#[test]
fn a_killed_commit_leaves_the_upper_or_the_whole_layer() {
    let mut result = Result::new();
    let (arguments, layer) = result.commit(How::Report);
    let points = program(&result, &arguments).points();
    layer::remove_tree(layer.path()).unwrap();
    let step = points.len().div_ceil(crate::kills::count() as usize).max(1);
    for point in points.iter().step_by(step) {
        let (arguments, layer) = result.commit(How::Report);
        killed(&result, &arguments, point);
        succeeds(layered().arg("gc").arg(result.fixture.store()).args(["--max-age", "1000d"]));
        // Either the upper is unchanged, or the whole layer exists.
        let upper = Path::new(&arguments[0]);
        assert_ne!(upper.exists(), layer.path().exists(), "{point:?}");
        match upper.exists() {
            true => fs::remove_dir_all(upper).unwrap(),
            false => {
                assert_eq!(result.wrong(&layer), [""; 0], "{point:?}");
                layer::remove_tree(layer.path()).unwrap();
            }
        }
        let mut names: Vec<_> =
            fs::read_dir(result.fixture.store()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [".layered", "dep"], "{point:?}");
    }
    fs::remove_dir_all(&result.kept).unwrap();
}

#[test]
fn the_upper_of_an_unfinished_run_is_not_committed() {
    let fixture = Fixture::new();
    let upper = fixture.path().join("upper");
    let mut run = fixture.layered_run();
    run.arg("--upper").arg(&upper).args(["--", "sh", "-c", "echo a > /a; echo begun; read line; echo b > /b"]);
    let mut run = run.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(run.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let live = fixture.left()[0].join("upper");
    let layer = fixture.store().join("new");
    let base = fixture.base();
    let link = fixture.path().join("link");
    std::os::unix::fs::symlink(live.parent().unwrap(), &link).unwrap();
    for upper in [live.clone(), link.join("upper"), live.join(".")] {
        let said = refusal(commit(&upper, &layer).arg("--base").arg(base.path()));
        assert!(said.contains("is in use"), "{said}");
    }
    for part in [live.parent().unwrap(), &live.join("../work"), &live.join("../upper/.."), &fixture.scratch()] {
        let said = refusal(commit(part, &layer).arg("--base").arg(base.path()));
        assert!(said.contains("is in use") || said.contains("is the directory of a run"), "{}: {said}", part.display());
    }
    let own = fixture.path().join("own");
    fs::create_dir(&own).unwrap();
    for inside in [live.join("../new"), live.join("new"), live.parent().unwrap().to_path_buf()] {
        let said = refusal(commit(&own, &inside).arg("--base").arg(base.path()));
        assert!(said.contains("is removed as a whole"), "{said}");
    }
    for inside in [&*live, live.parent().unwrap()] {
        let said = refusal(fixture.layered_run().arg("--upper").arg(inside.join("x")).args(["--", "true"]));
        assert!(said.contains("is removed as a whole"), "{said}");
    }
    assert!(!layer.exists());
    run.stdin.take().unwrap().write_all(b"go on\n").unwrap();
    assert!(run.wait().unwrap().success());
    assert_eq!(fs::read(upper.join("b")).unwrap(), b"b\n");
}

#[test]
fn directories_of_layers_and_other_runs_are_refused() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(2);
    layers[0].write_meta(&layer::Meta::new("base", std::time::SystemTime::UNIX_EPOCH)).unwrap();
    let base = fixture.base();
    let (upper, new) = (fixture.path().join("upper"), fixture.store().join("new"));
    let report = fixture.path().join("report");
    let mut run = fixture.layered_run();
    run.arg("--layer").arg(layers[1].path()).arg("--upper").arg(&upper).arg("--json").arg(&report);
    succeeds(run.args(["--", "sh", "-c", "mkdir /fs; echo {} > /layer.json; echo x > /run.json"]).stdin(Stdio::null()));
    let other = fixture.path().join("other");
    fs::create_dir(&other).unwrap();

    let cases: [(PathBuf, PathBuf, &str); 9] = [
        (layers[0].fs(), new.clone(), "belongs to the layer"),
        (layers[0].fs().join("deps"), new.clone(), "belongs to the layer"),
        (layers[0].path().into(), new.clone(), "belongs to the layer"),
        (layers[1].fs(), new.clone(), "is one of the lowers"),
        (layers[1].fs().join("deps"), new.clone(), "overlaps the lower"),
        (fixture.store(), new.clone(), "overlaps the lower"),
        (upper.clone(), layers[1].fs().join("new"), "lies inside"),
        (upper.clone(), upper.join("new"), "lies inside"),
        (upper.clone(), "/".into(), "is the root directory"),
    ];
    for (upper, layer, words) in cases {
        let mut command = commit(&upper, &layer);
        let said = refusal(command.arg("--base").arg(base.path()).arg("--layer").arg(layers[1].path()));
        assert!(said.contains(words), "{}: {said}", upper.display());
    }
    let said = refusal(commit(&other, &new).arg("--run").arg(&report));
    assert!(said.contains("is not the upper that the report describes"), "{said}");
    assert!(!new.exists() && other.exists());
    // The command may make files with names that layers and kept runs use.
    succeeds(commit(&upper, &new).arg("--run").arg(&report));
    let expected = ["fs", "layer.json", "run.json", "tmp"];
    let mut names: Vec<_> =
        fs::read_dir(new.join("fs")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert!(names.iter().all(|name| expected.contains(&&**name)), "{names:?}");
    fs::remove_file(layers[0].meta_path()).unwrap();
    layer::remove_tree(layers[0].path().join("last_used")).unwrap();
}

#[test]
fn a_kept_run_is_not_committed_into_its_own_directory() {
    let result = Result::new();
    for layer in [result.kept.clone(), result.kept.join("new"), result.kept.join("upper/new")] {
        let said = refusal(&mut commit(&result.kept, &layer));
        assert!(said.contains("lies inside"), "{said}");
    }
    assert!(result.kept.join("upper/dir/new").exists());
    succeeds(&mut commit(&result.kept, &result.fixture.store().join("new")));
}

#[test]
fn files_that_the_run_made_are_recognised_without_a_report() {
    let fixture = Fixture::new();
    let (upper, new) = (fixture.path().join("upper"), fixture.store().join("new"));
    let mut run = fixture.layered_run();
    run.arg("--upper").arg(&upper).args(["--network", "host", "--hostname", "secret-host"]);
    run.arg("--mount").arg(format!("type=bind,source={},target=/src/deep", fixture.store().display()));
    succeeds(run.args(["--", "sh", "-c", "echo x > /result"]).stdin(Stdio::null()));
    assert!(upper.join("etc/hosts").exists() && upper.join("src/deep").exists());
    succeeds(commit(&upper, &new).arg("--base").arg(fixture.base().path()));
    let names: Vec<_> = fs::read_dir(new.join("fs")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["result"]);
}

#[test]
fn names_of_any_bytes_are_committed_and_recognised() {
    let fixture = Fixture::new();
    let odd = OsStr::from_bytes(b"b\xff\n\x1b se");
    let base = fixture.path().join(odd);
    fs::rename(fixture.base().path(), &base).unwrap();
    let layer = fixture.layer(odd, |tree| fs::write(tree.join("dep"), "dep").unwrap());
    let run = |more: &[&OsStr]| {
        let mut run = layered();
        run.args(["run", "--base"]).arg(&base).arg("--layer").arg(layer.path()).arg("--scratch").arg(fixture.scratch());
        run.args(more).stdin(Stdio::null());
        run
    };
    let (upper, report) = (fixture.path().join(OsStr::from_bytes(b"u\xfe")), fixture.path().join("report"));
    let options = [OsStr::new("--upper"), upper.as_os_str(), OsStr::new("--json"), report.as_os_str()];
    succeeds(run(&options).args(["--", "sh", "-c", "rm /dep; echo x > /x"]));
    let text: Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
    assert_eq!(text["upper"], layer::json_path::to_value(&upper));
    let one = fixture.store().join(OsStr::from_bytes(b"o\xfdne"));
    succeeds(commit(&upper, &one).arg("--run").arg(&report));
    let meta = Layer::at(&one).meta().unwrap().unwrap();
    assert_eq!((&*meta.base_hash, &meta.parent_hashes[..]), ("b/ff\n\u{1b} se", &["b/ff\n\u{1b} se".to_string()][..]));

    let failed = run(&[OsStr::new("--keep-failed")]).args(["--", "sh", "-c", "echo x > /x; exit 1"]).output().unwrap();
    assert_eq!(failed.status.code(), Some(1));
    let [kept] = &fixture.left()[..] else { panic!("{:?}", fixture.left()) };
    succeeds(layered().arg("shell").arg(kept).args(["--", "cat", "/x", "/dep"]).stdin(Stdio::null()));
    succeeds(&mut commit(kept, &fixture.store().join("two")));
    fs::rename(&base, fixture.path().join("base")).unwrap();
}

/// Runs a collector that removes as much as it may. Returns the names of the removed layers.
fn collect(store: &Path) -> Vec<String> {
    let json = succeeds(layered().arg("gc").arg(store).args(["--max-bytes", "0", "--json"]));
    let json: Value = serde_json::from_str(&json).unwrap();
    json["layers"].as_array().unwrap().iter().map(|layer| layer["name"].as_str().unwrap().to_string()).collect()
}

#[test]
fn results_hold_their_layers_until_committed_or_removed() {
    let fixture = Fixture::new();
    let dep = || {
        let dep = Layer::at(fixture.store().join("dep"));
        fs::create_dir_all(dep.fs()).unwrap();
        fs::write(dep.fs().join("dep"), "dep").unwrap();
        dep.write_meta(&layer::Meta::new("base", std::time::SystemTime::UNIX_EPOCH)).unwrap();
        dep
    };
    let run = |dep: &Layer, more: &[&OsStr]| {
        let mut run = fixture.layered_run();
        run.arg("--layer").arg(dep.path()).args(more).args(["--", "sh", "-c", "echo x > /x; exit 3"]);
        assert_eq!(run.stdin(Stdio::null()).status().unwrap().code(), Some(3));
    };
    let (upper, report) = (fixture.path().join("upper"), fixture.path().join("report"));
    let to_upper = [OsStr::new("--upper"), upper.as_os_str(), OsStr::new("--json"), report.as_os_str()];

    // A kept run holds its layers until it is discarded. A visit does not change that.
    let layer = dep();
    run(&layer, &[OsStr::new("--keep-failed")]);
    let kept = fixture.left()[0].clone();
    assert_eq!(collect(&fixture.store()), [""; 0]);
    succeeds(layered().arg("shell").arg(&kept).args(["--", "cat", "/x", "/dep"]).stdin(Stdio::null()));
    assert_eq!(collect(&fixture.store()), [""; 0]);
    succeeds(layered().arg("discard").arg(&kept));
    assert_eq!(collect(&fixture.store()), ["dep"]);

    // A kept run holds its layers until it is committed.
    run(&dep(), &[OsStr::new("--keep-failed")]);
    let kept = fixture.left()[0].clone();
    assert_eq!(collect(&fixture.store()), [""; 0]);
    succeeds(&mut commit(&kept, &fixture.path().join("elsewhere")));
    assert_eq!(collect(&fixture.store()), ["dep"]);

    // An upper holds its layers until it is committed, removed or moved away.
    run(&dep(), &to_upper);
    assert_eq!(collect(&fixture.store()), [""; 0]);
    layer::remove_tree(fixture.path().join("elsewhere")).unwrap();
    succeeds(commit(&upper, &fixture.path().join("elsewhere")).arg("--run").arg(&report));
    assert_eq!(collect(&fixture.store()), ["dep"]);
    run(&dep(), &to_upper);
    fs::remove_dir_all(&upper).unwrap();
    fs::create_dir(&upper).unwrap();
    assert_eq!(collect(&fixture.store()), ["dep"], "another directory has the upper's name");
    fs::remove_dir(&upper).unwrap();
    run(&dep(), &to_upper);
    fs::rename(&upper, fixture.path().join("moved")).unwrap();
    assert_eq!(collect(&fixture.store()), ["dep"]);
    // The command replaced no directory, so the commit needs nothing of the layers below.
    succeeds(commit(&fixture.path().join("moved"), &fixture.store().join("late")).arg("--run").arg(&report));
}

#[test]
fn a_signal_ends_the_wait_for_a_collector() {
    let fixture = Fixture::new();
    let layer = fixture.layer("a", |_| ());
    let area = fixture.store().join(".layered");
    fs::create_dir(&area).unwrap();
    let lock = fs::File::open(&area).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let mut run = fixture.layered_run();
    run.arg("--layer").arg(layer.path()).args(["--", "echo", "ran"]);
    let mut run = run.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let pid = nix::unistd::Pid::from_raw(run.id().try_into().unwrap());
    let catches_sigterm = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim();
        u64::from_str_radix(mask, 16).unwrap() & (1 << (nix::sys::signal::Signal::SIGTERM as i32 - 1)) != 0
    };
    while !catches_sigterm() {
        assert_eq!(run.try_wait().unwrap(), None, "the run did not wait");
        std::thread::yield_now();
    }
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(143));
    let mut said = String::new();
    run.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "");
    drop(lock);
}

#[test]
fn layers_and_uppers_are_closed_to_other_users() {
    let fixture = Fixture::new();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let (upper, report) = (fixture.path().join("upper"), fixture.path().join("report"));
    let run = |more: &[&str]| {
        let mut run = fixture.layered_run();
        run.arg("--upper").arg(&upper).arg("--json").arg(&report).args(more);
        succeeds(run.args(["--", "true"]).stdin(Stdio::null()));
    };
    assert_eq!(mode(fixture.base().fs().as_path()), 0o755);
    run(&[]);
    assert_eq!(mode(&upper), 0o700, "other users can reach {}", fixture.path().display());
    let new = Layer::at(fixture.store().join("new"));
    succeeds(commit(&upper, new.path()).arg("--run").arg(&report));
    assert_eq!((mode(new.path()), mode(&new.fs())), (0o700, 0o755), "the mode inside containers is unchanged");
    for (number, (options, expected)) in
        [(&["--mode", "0755"][..], 0o755), (&["--group", "root"], 0o750), (&["--mode", "0710", "--group", "0"], 0o710)]
            .into_iter()
            .enumerate()
    {
        run(options);
        assert_eq!(mode(&upper), expected, "{options:?}");
        let new = Layer::at(fixture.store().join(number.to_string()));
        succeeds(commit(&upper, new.path()).arg("--run").arg(&report).args(options));
        assert_eq!((mode(new.path()), mode(&new.fs())), (expected, 0o755), "{options:?}");
    }
    // Where no other user can reach the upper, its mode is not changed.
    let closed = fixture.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    let mut run = fixture.layered_run();
    succeeds(run.arg("--upper").arg(closed.join("upper")).args(["--", "true"]).stdin(Stdio::null()));
    assert_eq!(mode(&closed.join("upper")), 0o755);
    // The same holds for the target of a merge.
    for (target, options, expected) in [
        (fixture.path().join("merged"), &[][..], 0o700),
        (fixture.path().join("open"), &["--mode", "755"], 0o755),
        (closed.join("merged"), &[], 0o755),
    ] {
        succeeds(layered().arg("merge").arg(&target).arg(new.path()).args(options));
        assert_eq!(mode(&target), expected, "{}", target.display());
    }
    let said = refusal(fixture.layered_run().args(["--mode", "0755", "--", "true"]));
    assert!(said.contains("--upper"), "{said}");
}

#[test]
fn a_commit_leaves_the_run_json_of_its_caller() {
    let result = Result::new();
    let layer = Layer::at(result.fixture.store().join("new"));
    fs::create_dir(layer.path()).unwrap();
    let taken = layer.path().join("run.json");
    fs::write(&taken, "{\"of\": \"the caller\"}").unwrap();
    let output = commit(&result.kept, layer.path()).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && stderr.lines().count() == 1, "{stderr}");
    assert!(stderr.contains(&format!("{} exists and is left as it is", taken.display())), "{stderr}");
    assert_eq!(fs::read_to_string(&taken).unwrap(), "{\"of\": \"the caller\"}");
    assert!(layer.meta().unwrap().is_some());
}
