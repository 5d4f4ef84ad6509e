//! What the files of an image may cost on disk. The bytes of the archives say little about it: one
//! path can name two thousand directories, and a sparse file has a size that no archive contains.

use crate::oci::archive::MAX_ENTRIES;
use crate::oci::error::Problem;

/// The cost of a file besides its content, in bytes: a block of most file systems.
const FILE_BYTES: u64 = 4096;

/// The files and bytes that an import may still make. All layers of an image share one budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Budget {
    max_bytes: u64,
    left_bytes: u64,
    left_files: u64,
}

impl Budget {
    /// Returns the budget of an image whose files may take `max_bytes` bytes.
    pub(crate) fn new(max_bytes: u64) -> Self {
        Self { max_bytes, left_bytes: max_bytes, left_files: MAX_ENTRIES }
    }

    /// Pays for a new name: a file without its content, a directory or a link.
    pub(super) fn pay_file(&mut self) -> Result<(), Problem> {
        self.left_files = self.left_files.checked_sub(1).ok_or(Problem::TooManyEntries { max: MAX_ENTRIES })?;
        self.pay_bytes(FILE_BYTES)
    }

    /// Pays for a content, whose holes count like all other bytes: whoever reads the tree reads
    /// them.
    pub(super) fn pay_bytes(&mut self, bytes: u64) -> Result<(), Problem> {
        let left = self.left_bytes.checked_sub(bytes);
        self.left_bytes = left.ok_or(Problem::TreeTooLarge { max_bytes: self.max_bytes })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_bytes_are_paid_from_one_budget() {
        let mut budget = Budget::new(3 * FILE_BYTES);
        budget.pay_file().unwrap();
        budget.pay_bytes(FILE_BYTES + 1).unwrap();
        let before = budget;
        assert!(matches!(budget.pay_file(), Err(Problem::TreeTooLarge { max_bytes: 12_288 })));
        assert_eq!(budget.left_bytes, before.left_bytes);
        budget.pay_bytes(FILE_BYTES - 1).unwrap();
        assert!(budget.pay_bytes(1).is_err());
    }

    #[test]
    fn the_number_of_files_has_a_limit_of_its_own() {
        let mut budget = Budget { left_files: 1, ..Budget::new(u64::MAX) };
        budget.pay_file().unwrap();
        assert!(matches!(budget.pay_file(), Err(Problem::TooManyEntries { .. })));
    }
}
