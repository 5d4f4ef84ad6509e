//! One test per rule of overlayfs, in the smallest stack that shows it. `property` looks for cases
//! that are missing here.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use integration_tests::stack::{Attributes, Dir, Flavour, Item, Mount, acl, new_merge, set_xattr};
use integration_tests::tree::Snapshot;
use layer::{Error, Merge, XattrNamespace};
use rustix::fs::FileType;

use super::{Stack, agree, check};

fn attributes(mode: u32) -> Attributes {
    Attributes { mode, ..Attributes::default() }
}

/// A base that has an entry for every name that the tests use.
fn base() -> Dir {
    let full = || Dir::new().file("base", "base").with("deep", Dir::new().file("base", "base"));
    Dir::new().with("dir", full()).with("other", full()).file("file", "base")
}

fn check_whiteouts(merged: &layer::Merged, whiteouts: u64, opaques: u64) {
    assert_eq!((merged.whiteouts, merged.opaques), (whiteouts, opaques), "{merged:?}");
}

#[test]
fn a_whiteout_stays_and_hides_the_base() {
    let layers = [Dir::new().whiteout("file"), Dir::new().whiteout("dir").whiteout("nowhere")];
    check_whiteouts(&check(&layers, &base()), 3, 0);
}

#[test]
fn a_whiteout_hides_entries_of_lower_layers() {
    let layers = [
        Dir::new().whiteout("a").whiteout("b"),
        Dir::new().file("a", "hidden").with("b", Dir::new().file("c", "hidden")),
    ];
    check_whiteouts(&check(&layers, &base()), 2, 0);
}

#[test]
fn a_file_on_top_of_a_whiteout_is_a_file() {
    check_whiteouts(&check(&[Dir::new().file("file", "new"), Dir::new().whiteout("file")], &base()), 0, 0);
}

#[test]
fn a_whiteout_in_the_form_of_an_xattr_becomes_a_device() {
    let stack = Stack::new(&[], &[Dir::new().with("dir", Dir::new().with("base", Item::XattrWhiteout))], &base());
    check_whiteouts(&stack.compare(&new_merge()).unwrap(), 1, 0);
    let made = fs::symlink_metadata(stack.merged().join("dir/base")).unwrap();
    assert_eq!((FileType::from_raw_mode(made.mode()), made.rdev()), (FileType::CharacterDevice, 0));
}

#[test]
fn a_file_with_content_is_not_a_whiteout_despite_its_xattr() {
    let carries = Attributes { xattrs: vec![("trusted.overlay.whiteout".into(), vec![])], ..attributes(0o644) };
    let dir = Dir::new().with("base", Item::File(carries, b"content".into())).with("deep", Item::XattrWhiteout);
    check_whiteouts(&check(&[Dir::new().with("dir", dir)], &base()), 1, 0);
}

#[test]
fn every_listed_name_can_be_looked_up() {
    // Only the merged directory has `only`. The kernel shows such a directory unchanged and would
    // list the whiteout.
    let layers = [
        Dir::new().with("only", Dir::new().whiteout("gone").with("deep", Dir::new().whiteout("gone"))),
        Dir::new().with("only", Dir::new().file("gone", "hidden").with("deep", Dir::new().file("gone", "hidden"))),
    ];
    let stack = Stack::new(&[], &layers, &base());
    check_whiteouts(&stack.compare(&new_merge()).unwrap(), 2, 0);
    let mount = Mount::read_only(&stack.with_merged(&stack.merged())).unwrap();
    assert!(Snapshot::of(mount).unwrap().phantoms.is_empty());
}

#[test]
fn a_whiteout_over_nothing_stays() {
    // Here, the layers' own stack lists the whiteout, too.
    check_whiteouts(&check(&[Dir::new().with("only", Dir::new().whiteout("gone"))], &base()), 1, 0);
}

#[test]
fn an_opaque_directory_ends_the_union_and_hides_the_base() {
    let layers = [
        Dir::new().with("dir", Dir::new().file("top", "1")),
        Dir::new().with("dir", Dir::new().file("middle", "2").opaque()),
        Dir::new().with("dir", Dir::new().file("bottom", "hidden")),
    ];
    check_whiteouts(&check(&layers, &base()), 0, 1);
}

#[test]
fn whiteouts_are_dropped_in_an_opaque_directory() {
    let deep = Dir::new().whiteout("base").file("kept", "");
    let layers = [
        Dir::new().with("dir", Dir::new().whiteout("base").with("deep", deep)),
        Dir::new().with("dir", Dir::new().opaque()),
    ];
    check_whiteouts(&check(&layers, &base()), 0, 1);
}

#[test]
fn opaque_on_the_root_of_a_layer_has_no_effect() {
    check_whiteouts(&check(&[Dir::new().file("new", "").opaque(), Dir::new().file("below", "seen")], &base()), 0, 0);
}

#[test]
fn only_the_value_y_makes_a_directory_opaque() {
    for value in [&b"n"[..], b"yes", b"", b"x"] {
        let dir = Dir::new().file("new", "").xattr("trusted.overlay.opaque", value);
        let layers = [Dir::new().with("dir", dir), Dir::new().with("dir", Dir::new().file("below", "seen"))];
        check_whiteouts(&check(&layers, &base()), 0, 0);
    }
}

#[test]
fn a_file_over_a_directory_hides_it() {
    let layers = [
        Dir::new().file("dir", "a file").with("other", Dir::new().file("deep", "a file")),
        Dir::new().with("dir", Dir::new().file("x", "")).with("other", Dir::new().with("deep", Dir::new())),
    ];
    check_whiteouts(&check(&layers, &base()), 0, 0);
}

#[test]
fn a_directory_over_a_file_becomes_opaque() {
    let layers = [
        Dir::new().with("dir", Dir::new().file("new", "")).with("other", Dir::new().with("deep", Dir::new())),
        Dir::new().file("dir", "hidden").with("other", Dir::new().file("deep", "hidden")),
        Dir::new().with("dir", Dir::new().file("hidden", "")),
    ];
    // Without the opaque mark, the base's directories would be visible.
    check_whiteouts(&check(&layers, &base()), 0, 2);
}

#[test]
fn a_directory_over_a_whiteout_over_a_directory_becomes_opaque() {
    let layers = [
        Dir::new().with("dir", Dir::new().file("new", "")),
        Dir::new().whiteout("dir"),
        Dir::new().with("dir", Dir::new().file("hidden", "")),
    ];
    check_whiteouts(&check(&layers, &base()), 0, 1);
}

#[test]
fn a_whiteout_over_a_directory_over_a_file_stays_one_whiteout() {
    let layers =
        [Dir::new().whiteout("file"), Dir::new().with("file", Dir::new().file("x", "")), Dir::new().file("file", "2")];
    check_whiteouts(&check(&layers, &base()), 1, 0);
}

#[test]
fn a_directory_has_the_metadata_of_its_topmost_layer() {
    let carries = |mode, uid, seconds, xattr: &str| Attributes {
        mode,
        owner: (uid, uid + 1),
        modified: (seconds, 987_654_321),
        xattrs: vec![(xattr.into(), b"value".into()), ("system.posix_acl_default".into(), acl(uid, 5))],
    };
    let dir = |mode, uid, seconds, xattr| {
        let attributes = carries(mode, uid, seconds, xattr);
        Dir { attributes: attributes.clone(), ..Dir::new() }
            .file(xattr, "")
            .with("deep", Dir { attributes, ..Dir::new() })
            .with("empty", Dir::new())
    };
    let layers = [
        Dir::new().with("dir", dir(0o2710, 10, 5, "user.top")),
        Dir::new().with("dir", dir(0o1777, 20, 6, "trusted.bottom")).with("other", dir(0o000, 30, 7, "user.other")),
    ];
    check(&layers, &base());
    // The same holds for the root.
    check(&[dir(0o700, 40, 8, "user.root"), dir(0o755, 50, 9, "user.lower")], &base());
}

#[test]
fn every_kind_of_file_and_mode_is_merged() {
    let mut layer = Dir::new();
    for mode in [0, 0o111, 0o644, 0o1777, 0o2755, 0o4755, 0o6711, 0o7777] {
        layer = layer.with(format!("file{mode:o}"), Item::File(attributes(mode), b"content".into()));
        layer = layer.with(format!("dir{mode:o}"), Dir::new().mode(mode).file("in", "it"));
        layer = layer.with(format!("empty{mode:o}"), Dir::new().mode(mode));
    }
    let kinds = [FileType::Fifo, FileType::Socket, FileType::CharacterDevice, FileType::BlockDevice];
    for (minor, kind) in (1..).zip(kinds) {
        layer = layer.with(format!("{kind:?}"), Item::special(kind, minor));
    }
    for (name, target) in [("dangling", "nowhere"), ("loop", "loop"), ("round", "dir/../round"), ("root", "/")] {
        layer = layer.with(name, Item::symlink(target));
    }
    layer =
        layer.with("one", Item::Name(1)).with("two", Item::Name(1)).with("dir0", Dir::new().with("in", Item::Name(1)));
    check(&[layer.clone(), Dir::new()], &base());
    check(&[Dir::new(), layer], &base());
}

#[test]
fn a_device_with_another_number_is_not_a_whiteout() {
    check_whiteouts(&check(&[Dir::new().with("file", Item::special(FileType::CharacterDevice, 0))], &base()), 0, 0);
}

#[test]
fn names_of_any_bytes_are_merged() {
    let mut layer = Dir::new();
    for byte in (1..=255).filter(|byte| *byte != b'/') {
        layer = layer.file(OsStr::from_bytes(&[b'_', byte]), "file").whiteout(OsStr::from_bytes(&[b'w', byte]));
        let dir = Dir::new().file(OsStr::from_bytes(&[byte, byte, byte]), "in it");
        layer = layer.with(OsStr::from_bytes(&[byte, b'd']), dir);
    }
    for length in [254, 255] {
        layer = layer.file(OsStr::from_bytes(&vec![0xff; length]), "long").whiteout("w".repeat(length));
        layer = layer.with("d".repeat(length), Dir::new().with("d".repeat(length), Dir::new().file("deep", "")));
    }
    check(&[layer.clone(), layer], &base());
}

#[test]
fn hard_links_stay_hard_links() {
    let layers = [
        Dir::new().with("a", Item::Name(1)).with("dir", Dir::new().with("b", Item::Name(1))).with("c", Item::Name(2)),
        Dir::new().with("c", Item::Name(1)).with("d", Item::Name(1)).with("dir", Dir::new().with("e", Item::Name(1))),
    ];
    let merged = check(&layers, &base());
    assert_eq!((merged.linked, merged.copied), (5, 0));
}

#[test]
fn xattrs_of_a_nested_overlay_are_ordinary() {
    let inner = Dir::new()
        .xattr("trusted.overlay.overlay.opaque", b"y")
        .xattr("trusted.overlay.overlay.whiteout", b"")
        .xattr("user.overlay.opaque", b"y")
        .xattr("user.overlay.origin", b"o");
    check(&[Dir::new().with("dir", inner), Dir::new().with("dir", Dir::new().file("below", "seen"))], &base());
}

#[test]
fn overlay_xattrs_of_an_upper_are_not_copied() {
    let upper = Dir::new().xattr("trusted.overlay.impure", b"y").xattr("trusted.overlay.uuid", b"0123456789abcdef");
    let stack = Stack::new(&[], &[upper.clone().with("dir", upper)], &base());
    stack.compare(&new_merge()).unwrap();
    for path in [stack.merged(), stack.merged().join("dir")] {
        let root = Snapshot::of_path(&path).unwrap().entries[Path::new("")].clone();
        assert!(root.xattrs.is_empty(), "{}: {root:?}", path.display());
    }
}

#[test]
fn layers_with_user_xattrs_are_merged() {
    let opaque = Dir::new().xattr("user.overlay.opaque", b"y").file("new", "");
    let whiteout = Attributes { xattrs: vec![("user.overlay.whiteout".into(), vec![])], ..attributes(0o644) };
    let other = Dir::new().xattr("user.overlay.opaque", b"x").with("base", Item::File(whiteout, vec![]));
    let layers = [
        Dir::new().with("dir", opaque).with("other", other),
        Dir::new()
            .with("dir", Dir::new().file("hidden", "").opaque())
            .with("only", Dir::new().whiteout("gone"))
            .with("third", Dir::new().file("shown", "").opaque()),
        Dir::new().with("third", Dir::new().file("shown too", "")).file("dir", "hidden"),
    ];
    let stack = Stack::new(&[], &layers, &base());
    let merged = Merge::new().xattrs(XattrNamespace::User).run(&stack.sources, stack.merged()).unwrap();
    check_whiteouts(&merged, 2, 1);
    let look = |lowers| Snapshot::of(Mount::new(lowers, None, Flavour::User).unwrap()).unwrap();
    agree(&look(&stack.all()), &look(&stack.with_merged(&stack.merged()))).unwrap();
}

#[test]
fn redirect_and_metacopy_are_refused_by_name() {
    let redirect = Dir::new().with("deep", Dir::new().xattr("trusted.overlay.redirect", b"elsewhere"));
    let carries = Attributes { xattrs: vec![("trusted.overlay.metacopy".into(), vec![])], ..attributes(0o644) };
    let metacopy = Dir::new().with("file", Item::File(carries, vec![]));
    for (dir, path, name) in
        [(redirect, "dir/deep", "trusted.overlay.redirect"), (metacopy.clone(), "dir/file", "trusted.overlay.metacopy")]
    {
        let stack = Stack::new(&[], &[Dir::new().file("above", ""), Dir::new().with("dir", dir)], &base());
        match new_merge().run(&stack.sources, stack.merged()) {
            Err(Error::Unmergeable { path: found, xattr }) => {
                assert_eq!((found, xattr), (stack.sources[1].join(path), name));
            }
            other => panic!("{other:?}"),
        }
        assert!(!stack.merged().exists());
    }
    // If the kernel would not look at the file, its xattr does no harm.
    check(&[Dir::new().with("dir", Dir::new().file("file", "above")), Dir::new().with("dir", metacopy)], &base());
}

#[test]
fn nothing_is_inherited_from_the_targets_parent() {
    let layer = Dir::new()
        .file("file", "")
        .with("dir", Dir::new().mode(0o777).with("deep", Dir::new().mode(0o666)))
        .with("fifo", Item::special(FileType::Fifo, 0));
    let stack = Stack::new(&[], &[layer.clone(), layer], &base());
    let parent = stack.dir.path().join("parent");
    Dir { attributes: Attributes { mode: 0o2777, owner: (7, 8), ..Attributes::default() }, ..Dir::new() }
        .make(&parent)
        .unwrap();
    set_xattr(&parent, "system.posix_acl_default", &acl(1234, 7)).unwrap();
    stack.compare_at(&new_merge(), &parent.join("merged")).unwrap();
    // An existing target directory passes nothing on, either.
    let existing = parent.join("existing");
    fs::create_dir(&existing).unwrap();
    set_xattr(&existing, "user.former", b"").unwrap();
    stack.compare_at(&new_merge(), &existing).unwrap();
}

#[test]
fn the_umask_has_no_effect() {
    let layer = Dir::new().mode(0o777).with("dir", Dir::new().mode(0o777).file("file", ""));
    let stack = Stack::new(&[], &[layer.clone(), layer], &base());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Only this thread gets another umask.
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).unwrap();
            rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o777));
            new_merge().run(&stack.sources, stack.merged()).unwrap();
        });
    });
    let look = |lowers: &[_]| Snapshot::of(Mount::read_only(lowers).unwrap()).unwrap();
    agree(&look(&stack.all()), &look(&stack.with_merged(&stack.merged()))).unwrap();
}
