//! Random stacks: compares the kernel's view of the layers with its view of the merge. `random`
//! makes the stacks, `corners` has the named cases.
//!
//! `LAYERED_STACKS` sets the number of stacks (200), and `LAYERED_SEED` the seed. A failure prints
//! its seed and the smallest stack that fails.

use std::fmt::Debug;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroUsize;
use std::os::fd::AsFd;

use integration_tests::stack::{Dir, Mount, new_merge};
use integration_tests::tree::Snapshot;
use layer::Merge;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestError, TestRunner};
use rustix::io::Errno;

use super::operations::Operation;
use super::random::{Layers, dir, layers, operations, sessions};
use super::{Stack, agree};

/// Every time in a layer is at most this one.
pub(crate) const LAYERS_END_SECONDS: i64 = 1_600_000_000;

/// Checks `holds` for the number of cases that the environment sets.
pub(crate) fn property<S: Strategy>(strategy: S, holds: impl Fn(S::Value) -> Result<(), String>)
where
    S::Value: Debug,
{
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().expect(name));
    let seed = number("LAYERED_SEED").unwrap_or_else(|| RandomState::new().hash_one(0));
    let cases = number("LAYERED_STACKS").unwrap_or(200);
    let mut runner = TestRunner::new(Config {
        cases: u32::try_from(cases).expect("LAYERED_STACKS"),
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        max_shrink_iters: 3000,
        ..Config::default()
    });
    match runner.run(&strategy, |case| holds(case).map_err(TestCaseError::fail)) {
        Ok(()) => {}
        Err(TestError::Fail(difference, smallest)) => {
            panic!("LAYERED_SEED={seed} LAYERED_STACKS={cases}: {difference}\nof {smallest:#?}")
        }
        Err(TestError::Abort(reason)) => panic!("LAYERED_SEED={seed}: {reason}"),
    }
}

fn threads(number: usize) -> Merge<'static> {
    new_merge().threads(NonZeroUsize::new(number).unwrap())
}

#[test]
fn merged_layers_look_the_same() {
    property((layers(), 1..=3_usize), |(Layers { separate, sources, base, .. }, number)| {
        Stack::new(&separate, &sources, &base).compare(&threads(number)).map(drop)
    });
}

#[test]
fn merged_layers_are_written_to_in_the_same_way() {
    property((layers(), operations(10)), |(layers, operations)| {
        let stack = Stack::new(&layers.separate, &layers.sources, &layers.base);
        stack.compare(&new_merge())?;
        write_alike(&stack, &operations, layers.xattr_whiteouts)
    });
}

#[test]
fn merged_uppers_look_and_are_written_to_the_same() {
    property((dir(3), sessions(), 0..=2_usize, operations(8)), |(base, sessions, separate, operations)| {
        let mut stack = Stack::new(&[], &[], &base);
        // Each layer is made over all or some of those before it, as sibling builds are.
        let mut layers = Vec::new();
        for (number, (operations, over)) in sessions.iter().enumerate() {
            let scratch = stack.dir.path().join(format!("session{number}"));
            let below = layers.iter().rev().zip(over.iter().cycle()).filter(|(_, over)| **over).map(|(layer, _)| layer);
            let mut lowers: Vec<_> = below.cloned().collect();
            lowers.push(stack.base.clone());
            let mount = Mount::writable(&lowers, &scratch).unwrap();
            for operation in operations {
                let _some_cannot_be_done = operation.apply(mount.as_fd());
            }
            layers.push(scratch.join("upper"));
        }
        layers.reverse();
        stack.sources = layers.split_off(separate.min(layers.len() - 1));
        stack.separate = layers;
        stack.compare(&new_merge())?;
        write_alike(&stack, &operations, false)
    });
}

/// Makes the same changes through an upper over the layers and through an upper over the merge.
///
/// In one respect the merge is the better of the two. Overlayfs cannot remove a directory whose
/// layer lists a name that cannot be looked up, nor one that contains whiteouts in the form of
/// xattrs, because `ovl_check_empty_dir` does not check for those.
fn write_alike(stack: &Stack, operations: &[Operation], xattr_whiteouts: bool) -> Result<(), String> {
    let merged = stack.merged();
    let over = |lowers: &[_], name| Mount::writable(lowers, &stack.dir.path().join(name)).unwrap();
    let (expected, found) = (over(&stack.all(), "over-layers"), over(&stack.with_merged(&merged), "over-merged"));
    let look = |mount| Snapshot::of(mount).unwrap().with_times_until(LAYERS_END_SECONDS);
    let not_removable = xattr_whiteouts || !look(&expected).phantoms.is_empty();
    for operation in operations {
        match (operation.apply(expected.as_fd()), operation.apply(found.as_fd())) {
            // A recursive removal may then remove different parts if the base has such a directory,
            // too.
            (Err(Errno::NOTEMPTY), Ok(()) | Err(Errno::NOTEMPTY)) if not_removable => return Ok(()),
            (expected, found) if expected == found => {}
            results => return Err(format!("{operation:?}: {results:?}")),
        }
    }
    agree(&look(&expected), &look(&found)).map_err(|difference| format!("after {operations:?}: {difference}"))
}

#[test]
fn a_merge_of_empty_layers_shows_the_base() {
    let stack = Stack::new(&[], &[Dir::new(), Dir::new()], &Dir::new().file("a", "a"));
    stack.compare(&new_merge()).unwrap();
}
