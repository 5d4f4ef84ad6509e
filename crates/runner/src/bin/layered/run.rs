//! `layered run`: decides what template and options the arguments make, and how a result becomes
//! messages, a report and an exit status.
//!
//! `runner::run` does the run, [`signals`] forwards signals to it, and
//! [`kept`] describes a run that is kept.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use container::advanced::parse_size;
use container::{
    Fsync, Init, Input, Mount, Network, NoNewPrivileges, Output, Rlimit, Runtime, Seccomp, Status, Template, Terminal,
    UserSpec,
};
use layer::display::{escaped_json, quoted};
use layer::{Access, Layer, json_path};
use runner::{Cause, PersistError, Phase, Report, Timings, Upper};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::AsFd;
use serde_json::{Value, json};
use signal_hook::consts::{SIGKILL, SIGTERM};

use crate::access::AccessArgs;
use crate::kept::{self, KeptRun};
use crate::stack::{StackArgs, parent};
use crate::{complain, signals, table};

/// Run a command in a root file system stacked from layers.
///
/// The layers and the base are only read. The command writes to a separate directory, the upper.
/// The upper is deleted after the run, unless --upper or --keep-failed keeps it.
///
/// The command reads layered's standard input. In a shell loop that reads a list from there, add
/// `</dev/null`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    stack: StackArgs,
    /// OCI runtime: runc, crun, youki or a path.
    #[arg(long, value_name = "NAME|PATH", default_value = "runc")]
    runtime: PathBuf,
    #[command(flatten)]
    template: TemplateArgs,
    /// End the command after this time, e.g. 90s or "2h 30m".
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// Time to end after --timeout or a signal [default: 5s].
    ///
    /// --timeout, INT and TERM ask the command to end. If the command is still running after TIME,
    /// it is killed.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    grace: Option<Duration>,
    /// Keep the upper as DIR, which must not exist.
    ///
    /// If the command fails, --keep-failed takes precedence. Without --scratch, the temporary files
    /// of the run are beside DIR.
    #[arg(long, value_name = "DIR")]
    upper: Option<PathBuf>,
    #[command(flatten)]
    access: AccessArgs,
    /// If the command fails, keep the run for `layered shell`.
    ///
    /// The upper and a description of the stack stay in the scratch directory. `layered shell`
    /// opens a shell there, `layered commit` turns the upper into a layer, and `layered discard`
    /// deletes it. Until then, `layered gc` does not remove the layers of the run.
    #[arg(long)]
    keep_failed: bool,
    /// Write the command's standard output and error to FILE.
    #[arg(long, value_name = "FILE", conflicts_with = "tty")]
    output: Option<PathBuf>,
    /// End the command if it writes more than SIZE to --output.
    ///
    /// SIZE is a number of bytes, or one with a suffix: 64m, 2g. The file never exceeds SIZE.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "output")]
    output_limit: Option<u64>,
    /// Write a report of the run to FILE, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Print the duration of each phase to standard error.
    #[arg(long)]
    timings: bool,
    /// Run the command as process 1, without an init.
    ///
    /// By default, an init in the container starts the command, forwards signals to it and reaps
    /// orphans. Use this option for a command that is itself an init.
    #[arg(long)]
    no_init: bool,
    /// Configure the container by an OCI config.json.
    ///
    /// Its root.path must be `<rootfs>`. COMMAND, if given, replaces the command in FILE.
    #[arg(long, value_name = "FILE")]
    spec: Option<PathBuf>,
    /// The command and its arguments.
    #[arg(last = true, value_name = "COMMAND", required_unless_present = "spec")]
    command: Vec<String>,
}

/// The options that `--spec` replaces.
#[derive(Debug, clap::Args)]
#[group(conflicts_with = "spec")]
struct TemplateArgs {
    /// Set an environment variable for the command; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Working directory of the command.
    #[arg(long, value_name = "DIR", default_value = "/")]
    cwd: PathBuf,
    /// User and group of the command, by name or number.
    ///
    /// Names are those of the stack's /etc/passwd and /etc/group. Without GROUP, a name gets its
    /// own group and all groups that list it, and a number is also the number of the group.
    #[arg(long, value_name = "USER[:GROUP]", default_value = "0:0")]
    user: UserSpec,
    /// Hostname of the container [default: that of the host].
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Network of the container: none or host.
    ///
    /// `none` has only a loopback interface. `host` is the host's network, and the container gets
    /// copies of the host's /etc/hosts and /etc/resolv.conf.
    #[arg(long, default_value = "none", hide_possible_values = true)]
    network: NetworkArg,
    /// Seccomp profile: default, native or unconfined.
    ///
    /// `default` is Docker's default profile, under which the command cannot create namespaces.
    /// `native` is the same profile without support for 32-bit programs, which makes runc start
    /// faster. `unconfined` allows all system calls.
    #[arg(long, value_name = "PROFILE", default_value = "default", hide_possible_values = true)]
    seccomp: SeccompArg,
    /// Run set-user-ID programs (su, sudo) without their privileges.
    ///
    /// This sets the no_new_privs attribute of prctl(2).
    #[arg(long)]
    no_new_privileges: bool,
    /// Mount a path of the host or a tmpfs; may be repeated.
    ///
    /// SPEC is type=bind,source=/a,target=/b or type=tmpfs,target=/c,size=64m. With ,readonly at
    /// its end, a bind mount is read-only. A relative source is in the working directory of
    /// layered.
    #[arg(long = "mount", value_name = "SPEC")]
    mounts: Vec<Mount>,
    /// Limit of memory and swap for the container, e.g. 512m or 2g.
    ///
    /// SIZE is a number of bytes, or one with a suffix: k, m, g, t.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,
    /// Limit of processes and threads for the container.
    #[arg(long, value_name = "N")]
    pids: Option<u64>,
    /// Processors that the container may use, e.g. 0-3,5.
    #[arg(long, value_name = "LIST")]
    cpus: Option<String>,
    /// Set a resource limit, e.g. nofile=1024:65536; may be repeated.
    ///
    /// NAME is a name of Docker's --ulimit. SOFT and HARD are in the units of setrlimit(2), or
    /// `unlimited`. Without HARD, SOFT is both limits. The default is nofile=1024:524288, or less
    /// if the caller's own hard limit is lower.
    #[arg(long = "ulimit", value_name = "NAME=SOFT[:HARD]")]
    ulimits: Vec<Rlimit>,
    /// Whether sync calls wait: fake or real.
    ///
    /// With `fake`, sync, msync and sync_file_range succeed without waiting for the disk, because
    /// after a power failure the upper is useless anyway. With `real`, they wait. fsync never waits
    /// for the upper.
    #[arg(long, value_name = "MODE", default_value = "fake", hide_possible_values = true)]
    sync: SyncArg,
    /// Give the command a terminal, e.g. for an interactive shell.
    #[arg(long)]
    tty: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum NetworkArg {
    None,
    Host,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum SeccompArg {
    Default,
    Native,
    Unconfined,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum SyncArg {
    Fake,
    Real,
}

const AFTER_HELP: &str = "\
layered forwards the signals HUP, INT, QUIT, TERM, USR1, USR2, ALRM and WINCH to the command. After INT \
or TERM, the command has the time of --grace to end. A second INT or TERM kills it.

Exit status:
  124    --timeout ended the command
  125    layered itself failed
  126    the command cannot be executed
  127    the command does not exist
  137    signal 9 ended the command, or the container used up its memory
  143    signal 15 ended the command, or it exceeded --output-limit
  128+N  signal N ended the command
  other  the exit status of the command

Examples:
  layered run --base debian --layer gcc --layer libc6-dev -- gcc --version
  layered run --base debian --layers-from deps.txt --user 1000 --cwd /src --timings \\
      --mount type=bind,source=.,target=/src --upper out/fs -- make install
  layered run --base debian --layer gcc --tty --env TERM=$TERM -- /bin/bash
  layered run --base debian --timeout 10m --memory 2g --json report.json -- ./configure";

impl Args {
    fn init(&self) -> Init {
        if self.no_init { Init::None } else { Init::Provided }
    }
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) => Ok((key.into(), value.into())),
        None => Err("it has no '='; write KEY=VALUE".into()),
    }
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    // Created before anything runs: after the run it would be too late to find out that it cannot
    // be written.
    let mut json = args.json.as_deref().map(JsonFile::create).transpose()?;
    let (report, status) = attempt(&args, json.as_mut()).unwrap_or_else(|error| {
        complain(format_args!("{}", message(&error, &args)));
        (failure_json(&error), failure_status(&error))
    });
    match json.as_mut().map_or(Ok(()), |json| json.write(&report)) {
        Ok(()) => Ok(status.into()),
        Err(error) => Err(error),
    }
}

/// Returns the report as JSON and the exit status for the shell.
fn attempt(args: &Args, json_file: Option<&mut JsonFile<'_>>) -> anyhow::Result<(Value, u8)> {
    let (base, layers, template) = (args.stack.base()?, args.stack.layers()?, template(args)?);
    let access = args.access.get()?;
    if access.is_some() && args.upper.is_none() {
        bail!("--mode and --group need --upper, because they apply to that directory");
    }
    if let Some(file) = json_file {
        file.reserve(&layers)?;
    }
    if template.terminal() == Terminal::Attached && !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
        bail!("--tty (or process.terminal in --spec) needs a terminal as standard input and standard output");
    }
    if let Some(upper) = &args.upper {
        args.stack.check_destination(upper)?;
        runner::check_upper_destination(&base, &layers, upper)?;
    }
    let mut options = args.stack.options(args.upper.as_deref().map(parent)).runtime(Runtime::new(&args.runtime));
    let (stdout, stderr) = match &args.output {
        None => (Output::Inherit, Output::Inherit),
        Some(path) => {
            let file = File::create(path).with_context(|| format!("cannot create {}", quoted(path)))?;
            let copy = file.try_clone().with_context(|| format!("cannot share {}", quoted(path)))?;
            (Output::File(file), Output::File(copy))
        }
    };
    options = options.stdin(Input::Inherit).stdout(stdout).stderr(stderr).init(args.init());
    options = options.timeout(args.timeout).grace(args.grace).output_limit_bytes(args.output_limit);
    let kept_run =
        args.keep_failed.then(|| KeptRun { base: base.clone(), layers: layers.clone(), template: template.clone() });
    if let Some(run) = kept_run {
        // Written before the command starts, because the command may fill the disk.
        options = options.prep_upper(move |upper, _| Ok(run.write(upper)?));
    }
    let (options, signal) = signals::forward(options)?;
    let report = runner::run(&base, &layers, &template, options)?;
    let mut status = exit_status(report.status, signal.number());
    match report.status {
        Status::OutOfMemory => {
            complain(format_args!("the command was killed: the container used up its memory; raise --memory"))
        }
        Status::OutputLimit => complain(format_args!("the command was ended: it exceeded --output-limit")),
        _ => {}
    }
    if let Some(error) = &report.output_error {
        // A terminal that accepts no output accepts no error message either, and writing one would
        // block.
        if error.kind() != io::ErrorKind::TimedOut || has_room(&io::stderr()) {
            complain(format_args!("cannot write all of the command's output: {error}"));
        }
    }
    // The JSON report includes the size of the upper, which takes a walk to measure.
    let (ended, keep) = (report.status, args.keep_failed && !report.status.success());
    let mut json = if args.json.is_some() { report.to_json() } else { json!({}) };
    let record = keep.then(|| report.capture_record());
    let Report { upper, timings, .. } = report;
    // Saves the result before anything else is printed: a failed write must not lose it.
    json["upper"] = if let Some(record) = record {
        let kept = upper.keep();
        let dir = parent(&kept);
        kept::add_result(dir, json!(ended), record);
        let dir = quoted(dir);
        complain(format_args!(
            "the run is kept: open it with `layered shell {dir}`, end it with `layered commit` or `layered discard`"
        ));
        json_path::to_value(&kept)
    } else if let Some(destination) = &args.upper {
        let (path, moved) = persist(upper, destination, access);
        if !moved {
            status = crate::FAILURE;
        }
        json_path::to_value(&path)
    } else {
        upper.close()?;
        Value::Null
    };
    if args.timings {
        // It does not matter if the reader of standard error has closed it.
        let _ = print_timings(&mut io::stderr().lock(), &timings);
    }
    Ok((json, status))
}

/// Returns whether `file` can be written to without waiting.
fn has_room(file: &impl AsFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(file, PollFlags::OUT)], Some(&now)).is_ok_and(|ready| ready > 0)
}

/// Moves the upper to `destination`. Keeps it where it is if that fails. Returns its path, and
/// whether it was moved.
fn persist(upper: Upper, destination: &Path, access: Option<Access>) -> (PathBuf, bool) {
    match upper.persist_with(destination, access) {
        Ok(path) => (path, true),
        Err(error) => {
            let PersistError { upper, destination, source } = *error;
            let kept = upper.keep();
            let (to, at) = (quoted(&destination), quoted(&kept));
            complain(format_args!("cannot move the upper to {to}: {source}; it is kept at {at}"));
            (kept, false)
        }
    }
}

/// Returns the message about a failure. A runtime that logs an error also writes it to standard
/// error, which is the command's, so the message does not repeat it.
fn message(error: &anyhow::Error, args: &Args) -> String {
    use container::Error::{CommandNotExecutable, CommandNotFound, Runtime};
    let failed = error.downcast_ref::<runner::Error>();
    let note = failed.map(runner::Error::left_note).unwrap_or_default();
    match failed.map(runner::Error::cause) {
        // This is the user's mistake, so the message does not name the phase of the run.
        Some(Cause::Container(error @ (CommandNotFound { .. } | CommandNotExecutable { .. }))) => {
            let source = std::error::Error::source(error).map(|source| format!(" ({source})")).unwrap_or_default();
            format!("{error}{source}{note}")
        }
        // With --output, the runtime's message is in that file. A runtime that succeeded or was
        // killed has no message.
        Some(Cause::Container(Runtime { program, ended, logged, .. }))
            if ended.code().is_some_and(|code| code != 0) && !(*logged && args.output.is_some()) =>
        {
            let program = quoted(program);
            let reason = match logged {
                true => "; its message is above".into(),
                false => format!(" and logged no reason; check it with `layered doctor --runtime {program}`"),
            };
            format!("the runtime {program} failed ({ended}){reason}{note}")
        }
        _ => format!("{error:#}"),
    }
}

fn template(args: &Args) -> anyhow::Result<Template> {
    if let Some(path) = &args.spec {
        let template = Template::from_file(path)?;
        return Ok(if args.command.is_empty() { template } else { template.with_args(&args.command)? });
    }
    args.template.template(&args.command)
}

impl TemplateArgs {
    fn template(&self, command: &[String]) -> anyhow::Result<Template> {
        let builder = Template::builder(command)
            .cwd(&self.cwd)
            .user_spec(self.user.clone())
            .hostname(self.hostname.as_deref())
            .memory_limit_bytes(self.memory)
            .pids_limit(self.pids)
            .cpus(self.cpus.as_deref())
            .network(match self.network {
                NetworkArg::None => Network::None,
                NetworkArg::Host => Network::Host,
            })
            .seccomp(match self.seccomp {
                SeccompArg::Default => Seccomp::Default,
                SeccompArg::Native => Seccomp::Native,
                SeccompArg::Unconfined => Seccomp::Unconfined,
            })
            .fsync(match self.sync {
                SyncArg::Fake => Fsync::Ignored,
                SyncArg::Real => Fsync::Real,
            })
            .no_new_privileges(if self.no_new_privileges { NoNewPrivileges::On } else { NoNewPrivileges::Off })
            .terminal(if self.tty { Terminal::Attached } else { Terminal::None });
        let builder = self.env.iter().fold(builder, |builder, (key, value)| builder.env(key, value));
        let ulimits = self.ulimits.iter();
        let builder = ulimits.fold(builder, |builder, limit| builder.rlimit(limit.kind, limit.soft, limit.hard));
        let builder = self.mounts.iter().try_fold(builder, |builder, mount| {
            let relative = mount.source().is_some_and(Path::is_relative);
            let mount = match relative {
                true => mount.clone().source_in(&std::env::current_dir().context("cannot tell the working directory")?),
                false => mount.clone(),
            };
            anyhow::Ok(builder.mount(mount))
        })?;
        Ok(builder.build()?)
    }
}

/// Returns the exit status for the shell. `signal` is the signal that cancelled the run.
pub(crate) fn exit_status(status: Status, signal: i32) -> u8 {
    let status = match status {
        Status::Exited(code) => code,
        Status::Signaled(signal) => 128 + signal,
        Status::TimedOut => 124,
        Status::OutOfMemory => 128 + SIGKILL,
        Status::OutputLimit => 128 + SIGTERM,
        _ => 128 + signal,
    };
    // An exit status has eight bits.
    (status & 0xff) as u8
}

/// Returns the exit status for the shell if the run itself failed.
fn failure_status(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<runner::Error>().map(runner::Error::cause) {
        Some(Cause::Container(container::Error::CommandNotFound { .. })) => 127,
        Some(Cause::Container(container::Error::CommandNotExecutable { .. })) => 126,
        _ => crate::FAILURE,
    }
}

/// Returns the report of a run without a result.
fn failure_json(error: &anyhow::Error) -> Value {
    let failed = error.downcast_ref::<runner::Error>();
    json!({
        "status": {"failed": {
            "phase": failed.and_then(runner::Error::phase).map(Phase::name),
            "path": failed.and_then(runner::Error::path).map(json_path::to_value),
            "message": format!("{error:#}"),
            "left": failed.and_then(runner::Error::left).map(json_path::to_value),
        }},
        "upper": null,
    })
}

/// The file of the report.
struct JsonFile<'a> {
    path: &'a Path,
    file: File,
}

impl<'a> JsonFile<'a> {
    fn create(path: &'a Path) -> anyhow::Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot create {}", quoted(path)))?;
        Ok(Self { path, file })
    }

    /// Reserves room for the report of a run over `layers`, so that the report can be written even
    /// if the command fills the disk.
    fn reserve(&mut self, layers: &[Layer]) -> anyhow::Result<()> {
        let paths: usize = layers.iter().map(|layer| layer.path().as_os_str().len() + layer.name().len()).sum();
        // A path that is not UTF-8 takes four characters per byte.
        let bytes = (64 << 10) + 4 * paths as u64;
        kept::reserve(&self.file, bytes).with_context(|| format!("cannot reserve room for {}", quoted(self.path)))
    }

    fn write(&mut self, value: &Value) -> anyhow::Result<()> {
        let text = format!("{}\n", escaped_json(value));
        let written = self.file.write_all(text.as_bytes()).and_then(|()| match self.file.metadata()?.is_file() {
            // Removes the unused part of the reservation.
            true => self.file.set_len(text.len() as u64),
            false => Ok(()),
        });
        written.with_context(|| format!("cannot write {}", quoted(self.path)))
    }
}

/// The width of the bar of a phase that takes all of the time.
const BAR: usize = 40;

fn print_timings(out: &mut impl Write, timings: &Timings) -> io::Result<()> {
    let total = timings.total().as_secs_f64().max(f64::MIN_POSITIVE);
    let mut rows = vec![["PHASE", "TIME", "SHARE", ""].map(String::from).to_vec()];
    for (name, time) in timings.iter() {
        let share = time.as_secs_f64() / total;
        rows.push(vec![
            name.into(),
            table::duration(time),
            format!("{:.1} %", share * 100.0),
            "█".repeat((share * BAR as f64).round() as usize),
        ]);
    }
    table::print(out, &rows, &[1, 2])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use signal_hook::consts::SIGINT;

    use super::*;
    use crate::mutated;

    proptest! {
        #![proptest_config(mutated::config())]

        #[test]
        fn a_variable_of_any_text_round_trips_or_is_refused(text in mutated::text(["A=b=c", "A=", "=b"])) {
            if let Ok((key, value)) = variable(&text) {
                prop_assert_eq!(format!("{key}={value}"), text);
            }
        }

        #[test]
        fn a_duration_of_any_text_round_trips_or_is_refused(text in mutated::text(["90s", "2h 30m", "1year 3days 7ns", "90d"])) {
            if let Ok(time) = humantime::parse_duration(&text) {
                let shown = humantime::format_duration(time).to_string();
                prop_assert_eq!(humantime::parse_duration(&shown).ok(), Some(time));
                let _ = table::duration(time);
            }
        }
    }

    #[test]
    fn every_status_has_its_exit_status() {
        let table = [
            (Status::Exited(0), 0, 0),
            (Status::Exited(7), 0, 7),
            (Status::Exited(255), 0, 255),
            (Status::Signaled(9), 0, 137),
            (Status::TimedOut, 0, 124),
            (Status::Cancelled, SIGINT, 130),
            (Status::Cancelled, SIGTERM, 143),
            (Status::OutOfMemory, 0, 137),
            (Status::OutputLimit, 0, 143),
        ];
        for (status, signal, seen) in table {
            assert_eq!(exit_status(status, signal), seen, "{status:?}");
        }
    }

    #[test]
    fn a_variable_is_split_at_the_first_equals_sign() {
        assert_eq!(variable("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert!(variable("A").is_err());
    }

    #[test]
    fn a_failure_as_json_has_the_message_and_no_upper() {
        let json = failure_json(&anyhow::anyhow!("reason").context("what"));
        assert_eq!(json["status"]["failed"]["message"], "what: reason");
        assert!(json["upper"].is_null());
    }
}
