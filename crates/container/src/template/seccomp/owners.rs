//! The rules that answer changes of owners and identities by success, without making them.

use oci_spec::runtime::LinuxSeccomp;
use serde_json::Value;

use super::rule::{answer, replace_rules};

/// The calls that [`Owners::Fake`](crate::Owners::Fake) answers: chown(2), setgroups(2), setuid(2)
/// and their families. The runtimes ignore a name that an architecture does not have.
///
/// capset(2) is not among them: a user namespace with a single user has capabilities, too.
const OWNER_CALLS: [&str; 25] = [
    "chown",
    "chown32",
    "fchown",
    "fchown32",
    "fchownat",
    "lchown",
    "lchown32",
    "setfsgid",
    "setfsgid32",
    "setfsuid",
    "setfsuid32",
    "setgid",
    "setgid32",
    "setgroups",
    "setgroups32",
    "setregid",
    "setregid32",
    "setresgid",
    "setresgid32",
    "setresuid",
    "setresuid32",
    "setreuid",
    "setreuid32",
    "setuid",
    "setuid32",
];

/// Makes the calls that change owners and identities succeed without any effect, whatever `profile`
/// says about them. They succeed even for a file that does not exist: a filter cannot see files.
pub(super) fn fake_owners(profile: &mut LinuxSeccomp) {
    replace_rules(profile, &OWNER_CALLS, [answer(OWNER_CALLS, &[], 0)]);
}

/// Returns whether the `linux.seccomp` of a configuration lets a process believe that it has become
/// another user.
pub(in super::super) fn fakes_users(profile: &Value) -> bool {
    let is_faked = |rule: &Value| {
        let names = rule["names"].as_array().into_iter().flatten();
        rule["action"] == "SCMP_ACT_ERRNO" && rule["errnoRet"] == 0 && names.into_iter().any(|name| name == "setuid")
    };
    profile["syscalls"].as_array().into_iter().flatten().any(is_faked)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_calls_have_one_rule_whatever_the_profile_says_of_them() {
        let mut profile: LinuxSeccomp = serde_json::from_value(json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [
                {"names": ["read", "fchown", "capset"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["setuid"], "action": "SCMP_ACT_TRAP"}
            ]
        }))
        .unwrap();
        assert!(!fakes_users(&serde_json::to_value(&profile).unwrap()));
        fake_owners(&mut profile);
        let expected = json!([
            {"names": ["read", "capset"], "action": "SCMP_ACT_ALLOW"},
            {"names": OWNER_CALLS, "action": "SCMP_ACT_ERRNO", "errnoRet": 0}
        ]);
        let value = serde_json::to_value(&profile).unwrap();
        assert_eq!(value["syscalls"], expected);
        assert!(fakes_users(&value));
    }

    #[test]
    fn the_profile_of_crun_is_still_compiled() {
        let mut profile = super::super::profile::default("x86_64", crate::template::Capability::DEFAULT);
        fake_owners(&mut profile);
        assert_eq!(super::super::compiled(&profile).is_some(), cfg!(target_arch = "x86_64"));
    }

    #[test]
    fn a_profile_that_refuses_other_users_fakes_none() {
        let rule =
            |errno: Value| json!({"syscalls": [{"names": ["setuid"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno}]});
        let table = [(rule(json!(0)), true), (rule(json!(1)), false), (rule(Value::Null), false), (Value::Null, false)];
        for (profile, expected) in table {
            assert_eq!(fakes_users(&profile), expected, "{profile}");
        }
    }
}
