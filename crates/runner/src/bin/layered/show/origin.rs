//! `layered show --file`: decides how the origin of a path is shown. `layer::lookup` finds it;
//! [`conflicts`](super::conflicts) has `--conflicts`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use layer::display::quoted;
use layer::json_path::{self, JsonPath};
use layer::{EntryKind, Lookup, Obstacle, Origin, Role, Stack, StackLink};
use serde::Serialize;

use super::{Args, Member, NO};
use crate::table;

/// The origin of a path as JSON.
#[derive(Debug, Serialize)]
struct Output {
    #[serde(serialize_with = "json_path::serialize")]
    path: PathBuf,
    layer: Option<JsonPath>,
    origins: Vec<OriginOutput>,
    obstacle: Option<ObstacleOutput>,
    links: Vec<LinkOutput>,
    #[serde(serialize_with = "json_path::serialize")]
    end: PathBuf,
}

/// The entry of one layer as JSON.
#[derive(Debug, Serialize)]
struct OriginOutput {
    layer: JsonPath,
    has: EntryKind,
    role: &'static str,
    by: Option<JsonPath>,
}

/// What is in the way of the path, as JSON.
#[derive(Debug, Serialize)]
struct ObstacleOutput {
    layer: JsonPath,
    #[serde(serialize_with = "json_path::serialize")]
    path: PathBuf,
    has: EntryKind,
    target: Option<JsonPath>,
}

/// A link on the way, as JSON.
#[derive(Debug, Serialize)]
struct LinkOutput {
    layer: JsonPath,
    #[serde(serialize_with = "json_path::serialize")]
    path: PathBuf,
    target: JsonPath,
}

pub(super) fn show(out: &mut impl Write, args: &Args, stack: &[Member], path: &Path) -> anyhow::Result<ExitCode> {
    let trees: Vec<_> = stack.iter().map(|member| &member.tree).collect();
    let xattrs = runner::xattrs_of_process();
    let (links, end) = match args.no_follow {
        true => (Vec::new(), path.into()),
        false => {
            let trace = Stack::new(&trees, xattrs)?.trace(path)?;
            (trace.links, trace.path)
        }
    };
    let found = layer::lookup(&trees, end, xattrs)?;
    let supplier = found.supplier().copied();
    match args.json {
        true => table::print_json(out, &output(stack, path, &links, found))?,
        false => print(out, stack, path, &links, &found)?,
    }
    Ok(if supplier.is_some() { ExitCode::SUCCESS } else { NO.into() })
}

fn absolute(path: &Path) -> PathBuf {
    Path::new("/").join(path)
}

fn print(out: &mut impl Write, stack: &[Member], asked: &Path, links: &[StackLink], found: &Lookup) -> io::Result<()> {
    let name = |layer: usize| quoted(&stack[layer].dir);
    for link in links {
        let (path, target) = (absolute(&link.path), quoted(&link.target));
        writeln!(out, "{}: a symbolic link of {} to {target}", quoted(&path), name(link.layer))?;
    }
    // The lines above lead from the path that was asked for to the end.
    let path = if links.is_empty() { absolute(asked) } else { absolute(&found.path) };
    let path = quoted(&path);
    match (found.supplier(), &found.obstacle) {
        (Some(origin), _) => writeln!(out, "{path}: {} of {}", word(origin.kind), name(origin.layer))?,
        (None, Some(Obstacle { layer, path: way, target: Some(target), .. })) => writeln!(
            out,
            "{path}: nothing, because {} is a symbolic link of {} that leads to {}; leave out --no-follow to follow it",
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
    table::print(out, &rows, &[])
}

fn output(stack: &[Member], asked: &Path, links: &[StackLink], found: Lookup) -> Output {
    let name = |layer: usize| JsonPath(stack[layer].dir.clone());
    let origin = |origin: &Origin| {
        let (role, by) = match origin.role {
            Role::Supplies => ("supplies", None),
            Role::Joins => ("joins", None),
            Role::Deletes => ("deletes", None),
            Role::Hidden { by } => ("hidden", Some(name(by))),
            _ => ("", None),
        };
        OriginOutput { layer: name(origin.layer), has: origin.kind, role, by }
    };
    let obstacle = |obstacle: &Obstacle| ObstacleOutput {
        layer: name(obstacle.layer),
        path: absolute(&obstacle.path),
        has: obstacle.kind,
        target: obstacle.target.clone().map(JsonPath),
    };
    let link = |link: &StackLink| LinkOutput {
        layer: name(link.layer),
        path: absolute(&link.path),
        target: JsonPath(link.target.clone()),
    };
    Output {
        path: absolute(asked),
        layer: found.supplier().map(|origin| name(origin.layer)),
        origins: found.origins.iter().map(origin).collect(),
        obstacle: found.obstacle.as_ref().map(obstacle),
        links: links.iter().map(link).collect(),
        end: absolute(&found.path),
    }
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
