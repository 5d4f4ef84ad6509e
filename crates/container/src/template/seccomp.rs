//! Seccomp profiles as data, and the rule that makes `fsync` free.

use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSyscall};

/// The calls that [`Fsync::Ignored`](super::Fsync::Ignored) answers: everything that only waits for a disk. A name that an
/// architecture lacks is passed over by the runtimes.
const SYNC_CALLS: [&str; 7] = ["fdatasync", "fsync", "msync", "sync", "sync_file_range", "sync_file_range2", "syncfs"];

/// The call conventions that a program for this machine may use. libseccomp kills a process that makes a call by one that
/// the filter does not name, so those that the kernel runs beside its own are all named (Docker's list).
const ARCHITECTURES: &[Arch] = if cfg!(target_arch = "x86_64") {
    &[Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32]
} else if cfg!(target_arch = "aarch64") {
    &[Arch::ScmpArchAarch64, Arch::ScmpArchArm]
} else if cfg!(target_arch = "s390x") {
    &[Arch::ScmpArchS390x, Arch::ScmpArchS390]
} else {
    &[]
};

/// A profile that lets every call through: the ground for rules that change a few.
pub(super) fn allow_all() -> LinuxSeccomp {
    let mut profile = LinuxSeccomp::default();
    profile.set_default_action(LinuxSeccompAction::ScmpActAllow);
    // Without the field the filter is for the native convention alone.
    profile.set_architectures((!ARCHITECTURES.is_empty()).then(|| ARCHITECTURES.to_vec()));
    profile
}

/// Adds to `profile` that the calls which wait for a disk succeed at once, whatever it said of them.
pub(super) fn ignore_sync(profile: &mut LinuxSeccomp) {
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
