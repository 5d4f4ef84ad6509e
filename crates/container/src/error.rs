use std::io;
use std::path::{Path, PathBuf};

use os_display::Quotable;
use rustix::io::Errno;

use crate::display::escaped;
use crate::template::TemplateError;

/// What went wrong with a mount, a bundle or a runtime, at which path, and what to do about it.
///
/// The message never repeats its [source](std::error::Error::source): print the chain to see the kernel's own words.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed.
    #[error("cannot {operation} {}", path.maybe_quote())]
    Io {
        /// What was tried, as a verb: `open`, `write`, `unmount`.
        operation: &'static str,
        /// The path it was tried on.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A template or a `config.json` that no container can be made from.
    #[error("the runtime configuration cannot be used")]
    Template(#[from] TemplateError),
    /// A file that cannot be used as a template. It was only read.
    #[error("{} cannot serve as a template", path.maybe_quote())]
    TemplateFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with its content.
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
    /// More lower directories than the kernel stacks.
    #[error("{count} lower directories are more than the {limit} that overlayfs stacks: merge some of them first")]
    TooManyLowers {
        /// How many were given.
        count: usize,
        /// [`MAX_LOWERS`](crate::MAX_LOWERS).
        limit: usize,
    },
    /// The options of mount(2) do not fit into one page. The kernel would cut them off without a word.
    #[error("{bytes} bytes of mount options are more than the {limit} that mount(2) takes: merge some layers first")]
    OptionsTooLong {
        /// Bytes of the option string.
        bytes: usize,
        /// The most that the kernel takes whole.
        limit: usize,
    },
    /// The kernel refused the overlay. Nothing is mounted.
    #[error("cannot mount an overlay on {}: {call}{}", target.maybe_quote(), hint(message, advice))]
    Mount {
        /// Where it was to be mounted.
        target: PathBuf,
        /// The failed call, as a trace would show it.
        call: String,
        /// What the kernel wrote into the log of the file system context; empty where it has none.
        message: String,
        /// What to do about it, where that is known.
        advice: Option<&'static str>,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel refused to unmount. The mount is still there, and so is all that lies below it.
    #[error("cannot unmount {}: end what uses it, unmount it by hand and only then remove anything below it", target.maybe_quote())]
    Unmount {
        /// What is still mounted.
        target: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A directory of the system's own is a symbolic link in the root file system.
    #[error("{} is a symbolic link, through which a runtime could write to the host: a layer may have a directory there, or nothing", path.maybe_quote())]
    LinkedMountPoint {
        /// The link, as seen from outside.
        path: PathBuf,
    },
    /// The command's working directory may lead out of the root file system.
    #[error(
        "the working directory {} leads to {}, {why}: choose a directory of the layers or of a bind mount",
        cwd.maybe_quote(), target.maybe_quote()
    )]
    StrayWorkingDirectory {
        /// The working directory, as it was given.
        cwd: PathBuf,
        /// Where its links lead, as far as they can be followed.
        target: PathBuf,
        /// What is wrong with that.
        why: &'static str,
    },
    /// The container's file of users, or of groups, does not have the one that the command is to run as.
    #[error(
        "the {kind} {} is not in the container's {}: add a layer that has it, or give its number", name.quote(), file.maybe_quote()
    )]
    UnknownUser {
        /// `user` or `group`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The path of the file in the container: `/etc/passwd` or `/etc/group`.
        file: PathBuf,
    },
    /// A private mount namespace could not be made.
    #[error("cannot create a private mount namespace{}", namespace_advice(source))]
    Namespace {
        /// The kernel's answer.
        source: io::Error,
    },
    /// The runtime is not there, or is no program.
    #[error("cannot start the runtime {}{}", program.maybe_quote(), start_advice(source))]
    RuntimeStart {
        /// The program, as it was given.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The runtime failed by itself; no command ran, or its end is not known.
    #[error("the runtime {} failed ({ended}): {}", program.maybe_quote(), escaped(message))]
    Runtime {
        /// The program.
        program: PathBuf,
        /// How it ended: `exit status: 1`.
        ended: std::process::ExitStatus,
        /// The runtime's own message.
        message: String,
    },
    /// The command does not exist in the container.
    #[error("the command does not exist in the container: {}", path.maybe_quote())]
    CommandNotFound {
        /// The path in the container; a name that is in no directory of its `PATH`.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The command exists in the container but cannot be executed.
    #[error("the command cannot be executed in the container: {}{}", path.maybe_quote(), because(reason))]
    CommandNotExecutable {
        /// The path in the container.
        path: PathBuf,
        /// What the kernel's answer means for this file, and what to do; empty if that is not known.
        reason: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A configuration without a proc file system, through which the container is started.
    #[error("the template mounts no proc on /proc, which the container is started through: add that mount")]
    NoProc,
    /// A limit that nothing on this machine holds.
    #[error(
        "the machine has no cgroup controller {controller:?}, which a limit needs: mount or enable it, or run without that limit"
    )]
    NoController {
        /// Its name in cgroups(7).
        controller: String,
    },
    /// What should have been removed after a run is still there.
    #[error("{} is left: remove it by hand", path.maybe_quote())]
    Leftover {
        /// What is left.
        path: PathBuf,
        /// Why.
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
        Some(Errno::PERM | Errno::ACCESS) => ": this needs root (CAP_SYS_ADMIN)",
        // The kernel's answer to mount(2) that makes `/` a slave. unshare(2) with these flags does not give it.
        Some(Errno::INVAL) => {
            ": / is not a mount point, as in a plain chroot; run `mount --rbind DIR DIR` before `chroot DIR`"
        }
        _ => "",
    }
}

fn start_advice(source: &io::Error) -> &'static str {
    match Errno::from_io_error(source) {
        Some(Errno::NOENT) => ": install it, or name another one",
        Some(Errno::ACCESS | Errno::NOEXEC) => ": it cannot be executed; name another one",
        _ => "",
    }
}

/// The result of an operation on mounts, bundles and runtimes.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The path that the error is about.
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

    /// For `map_err`: names the operation and the path of a failed system call.
    pub(crate) fn io<E: Into<io::Error>>(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(E) -> Error {
        let path = path.into();
        move |source| Error::Io { operation, path, source: source.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_others_chose_are_escaped() {
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
                Error::Runtime { program, ended, message: message() },
                r#"$'/x\x1B' failed (exit status: 1): exec: "\u{1b}"#,
            ),
            (mount, r#"on 'a b': fsconfig() (kernel: exec: "\u{1b}[2J\n")"#),
        ];
        for (error, part) in table {
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[test]
    fn advice_is_given_where_it_is_known_to_help() {
        let start = |errno: Errno| Error::RuntimeStart { program: "runc".into(), source: errno.into() }.to_string();
        let namespace = |errno: Errno| Error::Namespace { source: errno.into() }.to_string();
        let table = [
            (start(Errno::NOENT), "cannot start the runtime runc: install it, or name another one"),
            (start(Errno::ACCESS), "cannot start the runtime runc: it cannot be executed; name another one"),
            (start(Errno::NOMEM), "cannot start the runtime runc"),
            (namespace(Errno::PERM), "cannot create a private mount namespace: this needs root (CAP_SYS_ADMIN)"),
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
