//! A store in use: layers that runs hold, collectors beside the runs, and kills of both.
//! `collector` tests collectors alone.
//!
//! `LAYERED_STORM` sets the number of runs in the storm, by default 24.

use std::collections::BTreeSet;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use integration_tests::stack::private_mounts;
use integration_tests::{Fixture, layered, stdout};
use layer::{Collector, Draft, Error, Hold, Layer, Meta};
use rustix::mount::{MountFlags, UnmountFlags, mount_bind, mount_remount, unmount};
use serde_json::Value;

/// The recorded size of every layer.
const LAYER_BYTES: u64 = 1000;

/// Puts a complete layer into the store unless it exists. Two files in different directories
/// contain `name`.
fn make(store: &Path, name: &str) {
    if store.join(name).exists() {
        return;
    }
    let draft = Draft::begin(store).unwrap();
    for dir in ["begin", "end"] {
        fs::create_dir_all(draft.layer().fs().join(dir)).unwrap();
        fs::write(draft.layer().fs().join(dir).join(name), name).unwrap();
    }
    let meta = Meta { disk_usage: LAYER_BYTES, ..Meta::new("base", SystemTime::now()) };
    draft.layer().write_meta(&meta).unwrap();
    draft.publish(name).unwrap();
}

fn names(store: &Path) -> BTreeSet<String> {
    let layers = layer::scan(store).unwrap().map(|layer| layer.unwrap().name().to_str().unwrap().to_owned());
    layers.collect()
}

/// Lists the contents of the store's own directory, except for its parts themselves.
fn in_area(store: &Path) -> Vec<PathBuf> {
    let area = store.join(".layered");
    if !area.exists() {
        return Vec::new();
    }
    let entries = walkdir::WalkDir::new(&area).min_depth(1).into_iter().map(|entry| entry.unwrap().into_path());
    entries.filter(|path| ["holds", "new"].iter().all(|part| *path != area.join(part))).collect()
}

/// Returns `layered run` over these layers. Its script checks one file of each layer at its start
/// and another one at its end.
fn layered_run<'a>(fixture: &Fixture, layers: impl IntoIterator<Item = &'a String>, pause: &str) -> Command {
    let mut command = fixture.layered_run();
    let mut names = String::new();
    for layer in layers {
        command.arg("--layer").arg(fixture.store().join(layer));
        names = format!("{names} {layer}");
    }
    let look = |dir| format!("for n in {names}; do [ \"$(cat /{dir}/$n)\" = $n ] || exit 99; done");
    command.args(["--", "sh", "-c", &format!("{}; echo begun; {pause}; {}", look("begin"), look("end"))]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn layered_gc(fixture: &Fixture, options: &[&str]) -> Command {
    let mut command = layered();
    command.arg("gc").arg(fixture.store()).args(options).stdin(Stdio::null());
    command
}

/// Runs `layered gc --json`. Returns its output.
fn gc(fixture: &Fixture, options: &[&str]) -> Value {
    let Output { status, stdout, stderr } = layered_gc(fixture, options).arg("--json").output().unwrap();
    assert!(status.success() && stderr.is_empty(), "{}", String::from_utf8_lossy(&stderr));
    serde_json::from_slice(&stdout).unwrap()
}

/// A pause that ends when the test closes the run's standard input.
const UNTIL_INPUT_ENDS: &str = "read line";

fn wait_until_begun(run: &mut Child) {
    let mut line = String::new();
    BufReader::new(run.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "begun\n");
}

/// Random numbers.
struct Dice(RandomState, u64);

impl Dice {
    fn new() -> Self {
        Self(RandomState::new(), 0)
    }

    fn roll(&mut self, sides: usize) -> usize {
        self.1 += 1;
        (self.0.hash_one(self.1) % sides as u64) as usize
    }
}

/// Waits for the process, or kills it at a random moment within `kill_within`.
fn wait_or_kill(mut child: Child, kill_within: Option<Duration>, dice: &mut Dice) -> Option<Output> {
    if let Some(span) = kill_within {
        thread::sleep(span * dice.roll(1000) as u32 / 1000);
        child.kill().unwrap();
    }
    let output = child.wait_with_output().unwrap();
    kill_within.is_none().then_some(output)
}

#[test]
fn a_result_holds_its_layers() {
    let fixture = Fixture::new();
    // A collector may remove layers from this store, because the fixture does not check it.
    let store = fixture.path().join("collected");
    fs::create_dir(&store).unwrap();
    let layers = ["a", "b", "c"].map(|name| {
        make(&store, name);
        Layer::open(store.join(name)).unwrap()
    });
    let collect = || {
        let output = layered().arg("gc").arg(&store).args(["--max-bytes", "0"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        layers.iter().filter(|layer| layer.path().exists()).count()
    };
    let report = fixture.run(&layers[..2], "true");
    assert_eq!(collect(), 2);
    drop(report);
    assert_eq!(collect(), 0);
}

#[test]
fn no_run_loses_a_layer_in_a_storm_of_collectors() {
    const LAYERS: usize = 30;
    let fixture = Fixture::new();
    let runs = std::env::var("LAYERED_STORM").map_or(24, |runs| runs.parse().expect("LAYERED_STORM is a number"));
    let store = fixture.store();
    let make_all = || (0..LAYERS).for_each(|number| make(&store, &number.to_string()));
    make_all();
    let (is_over, next) = (AtomicBool::new(false), AtomicUsize::new(0));
    let [whole, refused, collected] = [const { AtomicUsize::new(0) }; 3];
    let until_over = |work: &mut dyn FnMut()| {
        while !is_over.load(Ordering::Relaxed) {
            work();
        }
    };
    let collect = || {
        let mut dice = Dice::new();
        until_over(&mut || {
            let gc = layered_gc(&fixture, &["--max-bytes", "15000", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
            let kill = (dice.roll(3) == 0).then_some(Duration::from_millis(20));
            if let Some(output) = wait_or_kill(gc, kill, &mut dice) {
                assert!(output.status.success());
                let report: Value = serde_json::from_slice(&output.stdout).unwrap();
                collected.fetch_add(report["layers"].as_array().unwrap().len(), Ordering::Relaxed);
            }
        });
    };
    let run = || {
        let mut dice = Dice::new();
        // There are more runs if the machine has let none succeed yet.
        let tried = || [&whole, &collected].iter().all(|count| count.load(Ordering::Relaxed) > 0);
        let goes_on = |run| run < runs || run < 50 * runs && !tried();
        while goes_on(next.fetch_add(1, Ordering::Relaxed)) {
            let there: Vec<_> = names(&store).into_iter().collect();
            let some: BTreeSet<_> = (0..6).filter_map(|_| there.get(dice.roll(there.len().max(1))).cloned()).collect();
            let run = layered_run(&fixture, &some, "sleep 0.05").spawn().unwrap();
            let kill = (dice.roll(4) == 0).then_some(Duration::from_millis(150));
            let Some(output) = wait_or_kill(run, kill, &mut dice) else { continue };
            let said = String::from_utf8_lossy(&output.stderr);
            match output.status.code() {
                Some(0) => whole.fetch_add(1, Ordering::Relaxed),
                // A collector removed a layer before the run could hold it. The error names the
                // layer.
                Some(125) if some.iter().any(|name| said.contains(&format!("{name} does not exist; pass"))) => {
                    refused.fetch_add(1, Ordering::Relaxed)
                }
                status => panic!("{status:?}: {said}"),
            };
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| until_over(&mut || make_all()));
        scope.spawn(collect);
        scope.spawn(collect);
        let runs = [(); 4].map(|()| scope.spawn(run));
        let runs = runs.map(|run| run.join());
        is_over.store(true, Ordering::Relaxed);
        runs.into_iter().for_each(|run| run.unwrap());
    });
    let counts = [whole, refused, collected].map(AtomicUsize::into_inner);
    eprintln!("{} runs saw all of their layers, {} were refused; {} layers collected", counts[0], counts[1], counts[2]);
    assert!(counts[0] > 0 && counts[2] > 0, "{counts:?}");

    fixture.assert_nothing_lives();
    let last = gc(&fixture, &["--max-bytes", "0"]);
    assert_eq!(
        (&last["failed"], &last["held"], &last["within_budget"]),
        (&[0; 0].into(), &[0; 0].into(), &true.into())
    );
    assert_eq!((names(&store), in_area(&store)), (BTreeSet::new(), Vec::new()));
    fixture.sweep();
}

#[test]
fn a_layer_in_use_is_kept_until_its_run_ends_or_is_killed() {
    let fixture = Fixture::new();
    let store = fixture.store();
    for killed in [false, true] {
        let all = ["a", "b", "c"].map(String::from);
        all.iter().for_each(|name| make(&store, name));
        let mut run = layered_run(&fixture, &all[..2], UNTIL_INPUT_ENDS).stdin(Stdio::piped()).spawn().unwrap();
        wait_until_begun(&mut run);
        let report = gc(&fixture, &["--max-bytes", "0"]);
        assert_eq!((&report["layers"][0]["name"], &report["bytes"]), (&"c".into(), &LAYER_BYTES.into()));
        let mut held: Vec<_> = report["held"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        held.sort_unstable();
        assert_eq!((held, &report["within_budget"]), (vec!["a", "b"], &false.into()));
        let listed = layered().arg("ls").arg(&store).output().unwrap();
        assert_eq!(String::from_utf8(listed.stdout).unwrap().matches("in use").count(), 2);

        // The run ends when its standard input is closed, or by the kill.
        let stdin = run.stdin.take();
        match killed {
            true => run.kill().unwrap(),
            false => drop(stdin),
        }
        let Output { status, stderr, .. } = run.wait_with_output().unwrap();
        assert!(killed || status.success(), "{}", String::from_utf8_lossy(&stderr));
        assert_eq!(in_area(&store).len(), usize::from(killed), "the hold of a killed run still is a file");
        let report = gc(&fixture, &["--max-bytes", "0"]);
        assert_eq!((report["layers"].as_array().unwrap().len(), &report["within_budget"]), (2, &true.into()));
        assert_eq!((names(&store), in_area(&store)), (BTreeSet::new(), Vec::new()));
        fixture.assert_nothing_lives();
        fixture.sweep();
    }
}

#[test]
fn a_base_that_is_a_layer_of_a_store_is_held() {
    let fixture = Fixture::new();
    let base = Layer::at(fixture.base().path());
    base.write_meta(&Meta::new("base", SystemTime::UNIX_EPOCH)).unwrap();
    let mut run = layered_run(&fixture, [], UNTIL_INPUT_ENDS).stdin(Stdio::piped()).spawn().unwrap();
    wait_until_begun(&mut run);
    let collected = Collector::new().max_bytes(0).collect(fixture.path()).unwrap();
    assert_eq!((collected.layers.len(), &collected.held[..]), (0, &["base".into()][..]));
    assert!(run.wait_with_output().unwrap().status.success());
}

#[test]
fn a_store_directory_of_another_user_is_not_used() {
    let fixture = Fixture::new();
    make(&fixture.store(), "a");
    let area = fixture.store().join(".layered");
    std::os::unix::fs::chown(&area, Some(1000), Some(1000)).unwrap();
    let refused = Collector::new().max_bytes(0).collect(fixture.store()).unwrap_err();
    assert_eq!(refused.path(), Some(&*area));
    let run = layered_run(&fixture, [&"a".into()], "true").output().unwrap();
    let stderr = String::from_utf8_lossy(&run.stderr);
    assert!(
        run.status.success() && stderr.starts_with("layered: warn: layers of ") && stderr.lines().count() == 1,
        "{stderr}"
    );
    assert!(in_area(&fixture.store()).is_empty());
}

#[test]
fn a_container_has_no_descriptor_of_a_hold() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(2);
    // `ls` has already closed the descriptor by which it read the directory. The init has only the
    // descriptor of its report.
    let report = fixture.run(&layers, "for fd in self 1; do ls -l /proc/$fd/fd 2>/dev/null; done; true");
    assert!(
        [" 1 -> ", " 3 -> pipe:"].iter().all(|open| stdout(&report).matches(open).count() == 1)
            && !stdout(&report).contains("holds"),
        "{}",
        stdout(&report)
    );
}

#[test]
fn layers_of_a_read_only_store_are_held_by_a_lock() {
    let fixture = Fixture::new();
    make(&fixture.store(), "a");
    thread::scope(|scope| {
        let work = || {
            private_mounts().unwrap();
            mount_bind(fixture.store(), fixture.store()).unwrap();
            mount_remount(fixture.store(), MountFlags::BIND | MountFlags::RDONLY, "").unwrap();
            let layers = [Layer::open(fixture.store().join("a")).unwrap()];
            let report = fixture.run(&layers, "cat /begin/a");
            assert_eq!(stdout(&report), "a");
            let collect = || Collector::new().max_bytes(0).collect(fixture.store());
            let collected = collect().unwrap();
            assert_eq!((collected.layers.len(), &collected.held[..]), (0, &["a".into()][..]));
            report.upper.close().unwrap();
            let refused = collect().unwrap_err();
            assert!(
                matches!(&refused, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::ReadOnlyFilesystem)
            );
        };
        scope.spawn(work).join().unwrap();
    });
    assert!(in_area(&fixture.store()).is_empty());
}

#[test]
fn a_mount_in_a_collected_layer_is_reported_and_stays() {
    let fixture = Fixture::new();
    let store = fixture.store();
    ["a", "b"].iter().for_each(|name| make(&store, name));
    let precious = fixture.path().join("precious");
    fs::create_dir(&precious).unwrap();
    fs::write(precious.join("file"), "").unwrap();
    thread::scope(|scope| {
        let work = || {
            private_mounts().unwrap();
            mount_bind(&precious, store.join("a/fs/end")).unwrap();
            let collected = Collector::new().max_bytes(0).collect(&store).unwrap();
            assert_eq!(collected.layers.len(), 2);
            let Some(Error::MountInside { path }) = collected.failed.first() else { panic!("{collected:?}") };
            assert!(precious.join("file").exists() && path.starts_with(store.join(".layered")), "{collected:?}");
            // A process that another test starts may briefly have one of the collector's
            // descriptors.
            unmount(path, UnmountFlags::DETACH).unwrap();
        };
        scope.spawn(work).join().unwrap();
    });
    let collected = Collector::new().collect(&store).unwrap();
    assert_eq!((collected.orphans, collected.failed.len()), (1, 0), "{collected:?}");
    assert!(in_area(&store).is_empty() && precious.join("file").exists());
}

#[test]
fn a_run_over_a_collected_layer_is_refused() {
    let fixture = Fixture::new();
    let store = fixture.store();
    ["gone", "held"].iter().for_each(|name| make(&store, name));
    let [gone, held] = ["gone", "held"].map(|name| Layer::open(store.join(name)).unwrap());
    let _hold = Hold::of([held.path()]).unwrap();
    assert_eq!(Collector::new().max_bytes(0).collect(&store).unwrap().layers[0].name, "gone");
    let template = integration_tests::shell("true").build().unwrap();
    let error = runner::run(&fixture.base(), &[held, gone.clone()], &template, fixture.options()).unwrap_err();
    assert_eq!((error.phase(), error.path()), (Some(runner::Phase::Inputs), Some(gone.path())));
    assert!(matches!(error.cause(), runner::Cause::Layer(Error::NotADirectory { .. })), "{error}");
}

#[test]
fn gc_prints_tables_and_json() {
    let fixture = Fixture::new();
    let store = fixture.store();
    let text = |options: &[&str]| {
        let Output { status, stdout, stderr } = layered_gc(&fixture, options).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (status.code().unwrap(), text(stdout), text(stderr))
    };
    for (name, used) in [("b", 2), ("a", 1), ("c", 3)] {
        make(&store, name);
        let layer = Layer::at(store.join(name));
        layer.touch().unwrap();
        let time = SystemTime::now() - Duration::from_secs(3600 * (10 - used));
        fs::File::open(layer.last_used_path()).unwrap().set_modified(time).unwrap();
    }
    let (status, dry, stderr) = text(&["--max-bytes", "1k", "--dry-run"]);
    assert_eq!((status, &*stderr), (0, ""));
    assert_eq!(
        dry,
        "NAME    SIZE  LAST USED\na     1000 B  9 hours ago\nb     1000 B  8 hours ago\n2 layers would be removed, 2.0 KiB\n"
    );
    let report = gc(&fixture, &["--max-age", "8h 30m"]);
    assert_eq!(report["layers"][0]["name"], "a");
    assert_eq!(names(&store), BTreeSet::from(["b", "c"].map(String::from)));
    // The inodes are the directory, `fs`, two directories, two files, `layer.json` and `last_used`.
    let report = gc(&fixture, &["--max-inodes", "15", "--dry-run"]);
    assert_eq!((&report["layers"][0]["name"], &report["layers"][0]["inodes"]), (&"b".into(), &8.into()));
    assert_eq!(gc(&fixture, &["--max-inodes", "16"])["layers"], Value::Array(Vec::new()));
    assert_eq!(gc(&fixture, &["--min-free", "1"])["layers"], Value::Array(Vec::new()));
    let check = |options: &[&str]| text(&[options, &["--check"]].concat());
    assert_eq!(check(&["--max-inodes", "16", "--min-free", "1", "--min-free-inodes", "1"]), (0, "".into(), "".into()));
    for budget in [["--max-inodes", "15"], ["--min-free", "16000000t"]] {
        assert_eq!(check(&budget), (75, "".into(), "".into()), "{budget:?}");
    }
    assert_eq!(names(&store).len(), 2);
    for other in [&["--max-age", "1d"][..], &["--dry-run"], &["--json"]] {
        let (status, _, stderr) = check(&[&["--min-free", "1"], other].concat());
        assert!(status == 125 && stderr.contains("cannot be used with"), "{other:?}: {stderr}");
    }
    let (status, all, _) = text(&["--min-free", "16000000t"]);
    assert_eq!(status, 0);
    assert!(all.contains("2 layers removed, 2.0 KiB\n") && all.ends_with("store is still over the budget\n"), "{all}");

    let (status, _, stderr) = text(&[]);
    assert!(status == 125 && stderr.contains("--max-bytes"), "{stderr}");
    let (status, _, stderr) = text(&["--max-age", "soon"]);
    assert!(status == 125 && stderr.contains("--max-age"), "{stderr}");
}
