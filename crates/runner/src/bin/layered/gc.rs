//! `layered gc`: decides how a collection and its progress are shown. `layer::Collector` decides
//! which layers are removed, and [`ls`](crate::ls) lists the layers of a store.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use layer::display::{escaped_json, quoted};
use layer::{Collected, Collector, Progress, Sizes, json_path};
use serde_json::{Value, json};

use crate::stack::is_store;
use crate::values::age;
use crate::{complain, defaults, table};

/// Remove the least recently used layers of a store.
///
/// gc removes layers until the store is within every given budget. It never removes a layer that a
/// run, a kept run or the directory of an --upper uses, a layer that is the base of others, or a
/// directory without a layer.json.
/// It also removes the remains of killed collectors, captures and other writers.
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
    /// Remove layers last used longer ago than TIME, e.g. 12h or 90d.
    #[arg(long, value_name = "TIME", value_parser = age, group = "budget")]
    max_age: Option<Duration>,
    /// Measure the size of every layer.
    ///
    /// By default, gc reads the size of a layer from its layer.json, unless that cannot be true.
    #[arg(long)]
    measure: bool,
    /// Print which layers would be removed, but remove nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object instead of a table.
    ///
    /// The keys are `dry_run`, `layers` (the removed ones), `bytes`, `held` and `bases` (the layers
    /// that are in use or the base of others), `orphans`, `failed` and `within_budget`.
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
    let bar = Mutex::new(Bar::new());
    let show = |progress| bar.lock().unwrap_or_else(PoisonError::into_inner).show(progress);
    let collector = args.collector().progress(&show);
    let store = defaults::store(args.store.as_deref())?;
    let collected = match args.dry_run {
        true => collector.dry_run(&store),
        false => collector.collect(&store),
    };
    bar.into_inner().unwrap_or_else(PoisonError::into_inner).clear();
    let collected = collected?;
    let is_empty = collected.layers.is_empty() && collected.held.is_empty() && collected.bases.is_empty();
    if is_empty && !is_store(&store) {
        complain(format_args!("there are no layers in {}", quoted(&store)));
    }
    let mut out = io::stdout().lock();
    match args.json {
        true => writeln!(out, "{}", escaped_json(as_json(args, &collected)))?,
        false => print(&mut out, args, &store, &collected)?,
    }
    let status = if collected.failed.is_empty() { ExitCode::SUCCESS } else { crate::FAILURE.into() };
    for error in collected.failed {
        complain(format_args!("{:#}", anyhow::Error::from(error)));
    }
    Ok(status)
}

fn print(out: &mut impl Write, args: &Args, store: &Path, collected: &Collected) -> io::Result<()> {
    if !collected.layers.is_empty() {
        let mut rows = vec![["NAME", "SIZE", "LAST USED"].map(String::from).to_vec()];
        rows.extend(
            collected.layers.iter().map(|layer| {
                vec![quoted(&layer.name).to_string(), table::bytes(layer.bytes), table::ago(layer.last_use)]
            }),
        );
        table::print_to_fit(out, &rows, &[1])?;
    }
    let done = if args.dry_run { "would be removed" } else { "removed" };
    writeln!(out, "{} {done}, {}", count(collected.layers.len(), "layer"), table::bytes(collected.bytes()))?;
    for (number, why) in [(collected.held.len(), "in use"), (collected.bases.len(), "base of other layers")] {
        if number > 0 {
            writeln!(out, "{} kept ({why})", count(number, "layer"))?;
        }
    }
    if collected.orphans > 0 {
        writeln!(out, "{} of killed processes {done}", count(collected.orphans, "leftover"))?;
    }
    if !collected.within_budget {
        writeln!(out, "{} is still over the budget", quoted(store))?;
    }
    Ok(())
}

fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

fn as_json(args: &Args, collected: &Collected) -> Value {
    let names = |names: &[std::ffi::OsString]| names.iter().map(json_path::to_value).collect::<Vec<_>>();
    let layer = |layer: &layer::CollectedLayer| {
        json!({"name": json_path::to_value(&layer.name), "bytes": layer.bytes, "inodes": layer.entries,
            "last_used": table::timestamp(layer.last_use)})
    };
    let path = |error: &layer::Error| error.path().map(json_path::to_value);
    json!({
        "dry_run": args.dry_run,
        "layers": collected.layers.iter().map(layer).collect::<Vec<_>>(),
        "bytes": collected.bytes(),
        "held": names(&collected.held),
        "bases": names(&collected.bases),
        "orphans": collected.orphans,
        "failed": collected.failed.iter().map(path).collect::<Vec<_>>(),
        "within_budget": collected.within_budget,
    })
}

/// A progress bar: one line that is overwritten, if standard error is a terminal.
struct Bar {
    shown: Option<Instant>,
    is_terminal: bool,
}

/// The shortest time between two updates of the bar.
const BETWEEN: Duration = Duration::from_millis(50);

impl Bar {
    fn new() -> Self {
        Self { shown: None, is_terminal: io::stderr().is_terminal() }
    }

    fn show(&mut self, progress: Progress) {
        if self.is_terminal && self.shown.is_none_or(|shown| shown.elapsed() >= BETWEEN) {
            self.shown = Some(Instant::now());
            // A failure to show progress cannot be reported.
            let _ = write!(io::stderr(), "\r{}\x1b[K", line(progress));
        }
    }

    fn clear(&mut self) {
        if self.shown.take().is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

fn line(progress: Progress) -> String {
    const CELLS: usize = 30;
    match progress {
        Progress::Looked { layers } => format!("{layers} layers examined"),
        Progress::Removed { layers, of } => {
            // The collector can remove more layers than planned: it replaces those that were used
            // since it planned.
            let of = of.max(layers).max(1);
            let done = layers * CELLS / of;
            format!("[{}{}] {layers} of {of} layers removed", "#".repeat(done), " ".repeat(CELLS - done))
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_long_as_the_share_of_removed_layers() {
        for (layers, of, text) in [
            (0, 4, "[                              ] 0 of 4 layers removed"),
            (1, 3, "[##########                    ] 1 of 3 layers removed"),
            (5, 4, "[##############################] 5 of 5 layers removed"),
        ] {
            assert_eq!(line(Progress::Removed { layers, of }), text);
        }
    }

    #[test]
    fn a_count_has_the_plural_of_its_noun() {
        assert_eq!([0, 1, 2].map(|number| count(number, "layer")), ["0 layers", "1 layer", "2 layers"]);
    }
}
