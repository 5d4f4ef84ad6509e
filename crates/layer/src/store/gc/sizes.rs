//! Decides which recorded sizes to check because their sum is impossible. This is arithmetic,
//! without access to the disk. `layer/disk_usage.rs` decides the same for one layer.

use std::ffi::OsStr;
use std::time::SystemTime;

use super::need::Size;
use crate::error::Result;

/// A layer of the store.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) name: Box<OsStr>,
    pub(super) used: SystemTime,
    pub(super) size: Size,
    /// Whether the size comes from `layer.json`.
    pub(super) is_recorded: bool,
    /// Whether the `base_hash` of another layer names this layer.
    pub(super) is_base: bool,
}

/// The number of recorded sizes that must prove true before the rest are believed, although the sum
/// of all is more than the file system holds. The sum can be right where layers share blocks
/// (reflinks, hard links between layers).
///
/// The largest sizes are checked first. A wrong size among the rest is therefore not larger than
/// any of those that proved true, and adds little to their sum.
const CONFIRMATIONS: usize = 8;

/// Measures layers, the one with the largest recorded size first, while the sum of all sizes is
/// more than `limit_bytes`. Stops when [`CONFIRMATIONS`] sizes have proved true. Removes layers
/// that cannot be measured from `layers`, and returns their errors.
pub(super) fn check(
    layers: &mut Vec<Stored>,
    limit_bytes: u64,
    measure: &mut dyn FnMut(&Stored) -> Result<Size>,
) -> Vec<crate::error::Error> {
    let mut total: u128 = layers.iter().map(|stored| u128::from(stored.size.bytes)).sum();
    let mut recorded: Vec<usize> = (0..layers.len()).filter(|&index| layers[index].is_recorded).collect();
    recorded.sort_by_key(|&index| layers[index].size.bytes);
    let mut confirmations = 0;
    let mut failed = Vec::new();
    while total > u128::from(limit_bytes) && confirmations < CONFIRMATIONS {
        let Some(index) = recorded.pop() else { break };
        let bytes = layers[index].size.bytes;
        match measure(&layers[index]) {
            // `layer.json` records the size of the tree alone, and perhaps by other rules: apparent
            // sizes, compression.
            Ok(measured) if measured.bytes >= bytes / 2 => confirmations += 1,
            Ok(measured) => {
                total = total - u128::from(bytes) + u128::from(measured.bytes);
                (layers[index].size, layers[index].is_recorded) = (measured, false);
            }
            Err(error) => {
                total -= u128::from(bytes);
                failed.push((index, error));
            }
        }
    }
    failed.sort_by_key(|&(index, _)| index);
    let take_out = |(index, error)| {
        layers.remove(index);
        error
    };
    // Remove from the end, so that the remaining indices stay valid.
    failed.into_iter().rev().map(take_out).collect()
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::error::Error;

    /// Returns layers with these recorded sizes, named by their index.
    fn layers(recorded: &[u64]) -> Vec<Stored> {
        let stored = |(index, &bytes): (usize, &u64)| Stored {
            name: std::ffi::OsString::from(index.to_string()).into(),
            used: SystemTime::UNIX_EPOCH,
            size: Size { bytes, entries: 0 },
            is_recorded: true,
            is_base: false,
        };
        recorded.iter().enumerate().map(stored).collect()
    }

    #[test]
    fn the_largest_layers_are_measured_until_the_sum_is_possible() {
        const MAX: u64 = u64::MAX;
        /// The recorded sizes, the true sizes, the limit, the layers that are measured, and the
        /// sizes that are believed in the end.
        type Case = (&'static [u64], &'static [u64], u64, &'static [usize], &'static [u64]);
        let table: [Case; 10] = [
            (&[], &[], 0, &[], &[]),
            (&[10, 20, 30], &[1, 1, 1], 60, &[], &[10, 20, 30]),
            (&[10, MAX, 30], &[10, 20, 30], 60, &[1], &[10, 20, 30]),
            (&[MAX, MAX, MAX], &[10, 20, 30], 60, &[2, 1, 0], &[10, 20, 30]),
            (&[10, 1_000_000, 30], &[10, 20, 30], 1_000_039, &[1], &[10, 20, 30]),
            (&[10, 1_000_000, 30], &[10, 20, 30], 1_000_040, &[], &[10, 1_000_000, 30]),
            // A size that proves true stays as recorded, and the next one is checked.
            (&[100, 90, 50, 10], &[120, 80, 1, 1], 201, &[0, 1, 2], &[100, 90, 1, 10]),
            // The recorded sizes are smaller than the true ones.
            (&[10, 50], &[1000, 1000], 0, &[1, 0], &[10, 50]),
            // Layers share blocks: only eight layers are measured, however many there are.
            (&[9, 9, 9, 9, 9, 9, 9, 9, 2, 1], &[9; 10], 10, &[7, 6, 5, 4, 3, 2, 1, 0], &[9, 9, 9, 9, 9, 9, 9, 9, 2, 1]),
            (&[MAX; 2], &[0; 2], 0, &[1, 0], &[0, 0]),
        ];
        for (recorded, there, limit, asked, believed) in table {
            let mut layers = layers(recorded);
            let mut seen = Vec::new();
            let failed = check(&mut layers, limit, &mut |stored| {
                let index: usize = stored.name.to_str().unwrap().parse().unwrap();
                seen.push(index);
                Ok(Size { bytes: there[index], entries: 1 })
            });
            let sizes: Vec<_> = layers.iter().map(|stored| stored.size.bytes).collect();
            assert_eq!((&seen[..], &sizes[..], failed.len()), (asked, believed, 0), "{recorded:?}");
        }
    }

    #[test]
    fn layers_that_cannot_be_measured_are_reported() {
        let mut layers = layers(&[100, 5, 200, 7]);
        let failed = check(&mut layers, 12, &mut |stored| Err(Error::NoTree { layer: (&*stored.name).into() }));
        let names: Vec<_> = failed.iter().map(|error| error.path().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["2", "0"]);
        assert_eq!(layers.iter().map(|stored| stored.size.bytes).collect::<Vec<_>>(), [5, 7]);
    }
}
