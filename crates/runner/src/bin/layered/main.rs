//! Decides which subcommand runs, and what the user sees if it fails.
//!
//! Each subcommand is in the file of its name. The subcommands share the arguments in [`stack`],
//! [`access`], [`defaults`], [`ids`] and [`kept`], the parsers of [`values`], the places of new
//! layers in [`place`], the forwarding of [`signals`], and the output of [`table`], [`du`] and
//! [`progress`]. [`habits`] advises users of other tools. None of them holds policy: the libraries
//! decide.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::error::ContextValue;
use clap::{ColorChoice, Parser, Subcommand};
use container::Cgroup;
use ids::{IdsArgs, Need};
use layer::display::escaped;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::SIGXFSZ;

mod access;
mod ancestry;
mod commit;
mod completions;
mod defaults;
mod diff;
mod discard;
mod doctor;
mod du;
mod export;
mod gc;
mod habits;
mod ids;
mod import;
mod kept;
mod ls;
mod man;
mod merge;
#[cfg(test)]
#[path = "../../../../../integration-tests/src/mutated.rs"]
mod mutated;
mod page;
mod place;
mod plan;
mod progress;
#[cfg(feature = "registry")]
mod pull;
#[cfg(feature = "registry")]
mod push;
#[cfg(feature = "registry")]
mod registry;
mod rm;
mod run;
mod shell;
mod show;
mod signals;
mod stack;
mod sweep;
mod table;
mod unshare;
mod values;
mod verify;
#[cfg(not(feature = "registry"))]
mod without_registry;

#[cfg(not(feature = "registry"))]
use without_registry as pull;
#[cfg(not(feature = "registry"))]
use without_registry as push;

/// The exit status if layered itself fails.
const FAILURE: u8 = 125;

/// The exit status if a later attempt can succeed: EX_TEMPFAIL of sysexits.h, which schedulers can
/// be told to repeat.
const TEMPORARY: u8 = 75;

/// Run commands in root file systems stacked from layers, and keep what they write as new layers.
///
/// A layer is a directory with a file tree in `fs/`. So is the base at the bottom of a stack. The
/// first layer on a command line is the topmost.
#[derive(Debug, Parser)]
#[command(name = "layered", version, max_term_width = 100, after_help = EXAMPLES)]
struct Arguments<C: Subcommand> {
    #[command(subcommand)]
    command: C,
    #[command(flatten)]
    ids: IdsArgs,
    /// Use colours.
    ///
    /// By default, colours are used on a terminal, unless NO_COLOR is set or TERM is `dumb`.
    #[arg(long, value_name = "WHEN", value_enum, default_value_t, global = true, hide_default_value = true)]
    color: ColorChoice,
}

const EXAMPLES: &str = "\
Examples:
  layered run --layer gcc --layer libc6-dev debian gcc --version
  layered run --base debian --layers-from deps.txt --commit /var/cache/layers/new -- make install
  layered import oci:images:debian debian
  layered plan --base debian --layers-from deps.txt
  layered merge merged gcc libc6-dev
  layered ls /var/cache/layers --tree
  layered diff --du /var/cache/layers/new
  layered page /var/cache/layers > store.html
  layered rm /var/cache/layers/new
  layered gc /var/cache/layers --max-bytes 200g

`layered COMMAND --help` explains a command and has examples of it.

Environment:
  LAYERED_BASE     base of a run
  LAYERED_STORE    store of layers, in which a bare name of a layer is looked up
  LAYERED_SCRATCH  directory for temporary files
  LAYERED_RUNTIME  OCI runtime
  LAYERED_IDS      users and groups without root: single, ranges or auto
  NO_COLOR         no colours
  RUST_LOG=debug   layered logs its decisions to standard error";

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<run::Args>),
    Plan(plan::Args),
    Merge(merge::Args),
    Shell(shell::Args),
    Discard(discard::Args),
    Commit(commit::Args),
    Import(import::Args),
    Export(export::Args),
    Push(push::Args),
    Pull(pull::Args),
    Verify(verify::Args),
    Ls(ls::Args),
    Diff(diff::Args),
    Show(show::Args),
    Page(page::Args),
    Rm(rm::Args),
    Gc(gc::Args),
    Sweep(sweep::Args),
    Doctor(doctor::Args),
    Unshare(unshare::Args),
    Completions(completions::Args),
    Man(man::Args),
}

/// The arguments of every subcommand.
type Cli = Arguments<Command>;

/// `layered run` alone.
#[derive(Debug, Subcommand)]
enum OnlyRun {
    Run(Box<run::Args>),
}

/// Parses the arguments of this process. It takes half a millisecond to build the arguments of all
/// subcommands, so a run builds only its own.
fn parse_arguments() -> Result<Cli, clap::Error> {
    if std::env::args_os().nth(1).is_some_and(|word| word == "run") {
        let Arguments { command: OnlyRun::Run(args), ids, color } = Arguments::try_parse()?;
        return Ok(Cli { command: Command::Run(args), ids, color });
    }
    Cli::try_parse()
}

impl Command {
    /// Returns how much the subcommand needs the rights of root.
    fn need(&self) -> Need {
        match self {
            Command::Run(_) | Command::Plan(_) | Command::Shell(_) | Command::Unshare(_) => Need::Must,
            Command::Merge(_) | Command::Discard(_) | Command::Commit(_) | Command::Import(_) => Need::Helps,
            Command::Push(_) | Command::Pull(_) => Need::Helps,
            Command::Export(_) | Command::Verify(_) | Command::Rm(_) | Command::Gc(_) | Command::Sweep(_) => {
                Need::Helps
            }
            Command::Ls(_) | Command::Diff(_) | Command::Show(_) | Command::Page(_) | Command::Doctor(_) => Need::Reads,
            Command::Completions(_) | Command::Man(_) => Need::None,
        }
    }
}

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn"))
        .format(|out, record| {
            writeln!(out, "layered: {}: {}", record.level().as_str().to_lowercase(), escaped(record.args()))
        })
        .init();
    let cli = match parse_arguments() {
        Ok(cli) => cli,
        Err(mut error) => {
            habits::advise(&mut error);
            let error = printable(error);
            // Help and the version are not failures. A failure to print them cannot be reported.
            let _ = error.print();
            return if error.use_stderr() { FAILURE.into() } else { ExitCode::SUCCESS };
        }
    };
    match cli.color {
        ColorChoice::Auto => anstream::ColorChoice::Auto,
        ColorChoice::Always => anstream::ColorChoice::Always,
        ColorChoice::Never => anstream::ColorChoice::Never,
    }
    .write_global();
    // The kernel refuses a user namespace to a process with threads, so this comes before
    // everything that could start one.
    let not_entered = match cli.ids.enter(cli.command.need()) {
        Ok(not_entered) => not_entered,
        Err(error) => {
            complain(format_args!("{error:#}"));
            return FAILURE.into();
        }
    };
    // A program of `unshare` gets the limits of the caller.
    if !matches!(cli.command, Command::Unshare(_)) {
        raise_open_files_limit();
        survive_file_size_limit();
    }
    let is_run = matches!(cli.command, Command::Run(_));
    // The kernel takes longer for this than `run` takes to reach the runtime.
    let _prepared = (is_run || matches!(cli.command, Command::Shell(_))).then(Cgroup::prepare_moves);
    let result = match cli.command {
        Command::Run(args) => run::run(*args),
        Command::Plan(args) => plan::run(&args),
        Command::Merge(args) => merge::run(&args),
        Command::Shell(args) => shell::run(args),
        Command::Discard(args) => discard::run(&args),
        Command::Commit(args) => commit::run(&args),
        Command::Import(args) => import::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Push(args) => push::run(&args),
        Command::Pull(args) => pull::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Ls(args) => ls::run(&args),
        Command::Diff(args) => diff::run(&args),
        Command::Show(args) => show::run(&args),
        Command::Page(args) => page::run(&args),
        Command::Rm(args) => rm::run(&args),
        Command::Gc(args) => gc::run(&args),
        Command::Sweep(args) => sweep::run(args),
        Command::Doctor(args) => cli.ids.chosen().and_then(|ids| doctor::run(&args, ids, not_entered.as_ref())),
        Command::Unshare(args) => unshare::run(&args),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
    };
    result.unwrap_or_else(|error| {
        // The reader has closed the pipe, as in `layered ls | head`. That is not a failure.
        let broken = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
        if !is_run && error.downcast_ref::<io::Error>().is_some_and(broken) {
            return ExitCode::SUCCESS;
        }
        complain(format_args!("{error:#}"));
        FAILURE.into()
    })
}

/// Prints one line on standard error, and escapes the control characters of the names in it. A
/// failure to print cannot be reported, so it is ignored.
fn complain(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "layered: {}", escaped(line));
}

/// Escapes the control characters of the arguments that a usage error quotes.
fn printable(mut error: clap::Error) -> clap::Error {
    let quoted: Vec<_> = error.context().map(|(kind, value)| (kind, value.clone())).collect();
    for (kind, value) in quoted {
        match value {
            ContextValue::String(text) => error.insert(kind, ContextValue::String(escaped(text).to_string())),
            ContextValue::Strings(texts) => {
                let texts = texts.into_iter().map(|text| escaped(text).to_string()).collect();
                error.insert(kind, ContextValue::Strings(texts))
            }
            _ => None,
        };
    }
    error
}

/// Raises the soft limit of open files to the hard limit. Some rungs need 500 descriptors at the
/// same time for 500 layers.
fn raise_open_files_limit() {
    let limit = getrlimit(Resource::Nofile);
    // If this fails, the old limit stays. A step that exceeds it reports an error.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// Makes a write beyond the file size limit (`ulimit -f`) fail with EFBIG. By default, SIGXFSZ ends
/// the process.
fn survive_file_size_limit() {
    if getrlimit(Resource::Fsize).current.is_none() {
        return;
    }
    if !signals::is_ignored(SIGXFSZ) {
        let unread = Arc::new(AtomicBool::new(false));
        // If this fails, SIGXFSZ still ends the process.
        let _ = signal_hook::flag::register(SIGXFSZ, unread);
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn a_run_that_builds_only_its_own_arguments_has_the_same_help_and_errors() {
        let run = |mut command: clap::Command| {
            let help = ["--help", "-h"].map(|option| command.try_get_matches_from_mut(["layered", "run", option]));
            let usage = command.try_get_matches_from_mut(["layered", "run", "--no-such-option"]);
            help.into_iter().chain([usage]).map(|result| result.unwrap_err().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(run(Arguments::<OnlyRun>::command()), run(Cli::command()));
    }
}
