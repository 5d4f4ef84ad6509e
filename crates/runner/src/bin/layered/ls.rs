//! `layered ls`: decides what a list of the layers of a store shows, and in which order.
//! [`show`](crate::show) shows one layer.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use layer::display::quoted;
use layer::{Layer, Meta, json_path};
use serde::Serialize;

use crate::table::{self, Cell};
use crate::{defaults, gc};

mod kept;
mod tree;

/// List the layers of a store, or the kept runs of a scratch directory.
///
/// For each layer, the table shows the exit status of its command, its size, its last use and its
/// age. Directories without a layer.json are not listed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  layered ls /var/cache/layers --sort size
  layered ls /var/cache/layers --tree
  layered ls --kept --scratch /var/cache/layers/scratch
  layered ls --json /var/cache/layers | jq -r 'select(.exit_status != 0) | .name'")]
pub(crate) struct Args {
    /// Directory that contains the layers [default: $LAYERED_STORE].
    store: Option<PathBuf>,
    /// Order of the list.
    #[arg(long, value_name = "BY", value_enum, default_value_t = Sort::Name)]
    sort: Sort,
    /// Draw the layers as a tree, each indented under its parents.
    ///
    /// The parents of a layer are the layers that were below it when it was made. A layer with
    /// several parents appears under each of them. Its own children are drawn only at its first
    /// appearance; later ones are marked `(*)`. Parents that are not in the store are omitted.
    /// --tree does not change the output of --json.
    #[arg(long)]
    tree: bool,
    /// List the runs that --keep-failed kept, the latest last.
    ///
    /// `layered shell`, `layered commit` and `layered discard` take their names. With --json, the
    /// keys are `name`, `path`, `kept_at`, `status`, `argv` and, with --size, `size` in bytes.
    #[arg(long, conflicts_with_all = ["store", "sort", "tree"])]
    kept: bool,
    /// Directory of the kept runs.
    ///
    /// The default is $LAYERED_SCRATCH. Without that, the kept runs in $LAYERED_STORE and in
    /// $TMPDIR or /tmp are listed.
    #[arg(long, value_name = "DIR", requires = "kept")]
    scratch: Option<PathBuf>,
    /// Also measure how much each kept run takes.
    #[arg(long, requires = "kept")]
    size: bool,
    /// Print one JSON object per layer instead of a table.
    ///
    /// The keys are `name`, `last_used`, `exit_status`, `disk_usage` in bytes, `created_at`,
    /// `failed_dep`, `held`, which says whether a run or a kept run uses the layer, `base_hash` and
    /// `parent_hashes`.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Sort {
    /// In alphabetical order
    Name,
    /// The least recently used first, the order in which `layered gc` removes them
    Use,
    /// The largest first
    Size,
    /// The oldest first
    Age,
    /// Failures first
    Status,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.kept {
        return kept::list(args);
    }
    let mut status = ExitCode::SUCCESS;
    let mut summaries = Vec::new();
    let store = defaults::store(args.store.as_deref())?;
    let held = layer::held(&store)?;
    let mut closed = 0;
    for layer in layer::scan(&store)? {
        // Reports a layer that cannot be read, and lists the others.
        match layer.and_then(|layer| Summary::of(&layer, &held)) {
            Ok(summary) => summaries.extend(summary),
            Err(error) if error.is_permission_denied() => closed += 1,
            Err(error) => {
                crate::complain(format_args!("{:#}", anyhow::Error::from(error)));
                status = crate::FAILURE.into();
            }
        }
    }
    gc::warn_of_closed(&store, closed);
    if summaries.is_empty() && closed == 0 && status == ExitCode::SUCCESS {
        crate::complain(format_args!("there are no layers in {}", quoted(&store)));
    }
    sort(&mut summaries, args.sort);
    let mut out = table::stdout();
    if args.json {
        summaries.iter().try_for_each(|summary| table::print_json(&mut out, summary))?;
    } else {
        let mut rows = vec![["NAME", "STATUS", "SIZE", "LAST USED", "CREATED"].map(Cell::from).to_vec()];
        if args.tree {
            let layers: Vec<_> = summaries.iter().map(|summary| Layer::at(&summary.name)).collect();
            let parents: Vec<_> = summaries.iter().map(|summary| summary.parent_hashes.as_slice()).collect();
            rows.extend(
                tree::draw(&layers, &parents)
                    .into_iter()
                    .map(|line| summaries[line.index].row(&line.before, line.after)),
            );
        } else {
            rows.extend(summaries.iter().map(|summary| summary.row("", "")));
        }
        table::print_to_fit(&mut out, &rows, &[2], &[4, 3])?;
    }
    Ok(status)
}

/// One row of the list. The fields are the keys of its JSON, in their order.
#[derive(Debug, Clone, Serialize)]
struct Summary {
    #[serde(serialize_with = "json_path::serialize")]
    name: OsString,
    #[serde(serialize_with = "table::serialize_time_or_null")]
    last_used: Option<SystemTime>,
    exit_status: i64,
    disk_usage: u64,
    #[serde(serialize_with = "table::serialize_time")]
    created_at: SystemTime,
    failed_dep: Option<String>,
    #[serde(rename = "held")]
    is_held: bool,
    base_hash: String,
    parent_hashes: Vec<String>,
    /// The time by which a collector orders the layers.
    #[serde(skip)]
    turn: SystemTime,
}

impl Summary {
    /// Returns `None` for a layer that was removed after the scan.
    fn of(layer: &Layer, held: &HashSet<OsString>) -> layer::Result<Option<Self>> {
        let Some(meta) = layer.meta()? else { return Ok(None) };
        let Some(turn) = layer.last_used_or_made()? else { return Ok(None) };
        let disk_usage = match layer.disk_usage(&meta) {
            Err(_) if layer.meta()?.is_none() => return Ok(None),
            disk_usage => disk_usage?,
        };
        let Meta { exit_status, failed_dep, created_at, base_hash, parent_hashes, .. } = meta;
        let (name, last_used) = (layer.name().to_owned(), layer.last_used()?);
        let is_held = held.contains(&name);
        Ok(Some(Self {
            name,
            exit_status,
            failed_dep,
            disk_usage,
            created_at,
            last_used,
            turn,
            is_held,
            base_hash,
            parent_hashes,
        }))
    }

    /// Returns the row of the table, with text before and after the name.
    fn row(&self, before: &str, after: &str) -> Vec<Cell> {
        let status = match &self.failed_dep {
            Some(dep) => Cell::from(format!("failed by {}", quoted(dep))).styled(table::BAD),
            None if self.exit_status == 0 => "ok".into(),
            None => Cell::from(format!("exit {}", self.exit_status)).styled(table::BAD),
        };
        let used = match self.last_used {
            _ if self.is_held => "in use".to_string(),
            Some(time) => table::ago(time),
            None => "never".into(),
        };
        let name = format!("{before}{}{after}", quoted(&self.name));
        vec![name.into(), status, table::bytes(self.disk_usage).into(), used.into(), table::ago(self.created_at).into()]
    }
}

fn sort(summaries: &mut [Summary], by: Sort) {
    // Equal layers stay in the order of their names.
    summaries.sort_by(|one, other| one.name.cmp(&other.name));
    match by {
        Sort::Name => {}
        Sort::Use => summaries.sort_by_key(|summary| summary.turn),
        Sort::Size => summaries.sort_by_key(|summary| std::cmp::Reverse(summary.disk_usage)),
        Sort::Age => summaries.sort_by_key(|summary| summary.created_at),
        Sort::Status => summaries.sort_by_key(|summary| (summary.failed_dep.is_none(), summary.exit_status == 0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn layers_are_sorted_by_any_column_and_then_by_name() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let layer = |name: &str, exit_status, failed_dep: Option<&str>, disk_usage, made, used| Summary {
            name: name.into(),
            exit_status,
            failed_dep: failed_dep.map(Into::into),
            disk_usage,
            created_at: at(made),
            last_used: None,
            turn: at(used),
            is_held: false,
            base_hash: String::new(),
            parent_hashes: Vec::new(),
        };
        let layers = [
            layer("c", 0, None, 10, 3, 9),
            layer("a", 2, None, 30, 2, 9),
            layer("d", 1, Some("a"), 20, 1, 8),
            layer("b", 0, None, 30, 4, 7),
        ];
        for (by, expected) in [
            (Sort::Name, "abcd"),
            (Sort::Use, "bdac"),
            (Sort::Size, "abdc"),
            (Sort::Age, "dacb"),
            (Sort::Status, "dabc"),
        ] {
            let mut sorted = layers.to_vec();
            sort(&mut sorted, by);
            let names: String = sorted.iter().map(|summary| summary.name.to_str().unwrap()).collect();
            assert_eq!(names, expected, "{by:?}");
        }
    }
}
