//! `layered push` and `layered pull` of a build without the feature `registry`: says what is
//! missing.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::bail;

/// Copy layers to or from a registry: not in this build of layered.
///
/// It was built without the feature `registry`: build with `--features registry`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let _ = &args.arguments;
    bail!("this layered was built without registries; build it with `--features registry`")
}
