//! An image looks the same in one tree and as a stack of layers, wherever its whiteouts are and
//! whether or not its directories have entries.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::testing::{Layout, Spec, Tar, spec};
use super::{Import, Privileges, Source};
use crate::stack::overlayfs::{EntryKind, XattrNamespace};
use crate::stack::view::{Directory, Shown, View};
use crate::store::Store;

/// Makes the archive of a layer. `a/` is a directory, `a/.wh.b` a whiteout, and any other name a
/// file. Every file of an image has another content.
fn archive(number: usize, names: &[&str]) -> Vec<u8> {
    let tar = names.iter().enumerate().fold(Tar::new(), |tar, (index, name)| {
        let content = format!("{number}.{index}");
        tar.add(match name.rsplit('/').next() {
            Some("") => Spec { mode: 0o711, ..spec(b'5', name) },
            Some(last) if last.starts_with(".wh.") => spec(b'0', name),
            _ => spec(b'0', name).content(content.as_bytes()),
        })
    });
    tar.end()
}

/// Maps each path to the content of a file, or to the mode and the time of a directory.
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

/// Imports an image, its lowest layer first, as one tree and as layers.
fn import(layers: &[&[&str]]) -> [Tree; 2] {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let archives: Vec<_> = layers.iter().enumerate().map(|(number, names)| archive(number, names)).collect();
    Layout::new(&image, &archives).write(&image);
    fs::create_dir(dir.path().join("store")).unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    let source: Source = format!("oci:{}", image.display()).parse().unwrap();
    let import = Import::new(&source).privileges(Privileges::AsAvailable).xattrs(XattrNamespace::User);
    let base = import.into_base(dir.path().join("base")).unwrap();
    let imported = import.into_layers(&store).unwrap();
    let trees: Vec<_> = imported.layers.iter().map(|layer| layer.layer.fs()).collect();
    [read_tree(&base.layers[0].layer.fs()), read_stack(&trees)]
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
        let [flat, layered] = import(layers);
        assert_eq!(flat, layered, "{layers:?}");
        let expected: Vec<_> = [""].iter().chain(expected).map(PathBuf::from).collect();
        assert_eq!(flat.into_keys().collect::<Vec<_>>(), expected, "{layers:?}");
    }
}
