use std::path::PathBuf;

use serde_json::Value;

/// The network that the container sees.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Network {
    /// A network namespace of its own with nothing but an unconfigured loopback interface. In it every user may serve every port,
    /// as under Docker.
    #[default]
    None,
    /// The host's network. **The host's abstract Unix sockets are reachable too**, see [`unix(7)`].
    ///
    /// [`unix(7)`]: https://man7.org/linux/man-pages/man7/unix.7.html
    Host,
    /// An existing network namespace, by the absolute path of its file: `/run/netns/build`.
    Joined(PathBuf),
}

/// Whether the command gets a terminal of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Terminal {
    /// Standard input, output and error are pipes.
    #[default]
    None,
    /// A pseudoterminal; `TERM=xterm` unless set otherwise. What is typed comes from the run's standard input, and what the command
    /// writes goes to the run's standard output. If the caller's own standard input is a terminal, that is in raw mode for as long as
    /// the container lives, and the command's terminal has its size.
    Attached,
}

/// What `fsync` and its family do inside the container.
///
/// A build writes into a tree that is thrown away if the machine goes down, so waiting for the disk at each file gains
/// nothing; package managers, which do that for every file, spend most of their time so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Fsync {
    /// `sync`, `msync` and `sync_file_range` succeed immediately without doing anything. `fsync`, `fdatasync` and `syncfs` do not
    /// wait for the root file system either, since its overlay is volatile (Linux 5.10). On bind mounts they do what they say.
    ///
    /// A negative descriptor still is `EBADF`, and `msync` of an address within a page or with unknown flags `EINVAL`. `msync` with
    /// flags other than exactly `MS_SYNC` does what it says, and so do files opened with `O_SYNC` and flushes by `io_uring`.
    #[default]
    Ignored,
    /// They do what they say.
    Real,
}

/// The system calls that the container may make.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub enum Seccomp {
    /// Those that Docker's default profile lets through. Others are answered with an error and nothing happens: `EPERM` to
    /// those that a capability would allow, and lets through if the container has it; `ENOSYS` to the rest.
    ///
    /// **No program can make a namespace of its own**, so a sandbox within the build (bubblewrap, `unshare`, a browser's) does
    /// not start. [`Unconfined`](Self::Unconfined) gives it back; so does `CAP_SYS_ADMIN`, and far more with it.
    ///
    /// runc has libseccomp compile the filter at each start, which takes milliseconds (6 on x86_64 with 2.5.4). crun is spared that
    /// on x86_64: see [`prepare_config`](crate::advanced::prepare_config).
    #[default]
    Default,
    /// Those of [`Default`](Self::Default) by the machine's own convention alone: a 32-bit program is killed (SIGSYS) at its first
    /// call. Of all that a container has by default, what it costs to let those run is what can be saved: runc starts in 0.8 of
    /// the time. What the mount of the control groups, `/dev/mqueue` or masked paths cost is less than can be measured.
    Native,
    /// All of them, which leaves the kernel's own checks.
    Unconfined,
    /// Those of this profile. It holds for the container's init, too, which needs `clone`, `close`, `execve`, `exit_group`, `fcntl`,
    /// `ioctl`, `kill`, `prctl`, `rt_sigaction`, `rt_sigprocmask`, `rt_sigtimedwait`, `sched_setaffinity`, `setsid`, `wait4` and `write`.
    Custom(Value),
}

/// Whether set-user-ID programs and file capabilities work inside the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NoNewPrivileges {
    /// They do, as under Docker: `su`, `sudo` and `ping` need it.
    #[default]
    Off,
    /// They do not: no program can gain a privilege that its caller lacks ([`PR_SET_NO_NEW_PRIVS`]).
    ///
    /// [`PR_SET_NO_NEW_PRIVS`]: https://man7.org/linux/man-pages/man2/PR_SET_NO_NEW_PRIVS.2const.html
    On,
}

/// Whether the command may write to its root file system. Mounts have an access of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RootAccess {
    /// It may; what it writes is the result of the run.
    #[default]
    ReadWrite,
    /// It may not: `EROFS` everywhere but in `/dev`, `/dev/shm`, `/tmp` and the mounts that allow it.
    ReadOnly,
}
