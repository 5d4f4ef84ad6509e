//! Runs a bundle with an OCI runtime and decides how the command ended. `supervise` looks after the
//! container; `runtime::flaws` lists the known flaws of runtimes.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde::Serialize;

use crate::bundle::Bundle;
use crate::cgroup::{self, Cgroup, Usage};
use crate::chain::chain;
use crate::error::{Error, Result};
use crate::id::ContainerId;
use crate::init::Init;
use crate::mount_namespace::require_privilege;
use crate::network::{self, Unconnected};
use crate::output::Excerpt;
use crate::supervise::{Cancel, Ended, Facts, Orders, PID_FILE, Program, SOCKET, Supervised, Task, terminal_size};
use crate::supervision::Supervision;
use crate::template::{Config, Network};
use crate::user_namespace::UserNamespace;

mod flaws;
mod log;
mod prepare;
mod version;

pub use flaws::Flaw;
pub use prepare::PreparedRuntime;
pub use version::RuntimeVersion;

/// An OCI runtime's command line: runc, crun, youki, or any other program that takes their
/// arguments.
///
/// The runtime's own files are in the bundle's directory: `runtime.log`, `pid`, `state/`, with a
/// terminal a socket, and with a private network `network` and `network.log`. With runc and crun
/// they are a few kilobytes. They stay there after the run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    program: PathBuf,
}

/// How a command ended.
///
/// As JSON: `{"exited":0}`, `{"signaled":9}`, `"timed_out"`, `"cancelled"`, `"out_of_memory"`,
/// `"output_limit"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Status {
    /// The command exited with this status.
    Exited(i32),
    /// This signal ended the command.
    Signaled(i32),
    /// The command exceeded its [timeout](Supervision::timeout).
    TimedOut,
    /// The run was [cancelled](Cancel).
    Cancelled,
    /// The kernel killed the command because the container had reached its memory limit. If the
    /// kernel killed only another process of the container, the status is the command's own: see
    /// [`Usage::out_of_memory`].
    OutOfMemory,
    /// The command wrote more than the [output limit](Supervision::output_limit_bytes).
    OutputLimit,
}

impl Status {
    /// Returns whether the command exited with status 0.
    pub fn success(self) -> bool {
        self == Status::Exited(0)
    }
}

/// The result of [`Runtime::run`].
#[derive(Debug)]
#[non_exhaustive]
pub struct Finished {
    /// How the command ended.
    pub status: Status,
    /// The excerpt of standard output, if it was [captured](crate::Output::Capture).
    pub stdout: Option<Excerpt>,
    /// The excerpt of standard error, if it was captured.
    pub stderr: Option<Excerpt>,
    /// Why a part of the output was lost, if it was. Usually the disk is full. The command did not
    /// get an error.
    pub output_error: Option<io::Error>,
    /// The resources that the container used. Without a [`Cgroup`], only the processor time is
    /// known, and it includes that of the runtime. Even this is unknown if the container was
    /// killed, if the command left processes behind, or with [`Init::None`].
    pub usage: Usage,
}

impl Finished {
    /// Returns the result of a command that wrote nothing and used nothing, such as one that never
    /// started.
    pub(crate) fn new(status: Status) -> Self {
        Self { status, stdout: None, stderr: None, output_error: None, usage: Usage::default() }
    }
}

impl Default for Runtime {
    /// Returns runc, which is looked up in `PATH`.
    fn default() -> Self {
        Self::new("runc")
    }
}

impl Runtime {
    /// Creates a runtime from `program`, which is a path or a name to look up in `PATH`.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into() }
    }

    /// Returns the name or path that the runtime was created with.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Returns the arguments, without the program itself, that start `bundle` as the container
    /// `id`. The runtime exits once the container has started.
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

    /// Returns the configuration adapted to this runtime:
    /// [`advanced::prepare_config`](crate::advanced::prepare_config).
    pub(crate) fn prepare_config(&self, config: Config) -> Config {
        let config = config.with_limits_of_caller().with_binds_of_files();
        let config = config.in_user_namespace(UserNamespace::current());
        match (self.is_runc(), self.is_crun()) {
            (true, _) => config,
            (false, false) => config.without_device_nodes(),
            (false, true) if UserNamespace::has_groups_of_caller() => {
                config.without_device_nodes().with_filter_for_crun().with_groups_of_caller()
            }
            (false, true) => config.without_device_nodes().with_filter_for_crun(),
        }
    }

    /// Returns the directory that must appear empty to the runtime.
    ///
    /// If crun finds the cgroup v2 hierarchy mounted beside v1 hierarchies, it treats the machine
    /// as one with only v2, and fails. A tmpfs over the v2 hierarchy prevents that.
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

    /// Runs the command in `bundle` as the container `id`, with the options of `supervision`, and
    /// waits for it to end. The container never outlives this call, whether the call succeeds or
    /// fails. It does not outlive the calling thread or process either, even if that is killed.
    ///
    /// The runtime only starts the container. Two small processes of this crate look after it. One
    /// is process 1 of a PID namespace around the runtime and the container; when it ends, the
    /// kernel kills everything in that namespace. The other is process 1 of the container, unless
    /// that is the command itself ([`Init::None`]).
    ///
    /// A command that exits with a status other than 0 is a result, not an error. The command
    /// starts with the default action for every signal, even for those that the caller ignores, and
    /// with the caller's CPU affinity. If the run is already cancelled, nothing is started.
    ///
    /// `bundle` must name the [`container_path`](Cgroup::container_path) of `cgroup`. When the
    /// container has ended, this call reads the group's usage and removes the group.
    ///
    /// # Errors
    /// - [`Error::Namespace`] without root.
    /// - [`Error::MaskedProc`] in a user namespace inside of a container that hides parts of
    ///   `/proc`.
    /// - [`Error::NoPasta`] or [`Error::Network`] if a [private](Network::Private) network cannot
    ///   be connected.
    /// - [`Error::RuntimeStart`] if the runtime cannot be executed.
    /// - [`Error::Runtime`] if the runtime fails or starts no container.
    /// - [`Error::CommandNotFound`] or [`Error::CommandNotExecutable`] if the command cannot be
    ///   executed.
    /// - [`Error::NoProc`] if the configuration does not mount `/proc`.
    /// - [`Error::UnknownUser`] if the container has no user or group of the given name.
    /// - [`Error::Template`] if `config.json` cannot be written, or with
    ///   [`TemplateError::RlimitBeyondCaller`](crate::TemplateError::RlimitBeyondCaller) if a limit
    ///   exceeds the caller's.
    /// - [`Error::Io`] if the root file system or its account files cannot be read, the runtime's
    ///   log cannot be created, or the container cannot be watched.
    ///
    /// The bundle's directory then holds `config.json`. If the runtime was started, the directory
    /// may also hold the runtime's `runtime.log`, `pid` and `state/`.
    pub fn run(
        &self,
        bundle: &Bundle,
        id: &ContainerId,
        cgroup: Option<&Cgroup>,
        supervision: Supervision<'_>,
    ) -> Result<Finished> {
        let grace = supervision.grace_period();
        let Supervision { stdin, stdout, stderr, init, timeout, cancel, signals, .. } = supervision;
        let (output_limit, on_start) = (supervision.output_limit_bytes, supervision.on_start);
        let release_pages = supervision.release_pages;
        let (cancel, signals) = (cancel.as_ref(), signals.as_ref());
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
        // In a user namespace, most users may not create a group, and then none is left.
        let leaves_group = cgroup.is_none()
            && (bundle.config().cgroups_path().is_some() || !UserNamespace::is_here() || cgroup::is_delegated());
        // Dropped after the container, even if a callback panics.
        let cgroup = cgroup.map(Removed);
        let _named = if cgroup.is_none() { RemovedIfEmpty::new(bundle.config())? } else { None };
        let network = match config.network() {
            Network::Private => Some(Unconnected::new(bundle.path())?),
            _ => None,
        };
        let program = |args| {
            let start_error = |source| Error::RuntimeStart { program: self.program.clone(), source };
            let program = Program::new(&self.program, args).map_err(start_error)?;
            Ok::<_, Error>(if self.is_crun() { program.executed_from_a_copy() } else { program })
        };
        let task = Task {
            start: program(self.run_args(bundle, id))?,
            // After a detached start, the runtime removes the group only if it is asked to delete
            // the container.
            end: leaves_group.then(|| program(self.delete_args(bundle, id))).transpose()?,
            network: network.as_ref(),
            bundle: bundle.path(),
            hidden: self.hidden_directory(),
            has_terminal: bundle.has_terminal(),
            init,
            stdin,
            stdout,
            stderr,
            output_limit,
            on_start,
            release_pages,
        };
        let watch_error = |source| Error::Io { operation: "look after", path: self.program.clone(), source };
        let start_error = |source: io::Error| match source.kind() {
            io::ErrorKind::PermissionDenied if UserNamespace::is_here() => Error::MaskedProc { source },
            _ => watch_error(source),
        };
        let mut container = Supervised::start(task).map_err(start_error)?;
        let ended = container.wait(Orders { timeout, grace, cancel, signals }).map_err(watch_error)?;
        // The group still exists here, so its counters are complete.
        let mut usage = cgroup.as_ref().map(|Removed(cgroup)| cgroup.usage()).unwrap_or_default();
        let cpu_time = container.cpu_time();
        let (facts, outputs) = container.finish();
        usage.cpu_time = usage.cpu_time.or(cpu_time.filter(|_| facts.are_all_waited_for()));
        let status = match self.conclude(bundle, init, ended, facts)? {
            Status::Signaled(KILL) if usage.out_of_memory => Status::OutOfMemory,
            status => status,
        };
        Ok(Finished { status, stdout: outputs.stdout, stderr: outputs.stderr, output_error: outputs.failure, usage })
    }

    /// Derives the command's status, or the error, from the facts.
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
        // The helper's report from inside counts more than the runtime's status. If the
        // command is process 1, its end is the end of the container's first process. If the init
        // was killed by a signal, the command was killed with it.
        let container = facts.container.map(ExitStatus::from_raw).filter(|_| facts.is_ready);
        let container = container.filter(|container| init == Init::None || container.signal().is_some());
        if let Some(status) = facts.command.map(ExitStatus::from_raw).or(container) {
            return Ok(match (status.code(), status.signal()) {
                (Some(code), _) => Status::Exited(code),
                (None, signal) => Status::Signaled(signal.unwrap_or_default()),
            });
        }
        // The run was interrupted before the command started.
        if ended == Ended::Interrupted {
            return Ok(Status::Cancelled);
        }
        if let Some(errno) = facts.network_not_executed {
            return Err(network::not_executed(errno));
        }
        if let Some(status) = facts.network_failed {
            return Err(network::failed(bundle.path(), ExitStatus::from_raw(status)));
        }
        if let Some(errno) = facts.runtime_not_executed {
            let source = io::Error::from_raw_os_error(errno);
            return Err(Error::RuntimeStart { program: self.program.clone(), source });
        }
        let text = fs::read(log_path(bundle.path())).unwrap_or_default();
        // The keeper was killed, and with it the container and the processes that look after it.
        let is_lost = facts.is_ready && facts.container.is_none();
        let runtime = facts.runtime.map(ExitStatus::from_raw).filter(|runtime| !(is_lost && runtime.success()));
        let failure = log::failure(&text);
        let logged = failure.is_some();
        let message = failure.unwrap_or_else(|| {
            match (runtime.map(|runtime| (runtime.code(), runtime.success())), facts.container) {
                (Some((_, true)), Some(_)) if facts.is_ready => "the init of its container failed",
                (Some((_, true)), Some(_)) => "its container ended before the command began",
                (Some((_, true)), None) => "it started no container; is it an OCI runtime, as runc and crun are?",
                (Some((Some(_), false)), _) => "it did not say why",
                (Some((None, _)) | None, _) => "it was killed",
            }
            .into()
        });
        // If the runtime was killed together with the keeper, its own status is unknown.
        let ended = runtime.unwrap_or(ExitStatus::from_raw(KILL));
        Err(Error::Runtime { program: self.program.clone(), ended, message, logged })
    }
}

/// Returns the processors that the calling thread may run on, as a hexadecimal number with one bit
/// per processor. Returns an empty string if the kernel does not report them.
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

/// Removes the group when dropped. A failure is only logged: an empty group does no harm, and the
/// result of the run matters more.
struct Removed<'a>(&'a Cgroup);

impl Drop for Removed<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.remove() {
            ::log::warn!("{}", chain(&error));
        }
    }
}

/// Removes the group that a template names, when dropped, if it is empty. The runtime's `delete`
/// does so, but it does not run if the container had to be killed.
struct RemovedIfEmpty(Cgroup);

impl RemovedIfEmpty {
    /// Returns `None` if the runtime chooses the group: only an absolute path determines the group.
    fn new(config: &Config) -> Result<Option<Self>> {
        let path = config.cgroups_path().and_then(|path| path.strip_prefix('/')).filter(|path| !path.is_empty());
        path.map(|path| Ok(Self(Cgroup::at(path)?))).transpose()
    }
}

impl Drop for RemovedIfEmpty {
    fn drop(&mut self) {
        self.0.remove_if_empty();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::{Template, Terminal};

    #[test]
    fn the_arguments_start_a_detached_container() {
        let id = ContainerId::random("x").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let template = Template::builder(["true"]).build().unwrap();
        for (terminal, option) in [(Terminal::None, ""), (Terminal::Attached, " --console-socket console.sock")] {
            let config = template.clone().with_terminal(terminal).instantiate("/rootfs".as_ref()).unwrap();
            let path = dir.path().join(option.len().to_string());
            fs::create_dir(&path).unwrap();
            let bundle = Bundle::create(&path, config).unwrap();
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
    fn a_status_is_written_as_json() {
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
