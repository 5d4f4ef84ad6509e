use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

/// Everything on the machine that a run could leave behind, outside of its scratch directory.
#[derive(Debug, PartialEq, Eq)]
pub struct Traces {
    mounts: BTreeSet<String>,
    containers: BTreeSet<PathBuf>,
    cgroups: BTreeSet<PathBuf>,
    processes: BTreeSet<String>,
}

impl Traces {
    /// Those that are there now.
    ///
    /// # Panics
    /// If they cannot be read.
    pub fn now() -> Self {
        Self { mounts: mounts(), containers: containers(), cgroups: cgroups(), processes: processes() }
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

/// Overlays, and whatever is mounted in a run's directory.
fn mounts() -> BTreeSet<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().filter(|line| line.contains(" - overlay ") || line.contains("/layered-")).map(Into::into).collect()
}

/// What runtimes note down where nobody tells them otherwise.
fn containers() -> BTreeSet<PathBuf> {
    let dirs = ["/run/runc", "/run/crun"].into_iter().filter_map(|dir| fs::read_dir(dir).ok());
    dirs.flatten().map(|entry| entry.unwrap().path()).collect()
}

fn cgroups() -> BTreeSet<PathBuf> {
    let ours = |path: &Path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"layered-"));
    // A group of somebody else's may go while it is walked.
    let groups = WalkDir::new("/sys/fs/cgroup").max_depth(3).into_iter().filter_map(Result::ok);
    groups.map(walkdir::DirEntry::into_path).filter(|path| ours(path)).collect()
}

/// Processes in a run's cgroups.
fn processes() -> BTreeSet<String> {
    let pids = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    pids.filter(|pid| {
        fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|groups| groups.contains("/layered-"))
    })
    .collect()
}
