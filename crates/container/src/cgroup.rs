//! The control group of a run. `layout` classifies the machine's hierarchies, and `moves` makes the
//! first move into a group fast.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, openat};
use serde::{Serialize, Serializer};

use crate::error::{Error, Result};
use crate::kernel_file::read_kernel_text;
use crate::template::Config;
use crate::user_namespace::UserNamespace;

mod delegation;
mod layout;
mod moves;

pub(crate) use delegation::is_delegated;
pub use layout::CgroupLayout;
pub use moves::PreparedMoves;

/// One run's control group, in every hierarchy of the machine: v1, v2, or both side by side.
///
/// The group belongs to one container. The runtime creates it, because `linux.cgroupsPath` is
/// [`container_path`](Self::container_path). After a detached start, the runtime does not remove
/// it. The group and its usage counters remain until [`remove`](Self::remove).
#[derive(Debug, Clone)]
pub struct Cgroup {
    name: String,
    hierarchies: &'static [Hierarchy],
}

/// The resources that a container has used, as far as the machine's controllers report them.
///
/// As JSON: `{"cpu_seconds":0.25,"peak_memory_bytes":4096,"out_of_memory":false}`. The first two
/// are null if no controller reports them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Usage {
    /// The processor time of all processes of the container, in user and in kernel mode.
    #[serde(rename = "cpu_seconds", serialize_with = "in_seconds")]
    pub cpu_time: Option<Duration>,
    /// The peak memory use in bytes, including the page cache.
    pub peak_memory_bytes: Option<u64>,
    /// Whether the kernel killed a process of the container because the container had reached its
    /// memory limit.
    pub out_of_memory: bool,
}

fn in_seconds<S: Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(|time| time.as_secs_f64()).serialize(serializer)
}

/// A mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    mount_point: PathBuf,
    version: Version,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Version {
    /// The controllers that the hierarchy is mounted with.
    V1(Vec<String>),
    V2,
}

impl Cgroup {
    /// Returns the group `/<name>`, without creating it: the runtime does that. In a [user
    /// namespace](UserNamespace), the group is below that of this process.
    ///
    /// # Errors
    /// [`Error::Io`] if the mount table cannot be read.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let (name, hierarchies) = (name.into(), mounted()?);
        let parent = if UserNamespace::is_here() { delegation::parent_of_runs() } else { None };
        Ok(Self { name: parent.map_or_else(|| name.clone(), |parent| parent.child(&name)), hierarchies })
    }

    /// Returns the group at `path`, which has no slash before it.
    pub(crate) fn at(path: &str) -> Result<Self> {
        Ok(Self { name: path.into(), hierarchies: mounted()? })
    }

    /// Returns the group `name` for a run with `config`. Returns `None` if the configuration names
    /// a group itself. Also returns `None` in a [user namespace](UserNamespace) if the
    /// configuration has no limits: most users may not create groups, and need none then.
    ///
    /// # Errors
    /// [`Error::Io`] if the mount table cannot be read.
    pub fn of_run(name: impl Into<String>, config: &Config) -> Result<Option<Self>> {
        if config.cgroups_path().is_some() || (UserNamespace::is_here() && config.controllers().is_empty()) {
            return Ok(None);
        }
        Self::new(name).map(Some)
    }

    /// Checks that this process can limit groups by these controllers. Runtimes silently ignore
    /// some limits whose controller is missing.
    ///
    /// In a [user namespace](UserNamespace), this needs cgroup v2, and a group that the system has
    /// delegated to the user. This process then moves itself into a group below its own, because
    /// the kernel passes no controllers on from a group with processes.
    ///
    /// # Errors
    /// [`Error::NoController`] for the first missing controller; [`Error::NotDelegated`] for the
    /// first one that the user may not use; [`Error::NotPassedOn`] for the first one that the
    /// user's group lacks; [`Error::Io`] if the mount table cannot be read.
    pub fn require(controllers: impl IntoIterator<Item = impl Into<String>>) -> Result<()> {
        let controllers: Vec<String> = controllers.into_iter().map(Into::into).collect();
        for controller in &controllers {
            if !mounted()?.iter().any(|hierarchy| hierarchy.has(controller)) {
                return Err(Error::NoController { controller: controller.clone() });
            }
        }
        if UserNamespace::is_here() { delegation::require(&controllers) } else { Ok(()) }
    }

    /// Returns the value that the container's `linux.cgroupsPath` must have.
    pub fn container_path(&self) -> String {
        format!("/{}", self.name)
    }

    /// Returns the usage so far, including that of processes that have ended.
    pub fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for hierarchy in self.hierarchies {
            let group = hierarchy.group(&self.name);
            let text = |file: &str| read_kernel_text(group.join(file)).unwrap_or_default();
            let number = |file: &str| -> Option<u64> { text(file).trim().parse().ok() };
            match &hierarchy.version {
                Version::V1(controllers) => {
                    let has = |name: &str| controllers.iter().any(|controller| controller == name);
                    if has("cpuacct") {
                        usage.cpu_time = number("cpuacct.usage").map(Duration::from_nanos).or(usage.cpu_time);
                    }
                    if has("memory") {
                        usage.peak_memory_bytes = number("memory.max_usage_in_bytes").or(usage.peak_memory_bytes);
                        usage.out_of_memory |=
                            field(&text("memory.oom_control"), "oom_kill").is_some_and(|kills| kills > 0);
                    }
                }
                Version::V2 => {
                    let microseconds = || field(&text("cpu.stat"), "usage_usec");
                    usage.cpu_time = usage.cpu_time.or_else(|| microseconds().map(Duration::from_micros));
                    usage.peak_memory_bytes = usage.peak_memory_bytes.or_else(|| number("memory.peak"));
                    usage.out_of_memory |= field(&text("memory.events"), "oom_kill").is_some_and(|kills| kills > 0);
                }
            }
        }
        usage
    }

    /// Removes the group from every hierarchy in which it is empty.
    pub(crate) fn remove_if_empty(&self) {
        for hierarchy in self.hierarchies {
            let _ = remove_empty(&hierarchy.group(&self.name));
        }
    }

    /// Kills every process in the group. Then removes the group and all groups below it from every
    /// hierarchy. It is not an error if the group was never created.
    ///
    /// # Errors
    /// [`Error::Leftover`] for the first hierarchy in which the group still exists after one
    /// second. The group is still removed from the other hierarchies.
    pub fn remove(&self) -> Result<()> {
        let mut first = Ok(());
        for hierarchy in self.hierarchies {
            let group = hierarchy.group(&self.name);
            // In the usual case, the group is empty or does not exist. Only other groups need a
            // walk.
            if remove_empty(&group).is_err() {
                first = first.and(clear(&group));
            }
        }
        first
    }
}

impl Hierarchy {
    fn has(&self, controller: &str) -> bool {
        match &self.version {
            // cgroup v1 calls this controller `blkio`.
            Version::V1(controllers) if controller == "io" => controllers.iter().any(|name| name == "blkio"),
            Version::V1(controllers) => controllers.iter().any(|name| name == controller),
            Version::V2 => fs::read_to_string(self.mount_point.join("cgroup.controllers"))
                .is_ok_and(|names| names.split_whitespace().any(|name| name == controller)),
        }
    }

    fn group(&self, name: &str) -> PathBuf {
        self.mount_point.join(name)
    }

    /// Returns the group in this hierarchy that `groups` names, with a slash before it. `groups` is
    /// the content of `/proc/PID/cgroup` (cgroups(7)), with lines of the form
    /// `NUMBER:CONTROLLERS:PATH`. In the line of version 2, the number is 0 and the controllers are
    /// empty. Returns `None` if the group lies outside the caller's cgroup namespace.
    fn own_group<'a>(&self, groups: &'a str) -> Option<&'a str> {
        let group = groups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            let is_its = match &self.version {
                Version::V1(own) => controllers.split(',').any(|controller| own.iter().any(|name| name == controller)),
                Version::V2 => number == "0" && controllers.is_empty(),
            };
            is_its.then_some(path)
        })?;
        (!group.split('/').any(|name| name == "..")).then_some(group)
    }
}

/// Returns the number after `name` in a file whose lines each hold a name and a number.
fn field(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(key, _)| *key == name)?.1.trim().parse().ok()
}

/// Returns the hierarchies of this machine. They do not change while the machine runs.
fn mounted() -> Result<&'static [Hierarchy]> {
    static MOUNTED: OnceLock<Vec<Hierarchy>> = OnceLock::new();
    if let Some(hierarchies) = MOUNTED.get() {
        return Ok(hierarchies);
    }
    let path = "/proc/self/mountinfo";
    let table = read_kernel_text(path).map_err(Error::io("read", path))?;
    Ok(MOUNTED.get_or_init(|| hierarchies(&table)))
}

/// Returns the v1 and v2 hierarchies of a mount table in the format of proc_pid_mountinfo(5). Lists
/// a hierarchy once, even if it is mounted twice.
fn hierarchies(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((mount, kind)) = line.split_once(" - ") else { continue };
        let mount: Vec<_> = mount.split(' ').collect();
        let kind: Vec<_> = kind.split(' ').collect();
        let (Some(mount_point), [fs_type, _, options]) = (mount.get(4), &kind[..]) else { continue };
        let version = match *fs_type {
            "cgroup" => Version::V1(options.split(',').filter(|option| *option != "rw").map(Into::into).collect()),
            "cgroup2" => Version::V2,
            _ => continue,
        };
        if found.iter().all(|other| other.version != version) {
            found.push(Hierarchy { mount_point: mount_point.into(), version });
        }
    }
    found
}

/// Returns the mount point of the v2 hierarchy if the machine has v1 hierarchies beside it.
pub(crate) fn hybrid_mount_point() -> Option<&'static Path> {
    let hierarchies = mounted().ok()?;
    let v1 = hierarchies.iter().any(|hierarchy| matches!(hierarchy.version, Version::V1(_)));
    let v2 = hierarchies.iter().find(|hierarchy| hierarchy.version == Version::V2);
    v2.filter(|_| v1).map(|hierarchy| &*hierarchy.mount_point)
}

/// `CGROUP_SUPER_MAGIC` and `CGROUP2_SUPER_MAGIC` in linux/magic.h.
const MAGIC: [u64; 2] = [0x0027_e0eb, 0x6367_7270];

/// Removes an empty group. It is not an error if the group does not exist.
fn remove_empty(group: &Path) -> io::Result<()> {
    match fs::remove_dir(group) {
        Err(error) if !is_gone(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Kills the processes in `group` and below, and removes the groups, deepest first.
fn clear(group: &Path) -> Result<()> {
    // A directory that is not in a cgroup file system is not a group: `Runtime::run` hides the v2
    // hierarchy from crun under a tmpfs.
    let magic = rustix::fs::statfs(group).map(|statfs| statfs.f_type as u64);
    if !magic.is_ok_and(|magic| MAGIC.contains(&magic)) {
        return Ok(());
    }
    // A killed process leaves its group only when it is reaped. v1 reports no event for that, so
    // the loop polls: it waits 1 ms first and doubles the wait each time.
    let deadline = Instant::now() + Duration::from_secs(1);
    let mut wait = Duration::from_millis(1);
    loop {
        let source = match clear_once(group) {
            Ok(()) => return Ok(()),
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) => error,
        };
        if Instant::now() >= deadline {
            return Err(Error::Leftover { path: group.into(), source });
        }
        std::thread::sleep(wait);
        wait *= 2;
    }
}

fn clear_once(group: &Path) -> io::Result<()> {
    for name in groups_in(group)? {
        clear_once(&group.join(name))?;
    }
    let processes = fs::read_to_string(group.join("cgroup.procs"))?;
    // 0 stands for a process of another PID namespace. It does not belong to this run, and kill(2)
    // would take 0 for the caller's own process group.
    for pid in processes.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0) {
        match kill(Pid::from_raw(pid), Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    fs::remove_dir(group)
}

/// Returns the names of the groups directly in `group`. Does not use std's `read_dir`, which panics
/// if it cannot close the directory.
fn groups_in(group: &Path) -> io::Result<Vec<OsString>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut names = Vec::new();
    for entry in Dir::new(openat(CWD, group, flags, Mode::empty())?)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if entry.file_type() == FileType::Directory && name != b"." && name != b".." {
            names.push(OsString::from_vec(name.into()));
        }
    }
    Ok(names)
}

/// Returns whether the error means that the group no longer exists. A cgroup file returns ENODEV
/// while its group is being removed.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ENODEV as i32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mutated;

    proptest! {
        #![proptest_config(mutated::config())]

        #[test]
        fn a_mount_table_has_at_most_one_v2_hierarchy(text in mutated::text(["30 22 0:26 / /sys/fs/cgroup rw shared:9 - cgroup cgroup rw,cpu\n33 30 0:29 / /u rw - cgroup2 cgroup2 rw\n"])) {
            let found = hierarchies(&text);
            prop_assert!(found.iter().filter(|hierarchy| hierarchy.version == Version::V2).count() <= 1);
        }
    }

    #[test]
    fn controllers_are_found_in_either_version() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.controllers"), "cpuset cpu io memory\n").unwrap();
        let unified = Hierarchy { mount_point: dir.path().into(), version: Version::V2 };
        let names = vec!["blkio".into(), "pids".into()];
        let legacy = Hierarchy { mount_point: "/nowhere".into(), version: Version::V1(names) };
        for (name, v2, v1) in
            [("cpu", true, false), ("io", true, true), ("pids", false, true), ("thermal", false, false)]
        {
            assert_eq!((unified.has(name), legacy.has(name)), (v2, v1), "{name}");
        }
    }

    #[test]
    fn only_directories_are_groups() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b", "a"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("cgroup.procs"), "").unwrap();
        let mut names = groups_in(dir.path()).unwrap();
        names.sort();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(groups_in(&dir.path().join("gone")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn usage_is_read_from_both_versions() {
        let dir = tempfile::tempdir().unwrap();
        let group = |version: &str| {
            let group = dir.path().join(version).join("run");
            fs::create_dir_all(&group).unwrap();
            group
        };
        let (v1, v2) = (group("v1"), group("v2"));
        let names = ["cpuacct", "memory"].map(String::from).to_vec();
        let hierarchies = [("v1", Version::V1(names)), ("v2", Version::V2)];
        let hierarchies = hierarchies.map(|(name, version)| Hierarchy { mount_point: dir.path().join(name), version });
        let cgroup = Cgroup { name: "run".into(), hierarchies: Box::leak(Box::new(hierarchies)) };
        assert_eq!(cgroup.usage(), Usage::default());
        fs::write(v2.join("cpu.stat"), "usage_usec 7\nuser_usec 4\n").unwrap();
        fs::write(v2.join("memory.peak"), "4096\n").unwrap();
        let of_v2 =
            Usage { cpu_time: Some(Duration::from_micros(7)), peak_memory_bytes: Some(4096), out_of_memory: false };
        assert_eq!(cgroup.usage(), of_v2);
        fs::write(v1.join("cpuacct.usage"), "5000\n").unwrap();
        fs::write(v1.join("memory.max_usage_in_bytes"), "8192\n").unwrap();
        let usage =
            Usage { cpu_time: Some(Duration::from_micros(5)), peak_memory_bytes: Some(8192), out_of_memory: false };
        assert_eq!(cgroup.usage(), usage);
        let json = r#"{"cpu_seconds":5e-6,"peak_memory_bytes":8192,"out_of_memory":false}"#;
        assert_eq!(serde_json::to_string(&usage).unwrap(), json);
        let json = r#"{"cpu_seconds":null,"peak_memory_bytes":null,"out_of_memory":false}"#;
        assert_eq!(serde_json::to_string(&Usage::default()).unwrap(), json);
        for (file, text, killed) in [
            (v1.join("memory.oom_control"), "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n", false),
            (v1.join("memory.oom_control"), "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n", true),
            (v1.join("memory.oom_control"), "oom_kill_disable 1\n", false),
            (v2.join("memory.events"), "max 12\noom 1\noom_kill 0\noom_group_kill 0\n", false),
            (v2.join("memory.events"), "max 12\noom 1\noom_kill 2\noom_group_kill 0\n", true),
        ] {
            fs::write(&file, text).unwrap();
            assert_eq!(cgroup.usage(), Usage { out_of_memory: killed, ..usage }, "{text}");
        }
    }

    #[test]
    fn hierarchies_are_read_from_a_mount_table() {
        let table = "\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:26 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 master:1 - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
33 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
34 22 0:29 / /elsewhere rw - cgroup2 cgroup2 rw
nonsense
";
        let v1 = |path: &str, controllers: &[&str]| Hierarchy {
            mount_point: path.into(),
            version: Version::V1(controllers.iter().map(ToString::to_string).collect()),
        };
        let expected = [
            v1("/sys/fs/cgroup/cpu,cpuacct", &["cpu", "cpuacct"]),
            v1("/sys/fs/cgroup/systemd", &["name=systemd"]),
            Hierarchy { mount_point: "/sys/fs/cgroup/unified".into(), version: Version::V2 },
        ];
        assert_eq!(hierarchies(table), expected);
    }
}
