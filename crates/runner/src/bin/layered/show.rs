//! `layered show`: decides what is shown of one layer. [`origin`] shows where a file is from, and
//! [`conflicts`] what several layers provide. [`ls`](crate::ls) lists the layers of a store.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use layer::display::{escaped_json, quoted};
use layer::{Layer, Meta};
use runner::CommandRecord;
use serde::Serialize;
use serde_json::Value;

use crate::du::{self, Directory, DirectorySizes};
use crate::stack::{BaseArgs, LayerArgs, default_base, open_layer};
use crate::table;

mod command;
mod conflicts;
mod origin;

/// The exit status for no file or for a difference, as of grep(1) and diff(1).
const NO: u8 = 1;

/// Show one layer, the origin of a file, or conflicts between layers.
///
/// With LAYER, show prints the command that made the layer, its layer.json, its last use and its
/// sidecars. With --file, it names the layer of a stack that provides a file. With --conflicts, it
/// lists the paths on which layers differ. There, the order of the layers matters.
/// `layered diff` lists what one layer changes.
#[derive(Debug, clap::Args)]
#[command(
    group = clap::ArgGroup::new("what").required(true),
    after_help = "\
Exit status:
  0    success
  1    with --file: the stack has no such path; with --conflicts: layers differ
  125  layered itself failed; also with --file, if PATH has more than 40 symbolic links or is too long

Examples:
  layered show /var/cache/layers/5f2e
  layered show --du /var/cache/layers/5f2e
  layered show --json /var/cache/layers/5f2e | jq .sidecars.package
  layered show --file /usr/bin/cc --base debian --layer gcc --layer clang
  layered show --conflicts --layers-from deps.txt"
)]
pub(crate) struct Args {
    /// Directory of the layer, or its name in the directory LAYERED_STORE.
    #[arg(group = "what", conflicts_with_all = ["base", "rootfs", "layers", "layers_from"])]
    layer: Option<PathBuf>,
    /// Also show the directories that make up most of the layer's size.
    ///
    /// This reads the whole tree. `layered diff --du` shows more directories.
    #[arg(long, requires = "layer")]
    du: bool,
    /// Show which layer of the stack PATH is from.
    ///
    /// The table lists every layer that has an entry at PATH, the kind of the entry, and whether
    /// the stack shows or hides it. show follows at most 40 symbolic links in PATH, as the stack
    /// resolves them, and prints each one. Without --base and --rootfs, the base is LAYERED_BASE,
    /// if that is set.
    #[arg(long, value_name = "PATH", group = "what")]
    file: Option<PathBuf>,
    /// Do not follow symbolic links in the PATH of --file.
    ///
    /// A `..` in PATH then removes the name before it, even if that is a link or does not exist.
    /// Without --no-follow, `..` leads to the directory above the end of a link, as in the stack.
    #[arg(long, requires = "file")]
    no_follow: bool,
    /// List the paths on which layers differ.
    ///
    /// These are the paths whose content depends on the order of the layers. The last line also
    /// counts the paths that are the same in all layers, and --json lists them with the difference
    /// `nothing`. A base is compared only if --base or --rootfs names it.
    #[arg(long, group = "what")]
    conflicts: bool,
    #[command(flatten)]
    base: BaseArgs,
    #[command(flatten)]
    layers: LayerArgs,
    /// Print JSON: one object, or with --conflicts one per line.
    #[arg(long)]
    json: bool,
}

/// The number of directories that `--du` shows.
const LARGEST: usize = 5;

/// A layer of the stack, or the base.
struct Member {
    /// The directory of the layer.
    dir: PathBuf,
    tree: PathBuf,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    if let Some(layer) = &args.layer {
        one(&mut out, layer, args)?;
        return Ok(ExitCode::SUCCESS);
    }
    let layers = args.layers.open()?.into_iter();
    let mut stack: Vec<_> = layers.map(|layer| Member { tree: layer.fs(), dir: layer.path().into() }).collect();
    // The base has a fixed place in the stack, so it is compared only on request.
    let base = match args.base.open()? {
        None if args.file.is_some() => default_base()?,
        base => base,
    };
    stack.extend(base.map(|base| Member { tree: base.fs(), dir: base.path().into() }));
    anyhow::ensure!(!stack.is_empty(), "the stack has no layers; pass --layer or --layers-from");
    match &args.file {
        Some(path) => origin::show(&mut out, args, &stack, path),
        None => conflicts::show(&mut out, args, &stack),
    }
}

/// A layer as JSON.
#[derive(Debug, Serialize)]
struct Output<'a> {
    meta: &'a Meta,
    #[serde(serialize_with = "table::serialize_time_or_null")]
    last_used: Option<SystemTime>,
    sidecars: &'a serde_json::Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    largest: Option<&'a [Directory]>,
}

/// Prints everything about one layer.
fn one(out: &mut impl Write, dir: &Path, args: &Args) -> anyhow::Result<()> {
    let layer = open_layer(Path::new(""), dir)?;
    let Some(meta) = layer.meta()? else {
        anyhow::bail!(
            "{} has no layer.json: it is a base, or its build is still running or was killed",
            quoted(layer.path())
        );
    };
    let used = layer.last_used()?;
    let mut sidecars = serde_json::Map::new();
    for name in layer.sidecars()? {
        let value = layer.read_sidecar::<Value>(&name)?.unwrap_or_default();
        sidecars.insert(name, value);
    }
    let largest = args.du.then(|| largest(&layer)).transpose()?;
    if args.json {
        let largest = largest.as_deref();
        return Ok(table::print_json(out, &Output { meta: &meta, last_used: used, sidecars: &sidecars, largest })?);
    }
    let row = |name: &str, value: String| vec![name.to_string(), value];
    let seconds = |(name, seconds): &(String, f64)| format!("{} {seconds:.3}", quoted(name));
    let parents = meta.parent_hashes.iter().map(|hash| quoted(hash).to_string());
    let mut rows = vec![
        row("layer", quoted(layer.path()).to_string()),
        row("exit status", meta.exit_status.to_string()),
        row("base", quoted(&meta.base_hash).to_string()),
    ];
    rows.extend(lines("parents", parents, " "));
    rows.extend([
        row("user, group", format!("{}, {}", meta.uid, meta.gid)),
        row("size", table::bytes(layer.disk_usage(&meta)?)),
        row("created", table::timestamp(meta.created_at)),
        row("last used", used.map_or("never".into(), table::ago)),
    ]);
    rows.extend(lines("seconds", meta.timing.0.iter().map(seconds), ", "));
    rows.extend(meta.failed_dep.iter().map(|dep| row("failed by", quoted(dep).to_string())));
    rows.extend(meta.extra.iter().map(|(key, value)| row(&quoted(key).to_string(), escaped_json(value).to_string())));
    if let Some(command) = command::rows(sidecars.get(CommandRecord::SIDECAR)) {
        rows.splice(1..1, command);
    }
    // The rows replace the JSON of a sidecar that has nothing else.
    if sidecars.get(CommandRecord::SIDECAR).is_some_and(command::is_whole) {
        sidecars.shift_remove(CommandRecord::SIDECAR);
    }
    table::print(out, &rows, &[])?;
    if let Some(largest) = largest {
        writeln!(out)?;
        du::print(out, &largest)?;
    }
    for (name, value) in sidecars {
        let file = format!("{name}.json");
        writeln!(out, "\n{}\n{:#}", quoted(&file), escaped_json(value))?;
    }
    Ok(())
}

/// Returns the directories that make up most of the layer's size.
fn largest(layer: &Layer) -> layer::Result<Vec<Directory>> {
    let mut sizes = DirectorySizes::default();
    layer.changes(runner::xattrs_of_process())?.try_for_each(|entry| entry.map(|entry| sizes.add(&entry)))?;
    Ok(sizes.largest(LARGEST))
}

/// Returns the rows of a value with many items. The first row has the name.
fn lines(name: &str, items: impl IntoIterator<Item = String>, separator: &str) -> Vec<Vec<String>> {
    let mut lines = table::wrapped(items, separator);
    if lines.is_empty() {
        lines.push(String::new());
    }
    let names = [name].into_iter().chain(std::iter::repeat(""));
    names.zip(lines).map(|(name, line)| vec![name.to_string(), line]).collect()
}
