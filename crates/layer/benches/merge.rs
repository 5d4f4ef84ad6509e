//! Compares a merge, and the removal of its result, with the tools that they replace. To run it:
//! `cargo bench -p layer`.
//!
//! Prints ratios within one run, because times drift by half from minute to minute. Each round
//! measures everything in turn, and the medians are compared. The layers are real Debian packages,
//! 60 at a time, which `scripts/debian-layers` downloads once.

// A benchmark prints its results.
#![allow(clippy::print_stdout)]

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use layer::{Merge, Merged, Remove, remove_tree};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, openat};

const ROUNDS: usize = 7;

const ONE: NonZeroUsize = NonZeroUsize::MIN;
const TWO: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1);

fn main() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    // Debian's own builds start from these: many small packages.
    real_packages(&dir.path().join("build"), &["build-essential", "debhelper"]);
    // One of these packages, Boost's headers, has two thirds of the files.
    real_packages(&dir.path().join("giant"), &["g++", "git", "cmake", "vim", "libboost-dev"]);
    same_content(dir.path());
}

/// Compares a merge with `cp`, one layer at a time, and a removal with `rm -rf`.
fn real_packages(dir: &Path, packages: &[&str]) {
    fs::create_dir(dir).expect("a new directory");
    let trees = debian(&dir.join("debian"), packages);
    let calls = Calls::of(&trees);
    let target = |name: &str, round: usize| dir.join(format!("{name}-{round}"));
    let mut merged = Merged::default();
    let [mut cp, mut bare, mut one, mut two] = [const { Vec::new() }; 4];
    let [mut rm, mut remove_one, mut remove_two, mut remove_usual] = [const { Vec::new() }; 4];
    for round in 0..ROUNDS {
        cp.push(timed(|| cp_merge(&trees, &target("cp", round))));
        bare.push(timed(|| calls.make(&target("bare", round))));
        one.push(timed(|| merged = merge(ONE, &trees, &target("one", round))));
        two.push(timed(|| merged = merge(TWO, &trees, &target("two", round))));
    }
    // The removals do not run between the merges. Ext4 avoids inodes that were freed a moment ago,
    // and the merges would measure its search for others.
    for round in 0..ROUNDS {
        rm.push(timed(|| run(Command::new("rm").arg("-rf").arg(target("cp", round)))));
        remove_one.push(timed(|| Remove::new().threads(ONE).run(target("bare", round)).expect("removed")));
        remove_two.push(timed(|| Remove::new().threads(TWO).run(target("one", round)).expect("removed")));
        remove_usual.push(timed(|| remove_tree(target("two", round)).expect("removed")));
    }
    let (count, names) = (trees.len(), packages.join(" "));
    println!("\n{count} Debian packages of {names}: {} files, {} directories", merged.linked, merged.directories);
    let ours = [("one thread", one), ("two threads", two), ("(mkdirat and linkat alone, names at hand)", bare)];
    table("merge", "cp -n --archive --link, a layer at a time", cp, ours);
    let ours = [("one thread", remove_one), ("two threads", remove_two), ("default number of threads", remove_usual)];
    table("removal", "rm -rf", rm, ours);
}

/// The system calls that no merge can avoid, made by one thread that knows all names beforehand.
/// Their time is the minimum for a merge.
struct Calls {
    /// The directories, each after its parent.
    directories: Vec<PathBuf>,
    /// For each directory of each layer: its path, its path in the target, and the files in it that
    /// no layer above has.
    parts: Vec<(PathBuf, PathBuf, Vec<OsString>)>,
}

impl Calls {
    fn of(trees: &[PathBuf]) -> Self {
        let mut seen = HashSet::new();
        let (mut directories, mut parts) = (Vec::new(), Vec::new());
        for tree in trees {
            let mut waiting = vec![PathBuf::new()];
            while let Some(path) = waiting.pop() {
                if seen.insert(path.clone()) {
                    directories.push(path.clone());
                }
                let mut files = Vec::new();
                for entry in fs::read_dir(tree.join(&path)).expect("a directory") {
                    let entry = entry.expect("an entry");
                    if entry.file_type().expect("a type").is_dir() {
                        waiting.push(path.join(entry.file_name()));
                    } else if seen.insert(path.join(entry.file_name())) {
                        files.push(entry.file_name());
                    }
                }
                parts.push((tree.join(&path), path, files));
            }
        }
        Self { directories, parts }
    }

    fn make(&self, target: &Path) {
        for path in &self.directories {
            fs::create_dir(target.join(path)).expect("a new directory");
        }
        let open = |path: &Path| openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).expect("a directory");
        for (from, to, files) in self.parts.iter().filter(|(_, _, files)| !files.is_empty()) {
            let (from, to) = (open(from), open(&target.join(to)));
            for name in files {
                linkat(&from, name, &to, name, AtFlags::empty()).expect("a link");
            }
        }
    }
}

/// Merges layers that all have files in the same directories. The cost of a file must not grow with
/// the number of layers.
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
            Remove::new().threads(TWO).run(&target).expect("removed");
        }
    }
    let [sixty, four_hundred] = per_file.map(median);
    println!("\na file of 400 layers with the same directories / one of 60: {:.2}", ratio(four_hundred, sixty));
    println!("  60 layers {sixty:?} a file, 400 layers {four_hundred:?}");
}

fn merge(threads: NonZeroUsize, trees: &[PathBuf], target: &Path) -> Merged {
    Merge::new().threads(threads).run(trees, target).expect("merged")
}

/// Copies the topmost layer first, and replaces nothing.
fn cp_merge(trees: &[PathBuf], target: &Path) {
    fs::create_dir(target).expect("a new directory");
    for tree in trees {
        run(Command::new("cp").args(["-n", "--archive", "--link"]).arg(tree.join(".")).arg(target));
    }
}

/// Returns the topmost 60 trees of these packages and their dependencies.
fn debian(dest: &Path, packages: &[&str]) -> Vec<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/debian-layers");
    run(Command::new(script).arg(dest).args(packages));
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
