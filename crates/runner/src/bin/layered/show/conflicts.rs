//! `layered show --conflicts`: decides how paths that several layers provide are shown.
//! `layer::conflicts` finds them; [`origin`](super::origin) has `--file`.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use layer::Difference;
use layer::display::quoted;
use layer::json_path::{self, JsonPath};
use serde::Serialize;

use super::{Args, Member, NO};
use crate::{complain, table};

/// A path that several layers provide, as JSON.
#[derive(Debug, Serialize)]
struct Output<'a> {
    #[serde(serialize_with = "json_path::serialize")]
    path: &'a Path,
    difference: Difference,
    layers: Vec<JsonPath>,
}

pub(super) fn show(out: &mut impl Write, args: &Args, stack: &[Member]) -> anyhow::Result<ExitCode> {
    let trees: Vec<_> = stack.iter().map(|member| &member.tree).collect();
    let mut rows = vec![["PATH", "DIFFERENCE", "LAYERS"].map(String::from).to_vec()];
    let [mut same, mut different, mut failed] = [0_u64; 3];
    for conflict in layer::conflicts(&trees, runner::xattrs_of_process())? {
        let conflict = match conflict {
            Ok(conflict) => conflict,
            // Reports a path that cannot be compared, and compares the others.
            Err(error) => {
                failed += 1;
                complain(format_args!("{:#}", anyhow::Error::from(error)));
                continue;
            }
        };
        let path = Path::new("/").join(&conflict.path);
        let difference = conflict.difference;
        let dirs = conflict.layers.iter().map(|&layer| &stack[layer].dir);
        *if difference == Difference::Nothing { &mut same } else { &mut different } += 1;
        if args.json {
            let layers = dirs.cloned().map(JsonPath).collect();
            table::print_json(out, &Output { path: &path, difference, layers })?;
        } else if difference != Difference::Nothing {
            let names: Vec<_> =
                dirs.map(|dir| quoted(dir.file_name().unwrap_or(dir.as_os_str())).to_string()).collect();
            rows.push(vec![quoted(&path).to_string(), word(difference).into(), names.join(", ")]);
        }
    }
    if !args.json {
        if different > 0 {
            table::print(out, &rows, &[])?;
        }
        writeln!(out, "paths in several layers: {different} differ, {same} are the same in all")?;
    }
    Ok(match (failed, different) {
        (0, 0) => ExitCode::SUCCESS,
        (0, _) => NO.into(),
        _ => crate::FAILURE.into(),
    })
}

fn word(difference: Difference) -> &'static str {
    match difference {
        Difference::Nothing => "nothing",
        Difference::Attributes => "attributes",
        Difference::Content => "content",
        Difference::Kind => "kind",
        Difference::Opaque => "opaque",
        Difference::Deletion => "deletion",
        _ => "",
    }
}
