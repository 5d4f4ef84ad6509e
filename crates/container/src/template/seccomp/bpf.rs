//! Compiles a profile to the BPF program that the kernel runs over `struct seccomp_data`
//! (seccomp(2)).
//!
//! Runtimes compile the profile with libseccomp at each start, which takes milliseconds. This
//! module compiles it once per template. A test compares the results of both programs for all
//! calls. They differ only if libseccomp is older than a name in the profile: it ignores the name
//! and treats the call as one without a rule.
//!
//! The crate `seccompiler` does the same for one ABI per filter. A container needs several: see
//! issue 74 of rust-vmm/seccompiler.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompOperator as Operator,
};
use syscalls::{x86, x86_64};

use super::sync::SYNC_CALLS;

/// An instruction: `struct sock_filter` in linux/filter.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u16,
    if_true: u8,
    if_false: u8,
    k: u32,
}

/// The instruction codes of linux/bpf_common.h: load a word of the data, AND it with a constant,
/// jump if it is equal to a constant, jump if it is not less, jump always, return a constant.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const JUMP: u16 = 0x05;
const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data`. On a little-endian machine, the lower half of an argument
/// comes first.
const NUMBER: u32 = 0;
const ABI: u32 = 4;
const ARGUMENTS: u32 = 16;

/// The results of a filter in linux/seccomp.h.
const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
const KILL_THREAD: u32 = 0;

/// `AUDIT_ARCH_X86_64` and `AUDIT_ARCH_I386` in linux/audit.h.
const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;

/// `BPF_MAXINSNS` in linux/bpf_common.h.
const MOST_INSTRUCTIONS: usize = 4096;

/// Calls that are newer than the table of the crate `syscalls`. From 424 on, a call has the same
/// number in every ABI.
const NEWER: [(u32, &str); 6] = [
    (461, "lsm_list_modules"),
    (462, "mseal"),
    (463, "setxattrat"),
    (464, "getxattrat"),
    (465, "listxattrat"),
    (466, "removexattrat"),
];
const NEWER_ON_X86_64: (u32, &str) = (335, "uretprobe");

/// The ABIs that a filter can be compiled for.
const ABIS: [(Arch, Abi); 2] = [
    (Arch::ScmpArchX86_64, Abi { audit: X86_64, calls: x86_64_calls }),
    (Arch::ScmpArchX86, Abi { audit: I386, calls: x86_calls }),
];

/// The call numbers of x32, which the kernel reports as x86_64. If a profile does not include x32,
/// libseccomp's filter kills a thread that makes such a call. The last number is excluded: a tracer
/// skips a call with it.
const X32: std::ops::Range<u32> = 0x4000_0000..0xffff_ffff;

#[derive(Clone, Copy)]
struct Abi {
    /// The kernel's identifier of the ABI.
    audit: u32,
    /// Returns the numbers and names of its calls, in order.
    calls: fn() -> Vec<(u32, &'static str)>,
}

/// The result of the filter for a call.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Always(u32),
    /// The result of the first rule whose tests all hold. Without one, the last value is the
    /// result.
    ByArguments(Vec<(Vec<Test>, u32)>, u32),
}

/// Compares the bits of an argument that are set in a mask with a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Test {
    argument: u32,
    mask: u64,
    value: u64,
    /// Whether the test holds if they are equal, or if they are not.
    equal: bool,
}

/// Returns the BPF program of `profile` for a machine like this one. Returns `None` for profiles
/// that only libseccomp can compile: with other architectures, with actions other than to allow and
/// to return an error, and with tests of an argument other than for equality, equality under a
/// mask, and inequality.
///
/// The default action must be an error. A rule with tests may only allow a call, except for the
/// calls that wait for the disk. So a call without a rule is always denied. That includes calls
/// that i386 multiplexes through socketcall(2) and ipc(2), which libseccomp decodes and this
/// compiler does not.
pub(super) fn compile(profile: &LinuxSeccomp) -> Option<Vec<u8>> {
    if !cfg!(target_arch = "x86_64") {
        return None;
    }
    let program = program(profile)?;
    let mut bytes = Vec::with_capacity(8 * program.len());
    for Instruction { code, if_true, if_false, k } in program {
        bytes.extend(code.to_ne_bytes());
        bytes.extend([if_true, if_false]);
        bytes.extend(k.to_ne_bytes());
    }
    Some(bytes)
}

fn program(profile: &LinuxSeccomp) -> Option<Vec<Instruction>> {
    let plain = profile.flags().as_ref().is_none_or(Vec::is_empty) && profile.listener_path().is_none();
    if !plain || profile.default_action() != Action::ScmpActErrno {
        return None;
    }
    let otherwise = result(profile.default_action(), profile.default_errno_ret())?;
    let verdicts = verdicts(profile, otherwise)?;
    let mut program = vec![load(ABI)];
    for arch in profile.architectures().as_deref()? {
        let (_, abi) = ABIS.iter().find(|(known, _)| known == arch)?;
        let mut calls = vec![load(NUMBER)];
        tree(&ranges(&verdicts, otherwise, abi), &mut calls);
        program.push(Instruction { code: JUMP_EQUAL, if_true: 1, if_false: 0, k: abi.audit });
        program.push(Instruction { code: JUMP, if_true: 0, if_false: 0, k: calls.len() as u32 });
        program.extend(calls);
    }
    program.push(ret(KILL_THREAD));
    (program.len() <= MOST_INSTRUCTIONS).then_some(program)
}

/// Returns the results of the calls that have rules, by their names.
fn verdicts(profile: &LinuxSeccomp, otherwise: u32) -> Option<HashMap<&str, Verdict>> {
    let mut verdicts = HashMap::new();
    for rule in profile.syscalls().iter().flatten() {
        let action = result(rule.action(), rule.errno_ret())?;
        let tests = tests(rule.args().as_deref().unwrap_or_default())?;
        for name in rule.names() {
            let may_have_tests = rule.action() == Action::ScmpActAllow || SYNC_CALLS.contains(&name.as_str());
            match verdicts.entry(name.as_str()) {
                Entry::Vacant(entry) if tests.is_empty() => drop(entry.insert(Verdict::Always(action))),
                Entry::Vacant(entry) if may_have_tests => {
                    entry.insert(Verdict::ByArguments(vec![(tests.clone(), action)], otherwise));
                }
                Entry::Occupied(mut entry) if may_have_tests && !tests.is_empty() => match entry.get_mut() {
                    Verdict::ByArguments(rules, _) => rules.push((tests.clone(), action)),
                    Verdict::Always(_) => return None,
                },
                // Versions of libseccomp differ on such a test, and on two rules for one call.
                Entry::Vacant(_) | Entry::Occupied(_) => return None,
            }
        }
    }
    Some(verdicts)
}

/// Returns the results of the calls of one ABI. Each holds from its number to the next.
fn ranges(verdicts: &HashMap<&str, Verdict>, otherwise: u32, abi: &Abi) -> Vec<(u32, Verdict)> {
    let mut ranges = vec![(0, Verdict::Always(otherwise))];
    let mut next = 0;
    for (number, name) in (abi.calls)() {
        let Some(verdict) = verdicts.get(name) else { continue };
        if next < number {
            ranges.push((next, Verdict::Always(otherwise)));
        }
        ranges.push((number, verdict.clone()));
        next = number + 1;
    }
    ranges.push((next, Verdict::Always(otherwise)));
    if abi.audit == X86_64 {
        ranges.push((X32.start, Verdict::Always(KILL_THREAD)));
        ranges.push((X32.end, Verdict::Always(otherwise)));
    }
    ranges.dedup_by(|later, earlier| match later.0 == earlier.0 {
        // The earlier range is empty, and the later replaces it.
        true => {
            earlier.1 = later.1.clone();
            true
        }
        false => later.1 == earlier.1,
    });
    ranges
}

/// Appends a binary search for the range of the loaded number to `program`. The new code always
/// returns.
fn tree(ranges: &[(u32, Verdict)], program: &mut Vec<Instruction>) {
    match ranges {
        [(_, Verdict::Always(result))] => program.push(ret(*result)),
        [(_, Verdict::ByArguments(rules, otherwise))] => {
            for (tests, result) in rules {
                let mut rule = vec![ret(*result)];
                tests.iter().rev().for_each(|test| test.prepend_to(&mut rule));
                program.extend(rule);
            }
            program.push(ret(*otherwise));
        }
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            let at = program.len();
            let jump = |if_true, if_false| Instruction { code: JUMP_GREATER_OR_EQUAL, if_true, if_false, k: high[0].0 };
            program.push(jump(0, 0));
            tree(low, program);
            let below = program.len() - at - 1;
            match u8::try_from(below) {
                Ok(below) => program[at] = jump(below, 0),
                // A conditional jump does not reach that far.
                Err(_) => {
                    program[at] = jump(0, 1);
                    let over = Instruction { code: JUMP, if_true: 0, if_false: 0, k: below as u32 };
                    program.insert(at + 1, over);
                }
            }
            tree(high, program);
        }
    }
}

impl Test {
    /// Inserts the test before `rule`. If it does not hold, the program jumps over `rule`.
    fn prepend_to(self, rule: &mut Vec<Instruction>) {
        let over = u8::try_from(rule.len()).expect("a call has six arguments");
        let (if_equal, if_different) = if self.equal { (0, over) } else { (over, 0) };
        let mut code = vec![load(ARGUMENTS + 8 * self.argument)];
        code.extend(and(self.mask as u32));
        code.push(Instruction { code: JUMP_EQUAL, if_true: if_equal, if_false: if_different, k: self.value as u32 });
        if let (mask @ 1.., value) = ((self.mask >> 32) as u32, (self.value >> 32) as u32) {
            // If the upper halves differ, the lower ones do not matter.
            let over_the_lower = code.len() as u8 + if_different;
            let mut upper = vec![load(ARGUMENTS + 8 * self.argument + 4)];
            upper.extend(and(mask));
            upper.push(Instruction { code: JUMP_EQUAL, if_true: 0, if_false: over_the_lower, k: value });
            code.splice(..0, upper);
        }
        rule.splice(..0, code);
    }
}

/// Returns the instruction that clears the bits of the loaded word that are not set in `mask`.
fn and(mask: u32) -> Option<Instruction> {
    (mask != u32::MAX).then_some(Instruction { code: AND, if_true: 0, if_false: 0, k: mask })
}

fn load(k: u32) -> Instruction {
    Instruction { code: LOAD, if_true: 0, if_false: 0, k }
}

fn ret(k: u32) -> Instruction {
    Instruction { code: RETURN, if_true: 0, if_false: 0, k }
}

fn result(action: Action, errno: Option<u32>) -> Option<u32> {
    match action {
        Action::ScmpActAllow => Some(ALLOW),
        Action::ScmpActErrno => errno.filter(|errno| *errno <= 0xffff).map(|errno| ERRNO | errno),
        _ => None,
    }
}

/// Returns the tests of one rule, or `None` if two concern the same argument: the runtimes treat
/// those as alternatives.
fn tests(arguments: &[LinuxSeccompArg]) -> Option<Vec<Test>> {
    let tests: Vec<Test> = arguments.iter().map(test).collect::<Option<_>>()?;
    let is_ambiguous = |(at, test): (usize, &Test)| tests[..at].iter().any(|other| other.argument == test.argument);
    (!tests.iter().enumerate().any(is_ambiguous)).then_some(tests)
}

fn test(argument: &LinuxSeccompArg) -> Option<Test> {
    let (mask, value, equal) = match argument.op() {
        Operator::ScmpCmpEq => (u64::MAX, argument.value(), true),
        Operator::ScmpCmpNe => (u64::MAX, argument.value(), false),
        Operator::ScmpCmpMaskedEq => (argument.value(), argument.value_two()?, true),
        _ => return None,
    };
    let is_possible = argument.index() < 6 && value & !mask == 0;
    is_possible.then_some(Test { argument: argument.index() as u32, mask, value, equal })
}

fn x86_64_calls() -> Vec<(u32, &'static str)> {
    in_order(x86_64::Sysno::iter().map(|call| (call.id() as u32, call.name())).chain([NEWER_ON_X86_64]))
}

fn x86_calls() -> Vec<(u32, &'static str)> {
    in_order(x86::Sysno::iter().map(|call| (call.id() as u32, call.name())))
}

fn in_order(known: impl Iterator<Item = (u32, &'static str)>) -> Vec<(u32, &'static str)> {
    let mut known: Vec<_> = known.chain(NEWER).collect();
    known.sort_unstable();
    known
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashSet};

    use serde_json::{Value, json};

    use super::*;

    fn compiled(change: impl FnOnce(&mut Value)) -> Option<Vec<Instruction>> {
        let mut profile = json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 38,
            "architectures": ["SCMP_ARCH_X86_64"],
            "flags": [],
            "syscalls": [
                {"names": ["read", "write", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
                {
                    "names": ["open"],
                    "action": "SCMP_ACT_ALLOW",
                    "args": [{"index": 1, "value": 3, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]
                }
            ]
        });
        change(&mut profile);
        program(&serde_json::from_value(profile).unwrap())
    }

    #[test]
    fn a_program_searches_for_the_range_and_tests_arguments() {
        let jump = |code, if_true, if_false, k| Instruction { code, if_true, if_false, k };
        let no_such_call = ERRNO | 38;
        let expected = vec![
            load(ABI),
            jump(JUMP_EQUAL, 1, 0, X86_64),
            jump(JUMP, 0, 0, 14),
            load(NUMBER),
            jump(JUMP_GREATER_OR_EQUAL, 7, 0, 3),
            jump(JUMP_GREATER_OR_EQUAL, 1, 0, 2),
            ret(ALLOW),
            load(ARGUMENTS + 8),
            jump(AND, 0, 0, 3),
            jump(JUMP_EQUAL, 0, 1, 0),
            ret(ALLOW),
            ret(no_such_call),
            jump(JUMP_GREATER_OR_EQUAL, 1, 0, X32.start),
            ret(no_such_call),
            jump(JUMP_GREATER_OR_EQUAL, 1, 0, X32.end),
            ret(KILL_THREAD),
            ret(no_such_call),
            ret(KILL_THREAD),
        ];
        assert_eq!(compiled(|_| {}), Some(expected));
    }

    #[test]
    fn a_test_of_a_whole_argument_compares_both_halves() {
        let jump = |if_true, if_false, k| Instruction { code: JUMP_EQUAL, if_true, if_false, k };
        let (lower, upper) = (ARGUMENTS + 16, ARGUMENTS + 20);
        let and = |k| Instruction { code: AND, if_true: 0, if_false: 0, k };
        let equal = Test { argument: 2, mask: u64::MAX, value: 7 << 32 | 4, equal: true };
        let table = [
            (equal, vec![load(upper), jump(0, 3, 7), load(lower), jump(0, 1, 4), ret(ALLOW)]),
            (Test { equal: false, ..equal }, vec![load(upper), jump(0, 2, 7), load(lower), jump(1, 0, 4), ret(ALLOW)]),
            (
                Test { mask: 0xf_ffff_fff0, value: 1 << 32, ..equal },
                vec![load(upper), and(0xf), jump(0, 4, 1), load(lower), and(0xffff_fff0), jump(0, 1, 0), ret(ALLOW)],
            ),
            (Test { mask: 0xffff_ffff, value: 4, ..equal }, vec![load(lower), jump(0, 1, 4), ret(ALLOW)]),
        ];
        for (test, expected) in table {
            let mut rule = vec![ret(ALLOW)];
            test.prepend_to(&mut rule);
            assert_eq!(rule, expected, "{test:?}");
        }
    }

    /// The compiler would silently ignore a name that is missing in the tables.
    #[test]
    fn every_name_of_the_profile_has_a_number() {
        let known: HashSet<_> = x86_64_calls().into_iter().chain(x86_calls()).map(|(_, name)| name).collect();
        let profile = super::super::profile::default("x86_64", &[crate::template::Capability::SysAdmin]);
        let names = profile.syscalls().iter().flatten().flat_map(|rule| rule.names());
        let unknown: BTreeSet<_> = names.map(String::as_str).filter(|name| !known.contains(name)).collect();
        // i386 makes two of them through socketcall(2), which is allowed. One is of another
        // architecture.
        assert_eq!(unknown, BTreeSet::from(["recv", "riscv_hwprobe", "send"]));
    }

    #[test]
    fn profiles_that_only_libseccomp_can_compile_are_left_to_the_runtime() {
        let masked = |index| json!({"index": index, "value": 1, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"});
        let error = |name| json!({"names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": 0, "args": [masked(0)]});
        let table: &[(&str, Value)] = &[
            ("/architectures/0", json!("SCMP_ARCH_X32")),
            ("/architectures", Value::Null),
            ("/defaultAction", json!("SCMP_ACT_NOTIFY")),
            ("/defaultAction", json!("SCMP_ACT_ALLOW")),
            ("/syscalls/1", error("connect")),
            ("/syscalls/1/args/0/valueTwo", json!(4)),
            ("/flags", json!(["SECCOMP_FILTER_FLAG_LOG"])),
            ("/defaultErrnoRet", Value::Null),
            ("/syscalls/0/action", json!("SCMP_ACT_KILL")),
            ("/syscalls/0/names/0", json!("open")),
            ("/syscalls/1/args/0/op", json!("SCMP_CMP_GT")),
            ("/syscalls/1/args", json!([masked(1), masked(1)])),
        ];
        let change = |field: &str, value: &Value| {
            let value = value.clone();
            compiled(|profile: &mut Value| *profile.pointer_mut(field).unwrap() = value)
        };
        for (field, value) in table {
            assert_eq!(change(field, value), None, "{field}: {value}");
        }
        assert!(change("/syscalls/1", &error("msync")).is_some());
        assert!(change("/syscalls/1/args", &json!([masked(0), masked(1)])).is_some());
    }
}
