//! Inputs that a merge refuses. The sources and the target must be unchanged afterwards.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use integration_tests::stack::{Attributes, Dir, Item, acl, new_merge, private_mounts, tmpfs};
use integration_tests::tree::{Snapshot, through_proc};
use layer::Error;
use rustix::io::Errno;

use super::{Stack, while_disturbed};

fn stack() -> Stack {
    let layer = || {
        Dir::new().file("file", "").with("dir", Dir::new().file("file", "").with("deep", Dir::new().file("file", "")))
    };
    Stack::new(&[], &[layer(), layer().file("other", "")], &Dir::new())
}

/// Returns the whole chain of errors, as a user sees it.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

fn errno(error: &Error) -> Option<Errno> {
    let Error::Io { source, .. } = error else { return None };
    source.raw_os_error().map(Errno::from_raw_os_error)
}

#[test]
fn a_target_that_is_not_empty_is_refused() {
    let stack = stack();
    let target = stack.merged();
    Dir::new().file("mine", "mine").make(&target).unwrap();
    let before = Snapshot::of_path(&target).unwrap();
    let error = new_merge().run(&stack.sources, &target).unwrap_err();
    assert!(matches!(&error, Error::TargetNotEmpty { path } if *path == target), "{error:?}");
    assert_eq!(before.diff(&Snapshot::of_path(&target).unwrap()), "");
}

#[test]
fn a_target_that_is_not_a_directory_is_refused() {
    let stack = stack();
    let file = stack.dir.path().join("file");
    fs::write(&file, "").unwrap();
    let link = stack.dir.path().join("link");
    fs::create_dir(stack.dir.path().join("empty")).unwrap();
    symlink("empty", &link).unwrap();
    for target in [file, link.clone(), link.join(""), link.join(".")] {
        let error = new_merge().run(&stack.sources, &target).unwrap_err();
        assert!(matches!(error, Error::NotADirectory { .. }), "{}: {error:?}", target.display());
    }
}

#[test]
fn a_target_without_a_parent_is_refused() {
    let stack = stack();
    let error = new_merge().run(&stack.sources, stack.dir.path().join("nowhere/merged")).unwrap_err();
    assert_eq!((errno(&error), error.path()), (Some(Errno::NOENT), Some(&*stack.dir.path().join("nowhere"))));
}

#[test]
fn a_target_inside_a_source_is_refused_under_any_name() {
    let stack = stack();
    let before = Snapshot::of_path(&stack.sources[1]).unwrap();
    fs::create_dir(stack.sources[1].join("empty")).unwrap();
    let link = stack.dir.path().join("link");
    symlink(&stack.sources[1], &link).unwrap();
    let source = &stack.sources[1];
    for target in [
        source.clone(),
        source.join("merged"),
        source.join("dir/deep/merged"),
        source.join("empty"),
        link.join("merged"),
        link.join("empty"),
        stack.dir.path().join("base/../source1/dir/merged"),
    ] {
        let error = new_merge().run(&stack.sources, &target).unwrap_err();
        assert!(
            matches!(&error, Error::TargetInsideSource { source_tree, .. } if source_tree == source),
            "{}: {error:?}",
            target.display()
        );
    }
    fs::remove_dir(stack.sources[1].join("empty")).unwrap();
    let mut after = Snapshot::of_path(source).unwrap();
    after.entries.get_mut(Path::new("")).unwrap().modified = before.entries[Path::new("")].modified;
    assert_eq!(before.diff(&after), "");
    // An empty source is not accepted as an empty target, either.
    let empty = stack.dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let error = new_merge().run(&[&empty], &empty).unwrap_err();
    assert!(matches!(error, Error::TargetInsideSource { .. }), "{error:?}");
}

#[test]
fn a_source_that_is_not_a_directory_is_refused() {
    let stack = stack();
    let link = stack.dir.path().join("link");
    symlink("source0", &link).unwrap();
    for source in [stack.dir.path().join("missing"), stack.sources[0].join("file"), link.clone(), link.join("")] {
        let error = new_merge().run(&[&stack.sources[0], &source], stack.merged()).unwrap_err();
        assert!(matches!(error, Error::NotADirectory { .. }), "{}: {error:?}", source.display());
        assert!(!stack.merged().exists());
    }
}

#[test]
fn a_merge_of_no_layers_makes_an_empty_directory() {
    let stack = stack();
    let merged = new_merge().run(&[] as &[PathBuf], stack.merged()).unwrap();
    assert_eq!((merged.directories, merged.linked), (1, 0));
    assert_eq!(Snapshot::of_path(&stack.merged()).unwrap().entries[Path::new("")].mode, 0o755);
}

#[test]
fn relative_paths_are_resolved_for_the_caller() {
    let stack = stack();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).unwrap();
            std::env::set_current_dir(stack.dir.path()).unwrap();
            new_merge().run(&["source0", "./source1/"], "merged").unwrap();
            assert_eq!(std::env::current_dir().unwrap(), stack.dir.path().canonicalize().unwrap());
            assert!(Path::new("merged/dir/deep/file").exists());
            layer::remove_tree("merged").unwrap();
            assert!(!Path::new("merged").exists());
            std::env::set_current_dir(stack.sources[0].join("dir")).unwrap();
            new_merge().run(&["../../source0", "../../source1"], "../../merged").unwrap();
            assert!(stack.merged().join("dir/deep/file").exists());
        });
    });
}

/// Makes a target directory with its own metadata.
fn existing(path: &Path) -> Snapshot {
    let attributes = Attributes {
        mode: 0o2750,
        owner: (12, 34),
        modified: (5, 6),
        xattrs: vec![("user.mine".into(), b"1".into()), ("system.posix_acl_default".into(), acl(7, 7))],
    };
    Dir { attributes, ..Dir::new() }.make(path).unwrap();
    Snapshot::of_path(path).unwrap()
}

#[test]
fn a_merge_that_fails_half_way_removes_what_it_made() {
    let stack = stack();
    let broken = Dir::new().with("deep", Dir::new().with("deeper", Dir::new().xattr("trusted.overlay.redirect", b"x")));
    broken.make(&stack.dir.path().join("source2")).unwrap();
    let sources: Vec<_> = (0..3).map(|number| stack.dir.path().join(format!("source{number}"))).collect();

    let error = new_merge().run(&sources, stack.merged()).unwrap_err();
    assert_eq!(error.path(), Some(&*sources[2].join("deep/deeper")));
    assert!(!stack.merged().exists());

    let before = existing(&stack.merged());
    new_merge().run(&sources, stack.merged()).unwrap_err();
    assert_eq!(before.diff(&Snapshot::of_path(&stack.merged()).unwrap()), "");
}

#[test]
fn a_full_file_system_fails_a_merge_and_leaves_the_target() {
    let stack = stack();
    let elsewhere = tmpfs(&[("size", "2m")]).unwrap();
    let target = through_proc(&elsewhere).join("merged");
    let before = existing(&target);
    let big = Dir::new().with("dir", Dir::new().with("big", Item::File(Attributes::default(), vec![1; 3 << 20])));
    big.make(&stack.dir.path().join("big")).unwrap();
    let error = new_merge().run(&[stack.dir.path().join("big")], &target).unwrap_err();
    assert_eq!(errno(&error), Some(Errno::NOSPC), "{error:?}");
    assert_eq!(error.path(), Some(&*stack.dir.path().join("big/dir/big")));
    assert!(chain(&error).contains("big/dir/big: No space left on device"), "{}", chain(&error));
    assert_eq!(before.diff(&Snapshot::of_path(&target).unwrap()), "");
}

#[test]
fn a_read_only_target_is_refused() {
    let stack = stack();
    let elsewhere = tmpfs(&[("ro", "")]).unwrap();
    let target = through_proc(&elsewhere).join("merged");
    let error = new_merge().run(&stack.sources, &target).unwrap_err();
    assert_eq!((errno(&error), error.path()), (Some(Errno::ROFS), Some(&*target)), "{error:?}");
}

#[test]
fn a_source_that_changes_during_a_merge_fails_it_cleanly() {
    let stack = stack();
    let (here, there) = (stack.sources[1].join("dir"), stack.dir.path().join("away"));
    let move_away_and_back = || {
        fs::rename(&here, &there).unwrap();
        fs::rename(&there, &here).unwrap();
    };
    while_disturbed(move_away_and_back, || {
        for _ in 0..300 {
            match new_merge().run(&stack.sources, stack.merged()) {
                Ok(_) => layer::remove_tree(stack.merged()).unwrap(),
                Err(error) => {
                    assert_eq!(errno(&error), Some(Errno::NOENT), "{error:?}");
                    assert!(error.path().unwrap().starts_with(&here), "{error:?}");
                }
            }
            assert!(!stack.merged().exists());
        }
    });
}

#[test]
fn a_mount_inside_a_layer_is_named() {
    let stack = stack();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Other processes must not see the mounts.
            private_mounts().unwrap();
            for (path, is_dir) in [("dir/deep", true), ("dir/file", false)] {
                let path = stack.sources[0].join(path);
                let source = if is_dir { stack.base.clone() } else { stack.sources[1].join("other") };
                rustix::mount::mount_bind(&source, &path).unwrap();
                let error = new_merge().run(&stack.sources, stack.merged()).unwrap_err();
                assert!(matches!(&error, Error::MountInside { path: found } if *found == path), "{error:?}");
                assert!(!stack.merged().exists());
                // A process that another test starts may briefly have one of the merge's
                // descriptors.
                rustix::mount::unmount(&path, rustix::mount::UnmountFlags::DETACH).unwrap();
            }
        });
    });
    new_merge().run(&stack.sources, stack.merged()).unwrap();
}

#[test]
fn an_error_names_the_path_and_the_remedy() {
    let stack = stack();
    let missing = stack.dir.path().join("missing");
    let error = new_merge().run(&[&missing], stack.merged()).unwrap_err();
    assert_eq!(chain(&error), format!("{} does not exist; pass the path of a layer's tree", missing.display()));
}
