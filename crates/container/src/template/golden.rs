//! Tests the JSON of built templates value by value.

use std::time::Duration;

use serde_json::{Value, json};

use super::*;

/// Calls every setter at least once, except that of the seccomp profile.
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
        .rlimit(RlimitKind::Core, 0, 1)
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
fn a_named_user_has_the_numbers_of_nobody() {
    let built = |user: &str| Template::builder(["true"]).user_spec(user.parse().unwrap()).build().unwrap();
    for (user, expected, numbers) in [
        ("1000", json!({"uid": 1000, "gid": 1000}), (1000, 1000)),
        ("1000:5", json!({"uid": 1000, "gid": 5}), (1000, 5)),
        ("opam", json!({"uid": 65534, "gid": 65534, "username": "opam"}), (65534, 65534)),
        ("1000:staff", json!({"uid": 65534, "gid": 65534, "username": "1000:staff"}), (65534, 65534)),
    ] {
        let template = built(user);
        assert_eq!(template.value["process"]["user"], expected);
        assert_eq!((template.user(), template.user_spec()), (numbers, user.parse().unwrap()));
        // The user stays the same when the template is written and read.
        assert_eq!(Template::from_json(serde_json::to_string(&template).unwrap()).unwrap(), template);
    }
}

#[test]
fn every_field_is_where_the_specification_has_it() {
    let defaults = Template::builder(["true"]).build().unwrap().value.as_ref().clone();
    let value = with_everything().build().unwrap().value.as_ref().clone();
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
    assert_eq!(value["linux"].get("sysctl"), None, "the network is not the container's own");

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

    let host = Template::builder(["true"]).network(Network::Host).fsync(Fsync::Real).seccomp(Seccomp::Unconfined);
    let host = host.build().unwrap().value.as_ref().clone();
    assert_eq!(
        host["linux"]["namespaces"],
        json!([{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"}])
    );
    assert_eq!((host["linux"].get("seccomp"), host["linux"].get("sysctl")), (None, None));
}

#[test]
fn the_same_fields_give_the_same_text() {
    let texts: Vec<_> = (0..8).map(|_| with_everything().build().unwrap().value.to_string()).collect();
    assert!(texts.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn the_default_container_has_these_values() {
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
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 524288, "soft": 1024}],
            "noNewPrivileges": false
        },
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"}, {"type": "network"}
            ],
            "sysctl": {"net.ipv4.ip_unprivileged_port_start": "0"},
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap",
                "/sys/firmware"
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        }
    });
    let built = Template::builder(["echo", "hello"]).build().unwrap().value.as_ref().clone();
    // The profile is long, differs between architectures, and has its own tests.
    expected["linux"]["seccomp"] = built["linux"]["seccomp"].clone();
    assert_eq!(built, expected);
}

#[test]
fn fsync_overrides_every_seccomp_profile() {
    let built = |seccomp: Seccomp, fsync| {
        let builder = Template::builder(["true"]).capabilities([Capability::SysAdmin]).seccomp(seccomp).fsync(fsync);
        builder.build().unwrap().value["linux"].get("seccomp").cloned()
    };
    let custom = json!({"defaultAction": "SCMP_ACT_LOG"});
    let named = |profile: &Value, name: &str| -> Vec<Value> {
        let rules = profile["syscalls"].as_array().unwrap().iter();
        let has = |rule: &&Value| rule["names"].as_array().unwrap().iter().any(|known| known == name);
        rules.filter(has).map(|rule| json!([rule["action"], rule.get("errnoRet")])).collect()
    };
    let (allow, zero) = (json!(["SCMP_ACT_ALLOW", null]), json!(["SCMP_ACT_ERRNO", 0]));

    let table = [
        (Seccomp::Default, "SCMP_ACT_ERRNO", vec![allow.clone()]),
        (Seccomp::Native, "SCMP_ACT_ERRNO", vec![allow.clone()]),
        (Seccomp::Unconfined, "SCMP_ACT_ALLOW", vec![]),
        (Seccomp::Custom(custom.clone()), "SCMP_ACT_LOG", vec![]),
    ];
    for (seccomp, action, mount) in table {
        let profile = built(seccomp, Fsync::Ignored).unwrap();
        assert_eq!(profile["defaultAction"], action);
        // A valid descriptor, and a negative one.
        assert_eq!(named(&profile, "sync_file_range"), [zero.clone(), allow.clone()], "{action}");
        assert_eq!(named(&profile, "mount"), mount, "by the template's own capabilities");
    }
    assert_eq!(named(&built(Seccomp::Default, Fsync::Real).unwrap(), "fsync"), [allow]);
    assert_eq!(built(Seccomp::Unconfined, Fsync::Real), None);
    assert_eq!(built(Seccomp::Custom(custom), Fsync::Real), Some(json!({"defaultAction": "SCMP_ACT_LOG"})));
}
