//! `layered gc`: decides how a collection and its progress are shown. `layer::Collector` decides
//! which layers are removed, and [`ls`](crate::ls) lists the layers of a store.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use layer::display::quoted;
use layer::{Collected, Collector, Sizes};
use serde::Serialize;

use crate::progress::Progress;
use crate::stack::is_store;
use crate::table::{count, print_json};
use crate::values::age;
use crate::{TEMPORARY, complain, defaults, table};

/// Remove the least recently used layers of a store.
///
/// gc removes layers until the store is within every given budget. It never removes a layer that a
/// run, a kept run or the directory of an --upper uses, a layer that is the base of others, or a
/// directory without a layer.json.
/// It also removes the remains of killed collectors, captures and other writers.
///
/// The exit status is 0 even if the store is still over a budget. With --check, it is 75.
#[derive(Debug, clap::Args)]
#[command(
    group = clap::ArgGroup::new("budget").required(true).multiple(true),
    after_help = "\
Examples:
  layered gc /var/cache/layers --max-bytes 200g --dry-run
  layered gc /var/cache/layers --min-free 20g --max-age 90d
  layered gc /var/cache/layers --max-bytes 200g --json | jq -r '.layers[].name'"
)]
pub(crate) struct Args {
    /// Directory that contains the layers [default: $LAYERED_STORE].
    store: Option<PathBuf>,
    /// Keep at most SIZE bytes of layers, e.g. 200g.
    ///
    /// SIZE is a number of bytes, or one with a suffix: k, m, g, t (powers of 1024).
    #[arg(long, value_name = "SIZE", value_parser = container::advanced::parse_size, group = "budget")]
    max_bytes: Option<u64>,
    /// Keep at most N files and directories.
    ///
    /// This measures every layer.
    #[arg(long, value_name = "N", group = "budget")]
    max_inodes: Option<u64>,
    /// Keep at least SIZE bytes of the file system free, e.g. 20g.
    #[arg(long, value_name = "SIZE", value_parser = container::advanced::parse_size, group = "budget")]
    min_free: Option<u64>,
    /// Keep at least N inodes of the file system free.
    ///
    /// If fewer are free, this measures every layer. A file system without a fixed number of
    /// inodes, such as Btrfs, always has enough.
    #[arg(long, value_name = "N", group = "budget")]
    min_free_inodes: Option<u64>,
    /// Remove layers last used longer ago than TIME, e.g. 12h or 90d.
    #[arg(long, value_name = "TIME", value_parser = age, group = "budget")]
    max_age: Option<Duration>,
    /// Measure the size of every layer.
    ///
    /// By default, gc takes the size of a layer from its layer.json, and measures the layer only if
    /// that size is missing or impossible.
    #[arg(long)]
    measure: bool,
    /// Print which layers would be removed, but remove nothing.
    #[arg(long)]
    dry_run: bool,
    /// Remove nothing and print nothing, and exit with 75 if the store is over a budget.
    ///
    /// Without --max-bytes and --max-inodes, this does not look at the layers.
    #[arg(long, conflicts_with_all = ["max_age", "dry_run", "json"])]
    check: bool,
    /// Print one JSON object instead of a table.
    ///
    /// The keys are `dry_run`, `layers` (the removed ones), `bytes`, `held` and `bases` (the layers
    /// that are in use or the base of others), `closed` (those that you may not read), `orphans`,
    /// `failed` and `within_budget`.
    #[arg(long)]
    json: bool,
}

impl Args {
    fn collector(&self) -> Collector<'static> {
        let mut collector = Collector::new();
        if let Some(bytes) = self.max_bytes {
            collector = collector.max_bytes(bytes);
        }
        if let Some(entries) = self.max_inodes {
            collector = collector.max_entries(entries);
        }
        if let Some(bytes) = self.min_free {
            collector = collector.min_free_bytes(bytes);
        }
        if let Some(entries) = self.min_free_inodes {
            collector = collector.min_free_entries(entries);
        }
        if let Some(age) = self.max_age {
            collector = collector.max_age(age);
        }
        if self.measure {
            collector = collector.sizes(Sizes::Measured);
        }
        collector
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let progress = Progress::begin("waiting for the lock of the store");
    let show = |step| show(&progress, step);
    let collector = args.collector().progress(&show);
    let store = defaults::store(args.store.as_deref())?;
    if args.check {
        let is_within_budget = collector.is_within_budget(&store)?;
        return Ok(if is_within_budget { ExitCode::SUCCESS } else { TEMPORARY.into() });
    }
    let collected = match args.dry_run {
        true => collector.dry_run(&store),
        false => collector.collect(&store),
    };
    drop(progress);
    let collected = collected?;
    let is_empty = collected.layers.is_empty() && collected.held.is_empty() && collected.bases.is_empty();
    if is_empty && !is_store(&store) {
        complain(format_args!("there are no layers in {}", quoted(&store)));
    }
    warn_of_closed(&store, collected.closed.len());
    let mut out = io::stdout().lock();
    match args.json {
        true => print_json(&mut out, &Output { dry_run: args.dry_run, collected: &collected })?,
        false => print(&mut out, args, &store, &collected)?,
    }
    let status = if collected.failed.is_empty() { ExitCode::SUCCESS } else { crate::FAILURE.into() };
    for error in collected.failed {
        complain(format_args!("{:#}", anyhow::Error::from(error)));
    }
    Ok(status)
}

/// Warns once of the layers of a store that this user may not read.
pub(crate) fn warn_of_closed(store: &Path, number: usize) {
    if number > 0 {
        let layers = count(number as u64, "layer");
        log::warn!("left out {layers} in {}: you may not read what other users made", quoted(store));
    }
}

fn print(out: &mut impl Write, args: &Args, store: &Path, collected: &Collected) -> io::Result<()> {
    if !collected.layers.is_empty() {
        let mut rows = vec![["NAME", "SIZE", "LAST USED"].map(String::from).to_vec()];
        rows.extend(
            collected.layers.iter().map(|layer| {
                vec![quoted(&layer.name).to_string(), table::bytes(layer.bytes), table::ago(layer.last_use)]
            }),
        );
        table::print_to_fit(out, &rows, &[1], &[2])?;
    }
    let done = if args.dry_run { "would be removed" } else { "removed" };
    writeln!(out, "{} {done}, {}", count(collected.layers.len() as u64, "layer"), table::bytes(collected.bytes()))?;
    for (number, why) in [(collected.held.len(), "in use"), (collected.bases.len(), "base of other layers")] {
        if number > 0 {
            writeln!(out, "{} kept ({why})", count(number as u64, "layer"))?;
        }
    }
    if collected.orphans > 0 {
        writeln!(out, "{} of killed processes {done}", count(collected.orphans as u64, "leftover"))?;
    }
    if !collected.within_budget {
        writeln!(out, "{} is still over the budget", quoted(store))?;
    }
    Ok(())
}

/// The result as JSON.
#[derive(Debug, Serialize)]
struct Output<'a> {
    dry_run: bool,
    #[serde(flatten)]
    collected: &'a Collected,
}

fn show(progress: &Progress, step: layer::Progress) {
    match step {
        layer::Progress::Looked { layers } => progress.tell(|| format!("{} examined", count(layers as u64, "layer"))),
        layer::Progress::Removed { layers, of } => {
            // The collector can remove more layers than planned: it replaces those that were used
            // since it planned.
            let of = of.max(layers);
            progress.fill(layers, of, || format!("{layers} of {} removed", count(of as u64, "layer")));
        }
        _ => {}
    }
}
