//! Decides which layers of a store a layer names as its parents, and which of them it stands on
//! directly. This is arithmetic; [`ls`](crate::ls), [`page`](crate::page) and
//! [`diff`](crate::diff) supply the layers and their `parent_hashes`.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Bound;

use layer::Layer;

/// Finds the layers that hashes mean.
#[derive(Debug)]
pub(crate) struct Meanings<'h>(BTreeMap<&'h str, Option<usize>>);

impl<'h> Meanings<'h> {
    /// Looks for the layer of each hash. If a hash means several layers, the one with the longest
    /// name counts.
    pub(crate) fn of(hashes: impl IntoIterator<Item = &'h str>, layers: &[Layer]) -> Self {
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
    pub(crate) fn get(&self, hash: &str) -> Option<usize> {
        self.0.get(hash).copied().flatten()
    }
}

/// Returns the indexes of the layers that each layer names as its parents, in the order of its
/// `parent_hashes`. A hash that means none of `layers` is left out.
pub(crate) fn below(layers: &[Layer], parent_hashes: &[&[String]]) -> Vec<Vec<usize>> {
    let meanings = Meanings::of(parent_hashes.iter().copied().flatten().map(String::as_str), layers);
    let indexes = |hashes: &&[String]| hashes.iter().filter_map(|hash| meanings.get(hash)).collect();
    parent_hashes.iter().map(indexes).collect()
}

/// Returns the layers that each layer stands on directly: those below it that are not below another
/// layer below it. The indexes are in ascending order.
///
/// `below` has the indexes of all layers that each layer names. Where these lists leave layers out,
/// or layers name each other, more layers may count as direct.
pub(crate) fn direct(below: &[Vec<usize>]) -> Vec<Vec<usize>> {
    // The layer that has last covered this one, and the one that it was last a candidate of.
    let mut covered_by = vec![usize::MAX; below.len()];
    let mut candidate_of = covered_by.clone();
    let direct_of = |(layer, below_it): (usize, &Vec<usize>)| {
        // A layer has more layers below it than each of those has. Of layers with
        // equally many, the upper one is named first.
        let mut candidates: Vec<usize> = below_it.iter().copied().filter(|lower| *lower != layer).collect();
        candidates.sort_by_key(|lower| Reverse(below[*lower].len()));
        let mut direct = Vec::new();
        for lower in candidates {
            let is_repeated = std::mem::replace(&mut candidate_of[lower], layer) == layer;
            if !is_repeated && covered_by[lower] != layer {
                direct.push(lower);
                let covered = below[lower].iter().filter(|covered| **covered != lower);
                covered.for_each(|covered| covered_by[*covered] = layer);
            }
        }
        // A later candidate can cover an earlier one whose list is longer.
        direct.retain(|lower| covered_by[*lower] != layer);
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
        let table: [(Lists, Lists); 9] = [
            (&[], &[]),
            (&[&[], &[0], &[0, 1]], &[&[], &[0], &[1]]),
            // In any order, and named twice.
            (&[&[], &[0], &[0, 1, 0, 1]], &[&[], &[0], &[1]]),
            // A diamond.
            (&[&[], &[0], &[0], &[0, 1, 2]], &[&[], &[0], &[0], &[1, 2]]),
            // The list of 2 leaves out what is below 1.
            (&[&[], &[0], &[1]], &[&[], &[0], &[1]]),
            // The list of 2 leaves out 0, and that of 1 has more layers.
            (&[&[], &[0, 0], &[1], &[1, 2]], &[&[], &[0], &[1], &[2]]),
            // All lists are as long as each other.
            (&[&[], &[0], &[1], &[2, 1]], &[&[], &[0], &[1], &[2]]),
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
    fn long_lists_of_parents_that_are_cut_off_are_a_chain() {
        // Each layer names the 400 above the base of its part of the chain.
        let below: Vec<Vec<usize>> =
            (0..1500_usize).map(|layer| (layer.saturating_sub(400)..layer).rev().collect()).collect();
        let expected: Vec<Vec<usize>> =
            (0..1500_usize).map(|layer| layer.checked_sub(1).into_iter().collect()).collect();
        assert_eq!(direct(&below), expected);
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
