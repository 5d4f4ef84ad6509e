//! Measures how much disk space a tree takes. `layer/disk_usage.rs` reads the size that a layer's
//! `layer.json` records.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::ops::AddAssign;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{AtFlags, Stat, statat};
use serde::Serialize;

use crate::error::Result;
use crate::tree::remove;
use crate::tree::walk::Identity;
use crate::tree::walk::visit::{Entry, visit};

/// The size of one block of `st_blocks` (stat(2)), whatever block size the file system has.
const BLOCK_BYTES: u64 = 512;

/// The number of threads of a walk. It equals that of a removal, because a walk of a tree that is
/// not in memory also waits for the disk.
const USUAL_THREADS: NonZeroUsize = remove::USUAL_THREADS;

/// The disk space that a tree takes, as du(1) counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct TreeSize {
    /// The bytes that are allocated for files, directories and symbolic links, including the root
    /// of the tree. A sparse file counts with its blocks and not with its length. A file of one
    /// byte counts with the block that it takes.
    ///
    /// Data that is not yet on the disk counts on ext4, XFS and Btrfs, which reserve its blocks. On
    /// ZFS it counts some seconds later.
    pub bytes: u64,
    /// The number of inodes without the root of the tree: files, directories, symbolic links,
    /// whiteouts and everything else. A file with several names in the tree counts once.
    pub entries: u64,
}

impl TreeSize {
    /// Measures the directory `tree`.
    ///
    /// A file with several names counts once, in `bytes` as well as in `entries`. The walk follows
    /// no symbolic link, not even at `tree` itself. It enters no mount below `tree`: a mount point
    /// counts as one entry without bytes. Trees may be deeper than a path can be long. Entries that
    /// vanish concurrently may or may not count.
    ///
    /// ```
    /// # let tree = tempfile::tempdir()?;
    /// std::fs::File::create(tree.path().join("sparse"))?.set_len(1 << 40)?;
    /// std::fs::hard_link(tree.path().join("sparse"), tree.path().join("link"))?;
    /// let size = layer::TreeSize::of(&tree)?;
    /// assert!(size.entries == 1 && size.bytes < 1 << 20);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if `tree` is not a directory, or if a part of it cannot be
    /// read.
    pub fn of(tree: impl AsRef<Path>) -> Result<Self> {
        let inodes = Inodes::default();
        let look = |size: &mut Self, entry: Entry<'_>| {
            match entry {
                Entry::Root(stat) => size.bytes = size.bytes.saturating_add(allocated(stat)),
                Entry::Directory { stat, .. } => inodes.count(stat, size),
                Entry::MountPoint => size.entries += 1,
                Entry::File { dir, name } => inodes.count(&statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?, size),
            }
            Ok(())
        };
        let sizes = visit(tree.as_ref(), USUAL_THREADS, Self::default, look)?;
        let mut total = Self::default();
        sizes.into_iter().for_each(|size| total += size);
        Ok(total)
    }
}

impl AddAssign for TreeSize {
    fn add_assign(&mut self, other: Self) {
        let Self { bytes, entries } = other;
        self.bytes = self.bytes.saturating_add(bytes);
        self.entries = self.entries.saturating_add(entries);
    }
}

/// Returns the number of bytes that are allocated for a file.
pub(crate) fn allocated(stat: &Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(BLOCK_BYTES)
}

/// The files of a tree that have several names, so that each counts once. The threads of a walk
/// share it.
#[derive(Debug, Default)]
pub(crate) struct Inodes {
    /// The files that have been counted.
    counted: Mutex<HashSet<Identity>>,
}

impl Inodes {
    /// Adds a file or a directory below the root to `size`, unless it has been counted under
    /// another name.
    pub(crate) fn count(&self, stat: &Stat, size: &mut TreeSize) {
        // Each directory has one name, whatever its number of links says.
        let has_names = stat.st_nlink > 1 && !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir();
        if !has_names || self.is_new((stat.st_dev, stat.st_ino)) {
            *size += TreeSize { bytes: allocated(stat), entries: 1 };
        }
    }

    fn is_new(&self, identity: Identity) -> bool {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner).insert(identity)
    }
}

/// Returns the number of names in the directory `tree` that are not directories. A merge makes at
/// most one link for each: it hides some names, and whiteouts count here but are not linked.
///
/// Walks the tree as [`TreeSize::of`] does, at any depth.
///
/// # Errors
/// The errors of [`TreeSize::of`].
pub fn count_files(tree: impl AsRef<Path>) -> Result<usize> {
    let look = |files: &mut usize, entry: Entry<'_>| {
        *files += usize::from(matches!(entry, Entry::File { .. }));
        Ok(())
    };
    Ok(visit(tree.as_ref(), USUAL_THREADS, usize::default, look)?.into_iter().sum())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::ErrorKind;
    use std::os::unix::fs::{MetadataExt, symlink};

    use rustix::fs::{CWD, FileType, Mode, OFlags, mkdirat, mknodat, openat};

    use super::*;
    use crate::error::Error;
    use crate::tree::remove::remove_tree;

    /// Measures a tree with std and walkdir, in one thread.
    fn expected(tree: &Path) -> TreeSize {
        let mut seen = HashSet::new();
        let mut size = TreeSize::default();
        for entry in walkdir::WalkDir::new(tree) {
            let metadata = entry.unwrap().path().symlink_metadata().unwrap();
            if seen.insert(metadata.ino()) {
                size += TreeSize { bytes: metadata.blocks() * 512, entries: 1 };
            }
        }
        size.entries -= 1;
        size
    }

    #[test]
    fn blocks_count_and_every_inode_counts_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let empty = TreeSize::of(&dir).unwrap();
        assert_eq!(empty, TreeSize { bytes: fs::metadata(&dir).unwrap().blocks() * 512, entries: 0 });

        fs::create_dir_all(path("a/b")).unwrap();
        fs::write(path("a/large"), vec![1; 1 << 20]).unwrap();
        (0..50).for_each(|n| fs::hard_link(path("a/large"), path("a/b").join(n.to_string())).unwrap());
        File::create(path("sparse")).unwrap().set_len(300 << 30).unwrap();
        (0..200).for_each(|n| fs::write(path("a/b").join(format!("small-{n}")), "x").unwrap());
        symlink("/", path("link")).unwrap();
        symlink("long".repeat(100), path("long-link")).unwrap();
        mknodat(CWD, path("whiteout"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        let size = TreeSize::of(&dir).unwrap();
        assert_eq!(size, expected(dir.path()));
        assert_eq!(size.entries, 2 + 1 + 1 + 200 + 2 + 1);
        assert!((1 << 20..3 << 20).contains(&size.bytes), "{size:?}");
        // A program that reads all files would read far more bytes.
        assert!(fs_extra::dir::get_size(&dir).unwrap() > (300 << 30) + (51 << 20));
        assert_eq!(count_files(&dir).unwrap(), 51 + 1 + 200 + 2 + 1);
    }

    #[test]
    fn new_data_counts_before_it_is_on_the_disk() {
        // /tmp may be in memory, /var/tmp is not.
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        for n in 0..20 {
            fs::write(dir.path().join(n.to_string()), vec![1; 100_000]).unwrap();
        }
        let least = 20 * 100_000;
        let before = TreeSize::of(&dir).unwrap();
        rustix::fs::syncfs(File::open(&dir).unwrap()).unwrap();
        let after = TreeSize::of(&dir).unwrap();
        assert!(before.bytes >= least && after.bytes >= least, "{before:?} {after:?}");
    }

    #[test]
    fn a_tree_may_be_deeper_than_a_path_is_long() {
        const DEPTH: usize = 1200;
        let dir = tempfile::tempdir().unwrap();
        let open = |at: &rustix::fd::OwnedFd, name: &str| openat(at, name, OFlags::DIRECTORY, Mode::empty()).unwrap();
        let mut deepest = openat(CWD, dir.path(), OFlags::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..DEPTH {
            mkdirat(&deepest, "directory", Mode::RWXU).unwrap();
            deepest = open(&deepest, "directory");
        }
        mknodat(&deepest, "file", FileType::RegularFile, Mode::RUSR, 0).unwrap();
        assert_eq!(TreeSize::of(&dir).unwrap().entries, DEPTH as u64 + 1);
        assert_eq!(count_files(&dir).unwrap(), 1);
        remove_tree(dir.path().join("directory")).unwrap();
    }

    #[test]
    fn the_error_names_a_tree_that_is_not_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        symlink(".", dir.path().join("link")).unwrap();
        for (name, kind) in [("missing", ErrorKind::NotFound), ("file", ErrorKind::NotADirectory)] {
            let error = TreeSize::of(dir.path().join(name)).unwrap_err();
            assert!(
                matches!(&error, Error::Io { path, source, .. } if path.ends_with(name) && source.kind() == kind),
                "{error:?}"
            );
        }
        assert!(matches!(TreeSize::of(dir.path().join("link")), Err(Error::Io { .. })));
    }

    #[test]
    fn sums_saturate() {
        let mut size = TreeSize { bytes: u64::MAX, entries: 1 };
        size += size;
        assert_eq!(size, TreeSize { bytes: u64::MAX, entries: 2 });
    }
}
