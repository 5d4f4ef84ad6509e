//! Decides which layers have to go: arithmetic, without the disk. `inventory.rs` supplies the
//! numbers.

use std::time::SystemTime;

/// How much of a store there is, or of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Size {
    pub(super) bytes: u64,
    pub(super) entries: u64,
}

/// What is over a budget still, while layers go one after the other, the least recently used first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Need {
    pub(super) bytes: u64,
    pub(super) entries: u64,
    /// Bytes that the file system lacks.
    pub(super) free_bytes: u64,
    /// What was used before is too old.
    pub(super) oldest: Option<SystemTime>,
}

impl Need {
    /// Whether a layer that was last used then has to go. If it need not, no later one need.
    pub(super) fn wants(&self, used: SystemTime) -> bool {
        self.is_over() || self.oldest.is_some_and(|oldest| used < oldest)
    }

    /// Counts a layer that has gone.
    pub(super) fn gone(&mut self, size: Size) {
        self.bytes = self.bytes.saturating_sub(size.bytes);
        self.entries = self.entries.saturating_sub(size.entries);
        self.free_bytes = self.free_bytes.saturating_sub(size.bytes);
    }

    /// Whether no other budget than that of the free space is exceeded.
    pub(super) fn is_room_only(&self) -> bool {
        self.free_bytes > 0 && self.bytes == 0 && self.entries == 0
    }

    /// Whether something is over.
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
    fn the_least_recently_used_go_until_nothing_is_over() {
        // Used at 1, 2, …: bytes and entries of each, and which of them somebody holds.
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
