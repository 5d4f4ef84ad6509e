//! The defaults of a container, as data. `fields` and `spec` use them; the default seccomp profile
//! is in `seccomp::profile`.

use std::path::PathBuf;

use oci_spec::runtime as oci;

use super::rlimit::{Rlimit, RlimitKind};

/// The value of `root.path` in a template, in place of the path of a root file system.
pub const ROOTFS_PLACEHOLDER: &str = "<rootfs>";

/// The `root.path` that `runc spec`, `crun spec` and `youki spec` write. A template from a file may
/// have it instead of [`ROOTFS_PLACEHOLDER`].
pub(super) const ROOTFS_OF_RUNTIMES: &str = "rootfs";

/// The version of the specification that a built configuration follows. `errnoRet` and `rro` need
/// 1.1.0.
pub(super) const OCI_VERSION: &str = "1.1.0";

/// Docker's `PATH`.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Docker's `TERM` for a command with a terminal.
pub(super) const TERM: &str = "xterm";

/// The default limit of open files. The soft limit is the kernel's (`INR_OPEN_CUR`,
/// include/uapi/linux/fs.h). Some programs close every descriptor up to the soft limit one by one,
/// which takes seconds if a service manager has raised it to millions. The hard limit is systemd's,
/// which moby/moby#45534 recommends. Programs that need more files raise the soft limit themselves.
pub(super) const OPEN_FILES: Rlimit = Rlimit { kind: RlimitKind::Nofile, soft: 1024, hard: 524_288 };

/// Docker's masked paths (moby, daemon/pkg/oci/defaults.go). They show facts about the host that
/// help an attacker, such as the power counters, which reveal what its processor computes. Runtimes
/// ignore paths that a kernel does not have.
pub(super) const MASKED_PATHS: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Docker's read-only paths: settings of the host's kernel.
pub(super) const READ_ONLY_PATHS: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Docker's sysctl for a private network: users without CAP_NET_BIND_SERVICE may bind port 80
/// there.
pub(super) const SYSCTL: [(&str, &str); 1] = [("net.ipv4.ip_unprivileged_port_start", "0")];

/// A mount that every container gets.
#[derive(Debug)]
pub(super) struct SystemMount {
    pub(super) destination: &'static str,
    pub(super) file_system: &'static str,
    pub(super) source: &'static str,
    pub(super) options: &'static [&'static str],
}

impl SystemMount {
    pub(super) fn to_spec(&self) -> oci::Mount {
        let mut mount = oci::Mount::default();
        mount
            .set_destination(PathBuf::from(self.destination))
            .set_typ(Some(self.file_system.to_owned()))
            .set_source(Some(PathBuf::from(self.source)))
            .set_options(Some(self.options.iter().copied().map(String::from).collect()));
        mount
    }
}

/// Docker's mounts, and `/tmp` in memory, so that files there are not part of a run's result. The
/// caller's mounts come after these. Otherwise, these would cover a mount in `/dev` or `/tmp`.
pub(super) const MOUNTS: [SystemMount; 8] = [
    SystemMount { destination: "/proc", file_system: "proc", source: "proc", options: &["nosuid", "noexec", "nodev"] },
    SystemMount {
        destination: "/dev",
        file_system: "tmpfs",
        source: "tmpfs",
        options: &["nosuid", "strictatime", "mode=755", "size=65536k"],
    },
    SystemMount {
        destination: "/dev/pts",
        file_system: "devpts",
        source: "devpts",
        // 5 is the group `tty` in every distribution.
        options: &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
    },
    SystemMount {
        destination: "/dev/shm",
        file_system: "tmpfs",
        source: "shm",
        options: &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
    },
    SystemMount {
        destination: "/dev/mqueue",
        file_system: "mqueue",
        source: "mqueue",
        options: &["nosuid", "noexec", "nodev"],
    },
    SystemMount {
        destination: "/sys",
        file_system: "sysfs",
        source: "sysfs",
        options: &["nosuid", "noexec", "nodev", "ro"],
    },
    SystemMount {
        destination: "/sys/fs/cgroup",
        file_system: "cgroup",
        source: "cgroup",
        options: &["nosuid", "noexec", "nodev", "ro"],
    },
    // Without noexec, because configure scripts run programs that they compile there. runc before
    // 1.1.8 gives the tmpfs the mode of the `/tmp` that it covers.
    SystemMount {
        destination: "/tmp",
        file_system: "tmpfs",
        source: "tmpfs",
        options: &["nosuid", "nodev", "mode=1777"],
    },
];
