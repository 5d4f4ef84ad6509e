//! `layered gc` on full disks, with wrong sizes, and killed at any of its system calls. Collectors
//! beside runs are tested in module `store`.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, SystemTime};

use integration_tests::disk::Disk;
use integration_tests::layered;
use integration_tests::stack::{private_mounts, require_root};
use integration_tests::strace::Started;
use layer::{Hold, Layer, Meta, Store, TreeSize};
use rustix::fs::{CWD, FileType, Mode, mknodat, statvfs};
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use serde_json::{Value, json};

/// The size of the large file in each layer of [`store`].
const LAYER_BYTES: usize = 1 << 20;

/// The mode of a layer's directory.
const LAYER_MODE: u32 = 0o750;

/// Puts a layer into the store that was made `age` days ago and never used.
fn layer(store: &Path, name: &str, bytes: usize, age: u64) -> Layer {
    let layer = Layer::at(store.join(name));
    fs::create_dir_all(layer.fs().join("dir")).unwrap();
    fs::write(layer.fs().join("dir/file"), vec![1; bytes]).unwrap();
    fs::write(layer.fs().join("file"), name).unwrap();
    fs::write(layer.log_path(), "log").unwrap();
    fs::set_permissions(layer.path(), fs::Permissions::from_mode(LAYER_MODE)).unwrap();
    let disk_usage = layer.measure().unwrap().bytes;
    layer.write_meta(&Meta { disk_usage, ..Meta::new("base", SystemTime::now()) }).unwrap();
    let made = SystemTime::now() - Duration::from_secs(age * 24 * 3600);
    fs::File::open(layer.meta_path()).unwrap().set_modified(made).unwrap();
    layer
}

/// Makes the layers `a`, `b` and `c`, from the least to the most recently used.
fn store(store: &Path, bytes: usize) {
    for (name, age) in [("a", 30), ("b", 20), ("c", 10)] {
        layer(store, name, bytes, age);
    }
}

fn is_whole(layer: &Layer, bytes: usize) -> bool {
    fs::read(layer.fs().join("file")).is_ok_and(|name| OsStr::new(std::str::from_utf8(&name).unwrap()) == layer.name())
        && fs::metadata(layer.fs().join("dir/file")).is_ok_and(|file| file.len() == bytes as u64)
        && layer.meta().unwrap().is_some()
        && layer.log_path().exists()
}

/// Lists all entries of a store and of its own directory `.layered`. The parts of that directory
/// are not listed themselves.
fn all(store: &Path) -> Vec<String> {
    let names = |dir: &Path| {
        let entries = fs::read_dir(dir).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    let area = store.join(".layered");
    let mut all: Vec<_> = names(store).into_iter().filter(|name| name != ".layered").collect();
    all.extend(names(&area).into_iter().filter(|name| !["holds", "new"].contains(&&**name)));
    all.extend(["holds", "new"].iter().flat_map(|part| names(&area.join(part))));
    all.sort();
    all
}

fn gc(store: &Path, options: &[&str]) -> Output {
    layered().arg("gc").arg(store).args(options).arg("--json").stdin(Stdio::null()).output().unwrap()
}

fn report(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn names(report: &Value) -> Vec<&str> {
    report["layers"].as_array().unwrap().iter().map(|layer| layer["name"].as_str().unwrap()).collect()
}

/// Calls `work` on a thread with a private mount namespace.
fn with_mounts<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    require_root();
    std::thread::scope(|scope| {
        let work = || {
            private_mounts().unwrap();
            work()
        };
        scope.spawn(work).join().unwrap()
    })
}

/// The parts of the store's own directory that exist when the disk becomes full.
const AREAS: [&str; 3] = ["none", "only .layered", "all"];

fn make_area(store: &Path, area: &str) {
    match area {
        "none" => {}
        "only .layered" => fs::DirBuilder::new().mode(0o700).create(store.join(".layered")).unwrap(),
        _ => Hold::of([store.join("a")]).unwrap().release().unwrap(),
    }
}

/// Makes a store on a disk and then fills the disk.
fn full_store(dir: &Path, area: &str, fill: fn(&Disk)) -> (Disk, PathBuf) {
    let image = dir.join("image");
    // The disk has few inodes and no blocks reserved for root.
    Disk::format(&image, 8 << 20, "-m0 -N 256");
    let disk = Disk::mount(&image, dir.join("disk"));
    let path = disk.path().join("store");
    store(&path, LAYER_BYTES);
    make_area(&path, area);
    fill(&disk);
    (disk, path)
}

#[test]
fn a_collection_frees_a_full_disk() {
    type Fill = (&'static str, fn(&Disk));
    let fills: [Fill; 3] = [("blocks", Disk::fill_blocks), ("inodes", Disk::fill_inodes), ("both", Disk::fill)];
    for (area, (what, fill)) in AREAS.iter().flat_map(|area| fills.map(|fill| (area, fill))) {
        with_mounts(|| {
            let dir = tempfile::tempdir().unwrap();
            let (disk, store) = full_store(dir.path(), area, fill);
            let case = format!("{what} taken, area: {area}");
            let stat = statvfs(disk.path()).unwrap();
            let free = stat.f_bavail * stat.f_frsize;
            // Half a layer needs one removal, and one and a half layers need two.
            for (wanted, gone) in [(LAYER_BYTES / 2, "a"), (LAYER_BYTES * 3 / 2, "b")] {
                let wanted = free + wanted as u64;
                let dry = report(&gc(&store, &["--min-free", &wanted.to_string(), "--dry-run"]));
                let done = report(&gc(&store, &["--min-free", &wanted.to_string()]));
                assert_eq!(
                    (names(&dry), names(&done), &done["within_budget"]),
                    (vec![gone], vec![gone], &true.into()),
                    "{case}"
                );
                let stat = statvfs(disk.path()).unwrap();
                assert!(stat.f_bavail * stat.f_frsize >= wanted, "{case}");
            }
            assert_eq!(all(&store), ["c"], "{case}");
            let c = Layer::at(store.join("c"));
            assert!(
                is_whole(&c, LAYER_BYTES) && fs::metadata(c.path()).unwrap().mode() & 0o7777 == LAYER_MODE,
                "{case}"
            );
            let area = fs::metadata(store.join(".layered")).unwrap();
            assert_eq!(area.mode() & 0o7777, 0o700, "{case}");
            // The new `.layered` directory works like any other.
            let hold = Hold::of([c.path()]).unwrap();
            let held = report(&gc(&store, &["--max-bytes", "0"]));
            assert_eq!((&held["held"], all(&store).len()), (&Value::from(vec!["c"]), 2), "{case}");
            hold.release().unwrap();
        });
    }
}

#[test]
fn a_single_layer_is_removed_from_a_full_disk() {
    for area in AREAS {
        with_mounts(|| {
            let dir = tempfile::tempdir().unwrap();
            let (_disk, path) = full_store(dir.path(), area, Disk::fill);
            let store = Store::open(&path).unwrap();
            for name in ["b", "a"] {
                store.remove(name).unwrap();
            }
            assert_eq!(all(&path), ["c"], "{area}");
        });
    }
}

#[test]
fn an_understated_size_removes_no_additional_layers() {
    with_mounts(|| {
        let dir = tempfile::tempdir().unwrap();
        let (disk, store) = full_store(dir.path(), "all", |disk| {
            for name in ["a", "b", "c"] {
                let layer = Layer::at(disk.path().join("store").join(name));
                let meta = layer.meta().unwrap().unwrap();
                let made = fs::metadata(layer.meta_path()).unwrap().modified().unwrap();
                layer.write_meta(&Meta { disk_usage: 1, ..meta }).unwrap();
                fs::File::open(layer.meta_path()).unwrap().set_modified(made).unwrap();
            }
            disk.fill_blocks();
        });
        let done = report(&gc(&store, &["--min-free", &(LAYER_BYTES / 2).to_string()]));
        assert_eq!((names(&done), &done["within_budget"]), (vec!["a"], &true.into()));
        // A held layer makes no room.
        let hold = Hold::of([store.join("b")]).unwrap();
        let done = report(&gc(&store, &["--min-free", &disk_bytes(&disk).to_string()]));
        assert_eq!((names(&done), &done["held"], &done["within_budget"]), (vec!["c"], &json!(["b"]), &false.into()));
        hold.release().unwrap();
    });
}

/// Returns the size of the disk.
fn disk_bytes(disk: &Disk) -> u64 {
    let stat = statvfs(disk.path()).unwrap();
    stat.f_blocks * stat.f_frsize
}

#[test]
fn inodes_are_freed_until_enough_are_there() {
    with_mounts(|| {
        let dir = tempfile::tempdir().unwrap();
        let (disk, store) = full_store(dir.path(), "all", Disk::fill_inodes);
        let free = || statvfs(disk.path()).unwrap().f_favail;
        // Each layer has seven inodes, and another budget is kept already.
        for (wanted, gone) in [(1, "a"), (7, ""), (8, "b")] {
            let done = report(&gc(&store, &["--min-free-inodes", &wanted.to_string(), "--min-free", "1"]));
            assert_eq!(names(&done).concat(), gone, "{wanted}");
            assert!(free() >= wanted, "{wanted}");
        }
        let hold = Hold::of([store.join("c")]).unwrap();
        let done = report(&gc(&store, &["--min-free-inodes", "1000"]));
        assert_eq!((&done["held"], &done["within_budget"]), (&json!(["c"]), &false.into()));
        hold.release().unwrap();
    });
}

#[test]
fn other_budgets_work_on_a_full_disk_too() {
    for area in AREAS {
        // The three layers have 1 MiB and seven inodes each and were used 30, 20 and 10 days ago.
        for (budget, gone) in
            [("--max-bytes=1200k", "ab"), ("--max-inodes=8", "ab"), ("--max-age=15d", "ab"), ("--max-bytes=0", "abc")]
        {
            with_mounts(|| {
                let dir = tempfile::tempdir().unwrap();
                let (_disk, store) = full_store(dir.path(), area, Disk::fill);
                let done = report(&gc(&store, &[budget]));
                assert_eq!(names(&done).concat(), gone, "{area}, {budget}");
                assert_eq!(all(&store).concat(), &"abc"[gone.len()..], "{area}, {budget}");
            });
        }
    }
}

#[test]
fn many_layers_are_removed_although_no_directory_can_grow() {
    with_mounts(|| {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        // One block of a directory holds about 40 names.
        Disk::format(&image, 8 << 20, "-m0 -b 1024 -N 2048");
        let disk = Disk::mount(&image, dir.path().join("disk"));
        let store = disk.path().join("store");
        (0..150).for_each(|n| drop(layer(&store, &format!("{n:012}"), 1, 1000 - n)));
        fs::create_dir(store.join(".layered")).unwrap();
        disk.fill_blocks();
        let done = report(&gc(&store, &["--max-bytes", "0"]));
        assert_eq!((names(&done).len(), all(&store)), (150, Vec::new()));
    });
}

/// Returns a `layered gc` that has to remove `a` and `b` of [`store`].
fn gc_of_two(store: &Path) -> Command {
    let mut command = layered();
    command.arg("gc").arg(store).args(["--max-age", "15d"]);
    command
}

/// Makes every creation of a directory fail.
const NO_ROOM: &[&str] = &["-e", "inject=?mkdir,?mkdirat:error=ENOSPC"];

/// The size of the large file where the size does not matter.
const FEW_BYTES: usize = 5000;

/// Calls that change something. A kill between two of them always has the same result, so the test
/// tries only a few others.
const CHANGES: [&str; 12] = [
    "chmod",
    "fchmod",
    "flock",
    "mkdir",
    "mkdirat",
    "rename",
    "renameat",
    "renameat2",
    "rmdir",
    "unlink",
    "unlinkat",
    "write",
];

/// Kills a collector at each of its system calls that changes something, and at some others. Checks
/// that the next collector removes everything that the first one left.
fn killed_everywhere(area: &str, faults: &'static [&'static str], leftovers: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let make = || {
        if path.exists() {
            fs::remove_dir_all(&path).unwrap();
        }
        store(&path, FEW_BYTES);
        make_area(&path, area);
        leftovers.iter().for_each(|left| fs::create_dir_all(path.join(".layered").join(left)).unwrap());
    };
    let command = gc_of_two(&path);
    let collector = Started { command: &command, path: &path, options: faults };
    make();
    let (mut points, others): (Vec<_>, Vec<_>) =
        collector.points().into_iter().partition(|point| CHANGES.contains(&&*point.call));
    // Calls that fail anyway are not used for kills.
    points.retain(|point| faults.is_empty() || !point.call.starts_with("mkdir"));
    points.extend(others.iter().step_by(others.len() / 20 + 1).cloned());
    assert_eq!(all(&path), ["c"]);
    let mut killed = 0;
    for point in &points {
        make();
        killed += usize::from(collector.killed(point).status.signal() == Some(9));
        let case = format!("{area}, {point:?}");
        for layer in ["a", "b", "c"].map(|name| Layer::at(path.join(name))) {
            assert!(!layer.meta_path().exists() || is_whole(&layer, FEW_BYTES), "{case}: {layer:?}");
        }
        report(&gc(&path, &["--max-age", "15d"]));
        assert_eq!(all(&path), ["c"], "{case}");
        let c = Layer::at(path.join("c"));
        let mode = fs::metadata(c.path()).unwrap().mode() & 0o7777;
        assert_eq!((is_whole(&c, FEW_BYTES), mode), (true, LAYER_MODE), "{case}");
    }
    eprintln!("{area}: {killed} of {} were killed", points.len());
    // The threads of a removal divide the work differently each time, so some points are not
    // reached.
    assert!(killed * 2 > points.len(), "{killed} of {} were killed", points.len());
}

#[test]
fn a_collector_removes_what_a_killed_one_left() {
    for area in AREAS {
        killed_everywhere(area, &[], &[]);
    }
    killed_everywhere("all", &[], &["trash-dead/fs/usr", "trash/0/1/fs", "new/dead/layer/fs"]);
}

#[test]
fn a_collector_removes_what_a_killed_one_left_on_a_full_disk() {
    killed_everywhere("none", NO_ROOM, &[]);
    killed_everywhere("only .layered", NO_ROOM, &[]);
}

#[test]
fn an_exceeded_quota_counts_as_a_full_disk_and_other_failures_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let table: [(&'static [&'static str], _, &[&str]); 4] = [
        (&["-e", "inject=?mkdir,?mkdirat:error=EDQUOT"], None, &["c"]),
        (&["-e", "inject=?mkdir,?mkdirat:error=EROFS"], Some("Read-only file system"), &["a", "b", "c"]),
        (&["-e", "inject=?mkdir,?mkdirat:error=EACCES"], Some("Permission denied"), &["a", "b", "c"]),
        // In this case, a new name does not fit, either.
        (&["-e", "inject=?mkdir,?mkdirat,?renameat2:error=ENOSPC"], Some("No space left on device"), &["a", "b", "c"]),
    ];
    for (faults, why, left) in table {
        if path.exists() {
            fs::remove_dir_all(&path).unwrap();
        }
        store(&path, FEW_BYTES);
        let Output { status, stderr, .. } = Started { command: &gc_of_two(&path), path: &path, options: faults }.run();
        let stderr = String::from_utf8(stderr).unwrap();
        let lines: Vec<_> = stderr.lines().filter(|line| line.starts_with("layered: ")).collect();
        match why {
            None => assert!(status.success() && lines.is_empty(), "{stderr}"),
            Some(why) => {
                assert!(matches!(&lines[..], [line] if line.contains(why)), "{stderr}");
                assert_eq!(status.code(), Some(125));
            }
        }
        assert_eq!(all(&path), left, "{faults:?}");
        for name in left {
            let layer = Layer::at(path.join(name));
            let mode = fs::metadata(layer.path()).unwrap().mode() & 0o7777;
            assert_eq!((is_whole(&layer, FEW_BYTES), mode), (true, LAYER_MODE), "{faults:?}");
        }
    }
}

#[test]
fn measured_sizes_equal_those_of_du() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir_all(tree.join("some/where")).unwrap();
    fs::File::create(tree.join("some/sparse")).unwrap().set_len(300 << 30).unwrap();
    for n in 0..300 {
        fs::write(tree.join(format!("some/where/{n}")), "x".repeat(n * 100)).unwrap();
        fs::hard_link(tree.join(format!("some/where/{n}")), tree.join(format!("some/{n}"))).unwrap();
    }
    symlink("/", tree.join("link")).unwrap();
    mknodat(CWD, tree.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    mknodat(CWD, tree.join("whiteout"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    let du = |option: &str| {
        let output = Command::new("du").args(["-s", option]).arg(&tree).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    let size = TreeSize::of(&tree).unwrap();
    assert_eq!((size.bytes, size.entries + 1), (du("--block-size=1"), du("--inodes")));
}

#[test]
fn a_mount_in_a_tree_is_not_measured() {
    with_mounts(|| {
        let dir = tempfile::tempdir().unwrap();
        let [tree, large] = ["tree", "large"].map(|name| dir.path().join(name));
        fs::create_dir_all(tree.join("mounted")).unwrap();
        fs::create_dir(&large).unwrap();
        fs::write(large.join("file"), vec![1; LAYER_BYTES]).unwrap();
        mount_bind(&large, tree.join("mounted")).unwrap();
        let size = TreeSize::of(&tree).unwrap();
        assert!(size.entries == 1 && size.bytes < LAYER_BYTES as u64, "{size:?}");
        unmount(tree.join("mounted"), UnmountFlags::empty()).unwrap();
    });
}

#[test]
fn ls_measures_layers_whose_recorded_size_is_impossible() {
    let dir = tempfile::tempdir().unwrap();
    store(dir.path(), LAYER_BYTES);
    for (name, disk_usage) in [("a", u64::MAX), ("b", 0)] {
        let layer = Layer::at(dir.path().join(name));
        let meta = layer.meta().unwrap().unwrap();
        layer.write_meta(&Meta { disk_usage, ..meta }).unwrap();
    }
    let output = layered().arg("ls").arg(dir.path()).arg("--json").output().unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    let report: Vec<_> = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect();
    let report: Vec<_> = report.iter().map(|layer| &layer["disk_usage"]).collect();
    let measured = |name| json!(TreeSize::of(dir.path().join(name)).unwrap().bytes);
    let recorded = json!(Layer::at(dir.path().join("c")).measure().unwrap().bytes);
    assert_eq!(report, [&measured("a"), &measured("b"), &recorded]);
}
