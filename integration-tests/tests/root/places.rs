//! Layers and scratch directories in unusual places: read-only, without permission, on another file
//! system, inside a layer.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use container::in_private_mount_namespace;
use integration_tests::{Fixture, find, shell, stdout};
use nix::mount::{MsFlags, mount};
use runner::{Cause, Phase};

#[test]
fn a_read_only_store_costs_a_warning() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(4);
    in_private_mount_namespace(|| {
        let store = fixture.store();
        mount(Some(&store), &store, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, &store, None::<&str>, read_only, None::<&str>).unwrap();
        assert!(layers[0].touch().is_err());

        let mut command = fixture.layered_run();
        command.args(layers.iter().flat_map(|layer| ["--layer".as_ref(), layer.path().as_os_str()]));
        let output = command.args(["--", "sh", "-c", "cat /top /deps/3"]).stdin(Stdio::null()).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*output.stdout), (Some(0), &b"0\n3\n"[..]), "{stderr}");
        let first = layers[0].last_used_path();
        assert!(stderr.starts_with(&format!("layered: warn: cannot create {}: ", first.display())), "{stderr}");
        assert!(stderr.ends_with(": 4 layers will look unused\n") && stderr.lines().count() == 1, "{stderr}");

        // Files of a read-only mount cannot be linked, so the merge copies them.
        let report = fixture.run_with(&layers, "cat /top /deps/3", fixture.options().max_lowers(3));
        assert_eq!((stdout(&report), report.merged.unwrap().linked), ("0\n3\n".into(), 0));
    })
    .unwrap();
    assert!(layers.iter().all(|layer| layer.last_used().unwrap().is_none()));
}

#[test]
fn a_scratch_directory_on_tmpfs_works() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(4);
    in_private_mount_namespace(|| {
        let scratch = fixture.scratch();
        mount(Some("tmpfs"), &scratch, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        fixture.watch(&scratch);
        for (lowers, copied) in [(500, None), (3, Some(4))] {
            let options = fixture.options().max_lowers(lowers);
            let report = fixture.run_with(&layers, "cat /top /deps/*; rm /top; echo new > /deps/new", options);
            assert_eq!(stdout(&report), "0\n0\n1\n2\n3\n");
            assert_eq!(report.merged.as_ref().map(|merged| merged.copied), copied);
            assert_eq!(fs::read(report.upper.path().join("deps/new")).unwrap(), b"new\n");
            drop(report);
            fixture.assert_clean();
        }
    })
    .unwrap();
}

#[test]
fn a_layer_without_permission_is_refused() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(3);
    let [layer, tree] = [layers[1].path().to_path_buf(), layers[1].fs()];
    // (the directory without permission, the message)
    for (path, words) in [
        (&layer, format!("layered: cannot look at {}: Permission denied", tree.display())),
        (&tree, "this process cannot read one of its directories: Permission denied".into()),
    ] {
        let open = fs::metadata(path).unwrap().permissions();
        fs::set_permissions(path, fs::Permissions::from_mode(0o000)).unwrap();
        // The caller is root without the capabilities to bypass permissions.
        let mut known = fixture.layered_run();
        known.args(layers.iter().flat_map(|layer| ["--layer".as_ref(), layer.path().as_os_str()]));
        let mut command = Command::new(find("setpriv"));
        command.args(["--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]);
        command.arg(known.get_program()).args(known.get_args()).args(["--", "cat", "/deps/1"]);
        let output = command.stdin(Stdio::null()).output().unwrap();
        fs::set_permissions(path, open).unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), stderr.lines().count()), (Some(125), 1), "{stderr}");
        assert!(stderr.contains(&words), "{stderr}");
        fixture.assert_clean();
    }
}

/// A run that writes there would change the layer, and the container would see its own run.
#[test]
fn a_scratch_directory_or_upper_inside_a_layer_is_refused() {
    let fixture = Fixture::new();
    let layer = fixture.layer("layer", |tree| fs::create_dir_all(tree.join("in/deep")).unwrap());
    let base = fixture.base().fs();
    let [link, bound, whole] = ["link", "bound", "whole"].map(|name| fixture.path().join(name));
    symlink(layer.fs().join("in"), &link).unwrap();
    [&bound, &whole].iter().for_each(|dir| fs::create_dir(dir).unwrap());
    in_private_mount_namespace(|| {
        let bind = |source: &Path, target: &Path| {
            mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        };
        // On these bind mounts, no directory above shows that they are inside the layer's tree.
        bind(&layer.fs().join("in"), &bound);
        bind(&layer.fs(), &whole);
        let inside = [
            (layer.fs(), layer.fs()),
            (layer.fs().join("in/deep"), layer.fs()),
            (base.clone(), base.clone()),
            (base.join("root"), base.clone()),
            (link.join("deep"), layer.fs()),
            (bound.clone(), layer.fs()),
            (bound.join("deep"), layer.fs()),
            (whole.join("in"), layer.fs()),
            (PathBuf::from("in"), layer.fs()),
        ];
        let layered = |options: &[&OsStr]| {
            let mut command = integration_tests::layered();
            command.args(["run", "--base"]).arg(fixture.base().path()).arg("--layer").arg(layer.path());
            command
                .args(options)
                .args(["--", "touch", "/ran"])
                .current_dir(layer.fs())
                .stdin(Stdio::null())
                .output()
                .unwrap()
        };
        for (dir, tree) in &inside {
            let options = fixture.options().scratch(dir);
            if dir.is_absolute() {
                let template = shell("true").build().unwrap();
                let error = runner::run(&fixture.base(), std::slice::from_ref(&layer), &template, options).unwrap_err();
                match error.cause() {
                    Cause::ScratchInLayer { scratch, tree: named } => {
                        assert_eq!((scratch, named), (&fs::canonicalize(dir).unwrap(), tree));
                    }
                    other => panic!("{}: {other:?}", dir.display()),
                }
                assert_eq!((error.phase(), error.left()), (Some(Phase::Scratch), None));
            }
            let upper = dir.join("new");
            let scratch = fixture.scratch();
            let by_scratch = layered(&["--scratch".as_ref(), dir.as_os_str()]);
            let by_upper = layered(&["--upper".as_ref(), upper.as_os_str(), "--scratch".as_ref(), scratch.as_os_str()]);
            let beside = layered(&["--upper".as_ref(), upper.as_os_str()]);
            for output in [by_scratch, by_upper, beside] {
                let stderr = String::from_utf8(output.stderr).unwrap();
                assert_eq!(
                    (output.status.code(), stderr.lines().count()),
                    (Some(125), 1),
                    "{}: {stderr}",
                    dir.display()
                );
                let expected = format!(" lies in {}, which this run stacks; choose ", tree.display());
                assert!(stderr.contains(&expected), "{stderr}");
            }
            fixture.assert_clean();
        }
        // The layer's own directory beside the tree is allowed, and so is a tree that this run does
        // not stack.
        let other = fixture.path().join("other/fs/scratch");
        fs::create_dir_all(&other).unwrap();
        for dir in [layer.path().to_path_buf(), fixture.store(), other] {
            fixture.watch(&dir);
            let report = fixture.run_with(std::slice::from_ref(&layer), "echo ran", fixture.options().scratch(dir));
            assert_eq!(stdout(&report), "ran\n");
        }
    })
    .unwrap();
}
