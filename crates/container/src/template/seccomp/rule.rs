//! Creates the rules of a profile and their conditions, for `profile`, `sync` and `owners`.

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompOperator as Operator, LinuxSyscall,
};

/// Makes `rules` the only rules of `profile` for `calls`.
///
/// If a call has two rules, libseccomp keeps the first or refuses the second, depending on its
/// version. Therefore the other rules for these calls are removed.
pub(super) fn replace_rules(profile: &mut LinuxSeccomp, calls: &[&str], rules: impl IntoIterator<Item = LinuxSyscall>) {
    let mut all: Vec<LinuxSyscall> = profile.syscalls().clone().unwrap_or_default();
    let is_replaced = |name: &String| calls.contains(&name.as_str());
    for rule in all.iter_mut().filter(|rule| rule.names().iter().any(is_replaced)) {
        let names = rule.names().iter().filter(|name| !is_replaced(name)).cloned().collect();
        rule.set_names(names);
    }
    all.retain(|rule| !rule.names().is_empty());
    all.extend(rules);
    profile.set_syscalls(Some(all));
}

/// Returns a rule that allows the calls if every condition holds.
pub(super) fn allow(
    names: impl IntoIterator<Item = impl Into<String>>,
    conditions: &[LinuxSeccompArg],
) -> LinuxSyscall {
    rule(names, conditions, Action::ScmpActAllow, None)
}

/// Returns a rule that skips the calls and returns `errno` if every condition holds. With 0, the
/// calls return 0.
pub(super) fn answer(
    names: impl IntoIterator<Item = impl Into<String>>,
    conditions: &[LinuxSeccompArg],
    errno: u32,
) -> LinuxSyscall {
    rule(names, conditions, Action::ScmpActErrno, Some(errno))
}

fn rule(
    names: impl IntoIterator<Item = impl Into<String>>,
    conditions: &[LinuxSeccompArg],
    action: Action,
    errno: Option<u32>,
) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names.into_iter().map(Into::into).collect()).set_action(action).set_errno_ret(errno);
    rule.set_args((!conditions.is_empty()).then(|| conditions.to_vec()));
    rule
}

/// Returns the condition that an argument is equal to `value`.
pub(super) fn equal(index: usize, value: u64) -> LinuxSeccompArg {
    condition(index, Operator::ScmpCmpEq, value, None)
}

/// Returns the condition that an argument is not equal to `value`.
pub(super) fn not_equal(index: usize, value: u64) -> LinuxSeccompArg {
    condition(index, Operator::ScmpCmpNe, value, None)
}

/// Returns the condition that the bits of an argument that are set in `mask` are equal to `value`.
pub(super) fn masked(index: usize, mask: u64, value: u64) -> LinuxSeccompArg {
    condition(index, Operator::ScmpCmpMaskedEq, mask, Some(value))
}

fn condition(index: usize, op: Operator, value: u64, value_two: Option<u64>) -> LinuxSeccompArg {
    let mut builder = LinuxSeccompArgBuilder::default().index(index).op(op).value(value);
    if let Some(value_two) = value_two {
        builder = builder.value_two(value_two);
    }
    builder.build().expect("every required field is given")
}
