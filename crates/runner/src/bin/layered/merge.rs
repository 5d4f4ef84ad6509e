use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use layer::{Access, Hold, Layer, Merge};
use serde_json::json;

use crate::access::AccessArgs;
use crate::stack::parent;

/// Merge layers into one directory by hard links: what the kernel would show of them, stacked.
///
/// The target shares its files with the layers and must never be written to. It is a lower over a base, so whiteouts and
/// opaque directories that concern the base stay in it.
///
/// The root of the target has the mode of the topmost layer's, or 0700 where other users of the host could get to it. A merge
/// that was killed can be repeated into the same target.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  layered merge merged gcc libc6-dev binutils")]
pub(crate) struct Args {
    /// The directory to make: new or empty, on the file system of the layers.
    target: PathBuf,
    /// The layers, the topmost first.
    #[arg(required = true, value_name = "LAYER")]
    layers: Vec<PathBuf>,
    #[command(flatten)]
    access: AccessArgs,
    /// One JSON object instead of a line: what was `linked`, `copied` and so on, each a number.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let hold = Hold::of(&args.layers)?;
    let trees: Vec<_> = args.layers.iter().map(|dir| Ok(Layer::open(dir)?.fs())).collect::<layer::Result<_>>()?;
    let mut merge = Merge::new();
    let access = match args.access.get()? {
        None if Access::is_needed_in(parent(&args.target)).unwrap_or(false) => Some(Access::default()),
        access => access,
    };
    if let Some(access) = access {
        merge = merge.access(access);
    }
    let merged = merge.run(&trees, &args.target)?;
    drop(hold);
    let layer::Merged { linked, copied, directories, whiteouts, opaques, .. } = merged;
    let mut out = io::stdout().lock();
    if args.json {
        let json = json!({"linked": linked, "copied": copied, "directories": directories, "whiteouts": whiteouts,
            "opaques": opaques});
        writeln!(out, "{json}")?;
    } else {
        let layers = trees.len();
        writeln!(
            out,
            "{layers} layers merged: {linked} files linked, {copied} copied, {directories} directories, {whiteouts} whiteouts"
        )?;
    }
    Ok(ExitCode::SUCCESS)
}
