//! Decides which layers must be removed. This is arithmetic, without access to the disk.
//! `inventory.rs` supplies the numbers.

use std::time::SystemTime;

/// The size of a layer or of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Size {
    pub(super) bytes: u64,
    pub(super) entries: u64,
}

/// The amounts by which a store still exceeds its budgets. They shrink as layers are removed, the
/// least recently used first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Need {
    pub(super) bytes: u64,
    pub(super) entries: u64,
    /// Free bytes that the file system lacks.
    pub(super) free_bytes: u64,
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
        self.bytes = self.bytes.saturating_sub(size.bytes);
        self.entries = self.entries.saturating_sub(size.entries);
        self.free_bytes = self.free_bytes.saturating_sub(size.bytes);
    }

    /// Returns whether the store exceeds the budget of free space and no other.
    pub(super) fn is_room_only(&self) -> bool {
        self.free_bytes > 0 && self.bytes == 0 && self.entries == 0
    }

    /// Returns whether the store exceeds any budget.
    pub(super) fn is_over(&self) -> bool {
        self.bytes > 0 || self.entries > 0 || self.free_bytes > 0
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
    fn the_least_recently_used_layers_are_removed_until_the_budgets_are_kept() {
        // The bytes and entries of layers that were last used at 1, 2, … The table says which of
        // them are held, and which must be removed.
        let layers = [(10, 1), (20, 50), (30, 1), (40, 1)];
        let need = Need::default();
        let table = [
            (need, &[][..], &[][..]),
            (Need { bytes: 1, ..need }, &[], &[1]),
            (Need { bytes: 10, ..need }, &[], &[1]),
            (Need { bytes: 11, ..need }, &[], &[1, 2]),
            (Need { bytes: 11, ..need }, &[1], &[2]),
            (Need { bytes: 21, ..need }, &[2], &[1, 3]),
            (Need { bytes: 1000, ..need }, &[3], &[1, 2, 4]),
            (Need { entries: 2, ..need }, &[], &[1, 2]),
            (Need { free_bytes: 60, ..need }, &[], &[1, 2, 3]),
            (Need { bytes: 1, entries: 52, ..need }, &[], &[1, 2, 3]),
            (Need { oldest: Some(at(3)), ..need }, &[], &[1, 2]),
            (Need { oldest: Some(at(3)), ..need }, &[1], &[2]),
            (Need { oldest: Some(at(0)), bytes: 5, ..need }, &[], &[1]),
            (Need { oldest: Some(at(99)), bytes: 5, ..need }, &[], &[1, 2, 3, 4]),
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
