//! Merges of large trees: deeper than any path, very wide, with many layers and few descriptors.

use std::ffi::OsString;
use std::fs;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use integration_tests::stack::{Dir, Mount, new_merge, require_root};
use integration_tests::tree::Snapshot;
use nix::sys::resource::{UsageWho, getrusage};
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};

use super::{Stack, agree};

/// Makes `depth` nested directories `name`, with a file in the last one and in every hundredth.
fn make_deep(path: &Path, name: &str, depth: usize, content: &str) {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut dir = openat(CWD, path, flags, Mode::empty()).unwrap();
    for level in 1..=depth {
        mkdirat(&dir, name, Mode::from_raw_mode(0o755)).unwrap();
        dir = openat(&dir, name, flags, Mode::empty()).unwrap();
        if level % 100 == 0 || level == depth {
            write_in(&dir, content);
        }
    }
}

fn write_in(dir: &OwnedFd, content: &str) {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    let file = openat(dir, content, flags, Mode::from_raw_mode(0o644)).unwrap();
    rustix::io::write(file, content.as_bytes()).unwrap();
}

#[test]
fn trees_deeper_than_the_longest_path_are_merged() {
    for (name, depth) in [("d".to_owned(), 2500), ("n".repeat(255), 60)] {
        let stack = Stack::new(&[], &[Dir::new(), Dir::new(), Dir::new()], &Dir::new());
        make_deep(&stack.sources[0], &name, depth - 10, "top");
        make_deep(&stack.sources[1], &name, depth, "middle");
        make_deep(&stack.base, &name, depth / 2, "base");
        let merged = stack.compare(&new_merge()).unwrap();
        assert_eq!(merged.directories, depth as u64 + 1);
        for path in stack.sources.iter().chain([&stack.merged(), &stack.base]) {
            layer::remove_tree(path).unwrap();
            assert!(!path.exists(), "{}", path.display());
        }
    }
}

/// Only descriptors can reach this depth. An algorithm that is quadratic in the depth would take
/// many minutes.
#[test]
fn a_tree_60000_levels_deep_is_merged() {
    let stack = Stack::new(&[], &[Dir::new(), Dir::new()], &Dir::new());
    make_deep(&stack.sources[0], "d", 60_000, "top");
    let merged = new_merge().run(&stack.sources, stack.merged()).unwrap();
    assert_eq!((merged.directories, merged.linked), (60_001, 600));
    for path in [&stack.sources[0], &stack.merged()] {
        layer::remove_tree(path).unwrap();
        assert!(!path.exists(), "{}", path.display());
    }
}

#[test]
fn a_directory_of_100000_entries_is_merged() {
    let stack = Stack::new(&[], &[Dir::new(), Dir::new()], &Dir::new().with("wide", Dir::new().file("base", "")));
    let wide = stack.sources[1].join("wide");
    fs::create_dir(&wide).unwrap();
    for number in 0..100_000 {
        fs::File::create(wide.join(number.to_string())).unwrap();
    }
    let top = stack.sources[0].join("wide");
    fs::create_dir(&top).unwrap();
    for number in (0..100_000).step_by(1000) {
        fs::write(top.join(number.to_string()), "top").unwrap();
    }
    let merged = stack.compare(&new_merge()).unwrap();
    assert_eq!((merged.linked, merged.directories), (100_000, 2));
    layer::remove_tree(stack.merged()).unwrap();
}

const LAYERS: usize = 1000;
const LEVELS: usize = 50;

#[test]
fn a_thousand_deep_layers_need_few_descriptors() {
    require_root();
    // A limit applies to the whole process, and other tests run in this one.
    let output = Command::new("sh")
        .args(["-c", "ulimit -n 1024 && exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "merge::scale::many_layers_in_this_process"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
#[ignore = "is run with few descriptors by another test"]
fn many_layers_in_this_process() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    assert_eq!(limit, Some(1024), "run a_thousand_deep_layers_need_few_descriptors");
    let dir = tempfile::tempdir().unwrap();
    let layers: Vec<_> = (0..LAYERS).map(|number| dir.path().join(number.to_string())).collect();
    let deep: PathBuf = (0..LEVELS).map(|level| format!("level{level}")).collect();
    for (number, layer) in layers.iter().enumerate() {
        let path = layer.join(&deep);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join(format!("of{number}")), "").unwrap();
        fs::write(path.join("of all"), number.to_string()).unwrap();
    }
    let target = dir.path().join("merged");
    let merged = new_merge().run(&layers, &target).unwrap();
    assert_eq!((merged.directories, merged.linked), (LEVELS as u64 + 1, LAYERS as u64 + 1));
    assert_eq!(fs::read_to_string(target.join(&deep).join("of all")).unwrap(), "0");
    assert_eq!(fs::read_dir(target.join(&deep)).unwrap().count(), LAYERS + 1);
    layer::remove_tree(&target).unwrap();
    assert!(!target.exists());
}

#[test]
fn memory_does_not_grow_with_the_number_of_files() {
    require_root();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "merge::scale::peak_memory_of_this_process"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    let peaks: Vec<i64> = text.lines().filter_map(|line| line.strip_prefix("peak ")?.parse().ok()).collect();
    let [few, many] = peaks[..] else { panic!("{text}{}", String::from_utf8_lossy(&output.stdout)) };
    assert!(many - few < 1024, "{few} KiB for few files, {many} KiB for many");
}

#[test]
#[ignore = "is run in a process of its own by another test"]
fn peak_memory_of_this_process() {
    // The trees have 3,000 and 60,000 files, and no directory has more than 60 entries. The first
    // merge touches the pages of the program itself, so they do not count in the difference.
    for width in [1, 20] {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..50 * width {
            let path = dir.path().join(format!("layer/{}/{}", n % 50, n / 50));
            fs::create_dir_all(&path).unwrap();
            (0..60).for_each(|name| drop(fs::File::create(path.join(name.to_string())).unwrap()));
        }
        let merged = new_merge().run(&[dir.path().join("layer")], dir.path().join("merged")).unwrap();
        assert_eq!(merged.linked, 3000 * width as u64);
        layer::remove_tree(dir.path().join("merged")).unwrap();
        eprintln!("\npeak {}", getrusage(UsageWho::RUSAGE_SELF).unwrap().max_rss());
    }
}

#[test]
fn a_stack_of_480_layers_is_merged() {
    let layers: Vec<_> = (0..480)
        .map(|number: usize| {
            let dir = Dir::new().file("of all", &number.to_string()).file(number.to_string(), "");
            let dir = if number % 97 == 96 { dir.opaque() } else { dir.whiteout((number + 1).to_string()) };
            Dir::new().with("dir", dir.with((number % 7).to_string(), Dir::new().file(number.to_string(), "")))
        })
        .collect();
    let stack = Stack::new(&[], &layers, &Dir::new().with("dir", Dir::new().file("base", "")));
    stack.compare(&new_merge().threads(NonZeroUsize::new(4).unwrap())).unwrap();
}

#[test]
fn a_merge_of_merges_is_the_merge_of_all() {
    let layer = |number: usize| {
        let names = [OsString::from("same"), number.to_string().into()];
        let dir = names.iter().fold(Dir::new(), |dir, name| dir.file(name, &number.to_string()));
        Dir::new().with("dir", if number % 3 == 2 { dir.opaque() } else { dir.whiteout((number + 2).to_string()) })
    };
    let layers: Vec<_> = (0..6).map(layer).collect();
    let mut stack = Stack::new(&[], &layers, &Dir::new().with("dir", Dir::new().file("base", "")));
    let expected = Snapshot::of(Mount::read_only(&stack.all()).unwrap()).unwrap();
    let parts: Vec<_> = ["upper", "lower"].map(|name| stack.dir.path().join(name)).into();
    for (part, sources) in parts.iter().zip(stack.sources.chunks(3)) {
        new_merge().run(sources, part).unwrap();
    }
    stack.sources = parts;
    stack.compare(&new_merge()).unwrap();
    let mount = Mount::read_only(&stack.with_merged(&stack.merged())).unwrap();
    agree(&expected, &Snapshot::of(mount.as_fd()).unwrap()).unwrap();
}
