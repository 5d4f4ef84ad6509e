//! Which layer of a stack provides a path, and where the order of layers matters. The kernel is the
//! oracle for random stacks. Also tests the output of `layered show`.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs::{self, File, Metadata};
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use integration_tests::layered;
use integration_tests::stack::{Dir, Item, Mount, private_mounts, require_root};
use integration_tests::tree::{Entry, Snapshot, through_proc};
use layer::{Difference, EntryKind, Error, Role, Stack, StackEntry, conflicts, lookup};
use runner::xattrs_of_process;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::merge::property::property;
use super::merge::random::{Layers, layers};

/// Makes the layers `0/fs`, `1/fs`, … on disk.
fn make(layers: &[Dir]) -> (TempDir, Vec<PathBuf>) {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let make = |(number, layer): (usize, &Dir)| {
        let path = dir.path().join(number.to_string());
        fs::create_dir(&path).unwrap();
        layer.make(&path.join("fs")).unwrap();
        path.join("fs")
    };
    let trees = layers.iter().enumerate().map(make).collect();
    (dir, trees)
}

/// Checks, for all paths of all layers, that the layer that `lookup` names has the file that the
/// kernel shows.
fn supplied_as_shown(trees: &[PathBuf]) -> Result<(), String> {
    let mount = Mount::read_only(trees).unwrap();
    let shown = Snapshot::of(&mount).unwrap();
    let own: Vec<_> = trees.iter().map(|tree| Snapshot::of_path(tree).unwrap().entries).collect();
    for path in own.iter().flat_map(|entries| entries.keys().cloned()).collect::<BTreeSet<_>>() {
        let found = lookup(trees, &path, xattrs_of_process()).map_err(|error| error.to_string())?;
        let same = match (shown.entries.get(&path), found.supplier()) {
            (None, None) => true,
            (Some(entry), Some(origin)) => {
                let metadata = |root: &Path| fs::symlink_metadata(root.join(&path)).unwrap();
                let (over, in_layer) = (metadata(&mount.path()), metadata(&trees[origin.layer]));
                // The overlay has its own inode for a merged directory.
                entry.kind == FileType::Directory || over.ino() == in_layer.ino()
            }
            _ => false,
        };
        if !same {
            return Err(format!("{path:?}: {found:?}, the kernel shows {:?}", shown.entries.get(&path)));
        }
        if let (Some(entry), Some(origin)) = (shown.entries.get(&path), found.supplier()) {
            let own = &own[origin.layer][&path];
            if seen(entry) != seen(own) || entry.modified != own.modified {
                return Err(format!("{path:?}: {found:?}: shown {entry:?}, in the layer {own:?}"));
            }
        }
    }
    Ok(())
}

/// Returns the part of an entry that a [`Difference`] is about.
fn seen(entry: &Entry) -> impl PartialEq + use<> {
    (entry.kind, entry.mode, entry.owner, entry.content.clone(), entry.rdev)
}

#[test]
fn lookup_names_the_layer_that_the_kernel_shows() {
    property(layers(), |Layers { separate, sources, base, .. }| {
        let (_dir, trees) = make(&[&separate[..], &sources, &[base]].concat());
        supplied_as_shown(&trees)
    });
}

/// Opens `path` as a process does that has the mount as its root. `last` has the flags for the last
/// name.
fn open_as_root(mount: &Mount, path: &Path, last: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    loop {
        match openat2(mount, path, OFlags::PATH | OFlags::CLOEXEC | last, Mode::empty(), resolve) {
            // Another process has renamed something, somewhere.
            Err(Errno::AGAIN) => {}
            opened => return opened,
        }
    }
}

/// Returns the part of the attributes that an overlay and the layer of the entry have in common.
fn attributes(metadata: &Metadata) -> impl PartialEq + Debug + use<> {
    let ino = (!metadata.is_dir()).then(|| metadata.ino());
    (metadata.mode(), metadata.uid(), metadata.gid(), metadata.mtime(), metadata.mtime_nsec(), ino)
}

fn kind(kind: FileType) -> EntryKind {
    match kind {
        FileType::RegularFile => EntryKind::File,
        FileType::Directory => EntryKind::Directory,
        FileType::Symlink => EntryKind::Symlink,
        _ => EntryKind::Special,
    }
}

/// Checks, for all paths of all layers, and for paths through and beyond them, that a [`Stack`]
/// leads to the same entry as the mount, or fails with the same error.
fn stack_is_as_shown(trees: &[PathBuf]) -> Result<(), String> {
    let mount = Mount::read_only(trees).unwrap();
    let shown = Snapshot::of(&mount).unwrap();
    let stack = Stack::new(trees, xattrs_of_process()).unwrap();
    let own = trees.iter().flat_map(|tree| Snapshot::of_path(tree).unwrap().entries.into_keys());
    for path in own.collect::<BTreeSet<_>>() {
        for suffix in ["", "/", "/..", "/a", "/../b/c"] {
            let mut path = Path::new("/").join(&path).into_os_string();
            path.push(suffix);
            let path = Path::new(&path);
            for last in [OFlags::empty(), OFlags::NOFOLLOW] {
                let (found, metadata) = match last.is_empty() {
                    true => (stack.resolve(path), stack.metadata(path)),
                    false => (stack.resolve_no_follow(path), stack.metadata_no_follow(path)),
                };
                let opened = match open_as_root(&mount, path, last) {
                    // `fs.protected_symlinks` is about who follows a link, not about what it shows.
                    Err(Errno::ACCESS) => continue,
                    opened => opened,
                };
                let differs = |why: &dyn Debug| Err(format!("{path:?} {last:?}: {why:?}: {found:?}, {opened:?}"));
                match (&opened, &found, metadata) {
                    (Err(errno), Err(Error::Io { source, .. }), Err(_))
                        if source.raw_os_error() == Some(errno.raw_os_error()) => {}
                    (Ok(file), Ok(found), Ok(metadata)) => {
                        let over = File::from(file.try_clone().unwrap()).metadata().unwrap();
                        if attributes(&over) != attributes(&metadata) {
                            return differs(&(attributes(&over), attributes(&metadata)));
                        }
                        let same = open_as_root(&mount, &Path::new("/").join(&found.path), OFlags::NOFOLLOW);
                        if File::from(same.unwrap()).metadata().unwrap().ino() != over.ino() {
                            return differs(&"another path");
                        }
                        if !same_content(&stack, found, &shown, file) {
                            return differs(&"other content");
                        }
                    }
                    _ => return differs(&"only one of them fails, or with another error"),
                }
            }
        }
    }
    Ok(())
}

/// Checks the names in a directory, or the bytes of a regular file, at a path without links.
fn same_content(stack: &Stack, found: &StackEntry, shown: &Snapshot, over: &OwnedFd) -> bool {
    match found.kind {
        EntryKind::Directory => {
            let below = shown.entries.iter().filter(|(path, _)| path.parent() == Some(&found.path));
            let listed = stack.read_dir(&found.path).unwrap();
            let listed = listed.iter().map(|entry| (entry.path.clone(), entry.kind));
            below.map(|(path, entry)| (path.clone(), kind(entry.kind))).eq(listed)
        }
        EntryKind::File => {
            let mut content = Vec::new();
            stack.open(&found.path).unwrap().read_to_end(&mut content).unwrap();
            fs::read(through_proc(over)).unwrap() == content
        }
        EntryKind::Symlink => {
            let target = rustix::fs::readlinkat(over, c"", Vec::new()).unwrap();
            stack.read_link(&found.path).unwrap().as_os_str().as_bytes() == target.as_bytes()
        }
        _ => stack.open(&found.path).is_err(),
    }
}

#[test]
fn a_stack_shows_what_the_kernel_shows() {
    property(layers(), |Layers { separate, sources, base, .. }| {
        let (_dir, trees) = make(&[&separate[..], &sources, &[base]].concat());
        stack_is_as_shown(&trees)
    });
}

/// Another process replaces a directory and a file by links to the host, again and again.
#[test]
fn a_stack_never_leaves_its_layers() {
    let host = tempfile::tempdir().unwrap();
    fs::write(host.path().join("file"), "of the host").unwrap();
    let tree = Dir::new().with("dir", Dir::new().file("file", "of the layer"));
    let (dir, trees) = make(&[tree]);
    let stack = Stack::new(&trees, xattrs_of_process()).unwrap();
    let [place, aside, link] = ["0/fs/dir", "0/aside", "0/link"].map(|name| dir.path().join(name));
    symlink(host.path(), &link).unwrap();
    let done = AtomicBool::new(false);
    let mut seen = BTreeSet::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for (from, to) in [(&place, &aside), (&link, &place), (&place, &link), (&aside, &place)] {
                    fs::rename(from, to).unwrap();
                }
            }
        });
        for _ in 0..5000 {
            let mut content = String::new();
            let read = stack.open("dir/file").map(|mut file| file.read_to_string(&mut content));
            seen.extend(read.is_ok().then_some(content));
        }
        done.store(true, Ordering::Relaxed);
    });
    seen.remove("of the layer");
    assert_eq!(seen, BTreeSet::new());
}

#[test]
fn a_stack_refuses_mounts_and_magic_links() {
    let files = Dir::new().file("file", "").with("dir", Dir::new().file("x", ""));
    let (dir, trees) = make(&[files.with("magic", Item::symlink("/proc/self/root/etc"))]);
    let host = tempfile::tempdir().unwrap();
    fs::write(host.path().join("x"), "of the host").unwrap();
    // In a thread, whose mounts end with it.
    thread::scope(|scope| {
        let mounted = scope.spawn(|| {
            private_mounts().unwrap();
            for (from, name) in [(host.path().join("x"), "file"), (host.path().into(), "dir")] {
                rustix::mount::mount_bind(from, dir.path().join("0/fs").join(name)).unwrap();
            }
            let stack = Stack::new(&trees, xattrs_of_process()).unwrap();
            for path in ["file", "dir", "dir/x"] {
                let error = stack.open(path).unwrap_err();
                assert!(matches!(&error, Error::MountInside { path } if path.starts_with(&trees[0])), "{error}");
            }
            assert!(
                matches!(stack.open("magic"), Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound)
            );
        });
        mounted.join().unwrap();
    });
}

/// Checks that paths look the same in either order, unless the path or a directory above it is a
/// conflict.
fn alike_in_any_order(trees: &[PathBuf]) -> Result<(), String> {
    let found = conflicts(trees, xattrs_of_process()).unwrap();
    let found = found.collect::<Result<Vec<_>, Error>>().map_err(|error| error.to_string())?;
    let differs: BTreeSet<_> =
        found.iter().filter(|conflict| conflict.difference != Difference::Nothing).map(|found| &found.path).collect();
    let reversed: Vec<_> = trees.iter().rev().collect();
    let [one, other] =
        [Mount::read_only(trees), Mount::read_only(&reversed)].map(|mount| Snapshot::of(mount.unwrap()).unwrap());
    for path in one.entries.keys().chain(other.entries.keys()) {
        // A conflict of the root covers only the root itself.
        let known =
            path.ancestors().any(|way| differs.contains(&way.to_path_buf()) && (way == path || way != Path::new("")));
        if !known && one.entries.get(path).map(seen) != other.entries.get(path).map(seen) {
            return Err(format!("{path:?} differs but is not a conflict: {found:#?}"));
        }
    }
    Ok(())
}

#[test]
fn paths_without_a_conflict_look_the_same_in_any_order() {
    property(layers(), |Layers { sources, base, .. }| {
        let (_dir, trees) = make(&[&sources[..], &[base]].concat());
        alike_in_any_order(&trees)
    });
}

#[test]
fn layers_with_redirects_are_refused_and_links_are_not_followed() {
    let redirect = Dir::new().with("a", Dir::new().xattr("trusted.overlay.redirect", b"/b").file("file", ""));
    let (_dir, trees) = make(&[redirect, Dir::new().with("l", Item::symlink("a"))]);
    let error = lookup(&trees, "a/file", xattrs_of_process()).unwrap_err();
    assert!(matches!(&error, Error::Unmergeable { path, .. } if *path == trees[0].join("a")), "{error}");
    let found = lookup(&trees, "/l/file", xattrs_of_process()).unwrap();
    let obstacle = found.obstacle.unwrap();
    assert_eq!((obstacle.layer, &*obstacle.path, obstacle.target.as_deref()), (1, "l".as_ref(), Some("a".as_ref())));
    assert!(found.origins.is_empty());
    // A lookup finds the link itself.
    assert_eq!(lookup(&trees, "l", xattrs_of_process()).unwrap().origins[0].role, Role::Supplies);
}

fn show(arguments: &[&str], layers: &[PathBuf]) -> (i32, String, String) {
    let mut command: Command = layered();
    command.arg("show").args(arguments);
    for layer in layers {
        command.arg("--layer").arg(layer);
    }
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn show_prints_tables_and_json() {
    let bin = |content: &str| Dir::new().with("bin", Dir::new().file("cc", content).file("same", ""));
    let (dir, trees) = make(&[
        bin("gcc").with("lib", Item::symlink("usr/lib")),
        bin("clang").with("etc", Dir::new().whiteout("motd")),
        Dir::new().with("etc", Dir::new().file("motd", "hello")),
    ]);
    let layers: Vec<_> = trees.iter().map(|tree| tree.parent().unwrap().to_path_buf()).collect();
    let root = dir.path().display();

    let (status, stdout, stderr) = show(&["--file", "/bin/cc"], &layers);
    assert_eq!((status, &*stderr), (0, ""));
    let expected = format!(
        "/bin/cc: a file of {root}/0\n\
         LAYER{space}  HAS\n\
         {root}/0  a file  shown\n\
         {root}/1  a file  hidden by {root}/0\n",
        space = " ".repeat(layers[0].as_os_str().len() - 5)
    );
    assert_eq!(stdout, expected);
    let (status, stdout, _) = show(&["--file", "etc/motd", "--json"], &layers);
    let output: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((status, &output["path"], &output["layer"]), (1, &json!("/etc/motd"), &Value::Null));
    assert_eq!(output["origins"][0], json!({"layer": layers[1], "has": "whiteout", "role": "deletes", "by": null}));
    assert_eq!(output["origins"][1], json!({"layer": layers[2], "has": "file", "role": "hidden", "by": layers[1]}));
    let (status, stdout, _) = show(&["--file", "/lib/x", "--no-follow"], &layers);
    assert!(
        status == 1 && stdout.contains("/lib is a symbolic link of") && stdout.contains("leads to usr/lib"),
        "{stdout}"
    );

    let (status, stdout, stderr) = show(&["--conflicts"], &layers);
    assert_eq!((status, &*stderr), (1, ""));
    let expected = "\
PATH       DIFFERENCE  LAYERS
/bin/cc    content     0, 1
/etc/motd  deletion    1, 2
paths in several layers: 2 differ, 1 are the same in all
";
    assert_eq!(stdout, expected);
    let (_, stdout, _) = show(&["--conflicts", "--json"], &layers);
    let output: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(output[1], json!({"path": "/bin/same", "difference": "nothing", "layers": [layers[0], layers[1]]}));
    assert_eq!(show(&["--conflicts"], &layers[..1]).0, 0);

    for wrong in [&["--file", "x", "--conflicts"][..], &[], &["--file", "x", "some-layer"]] {
        assert_eq!(show(wrong, &layers).0, 125, "{wrong:?}");
    }
    let (status, _, stderr) = show(&["--file", "x"], &[]);
    assert!(status == 125 && stderr.contains("--layers-from"), "{stderr}");
}

#[test]
fn show_follows_links_and_names_their_layers() {
    let (dir, trees) = make(&[
        Dir::new().with("usr", Dir::new().with("bin", Dir::new().file("gcc", ""))),
        Dir::new()
            .with("bin", Item::symlink("usr/bin"))
            .with("loop", Item::symlink("loop"))
            .with("usr", Dir::new().with("bin", Dir::new().with("cc", Item::symlink("/bin/gcc")))),
    ]);
    let root = dir.path().display();
    let (layer, base) = (&trees[0].parent().unwrap().to_path_buf(), trees[1].parent().unwrap().to_str().unwrap());
    let stack = std::slice::from_ref(layer);
    let tree = trees[1].canonicalize().unwrap();
    let shown = |base: &str| {
        format!(
            "/bin: a symbolic link of {base} to usr/bin\n\
             /usr/bin/cc: a symbolic link of {base} to /bin/gcc\n\
             /bin: a symbolic link of {base} to usr/bin\n\
             /usr/bin/gcc: a file of {root}/0\n"
        )
    };
    let (status, stdout, stderr) = show(&["--file", "bin/cc", "--base", base], stack);
    assert_eq!((status, &*stderr), (0, ""));
    assert!(stdout.starts_with(&(shown(base) + "LAYER")), "{stdout}");
    let (status, stdout, _) = show(&["--file", "bin/cc", "--rootfs", tree.to_str().unwrap()], stack);
    assert!(status == 0 && stdout.starts_with(&shown(base)), "{stdout}");
    let mut command = layered();
    command.args(["show", "--file", "/bin/cc", "--json", "--layer"]).arg(layer).env("LAYERED_BASE", base);
    let output: Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
    let link = |path: &str, target: &str| json!({"layer": base, "path": path, "target": target});
    let expected = json!({
        "path": "/bin/cc",
        "layer": layer,
        "origins": [{"layer": layer, "has": "file", "role": "supplies", "by": null}],
        "obstacle": null,
        "links": [link("/bin", "usr/bin"), link("/usr/bin/cc", "/bin/gcc"), link("/bin", "usr/bin")],
        "end": "/usr/bin/gcc",
    });
    assert_eq!(output, expected);

    // Without following, the link itself is the end.
    let (status, stdout, _) = show(&["--file", "/bin", "--no-follow", "--json", "--base", base], stack);
    let output: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((status, &output["end"], &output["links"]), (0, &json!("/bin"), &json!([])));
    assert_eq!(output["origins"][0]["has"], "symlink");
    let (status, stdout, _) = show(&["--file", "/bin/none", "--base", base], stack);
    assert!(status == 1 && stdout.ends_with("/usr/bin/none: nothing\n"), "{stdout}");
    let (status, _, stderr) = show(&["--file", "/loop", "--base", base], stack);
    assert!(status == 125 && stderr.contains("Too many levels of symbolic links"), "{stderr}");

    // A slash at the end needs a directory, and the path is shown as it was given.
    let found = |path: &str, options: &[&str]| {
        let arguments = [&["--file", path, "--base", base][..], options].concat();
        let (status, stdout, _) = show(&[&arguments[..], &["--json"]].concat(), stack);
        let output: Value = serde_json::from_str(&stdout).unwrap();
        let text =
            show(&arguments, stack).1.lines().find(|line| !line.contains(" a symbolic link of")).unwrap().to_owned();
        (status, output["path"].clone(), output["obstacle"]["path"].clone(), output["end"].clone(), text)
    };
    let gcc = "/usr/bin/gcc";
    let nothing = |path: &str| format!("{path}: nothing, because {gcc} is a file of {}", layer.display());
    for (path, options, shown) in [
        ("/usr/bin/gcc/", &[][..], "/usr/bin/gcc/"),
        ("/usr/bin/gcc/", &["--no-follow"], "/usr/bin/gcc/"),
        ("/usr/bin/gcc/..", &[], "/usr/bin/gcc/.."),
        ("/bin/cc/.", &[], gcc),
    ] {
        assert_eq!(found(path, options), (1, json!(path), json!(gcc), json!(gcc), nothing(shown)), "{path}");
    }
    for (path, options) in [("/usr/../usr//bin/gcc", &[][..]), ("/none/../usr/bin/gcc", &["--no-follow"])] {
        let text = format!("{path}: a file of {}", layer.display());
        assert_eq!(found(path, options), (0, json!(path), Value::Null, json!(gcc), text), "{path}");
    }
    // The kernel resolves `..` at the end of the link.
    assert_eq!(show(&["--file", "/bin/../bin", "--base", base], stack).0, 0);
    let (status, stdout, _) = show(&["--file", "/bin/../none", "--base", base], stack);
    assert!(status == 1 && stdout.ends_with("/usr/none: nothing\n"), "{stdout}");

    let conflicts = |arguments: &[&str]| show(&[&["--conflicts"], arguments].concat(), &[layer.clone(), layer.clone()]);
    assert_eq!(conflicts(&[]).0, 0);
    assert_eq!(conflicts(&["--rootfs", tree.to_str().unwrap()]).0, 0);
}
