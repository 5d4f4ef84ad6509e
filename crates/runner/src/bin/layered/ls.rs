use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use layer::Layer;
use serde_json::{Value, json};

use crate::table;

/// List the layers of a store: their status, size, age and last use.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  layered ls /var/cache/layers\n  layered ls --json /var/cache/layers | jq -r 'select(.exit_status != 0) | .name'"
)]
pub(crate) struct Args {
    /// The directory that holds the layers.
    store: PathBuf,
    /// One JSON object a line instead of a table.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut layers = layer::scan(&args.store)?.collect::<layer::Result<Vec<Layer>>>()?;
    layers.sort();
    let mut rows = vec![["NAME", "STATUS", "SIZE", "LAST USED", "MADE"].map(String::from).to_vec()];
    // A layer that cannot be read is told, and the rest is listed all the same.
    let mut status = ExitCode::SUCCESS;
    let mut out = io::stdout().lock();
    for layer in layers {
        match summary(&layer) {
            Ok(None) => {}
            Ok(Some(summary)) if args.json => writeln!(out, "{}", summary.json)?,
            Ok(Some(summary)) => rows.push(summary.row),
            Err(error) => {
                crate::complain(format_args!("{:#}", anyhow::Error::from(error)));
                status = crate::FAILURE.into();
            }
        }
    }
    if !args.json {
        table::print(&mut out, &rows, &[2])?;
    }
    Ok(status)
}

struct Summary {
    row: Vec<String>,
    json: Value,
}

/// `None` for a layer that has gone since the scan.
fn summary(layer: &Layer) -> layer::Result<Option<Summary>> {
    let Some(meta) = layer.meta()? else { return Ok(None) };
    let used = layer.last_used()?;
    let name = layer.name().to_string_lossy().into_owned();
    let status = match &meta.failed_dep {
        Some(dep) => format!("failed by {dep}"),
        None if meta.exit_status == 0 => "ok".into(),
        None => format!("exit {}", meta.exit_status),
    };
    let used_json = used.map(|time| humantime::format_rfc3339_seconds(time).to_string());
    Ok(Some(Summary {
        row: vec![
            name.clone(),
            status,
            table::bytes(meta.disk_usage),
            used.map_or("never".into(), table::ago),
            table::ago(meta.created_at),
        ],
        json: json!({"name": name, "last_used": used_json, "exit_status": meta.exit_status, "disk_usage": meta.disk_usage,
            "created_at": humantime::format_rfc3339_seconds(meta.created_at).to_string(), "failed_dep": meta.failed_dep}),
    }))
}
