//! What a command sees of its layers, on every rung, with any number of layers. `ladder` compares
//! whole trees without runs.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use container::OverlayXattrs;
use integration_tests::{Fixture, shell, stdout};
use layer::{Layer, Rung};
use nix::sys::stat::{Mode, SFlag, mknod};
use runner::Options;
use rustix::fs::{XattrFlags, setxattr};

/// Reads the file of every layer and the file that all layers have, and checks the plan.
fn every_layer_is_seen(fixture: &Fixture, layers: &[Layer], options: Options<'_>, rung: Rung, merged: usize) {
    let report = fixture.run_with(layers, "cd /deps; cat $(seq 0 $(($(ls | wc -l) - 1))) /top", options);
    assert!(report.status.success(), "{report:?}");
    let numbers = (0..layers.len()).map(|n| format!("{n}\n"));
    // The first layer is the topmost.
    assert_eq!(stdout(&report), numbers.chain(["0\n".to_string()]).collect::<String>());
    assert_eq!((report.plan.rung, report.plan.merged.len()), (rung, merged));
    assert_eq!(report.plan.separate.len() + merged, layers.len());
    assert_eq!(report.merged.is_some(), merged > 0);
}

#[test]
fn a_command_runs_without_layers() {
    let fixture = Fixture::new();
    let report = fixture.run(&[], "echo hello");
    assert!(report.status.success());
    assert_eq!(stdout(&report), "hello\n");
}

#[test]
fn lowerdir_plus_stacks_up_to_499_layers() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(499);
    for count in [1, 30, 100, 400, 499] {
        every_layer_is_seen(&fixture, &layers[..count], fixture.options(), Rung::LowerdirPlus, 0);
    }
}

#[test]
fn more_layers_than_the_kernel_stacks_are_merged() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(520);
    // 500 lowers: 498 layers, the merged directory and the base.
    every_layer_is_seen(&fixture, &layers, fixture.options(), Rung::LowerdirPlus, 22);
    every_layer_is_seen(&fixture, &layers, fixture.options().rung(Rung::MountNames), Rung::MountNames, 22);
}

#[test]
fn mount_stacks_by_paths_and_by_names() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(200);
    let paths = fixture.options().rung(Rung::MountPaths);
    every_layer_is_seen(&fixture, &layers[..80], paths, Rung::MountPaths, 0);
    let names = fixture.options().rung(Rung::MountNames);
    every_layer_is_seen(&fixture, &layers, names, Rung::MountNames, 0);
}

#[test]
fn a_small_budget_splits_the_stack() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(80);
    // The limit is a number of lowers: nine layers, the merged directory and the base.
    every_layer_is_seen(&fixture, &layers, fixture.options().max_lowers(11), Rung::LowerdirPlus, 71);
    // All layers are merged into one directory.
    every_layer_is_seen(&fixture, &layers, fixture.options().max_lowers(2), Rung::LowerdirPlus, 80);
    // The limit is the bytes of mount options.
    let options = || fixture.options().rung(Rung::MountPaths).max_option_bytes(1000);
    let planned = runner::plan(&fixture.base(), &layers, &options()).unwrap();
    assert!((1..80).contains(&planned.merged.len()), "{planned:?}");
    every_layer_is_seen(&fixture, &layers, options(), Rung::MountPaths, planned.merged.len());
}

#[test]
fn temporary_files_can_be_removed_in_the_background() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(12);
    let options = fixture.options().max_lowers(3).cleanup(runner::Cleanup::Behind);
    let report = fixture.run_with(&layers, "cat /deps/* | wc -l; echo new > /new", options);
    assert_eq!(stdout(&report), "12\n");
    // The removal does not affect the upper.
    let upper = report.upper.persist(fixture.store().join("new")).unwrap();
    assert_eq!(fs::read(upper.join("new")).unwrap(), b"new\n");
    report.removal.expect("it is going on").wait().unwrap();
    fixture.assert_clean();

    // Dropping the report waits for the removal.
    drop(fixture.run_with(&layers, "true", fixture.options().cleanup(runner::Cleanup::Behind)));
    fixture.assert_clean();
}

#[test]
fn a_layer_given_twice_is_used_once() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(3);
    let other_path = Layer::open(layers[0].path().join("../numbered-0000")).unwrap();
    let stack = [layers[0].clone(), layers[1].clone(), other_path, layers[2].clone(), layers[1].clone()];
    let report = fixture.run(&stack, "cat /top; ls /deps");
    assert_eq!(stdout(&report), "0\n0\n1\n2\n");
    assert_eq!(report.plan.separate.len(), 3);
}

#[test]
fn layers_with_any_bytes_in_their_names_are_stacked() {
    let fixture = Fixture::new();
    let names: [&[u8]; 6] = [b"with space", b"col:on", b"com,ma", b"back\\slash", b"\xff\xfe", b"all: ,\\\xff=end"];
    let layers: Vec<_> = names
        .iter()
        .map(|name| {
            fixture.layer(Path::new(OsStr::from_bytes(name)), |fs| {
                fs::write(fs.join(OsStr::from_bytes(&[b"file ", *name].concat())), name).unwrap();
            })
        })
        .collect();
    for rung in Rung::LADDER {
        let report = fixture.run_with(&layers, "cat /file*", fixture.options().rung(rung));
        let mut seen = report.stdout.as_ref().unwrap().to_bytes();
        let mut expected = names.concat();
        seen.sort_unstable();
        expected.sort_unstable();
        assert_eq!(seen, expected, "{rung}");
    }
}

#[test]
fn paths_longer_than_a_string_of_fsconfig_are_stacked() {
    let fixture = Fixture::new();
    // A string of fsconfig(2) holds at most 255 bytes.
    let deep = ["d".repeat(120), "e".repeat(120), "f".repeat(120)].join("/");
    let layers: Vec<_> = (0..3)
        .map(|n| fixture.layer(format!("{deep}/{n}"), |fs| fs::write(fs.join(n.to_string()), "x").unwrap()))
        .collect();
    for rung in Rung::LADDER {
        let report = fixture.run_with(&layers, "ls /0 /1 /2", fixture.options().rung(rung));
        assert_eq!(stdout(&report), "/0\n/1\n/2\n", "{rung}");
    }
}

#[test]
fn deletions_in_a_layer_hide_lower_entries() {
    let fixture = Fixture::new();
    let whiteout = |path: &Path| mknod(path, SFlag::S_IFCHR, Mode::empty(), 0).unwrap();
    let top = fixture.layer("top", |fs| {
        fs::create_dir_all(fs.join("etc")).unwrap();
        whiteout(&fs.join("etc/of-base"));
        whiteout(&fs.join("of-middle"));
        fs::create_dir(fs.join("opaque")).unwrap();
        fs::write(fs.join("opaque/new"), "").unwrap();
        setxattr(fs.join("opaque"), "trusted.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
    });
    let middle = fixture.layer("middle", |fs| {
        fs::write(fs.join("of-middle"), "").unwrap();
        fs::write(fs.join("kept"), "").unwrap();
        fs::create_dir(fs.join("opaque")).unwrap();
        fs::write(fs.join("opaque/old"), "").unwrap();
    });
    fs::write(fixture.base().fs().join("etc/of-base"), "").unwrap();
    // The deletions must hide the base's files whether the layers are stacked or merged into one.
    for options in [fixture.options(), fixture.options().max_lowers(2)] {
        let report = fixture.run_with(
            &[top.clone(), middle.clone()],
            "ls /opaque /kept; cat /of-middle /etc/of-base 2>/dev/null || echo gone; ls /etc",
            options,
        );
        assert_eq!(stdout(&report), "/kept\n\n/opaque:\nnew\ngone\nhosts\n");
    }
}

#[test]
fn user_xattrs_are_respected_only_if_asked() {
    let fixture = Fixture::new();
    let filled = |names: &'static [&str]| {
        move |fs: &Path| {
            fs::create_dir(fs.join("dir")).unwrap();
            names.iter().for_each(|name| fs::write(fs.join("dir").join(name), "").unwrap());
        }
    };
    let top = fixture.layer("top", |fs| {
        filled(&["new"])(fs);
        setxattr(fs.join("dir"), "user.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
    });
    let layers = [top, fixture.layer("middle", filled(&["old"]))];
    filled(&["oldest"])(&fixture.base().fs());
    for (xattrs, seen) in [(OverlayXattrs::User, "new\n"), (OverlayXattrs::Trusted, "new\nold\noldest\n")] {
        for rung in Rung::LADDER {
            let stacked = fixture.options().xattrs(xattrs).rung(rung);
            assert_eq!(stdout(&fixture.run_with(&layers, "ls /dir", stacked)), seen, "{xattrs:?}, {rung}");
        }
        let merged = fixture.options().xattrs(xattrs).max_lowers(2);
        assert_eq!(stdout(&fixture.run_with(&layers, "ls /dir", merged)), seen, "{xattrs:?}, merged");
    }
}

#[test]
fn the_root_has_the_metadata_of_the_topmost_layer() {
    let fixture = Fixture::new();
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let layer = fixture.layer("top", |fs| {
        std::os::unix::fs::chown(fs, Some(12), Some(34)).unwrap();
        fs::set_permissions(fs, fs::Permissions::from_mode(0o1751)).unwrap();
        setxattr(fs, "user.colour", b"blue", XattrFlags::empty()).unwrap();
        fs::File::open(fs).unwrap().set_modified(long_ago).unwrap();
    });
    let layers = [layer];
    let options = fixture.options().prep_upper(|upper, lowers| {
        // The upper's root has its metadata before the caller sees it.
        let metadata = fs::metadata(upper)?;
        assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (12, 34, 0o1751));
        assert_eq!(metadata.modified()?, long_ago);
        assert_eq!(lowers, [layers[0].fs(), fixture.base().fs()]);
        Ok(())
    });
    let template = shell("stat -c '%u %g %a' /").user(77, 77).build().unwrap();
    let report = runner::run(&fixture.base(), &layers, &template, options).unwrap();
    assert_eq!(stdout(&report), "12 34 1751\n");
    let mut colour = [0; 8];
    let length = rustix::fs::getxattr(report.upper.path(), "user.colour", &mut colour[..]).unwrap();
    assert_eq!(&colour[..length], b"blue");
}

#[test]
fn layers_are_marked_as_used_and_the_base_is_not() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(3);
    let before = SystemTime::now() - Duration::from_secs(1);
    drop(fixture.run(&layers, "true"));
    for layer in &layers {
        assert!(layer.last_used().unwrap().is_some_and(|used| used > before));
        // No other file was created or changed.
        let names: Vec<_> = fs::read_dir(layer.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }
    assert_eq!(Layer::at(fixture.base().path()).last_used().unwrap(), None);
}
