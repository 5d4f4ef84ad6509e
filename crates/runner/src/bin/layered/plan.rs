//! `layered plan`: decides how a plan is shown. `layer::Plan` makes the plan, and
//! [`run`](crate::run) carries one out.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use layer::display::quoted;
use layer::json_path::{self, JsonPath};
use layer::{Estimate, Plan, Rung};
use serde::Serialize;

use crate::stack::StackArgs;
use crate::table;

/// Show which layers a run would stack and which it would merge, and why.
///
/// Nothing is mounted or created. For each rung, the table shows how many layers would be stacked
/// and merged, the lower directories and bytes of mount options against their limits, and the files
/// that a merge would link.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  layered plan --base debian --layers-from deps.txt\n  layered plan --base debian --layers-from deps.txt --json | jq .rung"
)]
pub(crate) struct Args {
    #[command(flatten)]
    stack: StackArgs,
    /// Print one JSON object instead of a table.
    ///
    /// The keys are `base`, `rung`, the paths of the layers that are `separate` or `merged`, and
    /// `rungs`, a list with the figures of every rung.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let plan =
        runner::plan(&args.stack.base(None)?, &args.stack.layers()?, &args.stack.options(args.stack.scratch(None)))?;
    let layers = [&plan.separate[..], &plan.merged].concat();
    let fewest = plan.estimates.iter().map(|estimate| estimate.separate).min().unwrap_or_default();
    // Counts the files of those layers only that some rung would merge.
    let files = layers[fewest..].iter().map(layer::count_files).collect::<layer::Result<Vec<_>>>()?;
    let to_link = |estimate: &Estimate| files[estimate.separate - fewest..].iter().sum();
    let mut out = io::stdout().lock();
    match args.json {
        true => table::print_json(&mut out, &Output::new(&plan, to_link))?,
        false => print(&mut out, &plan, to_link)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The plan as JSON.
#[derive(Debug, Serialize)]
struct Output<'a> {
    #[serde(serialize_with = "json_path::serialize")]
    base: &'a Path,
    rung: Rung,
    separate: Vec<JsonPath>,
    merged: Vec<JsonPath>,
    rungs: Vec<RungOutput<'a>>,
}

/// One rung as JSON.
#[derive(Debug, Serialize)]
struct RungOutput<'a> {
    #[serde(flatten)]
    estimate: &'a Estimate,
    files_to_link: usize,
    why: String,
}

impl<'a> Output<'a> {
    fn new(plan: &'a Plan, to_link: impl Fn(&Estimate) -> usize) -> Self {
        let paths = |paths: &[PathBuf]| paths.iter().cloned().map(JsonPath).collect();
        let rungs = plan.estimates.iter().map(|estimate| RungOutput {
            estimate,
            files_to_link: to_link(estimate),
            why: why(estimate, plan),
        });
        Self {
            base: &plan.base,
            rung: plan.rung,
            separate: paths(&plan.separate),
            merged: paths(&plan.merged),
            rungs: rungs.collect(),
        }
    }
}

/// Prints the decision on one line, then a table with a row per rung.
fn print(out: &mut impl Write, plan: &Plan, to_link: impl Fn(&Estimate) -> usize) -> io::Result<()> {
    let layers = plan.separate.len() + plan.merged.len();
    let merged = match plan.merged.len() {
        0 => String::new(),
        merged => format!(", the lowest {merged} merged into one directory first"),
    };
    let layers = table::count(layers as u64, "layer");
    writeln!(out, "{layers} over {}, mounted by {}{merged}.", quoted(&plan.base), plan.rung)?;
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
                files => table::count(files as u64, "file"),
            },
            why(estimate, plan),
        ]);
    }
    table::print(out, &rows, &[1, 2, 3, 4, 5])
}

/// Returns why a rung was taken or not.
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
    use layer::RungLimit;
    use serde_json::json;

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
    fn a_plan_is_printed_with_the_decision_and_every_rung() {
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
    fn a_plan_as_json_has_the_decision_and_every_rung() {
        let plan = planned(&[(Rung::LowerdirPlus, 3, usize::MAX), (Rung::MountPaths, 9, 12)]);
        assert_eq!(
            serde_json::to_value(Output::new(&plan, |estimate| estimate.merged * 10)).unwrap(),
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
