//! Overlays that runs share: which layers they have, what the runs see, and when the overlays are
//! unmounted. `property` compares them with flat stacks, without runs.

mod property;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Instant, SystemTime};

use container::advanced::{Nesting, mount_private_tmpfs};
use container::{Overlay, OverlayXattrs, in_private_mount_namespace};
use integration_tests::disk::Disk;
use integration_tests::stack::private_mounts;
use integration_tests::tree::Snapshot;
use integration_tests::{FOR_EVER, Fixture, stdout};
use layer::{Collector, Layer, Meta, Rung, Store};
use runner::{Event, Options, Phase, Report, Stacks};
use rustix::fs::statvfs;

/// The ways of nesting that this kernel has, which are tried out. `Attached` works on every kernel
/// that has `lowerdir+`.
fn ways() -> impl Iterator<Item = Nesting> {
    let dir = tempfile::tempdir().unwrap();
    let [one, other, attached] = ["one", "other", "attached"].map(|name| dir.path().join(name));
    [&one, &other, &attached].into_iter().for_each(|path| fs::create_dir(path).unwrap());
    let overlay = Overlay::new([&one, &other]).mount_detached().unwrap();
    let nest = |lower: &Path| Overlay::new([&one]).over(lower).mount_detached().map(drop);
    let has = |way: &Nesting| {
        let nested = in_private_mount_namespace(|| overlay.as_lower(*way, &attached, nest)).unwrap();
        assert!(nested.is_ok() || *way == Nesting::Descriptor, "{nested:?}");
        nested.is_ok()
    };
    let ways: Vec<_> = Nesting::ALL.into_iter().filter(has).collect();
    ways.into_iter()
}

/// Runs a script that reads the file of every layer and the file that all layers have.
fn read_all(fixture: &Fixture, layers: &[Layer], options: Options<'_>) -> Report {
    let report =
        fixture.run_with(layers, "cd /deps; cat $(ls | sort -n) /top; echo new > /new; rm $(cat /top)", options);
    assert!(report.status.success(), "{report:?}");
    report
}

/// What [`read_all`] prints over [numbered layers](Fixture::numbered_layers) that begin with
/// `first`.
fn expected(first: usize, count: usize) -> String {
    (first..first + count).chain([first]).map(|n| format!("{n}\n")).collect()
}

/// Waits until `stacks` has overlays with these numbers of lowers. A thread of its own drops the
/// others.
fn until(stacks: &Stacks, lowers: &[usize]) {
    let deadline = Instant::now() + FOR_EVER;
    while stacks.lowers() != lowers {
        assert!(Instant::now() < deadline, "{stacks:?}");
        thread::yield_now();
    }
}

/// Makes a layer with a `layer.json`, which a collector may remove. `fill` makes its tree.
fn publish(store: &Store, name: &str, fill: impl FnOnce(&Path)) -> Layer {
    let draft = store.draft().unwrap();
    fs::create_dir(draft.layer().fs()).unwrap();
    fill(&draft.layer().fs());
    draft.layer().write_meta(&Meta { disk_usage: 1, ..Meta::new("base", SystemTime::now()) }).unwrap();
    draft.publish(name).unwrap();
    store.layer(name).unwrap()
}

fn publish_numbered(store: &Store, count: usize) -> Vec<Layer> {
    let fill = |n: usize| {
        move |fs: &Path| {
            fs::create_dir(fs.join("deps")).unwrap();
            fs::write(fs.join("deps").join(n.to_string()), format!("{n}\n")).unwrap();
            fs::write(fs.join("top"), format!("{n}\n")).unwrap();
        }
    };
    (0..count).map(|n| publish(store, &format!("layer-{n}"), fill(n))).collect()
}

#[test]
fn runs_share_the_part_that_repeats() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(30);
    for way in ways() {
        let stacks = Stacks::new().nesting(way);
        // (the layers of the run, the shared ones, the lowers of the overlays afterwards)
        let table: [(&[Layer], usize, &[usize]); 7] = [
            // The first run shares all its layers, in case it is repeated.
            (&layers, 30, &[31]),
            (&layers, 30, &[31]),
            // A layer on top of them.
            (&layers[1..], 29, &[30, 31]),
            (&layers, 30, &[31, 30]),
            // Too few to share.
            (&layers[25..], 0, &[31, 30]),
            (&[], 0, &[31, 30]),
            (&layers[1..], 29, &[30, 31]),
        ];
        for (number, (layers, shared, lowers)) in table.into_iter().enumerate() {
            let report = fixture.run_with(layers, "cat /deps/* | wc -l", fixture.options().stacks(&stacks));
            assert_eq!(report.shared, shared, "{way:?}, run {number}");
            assert_eq!(stacks.lowers(), lowers, "{way:?}, run {number}");
            // The report has the real layers, whether they are shared or not.
            let trees: Vec<_> = layers.iter().map(Layer::fs).collect();
            assert_eq!((&report.plan.separate, &report.plan.base), (&trees, &fixture.base().fs()));
            if !layers.is_empty() {
                assert_eq!(stdout(&report), format!("{}\n", layers.len()));
            }
        }
        stacks.clear();
        assert_eq!(stacks.lowers(), [0; 0]);
        // Most of these runs had the lowest 29 layers in common.
        assert_eq!(fixture.run_with(&layers, "true", fixture.options().stacks(&stacks)).shared, 29);
    }
}

#[test]
fn a_run_stacks_its_layers_itself_if_the_shared_overlay_fails() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(20);
    // `Attached` needs nothing that a run without a shared overlay does not need, too.
    assert_eq!(ways().next(), Some(Nesting::Descriptor), "this test needs Linux 6.15");
    let stacks = Stacks::new().nesting(Nesting::Descriptor);
    for (max_lowers, merged) in [(500, 0), (15, 7)] {
        stacks.clear();
        let shared = max_lowers.min(20 + 1) - 1;
        // A limit of the run that the overlay keeps to, but not the whole stack.
        let options = || fixture.options().stacks(&stacks).max_lowers(max_lowers);
        assert_eq!(read_all(&fixture, &layers, options()).shared, shared.min(20));
        // In the run's own mount namespace. The shared overlay is found by its descriptor.
        let without_proc = |event: &Event| match event {
            Event::Began(Phase::OverlayMount) => mount_private_tmpfs(Path::new("/proc")).unwrap(),
            Event::Ended(Phase::OverlayMount, _) => {
                rustix::mount::unmount("/proc", rustix::mount::UnmountFlags::DETACH).unwrap();
            }
            _ => {}
        };
        let report = read_all(&fixture, &layers, options().watch(without_proc));
        assert_eq!(stdout(&report), expected(0, 20));
        assert_eq!((report.shared, report.plan.merged.len()), (0, merged));
        assert_eq!(report.merged.is_some(), merged > 0);
        // The next run does not try it again at once.
        assert_eq!(read_all(&fixture, &layers, options()).shared, 0);
    }
}

#[test]
fn siblings_share_what_they_have_in_common() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(40);
    let stacks = Stacks::new();
    let (own, common) = layers.split_at(20);
    // Each sibling has five layers of its own on top.
    let sibling = |n: usize| [&own[5 * n..5 * n + 5], common].concat();
    for (n, lowers) in [(0, &[26][..]), (1, &[21, 26]), (2, &[21, 26]), (3, &[21, 26])] {
        let options = fixture.options().stacks(&stacks).prep_upper(|_, lowers| {
            assert_eq!(lowers.len(), 26);
            Ok(())
        });
        let report = fixture.run_with(&sibling(n), "cat /top; cat /deps/* | wc -l", options);
        assert_eq!(stdout(&report), format!("{}\n25\n", 5 * n));
        assert_eq!((report.shared, &*stacks.lowers()), (if n == 0 { 25 } else { 20 }, lowers), "{n}");
    }
}

#[test]
fn a_shared_part_shows_the_same_and_is_captured_to_the_same_layer() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(20);
    let capture = |name: &str, options: Options<'_>| {
        let report = read_all(&fixture, &layers, options);
        let (said, capture, meta) = (stdout(&report), report.capture(), report.meta());
        let names = meta.parent_hashes.clone();
        let layer = Layer::at(fixture.store().join(name));
        report.upper.capture(&capture, &layer, meta).unwrap();
        let tree = Snapshot::of_path(&layer.fs()).unwrap().with_times_until(0);
        fs::remove_dir_all(layer.path()).unwrap();
        (said, names, tree)
    };
    let flat = capture("flat", fixture.options());
    assert_eq!(flat.0, expected(0, 20));
    for way in ways() {
        for rung in Rung::LADDER {
            let stacks = Stacks::new().nesting(way);
            for _ in 0..2 {
                let nested = capture("nested", fixture.options().stacks(&stacks).rung(rung));
                assert_eq!((&nested.0, &nested.1), (&flat.0, &flat.1), "{way:?}, {rung}");
                assert_eq!(nested.2.diff(&flat.2), "", "{way:?}, {rung}");
            }
            assert_eq!(stacks.lowers(), [21], "{way:?}, {rung}");
        }
    }
}

#[test]
fn layers_above_a_shared_part_need_no_merge() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(520);
    let stacks = Stacks::new();
    for _ in 0..2 {
        let report = read_all(&fixture, &layers, fixture.options().stacks(&stacks));
        assert_eq!(stdout(&report), expected(0, 520));
        // 500 lowers: 499 layers and the base.
        assert_eq!((report.shared, report.plan.merged.len(), report.plan.separate.len()), (499, 0, 520));
    }
    // The caller's limit holds for the shared part, too. The rest does not fit above it.
    let report = read_all(&fixture, &layers, fixture.options().stacks(&stacks).max_lowers(11));
    assert_eq!((report.shared, report.plan.merged.len()), (0, 511));
    // Both have at most 260 lowers.
    let report = read_all(&fixture, &layers[1..], fixture.options().stacks(&stacks).max_lowers(261));
    assert_eq!((report.shared, report.plan.merged.len()), (260, 0));
    assert_eq!(stdout(&report), expected(1, 519));
}

#[test]
fn the_overlay_that_was_not_used_for_the_longest_time_goes() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(30);
    let stacks = Stacks::new().keep(2);
    let families: Vec<&[Layer]> = layers.chunks(10).collect();
    for (family, lowers) in [(0, &[11][..]), (1, &[11, 11]), (0, &[11, 11]), (2, &[11, 11])] {
        let report = read_all(&fixture, families[family], fixture.options().stacks(&stacks));
        assert_eq!((report.shared, &*stacks.lowers()), (10, lowers));
    }
    let none = Stacks::new().keep(0);
    let report = read_all(&fixture, families[0], fixture.options().stacks(&none));
    assert_eq!((report.shared, none.lowers()), (0, vec![]));

    let stacks = Stacks::new().keep(2);
    let run = |from: usize| {
        let report = fixture.run_with(&layers[from..], "true", fixture.options().stacks(&stacks));
        assert_eq!(report.shared, 30 - from);
        stacks.lowers()
    };
    assert_eq!(run(0), [31]);
    assert_eq!(run(5), [26, 31]);
    assert_eq!(run(0), [31, 26]);
    assert_eq!(run(15), [16, 31]);
    assert_eq!(run(0), [31, 16]);
}

#[test]
fn a_collector_gets_the_layers_of_an_idle_overlay_and_their_space() {
    let fixture = Fixture::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            private_mounts().unwrap();
            let image = fixture.path().join("image");
            Disk::format(&image, 64 << 20, "-m0");
            let disk = Disk::mount(&image, fixture.path().join("disk"));
            let store = Store::open(disk.path()).unwrap();
            let mut layers = publish_numbered(&store, 12);
            let size = 20 << 20;
            let large = |fs: &Path| fs::write(fs.join("large"), vec![1; size]).unwrap();
            layers.push(publish(&store, "large", large));
            File::open(disk.path()).unwrap().sync_all().unwrap();
            let free = || statvfs(disk.path()).unwrap().f_bavail * statvfs(disk.path()).unwrap().f_bsize;

            let stacks = Stacks::new();
            let options = || fixture.options().stacks(&stacks);
            let report = fixture.run_with(&layers, "cat /large | wc -c", options());
            assert_eq!((stdout(&report), report.shared), (format!("{size}\n"), 13));
            // The run holds the layers while its upper exists.
            let collector = Collector::new().max_bytes(0);
            assert_eq!(collector.collect(&store).unwrap().held.len(), 13);
            assert_eq!(stacks.lowers(), [14]);
            let before = free();
            drop(report);

            let collected = collector.collect(&store).unwrap();
            assert_eq!((collected.layers.len(), collected.held.len()), (13, 0));
            until(&stacks, &[]);
            // The kernel frees the blocks of a deleted file when nothing has looked it up any more.
            let deadline = Instant::now() + FOR_EVER;
            while free() < before + size as u64 {
                assert!(Instant::now() < deadline, "{} bytes are free, {before} before", free());
                thread::yield_now();
            }
        });
    });
}

#[test]
fn a_layer_that_was_removed_and_made_again_is_seen_as_it_is_now() {
    let fixture = Fixture::new();
    let store = Store::open(fixture.store()).unwrap();
    let layers = publish_numbered(&store, 10);
    let stacks = Stacks::new();
    let run = || fixture.run_with(&layers, "cat /deps/3 /deps/changed 2>/dev/null", fixture.options().stacks(&stacks));
    assert_eq!(stdout(&run()), "3\n");
    for round in ["first", "second"] {
        store.remove("layer-3").unwrap();
        // The directory may have the inode number of the former one if nothing keeps that alive.
        publish(&store, "layer-3", |fs| {
            fs::create_dir(fs.join("deps")).unwrap();
            fs::write(fs.join("deps/changed"), round).unwrap();
        });
        let report = run();
        assert_eq!((&*stdout(&report), report.shared), (round, 10));
    }
    // A missing layer is an error, as without a shared overlay.
    store.remove("layer-3").unwrap();
    let template = integration_tests::shell("true").build().unwrap();
    let error = runner::run(&fixture.base(), &layers, &template, fixture.options().stacks(&stacks)).unwrap_err();
    assert_eq!(error.phase(), Some(runner::Phase::Inputs), "{error}");
}

#[test]
fn layers_on_an_overlay_are_stacked_one_by_one() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(12);
    thread::scope(|scope| {
        scope.spawn(|| {
            private_mounts().unwrap();
            let empty = fixture.path().join("empty");
            let seen = fixture.path().join("seen");
            [&empty, &seen].into_iter().for_each(|dir| fs::create_dir(dir).unwrap());
            // A container whose own root is an overlay has its layers on one.
            let mounted = Overlay::new([fixture.store(), empty]).mount(&seen).unwrap();
            let on_overlay: Vec<_> = layers.iter().map(|layer| Layer::open(seen.join(layer.name())).unwrap()).collect();
            for nesting in ways().map(Some).chain([None]) {
                let stacks = Stacks::new().nesting(nesting);
                for _ in 0..2 {
                    let report = read_all(&fixture, &on_overlay, fixture.options().stacks(&stacks));
                    assert_eq!((stdout(&report), report.shared), (expected(0, 12), 0), "{nesting:?}");
                    assert_eq!(stacks.lowers(), [0; 0]);
                }
            }
            mounted.unmount().unwrap();
        });
    });
}

#[test]
fn no_mount_table_shows_a_shared_overlay() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(12);
    let store = fixture.store();
    let shows_layers = |table: &str| table.contains(store.to_str().unwrap()) || table.contains("numbered-");
    for way in ways() {
        let stacks = Stacks::new().nesting(way);
        for _ in 0..2 {
            let mut tables = Vec::new();
            let watch = |event: &Event| {
                if let Event::Began(Phase::Config) = event {
                    // The tables of the run's own thread and of the process.
                    tables =
                        ["thread-self", "self"].map(|of| fs::read_to_string(format!("/proc/{of}/mountinfo"))).into();
                }
            };
            let script = "grep -c ' overlay ' /proc/self/mountinfo; grep -c numbered- /proc/self/mountinfo";
            let report = fixture.run_with(&layers, script, fixture.options().stacks(&stacks).watch(watch));
            // The container's root is the only overlay.
            assert_eq!((&*stdout(&report), report.shared), ("1\n0\n", 12), "{way:?}");
            let tables: Vec<String> = tables.into_iter().map(|table| table.unwrap()).collect();
            assert_eq!(tables.iter().map(|table| shows_layers(table)).collect::<Vec<_>>(), [false; 2], "{way:?}");
            let scratch = fixture.scratch();
            let overlays = tables[0].lines().filter(|line| line.contains(" - overlay "));
            assert_eq!(overlays.filter(|line| line.contains(scratch.to_str().unwrap())).count(), 1, "{way:?}");
        }
    }
}

#[test]
fn overlays_of_both_kinds_of_xattrs_are_told_apart() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(8);
    let top = fixture.layer("top", |fs| {
        fs::create_dir(fs.join("deps")).unwrap();
        let dir = fs.join("deps");
        rustix::fs::setxattr(dir, "user.overlay.opaque", b"y", rustix::fs::XattrFlags::empty()).unwrap();
    });
    let stack = [&[top][..], &layers].concat();
    let stacks = Stacks::new();
    for _ in 0..2 {
        for (xattrs, seen) in [(OverlayXattrs::User, "0\n"), (OverlayXattrs::Trusted, "8\n")] {
            let options = fixture.options().stacks(&stacks).xattrs(xattrs);
            let report = fixture.run_with(&stack, "ls /deps | wc -l", options);
            assert_eq!((&*stdout(&report), report.shared), (seen, 9), "{xattrs:?}");
        }
    }
    assert_eq!(stacks.lowers(), [10, 10]);
}

#[test]
fn many_threads_share_and_replace_overlays() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(48);
    for way in ways() {
        let stacks = Stacks::new().keep(2).nesting(way);
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    while let n @ ..96 = next.fetch_add(1, Ordering::Relaxed) {
                        // Four stacks over two overlays at a time.
                        let from = 12 * (n / 2 % 4);
                        let layers = &layers[from..from + 12];
                        let report = read_all(&fixture, layers, fixture.options().stacks(&stacks));
                        assert_eq!((stdout(&report), report.shared), (expected(from, 12), 12), "{way:?}");
                        if n % 20 == 0 {
                            stacks.clear();
                        }
                    }
                });
            }
        });
        assert!(stacks.lowers().len() <= 2);
    }
}

#[test]
fn a_killed_process_leaves_no_overlay() {
    let fixture = Fixture::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            private_mounts().unwrap();
            let image = fixture.path().join("image");
            Disk::format(&image, 64 << 20, "-m0");
            let disk = Disk::mount(&image, fixture.path().join("disk"));
            publish_numbered(&Store::open(disk.path()).unwrap(), 12);
            let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
            let line = table.lines().find(|line| line.contains("/disk ")).unwrap();
            let device = line.split(" - ").nth(1).unwrap().split(' ').nth(1).unwrap().strip_prefix("/dev/").unwrap();
            // It exists as long as the file system is in use.
            let in_use = PathBuf::from(format!("/sys/block/{device}/loop/backing_file"));

            let runs = 8;
            let mut process = Command::new(env!("CARGO_BIN_EXE_many-runs"))
                .arg(fixture.base().path())
                .arg(disk.path())
                .arg(fixture.scratch())
                .args([&runs.to_string(), "4", "shared"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let lines = BufReader::new(process.stdout.take().unwrap()).lines();
            // The program performs one more run at its start.
            assert_eq!(lines.take(runs + 1).filter(|line| line.is_ok()).count(), runs + 1);
            let table = fs::read_to_string(format!("/proc/{}/mountinfo", process.id())).unwrap();
            assert!(!table.contains("layer-"), "{table}");
            drop(disk);
            assert!(in_use.exists(), "the overlay is not mounted");
            process.kill().unwrap();
            process.wait().unwrap();
            fixture.assert_nothing_lives();
            let deadline = Instant::now() + FOR_EVER;
            while in_use.exists() {
                assert!(Instant::now() < deadline, "the file system is still in use");
                thread::yield_now();
            }
            fixture.sweep();
        });
    });
}
