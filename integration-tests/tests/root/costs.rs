//! Holds the system calls of a run and of an import to docs/bench/budget.txt, and limits the memory
//! of imports and exports. scripts/check-instructions holds the instructions.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use integration_tests::strace::{Program, count};
use integration_tests::{Fixture, find, layered};
use rustix::fs::{CWD, FileType, Mode, mknodat};

/// Returns the number after `name: ` in the budget.
fn allowed(name: &str) -> usize {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/bench/budget.txt");
    let text = fs::read_to_string(path).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    line.unwrap_or_else(|| panic!("no {name:?} in the budget")).parse().unwrap()
}

#[test]
fn a_process_that_waits_releases_the_pages_of_its_program() {
    let fixture = Fixture::new();
    let mut command = fixture.layered_script(&[], "echo; read line; true");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
    let status = || (kilobytes(&child, "RssFile"), kilobytes(&child, "VmHWM"));
    // The kernel reports no event for it.
    let end = Instant::now() + Duration::from_secs(60);
    let (mut resident, mut peak) = status();
    while resident > peak / 4 && Instant::now() < end {
        thread::sleep(Duration::from_millis(20));
        (resident, peak) = status();
    }
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    assert!(resident <= peak / 4, "{resident} kB of {peak} kB stay resident");
}

/// Returns a number of `/proc/PID/status` in kB.
fn kilobytes(process: &Child, name: &str) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.unwrap().trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn the_memory_of_an_image_does_not_grow_with_its_size() {
    /// The most memory that any large image takes beyond that of a small one without compression,
    /// which is mostly that of the program. An export with the two threads of zstd takes 9 MB.
    const MOST_KILOBYTES: usize = 12_000;
    let dir = tempfile::tempdir().unwrap();
    // The numbers do not repeat within what a compressor remembers.
    let tree = |name: &str, numbers: u64| {
        let tree = dir.path().join(name);
        fs::create_dir(&tree).unwrap();
        let content: Vec<u8> =
            (0..numbers).flat_map(|number| (number.wrapping_mul(number) << 7).to_le_bytes()).collect();
        fs::write(tree.join("file"), content).unwrap();
        tree
    };
    // Even the small one does not fit into a pipe, so that an import has begun when it is written.
    let [small, large] = [("small", 200_000), ("large", 5_000_000)].map(|(name, numbers)| tree(name, numbers));
    let export = |tree: &Path, zip: &str| {
        let fifo = tree.with_extension(zip);
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let mut command = layered();
        command.args(["export", "--zip", zip, "--rootfs"]).arg(tree).arg(format!("oci-archive:{}:x", fifo.display()));
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        // The first byte of an archive comes when everything is compressed.
        let mut archive = File::open(&fifo).unwrap();
        archive.read_exact(&mut [0]).unwrap();
        let peak = kilobytes(&child, "VmHWM");
        std::io::copy(&mut archive, &mut std::io::sink()).unwrap();
        assert!(child.wait().unwrap().success());
        peak
    };
    let import = |tree: &Path, option: &str| {
        let mut tar = Command::new(find("tar"));
        let archive = tar.args(["--create", option, "--directory"]).arg(tree).arg(".").output().unwrap().stdout;
        let (most, end) = archive.split_at(archive.len() - 10);
        let base = tree.with_extension(format!("base{option}"));
        let mut command = layered();
        command.args(["import", "-"]).arg(&base).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(most).unwrap();
        let peak = kilobytes(&child, "VmHWM");
        input.write_all(end).unwrap();
        drop(input);
        assert!(child.wait().unwrap().success());
        peak
    };
    let compare = |measure: &dyn Fn(&Path, &str) -> usize, options: [&str; 3]| {
        let least = measure(&small, options[0]);
        for option in options {
            let peak = measure(&large, option);
            eprintln!("{option}: {peak} kB of memory; {least} kB for a small image without compression");
            assert!(peak <= least + MOST_KILOBYTES, "{option}: {peak} kB are too many for {least} kB");
        }
    };
    compare(&export, ["none", "gzip", "zstd"]);
    compare(&import, ["--format=gnu", "--gzip", "--zstd"]);
}

#[test]
fn the_system_calls_of_a_run_stay_within_the_budget() {
    let fixture = Fixture::new();
    let log = log_of_a_run(&fixture, 30, None);
    compare("system calls over 30 layers", count(&log));
    // The runtime's start must not copy the caller's memory, however much there is.
    let start = log.lines().find(|line| line.contains("CLONE_NEWPID")).expect("the runtime is started");
    assert!(start.contains("CLONE_VM|") && start.contains("CLONE_VFORK"), "{start}");
}

#[test]
fn the_system_calls_of_a_step_stay_within_the_budget() {
    let fixture = Fixture::new();
    let new = fixture.store().join("new");
    // Wherever the store is, so many paths do not fit into mount options of one page, and the mount
    // uses short names.
    compare("system calls of a step over 200 layers", count(&log_of_a_run(&fixture, 200, Some(&new))));
}

/// Returns the log of `layered run` over this many layers. With `commit`, the run makes that layer.
fn log_of_a_run(fixture: &Fixture, layers: usize, commit: Option<&Path>) -> String {
    find("strace");
    let list: String =
        fixture.numbered_layers(layers).iter().map(|layer| format!("{}\n", layer.path().display())).collect();
    let fifo = fixture.path().join("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();
    let log = || {
        let mut command = fixture.layered_run();
        command.arg("--layers-from").arg(&fifo);
        if let Some(new) = commit {
            command.arg("--commit").arg(new);
        }
        command.args(["--", "true"]);
        let log = Program { command, fifo: fifo.clone(), text: &list }.log();
        if let Some(new) = commit {
            assert!(new.join("layer.json").exists());
            fs::remove_dir_all(new).unwrap();
        }
        log
    };
    // The first run makes the sentinels. A busy machine adds repeated calls and never removes any,
    // so the smallest of five counts is used.
    log();
    std::iter::repeat_with(log).take(5).min_by_key(|log| count(log)).unwrap()
}

/// Compares a count with the budget.
fn compare(name: &str, count: usize) {
    let budget = allowed(name);
    eprintln!("{name}: {count}; {budget} allowed and a twentieth");
    assert!(count <= budget + budget / 20, "{name}: {count} are more than docs/bench/budget.txt allows");
    // A budget that is too wide must be tightened.
    assert!(count >= budget - budget / 10, "{name}: {count} are fewer: write it down in docs/bench/budget.txt");
}

#[test]
fn the_system_calls_of_an_import_stay_within_the_budget() {
    let dir = tempfile::tempdir().unwrap();
    let archive = |name: &str, directories: usize| {
        let (tree, archive) = (dir.path().join(name), dir.path().join(format!("{name}.tar")));
        for number in 0..directories {
            let directory = tree.join(number.to_string());
            fs::create_dir_all(&directory).unwrap();
            for file in 0..10 {
                fs::write(directory.join(file.to_string()), "a small file\n").unwrap();
            }
        }
        let mut tar = Command::new(find("tar"));
        let status = tar.arg("--create").arg("--file").arg(&archive).arg("--directory").arg(&tree).arg(".").status();
        assert!(status.unwrap().success());
        archive
    };
    let calls = |archive: &Path, option: Option<&str>| {
        let (log, base) = (dir.path().join("log"), dir.path().join("base"));
        let mut strace = Command::new(find("strace"));
        strace.args(["--follow-forks", "--output"]).arg(&log).arg("--").arg(layered().get_program());
        strace.arg("import").args(option).arg(format!("tar:{}", archive.display())).arg(&base);
        let output = strace.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(fs::read_dir(base.join("fs/0")).unwrap().count(), 10);
        fs::remove_dir_all(base).unwrap();
        count(&String::from_utf8_lossy(&fs::read(log).unwrap()))
    };
    let (few, many) = (archive("few", 10), archive("many", 110));
    // The difference excludes the start and the end of an import.
    let of_many = |option| calls(&many, option) - calls(&few, option);
    let import = of_many(Some("--no-digest"));
    compare("system calls of an import of 1000 files in 100 directories", import);
    compare("system calls of its digest", of_many(None) - import);
}
