use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use layer::display::{escaped_json, quoted};
use layer::{Estimate, Plan, json_path};
use serde_json::{Value, json};

use crate::stack::StackArgs;
use crate::table;

/// Tell what a run would stack, what it would merge, and why. Nothing is mounted or made.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  layered plan --base debian --layers-from deps.txt\n  layered plan --base debian --layers-from deps.txt --json | jq .rung"
)]
pub(crate) struct Args {
    #[command(flatten)]
    stack: StackArgs,
    /// One JSON object instead of a table: `base`, `rung`, the paths that are `separate` and `merged`, and every rung in `rungs`.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let plan = runner::plan(&args.stack.base()?, &args.stack.layers()?, &args.stack.options(None))?;
    let layers = [&plan.separate[..], &plan.merged].concat();
    let fewest = plan.estimates.iter().map(|estimate| estimate.separate).min().unwrap_or_default();
    // Only what some rung would have to merge is counted.
    let files = layers[fewest..].iter().map(layer::count_files).collect::<layer::Result<Vec<_>>>()?;
    let to_link = |estimate: &Estimate| files[estimate.separate - fewest..].iter().sum();
    let mut out = io::stdout().lock();
    match args.json {
        true => writeln!(out, "{}", escaped_json(to_json(&plan, to_link)))?,
        false => print(&mut out, &plan, to_link)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn to_json(plan: &Plan, to_link: impl Fn(&Estimate) -> usize) -> Value {
    let paths = |paths: &[PathBuf]| paths.iter().map(json_path::to_value).collect::<Vec<_>>();
    let rungs = plan.estimates.iter().map(|estimate| {
        let Estimate { rung, separate, merged, max_lowers, bytes, max_bytes, .. } = estimate;
        json!({
            "rung": rung.to_string(),
            "separate": separate,
            "merged": merged,
            "max_lowers": max_lowers,
            "bytes": bytes,
            "max_bytes": (*max_bytes != usize::MAX).then_some(max_bytes),
            "files_to_link": to_link(estimate),
            "why": why(estimate, plan),
        })
    });
    json!({
        "base": json_path::to_value(&plan.base),
        "rung": plan.rung.to_string(),
        "separate": paths(&plan.separate),
        "merged": paths(&plan.merged),
        "rungs": rungs.collect::<Vec<_>>(),
    })
}

/// The decision on one line, then what every rung would have come to.
fn print(out: &mut impl Write, plan: &Plan, to_link: impl Fn(&Estimate) -> usize) -> io::Result<()> {
    let layers = plan.separate.len() + plan.merged.len();
    let merged = match plan.merged.len() {
        0 => String::new(),
        merged => format!(", the lowest {merged} merged into one directory first"),
    };
    let noun = if layers == 1 { "layer" } else { "layers" };
    writeln!(out, "{layers} {noun} over {}, mounted by {}{merged}.", quoted(&plan.base), plan.rung)?;
    let heading = ["RUNG", "STACKED", "MERGED", "LOWERS", "BYTES", "TO LINK", ""];
    let mut rows = vec![heading.map(String::from).to_vec()];
    for estimate in &plan.estimates {
        let Estimate { rung, separate, merged, max_lowers, bytes, max_bytes, .. } = estimate;
        rows.push(vec![
            rung.to_string(),
            separate.to_string(),
            merged.to_string(),
            format!("{} of {max_lowers}", separate + merged + 1),
            if *max_bytes == usize::MAX { "any".into() } else { format!("{bytes} of {max_bytes}") },
            match to_link(estimate) {
                0 => "nothing".into(),
                1 => "1 file".into(),
                files => format!("{files} files"),
            },
            why(estimate, plan),
        ]);
    }
    table::print(out, &rows, &[1, 2, 3, 4, 5])
}

/// Why a rung was taken or not.
fn why(estimate: &Estimate, plan: &Plan) -> String {
    let limit = match estimate {
        _ if estimate.merged == 0 => "all fit",
        _ if estimate.bytes > estimate.max_bytes => "too many bytes",
        _ => "too many lowers",
    };
    match (estimate.rung == plan.rung, estimate.merged.cmp(&plan.merged.len())) {
        (true, _) if plan.estimates.len() == 1 => format!("taken, the only one: {limit}"),
        (true, _) if estimate.merged == 0 => format!("taken: {limit}"),
        (true, _) => format!("taken, the fewest to merge: {limit}"),
        (false, std::cmp::Ordering::Greater) => limit.into(),
        (false, _) => "not needed".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use layer::{Rung, RungLimit};

    use super::*;

    fn planned(ladder: &[(Rung, usize, usize)]) -> Plan {
        let layers = ["/l/a", "/l/b", "/l/c"].map(PathBuf::from);
        let cost = |path: &Path| path.as_os_str().len() + 1;
        let limit = |(rung, max_lowers, max_bytes): &_| RungLimit {
            rung: *rung,
            max_lowers: *max_lowers,
            max_bytes: *max_bytes,
            cost: &cost,
        };
        let ladder: Vec<_> = ladder.iter().map(limit).collect();
        Plan::new(&layers, Path::new("/base"), Path::new("/m"), &ladder).unwrap()
    }

    fn shown(ladder: &[(Rung, usize, usize)]) -> String {
        let mut out = Vec::new();
        print(&mut out, &planned(ladder), |estimate| estimate.merged * 10).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_decision_is_told_with_what_else_there_was() {
        let any = usize::MAX;
        assert_eq!(
            shown(&[(Rung::LowerdirPlus, 3, any), (Rung::MountPaths, 9, 12), (Rung::MountNames, 9, 22)]),
            "\
3 layers over /base, mounted by mount-names.
RUNG         STACKED  MERGED  LOWERS     BYTES   TO LINK
lowerdir+          1       2  4 of 3       any  20 files  too many lowers
mount-paths        0       3  4 of 9  21 of 12  30 files  too many bytes
mount-names        3       0  4 of 9  21 of 22   nothing  taken: all fit
"
        );
        assert_eq!(
            shown(&[(Rung::LowerdirPlus, 3, any), (Rung::MountPaths, 9, 12)]),
            "\
3 layers over /base, mounted by lowerdir+, the lowest 2 merged into one directory first.
RUNG         STACKED  MERGED  LOWERS     BYTES   TO LINK
lowerdir+          1       2  4 of 3       any  20 files  taken, the fewest to merge: too many lowers
mount-paths        0       3  4 of 9  21 of 12  30 files  too many bytes
"
        );
        assert_eq!(
            shown(&[(Rung::LowerdirPlus, 9, any), (Rung::MountPaths, 9, 99)]),
            "\
3 layers over /base, mounted by lowerdir+.
RUNG         STACKED  MERGED  LOWERS     BYTES  TO LINK
lowerdir+          3       0  4 of 9       any  nothing  taken: all fit
mount-paths        3       0  4 of 9  21 of 99  nothing  not needed
"
        );
    }

    #[test]
    fn the_decision_as_json() {
        let plan = planned(&[(Rung::LowerdirPlus, 3, usize::MAX), (Rung::MountPaths, 9, 12)]);
        assert_eq!(
            to_json(&plan, |estimate| estimate.merged * 10),
            json!({
                "base": "/base",
                "rung": "lowerdir+",
                "separate": ["/l/a"],
                "merged": ["/l/b", "/l/c"],
                "rungs": [
                    {"rung": "lowerdir+", "separate": 1, "merged": 2, "max_lowers": 3, "bytes": plan.estimates[0].bytes,
                        "max_bytes": null, "files_to_link": 20, "why": "taken, the fewest to merge: too many lowers"},
                    {"rung": "mount-paths", "separate": 0, "merged": 3, "max_lowers": 9, "bytes": 21, "max_bytes": 12,
                        "files_to_link": 30, "why": "too many bytes"},
                ],
            })
        );
    }
}
