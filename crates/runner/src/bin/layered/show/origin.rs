//! `layered show --file`: decides how the origin of a path is shown. `layer::lookup` finds it;
//! [`conflicts`](super::conflicts) has `--conflicts`.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use layer::display::{escaped_json, quoted};
use layer::{EntryKind, Layer, Lookup, Obstacle, Role, json_path};
use serde_json::{Value, json};

use super::{Args, NO};
use crate::table;

pub(super) fn show(out: &mut impl Write, args: &Args, layers: &[Layer], path: &Path) -> anyhow::Result<ExitCode> {
    let trees: Vec<_> = layers.iter().map(Layer::fs).collect();
    let found = layer::lookup(&trees, path, runner::xattrs_of_process())?;
    match args.json {
        true => writeln!(out, "{}", escaped_json(as_json(layers, &found)))?,
        false => print(out, layers, &found)?,
    }
    Ok(if found.supplier().is_some() { ExitCode::SUCCESS } else { NO.into() })
}

fn print(out: &mut impl Write, layers: &[Layer], found: &Lookup) -> io::Result<()> {
    let name = |layer: usize| quoted(layers[layer].path());
    let absolute = |path: &Path| Path::new("/").join(path);
    let path = absolute(&found.path);
    let path = quoted(&path);
    match (found.supplier(), &found.obstacle) {
        (Some(origin), _) => writeln!(out, "{path}: {} of {}", word(origin.kind), name(origin.layer))?,
        (None, Some(Obstacle { layer, path: way, target: Some(target), .. })) => writeln!(
            out,
            "{path}: nothing, because {} is a symbolic link of {} that leads to {}; show follows no links",
            quoted(&absolute(way)),
            name(*layer),
            quoted(target)
        )?,
        (None, Some(Obstacle { layer, path: way, kind, .. })) => {
            writeln!(out, "{path}: nothing, because {} is {} of {}", quoted(&absolute(way)), word(*kind), name(*layer))?
        }
        (None, None) => writeln!(out, "{path}: nothing")?,
    }
    if found.origins.is_empty() {
        return Ok(());
    }
    let mut rows = vec![["LAYER", "HAS", ""].map(String::from).to_vec()];
    rows.extend(found.origins.iter().map(|origin| {
        let role = match origin.role {
            Role::Supplies => "shown".into(),
            Role::Joins => "merged with the directory above".into(),
            Role::Deletes => "hides the layers below".into(),
            Role::Hidden { by } => format!("hidden by {}", name(by)),
            _ => String::new(),
        };
        vec![name(origin.layer).to_string(), word(origin.kind).into(), role]
    }));
    table::print_to_fit(out, &rows, &[])
}

fn as_json(layers: &[Layer], found: &Lookup) -> Value {
    let name = |layer: usize| json_path::to_value(layers[layer].path());
    let absolute = |path: &Path| json_path::to_value(Path::new("/").join(path));
    let origin = |origin: &layer::Origin| {
        let (role, by) = match origin.role {
            Role::Supplies => ("supplies", None),
            Role::Joins => ("joins", None),
            Role::Deletes => ("deletes", None),
            Role::Hidden { by } => ("hidden", Some(name(by))),
            _ => ("", None),
        };
        json!({"layer": name(origin.layer), "has": noun(origin.kind), "role": role, "by": by})
    };
    let obstacle = |obstacle: &Obstacle| {
        json!({"layer": name(obstacle.layer), "path": absolute(&obstacle.path),
            "has": noun(obstacle.kind), "target": obstacle.target.as_ref().map(json_path::to_value)})
    };
    json!({
        "path": absolute(&found.path),
        "layer": found.supplier().map(|origin| name(origin.layer)),
        "origins": found.origins.iter().map(origin).collect::<Vec<_>>(),
        "obstacle": found.obstacle.as_ref().map(obstacle),
    })
}

fn word(kind: EntryKind) -> &'static str {
    match kind {
        EntryKind::File => "a file",
        EntryKind::Directory => "a directory",
        EntryKind::Symlink => "a symbolic link",
        EntryKind::Whiteout => "a whiteout",
        _ => "a special file",
    }
}

fn noun(kind: EntryKind) -> &'static str {
    match kind {
        EntryKind::File => "file",
        EntryKind::Directory => "directory",
        EntryKind::Symlink => "symlink",
        EntryKind::Whiteout => "whiteout",
        _ => "special",
    }
}
