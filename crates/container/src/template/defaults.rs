//! What a container has unless told otherwise, as data.

use std::path::PathBuf;

use oci_spec::runtime as oci;

use super::capability::Capability;
use super::rlimit::{Rlimit, RlimitKind};

/// The value of `root.path` in a template, in place of the path of a root file system.
pub const ROOTFS_PLACEHOLDER: &str = "<rootfs>";

/// The version of the specification that a built configuration keeps to: `errnoRet` and `rro` came with 1.1.0.
pub(super) const OCI_VERSION: &str = "1.1.0";

/// Docker's.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Docker's, in a terminal.
pub(super) const TERM: &str = "xterm";

/// The soft limit is the kernel's own (`INR_OPEN_CUR`, include/uapi/linux/fs.h): programs that close every descriptor up to it
/// one by one take seconds under the millions that a service manager may have given to its children. The hard limit is systemd's,
/// and what moby/moby#45534 recommends: programs that need more files raise the soft limit by themselves.
pub(super) const OPEN_FILES: Rlimit = Rlimit { kind: RlimitKind::Nofile, soft: 1024, hard: 524_288 };

/// What Docker leaves to root in a container (moby, daemon/pkg/oci/caps/defaults.go): enough for package managers and
/// services, nothing that reaches the host.
pub(super) const CAPABILITIES: [Capability; 14] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fsetid,
    Capability::Fowner,
    Capability::Mknod,
    Capability::NetRaw,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setfcap,
    Capability::Setpcap,
    Capability::NetBindService,
    Capability::SysChroot,
    Capability::Kill,
    Capability::AuditWrite,
];

/// What Docker hides (moby, daemon/pkg/oci/defaults.go): facts about the host that help an attacker, such as the power
/// counters that give away what its processor computes. Paths that a kernel does not have are passed over.
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

/// What Docker lets nobody write to: switches of the host's kernel.
pub(super) const READ_ONLY_PATHS: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// As Docker sets it in a network of the container's own: a user without CAP_NET_BIND_SERVICE may serve port 80 there, too.
pub(super) const SYSCTL: [(&str, &str); 1] = [("net.ipv4.ip_unprivileged_port_start", "0")];

/// A mount that the container needs to work.
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

/// Docker's, and `/tmp` in memory, so that what a build leaves there is no part of its result. The caller's mounts follow:
/// before these they would be covered when they lie in `/dev` or `/tmp`.
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
        // 5 is the group `tty` of every distribution.
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
    // No noexec: configure scripts run what they compile there. runc before 1.1.8 gives it the mode of the `/tmp` below it.
    SystemMount {
        destination: "/tmp",
        file_system: "tmpfs",
        source: "tmpfs",
        options: &["nosuid", "nodev", "mode=1777"],
    },
];
