//! Decides which layers become lowers of their own and which are merged. All of this is arithmetic
//! that does not touch the disk. `merge` does the merging.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use crate::error::{Error, Result};
use crate::json_path;

/// The maximum number of lower directories of an overlay, including the base and the merged
/// directory.
///
/// The kernel defines it as `OVL_MAX_STACK` in `fs/overlayfs/params.c`.
pub const MAX_LOWERS: usize = 500;

/// Splits `layers` into the longest prefix that fits and the rest, which must be merged into one
/// directory below the prefix.
///
/// All layers fit if the sum of their costs is at most `available`. The second part is empty then.
/// Otherwise the merged directory takes `merged_overhead` of `available`, and the prefix gets the
/// remainder. A cost is a number of bytes in an option string, or 1 where layers are counted.
///
/// ```
/// let layers = ["/l/one", "/l/two", "/l/three", "/l/four"];
/// let cost = |path: &&str| path.len() + 1; // and the colon
/// assert_eq!(layer::plan_lowerdir(31, 10, cost, &layers), (&layers[..], &[][..]));
/// assert_eq!(layer::plan_lowerdir(30, 10, cost, &layers), (&layers[..2], &layers[2..]));
/// ```
pub fn plan_lowerdir<T>(
    available: usize,
    merged_overhead: usize,
    cost: impl Fn(&T) -> usize,
    layers: &[T],
) -> (&[T], &[T]) {
    let left = available.checked_sub(merged_overhead);
    let mut sum = 0_usize;
    let mut prefix = 0;
    for (index, layer) in layers.iter().enumerate() {
        sum = sum.saturating_add(cost(layer));
        if sum > available {
            return layers.split_at(prefix);
        }
        if left.is_some_and(|left| sum <= left) {
            prefix = index + 1;
        }
    }
    (layers, &[])
}

/// A way to pass the lower directories to the kernel. Displayed, parsed and
/// serialized as `lowerdir+`, `mount-paths`, `mount-names`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Rung {
    /// `fsconfig(2)` with `lowerdir+`, one call per layer (Linux 6.7). The length of the names has
    /// no limit.
    LowerdirPlus,
    /// `mount(2)` with the paths as they are. One page holds all options.
    MountPaths,
    /// `mount(2)` with short names for the same directories: the numbers of their descriptors.
    MountNames,
}

impl Rung {
    /// All rungs, the best first.
    pub const LADDER: [Rung; 3] = [Rung::LowerdirPlus, Rung::MountPaths, Rung::MountNames];
}

impl fmt::Display for Rung {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Rung::LowerdirPlus => "lowerdir+",
            Rung::MountPaths => "mount-paths",
            Rung::MountNames => "mount-names",
        })
    }
}

impl Serialize for Rung {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl std::str::FromStr for Rung {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let known = Rung::LADDER.into_iter().find(|rung| rung.to_string() == name);
        known.ok_or_else(|| Error::UnknownRung { name: name.into() })
    }
}

/// The capacity of one rung.
#[derive(Clone, Copy)]
pub struct RungLimit<'a> {
    /// The rung.
    pub rung: Rung,
    /// The maximum number of lowers, including the base and the merged directory: [`MAX_LOWERS`],
    /// or fewer.
    pub max_lowers: usize,
    /// The maximum number of bytes that all lowers may take in the option string; [`usize::MAX`]
    /// for no limit.
    pub max_bytes: usize,
    /// The number of bytes that one lower takes in the option string, including its separator.
    pub cost: &'a dyn Fn(&Path) -> usize,
}

impl fmt::Debug for RungLimit<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("RungLimit")
            .field("rung", &self.rung)
            .field("max_lowers", &self.max_lowers)
            .field("max_bytes", &self.max_bytes)
            .finish_non_exhaustive()
    }
}

/// The result that one rung would give for a stack. In JSON, a `max_bytes` without a limit is null.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Estimate {
    /// The rung.
    pub rung: Rung,
    /// The number of layers that stay lowers of their own.
    pub separate: usize,
    /// The number of layers that must be merged.
    pub merged: usize,
    /// The maximum number of lowers that the rung takes, including the base.
    pub max_lowers: usize,
    /// The number of bytes that all layers and the base would take if none were merged.
    pub bytes: usize,
    /// The maximum number of bytes that the rung takes; [`usize::MAX`] for no limit.
    #[serde(serialize_with = "serialize_limit")]
    pub max_bytes: usize,
}

/// The layers that become lowers of their own, the layers that are merged, and the rung on which
/// they are mounted.
///
/// The lowers of the mount are, topmost first: `separate`, the directory into which `merged` is
/// merged (if `merged` is not empty), `base`.
///
/// Its JSON is that of `layered plan`, without the number of files and the reason of each rung.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Plan {
    /// The tree of the base.
    #[serde(serialize_with = "json_path::serialize")]
    pub base: PathBuf,
    /// The rung.
    pub rung: Rung,
    /// The trees that stay separate, topmost first.
    #[serde(serialize_with = "json_path::serialize_list")]
    pub separate: Vec<PathBuf>,
    /// The trees to merge, topmost first; all of them lie below the separate ones.
    #[serde(serialize_with = "json_path::serialize_list")]
    pub merged: Vec<PathBuf>,
    /// The estimate for each rung of the ladder, in the order of the ladder; `rungs` in JSON.
    #[serde(rename = "rungs")]
    pub estimates: Vec<Estimate>,
}

impl Plan {
    /// Plans a stack of `layers` over `base`. `layers` are trees, topmost first, none of them
    /// twice. The layers that do not fit must be merged into `merged_dir`, of which only the cost
    /// of its name matters here.
    ///
    /// Takes the first rung on which all layers fit. If they fit on no rung, takes the first of the
    /// rungs that leave the fewest layers to merge. Returns `None` if `ladder` is empty. Reads
    /// nothing from the disk.
    pub fn new(layers: &[PathBuf], base: &Path, merged_dir: &Path, ladder: &[RungLimit<'_>]) -> Option<Self> {
        let estimates: Vec<_> = ladder.iter().map(|limit| estimate(layers, base, merged_dir, limit)).collect();
        // `min_by_key` returns the first of equal elements: the highest rung.
        let best = estimates.iter().min_by_key(|estimate| estimate.merged)?;
        let (separate, merged) = layers.split_at(best.separate);
        Some(Plan { rung: best.rung, separate: separate.into(), merged: merged.into(), base: base.into(), estimates })
    }

    /// Returns the lowers of the mount, topmost first, the base last. `merged_dir` is among them if
    /// there is anything to merge.
    pub fn lowers(&self, merged_dir: &Path) -> Vec<PathBuf> {
        let merged = (!self.merged.is_empty()).then(|| merged_dir.to_path_buf());
        self.separate.iter().cloned().chain(merged).chain([self.base.clone()]).collect()
    }
}

/// Writes a limit, or null for no limit.
fn serialize_limit<S: Serializer>(limit: &usize, serializer: S) -> Result<S::Ok, S::Error> {
    (*limit != usize::MAX).then_some(limit).serialize(serializer)
}

fn estimate(layers: &[PathBuf], base: &Path, merged_dir: &Path, limit: &RungLimit<'_>) -> Estimate {
    let costs: Vec<usize> = layers.iter().map(|layer| (limit.cost)(layer)).collect();
    let cost = |cost: &usize| *cost;
    let base_bytes = (limit.cost)(base);
    let by_count = plan_lowerdir(limit.max_lowers.saturating_sub(1), 1, |_| 1, layers).0.len();
    let by_bytes =
        plan_lowerdir(limit.max_bytes.saturating_sub(base_bytes), (limit.cost)(merged_dir), cost, &costs).0.len();
    let mut separate = by_count.min(by_bytes);
    if by_count < layers.len() && separate == by_count {
        // The count decides and requires a merged directory, whose name must fit into the bytes,
        // too.
        let left = limit.max_bytes.saturating_sub(base_bytes).saturating_sub((limit.cost)(merged_dir));
        separate = plan_lowerdir(left, 0, cost, &costs[..separate]).0.len();
    }
    Estimate {
        rung: limit.rung,
        separate,
        merged: layers.len() - separate,
        max_lowers: limit.max_lowers,
        bytes: costs.iter().copied().fold(base_bytes, usize::saturating_add),
        max_bytes: limit.max_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_that_fits_stays_separate() {
        // (available, merged_overhead, costs, separate)
        let table: [(usize, usize, &[usize], usize); 12] = [
            (0, 0, &[], 0),
            (10, 100, &[], 0),
            (10, 100, &[10], 1),
            (10, 100, &[5, 5], 2),
            (10, 3, &[5, 6], 1),
            (10, 5, &[5, 6], 1),
            (10, 6, &[5, 6], 0),
            (10, 100, &[5, 6], 0),
            (10, 4, &[2, 2, 2, 2, 2], 5),
            (10, 4, &[2, 2, 2, 2, 2, 2], 3),
            (10, 4, &[20, 1, 1], 0),
            (usize::MAX, 1, &[usize::MAX, usize::MAX], 2),
        ];
        for (available, overhead, costs, separate) in table {
            let split = plan_lowerdir(available, overhead, |cost| *cost, costs);
            assert_eq!(split, costs.split_at(separate), "{available} {overhead} {costs:?}");
        }
    }

    #[test]
    fn the_prefix_fits_and_one_more_layer_does_not() {
        let costs: Vec<usize> = (0..40).map(|n| (n * 7) % 11).collect();
        let total: usize = costs.iter().sum();
        for available in 0..total + 5 {
            for overhead in [0, 1, 5, 50] {
                let (separate, merged) = plan_lowerdir(available, overhead, |cost| *cost, &costs);
                let sum: usize = separate.iter().sum();
                match merged {
                    [] => assert!(sum <= available),
                    [next, ..] => {
                        assert!(total > available);
                        assert!(sum + overhead <= available || separate.is_empty());
                        assert!(sum + next + overhead > available, "{available} {overhead}");
                    }
                }
            }
        }
    }

    fn paths(count: usize, length: usize) -> Vec<PathBuf> {
        (0..count).map(|n| PathBuf::from(format!("/{n:0width$}", width = length - 1))).collect()
    }

    fn length(path: &Path) -> usize {
        path.as_os_str().len() + 1
    }

    fn fixed(_: &Path) -> usize {
        4
    }

    fn ladder() -> [RungLimit<'static>; 3] {
        let limit = |rung, max_bytes, cost| RungLimit { rung, max_lowers: MAX_LOWERS, max_bytes, cost };
        [
            limit(Rung::LowerdirPlus, usize::MAX, &length),
            limit(Rung::MountPaths, 4000, &length),
            limit(Rung::MountNames, 4000, &fixed),
        ]
    }

    #[test]
    fn the_highest_rung_with_the_fewest_merged_layers_is_taken() {
        // (rungs on offer, layers, bytes of a path, rung, merged)
        let all = ladder();
        let table: [(&[RungLimit<'_>], usize, usize, Rung, usize); 10] = [
            (&all, 0, 60, Rung::LowerdirPlus, 0),
            (&all, 499, 60, Rung::LowerdirPlus, 0),
            (&all, 500, 60, Rung::LowerdirPlus, 2),
            (&all, 1000, 60, Rung::LowerdirPlus, 502),
            (&all[1..], 60, 60, Rung::MountPaths, 0),
            (&all[1..], 66, 60, Rung::MountNames, 0),
            (&all[1..], 499, 60, Rung::MountNames, 0),
            (&all[1..], 520, 60, Rung::MountNames, 22),
            (&all[1..2], 100, 60, Rung::MountPaths, 35),
            (&all[..1], 499, 2000, Rung::LowerdirPlus, 0),
        ];
        for (ladder, count, length, rung, merged) in table {
            let layers = paths(count, length);
            let plan = Plan::new(&layers, Path::new("/base"), Path::new("/merged"), ladder).unwrap();
            assert_eq!((plan.rung, plan.merged.len()), (rung, merged), "{count} layers of {length} bytes");
            assert_eq!([plan.separate.clone(), plan.merged.clone()].concat(), layers);
            let lowers = plan.lowers(Path::new("/merged"));
            assert!(lowers.len() <= MAX_LOWERS);
            assert_eq!(lowers.len(), plan.separate.len() + usize::from(merged > 0) + 1);
        }
        assert_eq!(Plan::new(&[], Path::new("/base"), Path::new("/merged"), &[]), None);
    }

    #[test]
    fn the_name_of_the_merged_directory_counts_in_bytes_too() {
        // The count allows four lowers, so some layers must be merged. The bytes of all five layers
        // and the base fit, but not with the name of the merged directory.
        let limit = RungLimit { rung: Rung::MountPaths, max_lowers: 4, max_bytes: 6 + 5 * 10, cost: &length };
        let layers = paths(5, 9);
        let merged = PathBuf::from(format!("/{}", "m".repeat(38)));
        let plan = Plan::new(&layers, Path::new("/base"), &merged, &[limit]).unwrap();
        let bytes: usize = plan.lowers(&merged).iter().map(|path| length(path)).sum();
        assert!(bytes <= limit.max_bytes && plan.lowers(&merged).len() <= 4, "{plan:?}");
        assert_eq!(plan.separate.len(), 1);
    }

    #[test]
    fn rungs_are_displayed_as_they_are_parsed() {
        for rung in Rung::LADDER {
            assert_eq!(rung.to_string().parse::<Rung>().unwrap(), rung);
        }
        assert!("fsconfig".parse::<Rung>().unwrap_err().to_string().contains("lowerdir+"));
    }

    #[test]
    fn a_plan_as_json_has_null_for_no_limit() {
        let plan = Plan::new(&paths(2, 2), Path::new("/base"), Path::new("/m"), &ladder()[..2]).unwrap();
        let expected = r#"{"base":"/base","rung":"lowerdir+","separate":["/0","/1"],"merged":[],"rungs":[{"rung":"lowerdir+","separate":2,"merged":0,"max_lowers":500,"bytes":12,"max_bytes":null},{"rung":"mount-paths","separate":2,"merged":0,"max_lowers":500,"bytes":12,"max_bytes":4000}]}"#;
        assert_eq!(serde_json::to_string(&plan).unwrap(), expected);
    }
}
