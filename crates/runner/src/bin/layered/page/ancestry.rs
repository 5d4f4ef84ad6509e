//! Decides which layers a layer stands on directly. This is arithmetic; [`model`](super::model)
//! supplies the layers and their `parent_hashes`.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Bound;

use layer::Layer;

/// Finds the layers that hashes mean.
#[derive(Debug)]
pub(super) struct Meanings<'h>(BTreeMap<&'h str, Option<usize>>);

impl<'h> Meanings<'h> {
    /// Looks for the layer of each hash. If a hash means several layers, the one with the longest
    /// name counts.
    pub(super) fn of(hashes: impl IntoIterator<Item = &'h str>, layers: &[Layer]) -> Self {
        let mut meanings: BTreeMap<&str, Option<usize>> = hashes.into_iter().map(|hash| (hash, None)).collect();
        let mut by_length: Vec<_> = layers.iter().map(Layer::hash).enumerate().collect();
        by_length.sort_by_key(|(_, name)| name.len());
        for (index, name) in by_length {
            // A hash never means a layer whose name does not begin it.
            let from_name_on = meanings.range_mut::<str, _>((Bound::Included(name.as_str()), Bound::Unbounded));
            for (hash, meaning) in from_name_on.take_while(|(hash, _)| hash.starts_with(&name)) {
                if layers[index].has_hash(hash) {
                    *meaning = Some(index);
                }
            }
        }
        Self(meanings)
    }

    /// Returns the index of the layer that the hash means.
    pub(super) fn get(&self, hash: &str) -> Option<usize> {
        self.0.get(hash).copied().flatten()
    }
}

/// Returns the layers that each layer stands on directly: those below it that are not below another
/// layer below it. The indexes are in ascending order.
///
/// `below` has the indexes of all layers that each layer names. Where these lists leave layers out,
/// or layers name each other, more layers may count as direct.
pub(super) fn direct(below: &[Vec<usize>]) -> Vec<Vec<usize>> {
    // The layer that has last covered this one.
    let mut covered_by = vec![usize::MAX; below.len()];
    let direct_of = |(layer, below_it): (usize, &Vec<usize>)| {
        // A layer has more layers below it than each of those has.
        let mut candidates: Vec<usize> = below_it.iter().copied().filter(|lower| *lower != layer).collect();
        candidates.sort_by_key(|lower| (Reverse(below[*lower].len()), *lower));
        candidates.dedup();
        let mut direct = Vec::new();
        for lower in candidates {
            if covered_by[lower] != layer {
                direct.push(lower);
                below[lower].iter().for_each(|covered| covered_by[*covered] = layer);
            }
        }
        direct.sort_unstable();
        direct
    };
    below.iter().enumerate().map(direct_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_stands_directly_on_what_no_other_layer_covers() {
        type Lists = &'static [&'static [usize]];
        let table: [(Lists, Lists); 7] = [
            (&[], &[]),
            (&[&[], &[0], &[0, 1]], &[&[], &[0], &[1]]),
            // In any order, and named twice.
            (&[&[], &[0], &[0, 1, 0, 1]], &[&[], &[0], &[1]]),
            // A diamond.
            (&[&[], &[0], &[0], &[0, 1, 2]], &[&[], &[0], &[0], &[1, 2]]),
            // The list of 2 leaves out what is below 1.
            (&[&[], &[0], &[1]], &[&[], &[0], &[1]]),
            // Layers that name themselves or each other.
            (&[&[0], &[0, 1]], &[&[], &[0]]),
            (&[&[1], &[0]], &[&[1], &[0]]),
        ];
        for (below, expected) in table {
            let below: Vec<Vec<usize>> = below.iter().map(|list| list.to_vec()).collect();
            assert_eq!(direct(&below), expected, "{below:?}");
        }
    }

    #[test]
    fn a_hash_means_the_layer_with_the_longest_name() {
        let digest = "0123456789abcdef0123456789abcdef";
        let layers = ["debian", "0123456789ab", "0123456789abcdef", "01234567", "a"].map(Layer::at);
        let meanings = Meanings::of([digest, "debian", "debian-12", "ab", "a", "0123456789ab"], &layers);
        let table = [
            (digest, Some(2)),
            ("debian", Some(0)),
            ("debian-12", None),
            ("ab", None),
            ("a", Some(4)),
            ("0123456789ab", Some(1)),
            ("unknown", None),
        ];
        for (hash, layer) in table {
            assert_eq!(meanings.get(hash), layer, "{hash}");
        }
    }
}
