//! Built templates, value for value.

use std::time::Duration;

use oci_spec::runtime::{Capability, PosixRlimitType};
use serde_json::{Value, json};

use super::*;

/// Every setter at least once, but for a seccomp profile of the caller's.
pub(super) fn with_everything() -> TemplateBuilder {
    Template::builder(["make", "-j4"])
        .cwd("/src")
        .env("A", "1")
        .env("B", "2")
        .env("A", "3")
        .env("PATH", "/bin")
        .user(1000, 1001)
        .additional_groups([5, 6])
        .terminal(Terminal::Attached)
        .capabilities([Capability::Kill, Capability::Chown, Capability::Kill])
        .no_new_privileges(NoNewPrivileges::On)
        .open_files_limit(2048)
        .rlimit(PosixRlimitType::RlimitCore, 0, 1)
        .root_access(RootAccess::ReadOnly)
        .hostname("builder")
        .mount(Mount::bind("/srv/src", "/src").read_only())
        .mount(Mount::tmpfs("/src/out").size_bytes(4096).mode(0o700).read_only())
        .annotation("org.example.b", "")
        .annotation("org.example.a", "x")
        .network(Network::Joined("/run/netns/a".into()))
        .cgroups_path("/builds/1")
        .memory_limit_bytes(1 << 30)
        .pids_limit(100)
        .cpus("0-1")
        .mems("0")
        .cpu_quota(Duration::from_millis(150), Duration::from_millis(100))
        .fsync(Fsync::Ignored)
}

#[test]
fn every_field_is_where_the_specification_has_it() {
    let defaults = Template::builder(["true"]).build().unwrap().value;
    let value = with_everything().build().unwrap().value;
    let caps = json!(["CAP_CHOWN", "CAP_KILL"]);
    assert_eq!(
        value["process"],
        json!({
            "terminal": true,
            "user": {"uid": 1000, "gid": 1001, "additionalGids": [5, 6]},
            "args": ["make", "-j4"],
            "env": ["PATH=/bin", "A=3", "B=2", "TERM=xterm"],
            "cwd": "/src",
            "capabilities": {"bounding": caps, "effective": caps, "inheritable": [], "permitted": caps, "ambient": []},
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 2048, "hard": 2048}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 1}],
            "noNewPrivileges": true
        })
    );
    assert_eq!(value["root"], json!({"path": "<rootfs>", "readonly": true}));
    assert_eq!(value["hostname"], "builder");
    assert_eq!(value["annotations"].to_string(), r#"{"org.example.a":"x","org.example.b":""}"#);
    assert_eq!(
        value["linux"]["resources"],
        json!({
            "devices": [{"allow": false, "access": "rwm"}],
            "memory": {"limit": 1 << 30, "swap": 1 << 30},
            "cpu": {"quota": 150_000, "period": 100_000, "cpus": "0-1", "mems": "0"},
            "pids": {"limit": 100}
        })
    );
    assert_eq!(value["linux"]["cgroupsPath"], "/builds/1");
    assert_eq!(value["linux"]["namespaces"][5], json!({"type": "network", "path": "/run/netns/a"}));

    let mut mounts = defaults["mounts"].as_array().unwrap().clone();
    mounts.extend([
        json!({
            "destination": "/src", "type": "bind", "source": "/srv/src",
            "options": ["nosuid", "nodev", "rbind", "rprivate", "ro", "rro"]
        }),
        json!({
            "destination": "/src/out", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "nodev", "mode=700", "size=4096", "ro"]
        }),
    ]);
    assert_eq!(value["mounts"], Value::from(mounts), "the caller's mounts follow the system's");

    let host = Template::builder(["true"]).network(Network::Host).fsync(Fsync::Real).build().unwrap().value;
    assert_eq!(
        host["linux"]["namespaces"],
        json!([{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"}])
    );
    assert_eq!(host["linux"].get("seccomp"), None);
}

#[test]
fn the_same_fields_are_the_same_text() {
    let texts: Vec<_> = (0..8).map(|_| with_everything().build().unwrap().value.to_string()).collect();
    assert!(texts.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn the_default_container() {
    let caps = json!([
        "CAP_AUDIT_WRITE",
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_FSETID",
        "CAP_KILL",
        "CAP_MKNOD",
        "CAP_NET_BIND_SERVICE",
        "CAP_NET_RAW",
        "CAP_SETFCAP",
        "CAP_SETGID",
        "CAP_SETPCAP",
        "CAP_SETUID",
        "CAP_SYS_CHROOT"
    ]);
    let mut expected = json!({
        "ociVersion": "1.1.0",
        "root": {"path": "<rootfs>", "readonly": false},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {
                "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]
            },
            {
                "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
            },
            {
                "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
                "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]
            },
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {
                "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                "options": ["nosuid", "noexec", "nodev", "ro"]
            },
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=1777"]}
        ],
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": ["echo", "hello"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": {"bounding": caps, "effective": caps, "inheritable": [], "permitted": caps, "ambient": []},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": false
        },
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"}, {"type": "network"}
            ],
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{
                    "names": ["fdatasync", "fsync", "msync", "sync", "sync_file_range", "sync_file_range2", "syncfs"],
                    "action": "SCMP_ACT_ERRNO",
                    "errnoRet": 0
                }]
            },
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap",
                "/sys/firmware"
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        }
    });
    // The one place that differs from one processor to another.
    match std::env::consts::ARCH {
        "x86_64" => {
            expected["linux"]["seccomp"]["architectures"] =
                json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]);
        }
        "aarch64" => expected["linux"]["seccomp"]["architectures"] = json!(["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]),
        "s390x" => expected["linux"]["seccomp"]["architectures"] = json!(["SCMP_ARCH_S390X", "SCMP_ARCH_S390"]),
        _ => {}
    }
    assert_eq!(Template::builder(["echo", "hello"]).build().unwrap().value, expected);
}
