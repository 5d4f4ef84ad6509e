//! Names in directories, of which an archive can have millions: they take a limited amount of
//! memory.

use std::collections::HashSet;
use std::ffi::{CStr, CString};

use crate::oci::error::Problem;
use crate::tree::walk::Identity;

/// The most memory that the names take, in bytes: those of half a million devices or links with
/// names of usual length.
const MAX_BYTES: usize = 64 << 20;

/// The memory of a name without its bytes, roughly.
const USUAL_BYTES: usize = 100;

/// A set of names, each in a directory.
#[derive(Debug, Default)]
pub(super) struct Names {
    names: HashSet<(Identity, CString)>,
    bytes: usize,
}

impl Names {
    pub(super) fn add(&mut self, dir: Identity, name: &CStr) -> Result<(), Problem> {
        if self.has(dir, name) {
            return Ok(());
        }
        self.bytes += USUAL_BYTES + name.count_bytes();
        if self.bytes > MAX_BYTES {
            return Err(Problem::NamesTooLarge { max_bytes: MAX_BYTES });
        }
        self.names.insert((dir, name.to_owned()));
        Ok(())
    }

    pub(super) fn has(&self, dir: Identity, name: &CStr) -> bool {
        !self.names.is_empty() && self.names.contains(&(dir, name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_have_a_limit() {
        let mut names = Names::default();
        let long = CString::new(vec![b'n'; MAX_BYTES / 3]).unwrap();
        for dir in [1, 2, 1, 2] {
            names.add((0, dir), &long).unwrap();
        }
        assert!(matches!(names.add((0, 3), &long), Err(Problem::NamesTooLarge { .. })));
        assert_eq!([(0, 1), (0, 3)].map(|dir| names.has(dir, &long)), [true, false]);
    }
}
