use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;

use container::{Input, Output, Runtime, Terminal};
use runner::{EtcFiles, Options};

use crate::kept::{KeptArgs, KeptRun};
use crate::{run, signals};

/// Open a shell in the state in which a run with --keep-failed ended.
///
/// The stack, the container and the files are those of the failed run; what is changed is there at the next visit, too. `layered
/// commit` makes a layer of it, `layered discard` deletes it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  layered shell /var/cache/layers/scratch/kept-0123456789abcdef
  layered shell --scratch /var/cache/layers/scratch kept-0123456789abcdef -- make -k check")]
pub(crate) struct Args {
    #[command(flatten)]
    kept: KeptArgs,
    /// The OCI runtime: runc, crun, youki, or the path of one.
    #[arg(long, value_name = "NAME|PATH", default_value = "runc")]
    runtime: PathBuf,
    /// What to run in the place of a shell.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// bash if the stack has it.
const SHELL: [&str; 3] = ["/bin/sh", "-c", "command -v bash >/dev/null && exec bash; exec sh"];

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let upper = args.kept.reopen()?;
    let KeptRun { base, layers, template } = KeptRun::read(&args.kept.dir())?;
    let template =
        if args.command.is_empty() { template.with_args(SHELL)? } else { template.with_args(&args.command)? };
    let interactive = io::stdin().is_terminal() && io::stdout().is_terminal();
    let template = template.with_terminal(if interactive { Terminal::Attached } else { Terminal::None });
    let options = Options::new()
        .over(upper)
        // They are in the upper as the command left them.
        .etc_files(EtcFiles::FromLayers)
        .runtime(Runtime::new(&args.runtime))
        .stdin(Input::Inherit)
        .stdout(Output::Inherit)
        .stderr(Output::Inherit);
    let (options, signal) = signals::handed_on(options)?;
    let report = runner::run(&base, &layers, &template, options)?;
    Ok(run::exit_status(report.status, signal.came()).into())
}
