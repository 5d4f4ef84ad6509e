//! `layered rm`: decides which layers are removed, and what is said about those that are not.
//!
//! `layer::Store` removes them. [`gc`](crate::gc) removes the layers that are used least, and
//! [`discard`](crate::discard) kept runs.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::anyhow;
use layer::display::quoted;
use layer::{Holder, json_path};
use runner::Upper;
use serde::Serialize;

use crate::place::Place;
use crate::stack::{find_layer, is_store};
use crate::{complain, table};

/// The exit status if a layer was not removed.
const NOT_REMOVED: u8 = 1;

/// Remove layers.
///
/// rm takes a layer out of its store in one step and then deletes its files. It refuses to remove a
/// layer that a run or a kept run uses, or that is the base of another layer. It does remove a
/// parent of other layers: they stay, and each of them remains complete without it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit status:
  0    all layers are removed
  1    at least one layer was not removed; all the others were
  125  layered itself failed

Examples:
  layered rm /var/cache/layers/hello
  LAYERED_STORE=/var/cache/layers layered rm hello gcc
  layered ls --json /var/cache/layers |
    jq -j 'select(.exit_status != 0) | \"/var/cache/layers/\\(.name)\\u0000\"' |
    xargs -0r layered rm --")]
pub(crate) struct Args {
    /// Directory of a layer, or its name in the directory LAYERED_STORE.
    #[arg(value_name = "LAYER", required = true)]
    layers: Vec<PathBuf>,
    /// Remove a layer even if it is the base of other layers.
    ///
    /// Without their base, the other layers can no longer be used in a run.
    #[arg(long)]
    base: bool,
    /// Print one JSON object per layer.
    ///
    /// The keys are `layer` (its path), `removed` (true or false) and `error` (why the layer was
    /// not removed, or null).
    #[arg(long)]
    json: bool,
}

/// The outcome for one layer.
#[derive(Debug, Serialize)]
struct Outcome {
    #[serde(with = "json_path")]
    layer: PathBuf,
    removed: bool,
    error: Option<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut status = ExitCode::SUCCESS;
    for given in &args.layers {
        let layer = find_layer(Path::new(""), given);
        let error = remove(&layer, args).err().map(|error| format!("{error:#}"));
        if let Some(error) = &error {
            complain(format_args!("{error}"));
            status = NOT_REMOVED.into();
        }
        if args.json {
            let outcome = Outcome { layer, removed: error.is_none(), error };
            table::print_json(&mut table::stdout(), &outcome)?;
        }
    }
    Ok(status)
}

fn remove(layer: &Path, args: &Args) -> anyhow::Result<()> {
    let Place { store, name } = Place::of(layer)?;
    let removed = if args.base { store.remove_base(&name) } else { store.remove(&name) };
    removed.map_err(|error| match &error {
        layer::Error::LayerHeld { by: Holder::Kept(path), .. } if Upper::is_kept_name(path) => anyhow!(
            "cannot remove {}: the kept run {1} needs it; end that with `layered commit` or `layered discard {1}`",
            quoted(layer),
            quoted(path)
        ),
        layer::Error::BaseOfOthers { .. } => anyhow!("{error}, or pass --base"),
        layer::Error::Incomplete { layer } => without_meta(layer),
        _ => error.into(),
    })
}

/// Returns the error about a directory without `layer.json`, with what the caller probably meant.
fn without_meta(dir: &Path) -> anyhow::Error {
    let shown = quoted(dir);
    if is_store(dir) {
        anyhow!("{shown} is a store of layers; pass the layers to remove, which `layered ls {shown}` lists")
    } else if dir.join("fs").is_dir() {
        anyhow!(
            "{shown} has no layer.json: it is a base, or its build is still running or was killed; `rm -r` removes it"
        )
    } else {
        anyhow!("{shown} is not a layer; pass a directory with a layer.json")
    }
}
