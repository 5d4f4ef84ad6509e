use std::error::Error as _;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde::Serialize;

use crate::supervise::{Ended, Facts, Orders, PID_FILE, Program, SOCKET, Supervised, Task, terminal_size};
use crate::{
    Bundle, Cancel, Cgroup, Config, ContainerId, Error, Excerpt, Output, Result, Signals, Usage, cgroup,
    require_privilege,
};

mod flaws;
mod log;
mod version;

pub use flaws::Flaw;
pub use version::RuntimeVersion;

/// An OCI runtime's command line: runc, crun, youki, or any other program that takes their arguments.
///
/// Its own files go into the bundle's directory: `runtime.log`, and `state/` while it runs: with runc and crun
/// some kilobytes of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    program: PathBuf,
}

/// Where the command reads its standard input from. What is said of a file holds for the caller's own standard input, too.
#[derive(Debug, Default)]
#[non_exhaustive]
pub enum Input {
    /// Nowhere: the end of the file at once.
    #[default]
    Null,
    /// From the caller's own. A terminal is read only while the caller is in front of it.
    Inherit,
    /// From a file, from where it stands. The command gets a pipe, unless the file is one, or a socket, or `/dev/null`. Afterwards a
    /// regular file stands where the command has read up to.
    File(fs::File),
}

/// What process 1 of the container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Init {
    /// A small program of this crate's: it starts the command, hands signals on to it, and reaps what the command leaves behind. The
    /// command can end itself by a signal, as it does elsewhere.
    #[default]
    Provided,
    /// The command: for one that is an init itself. The kernel delivers to process 1 no signal of its own container that it has no
    /// handler for, and nobody else reaps its orphans: pid_namespaces(7).
    None,
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
    /// By this signal.
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
    stdout: Output<'a>,
    stderr: Output<'a>,
    init: Init,
    timeout: Option<Duration>,
    grace: Duration,
    cancel: Option<&'a Cancel>,
    signals: Option<&'a Signals>,
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
            init: Init::Provided,
            timeout: None,
            grace: Duration::from_secs(5),
            cancel: None,
            signals: None,
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
    pub fn stdout(mut self, stdout: Output<'a>) -> Self {
        self.stdout = stdout;
        self
    }

    /// Where standard error goes. A runtime that fails writes why there, too. A command with a terminal writes all to that, which
    /// is standard output's.
    pub fn stderr(mut self, stderr: Output<'a>) -> Self {
        self.stderr = stderr;
        self
    }

    /// What process 1 of the container is.
    pub fn init(mut self, init: Init) -> Self {
        self.init = init;
        self
    }

    /// Ends the command when it has taken this long: SIGTERM first, and after the [grace](Self::grace) the whole container is
    /// killed.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Ends the command, like a timeout, when its two streams have brought more than `bytes` together. What comes after that is
    /// thrown away.
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

    /// Hands on to the command the signals that come this way.
    pub fn signals(mut self, signals: &'a Signals) -> Self {
        self.signals = Some(signals);
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
    /// Why a part of the output is not where it should be, if that is so: a full disk, as a rule. The command was not told.
    pub output_error: Option<io::Error>,
    /// What the container used, if it had a [`Cgroup`].
    pub usage: Usage,
}

impl Finished {
    /// The end of a command that had no output and used nothing, as one that never began.
    pub fn new(status: Status) -> Self {
        Self { status, stdout: None, stderr: None, output_error: None, usage: Usage::default() }
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

    /// The arguments that start `bundle` as the container `id`, the program itself not among them. The runtime ends when the
    /// container has begun.
    fn run_args(&self, bundle: &Bundle, id: &ContainerId) -> Vec<OsString> {
        let mut args: Vec<OsString> = self.global_args(bundle);
        args.extend(["run", "--detach", "--preserve-fds", "2", "--pid-file"].map(Into::into));
        args.push(bundle.path().join(PID_FILE).into());
        if bundle.has_terminal() {
            args.extend(["--console-socket", SOCKET].map(Into::into));
        }
        args.extend(["--bundle".into(), bundle.path().into(), id.as_str().into()]);
        args
    }

    fn delete_args(&self, bundle: &Bundle, id: &ContainerId) -> Vec<OsString> {
        let mut args = self.global_args(bundle);
        args.extend(["delete", "--force", id.as_str()].map(Into::into));
        args
    }

    fn global_args(&self, bundle: &Bundle) -> Vec<OsString> {
        let (state, log) = (bundle.path().join("state"), log_path(bundle.path()));
        vec!["--root".into(), state.into(), "--log-format".into(), "json".into(), "--log".into(), log.into()]
    }

    /// The configuration as this runtime does best with it: for those who start it by themselves, as [`run`](Self::run) has it anyway.
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

    /// The directory that the runtime must not see anything in.
    ///
    /// crun takes a machine for one of cgroup v2 when it finds that hierarchy mounted beside the v1 ones, and fails. With a tmpfs in
    /// its place, it does not.
    fn hidden_directory(&self) -> Option<&'static Path> {
        cgroup::hybrid_mount_point().filter(|_| self.is_crun())
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

    /// Runs the command in the bundle to its end. When this returns, however it does, the container is gone, and so it is when the
    /// calling process or thread is killed.
    ///
    /// The runtime starts the container and ends. Two small processes of this crate's look after it: one is process 1 of a PID
    /// namespace around runtime and container, with which the kernel ends all that is in it, and the other is process 1 of the
    /// container, unless that is to be [the command](Init::None).
    ///
    /// A command that exits with something else than 0 is a result. The command gets every signal with its default action, whatever
    /// the caller ignores, and the caller's CPU affinity. Nothing is started if the run is cancelled already.
    ///
    /// # Errors
    /// [`Error::Namespace`] without root; [`Error::RuntimeStart`]; [`Error::Runtime`] if the runtime fails, or starts nothing;
    /// [`Error::CommandNotFound`], [`Error::CommandNotExecutable`]; [`Error::NoProc`]; [`Error::UnknownUser`]; [`Error::Template`] if
    /// `config.json` cannot be written, or with [`TemplateError::RlimitBeyondCaller`](crate::TemplateError::RlimitBeyondCaller); [`Error::Io`] if the runtime's log cannot be made or the container not be watched. The bundle's directory
    /// then holds the log besides `config.json`.
    pub fn run(&self, invocation: Invocation<'_>) -> Result<Finished> {
        let Invocation { bundle, id, cgroup, stdin, stdout, stderr, init, .. } = invocation;
        let Invocation { timeout, grace, cancel, signals, output_limit_bytes: output_limit, .. } = invocation;
        if cancel.is_some_and(Cancel::is_cancelled) {
            return Ok(Finished::new(Status::Cancelled));
        }
        require_privilege()?;
        bundle.config().check_limits()?;
        if !bundle.config().mounts_proc() {
            return Err(Error::NoProc);
        }
        let config = bundle.config().clone().resolve_user(bundle.path())?;
        let config = self.prepare_config(config).started_by_helper(init, affinity(), terminal_size());
        bundle.write(&config)?;
        let log = log_path(bundle.path());
        log::create(&log).map_err(Error::io("create", log))?;
        // Dropped after the container, also by a callback's panic.
        let cgroup = cgroup.map(Removed);
        let program = |args| {
            let start_error = |source| Error::RuntimeStart { program: self.program.clone(), source };
            let program = Program::new(&self.program, args).map_err(start_error)?;
            Ok::<_, Error>(if self.is_crun() { program.executed_from_a_copy() } else { program })
        };
        let task = Task {
            start: program(self.run_args(bundle, id))?,
            // Of a detached container nobody else removes the group.
            end: cgroup.is_none().then(|| program(self.delete_args(bundle, id))).transpose()?,
            bundle: bundle.path(),
            hidden: self.hidden_directory(),
            has_terminal: bundle.has_terminal(),
            stdin,
            stdout,
            stderr,
            output_limit,
        };
        let watch_error = |source| Error::Io { operation: "look after", path: self.program.clone(), source };
        let mut container = Supervised::start(task).map_err(watch_error)?;
        let ended = container.wait(Orders { timeout, grace, cancel, signals }).map_err(watch_error)?;
        // The group stays until the end: it is read once more.
        let usage = cgroup.as_ref().map(|Removed(cgroup)| cgroup.usage()).unwrap_or_default();
        let (facts, outputs) = container.finish();
        let status = match self.conclude(bundle, init, ended, facts)? {
            Status::Signaled(KILL) if usage.out_of_memory => Status::OutOfMemory,
            status => status,
        };
        Ok(Finished { status, stdout: outputs.stdout, stderr: outputs.stderr, output_error: outputs.failure, usage })
    }

    /// What came of the command.
    fn conclude(&self, bundle: &Bundle, init: Init, ended: Ended, facts: Facts) -> Result<Status> {
        match ended {
            Ended::TimedOut => return Ok(Status::TimedOut),
            Ended::Cancelled => return Ok(Status::Cancelled),
            Ended::OutputLimit => return Ok(Status::OutputLimit),
            Ended::ByItself | Ended::Interrupted => {}
        }
        if let Some(failure) = facts.not_executed {
            return Err(failure.into_error());
        }
        // Evidence from inside counts more than what the runtime says. The end of the container's first process is the command's if
        // that is the command; an init that was killed took the command with it.
        let container = facts.container.map(ExitStatus::from_raw).filter(|_| facts.is_ready);
        let container = container.filter(|container| init == Init::None || container.signal().is_some());
        if let Some(status) = facts.command.map(ExitStatus::from_raw).or(container) {
            return Ok(match (status.code(), status.signal()) {
                (Some(code), _) => Status::Exited(code),
                (None, signal) => Status::Signaled(signal.unwrap_or_default()),
            });
        }
        // Interrupted before it began.
        if ended == Ended::Interrupted {
            return Ok(Status::Cancelled);
        }
        if let Some(errno) = facts.runtime_not_executed {
            let source = io::Error::from_raw_os_error(errno);
            return Err(Error::RuntimeStart { program: self.program.clone(), source });
        }
        let text = fs::read(log_path(bundle.path())).unwrap_or_default();
        // Who kills the keeper kills all that looks after the container, and the container.
        let is_lost = facts.is_ready && facts.container.is_none();
        let runtime = facts.runtime.map(ExitStatus::from_raw).filter(|runtime| !(is_lost && runtime.success()));
        let message = log::failure(&text).unwrap_or_else(|| {
            match (runtime.map(|runtime| (runtime.code(), runtime.success())), facts.container) {
                (Some((_, true)), Some(_)) if facts.is_ready => "the init of its container failed",
                (Some((_, true)), Some(_)) => "its container ended before the command began",
                (Some((_, true)), None) => "it started no container; is it an OCI runtime, as runc and crun are?",
                (Some((Some(_), false)), _) => "it did not say why",
                (Some((None, _)) | None, _) => "it was killed",
            }
            .into()
        });
        // Of one that was killed with the keeper nobody knows how it ended.
        let ended = runtime.unwrap_or(ExitStatus::from_raw(KILL));
        Err(Error::Runtime { program: self.program.clone(), ended, message })
    }
}

/// The processors that the calling thread may run on, as a hexadecimal number with a bit for each. Empty if the kernel does not tell.
fn affinity() -> String {
    let Ok(set) = sched_getaffinity(Pid::from_raw(0)) else { return String::new() };
    let is_set = |processor| set.is_set(processor).unwrap_or_default();
    let digit = |place: usize| (0..4).map(|bit| u32::from(is_set(place * 4 + bit)) << bit).sum::<u32>();
    let digits = (0..CpuSet::count() / 4).rev().map(digit).skip_while(|digit| *digit == 0);
    digits.filter_map(|digit| char::from_digit(digit, 16)).collect()
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
    use crate::{Template, Terminal};

    #[test]
    fn arguments() {
        let id = ContainerId::random("x").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let template = Template::builder(["true"]).build().unwrap();
        for (terminal, option) in [(Terminal::None, ""), (Terminal::Attached, " --console-socket console.sock")] {
            let config = template.clone().with_terminal(terminal).instantiate("/rootfs".as_ref()).unwrap();
            let path = dir.path().join(option.len().to_string());
            fs::create_dir(&path).unwrap();
            let bundle = Bundle::create(&path, &config).unwrap();
            let args = Runtime::new("crun").run_args(&bundle, &id).join(" ".as_ref());
            let path = path.display();
            let expected = format!(
                "--root {path}/state --log-format json --log {path}/runtime.log run --detach --preserve-fds 2 \
                 --pid-file {path}/pid{option} --bundle {path} {id}"
            );
            assert_eq!(args.into_string().unwrap(), expected);
        }
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
