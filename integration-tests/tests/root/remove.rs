//! Removing trees: all of a tree is removed and nothing else, never across a mount.

use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use integration_tests::stack::{Attributes, Dir, Item, Mount, private_mounts, require_root};
use integration_tests::tree::Snapshot;
use layer::{Error, Remove};
use rustix::fs::{CWD, FileType, IFlags, ioctl_getflags, ioctl_setflags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, UnmountFlags, mount_bind, move_mount, unmount};
use tempfile::TempDir;

fn tree() -> Dir {
    let part = || {
        Dir::new()
            .file("file", "content")
            .with("fifo", Item::special(FileType::Fifo, 0))
            .with("link", Item::symlink("/"))
            .with("closed", Dir::new().mode(0).file("file", ""))
            .whiteout("whiteout")
    };
    (0..20).fold(part(), |tree, number| tree.with(format!("dir{number}"), part().with("deep", part().opaque())))
}

fn make(tree: &Dir) -> (TempDir, PathBuf) {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tree");
    tree.make(&path).unwrap();
    (dir, path)
}

#[test]
fn only_the_tree_itself_is_removed() {
    for threads in 1..=4 {
        let (dir, path) = make(&tree());
        fs::write(dir.path().join("beside"), "").unwrap();
        Remove::new().threads(NonZeroUsize::new(threads).unwrap()).run(&path).unwrap();
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["beside"]);
    }
}

#[test]
fn a_missing_tree_is_not_an_error() {
    let (dir, path) = make(&Dir::new());
    for missing in [dir.path().join("missing"), dir.path().join("missing/deep"), path.join("missing")] {
        layer::remove_tree(missing).unwrap();
    }
    assert!(path.exists());
}

#[test]
fn a_link_is_removed_and_not_followed() {
    let (dir, path) = make(&tree());
    let before = Snapshot::of_path(&path).unwrap();
    let link = dir.path().join("link");
    for name in [link.clone(), link.join("")] {
        symlink(&path, &link).unwrap();
        layer::remove_tree(name).unwrap();
        assert!(!link.is_symlink());
    }
    fs::write(&link, "").unwrap();
    layer::remove_tree(&link).unwrap();
    assert!(!link.exists());
    assert_eq!(before.diff(&Snapshot::of_path(&path).unwrap()), "");
}

#[test]
fn a_path_that_names_no_entry_is_refused() {
    let (_dir, path) = make(&Dir::new().with("dir", Dir::new()));
    for path in [Path::new("/"), Path::new(".."), Path::new(""), &path.join("dir/..")] {
        assert!(matches!(layer::remove_tree(path), Err(Error::Io { .. })), "{}", path.display());
    }
    assert!(path.join("dir").exists());
}

/// Runs `test` on a thread with a private mount namespace.
fn with_private_mounts(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            private_mounts().unwrap();
            test();
        });
    });
}

/// Returns the mount point that a refused removal names.
fn mount_point(result: Result<(), Error>) -> PathBuf {
    match result {
        Err(Error::MountInside { path }) => path,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_mount_inside_is_named_and_not_entered() {
    with_private_mounts(|| {
        let (dir, path) =
            make(&Dir::new().with("a", Dir::new().with("b", Dir::new().file("file", ""))).file("file", ""));
        let elsewhere = dir.path().join("elsewhere");
        tree().make(&elsewhere).unwrap();
        let before = Snapshot::of_path(&elsewhere).unwrap();
        // The mounts are of the same file system, so the device number does not show them.
        for (source, point) in [(elsewhere.clone(), path.join("a/b")), (elsewhere.join("file"), path.join("file"))] {
            mount_bind(&source, &point).unwrap();
            assert_eq!(mount_point(layer::remove_tree(&path)), point);
            assert_eq!(before.diff(&Snapshot::of_path(&elsewhere).unwrap()), "");
            // A process that another test starts may briefly have one of the removal's descriptors.
            unmount(&point, UnmountFlags::DETACH).unwrap();
            fs::write(path.join("file"), "").unwrap();
        }
        layer::remove_tree(&path).unwrap();
        assert!(!path.exists());
    });
}

#[test]
fn a_live_overlay_is_not_emptied() {
    with_private_mounts(|| {
        let (dir, path) = make(&Dir::new());
        let lower = dir.path().join("lower");
        tree().make(&lower).unwrap();
        let upper = dir.path().join("scratch/upper");
        let overlay = Mount::writable(&[&lower], &dir.path().join("scratch")).unwrap();
        fs::write(overlay.path().join("result"), "precious").unwrap();
        move_mount(&overlay, "", CWD, &path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).unwrap();
        let before = Snapshot::of_path(&upper).unwrap();
        assert_eq!(mount_point(layer::remove_tree(&path)), path);
        assert_eq!(mount_point(layer::remove_tree(path.join(""))), path);
        assert_eq!(before.diff(&Snapshot::of_path(&upper).unwrap()), "");
        // This process has the overlay open, and a process that another test starts may briefly
        // have it open, too.
        unmount(&path, UnmountFlags::DETACH).unwrap();
        layer::remove_tree(&path).unwrap();
    });
}

#[test]
fn an_entry_that_cannot_be_removed_is_named() {
    let (_dir, path) = make(&tree());
    let name = path.join("dir7/deep/file");
    let file = fs::File::open(&name).unwrap();
    let flags = ioctl_getflags(&file).expect("TMPDIR is on a file system with immutable files, ext4 or XFS");
    ioctl_setflags(&file, flags | IFlags::IMMUTABLE).unwrap();
    let result = layer::remove_tree(&path);
    ioctl_setflags(&file, flags).unwrap();
    match result {
        Err(Error::Io { operation, path, source }) => {
            assert_eq!((operation, path, source.raw_os_error()), ("remove", name, Some(Errno::PERM.raw_os_error())));
        }
        other => panic!("{other:?}"),
    }
    layer::remove_tree(&path).unwrap();
    assert!(!path.exists());
}

#[test]
fn an_owner_removes_directories_without_permission() {
    const SOMEBODY: u32 = 65_534;
    let (dir, path) = make(&Dir::new());
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::remove_dir(&path).unwrap();
    let own = |mode| Attributes { mode, owner: (SOMEBODY, SOMEBODY), ..Attributes::default() };
    let part = |mode| Dir { attributes: own(mode), ..Dir::new() }.with("file", Item::File(own(0), vec![]));
    let closed = (0..0o10).fold(part(0o700), |tree, bits| {
        let deep = part(bits << 6).with("deep", part(0).with("deeper", part(0o100)));
        tree.with(format!("dir{bits}"), deep)
            .with(format!("only{bits}"), Dir { items: [("dir".into(), part(0).into())].into(), ..part(bits << 6) })
    });
    closed.make(&path).unwrap();
    chown(&path, Some(SOMEBODY), Some(SOMEBODY)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let user = rustix::fs::Uid::from_raw(SOMEBODY);
            // This changes the user of this thread and of the threads that it starts.
            rustix::thread::set_thread_res_uid(user, user, user).unwrap();
            layer::remove_tree(&path).unwrap();
        });
    });
    assert!(!path.exists());
}

#[test]
fn two_concurrent_removals_of_a_tree_succeed() {
    for _ in 0..50 {
        let (_dir, path) = make(&tree());
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| layer::remove_tree(&path).unwrap());
            }
        });
        assert!(!path.exists());
    }
}
