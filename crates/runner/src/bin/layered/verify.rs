//! `layered verify`: decides which layers are looked at and how the result is shown.
//! `layer::oci::verify` compares a layer with its recorded digest.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use layer::Layer;
use layer::display::{escaped, quoted};
use layer::json_path;
use layer::oci::{Digest, Verified, verify};
use serde::Serialize;

use crate::stack::is_store;
use crate::table;

/// Find damage in layers.
///
/// Reads each layer again and compares it with the digest in its digest.json. `layered import`,
/// `layered export` and `layered commit --digest` record this digest. If a layer has none, verify
/// checks only that its files are present and well-formed.
///
/// Owners have other numbers in another user namespace. If the digest differs and was recorded with
/// other users and groups than those of this process, the layer is not comparable here.
///
/// Changes nothing. The exit status is 1 if a layer is damaged.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  layered verify debian store/hello\n  layered verify store --json")]
pub(crate) struct Args {
    /// Layer or imported base, or a store, which stands for all its layers.
    #[arg(required = true, value_name = "LAYER|STORE")]
    paths: Vec<PathBuf>,
    /// Print one JSON object per line and layer.
    ///
    /// Its keys are `layer`, `state` (`intact`, `not recorded`, `not comparable` or `damaged`),
    /// `tree` (the digest, if the layer is intact) and `damage` (the reason, if the layer is
    /// damaged or not comparable).
    #[arg(long)]
    json: bool,
}

/// The exit status if a layer is damaged.
const DAMAGED: u8 = 1;

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut is_damaged = false;
    let mut out = io::stdout().lock();
    for path in &args.paths {
        for layer in layers(path)? {
            let verified = verify(&layer, runner::xattrs_of_process());
            is_damaged |= matches!(verified, Verified::Damaged(_));
            match args.json {
                true => table::print_json(&mut out, &Line::of(&layer, &verified))?,
                false => writeln!(out, "{}: {}", quoted(layer.path()), escaped(describe(&verified)))?,
            }
        }
    }
    Ok(if is_damaged { DAMAGED.into() } else { ExitCode::SUCCESS })
}

/// Returns the layer at `path`, or the layers of the store there, in the order of their names. A
/// directory of a store counts even without a `layer.json`.
fn layers(path: &Path) -> anyhow::Result<Vec<Layer>> {
    if path.join("fs").symlink_metadata().is_ok() || !is_store(path) {
        return Ok(vec![Layer::at(path)]);
    }
    let failed = || format!("cannot read {}", quoted(path));
    let mut layers = Vec::new();
    for entry in std::fs::read_dir(path).with_context(failed)? {
        let entry = entry.with_context(failed)?;
        let is_hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if !is_hidden && entry.file_type().with_context(failed)?.is_dir() {
            layers.push(Layer::at(entry.path()));
        }
    }
    layers.sort();
    Ok(layers)
}

fn describe(verified: &Verified) -> String {
    match verified {
        Verified::Intact(tree) => format!("intact, {tree}"),
        Verified::Damaged(damage) => format!("damaged: {damage}"),
        Verified::OtherIds(ids) => format!("not comparable here: {ids}"),
        Verified::NotComparable(error) => format!("not comparable: {error:?}"),
        _ => "no digest was recorded".into(),
    }
}

/// The result for a layer as JSON.
#[derive(Debug, Serialize)]
struct Line<'a> {
    #[serde(serialize_with = "json_path::serialize")]
    layer: &'a Path,
    state: &'static str,
    tree: Option<&'a Digest>,
    damage: Option<String>,
}

impl<'a> Line<'a> {
    fn of(layer: &'a Layer, verified: &'a Verified) -> Self {
        let (state, tree, damage) = match verified {
            Verified::Intact(tree) => ("intact", Some(tree), None),
            Verified::Damaged(damage) => ("damaged", None, Some(damage.to_string())),
            Verified::OtherIds(ids) => ("not comparable", None, Some(ids.to_string())),
            Verified::NotComparable(error) => ("not comparable", None, Some(format!("{error:?}"))),
            _ => ("not recorded", None, None),
        };
        Self { layer: layer.path(), state, tree, damage }
    }
}
