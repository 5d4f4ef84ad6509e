//! Tests built templates against the specification: every key must be known and have its type, and
//! every required key must be present.

use serde_json::{Value, json};

use super::golden::with_everything;
use super::*;

#[derive(Debug, Clone, Copy)]
enum Kind {
    Object,
    Array,
    Bool,
    Text,
    /// A string of an enumeration whose values have this prefix.
    Prefixed(&'static str),
    OneOf(&'static [&'static str]),
    Signed,
    Unsigned,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Presence {
    /// Required if its parent is present.
    Required,
    Optional,
}

use Kind::{Array, Bool, Object, OneOf, Prefixed, Signed, Text, Unsigned};
use Presence::{Optional, Required};

/// The part of <https://github.com/opencontainers/runtime-spec/blob/v1.1.0/config.md> and
/// config-linux.md that the builder uses. `[]` stands for each item of an array, `*` for any key.
const SPECIFICATION: &[(&str, Kind, Presence)] = &[
    // "Specification version", "Root", "Mounts"
    ("ociVersion", Text, Required),
    ("root", Object, Required),
    ("root.path", Text, Required),
    ("root.readonly", Bool, Optional),
    ("mounts", Array, Optional),
    ("mounts[]", Object, Optional),
    ("mounts[].destination", Text, Required),
    ("mounts[].source", Text, Optional),
    ("mounts[].type", Text, Optional),
    ("mounts[].options", Array, Optional),
    ("mounts[].options[]", Text, Optional),
    // "Process", "POSIX process", "Linux Process", "POSIX-platform User"; required for `start`
    ("process", Object, Required),
    ("process.terminal", Bool, Optional),
    ("process.cwd", Text, Required),
    ("process.env", Array, Optional),
    ("process.env[]", Text, Optional),
    ("process.args", Array, Required),
    ("process.args[]", Text, Required),
    ("process.rlimits", Array, Optional),
    ("process.rlimits[]", Object, Optional),
    ("process.rlimits[].type", Prefixed("RLIMIT_"), Required),
    ("process.rlimits[].soft", Unsigned, Required),
    ("process.rlimits[].hard", Unsigned, Required),
    ("process.capabilities", Object, Optional),
    ("process.capabilities.bounding", Array, Optional),
    ("process.capabilities.bounding[]", Prefixed("CAP_"), Optional),
    ("process.capabilities.effective", Array, Optional),
    ("process.capabilities.effective[]", Prefixed("CAP_"), Optional),
    ("process.capabilities.inheritable", Array, Optional),
    ("process.capabilities.permitted", Array, Optional),
    ("process.capabilities.permitted[]", Prefixed("CAP_"), Optional),
    ("process.capabilities.ambient", Array, Optional),
    ("process.noNewPrivileges", Bool, Optional),
    ("process.user", Object, Required),
    ("process.user.uid", Unsigned, Required),
    ("process.user.gid", Unsigned, Required),
    ("process.user.additionalGids", Array, Optional),
    ("process.user.additionalGids[]", Unsigned, Optional),
    // "Hostname", "Annotations"
    ("hostname", Text, Optional),
    ("annotations", Object, Optional),
    ("annotations.*", Text, Optional),
    // config-linux.md: "Namespaces", "Control groups", "Sysctl", "Seccomp", "Masked Paths",
    // "Readonly Paths"
    ("linux", Object, Optional),
    ("linux.namespaces", Array, Optional),
    ("linux.namespaces[]", Object, Optional),
    ("linux.namespaces[].type", OneOf(&["pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time"]), Required),
    ("linux.namespaces[].path", Text, Optional),
    ("linux.cgroupsPath", Text, Optional),
    ("linux.sysctl", Object, Optional),
    ("linux.sysctl.*", Text, Optional),
    ("linux.resources", Object, Optional),
    ("linux.resources.devices", Array, Optional),
    ("linux.resources.devices[]", Object, Optional),
    ("linux.resources.devices[].allow", Bool, Required),
    ("linux.resources.devices[].access", Text, Optional),
    ("linux.resources.memory", Object, Optional),
    ("linux.resources.memory.limit", Signed, Optional),
    ("linux.resources.memory.swap", Signed, Optional),
    ("linux.resources.cpu", Object, Optional),
    ("linux.resources.cpu.quota", Signed, Optional),
    ("linux.resources.cpu.period", Unsigned, Optional),
    ("linux.resources.cpu.cpus", Text, Optional),
    ("linux.resources.cpu.mems", Text, Optional),
    ("linux.resources.pids", Object, Optional),
    ("linux.resources.pids.limit", Signed, Required),
    ("linux.seccomp", Object, Optional),
    ("linux.seccomp.defaultAction", Prefixed("SCMP_ACT_"), Required),
    ("linux.seccomp.defaultErrnoRet", Unsigned, Optional),
    ("linux.seccomp.architectures", Array, Optional),
    ("linux.seccomp.architectures[]", Prefixed("SCMP_ARCH_"), Optional),
    ("linux.seccomp.syscalls", Array, Optional),
    ("linux.seccomp.syscalls[]", Object, Optional),
    ("linux.seccomp.syscalls[].names", Array, Required),
    ("linux.seccomp.syscalls[].names[]", Text, Required),
    ("linux.seccomp.syscalls[].action", Prefixed("SCMP_ACT_"), Required),
    ("linux.seccomp.syscalls[].errnoRet", Unsigned, Optional),
    ("linux.seccomp.syscalls[].args", Array, Optional),
    ("linux.seccomp.syscalls[].args[]", Object, Optional),
    ("linux.seccomp.syscalls[].args[].index", Unsigned, Required),
    ("linux.seccomp.syscalls[].args[].value", Unsigned, Required),
    ("linux.seccomp.syscalls[].args[].valueTwo", Unsigned, Optional),
    ("linux.seccomp.syscalls[].args[].op", Prefixed("SCMP_CMP_"), Required),
    ("linux.maskedPaths", Array, Optional),
    ("linux.maskedPaths[]", Text, Optional),
    ("linux.readonlyPaths", Array, Optional),
    ("linux.readonlyPaths[]", Text, Optional),
];

fn is(kind: Kind, value: &Value) -> bool {
    match kind {
        Object => value.is_object(),
        Array => value.is_array(),
        Bool => value.is_boolean(),
        Text => value.is_string(),
        Prefixed(prefix) => value.as_str().is_some_and(|text| text.len() > prefix.len() && text.starts_with(prefix)),
        OneOf(all) => value.as_str().is_some_and(|text| all.contains(&text)),
        Signed => value.is_i64(),
        Unsigned => value.is_u64(),
    }
}

/// Checks `value`, found at `path`, against every row that concerns it.
fn check(path: &str, value: &Value) {
    let child = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    if !path.is_empty() {
        let row = SPECIFICATION.iter().find(|(known, ..)| *known == path);
        let (_, kind, _) = row.unwrap_or_else(|| panic!("{path} is not in the specification"));
        assert!(is(*kind, value), "{path} is {value}, not of the kind {kind:?}");
    }
    match value {
        Value::Object(entries) => {
            for (known, _, presence) in SPECIFICATION {
                let name = match known.rsplit_once('.') {
                    Some((parent, name)) if parent == path => name,
                    None if path.is_empty() => known,
                    _ => continue,
                };
                let exempt = *presence == Optional || name.ends_with("[]");
                assert!(exempt || entries.contains_key(name), "{} is required", child(name));
            }
            let any = child("*");
            let open = SPECIFICATION.iter().any(|(known, ..)| *known == any);
            entries.iter().for_each(|(name, item)| check(&if open { any.clone() } else { child(name) }, item));
        }
        Value::Array(items) => {
            let each = format!("{path}[]");
            let needs_one = SPECIFICATION.iter().any(|(known, _, presence)| *known == each && *presence == Required);
            assert!(!needs_one || !items.is_empty(), "{path} needs an item");
            items.iter().for_each(|item| check(&each, item));
        }
        _ => {}
    }
}

#[test]
fn built_templates_have_the_shape_of_the_specification() {
    let builders = [
        Template::builder(["true"]),
        Template::builder(["true"]).network(Network::Host).fsync(Fsync::Real),
        with_everything(),
        with_everything().seccomp(Seccomp::Unconfined).fsync(Fsync::Ignored),
    ];
    for builder in builders {
        check("", &builder.build().unwrap().value);
    }
}

#[test]
#[should_panic(expected = "process.argv is not in the specification")]
fn a_key_outside_the_specification_is_detected() {
    let mut value = with_everything().build().unwrap().value.as_ref().clone();
    value["process"]["argv"] = json!([]);
    check("", &value);
}

#[test]
#[should_panic(expected = "linux.resources.pids.limit is required")]
fn a_missing_required_key_is_detected() {
    let mut value = with_everything().build().unwrap().value.as_ref().clone();
    value["linux"]["resources"]["pids"] = json!({});
    check("", &value);
}

#[test]
#[should_panic(expected = "hostname is 7, not of the kind Text")]
fn a_value_of_the_wrong_type_is_detected() {
    let mut value = with_everything().build().unwrap().value.as_ref().clone();
    value["hostname"] = json!(7);
    check("", &value);
}
