//! The rules that make calls which wait for the disk return immediately.

use oci_spec::runtime::{LinuxSeccomp, LinuxSyscall};

use super::rule::{allow, answer, equal, masked, not_equal, replace_rules};

/// The calls that [`Fsync::Ignored`](super::Fsync::Ignored) skips. The runtimes ignore a name that
/// an architecture does not have. fsync(2), fdatasync(2) and syncfs(2) are not among them: on a
/// volatile overlay they do not wait, and the kernel knows which descriptors are open.
pub(super) const SYNC_CALLS: [&str; 4] = ["msync", "sync", "sync_file_range", "sync_file_range2"];

/// The calls whose first argument is a descriptor on every architecture.
const ON_DESCRIPTORS: [&str; 2] = ["sync_file_range", "sync_file_range2"];

/// The sign bit of a descriptor, an `int`. The kernel ignores the upper half of the register.
const SIGN: u64 = 1 << 31;

/// The flag that makes msync(2) wait for the disk: `MS_SYNC` in linux/mman.h.
const MS_SYNC: u64 = 4;

/// Makes the calls that wait for the disk succeed immediately, whatever `profile` says about them.
///
/// They succeed only if the real call could. A call that the kernel refuses still reaches it,
/// because programs test for these errors: a negative descriptor and, for msync(2), an address
/// within a page or flags other than `MS_SYNC`.
pub(super) fn ignore_sync(profile: &mut LinuxSeccomp) {
    replace_rules(profile, &SYNC_CALLS, rules(rustix::param::page_size() as u64));
}

/// Returns the rules. For each call one of them always holds, because the profile's default action
/// may be an error. Two rules with different actions never hold for the same call, because
/// libseccomp does not define which of them wins.
fn rules(page_size: u64) -> Vec<LinuxSyscall> {
    let is_aligned = masked(0, page_size - 1, 0);
    let mut rules = vec![
        answer(["sync"], &[], 0),
        answer(ON_DESCRIPTORS, &[masked(0, SIGN, 0)], 0),
        allow(ON_DESCRIPTORS, &[masked(0, SIGN, SIGN)]),
        answer(["msync"], &[is_aligned, equal(2, MS_SYNC)], 0),
        allow(["msync"], &[is_aligned, not_equal(2, MS_SYNC)]),
    ];
    // There is no operator for "not equal under a mask". An address within a page has at least one
    // of the lower bits, so there is one rule per bit.
    let lower_bits = (0..page_size.trailing_zeros()).map(|bit| 1 << bit);
    rules.extend(lower_bits.map(|bit| allow(["msync"], &[masked(0, bit, bit)])));
    rules
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn other_rules_for_the_sync_calls_are_removed_from_a_profile() {
        let mut profile: LinuxSeccomp = serde_json::from_value(json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "architectures": ["SCMP_ARCH_RISCV64"],
            "syscalls": [
                {"names": ["read", "msync", "fsync"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["sync"], "action": "SCMP_ACT_TRAP"}
            ]
        }))
        .unwrap();
        let mut expected = profile.clone();
        let kept = serde_json::from_value(json!({"names": ["read", "fsync"], "action": "SCMP_ACT_ALLOW"})).unwrap();
        let ours = rules(rustix::param::page_size() as u64);
        expected.set_syscalls(Some([kept].into_iter().chain(ours).collect()));
        ignore_sync(&mut profile);
        assert_eq!(profile, expected);
    }

    #[test]
    fn a_call_is_skipped_only_if_the_real_one_could_succeed() {
        let of_a_descriptor = ["sync_file_range", "sync_file_range2"];
        let when = |index: usize, op: &str, value: u64, value_two: Option<u64>| match value_two {
            None => json!({"index": index, "op": op, "value": value}),
            Some(value_two) => json!({"index": index, "op": op, "value": value, "valueTwo": value_two}),
        };
        let masked = |mask, value| when(0, "SCMP_CMP_MASKED_EQ", mask, Some(value));
        let lower_bit = |bit: u64| json!({"names": ["msync"], "action": "SCMP_ACT_ALLOW", "args": [masked(bit, bit)]});
        let expected = json!([
            {"names": ["sync"], "action": "SCMP_ACT_ERRNO", "errnoRet": 0},
            {"names": of_a_descriptor, "action": "SCMP_ACT_ERRNO", "errnoRet": 0, "args": [masked(SIGN, 0)]},
            {"names": of_a_descriptor, "action": "SCMP_ACT_ALLOW", "args": [masked(SIGN, SIGN)]},
            {
                "names": ["msync"], "action": "SCMP_ACT_ERRNO", "errnoRet": 0,
                "args": [masked(7, 0), when(2, "SCMP_CMP_EQ", MS_SYNC, None)]
            },
            {
                "names": ["msync"], "action": "SCMP_ACT_ALLOW",
                "args": [masked(7, 0), when(2, "SCMP_CMP_NE", MS_SYNC, None)]
            },
            lower_bit(1), lower_bit(2), lower_bit(4)
        ]);
        assert_eq!(serde_json::to_value(rules(8)).unwrap(), expected);
    }
}
