//! `layered show --conflicts`: decides how paths that several layers provide are shown.
//! `layer::conflicts` finds them; [`origin`](super::origin) has `--file`.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use layer::display::{escaped_json, quoted};
use layer::{Difference, Layer, json_path};
use serde_json::json;

use super::{Args, NO};
use crate::{complain, table};

pub(super) fn show(out: &mut impl Write, args: &Args, layers: &[Layer]) -> anyhow::Result<ExitCode> {
    let trees: Vec<_> = layers.iter().map(Layer::fs).collect();
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
        let difference = word(conflict.difference);
        let layers = conflict.layers.iter().map(|&layer| &layers[layer]);
        *if conflict.difference == Difference::Nothing { &mut same } else { &mut different } += 1;
        if args.json {
            let layers: Vec<_> = layers.map(|layer| json_path::to_value(layer.path())).collect();
            let path = json_path::to_value(&path);
            writeln!(out, "{}", escaped_json(json!({"path": path, "difference": difference, "layers": layers})))?;
        } else if conflict.difference != Difference::Nothing {
            let layers: Vec<_> = layers.map(|layer| quoted(layer.name()).to_string()).collect();
            rows.push(vec![quoted(&path).to_string(), difference.into(), layers.join(", ")]);
        }
    }
    if !args.json {
        if different > 0 {
            table::print_to_fit(out, &rows, &[])?;
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
