//! Checks the limits of open files, namespaces and processes. [`cgroups`](super::cgroups) checks
//! the controllers that limit a single run.

use std::fs;

use rustix::process::{Resource, getrlimit};

use super::check::Check;

pub(super) fn checks() -> Vec<Check> {
    // `main` has raised the soft limit to the hard limit.
    let mut checks = vec![open_files(getrlimit(Resource::Nofile).current)];
    let limit = |kind: &str| number(&format!("/proc/sys/user/max_{kind}_namespaces"));
    let limits = NAMESPACES.map(|(kind, each)| limit(kind).map(|limit| (kind, limit, each)));
    checks.extend(namespaces(&limits.into_iter().flatten().collect::<Vec<_>>()));
    checks.extend(processes(number("/proc/sys/kernel/pid_max"), number("/proc/sys/kernel/threads-max")));
    checks
}

fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Enough for a stack of 500 layers whose directories are named by descriptors, and for a merge of
/// deep trees.
const ENOUGH_FILES: u64 = 1024;

fn open_files(limit: Option<u64>) -> Check {
    match limit {
        None => Check::ok("open files", "no limit"),
        Some(limit) if limit >= ENOUGH_FILES => Check::ok("open files", format!("up to {limit}")),
        Some(limit) => Check::warning("open files", format!("up to {limit}"))
            .means("large stacks and merges of deep trees may exceed that")
            .advice(format!("raise the hard limit to {ENOUGH_FILES} or more (ulimit -Hn)")),
    }
}

/// The number of namespaces of each kind that a run uses: its own for mounts, those of the runtime,
/// and those of the container.
const NAMESPACES: [(&str, u64); 6] = [("mnt", 3), ("pid", 2), ("net", 1), ("ipc", 1), ("uts", 1), ("cgroup", 1)];

/// The number of concurrent runs that a busy machine can have.
const MANY_RUNS: u64 = 64;

/// Checks limits of namespaces: the kind, the limit, and the number that a run uses. A limit that
/// the kernel does not report is not checked.
fn namespaces(limits: &[(&str, u64, u64)]) -> Option<Check> {
    let (kind, limit, each) = limits.iter().min_by_key(|(_, limit, each)| limit / each)?;
    let runs = limit / each;
    let found = format!("user.max_{kind}_namespaces is {limit}");
    let means = format!("room for {runs} concurrent runs");
    Some(match runs {
        0 => Check::failed("namespaces", found)
            .means("a run cannot create its namespaces")
            .advice(format!("run sysctl user.max_{kind}_namespaces={}", each * MANY_RUNS)),
        runs if runs < MANY_RUNS => Check::warning("namespaces", found)
            .means(means)
            .advice(format!("for {MANY_RUNS}, run sysctl user.max_{kind}_namespaces={}", each * MANY_RUNS)),
        _ => Check::ok("namespaces", found).means(means),
    })
}

/// Concurrent builds soon use up a smaller number.
const FEW_PROCESSES: u64 = 4096;

fn processes(pid_max: Option<u64>, threads_max: Option<u64>) -> Option<Check> {
    let limit = pid_max.into_iter().chain(threads_max).min()?;
    let found = format!("up to {limit} on the machine");
    Some(match limit >= FEW_PROCESSES {
        true => Check::ok("processes", found),
        false => Check::warning("processes", found)
            .means("concurrent builds soon reach that, and then cannot start processes")
            .advice("raise kernel.pid_max and kernel.threads-max"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::check::Verdict::{Failed, Ok, Warning};

    #[test]
    fn a_low_limit_is_a_warning_and_one_below_a_single_run_a_failure() {
        for (limit, verdict) in [(None, Ok), (Some(1 << 20), Ok), (Some(1024), Ok), (Some(256), Warning)] {
            assert_eq!(open_files(limit).verdict, verdict, "{limit:?}");
        }
        let table = [
            (&[("mnt", 60_000, 3), ("pid", 60_000, 2)][..], Some(Ok)),
            (&[("mnt", 60_000, 3), ("pid", 20, 2)], Some(Warning)),
            (&[("mnt", 2, 3)], Some(Failed)),
            (&[("net", 0, 1)], Some(Failed)),
            (&[], None),
        ];
        for (limits, verdict) in table {
            assert_eq!(namespaces(limits).map(|check| check.verdict), verdict, "{limits:?}");
        }
        let table = [
            (Some(4_194_304), Some(60_000), Some(Ok)),
            (Some(300), Some(60_000), Some(Warning)),
            (None, Some(100), Some(Warning)),
            (None, None, None),
        ];
        for (pid_max, threads_max, verdict) in table {
            assert_eq!(
                processes(pid_max, threads_max).map(|check| check.verdict),
                verdict,
                "{pid_max:?} {threads_max:?}"
            );
        }
    }
}
