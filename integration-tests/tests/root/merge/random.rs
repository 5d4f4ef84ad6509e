//! Strategies for random stacks. They use few names, so that layers overlap. `property` uses them.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use container::UserNamespace;
use integration_tests::stack::{Attributes, Dir, Item, acl};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::select;
use rustix::fs::FileType;

use super::operations::Operation;

/// A stack: layers above, layers to merge, a base.
#[derive(Debug, Clone)]
pub(crate) struct Layers {
    pub(crate) separate: Vec<Dir>,
    pub(crate) sources: Vec<Dir>,
    pub(crate) base: Dir,
    /// Whether some of the whiteouts have the form of xattrs.
    pub(crate) xattr_whiteouts: bool,
}

pub(crate) fn layers() -> impl Strategy<Value = Layers> {
    (vec(layer(), 0..=2), vec(layer(), 1..=5), layer(), prop::bool::weighted(0.3)).prop_map(
        |(mut separate, mut sources, mut base, xattr_whiteouts)| {
            if !xattr_whiteouts {
                separate.iter_mut().chain(&mut sources).chain([&mut base]).for_each(as_devices);
            }
            Layers { separate, sources, base, xattr_whiteouts }
        },
    )
}

/// Turns all whiteouts into devices.
fn as_devices(dir: &mut Dir) {
    for item in dir.items.values_mut() {
        match item {
            Item::XattrWhiteout => *item = Item::Whiteout,
            Item::Dir(dir) => as_devices(dir),
            _ => {}
        }
    }
}

fn layer() -> impl Strategy<Value = Dir> {
    dir(3).prop_map(|mut root| {
        // A directory with whiteouts in the form of xattrs needs another value of the opaque xattr.
        // Opaque has no effect on a root, so it can be dropped.
        root.opaque &= !root.items.values().any(|item| *item == Item::XattrWhiteout);
        root
    })
}

/// The operations in one overlay after the other, each of which leaves a layer, and which of the
/// earlier layers the overlay has.
pub(crate) fn sessions() -> impl Strategy<Value = Vec<(Vec<Operation>, Vec<bool>)>> {
    vec((operations(12), vec(any::<bool>(), 6)), 1..=6)
}

pub(crate) fn operations(most: usize) -> impl Strategy<Value = Vec<Operation>> {
    vec(operation(), 0..=most)
}

pub(crate) fn dir(depth: u32) -> BoxedStrategy<Dir> {
    (attributes(Kind::Dir), prop::bool::weighted(0.15), btree_map(name(), item(depth), 0..=5))
        .prop_map(|(attributes, opaque, items)| Dir { attributes, opaque, items })
        .boxed()
}

fn item(depth: u32) -> BoxedStrategy<Item> {
    let mut kinds = vec![FileType::Fifo, FileType::Socket];
    if !UserNamespace::is_here() {
        kinds.extend([FileType::CharacterDevice, FileType::BlockDevice]);
    }
    let kind = select(kinds);
    let leaf = prop_oneof![
        6 => (attributes(Kind::File), content()).prop_map(|(attributes, content)| Item::File(attributes, content)),
        2 => (0..3_u8).prop_map(Item::Name),
        1 => attributes(Kind::File).prop_map(|attributes| Item::Sparse(attributes, 1 << 20)),
        2 => (attributes(Kind::Special), target()).prop_map(|(attributes, to)| Item::Symlink(attributes, to)),
        2 => (attributes(Kind::Special), kind, 0..3_u32)
            .prop_map(|(attributes, kind, minor)| Item::Special(attributes, kind, minor)),
        5 => Just(Item::Whiteout),
        2 => Just(Item::XattrWhiteout),
    ];
    match depth.checked_sub(1) {
        None => leaf.boxed(),
        Some(depth) => prop_oneof![3 => leaf, 2 => dir(depth).prop_map(Item::Dir)].boxed(),
    }
}

fn name() -> impl Strategy<Value = OsString> {
    let odd: [&[u8]; 6] = [b"\xff\xfe", b"new\nline", b" ", b"...", b"\"a\\:,", &[b'n'; 255]];
    prop_oneof![
        30 => select(vec!["a", "b", "c", "d"]).prop_map(OsString::from),
        1 => select(odd.map(<[u8]>::to_vec).to_vec()).prop_map(OsString::from_vec),
    ]
}

fn content() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![Just(Vec::new()), Just(b"one".to_vec()), Just(b"two".to_vec()), Just(vec![7; 5000])]
}

fn target() -> impl Strategy<Value = OsString> {
    select(vec!["a", "b", "../b", "../../..", "/", "/tmp", "nowhere", "."]).prop_map(OsString::from)
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Dir,
    File,
    Special,
}

fn attributes(kind: Kind) -> impl Strategy<Value = Attributes> {
    let mode = prop_oneof![
        4 => Just(0o755),
        1 => select(vec![0, 0o700, 0o1777, 0o2775, 0o4755, 0o6711, 0o500, 0o007]),
    ];
    let owner = prop_oneof![3 => Just((0, 0)), 1 => Just((1000, 100)), 1 => Just((0, 4_000_000_000))];
    let modified = select(vec![(1_000_000_000, 123_456_789), (0, 1), (-1, 999_999_999), (1_500_000_000, 0)]);
    (mode, owner, modified, prop_oneof![3 => Just(Vec::new()), 1 => vec(xattr(kind), 1..=2)])
        .prop_map(|(mode, owner, modified, xattrs)| Attributes { mode, owner, modified, xattrs })
}

fn xattr(kind: Kind) -> impl Strategy<Value = (String, Vec<u8>)> {
    // A `struct vfs_cap_data` of version 2 with CAP_NET_BIND_SERVICE effective and permitted.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].to_vec();
    let anywhere = [("trusted.test", b"t".to_vec()), ("security.test", b"".to_vec())];
    let readable = [
        ("user.test", b"u".to_vec()),
        ("user.test", b"other".to_vec()),
        ("system.posix_acl_access", acl(1000, 6)),
        // A mount without `userxattr` treats this as an ordinary xattr.
        ("user.overlay.opaque", b"y".to_vec()),
    ];
    let dirs = [
        ("system.posix_acl_default", acl(1001, 4)),
        // The form in which an overlay stores the `trusted.overlay.opaque` of an overlay inside it.
        ("trusted.overlay.overlay.opaque", b"y".to_vec()),
        // Other overlay xattrs that an upper may have.
        ("trusted.overlay.impure", b"y".to_vec()),
        ("trusted.overlay.origin", b"".to_vec()),
        ("trusted.overlay.opaque", b"n".to_vec()),
        ("trusted.overlay.opaque", b"yes".to_vec()),
    ];
    let mut choices = anywhere.to_vec();
    if kind != Kind::Special {
        choices.extend(readable);
    }
    match kind {
        Kind::Dir => choices.extend(dirs),
        Kind::File => choices.push(("security.capability", capability)),
        Kind::Special => {}
    }
    select(choices).prop_map(|(name, value)| (name.to_owned(), value))
}

fn path() -> impl Strategy<Value = PathBuf> {
    vec(select(vec!["a", "b", "c", "d"]), 1..=3).prop_map(|names| names.iter().collect())
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        4 => (path(), content()).prop_map(|(path, content)| Operation::Write(path, content)),
        4 => path().prop_map(Operation::MakeDir),
        4 => path().prop_map(Operation::Remove),
        2 => path().prop_map(Operation::RemoveAll),
        3 => (path(), path()).prop_map(|(from, to)| Operation::Rename(from, to)),
        2 => (path(), path()).prop_map(|(from, to)| Operation::Link(from, to)),
        1 => (path(), target()).prop_map(|(path, to)| Operation::Symlink(path, to)),
        1 => path().prop_map(Operation::Fifo),
        2 => (path(), select(vec![0, 0o700, 0o1777, 0o2755])).prop_map(|(path, mode)| Operation::Chmod(path, mode)),
        1 => path().prop_map(Operation::Chown),
        1 => path().prop_map(Operation::SetXattr),
        1 => path().prop_map(Operation::SetTime),
    ]
}
