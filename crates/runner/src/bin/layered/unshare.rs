//! `layered unshare`: replaces itself by a program inside the user namespace that
//! [`ids`](crate::ids) has entered.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use layer::display::quoted;

/// Run a program as root of the user namespace in which layered works without root.
///
/// In the namespace, files of your subordinate IDs can be read, changed and removed. Programs that
/// use the library of layered and cannot enter a namespace themselves can be started this way. Root
/// needs no namespace: the program then runs as it would without `layered unshare`.
///
/// The program replaces layered, so its exit status is its own.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit status:
  125    layered itself failed
  126    the program cannot be executed
  127    the program does not exist
  other  the exit status of the program

Examples:
  layered unshare -- rm -rf upper
  layered unshare --ids single -- ./build-farm")]
pub(crate) struct Args {
    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "PROGRAM")]
    words: Vec<OsString>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let [program, arguments @ ..] = &*args.words else { unreachable!("clap requires a word") };
    let error = Command::new(program).args(arguments).exec();
    let status = if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 };
    crate::complain(format_args!("cannot execute {}: {error}", quoted(program)));
    Ok(status.into())
}
