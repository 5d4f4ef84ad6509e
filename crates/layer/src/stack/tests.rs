//! Stacks without a mount. The root suite compares them with the kernel.

use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, mkdirat, mknodat, openat, symlinkat};
use rustix::io::Errno;

use super::*;
use crate::tree::walk::READ;

/// Makes two layers over a base, which link to each other's files.
fn stack(dir: &Path) -> (Vec<PathBuf>, Stack) {
    let trees: Vec<_> = ["top", "middle", "base"].map(|name| dir.join(name)).into();
    let [top, middle, base] = [&trees[0], &trees[1], &trees[2]];
    for tree in &trees {
        fs::create_dir_all(tree.join("usr/lib")).unwrap();
    }
    for (tree, file) in [(top, "usr/lib/top"), (middle, "usr/lib/deep"), (base, "usr/lib/base"), (base, "gone")] {
        fs::write(tree.join(file), file).unwrap();
    }
    mknodat(CWD, top.join("gone"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    mknodat(CWD, top.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    for (tree, link, target) in [
        (base, "lib", "usr/lib"),
        (top, "absolute", "/lib/base"),
        (middle, "usr/up", "../../../../lib/deep"),
        (top, "out", "/etc/hostname"),
        (top, "dangling", "gone"),
        (top, "loop", "loop"),
        (middle, "slash", "usr/lib/"),
        (middle, "file-slash", "usr/lib/top/"),
        (middle, "root", "/"),
    ] {
        symlink(target, tree.join(link)).unwrap();
    }
    for number in 0..42 {
        let target = if number == 0 { "usr/lib/top".into() } else { format!("chain{}", number - 1) };
        symlink(target, base.join(format!("chain{number}"))).unwrap();
    }
    let stack = Stack::new(&trees, XattrNamespace::User).unwrap();
    (trees, stack)
}

fn errno<T>(result: Result<T>) -> Errno {
    match result {
        Err(Error::Io { source, .. }) => Errno::from_io_error(&source).unwrap(),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("no error"),
    }
}

#[test]
fn links_lead_through_the_stack_and_not_out_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let (_, stack) = stack(dir.path());
    use EntryKind::{Directory, File, Special, Symlink};
    let found = |path: &str, kind, layer| Ok(StackEntry { path: path.into(), kind, layer });
    // (path, its entry with the last link followed, its entry without)
    for (path, followed, not_followed) in [
        ("", found("", Directory, 0), found("", Directory, 0)),
        ("/", found("", Directory, 0), found("", Directory, 0)),
        ("/../..", found("", Directory, 0), found("", Directory, 0)),
        ("usr/lib/base", found("usr/lib/base", File, 2), found("usr/lib/base", File, 2)),
        ("/usr//./lib/../lib/deep", found("usr/lib/deep", File, 1), found("usr/lib/deep", File, 1)),
        ("lib", found("usr/lib", Directory, 0), found("lib", Symlink, 2)),
        ("lib/", found("usr/lib", Directory, 0), found("usr/lib", Directory, 0)),
        ("lib/.", found("usr/lib", Directory, 0), found("usr/lib", Directory, 0)),
        ("lib/..", found("usr", Directory, 0), found("usr", Directory, 0)),
        ("lib/top", found("usr/lib/top", File, 0), found("usr/lib/top", File, 0)),
        ("absolute", found("usr/lib/base", File, 2), found("absolute", Symlink, 0)),
        ("usr/up", found("usr/lib/deep", File, 1), found("usr/up", Symlink, 1)),
        ("slash", found("usr/lib", Directory, 0), found("slash", Symlink, 1)),
        ("root/root/lib/top", found("usr/lib/top", File, 0), found("usr/lib/top", File, 0)),
        ("fifo", found("fifo", Special, 0), found("fifo", Special, 0)),
        ("chain39", found("usr/lib/top", File, 0), found("chain39", Symlink, 2)),
        ("chain40", Err(Errno::LOOP), found("chain40", Symlink, 2)),
        ("loop", Err(Errno::LOOP), found("loop", Symlink, 0)),
        ("loop/x", Err(Errno::LOOP), Err(Errno::LOOP)),
        ("out", Err(Errno::NOENT), found("out", Symlink, 0)),
        ("dangling", Err(Errno::NOENT), found("dangling", Symlink, 0)),
        ("file-slash", Err(Errno::NOTDIR), found("file-slash", Symlink, 1)),
        ("gone", Err(Errno::NOENT), Err(Errno::NOENT)),
        ("missing/..", Err(Errno::NOENT), Err(Errno::NOENT)),
        ("usr/lib/top/", Err(Errno::NOTDIR), Err(Errno::NOTDIR)),
        ("usr/lib/top/..", Err(Errno::NOTDIR), Err(Errno::NOTDIR)),
        ("usr/lib/top/x", Err(Errno::NOTDIR), Err(Errno::NOTDIR)),
        ("a\0b", Err(Errno::INVAL), Err(Errno::INVAL)),
    ] {
        for (result, expected) in [(stack.resolve(path), followed), (stack.resolve_no_follow(path), not_followed)] {
            match expected {
                Ok(expected) => assert_eq!(result.unwrap(), expected, "{path}"),
                Err(expected) => assert_eq!(errno(result), expected, "{path}"),
            }
        }
    }
    assert_eq!(errno(stack.resolve("x/".repeat(2048))), Errno::NAMETOOLONG);
    assert_eq!(errno(stack.resolve("n".repeat(256))), Errno::NAMETOOLONG);
    let error = stack.resolve("/usr/lib/missing").unwrap_err();
    assert_eq!(error.to_string(), "cannot find the stack's /usr/lib/missing");
}

#[test]
fn a_trace_has_every_link_and_the_path_where_they_end() {
    let dir = tempfile::tempdir().unwrap();
    let (_, stack) = stack(dir.path());
    let chain = |from: usize| {
        let target = |number| if number == 0 { "usr/lib/top".to_string() } else { format!("chain{}", number - 1) };
        (0..=from).rev().map(|number| (format!("chain{number}"), target(number), 2)).collect::<Vec<_>>()
    };
    let links = |links: &[(&str, &str, usize)]| {
        links.iter().map(|&(path, target, layer)| (path.to_string(), target.to_string(), layer)).collect::<Vec<_>>()
    };
    for (path, expected, end) in [
        ("/usr/lib/top", vec![], "usr/lib/top"),
        ("absolute", links(&[("absolute", "/lib/base", 0), ("lib", "usr/lib", 2)]), "usr/lib/base"),
        ("lib", links(&[("lib", "usr/lib", 2)]), "usr/lib"),
        (
            "lib/../up",
            links(&[("lib", "usr/lib", 2), ("usr/up", "../../../../lib/deep", 1), ("lib", "usr/lib", 2)]),
            "usr/lib/deep",
        ),
        ("chain3", chain(3), "usr/lib/top"),
        ("dangling", links(&[("dangling", "gone", 0)]), "gone"),
        ("out", links(&[("out", "/etc/hostname", 0)]), "etc/hostname"),
        ("lib/missing/./a/../b", links(&[("lib", "usr/lib", 2)]), "usr/lib/missing/a"),
        ("file-slash/x", links(&[("file-slash", "usr/lib/top/", 1)]), "usr/lib/top/x"),
    ] {
        let Trace { links, path: found } = stack.trace(path).unwrap();
        let text = |path: PathBuf| path.into_os_string().into_string().unwrap();
        let links: Vec<_> = links.into_iter().map(|link| (text(link.path), text(link.target), link.layer)).collect();
        assert_eq!((links, found), (expected, PathBuf::from(end)), "{path}");
    }
    assert_eq!(errno(stack.trace("loop")), Errno::LOOP);
    assert_eq!(errno(stack.trace("chain40")), Errno::LOOP);
    let json = serde_json::to_string(&stack.trace("lib/top").unwrap()).unwrap();
    assert_eq!(json, r#"{"links":[{"path":"/lib","target":"usr/lib","layer":2}],"path":"/usr/lib/top"}"#);
}

#[test]
fn directories_are_listed_and_files_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let (trees, stack) = stack(dir.path());
    let listed = stack.read_dir("lib").unwrap();
    let listed: Vec<_> = listed.iter().map(|entry| (entry.path.to_str().unwrap(), entry.kind, entry.layer)).collect();
    let file = |path, layer| (path, EntryKind::File, layer);
    assert_eq!(listed, [file("usr/lib/base", 2), file("usr/lib/deep", 1), file("usr/lib/top", 0)]);
    let root = stack.read_dir("/").unwrap();
    assert!(root.iter().all(|entry| entry.name() != "gone"), "{root:?}");
    assert_eq!(errno(stack.read_dir("fifo")), Errno::NOTDIR);

    let mut content = String::new();
    stack.open("absolute").unwrap().read_to_string(&mut content).unwrap();
    assert_eq!(content, "usr/lib/base");
    assert!(matches!(stack.open("gone"), Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound));
    for (result, expected) in [
        (stack.open("lib"), Errno::ISDIR),
        // It would wait for a writer.
        (stack.open("fifo"), Errno::NXIO),
        (stack.open("out"), Errno::NOENT),
        (stack.open_no_follow("absolute"), Errno::LOOP),
    ] {
        assert_eq!(errno(result), expected);
    }
    assert_eq!(stack.read_link("absolute").unwrap(), Path::new("/lib/base"));
    assert_eq!(errno(stack.read_link("usr")), Errno::INVAL);

    let ino = |path: PathBuf| fs::symlink_metadata(path).unwrap().ino();
    assert_eq!(stack.metadata("absolute").unwrap().ino(), ino(trees[2].join("usr/lib/base")));
    assert_eq!(stack.metadata_no_follow("absolute").unwrap().ino(), ino(trees[0].join("absolute")));
    assert_eq!(stack.metadata("lib").unwrap().ino(), ino(trees[0].join("usr/lib")));
}

#[test]
fn links_lead_no_deeper_than_a_path_is_long() {
    let dir = tempfile::tempdir().unwrap();
    let name = "n".repeat(255);
    let mut deepest = openat(CWD, dir.path(), READ, Mode::empty()).unwrap();
    for level in 0..20 {
        if level == 10 {
            symlinkat(format!("{name}/").repeat(5), &deepest, "near").unwrap();
            symlinkat(format!("{name}/").repeat(10), &deepest, "far").unwrap();
        }
        mkdirat(&deepest, &name, Mode::RWXU).unwrap();
        deepest = openat(&deepest, &name, READ, Mode::empty()).unwrap();
    }
    let stack = Stack::new(&[dir.path()], XattrNamespace::User).unwrap();
    let tenth: PathBuf = std::iter::repeat_n(&name, 10).collect();
    assert_eq!(stack.resolve(tenth.join("near")).unwrap().path.components().count(), 15);
    assert_eq!(errno(stack.resolve(tenth.join("far"))), Errno::NAMETOOLONG);
    crate::tree::remove::remove_tree(dir.path().join(name)).unwrap();
}

#[test]
fn a_stack_of_no_trees_has_no_root() {
    let stack = Stack::new(&[] as &[&Path], XattrNamespace::Trusted).unwrap();
    assert_eq!(errno(stack.resolve("/")), Errno::NOENT);
    assert_eq!(errno(stack.metadata("/")), Errno::NOENT);
    assert!(stack.read_dir("/").unwrap().is_empty());
}

#[test]
fn an_entry_as_json_has_an_absolute_path() {
    let entry = StackEntry { path: "usr/lib".into(), kind: EntryKind::Directory, layer: 3 };
    assert_eq!(serde_json::to_string(&entry).unwrap(), r#"{"path":"/usr/lib","has":"directory","layer":3}"#);
}
