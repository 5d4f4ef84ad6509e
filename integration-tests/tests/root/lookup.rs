//! Which layer of a stack provides a path, and where the order of layers matters. The kernel is the
//! oracle for random stacks. Also tests the output of `layered show`.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use integration_tests::layered;
use integration_tests::stack::{Dir, Item, Mount, require_root};
use integration_tests::tree::{Entry, Snapshot};
use layer::{Difference, Error, Role, XattrNamespace, conflicts, lookup};
use rustix::fs::FileType;
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
        let found = lookup(trees, &path, XattrNamespace::Trusted).map_err(|error| error.to_string())?;
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

/// Checks that paths look the same in either order, unless the path or a directory above it is a
/// conflict.
fn alike_in_any_order(trees: &[PathBuf]) -> Result<(), String> {
    let found = conflicts(trees, XattrNamespace::Trusted).unwrap();
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
    let error = lookup(&trees, "a/file", XattrNamespace::Trusted).unwrap_err();
    assert!(matches!(&error, Error::Unmergeable { path, .. } if *path == trees[0].join("a")), "{error}");
    let found = lookup(&trees, "/l/file", XattrNamespace::Trusted).unwrap();
    let obstacle = found.obstacle.unwrap();
    assert_eq!((obstacle.layer, &*obstacle.path, obstacle.target.as_deref()), (1, "l".as_ref(), Some("a".as_ref())));
    assert!(found.origins.is_empty());
    // A lookup finds the link itself.
    assert_eq!(lookup(&trees, "l", XattrNamespace::Trusted).unwrap().origins[0].role, Role::Supplies);
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
    let (status, stdout, _) = show(&["--file", "/lib/x"], &layers);
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
