//! Decides which directories explain the size of a tree. [`diff`](crate::diff) and
//! [`show`](crate::show) print them.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use layer::display::quoted;
use layer::{Change, EntryKind, json_path};
use serde::Serialize;

use crate::table;

/// The sizes of a tree by directory. What a directory has outside of its subdirectories counts for
/// it.
#[derive(Debug, Default)]
pub(crate) struct DirectorySizes(BTreeMap<PathBuf, Size>);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Size {
    bytes: u64,
    entries: u64,
}

/// A directory with what is below it, except what other listed directories have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Directory {
    #[serde(serialize_with = "json_path::serialize")]
    path: PathBuf,
    bytes: u64,
    entries: u64,
}

impl Size {
    fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.entries += other.entries;
    }
}

impl DirectorySizes {
    /// Adds an entry of the tree.
    pub(crate) fn add(&mut self, entry: &Change) {
        let directory = match entry.kind {
            EntryKind::Directory => &entry.path,
            _ => entry.path.parent().unwrap_or(Path::new("")),
        };
        self.0.entry(directory.into()).or_default().add(Size { bytes: entry.bytes, entries: 1 });
    }

    /// Returns at most `most` directories, the largest first. Every byte of the tree counts for
    /// exactly one of them.
    ///
    /// A directory with less than a threshold counts for the one above it. The threshold is the
    /// least that leaves `most` directories, but at least a hundredth of the whole. So a directory
    /// is listed if it explains more than those that are left out. The root is listed if anything
    /// counts for it.
    pub(crate) fn largest(self, most: usize) -> Vec<Directory> {
        let tree = Tree::new(self.0);
        let total = tree.total();
        let (mut low, mut high) = (total / 100, total.saturating_add(1));
        while low < high {
            let middle = low + (high - low) / 2;
            match tree.listed(middle).count() <= most {
                true => high = middle,
                false => low = middle + 1,
            }
        }
        let directory = |(path, Size { bytes, entries }): (&PathBuf, _)| Directory {
            path: Path::new("/").join(path),
            bytes,
            entries,
        };
        let mut largest: Vec<_> = tree.listed(high).map(directory).collect();
        largest.sort_by(|one, other| other.bytes.cmp(&one.bytes).then_with(|| one.path.cmp(&other.path)));
        largest
    }
}

/// All directories, each after those above it.
struct Tree {
    paths: Vec<PathBuf>,
    sizes: Vec<Size>,
    /// The position of the directory above. The root is above itself.
    above: Vec<usize>,
}

impl Tree {
    fn new(mut sizes: BTreeMap<PathBuf, Size>) -> Self {
        let above: Vec<_> = sizes.keys().flat_map(|path| path.ancestors().skip(1)).map(Path::to_path_buf).collect();
        for path in above {
            sizes.entry(path).or_default();
        }
        // A path is sorted before those that begin with it.
        let (paths, sizes): (Vec<_>, Vec<_>) = sizes.into_iter().unzip();
        let position = |path: &PathBuf| {
            let parent = path.parent()?;
            paths.binary_search_by(|other| other.as_path().cmp(parent)).ok()
        };
        let above = paths.iter().map(|path| position(path).unwrap_or(0)).collect();
        Self { paths, sizes, above }
    }

    fn total(&self) -> u64 {
        self.sizes.iter().map(|size| size.bytes).sum()
    }

    /// Returns the directories for which something counts, if those with less than `least` bytes
    /// count for the directory above.
    fn listed(&self, least: u64) -> impl Iterator<Item = (&PathBuf, Size)> {
        let mut sizes = self.sizes.clone();
        for position in (1..sizes.len()).rev() {
            if sizes[position].bytes < least {
                let size = std::mem::take(&mut sizes[position]);
                sizes[self.above[position]].add(size);
            }
        }
        self.paths.iter().zip(sizes).filter(|(_, size)| size.entries > 0)
    }
}

/// Prints the directories, and the sum of all.
pub(crate) fn print(out: &mut impl Write, directories: &[Directory]) -> io::Result<()> {
    let sum = |number: fn(&Directory) -> u64| directories.iter().map(number).sum::<u64>();
    let (bytes, entries) = (sum(|directory| directory.bytes), sum(|directory| directory.entries));
    let mut rows = vec![["SIZE", "SHARE", "ENTRIES", "DIRECTORY"].map(String::from).to_vec()];
    rows.extend(directories.iter().map(|directory| {
        let share = (directory.bytes * 100).checked_div(bytes).unwrap_or_default();
        let path = quoted(&directory.path).to_string();
        vec![table::bytes(directory.bytes), format!("{share} %"), directory.entries.to_string(), path]
    }));
    if !directories.is_empty() {
        table::print(out, &rows, &[0, 1, 2])?;
    }
    writeln!(out, "{} in {}", table::bytes(bytes), table::entries(entries))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(own: &[(&str, u64)]) -> DirectorySizes {
        let size = |bytes| Size { bytes, entries: 1 };
        DirectorySizes(own.iter().map(|(path, bytes)| (path.into(), size(*bytes))).collect())
    }

    fn largest(own: &[(&str, u64)], most: usize) -> Vec<(String, u64, u64)> {
        let row = |Directory { path, bytes, entries }| (path.into_os_string().into_string().unwrap(), bytes, entries);
        sizes(own).largest(most).into_iter().map(row).collect()
    }

    #[test]
    fn the_directories_that_explain_the_size_are_left() {
        let tree = [
            ("", 1),
            ("usr", 4),
            ("usr/lib", 90),
            ("usr/share", 4),
            ("usr/share/doc", 4),
            ("usr/share/doc/a", 20),
            ("usr/share/doc/b", 20),
            ("usr/share/doc/c", 20),
            ("var", 4),
            ("var/lib", 4),
            ("var/lib/apt", 4),
            ("var/lib/apt/lists", 500),
        ];
        let row = |path: &str, bytes, entries| (path.to_string(), bytes, entries);
        assert_eq!(
            largest(&tree, 4),
            [row("/var/lib/apt/lists", 500, 1), row("/usr/lib", 90, 1), row("/usr/share/doc", 64, 4), row("/", 21, 6)]
        );
        assert_eq!(largest(&tree, 1), [row("/", 675, 12)]);
        // Directories with less than a hundredth are never listed.
        let paths: Vec<_> = largest(&tree, 99).into_iter().map(|(path, ..)| path).collect();
        let expected = ["/var/lib/apt/lists", "/usr/lib", "/usr/share/doc/a", "/usr/share/doc/b", "/usr/share/doc/c"];
        assert_eq!(paths, [&expected[..], &["/", "/usr/share", "/var/lib"]].concat());
        assert_eq!(largest(&[], 5), []);
        // Nothing counts for the root.
        assert_eq!(largest(&[("a/b", 5), ("a/c", 5)], 1), [row("/a", 10, 2)]);
    }

    #[test]
    fn the_sum_and_the_shares_are_those_of_all_directories() {
        let mut out = Vec::new();
        print(&mut out, &sizes(&[("var/lib/apt/lists", 3 << 20), ("", 1 << 20)]).largest(5)).unwrap();
        let expected = "\x20  SIZE  SHARE  ENTRIES  DIRECTORY
3.0 MiB   75 %        1  /var/lib/apt/lists
1.0 MiB   25 %        1  /
4.0 MiB in 2 entries
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
        let mut out = Vec::new();
        print(&mut out, &[]).unwrap();
        assert_eq!(out, b"0 B in 0 entries\n");
    }
}
