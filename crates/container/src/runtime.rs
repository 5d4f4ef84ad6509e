use std::error::Error as _;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::Serialize;

use crate::{Bundle, Cgroup, Config, ContainerId, Error, Excerpt, Output, Result, Usage, cgroup, mount_private_tmpfs};

mod cancel;
mod child;
mod flaws;
mod log;
mod namespace;
mod program;
mod terminal;
mod version;

pub use cancel::Cancel;
use child::{Child, Ended};
pub use flaws::Flaw;
use program::Program;
pub use version::RuntimeVersion;

/// An OCI runtime's command line: runc, crun, youki, or any other program that takes their arguments.
///
/// Its own files go into the bundle's directory: `runtime.log`, and `state/` while it runs: with runc and crun
/// some kilobytes of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    program: PathBuf,
}

/// Where the command reads its standard input from.
#[derive(Debug, Default)]
#[non_exhaustive]
pub enum Input {
    /// Nowhere: the end of the file at once.
    #[default]
    Null,
    /// From the caller's own.
    Inherit,
    /// From a file.
    File(fs::File),
}

/// How a command ended.
///
/// As JSON: `{"exited":0}`, `{"signaled":9}`, `"timed_out"`, `"cancelled"`, `"out_of_memory"`, `"output_limit"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Status {
    /// By itself, with this exit status.
    Exited(i32),
    /// By this signal. Runtimes tell it as 128 + n, like a shell, so a command that exits with such a status counts as
    /// signalled too.
    Signaled(i32),
    /// Its time was over.
    TimedOut,
    /// It was [cancelled](Cancel).
    Cancelled,
    /// The kernel killed it, since the container had used up its memory. (If the kernel has killed another process of the
    /// container and the command ended by itself, that is how it ended: see [`Usage::out_of_memory`].)
    OutOfMemory,
    /// It wrote more than the [output limit](Invocation::output_limit_bytes).
    OutputLimit,
}

impl Status {
    /// Whether the command exited with 0.
    pub fn success(self) -> bool {
        self == Status::Exited(0)
    }
}

/// One run of a bundle: what the runtime is asked for.
#[derive(Debug)]
pub struct Invocation<'a> {
    bundle: &'a Bundle,
    id: &'a ContainerId,
    cgroup: Option<&'a Cgroup>,
    stdin: Input,
    stdout: Output,
    stderr: Output,
    timeout: Option<Duration>,
    grace: Duration,
    cancel: Option<&'a Cancel>,
    output_limit_bytes: Option<u64>,
}

impl<'a> Invocation<'a> {
    /// Runs `bundle` as the container `id`, with no input, its output thrown away, for as long as it takes.
    pub fn new(bundle: &'a Bundle, id: &'a ContainerId) -> Self {
        Self {
            bundle,
            id,
            cgroup: None,
            stdin: Input::Null,
            stdout: Output::Null,
            stderr: Output::Null,
            timeout: None,
            grace: Duration::from_secs(5),
            cancel: None,
            output_limit_bytes: None,
        }
    }

    /// The control group whose [`container_path`](Cgroup::container_path) the bundle names. Its usage is read and it is removed
    /// when the container has ended.
    pub fn cgroup(mut self, cgroup: &'a Cgroup) -> Self {
        self.cgroup = Some(cgroup);
        self
    }

    /// Where standard input comes from.
    pub fn stdin(mut self, stdin: Input) -> Self {
        self.stdin = stdin;
        self
    }

    /// Where standard output goes.
    pub fn stdout(mut self, stdout: Output) -> Self {
        self.stdout = stdout;
        self
    }

    /// Where standard error goes. A runtime that fails writes why there, too.
    pub fn stderr(mut self, stderr: Output) -> Self {
        self.stderr = stderr;
        self
    }

    /// Ends the command when it has taken this long: SIGTERM first, and after the [grace](Self::grace) the whole container is
    /// killed.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Ends the command, like a timeout, when its two streams have brought more than `bytes` together. What comes after that is
    /// thrown away. Only what goes to a file, a callback or an excerpt is counted; a file is then written by the caller's
    /// process: it should be a regular one, as whoever waits for a pipe to be read cannot look at the time meanwhile.
    pub fn output_limit_bytes(mut self, bytes: u64) -> Self {
        self.output_limit_bytes = Some(bytes);
        self
    }

    /// How long a command may go on after SIGTERM, 5 s unless told otherwise.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Ends the command, like a timeout, when `cancel` says so.
    pub fn cancel(mut self, cancel: &'a Cancel) -> Self {
        self.cancel = Some(cancel);
        self
    }
}

/// What came of an [`Invocation`].
#[derive(Debug)]
#[non_exhaustive]
pub struct Finished {
    /// How the command ended.
    pub status: Status,
    /// The excerpt of standard output, if it was [captured](Output::Capture).
    pub stdout: Option<Excerpt>,
    /// The excerpt of standard error, if it was captured.
    pub stderr: Option<Excerpt>,
    /// What the container used, if it had a [`Cgroup`].
    pub usage: Usage,
}

impl Finished {
    /// The end of a command that had no output and used nothing, as one that never began.
    pub fn new(status: Status) -> Self {
        Self { status, stdout: None, stderr: None, usage: Usage::default() }
    }
}

impl Default for Runtime {
    /// runc, as found in `PATH`.
    fn default() -> Self {
        Self::new("runc")
    }
}

impl Runtime {
    /// The runtime `program`, a name to be found in `PATH` or a path.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into() }
    }

    /// The name or path it was made with.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The arguments that run `bundle` as the container `id`, the program itself not among them.
    pub fn run_args(&self, bundle: &Path, id: &ContainerId) -> Vec<OsString> {
        // A runtime exits 1 for a command that exits 1 and for its own failure: only its log tells them apart.
        let mut args: Vec<OsString> = vec!["--root".into(), bundle.join("state").into()];
        args.extend(["--log-format".into(), "json".into(), "--log".into(), log_path(bundle).into()]);
        args.extend(["run".into(), "--bundle".into(), bundle.into(), id.as_str().into()]);
        args
    }

    /// The configuration as this runtime does best with it.
    ///
    /// crun gets the seccomp filter of a [default](crate::Seccomp::Default) profile as the program that the kernel takes, in an
    /// annotation of its own: having libseccomp compile the profile takes half of its time. The profile stays beside it, for a crun
    /// that does not know the annotation. Where this crate does not compile it, on machines other than x86_64 and for a
    /// profile of the caller's, crun does.
    ///
    /// Runtimes other than runc lose CAP_MKNOD, unless the template has device rules of its own. crun and youki allow the host's
    /// console (`c 5:1`) after the template's rules, whatever these say. With the capability the command could make a node of it in
    /// `/dev`. FIFOs and sockets can still be made, and so can whiteouts since Linux 5.8, though on no overlay.
    ///
    /// A node of the console that a layer already has can still be opened under these runtimes.
    pub fn prepare_config(&self, config: Config) -> Config {
        let config = config.with_limits_of_caller().with_binds_of_files();
        match (self.is_runc(), self.is_crun()) {
            (true, _) => config,
            (false, false) => config.without_device_nodes(),
            (false, true) => config.without_device_nodes().with_filter_for_crun(),
        }
    }

    fn is_crun(&self) -> bool {
        self.is_called(b"crun")
    }

    fn is_runc(&self) -> bool {
        self.is_called(b"runc")
    }

    fn is_called(&self, name: &[u8]) -> bool {
        self.program.file_name().is_some_and(|file| file.as_encoded_bytes().starts_with(name))
    }

    /// Makes the calling thread's mount namespace one that this runtime works in. It must be
    /// [private](crate::in_private_mount_namespace).
    ///
    /// crun takes a machine for one of cgroup v2 when it finds that hierarchy mounted beside the v1 ones, and fails. Here it
    /// finds a tmpfs in its place, which takes what crun writes there and goes with the namespace. Nothing is done for
    /// other runtimes, nor on other machines.
    ///
    /// # Errors
    /// [`Error::Io`] if the tmpfs cannot be mounted.
    pub fn prepare_namespace(&self) -> Result<()> {
        match cgroup::hybrid_mount_point() {
            Some(unified) if self.is_crun() => mount_private_tmpfs(unified),
            _ => Ok(()),
        }
    }

    /// Runs the command in the bundle to its end. When this returns, however it does, the container is gone, and so it is when the
    /// calling process is killed: the runtime is the first process of a PID namespace, with which everything in it ends, and it
    /// ends with the thread that started it.
    ///
    /// A command that exits with something else than 0 is a result. There is one process, the runtime's; none if it is cancelled
    /// already.
    ///
    /// # Errors
    /// [`Error::RuntimeStart`], [`Error::Runtime`], [`Error::CommandNotFound`], [`Error::CommandNotExecutable`],
    /// [`Error::Io`] if the runtime's log cannot be made or the runtime not be watched. The bundle's directory then holds the
    /// log besides `config.json`.
    ///
    /// What runc 1.1 does not log counts as the command's own exit with status 1: an interpreter or a dynamic loader that is
    /// missing, a file of an unknown format. Its message is on standard error.
    pub fn run(&self, invocation: Invocation<'_>) -> Result<Finished> {
        let Invocation { bundle, id, cgroup, stdin, stdout, stderr, timeout, grace, cancel, output_limit_bytes } =
            invocation;
        if cancel.is_some_and(Cancel::is_cancelled) {
            return Ok(Finished::new(Status::Cancelled));
        }
        let log = log_path(bundle.path());
        log::create(&log).map_err(Error::io("create", log))?;
        // Dropped after the child, also by a callback's panic.
        let cgroup = cgroup.map(Removed);
        let _restored = bundle.has_terminal().then(terminal::Saved::new);
        let watch = match (&cgroup, bundle.memory_limit()) {
            (Some(Removed(cgroup)), Some(limit)) => cgroup.watch_memory(limit),
            _ => None,
        };
        let mut child = Program::new(&self.program, self.run_args(bundle.path(), id))
            .and_then(|program| Child::spawn(&program, stdin, stdout, stderr, output_limit_bytes))
            .map_err(|source| Error::RuntimeStart { program: self.program.clone(), source })?;
        let ended = child.supervise(timeout, grace, cancel);
        // The group stays until the end: it is read once more.
        let mut usage = cgroup.as_ref().map(|Removed(cgroup)| cgroup.usage()).unwrap_or_default();
        usage.out_of_memory = watch.is_some_and(|watch| watch.has_killed());
        let status = match self.conclude(bundle, &ended)? {
            Status::Signaled(KILL) if usage.out_of_memory => Status::OutOfMemory,
            status => status,
        };
        let (stdout, stderr) = child.take_excerpts();
        Ok(Finished { status, stdout, stderr, usage })
    }

    /// What the end of the runtime says about the command.
    fn conclude(&self, bundle: &Bundle, ended: &io::Result<(Ended, ExitStatus)>) -> Result<Status> {
        let (ended, exit) = match ended {
            Ok(pair) => pair,
            Err(error) => {
                let source = io::Error::new(error.kind(), error.to_string());
                return Err(Error::Io { operation: "wait for", path: self.program.clone(), source });
            }
        };
        match (ended, exit.code()) {
            (Ended::TimedOut, _) => return Ok(Status::TimedOut),
            (Ended::Cancelled, _) => return Ok(Status::Cancelled),
            (Ended::OutputLimit, _) => return Ok(Status::OutputLimit),
            (Ended::ByItself, Some(0)) => return Ok(Status::Exited(0)),
            (Ended::ByItself, _) => {}
        }
        let text = fs::read(log_path(bundle.path())).unwrap_or_default();
        match (log::failure(&text), exit.code()) {
            (None, Some(code @ 129..=192)) => Ok(Status::Signaled(code - 128)),
            (None, Some(code)) => Ok(Status::Exited(code)),
            (Some(message), Some(_)) if log::says_not_found(&message) => Err(Error::CommandNotFound { message }),
            (Some(message), Some(_)) if log::says_not_executable(&message) => {
                Err(Error::CommandNotExecutable { message })
            }
            (message, code) => {
                let unsaid = if code.is_none() { "it was killed" } else { "it did not say why" };
                let message = message.unwrap_or_else(|| unsaid.into());
                Err(Error::Runtime { program: self.program.clone(), ended: *exit, message })
            }
        }
    }
}

const KILL: i32 = Signal::SIGKILL as i32;

fn log_path(bundle: &Path) -> PathBuf {
    bundle.join("runtime.log")
}

/// A group that is removed when this is dropped. An empty one that stays does no harm; the result of the run is worth more.
struct Removed<'a>(&'a Cgroup);

impl Drop for Removed<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.remove() {
            let source = error.source().map(|source| format!(": {source}")).unwrap_or_default();
            ::log::warn!("{error}{source}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments() {
        let id = ContainerId::random("x").unwrap();
        let args = Runtime::new("crun").run_args(Path::new("/s"), &id).join(" ".as_ref());
        let expected = format!("--root /s/state --log-format json --log /s/runtime.log run --bundle /s {id}");
        assert_eq!(args.into_string().unwrap(), expected);
    }

    #[test]
    fn the_status_as_json() {
        let table = [
            (Status::Exited(0), r#"{"exited":0}"#),
            (Status::Signaled(9), r#"{"signaled":9}"#),
            (Status::TimedOut, r#""timed_out""#),
            (Status::Cancelled, r#""cancelled""#),
            (Status::OutOfMemory, r#""out_of_memory""#),
            (Status::OutputLimit, r#""output_limit""#),
        ];
        for (status, json) in table {
            assert_eq!(serde_json::to_string(&status).unwrap(), json);
        }
    }
}
