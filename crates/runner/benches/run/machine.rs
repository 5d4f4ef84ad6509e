//! Describes the machine and the program versions at the head of the results.
//! [`markdown`](crate::markdown) formats the tables below.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Returns the head of the results.
pub(crate) fn description(rounds: usize) -> String {
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        processor.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("", |it| it.1);
    let processors = std::thread::available_parallelism().map_or(1, Into::into);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default();
    let mut text = format!(
        "# Results\n\n{processors} × {model}, Linux {}, on {}, load {load} at the start; {rounds} rounds. Times are medians, with \
         minima in parentheses. Ratios are those of the medians and minima of the same rounds.\n\n",
        kernel.trim(),
        file_system(&std::env::temp_dir()).unwrap_or_else(|| "an unknown file system".into()),
    );
    for program in ["runc", "crun", "podman", "bwrap", "systemd-nspawn"] {
        let version = Command::new(program).arg("--version").output();
        let version = version.map_or_else(
            |_| "not installed".into(),
            |output| String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned(),
        );
        text.push_str(&format!("- {program}: {version}\n"));
    }
    text
}

/// Returns the type and the options of the file system of `dir`, from proc_pid_mountinfo(5).
fn file_system(dir: &Path) -> Option<String> {
    let dir = dir.canonicalize().ok()?;
    let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mounts = table.lines().filter_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let point = mount.split(' ').nth(4)?;
        let mut kind = kind.split(' ');
        let (name, options) = (kind.next()?, kind.nth(1)?);
        dir.starts_with(point).then(|| (point.len(), format!("{name} ({options})")))
    });
    // Of two mounts on the same directory, the later one is visible.
    mounts.max_by_key(|(length, _)| *length).map(|(_, text)| text)
}
