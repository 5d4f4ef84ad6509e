//! Why a user namespace could not be entered, and what to do about it.

use std::fs;
use std::io;
use std::path::Path;

use rustix::fs::{StatVfsMountFlags, statvfs};

use crate::display::escaped;

/// The reason why [`UserNamespace::enter`](crate::UserNamespace::enter) failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UserNamespaceError {
    /// The process has more than one thread, or shares its working directory with another process.
    /// The kernel lets only the first thread enter.
    #[error(
        "the process has threads already: call UserNamespace::enter first in main, or start the program as `layered unshare -- PROGRAM`"
    )]
    Threads {
        /// The kernel's error.
        source: io::Error,
    },
    /// The kernel or a security policy refused.
    #[error("{}", refusal.advice())]
    Refused {
        /// Who refused.
        refusal: Refusal,
        /// The kernel's error.
        source: io::Error,
    },
    /// The process is in a new user namespace, and a security policy does not let it mount there.
    #[error("the user namespace was created, but mounts in it are forbidden: {}", refusal.advice_for_mounts())]
    Powerless {
        /// Who forbids them.
        refusal: Refusal,
        /// The kernel's error.
        source: io::Error,
    },
    /// The user has reached the limit of user namespaces.
    #[error("no further user namespace is allowed: raise the sysctl user.max_user_namespaces, or end other containers")]
    Exhausted {
        /// The kernel's error.
        source: io::Error,
    },
    /// The kernel was built without user namespaces.
    #[error("the kernel has no user namespaces: run as root")]
    Missing {
        /// The kernel's error.
        source: io::Error,
    },
    /// The caller asked for ranges, and the user has none.
    #[error(
        "{user} has no subordinate IDs: as root, run `usermod --add-subuids FIRST-LAST --add-subgids FIRST-LAST {user}` \
         with 65,536 numbers that no other line of /etc/subuid and /etc/subgid has, or use --ids single",
        user = escaped(user)
    )]
    NoRanges {
        /// The user's name, or the number if the user has no name.
        user: String,
    },
    /// The user has subordinate IDs of one kind only.
    #[error(
        "{user} has subordinate {has} and no subordinate {lacks}: as root, run `usermod --add-sub{option} FIRST-LAST {user}` \
         with 65,536 numbers that no other user has, or use --ids single",
        user = escaped(user),
        option = if *lacks == "users" { "uids" } else { "gids" }
    )]
    HalfRanges {
        /// The user's name, or the number if the user has no name.
        user: String,
        /// `users` or `groups`.
        has: &'static str,
        /// The other one.
        lacks: &'static str,
    },
    /// A line about the user in a list of subordinate IDs is not in the format of subuid(5).
    #[error(
        "{path} has a line that is not USER:FIRST:COUNT: {line}; correct it, or use --ids single",
        line = escaped(line)
    )]
    MalformedRange {
        /// `/etc/subuid` or `/etc/subgid`.
        path: &'static str,
        /// The line.
        line: String,
    },
    /// A program that the ranges need is not installed.
    #[error(
        "{program} is not installed, and the user's subordinate IDs need it: install the package uidmap (shadow-utils), or use --ids single"
    )]
    NoHelper {
        /// `newuidmap`, `newgidmap` or `getsubids`.
        program: &'static str,
    },
    /// A program that the ranges need failed. The message is the program's own.
    #[error("{program} failed ({}): correct /etc/subuid and /etc/subgid, or use --ids single", escaped(message.trim()))]
    HelperFailed {
        /// `newuidmap` or `newgidmap`.
        program: &'static str,
        /// The message of the program, or its exit status.
        message: String,
    },
    /// A program that the ranges need gets no privilege from its set-user-ID bit or its
    /// capabilities.
    #[error("{program} gets no privilege: {obstacle}; use --ids single")]
    HelperPowerless {
        /// `newuidmap` or `newgidmap`.
        program: &'static str,
        /// What keeps the kernel from giving it one.
        obstacle: Obstacle,
    },
    /// getsubids(1) failed. It also fails if the source of subordinate IDs that nsswitch.conf(5)
    /// names does not answer, so a failure does not mean that the user has none.
    #[error(
        "getsubids failed ({}): check that the source after `subid:` in /etc/nsswitch.conf answers and has IDs of the \
         user, or use --ids single",
        escaped(message.trim())
    )]
    SourceFailed {
        /// The message of the program, its exit status, or a line that it should not print.
        message: String,
    },
    /// A file could not be read or written, or a program could not be started.
    #[error("cannot {operation} {path}")]
    Io {
        /// The operation as a verb.
        operation: &'static str,
        /// The path, or the name of a program.
        path: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
}

/// What keeps the kernel from giving privileges to a set-user-ID program: execve(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Obstacle {
    /// A parent of this process has set `no_new_privs`.
    #[error(
        "this process may gain none (no_new_privs, as under `setpriv --no-new-privs` or systemd's NoNewPrivileges=)"
    )]
    NoNewPrivs,
    /// The program is on a file system that is mounted with `nosuid`.
    #[error("its file system is mounted with nosuid")]
    NoSuid,
}

impl Obstacle {
    /// Returns the obstacle for this process and `program`, if there is one.
    pub(super) fn find(program: &Path) -> Option<Self> {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let flags = statvfs(program).map_or(StatVfsMountFlags::empty(), |mount| mount.f_flag);
        Self::of(&status, flags)
    }

    fn of(status: &str, flags: StatVfsMountFlags) -> Option<Self> {
        let no_new_privs =
            status.lines().filter_map(|line| line.strip_prefix("NoNewPrivs:")).any(|on| on.trim() == "1");
        match (no_new_privs, flags.contains(StatVfsMountFlags::NOSUID)) {
            (true, _) => Some(Self::NoNewPrivs),
            (false, true) => Some(Self::NoSuid),
            (false, false) => None,
        }
    }
}

/// The part of the system that refuses user namespaces to ordinary users.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// Debian's sysctl `kernel.unprivileged_userns_clone` is 0.
    Sysctl,
    /// Ubuntu's sysctl `kernel.apparmor_restrict_unprivileged_userns` is 1.
    AppArmor,
    /// Neither of them: a seccomp filter, another security module, or a chroot.
    Unknown,
}

impl Refusal {
    /// Finds out who refused, from the sysctls of this machine.
    pub(super) fn find() -> Self {
        let setting = |name: &str| fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok();
        Self::of(
            setting("unprivileged_userns_clone").as_deref(),
            setting("apparmor_restrict_unprivileged_userns").as_deref(),
        )
    }

    /// Returns the reason for these values of the two sysctls. Most kernels have neither.
    fn of(userns_clone: Option<&str>, apparmor_restricts: Option<&str>) -> Self {
        match (userns_clone.map(str::trim), apparmor_restricts.map(str::trim)) {
            (Some("0"), _) => Refusal::Sysctl,
            (_, Some("1")) => Refusal::AppArmor,
            _ => Refusal::Unknown,
        }
    }

    fn advice(self) -> &'static str {
        match self {
            Refusal::Sysctl => {
                "a sysctl forbids user namespaces: run `sysctl kernel.unprivileged_userns_clone=1` as root, or run layered as root"
            }
            Refusal::AppArmor => {
                "AppArmor forbids user namespaces: give the program a profile with `userns,`, or run \
                 `sysctl kernel.apparmor_restrict_unprivileged_userns=0` as root"
            }
            Refusal::Unknown => {
                "the kernel forbids user namespaces here, as in a chroot or under the seccomp filter of a container \
                 (Docker: --security-opt seccomp=unconfined): allow them, or run as root"
            }
        }
    }

    fn advice_for_mounts(self) -> &'static str {
        match self {
            Refusal::AppArmor => {
                "AppArmor takes the capabilities of programs without a profile: give the program a profile with \
                 `userns,`, or run `sysctl kernel.apparmor_restrict_unprivileged_userns=0` as root"
            }
            Refusal::Sysctl | Refusal::Unknown => {
                "a security module such as SELinux or AppArmor, or the seccomp filter of a container, denies them: allow \
                 them for this program, or run as root"
            }
        }
    }
}

impl UserNamespaceError {
    /// Returns the meaning of a failed unshare(2), or of a failed write to `uid_map`.
    pub(super) fn of_kernel(source: io::Error) -> Self {
        use rustix::io::Errno;
        match Errno::from_io_error(&source) {
            Some(Errno::PERM | Errno::ACCESS) => Self::Refused { refusal: Refusal::find(), source },
            Some(Errno::NOSPC | Errno::USERS) => Self::Exhausted { source },
            Some(Errno::INVAL) => Self::Threads { source },
            _ => Self::Missing { source },
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn a_set_user_id_program_can_meet_two_obstacles() {
        let (none, nosuid) = (StatVfsMountFlags::empty(), StatVfsMountFlags::NOSUID);
        let table = [
            ("Name:\tx\nNoNewPrivs:\t0\n", none, None),
            ("Name:\tx\nNoNewPrivs:\t1\n", none, Some(Obstacle::NoNewPrivs)),
            ("NoNewPrivs:\t1\n", nosuid, Some(Obstacle::NoNewPrivs)),
            ("NoNewPrivs:\t0\n", nosuid, Some(Obstacle::NoSuid)),
            ("", none, None),
        ];
        for (status, flags, expected) in table {
            assert_eq!(Obstacle::of(status, flags), expected, "{status}");
        }
    }

    #[test]
    fn the_sysctls_name_who_refused() {
        let table = [
            (None, None, Refusal::Unknown),
            (Some("1\n"), Some("0\n"), Refusal::Unknown),
            (Some("0\n"), None, Refusal::Sysctl),
            (Some("0\n"), Some("1\n"), Refusal::Sysctl),
            (Some("1\n"), Some("1\n"), Refusal::AppArmor),
            (None, Some("1"), Refusal::AppArmor),
        ];
        for (clone, apparmor, expected) in table {
            assert_eq!(Refusal::of(clone, apparmor), expected, "{clone:?} {apparmor:?}");
        }
    }

    #[test]
    fn each_error_of_the_kernel_has_its_remedy() {
        let table = [
            (Errno::NOSPC, "user.max_user_namespaces"),
            (Errno::USERS, "user.max_user_namespaces"),
            (Errno::INVAL, "layered unshare -- PROGRAM"),
            (Errno::NOSYS, "run as root"),
        ];
        for (errno, part) in table {
            let message = UserNamespaceError::of_kernel(errno.into()).to_string();
            assert!(message.contains(part), "{message}");
        }
        let powerless = |refusal| UserNamespaceError::Powerless { refusal, source: Errno::ACCESS.into() }.to_string();
        assert!(powerless(Refusal::AppArmor).contains("mounts in it are forbidden: AppArmor takes the capabilities"));
        assert!(powerless(Refusal::AppArmor).contains("apparmor_restrict_unprivileged_userns=0"));
        assert!(powerless(Refusal::Unknown).contains("the seccomp filter of a container"));
        let refusals = [Refusal::Sysctl, Refusal::AppArmor, Refusal::Unknown];
        let parts = ["unprivileged_userns_clone=1", "`userns,`", "seccomp"];
        for (refusal, part) in refusals.into_iter().zip(parts) {
            let error = UserNamespaceError::Refused { refusal, source: Errno::PERM.into() }.to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
