use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use layer::Layer;
use serde_json::{Value, json};

use crate::table;

/// Show one layer: its `layer.json`, its last use, its sidecars.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  layered show /var/cache/layers/5f2e\n  layered show --json /var/cache/layers/5f2e | jq .sidecars.package"
)]
pub(crate) struct Args {
    /// The layer's directory.
    layer: PathBuf,
    /// One JSON object: `meta`, `last_used`, `sidecars`.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let layer = Layer::open(&args.layer)?;
    let Some(meta) = layer.meta()? else {
        anyhow::bail!(
            "{} has no layer.json: it is not whole (still being made, or left half made)",
            args.layer.display()
        );
    };
    let used = layer.last_used()?;
    let mut sidecars = serde_json::Map::new();
    for name in layer.sidecars()? {
        let value = layer.read_sidecar::<Value>(&name)?.unwrap_or_default();
        sidecars.insert(name, value);
    }
    let mut out = io::stdout().lock();
    if args.json {
        let used = used.map(|time| humantime::format_rfc3339_seconds(time).to_string());
        writeln!(out, "{}", json!({"meta": meta, "last_used": used, "sidecars": sidecars}))?;
        return Ok(ExitCode::SUCCESS);
    }
    let row = |name: &str, value: String| vec![name.to_string(), value];
    let seconds = |(name, seconds): &(String, f64)| format!("{name} {seconds:.3}");
    let mut rows = vec![
        row("layer", layer.path().display().to_string()),
        row("exit status", meta.exit_status.to_string()),
        row("base", meta.base_hash.clone()),
        row("parents", meta.parent_hashes.join(" ")),
        row("user, group", format!("{}, {}", meta.uid, meta.gid)),
        row("size", table::bytes(meta.disk_usage)),
        row("made", humantime::format_rfc3339_seconds(meta.created_at).to_string()),
        row("last used", used.map_or("never".into(), table::ago)),
        row("seconds", meta.timing.0.iter().map(seconds).collect::<Vec<_>>().join(", ")),
    ];
    rows.extend(meta.failed_dep.iter().map(|dep| row("failed by", dep.clone())));
    rows.extend(meta.extra.iter().map(|(key, value)| row(key, value.to_string())));
    table::print(&mut out, &rows, &[])?;
    for (name, value) in sidecars {
        writeln!(out, "\n{name}.json\n{value:#}")?;
    }
    Ok(ExitCode::SUCCESS)
}
