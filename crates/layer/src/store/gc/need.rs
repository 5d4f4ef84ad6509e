//! Decides which layers must be removed. This is arithmetic, without access to the disk.
//! `inventory.rs` supplies the numbers.

use std::time::SystemTime;

/// A number of bytes and of inodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Size {
    pub(super) bytes: u64,
    pub(super) entries: u64,
}

impl Size {
    pub(super) fn is_zero(self) -> bool {
        self == Self::default()
    }

    pub(super) fn saturating_sub(self, other: Self) -> Self {
        Self { bytes: self.bytes.saturating_sub(other.bytes), entries: self.entries.saturating_sub(other.entries) }
    }

    /// Returns what is still lacking if statvfs(3) reports `self`, and if by the sizes of the
    /// layers that were removed, `expected` is lacking. Some file systems free space later than
    /// they remove files, so the smaller number counts. Only the report decides that nothing is
    /// lacking.
    pub(super) fn after_removal(self, expected: Self) -> Self {
        let still = |reported: u64, expected: u64| if expected == 0 { reported } else { reported.min(expected) };
        Self { bytes: still(self.bytes, expected.bytes), entries: still(self.entries, expected.entries) }
    }

    /// Returns whether a number is not 0 here, but 0 in `other`.
    pub(super) fn exceeds_zero_of(self, other: Self) -> bool {
        (self.bytes > 0 && other.bytes == 0) || (self.entries > 0 && other.entries == 0)
    }
}

/// The amounts by which a store still exceeds its budgets. They shrink as layers are removed, the
/// least recently used first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Need {
    /// The bytes and inodes that the layers have beyond the budgets.
    pub(super) over: Size,
    /// The free bytes and inodes that the file system lacks.
    pub(super) lacking: Size,
    /// Layers that were last used before this time are too old.
    pub(super) oldest: Option<SystemTime>,
}

impl Need {
    /// Returns whether a layer that was last used at `used` must be removed. If not, no layer that
    /// was used later must be removed, either.
    pub(super) fn wants(&self, used: SystemTime) -> bool {
        self.is_over() || self.oldest.is_some_and(|oldest| used < oldest)
    }

    /// Counts a layer that was removed.
    pub(super) fn gone(&mut self, size: Size) {
        self.over = self.over.saturating_sub(size);
        self.lacking = self.lacking.saturating_sub(size);
    }

    /// Returns whether the store exceeds the budget of free space and no other.
    pub(super) fn is_room_only(&self) -> bool {
        !self.lacking.is_zero() && self.over.is_zero()
    }

    /// Returns whether the store exceeds any budget.
    pub(super) fn is_over(&self) -> bool {
        !self.over.is_zero() || !self.lacking.is_zero()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn enough_of_one_number_does_not_hide_the_lack_of_the_other() {
        let size = |(bytes, entries)| Size { bytes, entries };
        // What statvfs reports, what the sizes say, what counts, and whether a sync may free more.
        let table = [
            ((0, 0), (0, 0), (0, 0), false),
            ((5, 0), (0, 0), (5, 0), true),
            ((5, 0), (3, 0), (3, 0), false),
            ((3, 0), (5, 0), (3, 0), false),
            ((5, 7), (0, 2), (5, 2), true),
            ((5, 7), (2, 0), (2, 7), true),
            ((5, 0), (0, 2), (5, 0), true),
            ((0, 7), (2, 9), (0, 7), false),
        ];
        for (reported, expected, still, is_in_doubt) in table {
            let (reported, expected) = (size(reported), size(expected));
            assert_eq!(reported.after_removal(expected), size(still), "{reported:?}, {expected:?}");
            assert_eq!(reported.exceeds_zero_of(expected), is_in_doubt, "{reported:?}, {expected:?}");
        }
    }

    #[test]
    fn the_least_recently_used_layers_are_removed_until_the_budgets_are_kept() {
        // The bytes and entries of layers that were last used at 1, 2, … The table says which of
        // them are held, and which must be removed.
        let layers = [(10, 1), (20, 50), (30, 1), (40, 1)];
        let over = |bytes, entries| Need { over: Size { bytes, entries }, ..Need::default() };
        let lacking = |bytes, entries| Need { lacking: Size { bytes, entries }, ..Need::default() };
        let table = [
            (over(0, 0), &[][..], &[][..]),
            (over(1, 0), &[], &[1]),
            (over(10, 0), &[], &[1]),
            (over(11, 0), &[], &[1, 2]),
            (over(11, 0), &[1], &[2]),
            (over(21, 0), &[2], &[1, 3]),
            (over(1000, 0), &[3], &[1, 2, 4]),
            (over(0, 2), &[], &[1, 2]),
            (over(1, 52), &[], &[1, 2, 3]),
            (lacking(60, 0), &[], &[1, 2, 3]),
            (lacking(0, 2), &[], &[1, 2]),
            (lacking(60, 53), &[1], &[2, 3, 4]),
            (Need { oldest: Some(at(3)), ..over(0, 0) }, &[], &[1, 2]),
            (Need { oldest: Some(at(3)), ..over(0, 0) }, &[1], &[2]),
            (Need { oldest: Some(at(0)), ..over(5, 0) }, &[], &[1]),
            (Need { oldest: Some(at(99)), ..over(5, 0) }, &[], &[1, 2, 3, 4]),
        ];
        for (mut need, held, gone) in table {
            let asked = need;
            let mut seen = Vec::new();
            for (used, (bytes, entries)) in (1..).zip(layers) {
                if need.wants(at(used)) && !held.contains(&used) {
                    need.gone(Size { bytes, entries });
                    seen.push(used);
                }
            }
            assert_eq!(seen, gone, "{asked:?}, {held:?} held");
        }
    }
}
