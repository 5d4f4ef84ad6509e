//! `layered shell`: decides what runs over the upper of a kept run. [`kept`](crate::kept) finds the
//! run, and [`commit`](crate::commit) or [`discard`](crate::discard) ends it.

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use container::{Input, Output, Terminal};
use runner::{EtcFiles, Options};

use crate::defaults::{self, RuntimeArgs};
use crate::kept::{KeptArgs, KeptRun};
use crate::{run, signals};

/// Open a shell in a run that --keep-failed kept.
///
/// The shell has the layers, the container configuration and the files of the failed run. Changes
/// to the files are kept for the next `layered shell`. `layered commit` turns the kept run into a
/// layer, and `layered discard` deletes it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  layered shell /var/cache/layers/scratch/kept-0123456789abcdef
  layered shell --scratch /var/cache/layers/scratch kept-0123456789abcdef -- make -k check")]
pub(crate) struct Args {
    #[command(flatten)]
    kept: KeptArgs,
    #[command(flatten)]
    runtime: RuntimeArgs,
    /// Command to run instead of a shell.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Starts bash if the stack has it, and sh otherwise.
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
        .skeletons(defaults::scratch(None))
        // The upper has these files as the command left them.
        .etc_files(EtcFiles::FromLayers)
        .runtime(args.runtime.get())
        .release_pages(run::LONG_RUN)
        .stdin(Input::Inherit)
        .stdout(Output::Inherit)
        .stderr(Output::Inherit);
    let (options, signal) = signals::forward(options)?;
    let report = runner::run(&base, &layers, &template, options)?;
    Ok(run::exit_status(report.status, signal.number()).into())
}
