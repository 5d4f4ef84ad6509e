use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use layer::display::{escaped_json, quoted};
use layer::{Collected, Collector, Progress, Sizes, json_path};
use serde_json::{Value, json};

use crate::{complain, table};

/// Remove the least recently used layers of a store until it keeps to a budget.
///
/// Several budgets may be given; all are kept to. Layers that a run uses are left alone, and so is a layer that is the base of others
/// and whatever has no layer.json. What killed collectors have left is removed, too.
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
    /// The directory that holds the layers.
    store: PathBuf,
    /// Keep at most so many bytes of layers: a number, or one with k, m, g, t.
    #[arg(long, value_name = "N", value_parser = container::advanced::parse_size, group = "budget")]
    max_bytes: Option<u64>,
    /// Keep at most so many files and directories. Every layer is measured.
    #[arg(long, value_name = "N", group = "budget")]
    max_inodes: Option<u64>,
    /// Make room until the file system has so many bytes free: a number, or one with k, m, g, t.
    #[arg(long, value_name = "N", value_parser = container::advanced::parse_size, group = "budget")]
    min_free: Option<u64>,
    /// Keep no layer that was last used longer ago: 12h, 90d.
    #[arg(long, value_name = "D", value_parser = humantime::parse_duration, group = "budget")]
    max_age: Option<Duration>,
    /// Measure every layer; otherwise its layer.json is believed.
    #[arg(long)]
    measure: bool,
    /// Tell what would be removed, and remove nothing.
    #[arg(long)]
    dry_run: bool,
    /// One JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

impl Args {
    fn collector(&self) -> Collector {
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
    let collector = args.collector();
    let mut bar = Bar::new();
    let collected = match args.dry_run {
        true => collector.dry_run(&args.store, &mut |progress| bar.show(progress)),
        false => collector.collect(&args.store, &mut |progress| bar.show(progress)),
    };
    bar.clear();
    let collected = collected?;
    let mut out = io::stdout().lock();
    match args.json {
        true => writeln!(out, "{}", escaped_json(as_json(args, &collected)))?,
        false => print(&mut out, args, &collected)?,
    }
    let status = if collected.failed.is_empty() { ExitCode::SUCCESS } else { crate::FAILURE.into() };
    for error in collected.failed {
        complain(format_args!("{:#}", anyhow::Error::from(error)));
    }
    Ok(status)
}

fn print(out: &mut impl Write, args: &Args, collected: &Collected) -> io::Result<()> {
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
    for (number, what) in
        [(collected.held.len(), "in use and left alone"), (collected.bases.len(), "left alone as the base of others")]
    {
        if number > 0 {
            writeln!(out, "{} {what}", count(number, "layer"))?;
        }
    }
    if collected.orphans > 0 {
        writeln!(out, "{} of killed processes {done}", count(collected.orphans, "directory"))?;
    }
    if !collected.within_budget {
        writeln!(out, "{} is still over the budget", quoted(&args.store))?;
    }
    Ok(())
}

fn count(number: usize, noun: &str) -> String {
    match (number, noun.strip_suffix('y')) {
        (1, _) => format!("1 {noun}"),
        (_, Some(stem)) => format!("{number} {stem}ies"),
        _ => format!("{number} {noun}s"),
    }
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

/// One line on standard error that is written over, if that is a terminal.
struct Bar {
    shown: Option<Instant>,
    is_terminal: bool,
}

/// No eye needs it more often.
const BETWEEN: Duration = Duration::from_millis(50);

impl Bar {
    fn new() -> Self {
        Self { shown: None, is_terminal: io::stderr().is_terminal() }
    }

    fn show(&mut self, progress: Progress) {
        if self.is_terminal && self.shown.is_none_or(|shown| shown.elapsed() >= BETWEEN) {
            self.shown = Some(Instant::now());
            // Nobody to tell.
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
        Progress::Looked { layers } => format!("{layers} layers looked at"),
        Progress::Removed { layers, of } => {
            // More may go than were to, if some of these had been used meanwhile.
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
    fn a_bar_is_as_long_as_what_is_done() {
        for (layers, of, text) in [
            (0, 4, "[                              ] 0 of 4 layers removed"),
            (1, 3, "[##########                    ] 1 of 3 layers removed"),
            (5, 4, "[##############################] 5 of 5 layers removed"),
        ] {
            assert_eq!(line(Progress::Removed { layers, of }), text);
        }
    }

    #[test]
    fn numbers_have_their_nouns() {
        assert_eq!(
            [count(0, "layer"), count(1, "layer"), count(2, "directory")],
            ["0 layers", "1 layer", "2 directories"]
        );
    }
}
