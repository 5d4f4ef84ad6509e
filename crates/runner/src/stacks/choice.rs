//! Decides how many of the lowest trees of a stack are worth an overlay that later runs share. This
//! is arithmetic that does not touch the disk.
//!
//! `stacks` mounts that overlay.

use std::collections::VecDeque;

use crate::inside::Identity;

/// The fewest lowers that are worth an overlay of their own.
pub(super) const FEWEST: usize = 8;

/// The number of runs that are remembered.
const REMEMBERED: usize = 64;

/// The stacks of recent runs, the most recent first. Each is the list of its trees, the base first.
#[derive(Debug, Default)]
pub(super) struct Recent(VecDeque<Vec<Identity>>);

impl Recent {
    pub(super) fn remember(&mut self, stack: Vec<Identity>) {
        self.0.truncate(REMEMBERED - 1);
        self.0.push_front(stack);
    }

    /// Returns how many of the lowest trees of `stack` a new shared overlay should have, at most
    /// `most`. Returns `None` if a new overlay does not pay, because the best that exists has
    /// `mounted` of these trees.
    ///
    /// A lookup through an overlay costs about as much as the overlay has lowers, but only the
    /// first time. So a new overlay of `n` trees costs `n` once. It then saves each run over these
    /// trees the `n - mounted` lowers that such a run would have by itself. A new overlay pays if
    /// the recent runs together would have saved three quarters of its cost. Of several, the one
    /// that would have saved most is the best.
    ///
    /// If no overlay exists and none pays, the whole stack gets one. The run itself would have to
    /// pay for it without an overlay, too, and the same stack may follow.
    pub(super) fn worthwhile(&self, stack: &[Identity], mounted: usize, most: usize) -> Option<usize> {
        let mut depths: Vec<_> = self.0.iter().map(|other| common(stack, other).min(most)).collect();
        depths.sort_unstable_by(|one, other| other.cmp(one));
        let candidates = (1..).zip(depths).filter(|(_, depth)| *depth >= FEWEST && *depth > mounted);
        let savings = candidates.map(|(runs, depth)| (runs * (depth - mounted), depth));
        let pays = savings.filter(|(saved, depth)| 4 * saved >= 3 * depth);
        let whole = stack.len().min(most);
        let first = (mounted == 0 && whole >= FEWEST).then_some(whole);
        pays.max().map(|(_, depth)| depth).or(first)
    }
}

/// Returns the number of trees with which both stacks begin.
fn common(one: &[Identity], other: &[Identity]) -> usize {
    one.iter().zip(other).take_while(|(one, other)| one == other).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a stack of the trees with these numbers.
    fn stack(trees: impl IntoIterator<Item = u64>) -> Vec<Identity> {
        trees.into_iter().map(|tree| (1, tree)).collect()
    }

    fn recent<const N: usize>(stacks: [Vec<Identity>; N]) -> Recent {
        let mut recent = Recent::default();
        stacks.into_iter().for_each(|stack| recent.remember(stack));
        recent
    }

    #[test]
    fn the_part_that_repeats_is_shared() {
        let sibling = |number: u64| stack((0..380).chain(1000 * number..1000 * number + 20));
        let nothing = || recent([]);
        // (recent stacks, stack, mounted, most, worthwhile)
        let table = [
            (nothing(), stack(0..7), 0, 500, None),
            (nothing(), stack(0..8), 0, 500, Some(8)),
            (nothing(), stack(0..400), 0, 500, Some(400)),
            (nothing(), stack(0..600), 0, 500, Some(500)),
            (nothing(), stack(0..400), 0, 7, None),
            // The same stack, which has its overlay.
            (recent([stack(0..400)]), stack(0..400), 400, 500, None),
            (recent([stack(0..600)]), stack(0..600), 500, 500, None),
            // A sibling. The overlay of the first is of no use for it.
            (recent([sibling(1)]), sibling(2), 0, 500, Some(380)),
            (recent([sibling(1), sibling(2)]), sibling(3), 380, 500, None),
            // The same stack again, with an overlay of a small part.
            (recent([stack(0..400)]), stack(0..400), 20, 500, Some(400)),
            (recent([stack(0..400)]), stack(0..400), 101, 500, None),
            (recent([stack(0..400), stack(0..400)]), stack(0..400), 101, 500, Some(400)),
            // A stack that grows by one layer per run.
            (recent([stack(0..11), stack(0..12)]), stack(0..13), 10, 500, None),
            (recent([stack(0..20), stack(0..21), stack(0..22)]), stack(0..23), 15, 500, Some(20)),
            // What two runs share saves more than what one shares.
            (recent([stack(0..100), stack(0..90), stack(0..90)]), stack(0..100), 0, 500, Some(90)),
            // Nothing repeats: the run gets its own, unless it has one of a part.
            (recent([stack(0..400)]), stack(1000..1400), 0, 500, Some(400)),
            (recent([stack(0..9)]), stack((0..9).chain(100..200)), 9, 500, None),
        ];
        for (number, (recent, stack, mounted, most, expected)) in table.into_iter().enumerate() {
            assert_eq!(recent.worthwhile(&stack, mounted, most), expected, "case {number}");
        }
    }

    #[test]
    fn few_runs_are_remembered() {
        let mut recent = recent([stack(0..50)]);
        let long = stack((0..50).chain(1000..1050));
        for number in 1..REMEMBERED {
            assert_eq!(recent.worthwhile(&long, 0, 500), Some(50), "{number}");
            recent.remember(stack(100 * number as u64..100 * number as u64 + 20));
        }
        recent.remember(stack(0..2));
        assert_eq!(recent.worthwhile(&long, 0, 500), Some(100));
        assert_eq!(recent.0.len(), REMEMBERED);
    }
}
