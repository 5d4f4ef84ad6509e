//! Finds out whether a directory that a run will write to lies inside one of the run's layers.
//! Writing there would change the layer, and the overlay would show the run's own files.
//!
//! `stack` decides what is refused.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use container::advanced::read_kernel_file;
use rustix::fs::{AtFlags, CWD, Statx, StatxFlags, makedev, statx};

/// `STATX_ATTR_MOUNT_ROOT` in `linux/stat.h`, Linux 5.8.
const IS_MOUNT_ROOT: u64 = 0x2000;

/// `STATX_MNT_ID` in `linux/stat.h`, Linux 5.8.
const MOUNT_ID: StatxFlags = StatxFlags::from_bits_retain(0x1000);

/// The device and inode numbers of a directory.
pub(crate) type Identity = (u64, u64);

/// Returns the tree that `dir` is or lies in. `dir` is an absolute path without symbolic links.
/// `trees` contains the path of each tree by the identity of its root.
///
/// Compares `dir` and the directories above it with the trees, up to the next mount point. A bind
/// mount may show a directory from deep inside a tree. Only the mount table reveals that.
pub(crate) fn tree_around<'t>(dir: &Path, trees: &HashMap<Identity, &'t Path>) -> io::Result<Option<&'t Path>> {
    for above in dir.ancestors() {
        let seen = look_at(above)?;
        if let Some(tree) = trees.get(&identity(&seen)) {
            return Ok(Some(tree));
        }
        if seen.stx_attributes.bits() & IS_MOUNT_ROOT != 0 {
            let device = identity(&seen).0;
            let beside: Vec<_> =
                trees.iter().filter(|((other, _), _)| *other == device).map(|(_, tree)| *tree).collect();
            // No directory above belongs to this mount.
            return if beside.is_empty() { Ok(None) } else { in_mounts(above, &seen, &beside) };
        }
    }
    Ok(None)
}

/// Returns the tree that contains the directory mounted on `top`, according to the mount table.
fn in_mounts<'t>(top: &Path, seen: &Statx, trees: &[&'t Path]) -> io::Result<Option<&'t Path>> {
    let table = MountTable(read_kernel_file("/proc/thread-self/mountinfo")?);
    let Some(place) = table.place(top, seen.stx_mnt_id) else { return Ok(None) };
    if place.in_file_system == Path::new("/") {
        return Ok(None);
    }
    for tree in trees {
        let real = fs::canonicalize(tree)?;
        let other = table.place(&real, look_at(&real)?.stx_mnt_id);
        let lies_in =
            |other: Place| place.device == other.device && place.in_file_system.starts_with(&other.in_file_system);
        if other.is_some_and(lies_in) {
            return Ok(Some(tree));
        }
    }
    Ok(None)
}

fn look_at(path: &Path) -> io::Result<Statx> {
    Ok(statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::INO | MOUNT_ID)?)
}

fn identity(seen: &Statx) -> Identity {
    (makedev(seen.stx_dev_major, seen.stx_dev_minor), seen.stx_ino)
}

/// The mount table of the calling thread, proc_pid_mountinfo(5). A caller may have mounts that only
/// one of its threads sees.
struct MountTable(Vec<u8>);

/// The location of a directory in its file system, wherever that is mounted.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    device: Vec<u8>,
    in_file_system: PathBuf,
}

impl MountTable {
    /// Returns the place of `path`, which contains no symbolic links and lies in the mount `id`.
    fn place(&self, path: &Path, id: u64) -> Option<Place> {
        let id = id.to_string();
        let line = self.0.split(|byte| *byte == b'\n').find(|line| fields(line).next() == Some(id.as_bytes()))?;
        let mut rest = fields(line).skip(2);
        let (device, root, point) = (rest.next()?, unescaped(rest.next()?), unescaped(rest.next()?));
        let below = path.strip_prefix(point).ok()?;
        Some(Place { device: device.into(), in_file_system: root.join(below) })
    }
}

fn fields(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|byte| *byte == b' ')
}

/// Decodes a path in which spaces, tabs, newlines and backslashes are written as `\` and three
/// octal digits.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [byte, after @ ..] = rest {
        match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] => {
                path.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                path.push(*byte);
                rest = after;
            }
        }
    }
    OsString::from_vec(path).into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use proptest::prelude::*;

    use super::*;
    use crate::mutated;

    /// Two mounts, one at a path with a newline in it.
    const TABLE: &str =
        "30 22 254:0 /a\\040b /mnt\\012 rw shared:9 - ext4 /dev/vda rw\n33 30 0:29 / /u rw - tmpfs t rw\n";

    proptest! {
        #![proptest_config(mutated::config())]

        #[test]
        fn a_mount_table_of_any_content_is_read_without_a_panic(text in mutated::bytes([TABLE])) {
            prop_assert!(unescaped(&text).as_os_str().len() <= text.len());
            let table = MountTable(text);
            for id in [30, 33] {
                if let Some(place) = table.place(Path::new("/mnt\n/below"), id) {
                    prop_assert!(place.in_file_system.ends_with("below"), "{place:?}");
                }
            }
        }
    }

    #[test]
    fn a_directory_is_in_the_tree_that_is_above_it() {
        let dir = tempfile::tempdir().unwrap();
        let dir = fs::canonicalize(dir.path()).unwrap();
        for name in ["tree/a/b", "other", "tree-2"] {
            fs::create_dir_all(dir.join(name)).unwrap();
        }
        symlink("tree/a", dir.join("link")).unwrap();
        let tree = dir.join("tree");
        let trees = HashMap::from([(identity(&look_at(&tree).unwrap()), &*tree)]);
        let around = |name: &str| tree_around(&fs::canonicalize(dir.join(name)).unwrap(), &trees).unwrap();
        for (name, is_inside) in [
            ("tree", true),
            ("tree/a/b", true),
            ("link", true),
            ("link/b", true),
            ("tree-2", false),
            ("other", false),
            (".", false),
        ] {
            assert_eq!(around(name), is_inside.then_some(&*tree), "{name}");
        }
        assert!(tree_around(&dir.join("missing"), &trees).is_err());
    }

    #[test]
    fn places_are_read_from_the_mount_table() {
        let table = MountTable(
            b"22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
              31 22 254:0 /srv/a\\040b/fs/s /mnt/x\\134y rw shared:9 - ext4 /dev/vda rw\n"
                .to_vec(),
        );
        let place = |path: &str, id| table.place(Path::new(path), id).map(|place| place.in_file_system);
        assert_eq!(place("/srv/a b/fs", 22), Some("/srv/a b/fs".into()));
        assert_eq!(place("/mnt/x\\y", 31), Some("/srv/a b/fs/s".into()));
        assert_eq!(place("/mnt/x\\y/z", 31), Some("/srv/a b/fs/s/z".into()));
        assert_eq!(place("/elsewhere", 31), None);
        assert_eq!(place("/", 3), None);
    }
}
