//! Reads a store into the data of the page. [`lanes`] and [`ancestry`] arrange the layers.
//! [`html`](super::html) writes the result as JSON, and the scripts in `assets` read it.

use std::collections::HashMap;
use std::ffi::OsString;
use std::time::{SystemTime, UNIX_EPOCH};

use layer::display::{escaped, quoted};
use layer::{Layer, Meta, Store, Timing};
use runner::CommandRecord;
use serde::Serialize;
use serde_json::Value;

use super::lanes::{self, Batch, Span};
use crate::{ancestry, table};

/// The most characters that the page shows of one text.
const TEXT: usize = 600;

/// The most phases of a layer, and of all layers, that the page shows.
const PHASES: usize = 64;

/// The phase that is the sum of the others.
const TOTAL: &str = "total";

/// The longest run that is believed, in seconds: 30 days.
const LONGEST: f64 = 30.0 * 86_400.0;

/// Where the sizes of layers are from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sizes {
    /// From `layer.json`, if the size there can be true.
    Recorded,
    /// From `layer.json`, or measured.
    Measured,
}

/// The data of the page. All texts are safe to show: control characters are escaped, and long texts
/// are shortened.
#[derive(Debug, Serialize)]
pub(super) struct Model {
    store: String,
    /// When the page was made, in seconds since 1970.
    written: i64,
    /// The layers, in the order of their names.
    layers: Vec<Row>,
    /// The bases that the layers name.
    bases: Vec<String>,
    /// The hosts on which the layers were made.
    hosts: Vec<String>,
    /// The names of the phases, in the order in which they were found.
    phases: Vec<String>,
    /// The batches of the timeline.
    batches: Vec<Batch>,
}

/// One layer. A key whose value is not known is absent.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Row {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failed_by: Option<String>,
    /// Why the layer or a part of it could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// In seconds since 1970, like `used`.
    #[serde(skip_serializing_if = "Option::is_none")]
    made: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    used: Option<i64>,
    /// Whether a run or a kept run needs the layer.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    held: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    /// The index of the base.
    #[serde(skip_serializing_if = "Option::is_none")]
    base: Option<usize>,
    /// The number of layers that it names as its parents.
    below: usize,
    /// The number of these that are not in the store.
    #[serde(skip_serializing_if = "is_zero")]
    missing: usize,
    /// The indexes of the layers that it stands on directly.
    parents: Vec<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<String>,
    /// The index of the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<Run>,
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// The run that made a layer.
#[derive(Debug, PartialEq, Serialize)]
struct Run {
    #[serde(flatten)]
    span: Span,
    lane: usize,
    /// The index of each phase, and its duration in microseconds, in order.
    phases: Vec<(usize, u64)>,
}

impl Model {
    /// Reads all layers of a store. A layer that cannot be read has a row with the reason.
    ///
    /// # Errors
    /// The error of [`Store::scan`] or [`Store::held`] if the store itself cannot be read.
    pub(super) fn of(store: &Store, sizes: Sizes, now: SystemTime) -> layer::Result<Self> {
        let held = store.held()?;
        let mut found = store.scan()?.with_meta().collect::<layer::Result<Vec<_>>>()?;
        found.sort_by(|(one, _), (other, _)| one.name().cmp(other.name()));
        let mut phases = Names::default();
        let [mut bases, mut hosts] = [Names::default(), Names::default()];
        let mut rows = Vec::new();
        for (layer, meta) in &found {
            let mut row = Row { name: quoted(layer.name()).to_string(), ..Row::default() };
            row.held = held.contains(layer.name());
            match meta {
                Ok(meta) => {
                    row.read(layer, meta, sizes, &mut bases, &mut phases);
                    row.read_record(layer, &mut hosts);
                }
                Err(error) => row.error = Some(reason(error)),
            }
            rows.push(row);
        }
        let (layers, metas): (Vec<_>, Vec<_>) = found.into_iter().map(|(layer, meta)| (layer, meta.ok())).unzip();
        stand(&mut rows, &layers, &metas);
        let batches = place(&mut rows, &hosts.list);
        Ok(Self {
            store: shown(&quoted(store.path()).to_string()),
            written: seconds(now),
            layers: rows,
            bases: bases.list,
            hosts: hosts.list,
            phases: phases.list,
            batches,
        })
    }

    pub(super) fn store(&self) -> &str {
        &self.store
    }

    /// Returns one sentence about all layers.
    pub(super) fn summary(&self) -> String {
        let count = |is: fn(&Row) -> bool| self.layers.iter().filter(|row| is(row)).count();
        let failed = count(Row::has_failed);
        let unreadable = count(|row| row.exit.is_none());
        let bytes = self.layers.iter().filter_map(|row| row.bytes).fold(0, u64::saturating_add);
        let unreadable = if unreadable == 0 { String::new() } else { format!(", {unreadable} unreadable") };
        let layers = table::count(self.layers.len() as u64, "layer");
        format!("{layers}, {}: {failed} failed{unreadable}.", table::bytes(bytes))
    }
}

impl Row {
    /// Fills in what the layer itself says.
    fn read(&mut self, layer: &Layer, meta: &Meta, sizes: Sizes, bases: &mut Names, phases: &mut Names) {
        self.exit = Some(meta.exit_status);
        self.failed_by = meta.failed_dep.as_deref().map(shown);
        self.made = Some(seconds(meta.created_at));
        self.base = bases.index(&meta.base_hash, usize::MAX);
        self.below = meta.parent_hashes.len();
        self.run = run(meta, phases);
        let bytes = match sizes {
            Sizes::Recorded => layer.recorded_disk_usage(meta),
            Sizes::Measured => layer.disk_usage(meta).map(Some),
        };
        match bytes.and_then(|bytes| Ok((bytes, layer.last_used()?))) {
            Ok((bytes, used)) => (self.bytes, self.used) = (bytes, used.map(seconds)),
            Err(error) => self.error = Some(reason(&error)),
        }
    }

    /// Fills in what the sidecar about the run says, if it is there and can be read.
    fn read_record(&mut self, layer: &Layer, hosts: &mut Names) {
        if let Ok(Some(sidecar)) = layer.read_sidecar(CommandRecord::SIDECAR) {
            self.command = command(&sidecar);
            let host = sidecar.get("host").and_then(Value::as_str).filter(|host| !host.is_empty());
            self.host = host.and_then(|host| hosts.index(host, usize::MAX));
        }
    }

    fn has_failed(&self) -> bool {
        self.failed_by.is_some() || self.exit.is_some_and(|exit| exit != 0)
    }
}

/// Fills in what each layer stands on.
fn stand(rows: &mut [Row], layers: &[Layer], metas: &[Option<Meta>]) {
    let parents: Vec<&[String]> =
        metas.iter().map(|meta| meta.as_ref().map_or(&[][..], |meta| &meta.parent_hashes)).collect();
    let below = ancestry::below(layers, &parents);
    for ((row, known), direct) in rows.iter_mut().zip(&below).zip(ancestry::direct(&below)) {
        row.missing = row.below - known.len();
        row.parents = direct;
    }
}

/// Fills in the lanes of the runs. The lanes of one host are adjacent, and hosts are in the order
/// of their names.
fn place(rows: &mut [Row], hosts: &[String]) -> Vec<Batch> {
    let rank = |row: &Row| row.host.map(|host| hosts.iter().filter(|other| **other < hosts[host]).count());
    let hosts: Vec<_> = rows.iter().filter(|row| row.run.is_some()).map(rank).collect();
    let mut runs: Vec<&mut Run> = rows.iter_mut().filter_map(|row| row.run.as_mut()).collect();
    let spans = runs.iter().zip(hosts).map(|(run, host)| (host, run.span));
    let (places, batches) = lanes::pack(&spans.collect::<Vec<_>>());
    for (run, place) in runs.iter_mut().zip(places) {
        run.lane = place.lane;
        run.span.start = place.start;
    }
    batches
}

/// Texts that many layers share.
#[derive(Debug, Default)]
struct Names {
    list: Vec<String>,
    indexes: HashMap<String, usize>,
}

impl Names {
    /// Returns the index of a text, and adds it if there are fewer than `most`.
    fn index(&mut self, text: &str, most: usize) -> Option<usize> {
        let text = shown(text);
        if let Some(index) = self.indexes.get(&text) {
            return Some(*index);
        }
        let index = self.list.len();
        (index < most).then(|| {
            self.indexes.insert(text.clone(), index);
            self.list.push(text);
            index
        })
    }
}

/// Returns the run that made a layer: it ended when the layer was made. Returns `None` if the layer
/// records no duration that can be true.
fn run(meta: &Meta, names: &mut Names) -> Option<Run> {
    let Timing(timing) = &meta.timing;
    let phases = || timing.iter().filter(|(name, _)| name != TOTAL);
    let total = meta.timing.seconds(TOTAL).unwrap_or_else(|| phases().map(|(_, seconds)| seconds).sum());
    if !(total > 0.0 && total <= LONGEST) {
        return None;
    }
    let end = seconds(meta.created_at) * 1000;
    let start = end - (total * 1000.0).ceil() as i64;
    let micros = |seconds: f64| (seconds.clamp(0.0, LONGEST) * 1e6).round() as u64;
    let phases = phases().take(PHASES).filter(|(_, seconds)| micros(*seconds) > 0);
    let phases = phases.filter_map(|(name, seconds)| Some((names.index(name, PHASES)?, micros(*seconds)))).collect();
    Some(Run { span: Span { start, end }, lane: 0, phases })
}

/// Returns the command of a sidecar, as a shell reads it. Returns `None` for a sidecar without
/// one: other programs write sidecars of this name, too.
fn command(sidecar: &Value) -> Option<String> {
    let mut line = String::new();
    for word in sidecar.get("argv")?.as_array()? {
        let word: OsString = layer::json_path::deserialize(word).ok()?.into();
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(&quoted(&word).to_string());
        if line.len() > TEXT * 4 {
            break;
        }
    }
    (!line.is_empty()).then(|| shown(&line))
}

fn reason(error: &layer::Error) -> String {
    let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
    shown(&format!("{error}{source}"))
}

/// Returns a text that is safe to show, with at most [`TEXT`] characters before they are escaped.
fn shown(text: &str) -> String {
    match text.char_indices().nth(TEXT) {
        Some((end, _)) => format!("{}…", escaped(&text[..end])),
        None => escaped(text).to_string(),
    }
}

/// Returns the seconds since 1970. They are negative before.
fn seconds(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |seconds| -seconds),
    }
}
