//! `layered page`: decides where the page of a store is written. [`model`] reads the store,
//! [`lanes`] and [`ancestry`](crate::ancestry) arrange its layers, and [`html`] makes one file of
//! them.
//! [`ls`](crate::ls) lists the same layers in a terminal.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Context;
use layer::display::quoted;
use layer::{OutputFile, Store};

use crate::defaults;
use crate::progress::Progress;
use crate::stack::is_standard;

mod html;
mod lanes;
mod model;

use model::{Model, Sizes};

/// Write a store as one HTML page.
///
/// The page has an index of the layers to sort and filter, a timeline of the runs that made them,
/// a tree of layers and their parents, and a map of their sizes. It is a single file, which a
/// browser can show without network access.
///
/// If a layer's layer.json cannot be read, the index shows the layer with the error.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  layered page /var/cache/layers > store.html
  layered page /var/cache/layers --du -o /srv/www/store.html")]
pub(crate) struct Args {
    /// Directory that contains the layers [default: $LAYERED_STORE].
    store: Option<PathBuf>,
    /// Write the page to FILE instead of standard output.
    ///
    /// `-` is standard output. FILE is replaced in one step, only once the page is complete. If it
    /// is a FIFO or a device, the page is written to it.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Measure each layer whose layer.json records no size or an impossible one.
    ///
    /// This walks the whole tree of each such layer. Without --du, the page shows no size for it.
    #[arg(long)]
    du: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let file = args.output.as_deref().filter(|file| !is_standard(file));
    anyhow::ensure!(
        file.is_some() || !io::stdout().is_terminal(),
        "standard output is a terminal; redirect it, or pass --output FILE"
    );
    let dir = defaults::store(args.store.as_deref())?;
    let sizes = if args.du { Sizes::Measured } else { Sizes::Recorded };
    let progress = args.du.then(|| Progress::begin("measuring layers"));
    let model = Model::of(&Store::open(&dir)?, sizes, SystemTime::now())?;
    drop(progress);
    let page = html::page(&model)?;
    match file {
        Some(file) => write(file, &page).with_context(|| format!("cannot write {}", quoted(file)))?,
        None => io::stdout().lock().write_all(page.as_bytes())?,
    }
    Ok(ExitCode::SUCCESS)
}

fn write(file: &Path, page: &str) -> io::Result<()> {
    let mut output = OutputFile::create(file)?;
    output.write_all(page.as_bytes())?;
    output.finish()
}
