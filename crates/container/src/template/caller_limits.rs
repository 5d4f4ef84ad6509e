//! Decides which resource limits the calling process may give to a container.

use std::fs;

use rustix::process::getrlimit;
use rustix::thread::{CapabilitySet, capabilities};

use super::defaults::OPEN_FILES;
use super::error::TemplateError;
use super::rlimit::{Rlimit, RlimitKind};

/// Returns the hard limit of the calling process.
pub(super) fn hard_limit_of_caller(kind: RlimitKind) -> u64 {
    getrlimit(kind.resource()).maximum.unwrap_or(Rlimit::UNLIMITED)
}

/// Returns the default limit of open files lowered to the caller's hard limit, if that is lower.
pub(super) fn lowered_open_files(of_caller: u64) -> Option<Rlimit> {
    let lowered = Rlimit { soft: OPEN_FILES.soft.min(of_caller), hard: of_caller, ..OPEN_FILES };
    (of_caller < OPEN_FILES.hard).then_some(lowered)
}

/// Refuses a limit that the calling process may not give to a container. Without CAP_SYS_RESOURCE,
/// that is any limit above the caller's own hard limit. Even with it, the sysctl `fs.nr_open`
/// bounds the number of open files.
pub(super) fn check_for_caller(limit: &Rlimit) -> Result<(), TemplateError> {
    let is_privileged = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_RESOURCE));
    let own = if is_privileged { Rlimit::UNLIMITED } else { hard_limit_of_caller(limit.kind) };
    let open_files = match limit.kind {
        RlimitKind::Nofile => fs::read_to_string("/proc/sys/fs/nr_open").ok(),
        _ => None,
    };
    let kernels = open_files.and_then(|text| text.trim().parse().ok()).unwrap_or(Rlimit::UNLIMITED);
    check(limit, own, kernels)
}

fn check(limit: &Rlimit, of_caller: u64, of_kernel: u64) -> Result<(), TemplateError> {
    let (highest, remedy) = match of_caller <= of_kernel {
        true => (of_caller, "ask for at most that, raise the caller's own hard limit, or give it CAP_SYS_RESOURCE"),
        false => (of_kernel, "ask for at most that, or raise the sysctl fs.nr_open"),
    };
    match limit.hard > highest {
        true => Err(TemplateError::RlimitBeyondCaller { kind: limit.kind, hard: limit.hard, highest, remedy }),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_limit_of_open_files_is_lowered_to_the_callers() {
        let table = [
            (Rlimit::UNLIMITED, None),
            (524_288, None),
            (524_287, Some((1024, 524_287))),
            (1024, Some((1024, 1024))),
            (256, Some((256, 256))),
        ];
        for (of_caller, expected) in table {
            let lowered = lowered_open_files(of_caller).map(|limit| (limit.soft, limit.hard));
            assert_eq!(lowered, expected, "{of_caller}");
        }
    }

    #[test]
    fn a_limit_beyond_the_callers_is_refused() {
        let limit = |hard| Rlimit { kind: RlimitKind::Nofile, soft: 1, hard };
        let refused = |hard, of_caller, of_kernel| check(&limit(hard), of_caller, of_kernel).map_err(|e| e.to_string());
        let no_limit = Rlimit::UNLIMITED;
        assert_eq!(refused(4096, 4096, no_limit), Ok(()));
        assert_eq!(refused(no_limit, no_limit, no_limit), Ok(()));
        assert_eq!(
            refused(4097, 4096, 1 << 20),
            Err("the limit RLIMIT_NOFILE of 4097 is above 4096, the most that this process may give: ask for at most that, raise the caller's own hard limit, or give it CAP_SYS_RESOURCE".into())
        );
        assert_eq!(
            refused(no_limit, no_limit, 1 << 20),
            Err("the limit RLIMIT_NOFILE of unlimited is above 1048576, the most that this process may give: ask for at most that, or raise the sysctl fs.nr_open".into())
        );
    }
}
