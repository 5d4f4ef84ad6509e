//! Docker's default profile (github.com/moby/profiles, `seccomp`) as data, and its rules for one
//! architecture and one set of capabilities.
//!
//! It blocks the same calls as Docker's, but with another error. A call that a capability would
//! allow fails with `EPERM`, as in the kernel. Any other call fails with `ENOSYS`, as if it did not
//! exist. C libraries then use an older call instead. With `EPERM`, they would fail after a call
//! that is newer than the profile or libseccomp. For a profile with `EPERM`, runc corrects this
//! itself, and crun does not.
//!
//! The runtimes ignore a name that an architecture does not have, or that libseccomp does not know
//! yet.

use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction as Action};

use super::architectures::{architectures, set_architectures};
use super::rule::{allow, answer, masked};
use crate::template::capability::Capability;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// The calls that every container may make, on every architecture.
const ALLOWED: &str = "
    accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32 clock_adjtime
    clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep
    clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1
    epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit
    exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2
    fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat
    fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait
    futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid
    getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid
    getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getsid getsockname
    getsockopt gettid gettimeofday getuid getuid32 getxattr getxattrat inotify_add_watch inotify_init inotify_init1
    inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl
    ioprio_get ioprio_set ipc kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lchown32
    lgetxattr link linkat listen listmount listxattr listxattrat llistxattr _llseek lremovexattr lseek lsetxattr
    lstat lstat64 madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat
    mlock mlock2 mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64
    mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall
    munmap name_to_handle_at nanosleep newfstatat _newselect open openat openat2 pause pidfd_open pidfd_send_signal
    pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64
    process_mrelease process_vm_readv process_vm_writev pselect6 pselect6_time64 ptrace pwrite64 pwritev pwritev2
    read readahead readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages
    removexattr removexattrat rename renameat renameat2 restart_syscall riscv_hwprobe rmdir rseq rt_sigaction
    rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64
    rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam
    sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr
    sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop semtimedop_time64
    send sendfile sendfile64 sendmmsg sendmsg sendto set_robust_list set_thread_area set_tid_address setfsgid
    setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority setregid
    setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setsockopt setuid
    setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 sigprocmask
    sigreturn socketcall socketpair splice stat stat64 statfs statfs64 statmount statx symlink symlinkat sync
    sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime
    timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime
    timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime
    utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev
";

/// The calls that every container may make, on some architectures.
const ALLOWED_ON: &[(&str, &str)] = &[
    ("x86_64", "arch_prctl modify_ldt"),
    ("aarch64", "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2"),
    ("powerpc64", "swapcontext sync_file_range2"),
    ("riscv64", "riscv_flush_icache"),
    ("s390x", "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr"),
];

/// The calls that a container may make if it has one of the capabilities.
const ALLOWED_WITH: &[(&[Capability], &str)] = &[
    (&[Capability::Bpf, Capability::SysAdmin], "bpf"),
    (&[Capability::DacReadSearch], "open_by_handle_at"),
    (&[Capability::Perfmon, Capability::SysAdmin], "perf_event_open"),
    (
        &[Capability::SysAdmin],
        "fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr lsm_list_modules lsm_set_self_attr
        mount mount_setattr move_mount open_tree quotactl quotactl_fd setdomainname sethostname setns umount umount2 unshare",
    ),
    (&[Capability::SysBoot], "reboot"),
    (&[Capability::SysChroot], "chroot"),
    (&[Capability::Syslog, Capability::SysAdmin], "syslog"),
    (&[Capability::SysModule], "delete_module finit_module init_module"),
    (&[Capability::SysNice], "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    (&[Capability::SysPacct], "acct"),
    (&[Capability::SysPtrace], "kcmp pidfd_getfd process_madvise"),
    (&[Capability::SysRawio], "ioperm iopl"),
    (&[Capability::SysTime], "clock_settime clock_settime64 settimeofday stime"),
    (&[Capability::SysTtyConfig], "vhangup"),
];

/// The allowed address families of socket(2), as blocks that one mask can match: the first number
/// and the count. Three kinds are missing: `AF_ALG` (38), an interface to the kernel's cryptography
/// that builds do not need; `AF_VSOCK` (40), which has no namespaces and reaches the hypervisor and
/// other virtual machines; and families that Linux has removed.
const FAMILIES: &[(u64, u64)] = &[
    (0, 8), // AF_UNIX, AF_INET, …
    (8, 4), // …, AF_INET6, AF_ROSE
    (13, 1),
    (14, 2), // AF_SECURITY, AF_KEY
    (16, 2), // AF_NETLINK, AF_PACKET
    (18, 1),
    (21, 1),
    (22, 1),
    (24, 1),
    (26, 2), // AF_LLC, AF_IB
    (28, 4), // AF_MPLS, AF_CAN, AF_TIPC, AF_BLUETOOTH
    (32, 2),
    (35, 1),
    (36, 1),
    (39, 1),
    (41, 1),
    (42, 2), // AF_QIPCRTR, AF_SMC
    (44, 2), // AF_XDP, AF_MCTP
];

/// The bits that personality(2) may set: `UNAME26` and `PER_LINUX32`, which change the result of
/// uname(2).
const PERSONALITIES: u64 = 0x20008;

/// The argument with which personality(2) returns the current value and sets nothing.
const PERSONALITY_QUERY: u64 = 0xffff_ffff;

/// The flags of clone(2) that create a namespace: `CLONE_NEWNS`, `CLONE_NEWCGROUP`, `CLONE_NEWUTS`,
/// `CLONE_NEWIPC`, `CLONE_NEWUSER`, `CLONE_NEWPID`, `CLONE_NEWNET`. The flags of clone3(2) are
/// behind a pointer, which a filter cannot follow. Therefore clone3 is not allowed, and C libraries
/// fall back to clone(2).
const NAMESPACES: u64 = 0x7e02_0000;

/// Returns the profile for a container that has `capabilities`, on `arch`
/// ([`std::env::consts::ARCH`]).
pub(super) fn default(arch: &str, capabilities: &[Capability]) -> LinuxSeccomp {
    let has_one = |of: &[Capability]| of.iter().any(|capability| capabilities.contains(capability));
    let with_capability = |allowed: bool| ALLOWED_WITH.iter().filter(move |(of, _)| has_one(of) == allowed);

    let here = ALLOWED_ON.iter().filter(|(on, _)| *on == arch).map(|(_, names)| *names);
    let allowed = [ALLOWED].into_iter().chain(here).chain(with_capability(true).map(|row| row.1));
    let denied: Vec<_> = with_capability(false).flat_map(|row| row.1.split_whitespace()).collect();
    let mut rules = vec![allow(allowed.flat_map(str::split_whitespace), &[])];
    if !denied.is_empty() {
        rules.push(answer(denied, &[], EPERM));
    }
    rules.extend(FAMILIES.iter().map(|(first, count)| allow(["socket"], &[masked(0, LOW & !(count - 1), *first)])));
    rules.push(allow(["personality"], &[masked(0, LOW & !PERSONALITIES, 0)]));
    rules.push(allow(["personality"], &[masked(0, LOW, PERSONALITY_QUERY)]));
    if capabilities.contains(&Capability::SysAdmin) {
        rules.push(allow(["clone", "clone3"], &[]));
    } else {
        // clone(2), "C library/kernel differences": on s390x, the flags are the second argument.
        let flags = if arch == "s390x" { 1 } else { 0 };
        rules.push(allow(["clone"], &[masked(flags, NAMESPACES, 0)]));
    }

    let mut profile = LinuxSeccomp::default();
    profile.set_default_action(Action::ScmpActErrno).set_default_errno_ret(Some(ENOSYS));
    profile.set_syscalls(Some(rules));
    // Docker's profile includes x32. Hardly any programs use x32 and few kernels enable it, but
    // libseccomp 2.5 spends more time on it than on the rest, at the start of every container.
    let architectures = architectures(arch).iter().copied().filter(|arch| *arch != Arch::ScmpArchX32).collect();
    set_architectures(&mut profile, architectures);
    profile
}

/// The compared arguments have 32 bits. The kernel ignores the upper half of the register.
const LOW: u64 = 0xffff_ffff;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use oci_spec::runtime::{LinuxSeccompArg, LinuxSeccompOperator as Operator, LinuxSyscall};

    use super::*;

    #[derive(Debug, PartialEq)]
    enum Answer {
        Done,
        Error(u32),
    }
    use Answer::{Done, Error};

    /// Architecture, capabilities, call, its first two arguments, and the expected answer.
    type Row = (&'static str, &'static [Capability], &'static str, [u64; 2], Answer);

    /// Returns the result that libseccomp's filter for `profile` has for a call.
    fn answer(profile: &LinuxSeccomp, name: &str, arguments: [u64; 2]) -> Answer {
        let holds = |argument: &LinuxSeccompArg| {
            assert_eq!(argument.op(), Operator::ScmpCmpMaskedEq);
            arguments[argument.index()] & argument.value() == argument.value_two().unwrap()
        };
        let rules = profile.syscalls().iter().flatten();
        let mut said = rules
            .filter(|rule| rule.names().iter().any(|known| known == name) && rule.args().iter().flatten().all(holds));
        let rule = said
            .next()
            .map_or((profile.default_action(), profile.default_errno_ret()), |rule| (rule.action(), rule.errno_ret()));
        assert!(said.next().is_none(), "{name}: two rules for one call");
        match rule {
            (Action::ScmpActAllow, None) => Done,
            (Action::ScmpActErrno, Some(errno)) => Error(errno),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn calls_depend_on_architecture_capabilities_and_arguments() {
        use Capability::{Bpf, SysAdmin, SysPtrace, Syslog};
        const NONE: &[Capability] = &[];
        const USUAL: &[Capability] = Capability::DEFAULT;
        let table: &[Row] = &[
            ("x86_64", USUAL, "openat", [0; 2], Done),
            ("x86_64", USUAL, "fsync", [0; 2], Done),
            ("x86_64", USUAL, "arch_prctl", [0; 2], Done),
            ("aarch64", USUAL, "arch_prctl", [0; 2], Error(ENOSYS)),
            ("aarch64", USUAL, "cacheflush", [0; 2], Done),
            ("x86_64", USUAL, "cacheflush", [0; 2], Error(ENOSYS)),
            // Calls that depend on a capability.
            ("x86_64", USUAL, "chroot", [0; 2], Done),
            ("x86_64", NONE, "chroot", [0; 2], Error(EPERM)),
            ("aarch64", USUAL, "mount", [0; 2], Error(EPERM)),
            ("aarch64", &[SysAdmin], "mount", [0; 2], Done),
            ("x86_64", USUAL, "unshare", [0x1000_0000, 0], Error(EPERM)),
            ("x86_64", &[Bpf], "bpf", [0; 2], Done),
            ("x86_64", &[SysAdmin], "bpf", [0; 2], Done),
            ("x86_64", &[Syslog], "bpf", [0; 2], Error(EPERM)),
            ("x86_64", USUAL, "ptrace", [0; 2], Done),
            ("x86_64", USUAL, "pidfd_getfd", [0; 2], Error(EPERM)),
            ("x86_64", &[SysPtrace], "pidfd_getfd", [0; 2], Done),
            ("x86_64", USUAL, "init_module", [0; 2], Error(EPERM)),
            ("x86_64", USUAL, "open_by_handle_at", [0; 2], Error(EPERM)),
            // Calls that no capability allows.
            ("x86_64", &[SysAdmin], "keyctl", [0; 2], Error(ENOSYS)),
            ("x86_64", &[SysAdmin], "add_key", [0; 2], Error(ENOSYS)),
            ("x86_64", &[SysAdmin], "io_uring_setup", [0; 2], Error(ENOSYS)),
            ("aarch64", &[SysAdmin], "userfaultfd", [0; 2], Error(ENOSYS)),
            ("aarch64", &[SysAdmin], "kexec_load", [0; 2], Error(ENOSYS)),
            ("x86_64", USUAL, "a_call_of_the_future", [0; 2], Error(ENOSYS)),
            // A thread, a process, and user namespaces. On s390x, the flags are the second
            // argument.
            ("x86_64", USUAL, "clone", [0x3d_0f00, 0], Done),
            ("x86_64", USUAL, "clone", [17, 0x1000_0000], Done),
            ("x86_64", USUAL, "clone", [0x1000_0011, 0], Error(ENOSYS)),
            ("aarch64", USUAL, "clone", [0x2_0011, 0], Error(ENOSYS)),
            ("s390x", USUAL, "clone", [0, 0x1000_0011], Error(ENOSYS)),
            ("x86_64", &[SysAdmin], "clone", [0x1000_0011, 0], Done),
            ("x86_64", USUAL, "clone3", [0; 2], Error(ENOSYS)),
            ("x86_64", &[SysAdmin], "clone3", [0; 2], Done),
            // linux32 and a query are allowed; ADDR_NO_RANDOMIZE and READ_IMPLIES_EXEC are not.
            ("x86_64", USUAL, "personality", [8, 0], Done),
            ("x86_64", USUAL, "personality", [0x2_0008, 0], Done),
            ("x86_64", USUAL, "personality", [PERSONALITY_QUERY, 0], Done),
            ("x86_64", USUAL, "personality", [0x4_0000, 0], Error(ENOSYS)),
            ("x86_64", USUAL, "personality", [0x40_0000, 0], Error(ENOSYS)),
        ];
        for (arch, capabilities, name, arguments, expected) in table {
            let profile = default(arch, capabilities);
            assert_eq!(answer(&profile, name, *arguments), *expected, "{arch} {capabilities:?} {name}{arguments:x?}");
        }
    }

    /// Tries all numbers of include/linux/socket.h and beyond.
    #[test]
    fn dropped_and_dangerous_address_families_are_blocked() {
        let profile = default("x86_64", Capability::DEFAULT);
        let closed: Vec<u64> = (0..64).filter(|&family| answer(&profile, "socket", [family, 0]) != Done).collect();
        let gone = [12, 19, 20, 23, 25, 34, 37]; // DECnet, ECONET, ATMSVC, IRDA, WANPIPE, ISDN, CAIF
        let (alg, vsock) = (38, 40);
        let expected: BTreeSet<u64> = gone.into_iter().chain([alg, vsock]).chain(46..64).collect();
        assert_eq!(closed, expected.into_iter().collect::<Vec<_>>());
        // The kernel takes an int and ignores the upper half of the register.
        assert_eq!(answer(&profile, "socket", [1 << 32 | alg, 0]), Error(ENOSYS));
    }

    #[test]
    fn no_name_occurs_twice() {
        for (arch, _) in ALLOWED_ON {
            for capabilities in [Capability::DEFAULT, &[], &[Capability::SysAdmin]] {
                let profile = default(arch, capabilities);
                let plain = profile.syscalls().iter().flatten().filter(|rule| rule.args().is_none());
                let mut seen = BTreeSet::new();
                for name in plain.flat_map(LinuxSyscall::names) {
                    assert!(seen.insert(name), "{arch}: {name}");
                }
            }
        }
    }

    #[test]
    fn each_architecture_has_its_abis() {
        let table = [
            ("x86_64", Some(vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86])),
            ("aarch64", Some(vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm])),
            ("riscv64", None), // only its own
        ];
        for (arch, expected) in table {
            assert_eq!(*default(arch, Capability::DEFAULT).architectures(), expected);
        }
    }
}
