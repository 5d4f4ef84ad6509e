//! What a merge costs, and taking it away, against the tools that it replaces: `cargo bench -p layer`.
//!
//! Prints ratios within one run, since times drift by half from minute to minute: everything is done in turn, round by round, and
//! the medians are compared. 60 real Debian packages are the layers, downloaded once by `scripts/debian-layers`.

// What a benchmark is for.
#![allow(clippy::print_stdout)]

use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use layer::{Merge, Merged, remove_tree_with};

const ROUNDS: usize = 7;

const ONE: NonZeroUsize = NonZeroUsize::MIN;
const TWO: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1);

fn main() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    real_packages(dir.path());
    same_content(dir.path());
}

/// Against `cp` a layer at a time and `rm -rf`.
fn real_packages(dir: &Path) {
    let trees = debian(&dir.join("debian"));
    let target = |name: &str, round: usize| dir.join(format!("{name}-{round}"));
    let mut merged = Merged::default();
    let [mut cp, mut one, mut two, mut rm, mut remove_one, mut remove_two] = [const { Vec::new() }; 6];
    for round in 0..ROUNDS {
        cp.push(timed(|| cp_merge(&trees, &target("cp", round))));
        one.push(timed(|| merged = merge(ONE, &trees, &target("one", round))));
        two.push(timed(|| merged = merge(TWO, &trees, &target("two", round))));
    }
    // Not between the merges: ext4 shuns inodes that were freed a moment ago, and looking for others is what would be measured.
    for round in 0..ROUNDS {
        rm.push(timed(|| run(Command::new("rm").arg("-rf").arg(target("cp", round)))));
        remove_one.push(timed(|| remove_tree_with(target("one", round), ONE).expect("removed")));
        remove_two.push(timed(|| remove_tree_with(target("two", round), TWO).expect("removed")));
    }
    println!("{} Debian packages, {} files, {} directories", trees.len(), merged.linked, merged.directories);
    table("merge", "cp -n --archive --link, a layer at a time", cp, [("one thread", one), ("two threads", two)]);
    table("removal", "rm -rf", rm, [("one thread", remove_one), ("two threads", remove_two)]);
}

/// Layers that all have files in the same directories: the cost of a file must not grow with the number of layers.
fn same_content(dir: &Path) {
    let tree = |n: usize| dir.join(format!("same/{n}"));
    for n in 0..400 {
        for sub in ["bin", "lib/a/b", "lib/a/c", "share/doc"] {
            fs::create_dir_all(tree(n).join(sub)).expect("a directory");
            (0..12).for_each(|k| fs::write(tree(n).join(sub).join(format!("{n}-{k}")), "").expect("a file"));
        }
    }
    let trees: Vec<_> = (0..400).map(tree).collect();
    let mut per_file = [const { Vec::new() }; 2];
    for _ in 0..ROUNDS {
        for (count, times) in [60, 400].into_iter().zip(&mut per_file) {
            let target = dir.join("target");
            let start = Instant::now();
            let merged = merge(TWO, &trees[..count], &target);
            times.push(start.elapsed() / merged.linked as u32);
            remove_tree_with(&target, TWO).expect("removed");
        }
    }
    let [sixty, four_hundred] = per_file.map(median);
    println!("\na file of 400 layers with the same directories / one of 60: {:.2}", ratio(four_hundred, sixty));
    println!("  60 layers {sixty:?} a file, 400 layers {four_hundred:?}");
}

fn merge(threads: NonZeroUsize, trees: &[PathBuf], target: &Path) -> Merged {
    Merge::new().threads(threads).run(trees, target).expect("merged")
}

/// The topmost first, nothing replaced.
fn cp_merge(trees: &[PathBuf], target: &Path) {
    fs::create_dir(target).expect("a new directory");
    for tree in trees {
        run(Command::new("cp").args(["-n", "--archive", "--link"]).arg(tree.join(".")).arg(target));
    }
}

/// The topmost trees of these packages and what they need.
fn debian(dest: &Path) -> Vec<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/debian-layers");
    run(Command::new(script).arg(dest).args(["g++", "git", "cmake", "vim", "libboost-dev"]));
    let list = fs::read(dest.join("layers")).expect("a list of layers");
    let lines = list.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.take(60).map(|line| Path::new(std::ffi::OsStr::from_bytes(line)).join("fs")).collect()
}

fn run(command: &mut Command) {
    let status = command.status().expect("a program");
    assert!(status.success(), "{command:?}: {status}");
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn ratio(one: Duration, other: Duration) -> f64 {
    one.as_secs_f64() / other.as_secs_f64()
}

fn table<const N: usize>(what: &str, reference: &str, times: Vec<Duration>, ours: [(&str, Vec<Duration>); N]) {
    let (minimum, reference_time) = (times.iter().min().copied().unwrap_or_default(), median(times));
    println!("\n{what}: median, minimum, times as fast by the median");
    println!("  {reference:<45} {reference_time:>9.1?} {minimum:>9.1?}   1");
    for (name, times) in ours {
        let (minimum, time) = (times.iter().min().copied().unwrap_or_default(), median(times));
        println!("  {name:<45} {time:>9.1?} {minimum:>9.1?}   {:.2}", ratio(reference_time, time));
    }
}
