//! Files that cannot be linked: a merge copies them with all metadata, and all names of a file stay
//! names of one file.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use integration_tests::stack::{Attributes, Dir, Item, acl, new_merge, set_xattr, tmpfs};
use integration_tests::tree::{Snapshot, through_proc};
use layer::Merged;
use rustix::fs::{FileType, IFlags, ioctl_getflags, ioctl_setflags};

use super::Stack;

fn counts(merged: &Merged) -> (u64, u64) {
    (merged.linked, merged.copied)
}

/// Makes a directory with every kind of file and all metadata that a file can have.
fn everything() -> Dir {
    let carries = |mode, xattrs: &[(&str, &[u8])]| Attributes {
        mode,
        owner: (1000, 100),
        modified: (1_234_567_890, 987_654_321),
        xattrs: xattrs.iter().map(|(name, value)| ((*name).to_owned(), value.to_vec())).collect(),
    };
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let file = carries(
        0o4711,
        &[
            ("user.test", b"u"),
            ("trusted.test", b"t"),
            ("security.capability", &capability),
            ("trusted.overlay.origin", b"not copied"),
        ],
    );
    let with_acl = carries(0o751, &[("system.posix_acl_access", &acl(1234, 6))]);
    let special = || carries(0o640, &[("trusted.test", b"t")]);
    let mut dir = Dir::new()
        .with("file", Item::File(file, b"content".into()))
        .with("acl", Item::File(with_acl, vec![1; 300_000]))
        .with("none", Item::File(carries(0, &[]), vec![]))
        .with("sparse", Item::Sparse(carries(0o644, &[]), 64 << 20))
        .with("link", Item::Symlink(special(), "nowhere".into()))
        .with("one", Item::Name(1))
        .with("two", Item::Name(1))
        .with("other", Item::Name(2))
        .whiteout("base");
    let kinds = [FileType::Fifo, FileType::Socket, FileType::CharacterDevice, FileType::BlockDevice];
    for (minor, kind) in (1..).zip(kinds) {
        dir = dir.with(format!("{kind:?}"), Item::Special(special(), kind, minor));
    }
    dir
}

#[test]
fn a_merge_to_another_file_system_copies_everything() {
    let layer = everything().with("dir", everything());
    let below = Dir::new().with("dir", Dir::new().file("below", "").with("one", Item::Name(1))).file("other file", "");
    let stack = Stack::new(&[], &[layer, below], &Dir::new().file("base", "").with("dir", Dir::new().file("base", "")));
    let elsewhere = tmpfs(&[]).unwrap();
    let target = through_proc(&elsewhere).join("merged");
    let merged = stack.compare_at(&new_merge(), &target).unwrap();
    assert_eq!(counts(&merged), (0, 2 * 12 + 2));
    let sparse = fs::metadata(target.join("sparse")).unwrap();
    assert!(sparse.blocks() * 512 < 1 << 20, "{} bytes on disk of {}", sparse.blocks() * 512, sparse.len());
    // Overlay xattrs belong to the mount that wrote the layer, so they are not copied.
    assert!(
        !Snapshot::of_path(&target).unwrap().entries[Path::new("file")]
            .xattrs
            .keys()
            .any(|name| { name.to_string_lossy().starts_with("trusted.overlay.") })
    );
}

#[test]
fn immutable_files_are_copied_with_all_their_names() {
    let layer =
        Dir::new().file("plain", "").with("one", Item::Name(1)).with("dir", Dir::new().with("two", Item::Name(1)));
    let stack = Stack::new(&[], &[layer], &Dir::new());
    let file = File::open(stack.sources[0].join("one")).unwrap();
    let flags = ioctl_getflags(&file).expect("TMPDIR is on a file system with immutable files, ext4 or XFS");
    ioctl_setflags(&file, flags | IFlags::IMMUTABLE).unwrap();
    let compared = stack.compare(&new_merge());
    ioctl_setflags(&file, flags).unwrap();
    assert_eq!(counts(&compared.unwrap()), (1, 2));
}

/// Adds names to `file` beside the layers until only `left` more are possible.
fn use_up_links(stack: &Stack, file: &Path, left: usize) {
    let names = stack.dir.path().join("names");
    fs::create_dir(&names).unwrap();
    let mut made = Vec::new();
    while made.len() < 100_000 {
        let name = names.join(made.len().to_string());
        match fs::hard_link(file, &name) {
            Ok(()) => made.push(name),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::MLINK.raw_os_error()), "{error}");
                for name in made.iter().rev().take(left) {
                    fs::remove_file(name).unwrap();
                }
                return;
            }
        }
    }
    panic!("no limit of links here: this test needs TMPDIR on ext4");
}

#[test]
fn a_file_at_the_limit_of_links_is_copied() {
    let layer = Dir::new().with("one", Item::Name(1)).with("two", Item::Name(1)).file("plain", "");
    let stack = Stack::new(&[], &[layer], &Dir::new());
    use_up_links(&stack, &stack.sources[0].join("one"), 0);
    assert_eq!(counts(&stack.compare(&new_merge()).unwrap()), (1, 2));
}

#[test]
fn a_file_that_reaches_the_limit_of_links_stays_one_file() {
    let mut layer = Dir::new().with("dir", Dir::new().mode(0o555).with("deep", Item::Name(1)));
    for number in 0..20 {
        layer = layer.with(format!("name{number}"), Item::Name(1));
    }
    let stack = Stack::new(&[], &[layer, Dir::new().file("plain", "")], &Dir::new());
    use_up_links(&stack, &stack.sources[0].join("name0"), 7);
    // The snapshots show that all names are one file and that no directory's time has changed.
    assert_eq!(counts(&stack.compare(&new_merge()).unwrap()), (1, 21));
}

#[test]
fn a_write_to_a_copy_does_not_change_the_layer() {
    let stack = Stack::new(&[], &[Dir::new().file("file", "before")], &Dir::new());
    let elsewhere = tmpfs(&[]).unwrap();
    let target = through_proc(&elsewhere).join("merged");
    new_merge().run(&stack.sources, &target).unwrap();
    fs::write(target.join("file"), "after").unwrap();
    assert_eq!(fs::read_to_string(stack.sources[0].join("file")).unwrap(), "before");
}

#[test]
fn copies_inherit_nothing_from_the_targets_parent() {
    let stack = Stack::new(&[], &[everything()], &Dir::new().file("base", ""));
    let elsewhere = tmpfs(&[]).unwrap();
    let parent = through_proc(&elsewhere).join("parent");
    Dir::new().mode(0o2777).make(&parent).unwrap();
    set_xattr(&parent, "system.posix_acl_default", &acl(1234, 7)).unwrap();
    stack.compare_at(&new_merge(), &parent.join("merged")).unwrap();
}
