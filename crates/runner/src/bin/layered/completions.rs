use std::io::{self, Write};
use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

/// Print the completions of a shell, for the shell to read when it starts.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// Which shell's.
    shell: Shell,
}

const AFTER_HELP: &str = "\
Examples:
  layered completions bash > /usr/share/bash-completion/completions/layered
  layered completions zsh > /usr/share/zsh/site-functions/_layered
  layered completions fish > /usr/share/fish/vendor_completions.d/layered.fish";

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    // The generator would panic where it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut crate::Cli::command(), "layered", &mut script);
    io::stdout().lock().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}
