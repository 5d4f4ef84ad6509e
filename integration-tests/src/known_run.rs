//! A run of the `layered` command with a known result. `faults` and `kills` disturb it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use layer::Layer;
use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::Fixture;
use crate::strace::Program;

/// A `layered run` over a few layers, whose command reads, writes and deletes.
#[derive(Debug)]
pub struct KnownRun {
    /// The directories of the run.
    pub fixture: Fixture,
    /// The paths of the layers, one per line.
    list: String,
    options: &'static [&'static str],
    /// The path of the upper.
    pub upper: PathBuf,
}

/// Whether the disturbance leaves `layered` able to report the failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reported {
    /// The failure is always reported.
    Always,
    /// The report itself may be lost.
    IfPossible,
}

/// The number of layers.
const LAYERS: usize = 6;

/// The output of the command, from the first and the last layer.
const READ: &str = "0\n5\n";

impl KnownRun {
    /// A run that stacks all its layers.
    pub fn stacking() -> Self {
        Self::new(Path::new(""), &[])
    }

    /// A run that merges most of its layers first.
    pub fn merging() -> Self {
        // The paths are so long that a page of mount options holds only two of them.
        let deep: PathBuf = std::iter::repeat_n("d".repeat(250), 5).collect();
        Self::new(&deep, &["--rung", "mount-paths"])
    }

    /// A run over layers that are in the directory `below` of the store.
    fn new(below: &Path, options: &'static [&'static str]) -> Self {
        let fixture = Fixture::new();
        let mut list = String::new();
        for n in 0..LAYERS {
            let layer = fixture.layer(below.join(n.to_string()), |tree| {
                fs::create_dir(tree.join("deps")).unwrap();
                fs::write(tree.join("deps").join(n.to_string()), format!("{n}\n")).unwrap();
                fs::write(tree.join("top"), format!("{n}\n")).unwrap();
                symlink("top", tree.join("link")).unwrap();
                // A whiteout.
                mknodat(CWD, tree.join("tmp"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
            });
            list += &format!("{}\n", layer.path().display());
        }
        let list_file = fixture.path().join("list");
        fs::write(&list_file, &list).unwrap();
        mknodat(CWD, fixture.path().join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let upper = fixture.path().join("upper");
        Self { fixture, list, options, upper }
    }

    /// Returns the command.
    pub fn command(&self) -> Command {
        self.reading("list")
    }

    /// Returns the command with a FIFO as the list of its layers.
    pub fn program(&self) -> Program<'_> {
        Program { command: self.reading("fifo"), fifo: self.fixture.path().join("fifo"), text: &self.list }
    }

    fn reading(&self, list: &str) -> Command {
        // Without `last_used` files, the run makes the same system calls every time.
        for layer in self.list.lines() {
            let _never_used = fs::remove_file(Layer::at(layer).last_used_path());
        }
        let mut command = self.fixture.layered_run();
        command.arg("--layers-from").arg(self.fixture.path().join(list)).args(self.options);
        command.arg("--upper").arg(&self.upper).args(["--", "sh", "-c"]);
        command.arg("cat /top /deps/5; echo new > /deps/new; rm /top");
        command
    }

    /// Whether the upper exists.
    ///
    /// # Panics
    /// If the upper exists but lacks a part.
    pub fn has_upper(&self) -> bool {
        let is_there = self.upper.exists();
        assert!(!is_there || is_whole(&self.upper), "the upper is incomplete");
        is_there
    }

    /// Removes the upper if it exists.
    pub fn remove_upper(&self) {
        if self.has_upper() {
            fs::remove_dir_all(&self.upper).unwrap();
        }
    }

    /// Lists what is wrong with the result of a run. Removes the result.
    pub fn wrong(&self, output: &Output, reported: Reported) -> Vec<String> {
        let mut wrong = Vec::new();
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        // The runtime may have printed messages of its own before.
        let quoted = ["its message is above", "and logged no reason"].iter().any(|text| stderr.contains(text));
        let counts = |line: &&str| !line.starts_with("layered: warn: ") && (line.starts_with("layered: ") || !quoted);
        let said: Vec<_> = stderr.lines().filter(counts).collect();
        match (output.status.code(), &said[..]) {
            (Some(0), []) if stdout == READ && self.has_upper() => {}
            (Some(125), [line]) if is_clear(line) && !self.has_upper() => {}
            (Some(125), [] | ["layered: "]) if reported == Reported::IfPossible && !self.has_upper() => {}
            (code, _) => wrong.push(format!("{code:?}, {stdout:?}, {stderr}")),
        }
        let left = self.fixture.left();
        for path in &left {
            let shown = path.display();
            let words = [format!("{shown} is left"), format!("kept at {shown}"), format!("cannot remove {shown}")];
            if !words.iter().any(|words| stderr.contains(words)) {
                wrong.push(format!("{shown} is left without a word: {stderr}"));
            }
            let kept = path.file_name().unwrap().as_encoded_bytes().starts_with(b"kept-");
            if (kept || stderr.contains("overlay_umount: cannot unmount")) && !is_whole(&path.join("upper")) {
                wrong.push(format!("{} is left, but not as it was: {stderr}", path.display()));
            }
            if kept {
                fs::remove_dir_all(path).unwrap();
            }
        }
        if !left.is_empty() {
            self.fixture.sweep();
        }
        self.remove_upper();
        wrong.extend(Some(self.fixture.difference()).filter(|difference| !difference.is_empty()));
        wrong
    }
}

/// Whether an upper contains everything that the command did.
fn is_whole(upper: &Path) -> bool {
    fs::read(upper.join("deps/new")).is_ok_and(|new| new == b"new\n") && upper.join("top").symlink_metadata().is_ok()
}

/// Whether a line says what failed and on which path. Some failures have no path.
fn is_clear(line: &str) -> bool {
    let pathless = ["open .", "runc", "overlay", "private mount namespace", "signals", "eventfd", "random bits"];
    line.starts_with("layered: ")
        && (line.contains("cannot ") || line.contains(" failed "))
        && (line.contains('/') || pathless.iter().any(|thing| line.contains(thing)))
}
