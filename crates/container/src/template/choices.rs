//! The settings of a container that are a choice from a list.

use std::path::PathBuf;

use serde_json::Value;

/// The network of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Network {
    /// A private network namespace with only an unconfigured loopback interface. In it, every user
    /// may bind every port, as under Docker.
    #[default]
    None,
    /// The host's network. **The container can also reach the host's abstract Unix sockets**: see
    /// [`unix(7)`].
    ///
    /// [`unix(7)`]: https://man7.org/linux/man-pages/man7/unix.7.html
    Host,
    /// A private network namespace with a way out, as under Docker, for root and ordinary users
    /// alike. The program [pasta] (package passt) passes on what the container sends to other
    /// hosts. It is started before the command and ends with the run.
    ///
    /// The container's interface is `eth0` with the address 10.0.2.100, and every user may bind
    /// every port. Connections seem to come from the host. The container can reach everything that
    /// the host can reach, except the host's loopback interface and abstract Unix sockets. It
    /// cannot be reached from outside of it. The host needs a default route. With one for IPv6, the
    /// container also has the host's IPv6 address.
    ///
    /// Needs the helper of this crate, so it works only with [`Runtime::run`](crate::Runtime::run).
    ///
    /// [pasta]: https://passt.top
    Private,
    /// An existing network namespace, by the absolute path of its file: `/run/netns/build`.
    Joined(PathBuf),
}

/// Whether the command gets a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Terminal {
    /// Standard input, output and error are pipes.
    #[default]
    None,
    /// The command gets a pseudoterminal, and `TERM=xterm` unless the environment sets it. The
    /// terminal's input comes from the run's standard input, and its output goes to the run's
    /// standard output. If the caller's standard input is a terminal, it is in raw mode while the
    /// container lives, and the command's terminal has the same size.
    Attached,
}

/// The effect of `fsync` and its family inside the container.
///
/// A run's upper is discarded if the machine goes down, so waiting for the disk gains nothing.
/// Package managers wait after every file and spend most of their time on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Fsync {
    /// `sync`, `msync` and `sync_file_range` succeed immediately without any effect. `fsync`,
    /// `fdatasync` and `syncfs` do not wait for the root file system either, because its overlay is
    /// volatile (since Linux 5.10). On bind mounts, these three work normally.
    ///
    /// A negative descriptor still fails with `EBADF`. `msync` still fails with `EINVAL` for an
    /// address within a page or unknown flags. `msync` with other flags than exactly `MS_SYNC`
    /// works normally, and so do files opened with `O_SYNC` and flushes through `io_uring`.
    #[default]
    Ignored,
    /// They work normally.
    Real,
}

/// Whether the container can change the owners of files, and the users and groups of processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Owners {
    /// It can, as far as the kernel lets root of the container do so.
    #[default]
    Real,
    /// `chown`, `setgroups`, `setuid` and their families succeed **without any effect**. Package
    /// managers then work in a [user namespace](crate::UserNamespace) with a
    /// [single](crate::Ids::Single) user, where the real calls fail: nothing there can belong to
    /// another user.
    ///
    /// Every file stays the user's, and a program that has changed its user is still root of the
    /// container. It believes to have dropped its privileges, but has not. So do not use this for
    /// programs that protect themselves from each other in this way. A program that checks the
    /// change finds out; for apt, pass `-o APT::Sandbox::User=root`. The calls succeed even for a
    /// file that does not exist.
    ///
    /// Where other users exist, [`require`](crate::require) refuses the template.
    Fake,
}

/// The system calls that the container may make.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub enum Seccomp {
    /// The system calls that Docker's default profile allows. All others fail without any effect. A
    /// call that needs a missing capability fails with `EPERM`; it is allowed if the container has
    /// the capability. Every other call fails with `ENOSYS`.
    ///
    /// **No program can create namespaces**, so sandboxes inside the container (bubblewrap,
    /// `unshare`, a browser's) do not start. [`Unconfined`](Self::Unconfined) allows them. So does
    /// `CAP_SYS_ADMIN`, but it allows far more.
    ///
    /// runc compiles the filter with libseccomp at each start, which takes 6 ms on x86_64 with
    /// libseccomp 2.5.4. On x86_64, crun does not have to: see
    /// [`prepare_config`](crate::advanced::prepare_config).
    #[default]
    Default,
    /// The system calls of [`Default`](Self::Default), but only through the machine's own ABI: a
    /// 32-bit program is killed (SIGSYS) at its first call. Support for 32-bit programs is the only
    /// default with a measurable cost: without it, runc starts in 20 % less time. The mount of the
    /// control groups, `/dev/mqueue` and the masked paths have no measurable cost.
    Native,
    /// All system calls. The kernel's own checks remain.
    Unconfined,
    /// The system calls that this profile allows: the JSON of `linux.seccomp` in the runtime
    /// specification. [`build`](crate::TemplateBuilder::build) checks it, and drops keys that the
    /// specification does not have. It refuses a rule with a condition of Docker's own format
    /// (`includes`, `excludes`), because the rule would apply without the condition.
    ///
    /// The profile also applies to the container's init. The init needs `clone`, `close`, `execve`,
    /// `exit_group`, `fcntl`, `ioctl`, `kill`, `prctl`, `rt_sigaction`, `rt_sigprocmask`,
    /// `rt_sigtimedwait`, `sched_setaffinity`, `setsid`, `wait4` and `write`.
    Custom(Value),
}

/// Whether set-user-ID programs and file capabilities work inside the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NoNewPrivileges {
    /// They work, as under Docker: `su`, `sudo` and `ping` need this.
    #[default]
    Off,
    /// They have no effect: no program can gain a privilege that its caller lacks
    /// ([`PR_SET_NO_NEW_PRIVS`]).
    ///
    /// [`PR_SET_NO_NEW_PRIVS`]: https://man7.org/linux/man-pages/man2/PR_SET_NO_NEW_PRIVS.2const.html
    On,
}

/// Whether the command may write to its root file system. Each mount has its own setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RootAccess {
    /// It may write. The written files are the result of the run.
    #[default]
    ReadWrite,
    /// Writes fail with `EROFS`, except in `/dev`, `/dev/shm`, `/tmp` and writable mounts.
    ReadOnly,
}
