//! Finds what the runs of one fixture leave on the machine: mounts, cgroups and processes. It
//! ignores other runs; `run_names` knows which runs belong to the fixture.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

/// Everything that the runs of one fixture could leave behind outside the fixture's directory.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Traces {
    /// Lines of mount tables.
    mounts: BTreeSet<String>,
    cgroups: BTreeSet<PathBuf>,
    processes: BTreeSet<i32>,
}

impl Traces {
    /// Finds the traces of the runs whose directories are in `dir`, at any depth, and whose names
    /// are `runs`.
    ///
    /// - A mount belongs to a run if its line in any process's mount table names a run's directory
    ///   in `dir`, as the mount point or in an option.
    /// - A cgroup belongs to a run by its name. The names must be known in advance, because a
    ///   cgroup outlives the run's directory.
    /// - A process belongs to a run if it is in one of these cgroups, if it is a runtime whose
    ///   bundle is in `dir`, or if it has one of these mounts and the test's process has not.
    ///
    /// `dir` must have no symbolic links, because the kernel and the runtimes show real paths.
    ///
    /// # Panics
    /// If `/proc` cannot be read.
    pub fn of(dir: &Path, runs: &BTreeSet<String>) -> Self {
        let mut traces = Self { cgroups: cgroups(runs), ..Self::default() };
        // mountinfo escapes some characters (proc_pid_mountinfo(5)). A path of tempfile contains
        // none of them.
        let in_dir = [dir.as_os_str().as_bytes(), b"/"].concat();
        let mounts_of = |pid: i32| -> BTreeSet<String> {
            // The table of a process that has ended cannot be read. Its mounts no longer exist.
            let table = fs::read(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
            let ours = table.split(|byte| *byte == b'\n').filter(|line| contains_run(line, &in_dir));
            ours.map(|line| String::from_utf8_lossy(line).into_owned()).collect()
        };
        let own = mounts_of(std::process::id() as i32);
        for pid in pids() {
            let mounts = mounts_of(pid);
            if !mounts.is_subset(&own) || is_in_cgroup(pid, runs) || is_runtime(pid, &in_dir) {
                traces.processes.insert(pid);
            }
            traces.mounts.extend(mounts);
        }
        traces
    }

    /// Whether no trace was found.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a process of a run is alive.
    pub fn lives(&self) -> bool {
        !self.processes.is_empty()
    }

    /// Whether a mount of a run exists.
    pub fn mounts(&self) -> bool {
        !self.mounts.is_empty()
    }

    /// Returns the processes of the runs.
    pub fn processes(&self) -> impl Iterator<Item = i32> + '_ {
        self.processes.iter().copied()
    }
}

fn pids() -> impl Iterator<Item = i32> {
    let names = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().file_name());
    names.filter_map(|name| name.to_str()?.parse().ok())
}

/// Whether the line of a mount table names the directory of a run in `in_dir`, a path that ends
/// with a slash.
fn contains_run(line: &[u8], in_dir: &[u8]) -> bool {
    let paths = line.windows(in_dir.len()).enumerate().filter(|(_, window)| *window == in_dir);
    paths.into_iter().any(|(start, _)| {
        // A space ends the path in the table; a comma or a colon ends it in an overlayfs option.
        let end =
            line[start..].iter().position(|byte| b" ,:".contains(byte)).map_or(line.len(), |length| start + length);
        line[start..end]
            .split(|byte| *byte == b'/')
            .any(|name| name.starts_with(b"layered-") || name.starts_with(b"kept-"))
    })
}

fn cgroups(runs: &BTreeSet<String>) -> BTreeSet<PathBuf> {
    let ours = |path: &Path| path.file_name().and_then(|name| name.to_str()).is_some_and(|name| runs.contains(name));
    // Another program may remove a cgroup during the walk.
    let groups = WalkDir::new("/sys/fs/cgroup").max_depth(3).into_iter().filter_map(Result::ok);
    groups.map(walkdir::DirEntry::into_path).filter(|path| ours(path)).collect()
}

fn is_in_cgroup(pid: i32, runs: &BTreeSet<String>) -> bool {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    groups.lines().any(|line| line.split('/').any(|name| runs.contains(name)))
}

/// Whether the process has the arguments of a runtime and its bundle is in the directory.
fn is_runtime(pid: i32, in_dir: &[u8]) -> bool {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut arguments = arguments.split(|byte| *byte == 0);
    arguments.any(|argument| argument == b"--bundle") && arguments.next().is_some_and(|path| path.starts_with(in_dir))
}
