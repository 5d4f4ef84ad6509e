//! `layered merge`: decides which access the merged directory gets and how the result is shown.
//! `layer::Merge` merges, and [`run`](crate::run) does so by itself where a stack is too large.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use layer::{Access, Hold, Layer, Merge, Merged};

use crate::access::AccessArgs;
use crate::progress::Progress;
use crate::stack::{open_layer, parent};
use crate::table::{count, print_json};

/// Merge layers into one directory by hard links.
///
/// TARGET becomes a lower directory that shows the same as the layers on top of each other. It
/// shares its files with the layers, so do not write to it. It keeps the whiteouts and opaque
/// directories that hide entries of a base.
///
/// The root of TARGET gets the mode of the topmost layer's root, or 0700 where other users of the
/// host could reach it. A merge that was killed can be repeated into the same TARGET.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  layered merge merged gcc libc6-dev binutils")]
pub(crate) struct Args {
    /// Merged directory: new or empty, on the file system of the layers.
    ///
    /// On another file system, the files are copied.
    target: PathBuf,
    /// Directories of the layers, topmost first.
    #[arg(required = true, value_name = "LAYER")]
    layers: Vec<PathBuf>,
    #[command(flatten)]
    access: AccessArgs,
    /// Print one JSON object instead of a line.
    ///
    /// Its keys are the numbers of files `linked` and `copied`, of `directories` and `whiteouts`,
    /// and of `opaques`, the opaque directories.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let here = Path::new("");
    let layers = args.layers.iter().map(|dir| open_layer(here, dir)).collect::<anyhow::Result<Vec<_>>>()?;
    let progress = Progress::begin("waiting for the lock of the store");
    let hold = Hold::of(layers.iter().map(Layer::path))?;
    let trees: Vec<_> = layers.iter().map(|layer| Ok(Layer::open(layer.path())?.fs())).collect::<layer::Result<_>>()?;
    let show = |so_far: &Merged| progress.tell(|| told(so_far));
    let mut merge = Merge::new().xattrs(runner::xattrs_of_process()).progress(&show);
    let access = match args.access.get()? {
        None if Access::is_needed_in(parent(&args.target)).unwrap_or(false) => Some(Access::default()),
        access => access,
    };
    if let Some(access) = access {
        merge = merge.access(access);
    }
    let merged = merge.run(&trees, &args.target)?;
    drop(hold);
    drop(progress);
    let mut out = io::stdout().lock();
    match args.json {
        true => print_json(&mut out, &merged)?,
        false => writeln!(out, "{} merged: {}", count(trees.len() as u64, "layer"), told(&merged))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn told(merged: &Merged) -> String {
    let Merged { linked, copied, directories, whiteouts, .. } = merged;
    format!("{linked} files linked, {copied} copied, {directories} directories, {whiteouts} whiteouts")
}
