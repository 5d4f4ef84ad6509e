//! Tests every error of the validation by its whole message, and the values at the limits.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use super::*;
use crate::template::{Mount, Seccomp, Template, TemplateBuilder};

fn not_utf8() -> PathBuf {
    OsStr::from_bytes(b"/\xff").into()
}

#[test]
fn fields_that_could_not_run_are_refused() {
    let base = || Template::builder(["true"]);
    let ms = Duration::from_millis;
    let cpu_list = |field: &str, list: &str| {
        format!("linux.resources.cpu.{field} is {list:?}: write numbers and ranges, separated by commas, as in 0-3,5")
    };
    let nul = |field: &str, value: &str| {
        format!(
            "{field} is {value:?}, which contains a NUL byte: the kernel would truncate it there, so remove the byte"
        )
    };
    let quota = |quota, period| {
        format!(
            "the processor quota {quota} per {period} is not possible: give a period of 1ms to 1s and a quota of at least 1ms"
        )
    };
    let bind = |problem| {
        format!("the bind mount at \"/a\" {problem}: give the absolute path of a file or directory of the host")
    };
    let no_utf8 =
        |field| format!("{field} \"/\\xFF\" is not UTF-8, and config.json is JSON: name it by a path that is");
    let table: Vec<(TemplateBuilder, String)> = vec![
        (Template::builder(Vec::<String>::new()), "process.args is empty: give the command to run".into()),
        (Template::builder([""]), "process.args[0] is empty: give the name or the path of a program".into()),
        (Template::builder(["a", "b\0"]), nul("process.args[1]", "b\0")),
        (base().env("A", "\0"), nul("process.env[1]", "A=\0")),
        (base().cwd("/a\0"), nul("process.cwd", "/a\0")),
        (base().hostname("a\0"), nul("hostname", "a\0")),
        (base().mount(Mount::bind("/a\0", "/a")), nul("mounts[8].source", "/a\0")),
        (
            base().env("", "1"),
            "the environment variable \"\" cannot be set: a name has at least one character and no `=`".into(),
        ),
        (
            base().env("A=B", "1"),
            "the environment variable \"A=B\" cannot be set: a name has at least one character and no `=`".into(),
        ),
        (
            base().cwd("src"),
            "process.cwd \"src\" is relative: give the absolute path that it has inside the container".into(),
        ),
        (
            base().user(u32::MAX, 0),
            "process.user.uid is 4294967295, which setuid(2) and setgid(2) treat as -1: give a lower id".into(),
        ),
        (
            base().additional_groups([1, u32::MAX]),
            "process.user.additionalGids is 4294967295, which setuid(2) and setgid(2) treat as -1: give a lower id".into(),
        ),
        (base().hostname(""), "the hostname \"\" is empty: omit it to use the host's".into()),
        (
            base().hostname("é".repeat(33).as_str()),
            format!("the hostname {:?} is too long: the kernel takes at most 64 bytes", "é".repeat(33)),
        ),
        (
            base().hostname("a b"),
            "the hostname \"a b\" cannot be written to /etc/hosts: it contains white space, a control character or `#`".into(),
        ),
        (
            base().mount(Mount::tmpfs("a")),
            "the mount destination \"a\" is relative: give the absolute path that it has inside the container".into(),
        ),
        (
            base().mount(Mount::tmpfs("/a/../b")),
            "the mount destination \"/a/../b\" contains `..`: write the path that it leads to".into(),
        ),
        (
            base().mount(Mount::tmpfs("//.")),
            "the mount destination \"//.\" is the root file system itself: mount on a directory in it".into(),
        ),
        (base().mount(Mount::bind("", "/a")), bind("has no source")),
        (base().mount(Mount::bind("a", "/a")), bind("has a relative source")),
        (
            base().mount(Mount::bind("/a", "/a").size_bytes(1)),
            "the mount at \"/a\" cannot have the size 1: only a tmpfs has a size".into(),
        ),
        (base().cwd(not_utf8()), no_utf8("process.cwd")),
        (base().mount(Mount::tmpfs(not_utf8())), no_utf8("mounts[].destination")),
        (base().mount(Mount::bind(not_utf8(), "/a")), no_utf8("mounts[].source")),
        (base().cgroups_path(not_utf8()), no_utf8("linux.cgroupsPath")),
        (
            base().cgroups_path("/a/../../b"),
            "linux.cgroupsPath is \"/a/../../b\": write it without `..`, which could lead out of the group that limits it".into(),
        ),
        (
            base().network(Network::Joined("netns/a".into())),
            "linux.namespaces[].path is \"netns/a\": give the absolute path of the namespace's file".into(),
        ),
        (
            base().memory_limit_bytes(0),
            "linux.resources.memory.limit is 0: omit it for no limit, or give a positive number".into(),
        ),
        (
            base().memory_limit_bytes(1 << 63),
            "linux.resources.memory.limit is 9223372036854775808: that needs more than 63 bits; omit it for no limit".into(),
        ),
        (base().pids_limit(0), "linux.resources.pids.limit is 0: omit it for no limit, or give a positive number".into()),
        (
            base().open_files_limit(0),
            "process.rlimits[RLIMIT_NOFILE] is 0: no program could start; give the number of files that each process may have open"
                .into(),
        ),
        (
            base().rlimit(RlimitKind::Core, 2, 1),
            "the limit RLIMIT_CORE of 2 (soft) and 1 (hard) is refused by the kernel: the soft limit must not exceed the hard limit"
                .into(),
        ),
        (
            base().seccomp(Seccomp::Custom(json!({"defaultAction": "allow"}))),
            "the seccomp profile is not a linux.seccomp of the OCI runtime specification".into(),
        ),
        (
            base().seccomp(Seccomp::Custom(json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
                {"names": ["read"], "action": "SCMP_ACT_ALLOW", "includes": {}},
                {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}}
            ]}))),
            "the seccomp profile has \"includes\" in its rule 1, which only Docker understands: write the rules that apply as a linux.seccomp of the OCI runtime specification"
                .into(),
        ),
        (base().cpus(""), cpu_list("cpus", "")),
        (base().cpus("0-"), cpu_list("cpus", "0-")),
        (base().cpus("3-0"), cpu_list("cpus", "3-0")),
        (base().cpus("0,,1"), cpu_list("cpus", "0,,1")),
        (base().cpus("+1"), cpu_list("cpus", "+1")),
        (base().mems("0 1"), cpu_list("mems", "0 1")),
        (base().mems("4294967296"), cpu_list("mems", "4294967296")),
        (base().cpu_quota(Duration::ZERO, ms(100)), quota("0ns", "100ms")),
        (base().cpu_quota(ms(1), Duration::from_micros(999)), quota("1ms", "999µs")),
        (base().cpu_quota(ms(1), ms(1001)), quota("1ms", "1.001s")),
    ];
    for (builder, message) in table {
        assert_eq!(builder.build().unwrap_err().to_string(), message);
    }
}

#[test]
fn fields_at_the_limits_are_accepted() {
    let longest = "h".repeat(HOST_NAME_MAX);
    let built = Template::builder(["a", ""])
        .env("A", "=")
        .hostname(longest.as_str())
        .cwd("/a/../b")
        .cpus("0-3,5,7-7")
        .mems("0")
        .cpu_quota(Duration::from_millis(1), Duration::from_secs(1))
        .pids_limit(1)
        .memory_limit_bytes(i64::MAX as u64)
        .rlimit(RlimitKind::Core, 0, 0)
        .build();
    assert_eq!(built.unwrap().hostname(), Some(longest.as_str()));
}

#[test]
fn a_configuration_from_a_file_is_checked_too() {
    let whole = json!({
        "ociVersion": "1.1.0",
        "root": {"path": ROOTFS_PLACEHOLDER},
        "process": {"args": ["true"], "cwd": "/", "user": {"uid": 0, "gid": 0}}
    });
    let mount = |mount: Value| ("/mounts", json!([mount]));
    let table: Vec<((&str, Value), &str)> = vec![
        (
            ("/root", Value::Null),
            "root.path is missing: write \"<rootfs>\" there, the placeholder for the root file system",
        ),
        (
            ("/root", json!({})),
            "root.path is missing: write \"<rootfs>\" there, the placeholder for the root file system",
        ),
        (
            ("/root", json!({"path": "/srv/root"})),
            "root.path is \"/srv/root\" and would be overwritten: write \"<rootfs>\" there, the placeholder for the root file system",
        ),
        (("/root", json!({"path": 1})), "not a config.json of the OCI runtime specification"),
        (("/process", Value::Null), "process.args is empty: give the command to run"),
        (("/process/args", json!([])), "process.args is empty: give the command to run"),
        (
            ("/process/args", json!(["a\0"])),
            "process.args[0] is \"a\\0\", which contains a NUL byte: the kernel would truncate it there, so remove the byte",
        ),
        (("/process/env", json!(["A=1", "B"])), "process.env holds \"B\": write it as KEY=VALUE"),
        (("/process/env", json!(["=B"])), "process.env holds \"=B\": write it as KEY=VALUE"),
        (
            ("/process/cwd", json!("")),
            "process.cwd \"\" is relative: give the absolute path that it has inside the container",
        ),
        (
            ("/process/user", json!({"uid": 65534, "gid": 65534, "username": "a:"})),
            "the user \"a:\" is not a user: write NAME, UID, NAME:GROUP or UID:GID",
        ),
        (
            (
                "/process/rlimits",
                json!([{"type": "RLIMIT_CPU", "soft": 1, "hard": 1}, {"type": "RLIMIT_CPU", "soft": 2, "hard": 2}]),
            ),
            "the limit RLIMIT_CPU of 2 (soft) and 2 (hard) is given twice: keep one of them",
        ),
        (
            ("/hostname", json!("a#b")),
            "the hostname \"a#b\" cannot be written to /etc/hosts: it contains white space, a control character or `#`",
        ),
        (
            mount(json!({"destination": "/a", "options": ["bind"]})),
            "the bind mount at \"/a\" has no source: give the absolute path of a file or directory of the host",
        ),
        (
            mount(json!({"destination": "/a", "type": "bind", "source": "a"})),
            "the bind mount at \"/a\" has a relative source: give the absolute path of a file or directory of the host",
        ),
        (
            mount(json!({"destination": "/", "type": "tmpfs"})),
            "the mount destination \"/\" is the root file system itself: mount on a directory in it",
        ),
        (
            ("/linux", json!({"resources": {"pids": {"limit": 0}}})),
            "linux.resources.pids.limit is 0: omit it for no limit, or give a positive number",
        ),
    ];
    Template::from_value(whole.clone()).expect("the whole is valid");
    for ((pointer, replacement), message) in table {
        let mut value = whole.clone();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        value.pointer_mut(parent).unwrap()[key] = replacement;
        assert_eq!(Template::from_value(value).unwrap_err().to_string(), message, "{pointer}");
    }
}
