use std::io::{self, Write};
use std::process::ExitCode;

use layer::{Estimate, Plan};

use crate::stack::StackArgs;
use crate::table;

/// Tell what a run would stack, what it would merge, and why. Nothing is mounted or made.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  layered plan --base debian --layers-from deps.txt")]
pub(crate) struct Args {
    #[command(flatten)]
    stack: StackArgs,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let plan = runner::plan(&args.stack.base()?, &args.stack.layers()?, &args.stack.options(None))?;
    print(&mut io::stdout().lock(), &plan)?;
    Ok(ExitCode::SUCCESS)
}

/// The decision on one line, then what every rung would have come to.
pub(crate) fn print(out: &mut impl Write, plan: &Plan) -> io::Result<()> {
    let layers = plan.separate.len() + plan.merged.len();
    let merged = match plan.merged.len() {
        0 => String::new(),
        merged => format!(", the lowest {merged} merged into one directory first"),
    };
    writeln!(
        out,
        "{layers} {} over {}, mounted by {}{merged}.",
        if layers == 1 { "layer" } else { "layers" },
        plan.base.display(),
        plan.rung
    )?;
    let mut rows = vec![["RUNG", "STACKED", "MERGED", "LOWERS", "BYTES", ""].map(String::from).to_vec()];
    for estimate in &plan.estimates {
        let Estimate { rung, separate, merged, max_lowers, bytes, max_bytes, .. } = estimate;
        let lowers = separate + merged + 1;
        rows.push(vec![
            rung.to_string(),
            separate.to_string(),
            merged.to_string(),
            format!("{lowers} of {max_lowers}"),
            if *max_bytes == usize::MAX { "any".into() } else { format!("{bytes} of {max_bytes}") },
            if *rung == plan.rung { "<- taken".into() } else { String::new() },
        ]);
    }
    table::print(out, &rows, &[1, 2, 3, 4])
}

#[cfg(test)]
mod tests {
    use super::*;
    use layer::{Rung, RungLimit};
    use std::path::{Path, PathBuf};

    #[test]
    fn the_decision_is_told() {
        let layers = ["/l/a", "/l/b", "/l/c"].map(PathBuf::from);
        let cost = |path: &Path| path.as_os_str().len() + 1;
        let limit = |rung, max_bytes| RungLimit { rung, max_lowers: 3, max_bytes, cost: &cost };
        let ladder = [limit(Rung::LowerdirPlus, usize::MAX), limit(Rung::MountPaths, 12)];
        let plan = Plan::new(&layers, Path::new("/base"), Path::new("/m"), &ladder).unwrap();
        let mut out = Vec::new();
        print(&mut out, &plan).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "\
3 layers over /base, mounted by lowerdir+, the lowest 2 merged into one directory first.
RUNG         STACKED  MERGED  LOWERS     BYTES
lowerdir+          1       2  4 of 3       any  <- taken
mount-paths        0       3  4 of 3  21 of 12
"
        );
    }
}
