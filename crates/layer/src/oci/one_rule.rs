//! An image looks the same in one tree and as a stack of layers, wherever its whiteouts are and
//! whether or not its directories have entries.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::testing::{Layout, Tar, spec};
use super::{Import, Privileges, Source};
use crate::stack::overlayfs::{EntryKind, XattrNamespace};
use crate::stack::view::{Directory, Shown, View};
use crate::store::Store;

/// An entry of a layer.
#[derive(Debug, Clone)]
enum Part {
    File(String),
    Directory(String),
    Whiteout(String),
    Opaque(String),
}

/// Reads an entry as archives name it: `a/` is a directory, `a/.wh.b` a whiteout.
fn part(name: &str) -> Part {
    let (parent, last) = name.rsplit_once('/').unwrap_or(("", name));
    match last.strip_prefix(".wh.") {
        Some(".wh..opq") => Part::Opaque(parent.into()),
        Some(hidden) => Part::Whiteout(if parent.is_empty() { hidden.into() } else { format!("{parent}/{hidden}") }),
        None if last.is_empty() => Part::Directory(parent.into()),
        None => Part::File(name.into()),
    }
}

/// Makes the archive of a layer. Every file of an image has another content.
fn archive(number: usize, parts: &[Part]) -> Vec<u8> {
    let tar = parts.iter().enumerate().fold(Tar::new(), |tar, (index, part)| match part {
        Part::File(path) => tar.add(spec(b'0', path).content(format!("{number}.{index}").as_bytes())),
        Part::Directory(path) => {
            let mut directory = spec(b'5', path);
            directory.mode = 0o711;
            tar.add(directory)
        }
        Part::Whiteout(path) => {
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
            tar.add(spec(b'0', &format!("{parent}/.wh.{name}")))
        }
        Part::Opaque(path) => tar.add(spec(b'0', &format!("{path}/.wh..wh..opq"))),
    });
    tar.end()
}

/// What is at each path: the content of a file, or the mode and the time of a directory.
type Tree = BTreeMap<PathBuf, String>;

fn directory(path: &Path) -> String {
    let metadata = fs::symlink_metadata(path).unwrap();
    format!("{:o} {}", metadata.mode(), metadata.mtime())
}

fn read_tree(root: &Path) -> Tree {
    let entries = walkdir::WalkDir::new(root).into_iter().map(Result::unwrap);
    let describe = |path: &Path| if path.is_dir() { directory(path) } else { fs::read_to_string(path).unwrap() };
    entries.map(|entry| (entry.path().strip_prefix(root).unwrap().into(), describe(entry.path()))).collect()
}

fn read_stack(trees: &[PathBuf]) -> Tree {
    let stack = View::new(trees).unwrap().xattrs(XattrNamespace::User);
    let mut tree = Tree::new();
    let mut waiting = vec![stack.root()];
    while let Some(here) = waiting.pop() {
        let path = |directory: &Directory| stack.path(directory.topmost().unwrap()).join(directory.path());
        tree.insert(here.path().into(), directory(&path(&here)));
        for (name, (index, kind)) in stack.names(&here).unwrap() {
            match stack.child(&here, &name).unwrap().unwrap() {
                Shown::Directory(directory) => waiting.push(directory),
                Shown::File(_) => {
                    assert_eq!(kind, EntryKind::File);
                    let path = here.path().join(name);
                    let content = fs::read_to_string(stack.path(index).join(&path)).unwrap();
                    tree.insert(path, content);
                }
            }
        }
    }
    tree
}

/// Imports an image, its lowest layer first, as one tree and as layers. An image that is refused has
/// no tree.
fn import(layers: &[Vec<Part>]) -> [Option<Tree>; 2] {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let archives: Vec<_> = layers.iter().enumerate().map(|(number, parts)| archive(number, parts)).collect();
    Layout::new(&image, &archives).write(&image);
    fs::create_dir(dir.path().join("store")).unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    let source: Source = format!("oci:{}", image.display()).parse().unwrap();
    let import = Import::new(&source).privileges(Privileges::AsAvailable).xattrs(XattrNamespace::User);
    let flat = import.into_base(dir.path().join("base")).ok().map(|base| read_tree(&base.layers[0].layer.fs()));
    let layered = import.into_layers(&store).ok().map(|imported| {
        let trees: Vec<_> = imported.layers.iter().map(|layer| layer.layer.fs()).collect();
        read_stack(&trees)
    });
    [flat, layered]
}

#[test]
fn a_layer_keeps_what_it_brings_beside_its_whiteouts() {
    // The layers of an image, the lowest first, and the paths that it shows.
    for (layers, expected) in [
        (&[&["c/", "c/old"][..], &["c/a/f", ".wh.c"]][..], &["c", "c/a", "c/a/f"][..]),
        (&[&["d/", "d/x"], &["d/y", ".wh.d"]], &["d", "d/y"]),
        (&[&["d/", "d/x"], &[".wh.d", "d/y"]], &["d", "d/y"]),
        (&[&["d/e/f/x"], &["d/e/f/y", "d/.wh..wh..opq"]], &["d", "d/e", "d/e/f", "d/e/f/y"]),
    ] {
        let layers: Vec<Vec<_>> = layers.iter().map(|parts| parts.iter().map(|name| part(name)).collect()).collect();
        let expected: Vec<_> = [""].iter().chain(expected).map(PathBuf::from).collect();
        for tree in import(&layers) {
            assert_eq!(tree.unwrap().into_keys().collect::<Vec<_>>(), expected, "{layers:?}");
        }
    }
}
