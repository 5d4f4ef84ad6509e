//! Runs a command over a base and layers, topmost first, and makes what it wrote the layer
//! STORE/NAME:
//!
//! `cargo run -p runner --example build_and_capture BASE STORE NAME [LAYER…] -- COMMAND…` (as root)

use std::fs;
use std::io::{Write, stdout};
use std::path::Path;

use anyhow::{Context, bail, ensure};
use container::{Output, Template};
use layer::{Base, Layer};
use runner::Options;

const USAGE: &str = "usage: build_and_capture BASE STORE NAME [LAYER…] -- COMMAND…";

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let end = args.iter().position(|arg| arg == "--").context(USAGE)?;
    let [base, store, name, layers @ ..] = &args[..end] else { bail!(USAGE) };
    let base = Base::open(base)?;
    let layers = layers.iter().map(Layer::open).collect::<Result<Vec<_>, _>>()?;
    let new = Layer::at(Path::new(store).join(name));
    // The upper becomes the layer by a rename, so both have to be on one file system.
    let scratch = Path::new(store).join("scratch");
    fs::create_dir_all(&scratch)?;

    let template = Template::builder(&args[end + 1..]).build()?;
    let options = Options::new().scratch(scratch).stdout(Output::Inherit).stderr(Output::Inherit);
    let report = runner::run(&base, &layers, &template, options)?;
    // Otherwise the upper is deleted with the report.
    ensure!(report.status.success(), "the command failed: {:?}", report.status);

    let (capture, meta, total) = (report.capture(), report.meta(), report.timings.total());
    let captured = report.upper.capture(&capture, &new, meta)?;
    writeln!(stdout(), "{}: {} entries in {total:.1?}", new.path().display(), captured.size.entries)?;
    Ok(())
}
