//! `layered run`: decides what template and options the arguments make, and how a result becomes
//! messages, a report and an exit status.
//!
//! `runner::run` does the run, [`signals`] forwards signals to it, and
//! [`kept`] describes a run that is kept. The options that describe the container are in
//! [`mod@template`].

use std::fs::File;
use std::io::{self, IsTerminal, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use container::advanced::parse_size;
use container::{Init, Input, Network, Output, Status, Template, Terminal};
use layer::display::{escaped_json, quoted};
use layer::{Layer, json_path};
use runner::{Cause, EtcFiles, Event, Phase, RecordEnv, Timings};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use serde_json::{Value, json};
use signal_hook::consts::{SIGKILL, SIGTERM};

use crate::access::AccessArgs;
use crate::defaults::{BASE, RuntimeArgs};
use crate::kept::{self, KeptRun};
use crate::progress::Progress;
use crate::stack::{StackArgs, is_standard, parent};
use crate::values::duration;
use crate::{complain, defaults, signals, table};

mod settle;
mod template;

use settle::{CommitArgs, Settled, Wanted, settle};
use template::TemplateArgs;

/// The groups of options in the help. Those of the stack are in [`stack`](crate::stack).
const COMMAND: &str = "Command";
const LIMITS: &str = "Limits";
const OUTPUT: &str = "Output";
const SECURITY: &str = "Security";

/// How long a command runs before layered releases the pages that it does not need to wait. They
/// take about a tenth of a millisecond to get back.
pub(crate) const LONG_RUN: Duration = Duration::from_millis(100);

/// Run a command in a root file system stacked from layers.
///
/// The layers and the base are only read. The command writes to a separate directory, the upper.
/// --commit makes the upper a new layer. Without --commit, --upper and --keep-failed, it is deleted
/// after the run.
///
/// /tmp, /dev and /dev/shm are in memory. Files that the command writes there are not in the upper.
///
/// The command reads layered's standard input. In a shell loop that itself reads from standard
/// input (`while read …`), add `</dev/null`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP, override_usage = USAGE)]
pub(crate) struct Args {
    /// The command and its arguments; before them the base, if no option names it.
    ///
    /// The first word is the base if there is neither --base nor --rootfs nor LAYERED_BASE, or if
    /// `--` follows it. Options of layered go before it.
    #[arg(trailing_var_arg = true, value_name = "COMMAND", required_unless_present = "spec")]
    words: Vec<String>,
    #[command(flatten)]
    stack: StackArgs,
    #[command(flatten, next_help_heading = COMMAND)]
    runtime: RuntimeArgs,
    #[command(flatten)]
    template: TemplateArgs,
    /// Run the command as process 1, without an init.
    ///
    /// By default, an init in the container starts the command, forwards signals to it and reaps
    /// orphans. Use this option for a command that is itself an init.
    #[arg(long, help_heading = COMMAND)]
    no_init: bool,
    /// Source of /etc/hosts and /etc/resolv.conf: run or stack.
    ///
    /// With `run`, layered writes these files for each run: see --network. A captured layer has
    /// them only if the command changes them. With `stack`, the command sees the files of the base
    /// and the layers.
    #[arg(long, value_name = "WHOSE", default_value = "run", hide_possible_values = true, help_heading = COMMAND)]
    etc: EtcArg,
    /// Configure the container by an OCI config.json.
    ///
    /// Its root.path must be `<rootfs>` or `rootfs`. COMMAND, if given, replaces the command in
    /// FILE.
    #[arg(long, value_name = "FILE", help_heading = COMMAND)]
    spec: Option<PathBuf>,
    /// End the command after this time, e.g. 90s or "2h 30m".
    ///
    /// A number without a unit is seconds.
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = LIMITS)]
    timeout: Option<Duration>,
    /// Time to end after --timeout or a signal [default: 5s].
    ///
    /// --timeout, INT and TERM ask the command to end. If the command is still running after TIME,
    /// it is killed.
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = LIMITS)]
    grace: Option<Duration>,
    /// Keep the upper as DIR, which must not exist.
    ///
    /// DIR is kept even if the command fails, unless --keep-failed is given: then the upper is in
    /// the kept run. Without --scratch, the temporary files of the run are beside DIR.
    #[arg(long, value_name = "DIR", help_heading = OUTPUT)]
    upper: Option<PathBuf>,
    #[command(flatten)]
    commit: CommitArgs,
    #[command(flatten, next_help_heading = OUTPUT)]
    access: AccessArgs,
    /// If the command fails, keep the run for `layered shell`.
    ///
    /// This includes a run whose command --timeout, INT or TERM asked to end, whatever its exit
    /// status.
    ///
    /// The upper and a description of the stack stay in the scratch directory. `layered shell`
    /// opens a shell there, `layered commit` turns the upper into a layer, and `layered discard`
    /// deletes it. Until then, `layered gc` does not remove the layers of the run.
    #[arg(long, help_heading = OUTPUT)]
    keep_failed: bool,
    /// Write the command's standard output and error to FILE.
    ///
    /// `-` is standard output.
    #[arg(long, value_name = "FILE", conflicts_with = "tty", help_heading = OUTPUT)]
    output: Option<PathBuf>,
    /// End the command if it writes more than SIZE to --output.
    ///
    /// SIZE is a number of bytes, or one with a suffix: 64m, 2g. The file never exceeds SIZE.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "output", help_heading = LIMITS)]
    output_limit: Option<u64>,
    /// Write a report of the run to FILE, as JSON.
    ///
    /// `-` is standard output, where the report follows the output of the command.
    #[arg(long, value_name = "FILE", help_heading = OUTPUT)]
    json: Option<PathBuf>,
    /// How much of the environment run.json and --json record: names or values.
    ///
    /// `values` records the names, too. It is not the default, because many values contain secrets.
    #[arg(long, value_name = "WHAT", default_value = "names", hide_possible_values = true, help_heading = OUTPUT)]
    record_env: RecordEnvArg,
    /// Print the duration of each phase to standard error.
    #[arg(long, help_heading = OUTPUT)]
    timings: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum EtcArg {
    Run,
    Stack,
}

impl From<EtcArg> for EtcFiles {
    fn from(etc: EtcArg) -> Self {
        match etc {
            EtcArg::Run => EtcFiles::Provided,
            EtcArg::Stack => EtcFiles::FromLayers,
        }
    }
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum RecordEnvArg {
    Names,
    Values,
}

const USAGE: &str = "\
layered run [OPTIONS] BASE COMMAND...
       layered run [OPTIONS] --base DIR -- COMMAND...";

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
  128+N  signal N ended the command, or asked it to end so that --commit created no layer
  other  the exit status of the command

A base is a directory with a root file system in fs/. One of these lines makes one:
  mkdir debian && mmdebstrap --variant=minbase bookworm debian/fs
  layered import tar:alpine-minirootfs-3.20.3-x86_64.tar.gz alpine
  podman export \"$(podman create alpine)\" | layered import - alpine

Examples:
  layered run --layer gcc --layer libc6-dev debian gcc --version
  layered run --base debian --layers-from deps.txt --user 1000 --cwd /src --timings \\
      --volume .:/src --commit store/hello -- make install
  layered run --layer gcc -t -e TERM debian /bin/bash
  layered run --rootfs /srv/alpine -m 2g --cpus 1.5 -- ./configure
  layered run --base debian --timeout 10m --memory 2g --json report.json -- ./configure";

impl Args {
    fn init(&self) -> Init {
        if self.no_init { Init::None } else { Init::Provided }
    }

    /// Returns whether `--` comes before the words, which clap does not report.
    fn follows_dashes(&self) -> bool {
        let before = std::env::args_os().rev().nth(self.words.len());
        !self.words.is_empty() && before.is_some_and(|word| word == "--")
    }

    /// Returns the base, if it is among the words, and the command.
    fn base_and_command(&self) -> anyhow::Result<(Option<&Path>, &[String])> {
        let (base, command) =
            split(&self.words, self.stack.names_base() || self.follows_dashes(), defaults::path(BASE).is_some());
        match (base, command) {
            (Some(base), []) if self.spec.is_none() => bail!("there is no command; write it after the base {base}"),
            (Some(base), [first, ..]) if first.starts_with('-') => {
                bail!("the command {first} looks like an option; options go before the base {base}")
            }
            (base, command) => Ok((base.map(Path::new), command)),
        }
    }
}

/// Splits words into the base, if it is there, and the command. There is none if an option names
/// the base, or if `--` comes before the words. The environment may have a default for it.
fn split(words: &[String], is_named: bool, has_default: bool) -> (Option<&String>, &[String]) {
    match words {
        _ if is_named => (None, words),
        [base, dashes, command @ ..] if dashes == "--" => (Some(base), command),
        [base, command @ ..] if !has_default => (Some(base), command),
        _ => (None, words),
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
    if let Some(json) = &mut json {
        json.write(&report)?;
    }
    Ok(status.into())
}

/// Returns the report as JSON and the exit status for the shell.
fn attempt(args: &Args, json_file: Option<&mut JsonFile<'_>>) -> anyhow::Result<(Value, u8)> {
    let (base, command) = args.base_and_command()?;
    let (base, layers, template) = (args.stack.base(base)?, args.stack.layers()?, template(args, command)?);
    let access = args.access.get()?;
    let place = args.commit.place(&base, &layers)?;
    if access.is_some() && args.upper.is_none() && place.is_none() {
        bail!("--mode and --group need --commit or --upper, because they apply to that directory");
    }
    if let Some(file) = json_file {
        file.reserve(&layers, &template)?;
    }
    if template.terminal() == Terminal::Attached && !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
        bail!("--tty (or process.terminal in --spec) needs a terminal as standard input and standard output");
    }
    let destination = place.as_ref().map(|place| place.path()).or_else(|| args.upper.clone());
    // The run checks the destination. If that is also on another mount, its place says more.
    let of_destination = |error| match &destination {
        Some(path) => runner::check_upper_destination(&base, &layers, path).err().map_or(error, Into::into),
        None => error,
    };
    if let Some(upper) = &args.upper {
        args.stack.check_destination(upper)?;
        args.stack.check_scratch(upper).map_err(of_destination)?;
    }
    let scratch = match &place {
        Some(place) => args.stack.scratch_for(place.store.path(), &place.path()).map_err(of_destination)?,
        None => args.stack.scratch(args.upper.as_deref().map(parent)),
    };
    let mut options = args.stack.options(scratch).runtime(args.runtime.get()).record_env(match args.record_env {
        RecordEnvArg::Names => RecordEnv::Names,
        RecordEnvArg::Values => RecordEnv::Values,
    });
    if let Some(destination) = destination {
        options = options.destination(destination);
    }
    let (stdout, stderr) = match &args.output {
        None => (Output::Inherit, Output::Inherit),
        Some(path) => {
            let file = match is_standard(path) {
                true => standard_output()?,
                false => File::create(path).with_context(|| format!("cannot create {}", quoted(path)))?,
            };
            let copy = file.try_clone().with_context(|| format!("cannot share {}", quoted(path)))?;
            (Output::File(file), Output::File(copy))
        }
    };
    options = options.stdin(Input::Inherit).stdout(stdout).stderr(stderr).init(args.init()).etc_files(args.etc.into());
    options = options.timeout(args.timeout).grace(args.grace).output_limit_bytes(args.output_limit);
    options = options.release_pages(LONG_RUN);
    let network = template.network();
    // A run whose layer cannot be made is kept, too.
    let may_be_kept = args.keep_failed || place.is_some();
    let kept_run =
        may_be_kept.then(|| KeptRun { base: base.clone(), layers: layers.clone(), template: template.clone() });
    if let Some(run) = kept_run {
        // Written before the command starts, because the command may fill the disk.
        options = options.prep_upper(move |upper, _| Ok(run.write(upper)?));
    }
    // A merge can take seconds, and the command does not write to the terminal yet.
    let mut progress = None;
    options = options.watch(move |event| match event {
        Event::Began(Phase::Merge) => drop(progress.replace(Progress::begin("merging layers"))),
        Event::Ended(Phase::Merge, _) => drop(progress.take()),
        _ => {}
    });
    let (options, signal) = signals::forward(options)?;
    let report = runner::run(&base, &layers, &template, options)?;
    let signal = signal.number();
    let mut status = exit_status(report.status, signal);
    if place.is_some() && report.status.success() && signal != 0 {
        // The command handled the signal. Its result may be incomplete, and no layer is made of it.
        status = exit_status(Status::Cancelled, signal);
    }
    match report.status {
        Status::OutOfMemory => {
            complain(format_args!("the command was killed: the container used up its memory; raise --memory"))
        }
        Status::OutputLimit => complain(format_args!("the command was ended: it exceeded --output-limit")),
        _ => {}
    }
    let is_failed = matches!(report.status, Status::Exited(code) if code != 0);
    if is_failed
        && network == Network::None
        && args.output.as_deref().is_some_and(|path| !is_standard(path) && could_not_resolve(path))
    {
        complain(format_args!(
            "the command has no network, and could not resolve a name; pass --network private or --network host"
        ));
    }
    if let Some(error) = &report.output_error {
        // A terminal that accepts no output accepts no error message either, and writing one would
        // block.
        if error.kind() != io::ErrorKind::TimedOut || has_room(&io::stderr()) {
            complain(format_args!("cannot write all of the command's output: {error}"));
        }
    }
    // The JSON report includes the size of the upper, which takes a walk to measure.
    let mut json = if args.json.is_some() { report.to_json() } else { json!({}) };
    let timings = report.timings.clone();
    let (upper, keep_failed) = (args.upper.as_deref(), args.keep_failed);
    let Settled { upper, layer, is_failure } =
        settle(report, Wanted { commit: &args.commit, place, upper, keep_failed, access, signal })?;
    json["upper"] = json!(upper.map(json_path::to_value));
    json["layer"] = json!(layer.map(json_path::to_value));
    if is_failure {
        status = crate::FAILURE;
    }
    if args.timings {
        // It does not matter if the reader of standard error has closed it.
        let _ = print_timings(&mut io::stderr().lock(), &timings);
    }
    Ok((json, status))
}

/// What resolvers say if there is no network: glibc, musl, apt, curl and busybox.
const UNRESOLVED: [&str; 4] =
    ["Temporary failure in name resolution", "Temporary failure resolving", "Could not resolve host", "bad address '"];

/// Returns whether the end of the command's output says that a name could not be resolved. Only a
/// regular file can be read again.
fn could_not_resolve(output: &Path) -> bool {
    const END: u64 = 64 << 10;
    let mut end = Vec::new();
    let mut read = || {
        let length = std::fs::metadata(output).ok().filter(|metadata| metadata.is_file())?.len();
        let mut file = File::open(output).ok()?;
        file.seek(SeekFrom::Start(length.saturating_sub(END))).ok()?;
        file.take(END).read_to_end(&mut end).ok()
    };
    let text = read().map(|_| String::from_utf8_lossy(&end)).unwrap_or_default();
    UNRESOLVED.iter().any(|words| text.contains(words))
}

/// Returns another descriptor of standard output.
fn standard_output() -> anyhow::Result<File> {
    let file = io::stdout().as_fd().try_clone_to_owned().map(OwnedFd::into);
    file.context("cannot share standard output")
}

/// Returns whether `file` can be written to without waiting.
fn has_room(file: &impl AsFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(file, PollFlags::OUT)], Some(&now)).is_ok_and(|ready| ready > 0)
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
            let advice = args.base_and_command().ok().and_then(|(base, command)| advice(base, command));
            format!("{error}{source}{note}{}", advice.unwrap_or_default())
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

/// Returns what the caller may have meant by a command that does not exist.
fn advice(base: Option<&Path>, command: &[String]) -> Option<String> {
    match command {
        [word] if word.contains(' ') => {
            Some("; its name has a space: write each word on its own, or put `sh -c` before it".into())
        }
        [word, ..] if base.is_none() && Path::new(word).join("fs").is_dir() => {
            Some(format!("; if {} is the base, write `--` after it", quoted(word)))
        }
        _ => None,
    }
}

fn template(args: &Args, command: &[String]) -> anyhow::Result<Template> {
    if let Some(path) = &args.spec {
        let template = Template::from_file(path)?;
        return Ok(if command.is_empty() { template } else { template.with_args(command)? });
    }
    args.template.template(command)
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

/// The file of the report. Standard output has no file of its own.
struct JsonFile<'a> {
    path: &'a Path,
    file: Option<File>,
}

impl<'a> JsonFile<'a> {
    fn create(path: &'a Path) -> anyhow::Result<Self> {
        let create = || File::create(path).with_context(|| format!("cannot create {}", quoted(path)));
        let file = if is_standard(path) { None } else { Some(create()?) };
        Ok(Self { path, file })
    }

    /// Reserves room for the report of a run of `template` over `layers`, so that the report can be
    /// written even if the command fills the disk.
    fn reserve(&mut self, layers: &[Layer], template: &Template) -> anyhow::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let paths: usize = layers.iter().map(|layer| layer.path().as_os_str().len() + layer.name().len()).sum();
        let env = template.env().map(|(name, value)| name.len() + value.len());
        let command: usize = template.args().map(str::len).chain(env).sum();
        // A path that is not UTF-8 takes four characters per byte, and a control character six.
        let bytes = (64 << 10) + 4 * paths as u64 + 6 * command as u64;
        kept::reserve(file, bytes).with_context(|| format!("cannot reserve room for {}", quoted(self.path)))
    }

    fn write(&mut self, value: &Value) -> anyhow::Result<()> {
        let text = format!("{}\n", escaped_json(value));
        let Some(file) = &mut self.file else { return Ok(io::stdout().write_all(text.as_bytes())?) };
        let written = file.write_all(text.as_bytes()).and_then(|()| match file.metadata()?.is_file() {
            // Removes the unused part of the reservation.
            true => file.set_len(text.len() as u64),
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
    use signal_hook::consts::SIGINT;

    use super::*;

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
    fn the_first_word_is_the_base_if_nothing_else_names_it() {
        let words = |line: &str| line.split(' ').map(String::from).collect::<Vec<_>>();
        for (line, is_named, has_default, base, command) in [
            ("debian gcc -v", false, false, Some("debian"), "gcc -v"),
            ("debian -- gcc -v", false, false, Some("debian"), "gcc -v"),
            ("debian -- gcc -v", false, true, Some("debian"), "gcc -v"),
            ("gcc -v", false, true, None, "gcc -v"),
            ("gcc -v", true, false, None, "gcc -v"),
            ("env -- gcc -v", true, true, None, "env -- gcc -v"),
        ] {
            let words = words(line);
            let (found, rest) = split(&words, is_named, has_default);
            assert_eq!((found.map(String::as_str), rest.join(" ")), (base, command.into()), "{line}");
        }
        assert_eq!(split(&[], false, false), (None, &[][..]));
    }

    #[test]
    fn a_command_that_does_not_exist_may_be_two_words() {
        let advice = |command: &str| advice(None, &[command.into()]);
        assert!(advice("gcc --version").is_some_and(|advice| advice.contains("its name has a space")));
        assert_eq!(advice("gcc"), None);
    }

    #[test]
    fn a_failure_as_json_has_the_message_and_no_upper() {
        let json = failure_json(&anyhow::anyhow!("reason").context("what"));
        assert_eq!(json["status"]["failed"]["message"], "what: reason");
        assert!(json["upper"].is_null());
    }
}
