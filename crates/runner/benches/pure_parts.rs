//! Repeats the parts of a run that touch no files, for scripts/check-instructions to count:
//! `pure_parts PART TIMES`. Without arguments, as from `cargo bench`, performs each of them once.

use std::hint::black_box;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use container::advanced::{lower_option_bytes, prepare_config};
use container::{LowerNames, Mount, Runtime, Template};
use layer::{MAX_LOWERS, Plan, Rung, RungLimit};

fn main() -> Result<()> {
    // cargo adds this argument.
    let arguments: Vec<_> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match &arguments[..] {
        [] => ["plan", "template", "filter"].into_iter().try_for_each(|part| repeat(part, 1)),
        [part, times] => repeat(part, times.parse().context("TIMES is a number")?),
        _ => bail!("usage: pure_parts plan|template|filter TIMES"),
    }
}

fn repeat(part: &str, times: usize) -> Result<()> {
    let mut part: Box<dyn FnMut() -> Result<()>> = match part {
        "plan" => plan(),
        "template" => template()?,
        "filter" => filter(),
        other => bail!("unknown part {other}: say plan, template or filter"),
    };
    (0..times).try_for_each(|_| part())
}

/// Plans 500 layers on the whole ladder.
fn plan() -> Box<dyn FnMut() -> Result<()>> {
    let layers: Vec<_> = (0..500).map(|n| PathBuf::from(format!("/var/cache/layers/{n:060}/fs"))).collect();
    Box::new(move || {
        let (paths, names) = (
            |path: &Path| lower_option_bytes(LowerNames::Paths, path),
            |path: &Path| lower_option_bytes(LowerNames::Short, path),
        );
        let limit = |rung, max_bytes, cost| RungLimit { rung, max_lowers: MAX_LOWERS, max_bytes, cost };
        let ladder = [
            limit(Rung::LowerdirPlus, usize::MAX, &paths),
            limit(Rung::MountPaths, 4000, &paths),
            limit(Rung::MountNames, 4000, &names),
        ];
        let plan = Plan::new(black_box(&layers), Path::new("/base/fs"), Path::new("/scratch/lower"), &ladder);
        black_box(plan).context("there is a ladder").map(drop)
    })
}

/// Fills in a template and writes the text of config.json.
fn template() -> Result<Box<dyn FnMut() -> Result<()>>> {
    let template = Template::builder(["make", "install"])
        .user(1000, 1000)
        .env("HOME", "/home/build")
        .mount(Mount::bind("/srv/src", "/src"))
        .build()?;
    Ok(Box::new(move || {
        let config = black_box(&template).instantiate(Path::new("/scratch/layered-0123456789abcdef/bundle/merged"))?;
        black_box(serde_json::to_vec(&config)?);
        Ok(())
    }))
}

/// Builds a template and writes the text of config.json with a seccomp filter compiled for crun, as
/// the command does.
fn filter() -> Box<dyn FnMut() -> Result<()>> {
    let crun = Runtime::new("crun");
    Box::new(move || {
        let template = Template::builder(black_box(["make"])).build()?;
        let config = template.instantiate(Path::new("/scratch/layered-0123456789abcdef/bundle/merged"))?;
        black_box(serde_json::to_vec(&prepare_config(&crun, config))?);
        Ok(())
    })
}
