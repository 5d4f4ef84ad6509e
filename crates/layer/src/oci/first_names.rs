//! Remembers the first name of each file that has several names, so that the others become links to
//! it. `pack.rs` writes them.

use std::collections::HashMap;

use rustix::fs::Stat;

use super::error::Problem;
use crate::tree::walk::{Identity, identity};

/// The most memory that the names take, in bytes: those of about a million files. The names of a
/// tree that shares its files with other trees are never all found.
const MAX_BYTES: usize = 256 << 20;

/// The memory of a name without its bytes, roughly.
const USUAL_BYTES: usize = 100;

/// The first names of files of which other names may come.
#[derive(Debug, Default)]
pub(super) struct FirstNames {
    names: HashMap<Identity, First>,
    bytes: usize,
}

#[derive(Debug)]
struct First {
    name: Vec<u8>,
    /// The number of names that were not found yet. They can be in another tree.
    left: u64,
}

impl FirstNames {
    /// Returns the first name of a file, of which another name was found. Forgets it with the last
    /// of them.
    pub(super) fn find(&mut self, stat: &Stat) -> Option<Vec<u8>> {
        let first = self.names.get_mut(&identity(stat))?;
        first.left = first.left.saturating_sub(1);
        if first.left > 0 {
            return Some(first.name.clone());
        }
        let name = self.names.remove(&identity(stat))?.name;
        self.bytes -= cost(&name);
        Some(name)
    }

    /// Adds the first name of a file that has several.
    pub(super) fn add(&mut self, stat: &Stat, name: &[u8]) -> Result<(), Problem> {
        self.bytes += cost(name);
        if self.bytes > MAX_BYTES {
            return Err(Problem::TooManyLinks { max_bytes: MAX_BYTES });
        }
        // The type of the field differs between architectures.
        #[allow(clippy::useless_conversion)]
        let left = u64::from(stat.st_nlink).saturating_sub(1);
        self.names.insert(identity(stat), First { name: name.to_vec(), left });
        Ok(())
    }
}

fn cost(name: &[u8]) -> usize {
    USUAL_BYTES + name.len()
}

#[cfg(test)]
mod tests {
    use rustix::fs::stat;

    use super::*;

    #[test]
    fn a_name_is_kept_until_the_last_one_is_found() {
        let mut file = stat("/").unwrap();
        file.st_nlink = 3;
        let mut names = FirstNames::default();
        assert_eq!(names.find(&file), None);
        names.add(&file, b"first").unwrap();
        for _ in 0..2 {
            assert_eq!(names.find(&file).as_deref(), Some(&b"first"[..]));
        }
        assert_eq!((names.find(&file), names.bytes), (None, 0));
    }

    #[test]
    fn the_names_have_a_limit() {
        let mut file = stat("/").unwrap();
        let mut names = FirstNames::default();
        let long = vec![b'n'; MAX_BYTES / 3];
        for number in 0..2 {
            file.st_ino = number;
            names.add(&file, &long).unwrap();
        }
        file.st_ino = 2;
        assert!(matches!(names.add(&file, &long), Err(Problem::TooManyLinks { .. })));
    }
}
