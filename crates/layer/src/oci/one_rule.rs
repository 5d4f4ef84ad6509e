//! An image looks the same in one tree and as a stack of layers, wherever its whiteouts are and
//! whether or not its directories have entries.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use rustix::fs::{XattrFlags, setxattr};

use super::testing::{Layout, Spec, Tar, spec};
use super::{Import, Privileges, Source, TreeDigest};
use crate::mutated::config;
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

/// Maps each path to the content of a file, the target of a link, or the mode and the time of a
/// directory.
type Tree = BTreeMap<PathBuf, String>;

fn directory(path: &Path) -> String {
    let metadata = fs::symlink_metadata(path).unwrap();
    format!("{:o} {}", metadata.mode(), metadata.mtime())
}

fn file(path: &Path) -> String {
    match fs::read_link(path) {
        Ok(target) => format!("-> {}", target.display()),
        Err(_) => fs::read_to_string(path).unwrap(),
    }
}

fn read_tree(root: &Path) -> Tree {
    let entries = walkdir::WalkDir::new(root).into_iter().map(Result::unwrap);
    let describe = |entry: &walkdir::DirEntry| match entry.file_type().is_dir() {
        true => directory(entry.path()),
        false => file(entry.path()),
    };
    entries.map(|entry| (entry.path().strip_prefix(root).unwrap().into(), describe(&entry))).collect()
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
                    assert!(matches!(kind, EntryKind::File | EntryKind::Symlink), "{kind:?}");
                    let path = here.path().join(name);
                    let content = file(&stack.path(index).join(&path));
                    tree.insert(path, content);
                }
            }
        }
    }
    tree
}

/// A directory with images, a store for their layers, and a base for each.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        // In memory, where the syncs of the imports cost nothing, if there is a file system in
        // memory that has the attributes (Linux 6.6).
        let in_memory = tempfile::tempdir_in("/dev/shm").ok();
        let has_xattrs = |dir: &tempfile::TempDir| setxattr(dir.path(), c"user.a", b"", XattrFlags::empty()).is_ok();
        let dir = in_memory.filter(has_xattrs).unwrap_or_else(|| tempfile::tempdir().unwrap());
        fs::create_dir(dir.path().join("store")).unwrap();
        Self(dir)
    }

    /// Imports an image, its lowest layer first, as one tree and as layers of the store. Returns
    /// what each shows, or why it was refused.
    fn import(&self, archives: &[Vec<u8>]) -> [Result<Tree, String>; 2] {
        let [image, base, store] = ["image", "base", "store"].map(|name| self.0.path().join(name));
        let _ = fs::remove_dir_all(&image);
        Layout::new(&image, archives).write(&image);
        let source: Source = format!("oci:{}", image.display()).parse().unwrap();
        let import = Import::new(&source).privileges(Privileges::AsAvailable).xattrs(XattrNamespace::User);
        let import = import.tree_digest(TreeDigest::Omitted);
        let flat = import.into_base(&base).map(|base| read_tree(&base.layers[0].layer.fs()));
        let _ = crate::remove_tree(&base);
        let layered = import.into_layers(&Store::open(store).unwrap()).map(|imported| {
            let trees: Vec<_> = imported.layers.iter().map(|layer| layer.layer.fs()).collect();
            read_stack(&trees)
        });
        [flat.map_err(|error| format!("{error:?}")), layered.map_err(|error| format!("{error:?}"))]
    }
}

fn import(layers: &[&[&str]]) -> [Tree; 2] {
    let archives: Vec<_> = layers.iter().enumerate().map(|(number, names)| archive(number, names)).collect();
    Place::new().import(&archives).map(Result::unwrap)
}

#[test]
fn a_layer_keeps_what_it_brings_beside_its_whiteouts() {
    // The layers of an image, the lowest first, and the paths that it shows.
    for (layers, expected) in [
        (&[&["c/", "c/old"][..], &["c/a/f", ".wh.c"]][..], &["c", "c/a", "c/a/f"][..]),
        (&[&["d/", "d/x"], &["d/y", ".wh.d"]], &["d", "d/y"]),
        (&[&["d/", "d/x"], &[".wh.d", "d/y"]], &["d", "d/y"]),
        (&[&["d/e/f/x"], &["d/e/f/y", "d/.wh..wh..opq"]], &["d", "d/e", "d/e/f", "d/e/f/y"]),
        (&[&["x"], &["d/.wh.y", "e/.wh..wh..opq"]], &["x"]),
        (&[&["d/.wh.y", "e/.wh..wh..opq", "x"]], &["x"]),
        (&[&["d/", "d/x"], &["d/.wh.x", ".wh.d"]], &[]),
    ] {
        let [flat, layered] = import(layers);
        assert_eq!(flat, layered, "{layers:?}");
        let expected: Vec<_> = [""].iter().chain(expected).map(PathBuf::from).collect();
        assert_eq!(flat.into_keys().collect::<Vec<_>>(), expected, "{layers:?}");
    }
}

#[test]
fn a_file_in_place_of_a_link_below_ends_the_way_through_it() {
    let below = Tar::new().add(spec(b'2', "a").target("/")).add(spec(b'5', "b")).end();
    let upper = Tar::new().add(spec(b'0', "a/a")).add(spec(b'0', "a/.wh.b")).end();
    let [flat, layered] = Place::new().import(&[below, upper]).map(Result::unwrap);
    assert_eq!(flat, layered);
    assert_eq!(flat.into_keys().collect::<Vec<_>>(), ["", "a", "b"].map(PathBuf::from));
}

/// An entry of a random archive.
#[derive(Debug, Clone)]
enum Item {
    /// The root, with its mode.
    Root(u32),
    Directory(String, u32),
    File(String),
    Symlink(String, &'static str),
    /// A link to one of the files before it, in this layer or one below.
    HardLink(String, Index),
    Whiteout(String),
    Opaque(String),
}

impl Item {
    fn add(&self, tar: Tar, content: &str, files: &mut Vec<String>) -> Tar {
        let parent = |path: &str| path.rsplit_once('/').map_or_else(String::new, |(parent, _)| format!("{parent}/"));
        let name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_string();
        match self {
            Self::Root(mode) => tar.add(Spec { mode: *mode, ..spec(b'5', "./") }),
            Self::Directory(path, mode) => tar.add(Spec { mode: *mode, ..spec(b'5', path) }),
            Self::File(path) => {
                files.push(path.clone());
                tar.add(spec(b'0', path).content(content.as_bytes()))
            }
            Self::Symlink(path, target) => tar.add(spec(b'2', path).target(target)),
            Self::HardLink(..) if files.is_empty() => tar,
            Self::HardLink(path, target) => {
                let target = target.get(files).clone();
                files.push(path.clone());
                tar.add(spec(b'1', path).target(&target))
            }
            Self::Whiteout(path) => tar.add(spec(b'0', &format!("{}.wh.{}", parent(path), name(path)))),
            Self::Opaque(path) => tar.add(spec(b'0', &format!("{path}/.wh..wh..opq"))),
        }
    }
}

/// Few names, so that layers overlap, and links lead somewhere.
fn path() -> impl Strategy<Value = String> {
    vec(select(vec!["a", "b", "c"]), 1..=3).prop_map(|names| names.join("/"))
}

fn item() -> impl Strategy<Value = Item> {
    let mode = || select(vec![0o755, 0o711, 0o700]);
    let target = select(vec!["a", "b", "../b", "/", ".", "/a/b", "b/c", "nowhere"]);
    prop_oneof![
        1 => mode().prop_map(Item::Root),
        6 => (path(), mode()).prop_map(|(path, mode)| Item::Directory(path, mode)),
        6 => path().prop_map(Item::File),
        2 => (path(), target).prop_map(|(path, target)| Item::Symlink(path, target)),
        2 => (path(), any::<Index>()).prop_map(|(path, target)| Item::HardLink(path, target)),
        4 => path().prop_map(Item::Whiteout),
        2 => path().prop_map(Item::Opaque),
        1 => Just(Item::Opaque(".".into())),
    ]
}

fn layer() -> impl Strategy<Value = Vec<Item>> {
    vec(item(), 1..=7)
}

fn archives_of(layers: &[Vec<Item>]) -> Vec<Vec<u8>> {
    let mut files = Vec::new();
    let mut archive = |(number, items): (usize, &Vec<Item>)| {
        let add = |tar, (index, item): (usize, &Item)| item.add(tar, &format!("{number}.{index}"), &mut files);
        items.iter().enumerate().fold(Tar::new(), add).end()
    };
    layers.iter().enumerate().map(&mut archive).collect()
}

/// Counts the images that a property was tested with, and those of them that an import accepts. It
/// says nothing about images that are refused.
#[derive(Default)]
struct Share(Cell<(u32, u32)>);

impl Share {
    fn count(&self, is_accepted: bool) {
        let (accepted, all) = self.0.get();
        self.0.set((accepted + u32::from(is_accepted), all + 1));
    }

    /// Checks that enough images were accepted. More than half of them usually are.
    fn check(&self) {
        let (accepted, all) = self.0.get();
        assert!(accepted * 5 >= all && all > 0, "only {accepted} of {all} images were accepted");
    }
}

fn is_whiteout(item: &Item) -> bool {
    matches!(item, Item::Whiteout(_) | Item::Opaque(_))
}

#[test]
fn any_image_looks_the_same_in_one_tree_and_as_layers() {
    let share = Share::default();
    proptest!(config(), |(layers in vec(layer(), 1..=4))| {
        let [flat, layered] = Place::new().import(&archives_of(&layers));
        share.count(flat.is_ok() && layered.is_ok());
        if flat.is_ok() || layered.is_ok() {
            prop_assert_eq!(flat, layered);
        }
    });
    share.check();
}

#[test]
fn the_order_of_whiteouts_makes_no_difference() {
    let share = Share::default();
    proptest!(config(), |(mut layers in vec(layer(), 2..=3))| {
        // The names of links and of their targets mean something else once a whiteout has removed
        // them.
        layers.iter_mut().for_each(|items| items.retain(|item| !matches!(item, Item::Symlink(..) | Item::HardLink(..))));
        let shown = [false, true].map(|first| {
            layers.iter_mut().for_each(|items| items.sort_by_key(|item| is_whiteout(item) != first));
            Place::new().import(&archives_of(&layers))
        });
        // A file has the number of its entry as its content.
        let names = |[flat, layered]: [Result<Tree, String>; 2]| [flat, layered].map(|tree| {
            let without_content = |text: String| if text.starts_with("40") { text } else { String::new() };
            tree.map(|tree| tree.into_iter().map(|(path, text)| (path, without_content(text))).collect::<Vec<_>>()).ok()
        });
        let [one, other] = shown.map(names);
        // A file that is hidden later may be in the way of an entry.
        let is_accepted = one != [None, None] && other != [None, None];
        share.count(is_accepted);
        if is_accepted {
            prop_assert_eq!(one, other);
        }
    });
    share.check();
}

/// A store has layers of other images, which were above or below others.
#[test]
fn a_layer_that_is_reused_looks_as_it_would_in_one_tree() {
    let share = Share::default();
    let images = || vec(vec(0..3_usize, 1..=3), 2..=4);
    proptest!(config(), |(layers in vec(layer(), 2..=3), images in images())| {
        let archives = archives_of(&layers);
        let place = Place::new();
        for numbers in images {
            let image: Vec<_> = numbers.iter().map(|number| archives[number % archives.len()].clone()).collect();
            let [flat, layered] = place.import(&image);
            share.count(flat.is_ok() && layered.is_ok());
            if flat.is_ok() || layered.is_ok() {
                // The time of a root without an entry is not a reason to have a layer twice.
                let without_time = |tree: Result<Tree, String>| tree.map(|mut tree| {
                    let root = tree.get_mut(Path::new("")).unwrap();
                    *root = root.split(' ').next().unwrap().into();
                    tree
                });
                prop_assert_eq!(without_time(flat), without_time(layered), "{:?}", numbers);
            }
        }
    });
    share.check();
}
