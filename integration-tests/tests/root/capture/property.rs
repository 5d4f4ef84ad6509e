//! Random uppers: compares what the kernel shows of them with what it shows of their captures.
//! `capture` has the named cases.
//!
//! `LAYERED_STACKS` and `LAYERED_SEED` mean the same as in `merge::property`.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use container::UserNamespace;
use integration_tests::stack::{Attributes, Dir, Item, Mount};
use integration_tests::tree::{Content, Entry, Snapshot};
use layer::Capture;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use rustix::fs::FileType;

use super::{Stack, meta};
use crate::merge::agree;
use crate::merge::operations::Operation;
use crate::merge::property::property;
use crate::merge::random::{Layers, layers, operations};

/// The name and content of the files in the sibling's directories.
const SIBLING: &str = "sibling";

/// Random lowers, random changes in an overlay of them, and what the overlay showed before and
/// after.
struct Written {
    stack: Stack,
    before: Snapshot,
    after: Snapshot,
}

impl Written {
    fn new(layers: Layers, operations: &[Operation]) -> Self {
        let Layers { mut separate, sources, base, .. } = layers;
        separate.extend(sources);
        separate.push(base);
        let stack = Stack::new(&separate);
        let before = Snapshot::of(Mount::read_only(&stack.lowers).unwrap()).unwrap();
        let mount = stack.write();
        for operation in operations {
            let _some_cannot_be_done = operation.apply(mount.as_fd());
        }
        drop(mount);
        // A mount without CAP_DAC_READ_SEARCH on the machine, such as a user's, records no origin
        // of a file that it copies up (`ovl_can_decode_fh` in fs/overlayfs/namei.c). As long as it
        // has the file's inode in memory, further names of the file appear as another file. The
        // upper itself has one file, and the next mount shows that.
        let after = Snapshot::of(stack.write_again()).unwrap();
        Self { stack, before, after }
    }

    fn capture(&self) -> Result<PathBuf, String> {
        let layer = self.stack.layer();
        let captured = Capture::new(&self.stack.lowers)
            .xattrs(runner::xattrs_of_process())
            .into_layer(self.stack.upper(), &layer, meta())
            .map_err(|error| format!("{error:?}"))?;
        let size = layer.measure().unwrap();
        if captured.size != size {
            return Err(format!("{:?} is not {size:?}", captured.size));
        }
        Ok(layer.fs())
    }

    fn see(&self, above: &[&Path]) -> Snapshot {
        Snapshot::of(Mount::read_only(&self.stack.with(above)).unwrap()).unwrap()
    }
}

/// Changes of all kinds, and recreated directories with other directories in them. A capture does
/// most of its work for the latter.
fn changes() -> impl Strategy<Value = Vec<Operation>> {
    let path = || vec(select(vec!["a", "b", "c", "d"]), 1..=3).prop_map(|names| names.iter().collect::<PathBuf>());
    let again = (path(), vec(path(), 0..=3)).prop_map(|(path, below)| {
        let mut steps = vec![Operation::RemoveAll(path.clone()), Operation::MakeDir(path.clone())];
        for below in below {
            // Outer directories come first.
            let all: Vec<_> = below.ancestors().filter(|part| *part != Path::new("")).collect();
            steps.extend(all.into_iter().rev().map(|part| Operation::MakeDir(path.join(part))));
        }
        steps
    });
    vec(prop_oneof![operations(6), again], 0..=6).prop_map(|changes| changes.concat())
}

#[test]
fn a_capture_shows_what_the_upper_showed() {
    property((layers(), changes()), |(layers, changes)| {
        let written = Written::new(layers, &changes);
        let layer = written.capture()?;
        agree(&written.after, &written.see(&[&layer]))?;
        // Over a layer without any of its directories, the capture lists no name that cannot be
        // looked up.
        let empty = written.stack.dir.path().join("empty");
        Dir::new().make(&empty).unwrap();
        let alone = Snapshot::of(Mount::read_only(&[&layer, &empty]).unwrap()).unwrap();
        if !alone.phantoms.is_empty() {
            return Err(format!("listed and not found: {:?}", alone.phantoms));
        }
        // Every whiteout hides a name that was there or was at least listed. The kernel makes
        // whiteouts for the latter, too.
        for (path, entry) in Snapshot::of_path(&layer).unwrap().entries {
            let is_whiteout = entry.kind == FileType::CharacterDevice && entry.rdev == 0;
            let was_there = written.before.entries.contains_key(&path) || written.before.phantoms.contains(&path);
            if is_whiteout && !was_there {
                return Err(format!("a whiteout for nothing: {}", path.display()));
            }
        }
        Ok(())
    });
}

/// The sibling has every directory of the lowers, with a file in it. Wherever the capture still has
/// such a directory, recreated or not, the file is visible. Nothing else differs.
#[test]
fn a_capture_hides_nothing_of_a_sibling() {
    property((layers(), changes()), |(layers, changes)| {
        let written = Written::new(layers, &changes);
        let layer = written.capture()?;
        let sibling = written.stack.dir.path().join(SIBLING);
        sibling_of(&written.before).make(&sibling).unwrap();

        let (mut below, mut above) = (written.after.clone(), written.after.clone());
        for (path, directory) in directories(&written.before) {
            let file = (path.join(SIBLING), sibling_file());
            if written.after.entries.get(path).is_some_and(|entry| entry.kind == FileType::Directory) {
                below.entries.extend([file.clone()]);
            }
            // The sibling's directory is on top, so its metadata is visible.
            above.entries.extend([file, (path.clone(), directory.clone())]);
        }
        agree(&below, &written.see(&[&layer, &sibling])).map_err(|error| format!("sibling below: {error}"))?;
        // A hidden name may have been one of several names of a file, so the groups of names may
        // differ.
        let found = without_groups(written.see(&[&sibling, &layer]));
        agree(&without_groups(above), &found).map_err(|error| format!("sibling above: {error}"))
    });
}

fn without_groups(mut snapshot: Snapshot) -> Snapshot {
    snapshot.entries.values_mut().for_each(|entry| entry.group = None);
    snapshot
}

fn directories(snapshot: &Snapshot) -> impl Iterator<Item = (&PathBuf, &Entry)> {
    snapshot.entries.iter().filter(|(_, entry)| entry.kind == FileType::Directory)
}

/// Makes a layer with all directories of `snapshot`.
fn sibling_of(snapshot: &Snapshot) -> Dir {
    let mut made: BTreeMap<&Path, Dir> = BTreeMap::new();
    let mut all: Vec<_> = directories(snapshot).collect();
    // A directory's entries come after the directory in the list, so the reverse order is needed.
    all.reverse();
    for (path, entry) in all {
        let mut dir = made.remove(&**path).unwrap_or_default().file(SIBLING, SIBLING);
        dir.attributes = Attributes {
            mode: entry.mode,
            owner: entry.owner,
            modified: entry.modified,
            xattrs: entry.xattrs.iter().map(|(name, value)| (stored(name), value.clone())).collect(),
        };
        match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => {
                made.entry(parent).or_default().items.insert(name.into(), Item::Dir(dir));
            }
            _ => return dir,
        }
    }
    Dir::new()
}

/// Returns the name under which a layer stores the xattr that a mount shows as `name`.
fn stored(name: &OsStr) -> String {
    let prefix = if UserNamespace::is_here() { "user.overlay." } else { "trusted.overlay." };
    name.to_str().unwrap().replacen(prefix, &format!("{prefix}overlay."), 1)
}

fn sibling_file() -> Entry {
    let Item::File(attributes, content) = Item::file(SIBLING) else { unreachable!("it is a file") };
    Entry {
        kind: FileType::RegularFile,
        listed: FileType::RegularFile,
        mode: attributes.mode,
        owner: attributes.owner,
        modified: attributes.modified,
        content: Content::Bytes(content),
        rdev: 0,
        xattrs: BTreeMap::new(),
        group: None,
    }
}
