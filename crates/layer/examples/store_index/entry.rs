//! The rows of one layer in the table, and the totals of all layers.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime};

use layer::{Layer, Meta};
use serde_json::Value;

use crate::Result;
use crate::html::{escape, percent_encode};

/// The maximum size of a sidecar that is shown. A larger one is only linked.
const MAX_SHOWN_BYTES: u64 = 1 << 20;

#[derive(Debug, Default)]
pub(crate) struct Totals {
    layers: u64,
    ok: u64,
    failed: u64,
    unreadable: u64,
    unused: u64,
    bytes: u64,
}

impl Totals {
    pub(crate) fn sentence(&self, now: SystemTime) -> String {
        let Self { layers, ok, failed, unreadable, unused, bytes } = self;
        let noun = if *layers == 1 { "layer" } else { "layers" };
        let unreadable = if *unreadable == 0 { String::new() } else { format!(", {unreadable} unreadable") };
        let now = stamp(now).map(|stamp| format!(" Written {stamp} UTC.")).unwrap_or_default();
        format!("{layers} {noun}, {}: {ok} ok, {failed} failed{unreadable}; {unused} never used.{now}", size(*bytes))
    }
}

/// Writes the rows of a layer with its `layer.json`. `links` is the URL of the store.
pub(crate) fn write(
    layer: &Layer,
    meta: layer::Result<Meta>,
    links: &str,
    totals: &mut Totals,
    out: &mut impl Write,
) -> Result<()> {
    let (meta, used) = match meta.and_then(|meta| Ok((meta, layer.last_used()?))) {
        Ok(found) => found,
        Err(error) => return write_unreadable(&name(layer), &error, totals, out),
    };
    let ok = !meta.is_failed();
    totals.layers += 1;
    totals.ok += u64::from(ok);
    totals.failed += u64::from(!ok);
    totals.unused += u64::from(used.is_none());
    totals.bytes = totals.bytes.saturating_add(meta.disk_usage);
    let status = match &meta.failed_dep {
        _ if ok => "✓ ok".into(),
        Some(dep) => format!("✗ failed by <bdi>{}</bdi>", escape(dep)),
        None => format!("✗ exit {}", meta.exit_status),
    };
    let class = if ok { "ok" } else { "failed" };
    writeln!(
        out,
        "<tbody>\n<tr><th scope=\"row\"><bdi>{}</bdi><td class=\"text {class}\">{status}<td data-label=\"Size\" data-value=\"{}\">{}{}{}",
        name(layer),
        meta.disk_usage,
        size(meta.disk_usage),
        time_cell("Last used", used),
        time_cell("Made", Some(meta.created_at)),
    )?;
    write!(out, "<tr><td colspan=\"5\" class=\"more\">")?;
    write_log(layer, links, out)?;
    write_json("layer.json", &pretty(&meta)?, out)?;
    write_sidecars(layer, links, out)?;
    writeln!(out, "\n</tbody>")?;
    Ok(())
}

fn name(layer: &Layer) -> String {
    escape(&layer.name().to_string_lossy())
}

/// Writes the row of a layer that cannot be read, with the reason. The other layers are shown all
/// the same. `name` must be escaped already.
pub(crate) fn write_unreadable(
    name: &str,
    error: &layer::Error,
    totals: &mut Totals,
    out: &mut impl Write,
) -> Result<()> {
    totals.layers += 1;
    totals.unreadable += 1;
    writeln!(
        out,
        "<tbody>\n<tr><th scope=\"row\"><bdi>{name}</bdi><td class=\"text failed\" colspan=\"4\">✗ {}\n</tbody>",
        escape(&reason(error))
    )?;
    Ok(())
}

fn reason(error: &layer::Error) -> String {
    let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
    format!("{error}{source}")
}

/// Writes a link to the log, if the log is a regular file in the layer's directory.
fn write_log(layer: &Layer, links: &str, out: &mut impl Write) -> Result<()> {
    if fs::symlink_metadata(layer.log_path()).is_ok_and(|metadata| metadata.is_file()) {
        write!(out, "<a href=\"{}\">layer.log</a>", url(layer, links, &layer.log_path()))?;
    }
    Ok(())
}

/// Returns the URL of a file in the layer's directory.
fn url(layer: &Layer, links: &str, file: &Path) -> String {
    let segment = |name: &std::ffi::OsStr| percent_encode(name.as_encoded_bytes());
    format!("{links}/{}/{}", segment(layer.name()), segment(file.file_name().unwrap_or_default()))
}

fn write_sidecars(layer: &Layer, links: &str, out: &mut impl Write) -> Result<()> {
    let names = match layer.sidecars() {
        Ok(names) => names,
        Err(error) => {
            write!(out, "<span class=\"failed\">✗ {}</span>", escape(&reason(&error)))?;
            return Ok(());
        }
    };
    for name in names {
        let path = layer.sidecar_path(&name)?;
        let file = format!("{name}.json");
        let large = fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.len() > MAX_SHOWN_BYTES);
        match layer.read_sidecar::<Value>(&name) {
            _ if large => write!(out, "<a href=\"{}\">{} (large)</a>", url(layer, links, &path), escape(&file))?,
            Ok(Some(value)) => write_json(&file, &pretty(&value)?, out)?,
            Ok(None) => {}
            Err(_) => write!(out, "<a href=\"{}\">{} (not valid)</a>", url(layer, links, &path), escape(&file))?,
        }
    }
    Ok(())
}

fn pretty(value: &impl serde::Serialize) -> Result<String> {
    Ok(serde_json::to_string_pretty(value)?)
}

fn write_json(file: &str, text: &str, out: &mut impl Write) -> Result<()> {
    // A reader can scroll wide or long JSON, also with the keyboard.
    let (file, text) = (escape(file), escape(text));
    write!(out, "<details><summary>{file}</summary><pre tabindex=\"0\">{text}</pre></details>")?;
    Ok(())
}

fn time_cell(label: &str, time: Option<SystemTime>) -> String {
    let seconds = time.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok()).map(|age| age.as_secs());
    let text = match time {
        None => "never".into(),
        Some(time) => stamp(time).unwrap_or_else(|| "out of range".into()),
    };
    format!("<td data-label=\"{label}\" data-value=\"{}\">{text}", seconds.unwrap_or_default())
}

/// Returns a time in the form `2026-01-31 23:59`, or `None` if it is before 1970 or after 9999: a
/// modification time can have any value.
fn stamp(time: SystemTime) -> Option<String> {
    const YEAR_10000: Duration = Duration::from_secs(253_402_300_800);
    let within = time.duration_since(SystemTime::UNIX_EPOCH).is_ok_and(|age| age < YEAR_10000);
    within.then(|| humantime::format_rfc3339_seconds(time).to_string()[..16].replace('T', " "))
}

fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (bytes.max(1).ilog2() as usize / 10).min(units.len() - 1);
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{:.1} {}", bytes as f64 / 1024_f64.powi(unit as i32), units[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use layer::Meta;

    #[test]
    fn times_before_1970_and_after_9999_are_not_shown() {
        let at = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let table = [
            (at(0), Some("1970-01-01 00:00")),
            (at(253_402_300_799), Some("9999-12-31 23:59")),
            (at(253_402_300_800), None),
            (SystemTime::UNIX_EPOCH - Duration::from_secs(1), None),
        ];
        for (time, shown) in table {
            assert_eq!(stamp(time).as_deref(), shown, "{time:?}");
        }
    }

    #[test]
    fn sizes_have_binary_units() {
        for (bytes, shown) in
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB"), (u64::MAX, "16777216.0 TiB")]
        {
            assert_eq!(size(bytes), shown);
        }
    }

    #[test]
    fn a_meta_is_shown_with_unknown_fields() {
        let mut meta = Meta::new("base", SystemTime::UNIX_EPOCH);
        meta.extra.insert("unknown".into(), 1.into());
        assert!(pretty(&meta).unwrap().contains("\"unknown\": 1"));
    }
}
