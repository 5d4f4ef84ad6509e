//! The errors of this crate. `template::error` has those of a template.
//!
//! A message of a failed system call begins with "cannot", a verb and the path.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use os_display::Quotable;
use rustix::io::Errno;

use crate::chain::chain;
use crate::display::escaped;
use crate::template::error::TemplateError;
use crate::user_namespace::UserNamespaceError;

/// A failure of a mount, a bundle or a runtime: the path, the reason, and what to do about it.
///
/// The message never repeats its [source](std::error::Error::source). Print the chain to see the
/// kernel's error.
///
/// `Debug` prints that chain, because a `main` that returns an error prints its `Debug`.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed.
    #[error("cannot {operation} {}", path.maybe_quote())]
    Io {
        /// The operation as a verb: `open`, `write`, `unmount`.
        operation: &'static str,
        /// The path of the operation.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// A template or a `config.json` that cannot be used.
    #[error("the runtime configuration cannot be used")]
    Template(#[from] TemplateError),
    /// A file that cannot be used as a template. It was only read.
    #[error("{} cannot serve as a template", path.maybe_quote())]
    TemplateFile {
        /// The file.
        path: PathBuf,
        /// The problem with its content.
        source: TemplateError,
    },
    /// A `config.json` was written only in part and could not be removed.
    #[error("a half-written {} could not be removed ({cleanup}): remove it by hand", left.maybe_quote())]
    HalfWritten {
        /// The file that is left.
        left: PathBuf,
        /// The first failure.
        #[source]
        failure: Box<Error>,
        /// Why the file could not be removed.
        cleanup: io::Error,
    },
    /// More lower directories than the kernel can stack.
    #[error("{count} lower directories are more than the {limit} that overlayfs stacks: merge some of them first")]
    TooManyLowers {
        /// The number of lower directories.
        count: usize,
        /// [`MAX_LOWERS`](crate::MAX_LOWERS).
        limit: usize,
    },
    /// The options of mount(2) do not fit into one page. The kernel would silently truncate them.
    #[error("{bytes} bytes of mount options are more than the {limit} that mount(2) accepts: merge some layers first")]
    OptionsTooLong {
        /// The bytes of the option string.
        bytes: usize,
        /// The most bytes that the kernel accepts.
        limit: usize,
    },
    /// The kernel refused the overlay. Nothing is mounted.
    #[error("cannot mount an overlay on {}: {call}{}", target.maybe_quote(), hint(message, advice))]
    Mount {
        /// The mount point.
        target: PathBuf,
        /// The failed call with its arguments, or the reason why the overlay was unmounted again.
        call: String,
        /// The kernel's messages in the log of the file system context. Empty if there are none.
        message: String,
        /// The likely cause or remedy, if known.
        advice: Option<&'static str>,
        /// The kernel's error.
        source: io::Error,
    },
    /// The kernel refused to unmount. The mount still exists, with everything in it.
    #[error("cannot unmount {}: end the processes that use it and unmount it by hand before you remove anything below it", target.maybe_quote())]
    Unmount {
        /// The mount point.
        target: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// `/dev`, `/proc` or `/sys` is a symbolic link in the root file system.
    #[error("{} is a symbolic link, through which a runtime could write to the host: replace it by a directory or remove it", path.maybe_quote())]
    LinkedMountPoint {
        /// The path of the link on the host.
        path: PathBuf,
    },
    /// The command's working directory may lead out of the root file system.
    #[error(
        "the working directory {} leads to {}, {why}: choose a directory of the layers or of a bind mount",
        cwd.maybe_quote(), target.maybe_quote()
    )]
    StrayWorkingDirectory {
        /// The working directory of the template.
        cwd: PathBuf,
        /// The path to which it leads, as far as it can be followed.
        target: PathBuf,
        /// The problem with the target.
        why: &'static str,
    },
    /// The container's account files do not have the command's user or group.
    #[error(
        "the {kind} {} is not in the container's {}: add a layer that has it, or give its number", name.quote(), file.maybe_quote()
    )]
    UnknownUser {
        /// `user` or `group`.
        kind: &'static str,
        /// The name.
        name: String,
        /// The path of the file in the container: `/etc/passwd` or `/etc/group`.
        file: PathBuf,
    },
    /// The kernel refused to create a private mount namespace.
    #[error("cannot create a private mount namespace{}", namespace_advice(source))]
    Namespace {
        /// The kernel's error.
        source: io::Error,
    },
    /// An ordinary user could not become root in a user namespace.
    #[error("cannot enter a user namespace")]
    UserNamespace(#[from] UserNamespaceError),
    /// The user namespace does not have a user or a group of the command.
    #[error(
        "the user namespace has no {kind} {id}: use the user's subordinate IDs (--ids ranges, /etc/subuid and /etc/subgid), or run as root"
    )]
    NotMapped {
        /// `user` or `group`.
        kind: &'static str,
        /// Its number.
        id: u32,
    },
    /// The seccomp profile answers changes of owners and users by success, without making them,
    /// although other users exist. A command of another user could then be root.
    #[error(
        "the seccomp profile only pretends to change owners and users, and here the real changes work: omit --owners fake \
         (Owners::Fake), or run without root and with --ids single"
    )]
    FakedUsers,
    /// The program pasta, which connects a private network, does not exist or cannot be executed.
    #[error("a private network needs the program pasta: install the package passt, or use the network none or host")]
    NoPasta {
        /// The reason.
        source: io::Error,
    },
    /// The device that a private network needs cannot be opened.
    #[error("a private network needs /dev/net/tun: {}", tun_advice(source))]
    NoTun {
        /// The kernel's error.
        source: io::Error,
    },
    /// The program pasta could not connect a private network. No command ran.
    #[error(
        "pasta could not connect the private network ({ended}): {}; it needs a host with a default route",
        escaped(message)
    )]
    Network {
        /// The exit status of pasta.
        ended: std::process::ExitStatus,
        /// The messages of pasta.
        message: String,
    },
    /// The runtime does not exist or cannot be executed.
    #[error("cannot start the runtime {}{}", program.maybe_quote(), start_advice(source))]
    RuntimeStart {
        /// The program.
        program: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The kernel refused a `/proc` of the container's own, because that of this process is partly
    /// hidden. An ordinary user is usually in a container then.
    #[error(
        "the kernel refuses a new /proc, because parts of this one are hidden, as in a container: start that container with an unmasked \
         /proc (Docker: --security-opt systempaths=unconfined; Kubernetes: procMount: Unmasked)"
    )]
    MaskedProc {
        /// The kernel's error.
        source: io::Error,
    },
    /// The runtime failed. No command ran, or its result is unknown.
    #[error("the runtime {} failed ({ended}): {}", program.maybe_quote(), escaped(message))]
    Runtime {
        /// The program.
        program: PathBuf,
        /// The runtime's exit status, such as `exit status: 1`.
        ended: std::process::ExitStatus,
        /// The runtime's own message, or a description of the runtime's behaviour.
        message: String,
        /// Whether the message is the runtime's own, from its log.
        logged: bool,
    },
    /// The command does not exist in the container.
    #[error("the command does not exist in the container: {}", path.maybe_quote())]
    CommandNotFound {
        /// The path in the container, or a name that is not in any directory of its `PATH`.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The command exists in the container but cannot be executed.
    #[error("the command cannot be executed in the container: {}{}", path.maybe_quote(), because(reason))]
    CommandNotExecutable {
        /// The path in the container.
        path: PathBuf,
        /// The meaning of the kernel's error for this file, and what to do. Empty if unknown.
        reason: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// The configuration does not mount proc, which is needed to start the container.
    #[error("the template does not mount proc on /proc, which is needed to start the container: add that mount")]
    NoProc,
    /// A limit that this machine cannot enforce.
    #[error(
        "the machine has no cgroup controller {controller:?}, which a limit needs: mount or enable it, or run without that limit"
    )]
    NoController {
        /// The name of the controller in cgroups(7).
        controller: String,
    },
    /// A limit that an ordinary user may not set here.
    #[error(
        "a limit needs the cgroup controller {controller:?}, which this user may not use here: run it as \
         `systemd-run --user --scope -p Delegate=yes -- layered …` on a machine with cgroup v2 alone, or without that limit"
    )]
    NotDelegated {
        /// The name of the controller in cgroups(7).
        controller: String,
        /// The reason.
        source: io::Error,
    },
    /// A limit needs a controller that the machine has, but does not pass on to the user's group.
    #[error(
        "a limit needs the cgroup controller {controller:?}, which {} does not have: as root, write [Service] and \
         Delegate=cpu cpuset io memory pids with `systemctl edit user@.service`, and log in again; or run without that limit",
        group.maybe_quote()
    )]
    NotPassedOn {
        /// The name of the controller in cgroups(7).
        controller: String,
        /// The group that the system has delegated to the user.
        group: PathBuf,
    },
    /// A file or a control group could not be removed after a run.
    #[error("cannot remove {}: remove it by hand", path.maybe_quote())]
    Leftover {
        /// The path that is left.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

fn hint(message: &str, advice: &Option<&'static str>) -> String {
    let message = match message {
        "" => String::new(),
        message => format!(" (kernel: {})", escaped(message)),
    };
    match advice {
        None => message,
        Some(advice) => format!("{message}: {advice}"),
    }
}

fn because(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(": {reason}") }
}

fn namespace_advice(source: &io::Error) -> &'static str {
    match Errno::from_io_error(source) {
        Some(Errno::PERM | Errno::ACCESS) => {
            ": this needs CAP_SYS_ADMIN; run as root, call UserNamespace::enter first in main, or start the program as `layered unshare -- PROGRAM`"
        }
        // mount(2) returns EINVAL if it cannot make `/` a slave. unshare(2) with these flags never
        // returns it.
        Some(Errno::INVAL) => {
            ": / is not a mount point, as in a plain chroot; run `mount --rbind DIR DIR` before `chroot DIR`"
        }
        _ => "",
    }
}

fn start_advice(source: &io::Error) -> &'static str {
    match Errno::from_io_error(source) {
        Some(Errno::NOENT) => ": install it, or give another one",
        Some(Errno::ACCESS | Errno::NOEXEC) => ": it cannot be executed; give another one",
        _ => "",
    }
}

fn tun_advice(source: &io::Error) -> &'static str {
    match Errno::from_io_error(source) {
        Some(Errno::ACCESS | Errno::PERM) => {
            "run `chmod 666 /dev/net/tun` as root, or let your container use that device"
        }
        _ => "run `modprobe tun` as root, or let your container have that device",
    }
}

/// The result of an operation on mounts, bundles and runtimes.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl fmt::Debug for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&chain(self))
    }
}

impl Error {
    /// Returns the path that the error concerns.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Error::Io { path, .. } | Error::Leftover { path, .. } | Error::LinkedMountPoint { path } => Some(path),
            Error::TemplateFile { path, .. } | Error::HalfWritten { left: path, .. } => Some(path),
            Error::Mount { target, .. } | Error::Unmount { target, .. } => Some(target),
            Error::StrayWorkingDirectory { cwd, .. } => Some(cwd),
            Error::UnknownUser { file, .. } => Some(file),
            Error::RuntimeStart { program, .. } | Error::Runtime { program, .. } => Some(program),
            Error::CommandNotFound { path, .. } | Error::CommandNotExecutable { path, .. } => Some(path),
            _ => None,
        }
    }

    /// Returns a function for `map_err` that adds the operation and the path to a failed system
    /// call.
    pub(crate) fn io<E: Into<io::Error>>(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(E) -> Error {
        let path = path.into();
        move |source| Error::Io { operation, path, source: source.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_in_messages_are_escaped() {
        use std::os::unix::process::ExitStatusExt;
        let message = || "exec: \"\u{1b}[2J\n\"".to_string();
        let program = "/x\u{1b}".into();
        let ended = std::process::ExitStatus::from_raw(256);
        let mount = Error::Mount {
            target: "a b".into(),
            call: "fsconfig()".into(),
            message: message(),
            advice: None,
            source: Errno::INVAL.into(),
        };
        let table = [
            (
                Error::CommandNotFound { path: "/x\u{1b}".into(), source: Errno::NOENT.into() },
                r#"in the container: $'/x\x1B'"#,
            ),
            (
                Error::Runtime { program, ended, message: message(), logged: true },
                r#"$'/x\x1B' failed (exit status: 1): exec: "\u{1b}"#,
            ),
            (mount, r#"on 'a b': fsconfig() (kernel: exec: "\u{1b}[2J\n")"#),
        ];
        for (error, part) in table {
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[test]
    fn an_error_has_advice_if_the_cause_is_known() {
        let start = |errno: Errno| Error::RuntimeStart { program: "runc".into(), source: errno.into() }.to_string();
        let namespace = |errno: Errno| Error::Namespace { source: errno.into() }.to_string();
        let table = [
            (start(Errno::NOENT), "cannot start the runtime runc: install it, or give another one"),
            (start(Errno::ACCESS), "cannot start the runtime runc: it cannot be executed; give another one"),
            (start(Errno::NOMEM), "cannot start the runtime runc"),
            (
                namespace(Errno::PERM),
                "cannot create a private mount namespace: this needs CAP_SYS_ADMIN; run as root, call \
                 UserNamespace::enter first in main, or start the program as `layered unshare -- PROGRAM`",
            ),
            (
                namespace(Errno::INVAL),
                "cannot create a private mount namespace: / is not a mount point, as in a plain chroot; run `mount --rbind DIR DIR` before `chroot DIR`",
            ),
            (namespace(Errno::NOSPC), "cannot create a private mount namespace"),
        ];
        for (message, expected) in table {
            assert_eq!(message, expected);
        }
    }
}
