//! `layered completions`: prints a completion script from the definition of the command.
//! [`man`](crate::man) makes the manual pages from it.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

/// Print a completion script for a shell.
///
/// Write it to the file from which the shell loads it, as in the examples.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// Shell that will load the script.
    shell: Shell,
}

const AFTER_HELP: &str = "\
Examples:
  layered completions bash > /usr/share/bash-completion/completions/layered
  layered completions zsh > /usr/share/zsh/site-functions/_layered
  layered completions fish > /usr/share/fish/vendor_completions.d/layered.fish";

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    // Generates into memory, because the generator panics if it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut crate::Cli::command(), "layered", &mut script);
    io::stdout().lock().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}
