//! The filter of a container: which profile, and the rule that makes `fsync` free.

mod profile;
mod program;

use std::env::consts::ARCH;

use base64::prelude::{BASE64_STANDARD, Engine};
use oci_spec::runtime::{Arch, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSyscall};

use super::choices::{Fsync, Seccomp};

/// The calls that [`Fsync::Ignored`](super::Fsync::Ignored) answers: everything that only waits for a disk. A name that an
/// architecture lacks is passed over by the runtimes.
const SYNC_CALLS: [&str; 7] = ["fdatasync", "fsync", "msync", "sync", "sync_file_range", "sync_file_range2", "syncfs"];

/// The call conventions that a program for a machine of `arch` may use: its own and those that the kernel runs beside it
/// (Docker's list). libseccomp kills a process that makes a call by one that the filter does not name.
fn architectures(arch: &str) -> &'static [Arch] {
    match arch {
        "x86_64" => &[Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32],
        "aarch64" => &[Arch::ScmpArchAarch64, Arch::ScmpArchArm],
        "s390x" => &[Arch::ScmpArchS390x, Arch::ScmpArchS390],
        _ => &[],
    }
}

/// What `linux.seccomp` is for a container that has `capabilities`.
pub(super) fn filter(seccomp: &Seccomp, fsync: Fsync, capabilities: &[Capability]) -> Option<LinuxSeccomp> {
    let profile = match seccomp {
        Seccomp::Default => Some(profile::default(ARCH, capabilities)),
        Seccomp::Native => {
            let mut profile = profile::default(ARCH, capabilities);
            // The first is the machine's own.
            set_architectures(&mut profile, architectures(ARCH).iter().copied().take(1).collect());
            Some(profile)
        }
        Seccomp::Unconfined => None,
        Seccomp::Custom(profile) => Some(profile.clone()),
    };
    match fsync {
        Fsync::Real => profile,
        Fsync::Ignored => {
            let mut profile = profile.unwrap_or_else(allow_all);
            ignore_sync(&mut profile);
            Some(profile)
        }
    }
}

/// The program of a filter as crun takes it: in Base64. `None` if it is for the runtime to make.
pub(super) fn compiled(filter: &LinuxSeccomp) -> Option<String> {
    program::compile(filter).map(|program| BASE64_STANDARD.encode(program))
}

/// A profile that lets every call through: the ground for rules that change a few.
fn allow_all() -> LinuxSeccomp {
    let mut profile = LinuxSeccomp::default();
    profile.set_default_action(LinuxSeccompAction::ScmpActAllow);
    set_architectures(&mut profile, architectures(ARCH).to_vec());
    profile
}

fn set_architectures(profile: &mut LinuxSeccomp, architectures: Vec<Arch>) {
    // Without the field the filter is for the native convention alone.
    profile.set_architectures((!architectures.is_empty()).then_some(architectures));
}

/// Adds to `profile` that the calls which wait for a disk succeed at once, whatever it said of them.
fn ignore_sync(profile: &mut LinuxSeccomp) {
    // Of two rules for one call libseccomp keeps the first or refuses the second, as its version has it: leave only one.
    let mut rules: Vec<LinuxSyscall> = profile.syscalls().clone().unwrap_or_default();
    for rule in &mut rules {
        let names = rule.names().iter().filter(|name| !SYNC_CALLS.contains(&name.as_str())).cloned().collect();
        rule.set_names(names);
    }
    rules.retain(|rule| !rule.names().is_empty());

    let mut answer_zero = LinuxSyscall::default();
    answer_zero.set_names(SYNC_CALLS.map(String::from).to_vec());
    answer_zero.set_action(LinuxSeccompAction::ScmpActErrno);
    // An errno of 0 is no error: the call is skipped and returns 0.
    answer_zero.set_errno_ret(Some(0));
    rules.push(answer_zero);
    profile.set_syscalls(Some(rules));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_sync_calls_are_answered_once_whatever_a_profile_says_of_them() {
        let mut profile: LinuxSeccomp = serde_json::from_value(json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "architectures": ["SCMP_ARCH_RISCV64"],
            "syscalls": [
                {"names": ["read", "fsync", "write"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["sync", "syncfs"], "action": "SCMP_ACT_TRAP"}
            ]
        }))
        .unwrap();
        ignore_sync(&mut profile);
        assert_eq!(
            serde_json::to_value(&profile).unwrap(),
            json!({
                "defaultAction": "SCMP_ACT_ERRNO",
                "architectures": ["SCMP_ARCH_RISCV64"],
                "syscalls": [
                    {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"},
                    {
                        "names": ["fdatasync", "fsync", "msync", "sync", "sync_file_range", "sync_file_range2", "syncfs"],
                        "action": "SCMP_ACT_ERRNO",
                        "errnoRet": 0
                    }
                ]
            })
        );
    }
}
