use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

/// Everything on the machine that a run could leave behind, outside of its scratch directory.
#[derive(Debug, PartialEq, Eq)]
pub struct Traces {
    mounts: BTreeSet<String>,
    cgroups: BTreeSet<PathBuf>,
    processes: BTreeSet<String>,
}

impl Traces {
    /// Those that are there now.
    ///
    /// # Panics
    /// If they cannot be read.
    pub fn now() -> Self {
        Self { mounts: mounts(), cgroups: cgroups(), processes: processes() }
    }

    /// Whether a process of a run lives.
    pub fn lives(&self) -> bool {
        !self.processes.is_empty()
    }

    /// Whether something of a run is mounted.
    pub fn mounts(&self) -> bool {
        !self.mounts.is_empty()
    }
}

/// What is mounted in a run's directory, in the mount namespace of any process.
fn mounts() -> BTreeSet<String> {
    let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path().join("mountinfo"));
    // Those of processes that end meanwhile are gone with them.
    let tables = processes.filter_map(|table| fs::read_to_string(table).ok());
    tables
        .flat_map(|table| table.lines().filter(|line| line.contains("/layered-")).map(Into::into).collect::<Vec<_>>())
        .collect()
}

fn cgroups() -> BTreeSet<PathBuf> {
    let ours = |path: &Path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"layered-"));
    // A group of somebody else's may go while it is walked.
    let groups = WalkDir::new("/sys/fs/cgroup").max_depth(3).into_iter().filter_map(Result::ok);
    groups.map(walkdir::DirEntry::into_path).filter(|path| ours(path)).collect()
}

/// Processes in a run's cgroups, and runtimes, which are in none.
fn processes() -> BTreeSet<String> {
    let pids = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let says = |pid: &str, file: &str, all: &[&str]| {
        let text = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        all.iter().all(|part| text.contains(part))
    };
    pids.filter(|pid| says(pid, "cgroup", &["/layered-"]) || says(pid, "cmdline", &["--bundle\0", "/layered-"]))
        .collect()
}
