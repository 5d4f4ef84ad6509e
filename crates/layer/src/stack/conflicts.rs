//! Finds the paths that several sibling layers provide. `lookup.rs` says which of them a stack
//! shows.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, OFlags, RawDir, Stat, fstat, readlinkat, statat};
use rustix::io::Errno;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::json_path;
use crate::stack::overlayfs::{self, EntryKind, XattrNamespace};
use crate::stack::sources::open_root;
use crate::tree::walk::{ENTRIES_SIZE_BYTES, PATH, READ, as_os_str, is_dots, open_beneath};

/// A path that several layers provide, so that their order decides which entry is shown. Its JSON
/// is that of `layered show --conflicts`, but `layers` has positions in place of paths.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Conflict {
    /// The path below the root. In JSON it has a leading slash.
    #[serde(serialize_with = "json_path::serialize_absolute")]
    pub path: PathBuf,
    /// How far the entries of these layers differ.
    pub difference: Difference,
    /// The positions of the layers that provide it, topmost first.
    pub layers: Vec<usize>,
}

/// How far the entries of several layers at a path differ. This is the largest difference between
/// the topmost entry and any other. In JSON it is the name of the variant in lower case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Difference {
    /// All entries are whiteouts or the same file, or have the same content, mode and owner. The
    /// order matters only for times and extended attributes.
    Nothing,
    /// The mode or the owner differs.
    Attributes,
    /// The content of a file, the target of a symbolic link, or the number of a device differs.
    Content,
    /// The type differs: for example a file and a directory, or a file and a link.
    Kind,
    /// One of the entries is an opaque directory, which hides everything of its name in the layers
    /// below.
    Opaque,
    /// One of the layers deletes what another has.
    Deletion,
}

/// Finds the paths that several of these `trees` (`<layer>/fs`) provide.
///
/// The trees should be those of siblings, each made without the others. If a layer was made over
/// another, this function also reports its changes to that layer, which are not conflicts.
/// Directories that several trees have are not a conflict if they agree in mode and owner and none
/// is opaque. The root, with an empty path, is one of these directories, but the opaque attribute
/// has no meaning there.
///
/// # Errors
/// [`Error::NotADirectory`] if a tree is not a directory, [`Error::Io`] if its root cannot be
/// looked at.
pub fn conflicts(trees: &[impl AsRef<Path>], xattrs: XattrNamespace) -> Result<Conflicts> {
    // With `fs/`, the kernel would follow a symbolic link `fs`.
    let trees: Vec<PathBuf> = trees.iter().map(|tree| tree.as_ref().components().collect()).collect();
    let attributes = |tree: &PathBuf| {
        let stat = open_root(CWD, tree, PATH).and_then(|root| fstat(root).map_err(Error::io("look at", tree)))?;
        Ok(attributes(&stat))
    };
    let roots = trees.iter().map(attributes).collect::<Result<Vec<_>>>()?;
    let layers: Vec<_> = (0..trees.len()).collect();
    // The stack shows the root with the attributes of the topmost layer.
    let root = (roots.iter().any(|root| *root != roots[0])).then(|| Conflict {
        path: PathBuf::new(),
        layers: layers.clone(),
        difference: Difference::Attributes,
    });
    let (waiting, found) = (vec![(PathBuf::new(), layers)], root.into_iter().collect());
    Ok(Conflicts { trees, xattrs, waiting, found, entries: Vec::with_capacity(ENTRIES_SIZE_BYTES) })
}

/// The iterator that [`conflicts`] returns. It compares one directory after the other, and enters
/// only those that several layers have. It holds the entries of one directory in memory.
///
/// An item is [`Error::Io`], [`Error::Unmergeable`] or [`Error::MountInside`] if a directory cannot
/// be compared. The iterator then continues with the next one.
#[derive(Debug)]
pub struct Conflicts {
    trees: Vec<PathBuf>,
    xattrs: XattrNamespace,
    /// The directories to compare, each with the layers that have it.
    waiting: Vec<(PathBuf, Vec<usize>)>,
    found: VecDeque<Conflict>,
    entries: Vec<u8>,
}

impl Iterator for Conflicts {
    type Item = Result<Conflict>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(conflict) = self.found.pop_front() {
                return Some(Ok(conflict));
            }
            let (path, layers) = self.waiting.pop()?;
            if let Err(error) = self.compare(&path, &layers) {
                return Some(Err(error));
            }
        }
    }
}

/// The entry that one layer has under a name.
struct Entry {
    layer: usize,
    kind: EntryKind,
    stat: Stat,
}

impl Conflicts {
    /// Compares the entries that `layers` have in the directory `path`.
    fn compare(&mut self, path: &Path, layers: &[usize]) -> Result<()> {
        let mut names: BTreeMap<CString, Vec<Entry>> = BTreeMap::new();
        for &layer in layers {
            self.read(path, layer, &mut names)?;
        }
        let deeper = self.waiting.len();
        for (name, entries) in names {
            if entries.len() < 2 {
                continue;
            }
            let path = path.join(as_os_str(&name));
            let directories = entries.iter().filter(|entry| entry.kind == EntryKind::Directory);
            let directories: Vec<_> = directories.map(|entry| entry.layer).collect();
            let all_directories = directories.len() == entries.len();
            let mut difference = Difference::Nothing;
            for entry in &entries[1..] {
                difference = difference.max(self.difference(&path, &entries[0], entry)?);
            }
            for &layer in &directories {
                let dir = self.open(&path, layer, READ)?;
                let hides = overlayfs::hides_below(dir.as_fd(), None, self.xattrs);
                if hides.map_err(|why| why.at(self.trees[layer].join(&path)))? {
                    difference = difference.max(Difference::Opaque);
                }
            }
            if !(all_directories && difference == Difference::Nothing) {
                let layers = entries.iter().map(|entry| entry.layer).collect();
                self.found.push_back(Conflict { path: path.clone(), layers, difference });
            }
            if directories.len() > 1 {
                self.waiting.push((path, directories));
            }
        }
        // `next` takes the last directory first. Reversed, they are compared in the order of their
        // names.
        self.waiting[deeper..].reverse();
        Ok(())
    }

    fn read(&mut self, path: &Path, layer: usize, names: &mut BTreeMap<CString, Vec<Entry>>) -> Result<()> {
        let dir = self.open(path, layer, READ)?;
        let place = self.trees[layer].join(path);
        let mut entries = RawDir::new(&dir, self.entries.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(Error::io("read", &place))?;
            let name = entry.file_name();
            if is_dots(name) {
                continue;
            }
            let place = place.join(as_os_str(name));
            let stat = statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(Error::io("look at", &place))?;
            let entry = overlayfs::Entry::new(dir.as_fd(), name, &stat);
            let kind = entry.classify(self.xattrs).map_err(|why| why.at(&place))?;
            names.entry(name.into()).or_default().push(Entry { layer, kind, stat });
        }
        Ok(())
    }

    /// Opens the entry that one layer has at `path`.
    fn open(&self, path: &Path, layer: usize, flags: OFlags) -> Result<OwnedFd> {
        let place = || self.trees[layer].join(path);
        let root = open_root(CWD, &self.trees[layer], PATH)?;
        open_beneath(root.as_fd(), path, flags).map_err(|errno| match errno {
            Errno::XDEV => Error::MountInside { path: place() },
            errno => Error::io("open", place())(errno),
        })
    }

    fn difference(&self, path: &Path, one: &Entry, other: &Entry) -> Result<Difference> {
        let whiteouts = [one, other].iter().filter(|entry| entry.kind == EntryKind::Whiteout).count();
        let is_same_file = (one.stat.st_dev, one.stat.st_ino) == (other.stat.st_dev, other.stat.st_ino);
        match whiteouts {
            2 => return Ok(Difference::Nothing),
            1 => return Ok(Difference::Deletion),
            _ if is_same_file => return Ok(Difference::Nothing),
            _ => {}
        }
        let file_type = |entry: &Entry| FileType::from_raw_mode(entry.stat.st_mode);
        if file_type(one) != file_type(other) {
            return Ok(Difference::Kind);
        }
        let same = match one.kind {
            EntryKind::File => one.stat.st_size == other.stat.st_size && self.same_bytes(path, one, other)?,
            EntryKind::Symlink => self.target(path, one)? == self.target(path, other)?,
            EntryKind::Special => one.stat.st_rdev == other.stat.st_rdev,
            EntryKind::Directory | EntryKind::Whiteout => true,
        };
        Ok(match same {
            false => Difference::Content,
            true if attributes(&one.stat) != attributes(&other.stat) => Difference::Attributes,
            true => Difference::Nothing,
        })
    }

    fn same_bytes(&self, path: &Path, one: &Entry, other: &Entry) -> Result<bool> {
        let open = |entry: &Entry| {
            // NONBLOCK: the open must not wait if a FIFO has replaced the file.
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            self.open(path, entry.layer, flags).map(File::from)
        };
        let read = same_content(open(one)?, open(other)?);
        read.map_err(|(is_first, source)| {
            let entry = if is_first { one } else { other };
            Error::io("read", self.trees[entry.layer].join(path))(source)
        })
    }

    fn target(&self, path: &Path, entry: &Entry) -> Result<CString> {
        let (dir, name) = (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default());
        let dir = self.open(dir, entry.layer, PATH)?;
        readlinkat(dir, name, Vec::new()).map_err(Error::io("read the link", self.trees[entry.layer].join(path)))
    }
}

/// Returns the type and mode, the owner and the group.
fn attributes(stat: &Stat) -> (u32, u32, u32) {
    (stat.st_mode, stat.st_uid, stat.st_gid)
}

/// Returns whether two files have the same bytes. An error comes with true if it is about the first
/// file.
fn same_content(mut one: File, mut other: File) -> Result<bool, (bool, io::Error)> {
    let mut buffers = [[0; 32 * 1024]; 2];
    loop {
        let [first, second] = &mut buffers;
        let read = read_full(&mut one, first).map_err(|error| (true, error))?;
        let also = read_full(&mut other, second).map_err(|error| (false, error))?;
        if first[..read] != second[..also] {
            return Ok(false);
        }
        if read < first.len() {
            return Ok(true);
        }
    }
}

/// Fills the buffer, or reads to the end of the file.
fn read_full(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn paths_of_several_layers_are_found_with_their_difference() {
        let dir = tempfile::tempdir().unwrap();
        let trees = ["one", "two", "three"].map(|name| dir.path().join(name));
        let [one, two, three] = &trees;
        for tree in &trees {
            fs::create_dir_all(tree.join("usr/bin")).unwrap();
        }
        let write = |tree: &Path, path: &str, content: &str| fs::write(tree.join(path), content).unwrap();
        write(one, "usr/bin/cc", "gcc");
        write(two, "usr/bin/cc", "clang");
        write(three, "usr/bin/cc", "gcc");
        write(one, "usr/bin/mine", "");
        for tree in [one, three] {
            write(tree, "usr/copyright", "same");
        }
        write(two, "usr/linked", "one file");
        fs::hard_link(two.join("usr/linked"), three.join("usr/linked")).unwrap();
        write(one, "usr/mode", "");
        write(two, "usr/mode", "");
        fs::set_permissions(two.join("usr/mode"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::create_dir(two.join("usr/kind")).unwrap();
        write(three, "usr/kind", "");
        for (tree, target) in [(one, "a"), (two, "a"), (three, "b")] {
            symlink(target, tree.join("link")).unwrap();
        }
        fs::create_dir(one.join("dir")).unwrap();
        fs::create_dir(three.join("dir")).unwrap();
        fs::set_permissions(three.join("dir"), fs::Permissions::from_mode(0o700)).unwrap();

        let found = conflicts(&trees, XattrNamespace::User).unwrap().map(|conflict| {
            let Conflict { path, layers, difference } = conflict.unwrap();
            (path.into_os_string().into_string().unwrap(), layers, difference)
        });
        let expected = [
            ("dir", vec![0, 2], Difference::Attributes),
            ("link", vec![0, 1, 2], Difference::Content),
            ("usr/copyright", vec![0, 2], Difference::Nothing),
            ("usr/kind", vec![1, 2], Difference::Kind),
            ("usr/linked", vec![1, 2], Difference::Nothing),
            ("usr/mode", vec![0, 1], Difference::Attributes),
            ("usr/bin/cc", vec![0, 1, 2], Difference::Content),
        ];
        let expected = expected.map(|(path, layers, difference)| (path.to_owned(), layers, difference));
        assert_eq!(found.collect::<Vec<_>>(), expected);
        let conflict = conflicts(&trees, XattrNamespace::User).unwrap().next().unwrap().unwrap();
        let json = serde_json::to_string(&conflict).unwrap();
        assert_eq!(json, r#"{"path":"/dir","difference":"attributes","layers":[0,2]}"#);
        let missing = dir.path().join("missing");
        let error = conflicts(&[one, &missing], XattrNamespace::User).unwrap_err();
        assert!(matches!(error, Error::NotADirectory { path, .. } if path == missing));
    }
}
