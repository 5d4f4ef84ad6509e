use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use layer::{Base, Capture, Layer, Made, Meta, XattrNamespace};
use runner::Upper;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::stack::LayerArgs;
use crate::{kept, table};

/// Capture an upper as a layer that is right in any stack.
///
/// The upper, what `layered run --upper` has kept, is moved to LAYER/fs, on the same file system; it may also stand there already.
/// Overlayfs's own attributes are taken off, directories that were made again hide by name what they hid in the layers below,
/// what the run put there besides the command is taken out, and layer.json is written last: after a power cut the layer is whole
/// or not there. LAYER is made if it is missing.
///
/// What was below the upper has to be told: by the report of the run, or by --base and --layer. A run that was kept tells it itself.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
#[command(group = clap::ArgGroup::new("below").args(["run", "base"]))]
pub(crate) struct Args {
    /// The upper directory, unmounted; or the directory of a kept run, which this ends.
    upper: PathBuf,
    /// The layer's directory: new, or without layer.json.
    layer: PathBuf,
    /// The report of the run (its --json): what was below, what the run put into the upper, and most of layer.json.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["layers", "layers_from"])]
    run: Option<PathBuf>,
    /// The base that the upper was written over, if there is no report.
    #[arg(long, value_name = "DIR")]
    base: Option<PathBuf>,
    #[command(flatten)]
    layers: LayerArgs,
    /// A JSON object with keys of layer.json that are to be other than the report says or the default is: exit_status,
    /// parent_hashes, uid, gid, base_hash, timing, failed_dep, and keys of your own.
    #[arg(long, value_name = "FILE")]
    meta: Option<PathBuf>,
    /// Let no file be younger than this, so that a build that is repeated comes to the same tree: seconds since 1970
    /// [default: $SOURCE_DATE_EPOCH].
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true)]
    source_date_epoch: Option<Option<u64>>,
}

const AFTER_HELP: &str = "\
Examples:
  layered run --base debian --layer gcc --upper upper --json report.json -- make install
  layered commit upper store/hello --run report.json
  layered commit upper store/hello --run report.json --meta meta.json --source-date-epoch
  layered commit store/hello/fs store/hello --base debian --layer gcc
  layered commit scratch/kept-0123456789abcdef store/mended";

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let description = args.upper.join(kept::DESCRIPTION);
    if description.is_file() && (args.run.is_some() || args.base.is_some()) {
        bail!(
            "{} is a kept run, which tells by itself what was below: leave out --run and --base",
            args.upper.display()
        );
    }
    let (mut capture, meta, kept) = match (&args.run, &args.base) {
        (Some(report), _) => of_run(report).map(|(capture, meta)| (capture, meta, None))?,
        (None, Some(base)) => {
            let (capture, meta) = of_stack(&Base::open(base)?, &args.layers.open()?);
            (capture, meta, None)
        }
        (None, None) if description.is_file() => {
            let (capture, meta) = of_run(&description)?;
            (capture, meta, Some(Upper::reopen(&args.upper)?))
        }
        (None, None) => bail!("what was below the upper has to be told: --run or --base"),
    };
    let meta = match &args.meta {
        Some(path) => {
            with_keys(&meta, read(path)?).with_context(|| format!("{} is no part of a layer.json", path.display()))?
        }
        None => meta,
    };
    if let Some(seconds) = args.source_date_epoch {
        capture = capture.clamp_times(epoch(seconds, std::env::var("SOURCE_DATE_EPOCH").ok())?);
    }
    let layer = Layer::at(&args.layer);
    let captured = match kept {
        // In its directory it stays if this fails.
        Some(upper) => upper.capture(&capture, &layer, meta)?,
        None => capture.into_layer(&args.upper, &layer, meta)?,
    };
    let (size, entries) = (table::bytes(captured.size.bytes), captured.size.entries);
    let made = match captured.taken_out {
        0 => String::new(),
        taken_out => format!("; {taken_out} that the run had made taken out"),
    };
    writeln!(io::stdout(), "{}: {size} in {entries} entries{made}", args.layer.display())?;
    Ok(ExitCode::SUCCESS)
}

/// What the report of a run has for this.
#[derive(Debug, Deserialize)]
struct Record {
    lowers: Vec<PathBuf>,
    made: Vec<Made>,
    xattrs: String,
    meta: Meta,
}

fn of_run(path: &Path) -> anyhow::Result<(Capture, Meta)> {
    let mut report: Value = read(path)?;
    let record: Record = serde_json::from_value(report["capture"].take())
        .with_context(|| format!("{} is not the report of a run that came to a result", path.display()))?;
    let xattrs = match &*record.xattrs {
        "trusted" => XattrNamespace::Trusted,
        "user" => XattrNamespace::User,
        other => bail!("{}: overlayfs has no attributes in {other:?}", path.display()),
    };
    Ok((Capture::new(record.lowers).made(record.made).xattrs(xattrs), record.meta))
}

fn of_stack(base: &Base, layers: &[Layer]) -> (Capture, Meta) {
    let lowers = layers.iter().map(Layer::fs).chain([base.fs()]);
    let parent_hashes = layers.iter().map(|layer| layer.name().to_string_lossy().into_owned()).collect();
    (Capture::new(lowers), Meta { parent_hashes, ..Meta::new(base.hash(), SystemTime::now()) })
}

fn read<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is not valid", path.display()))
}

/// `meta` with some keys of its JSON replaced or added.
fn with_keys(meta: &Meta, keys: Map<String, Value>) -> serde_json::Result<Meta> {
    let mut value = serde_json::to_value(meta)?;
    for (key, given) in keys {
        value[key] = given;
    }
    serde_json::from_value(value)
}

fn epoch(given: Option<u64>, variable: Option<String>) -> anyhow::Result<SystemTime> {
    let seconds = match (given, variable) {
        (Some(seconds), _) => seconds,
        (None, Some(text)) => text
            .parse()
            .ok()
            .with_context(|| format!("SOURCE_DATE_EPOCH is {text:?}: it has to be seconds since 1970"))?,
        (None, None) => bail!("--source-date-epoch without SECONDS needs SOURCE_DATE_EPOCH in the environment"),
    };
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).with_context(|| format!("{seconds} seconds are too many"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn keys_of_the_caller_take_their_place_or_come_behind() {
        let meta = Meta { parent_hashes: vec!["a".into()], ..Meta::new("debian", UNIX_EPOCH) };
        let Value::Object(keys) = json!({"uid": 1000, "timing": {"build": 2}, "colour": "blue"}) else { panic!() };
        let changed = with_keys(&meta, keys).unwrap();
        assert_eq!((changed.uid, changed.gid, changed.timing.seconds("build")), (1000, 0, Some(2.0)));
        assert_eq!((changed.extra["colour"].as_str(), changed.parent_hashes), (Some("blue"), vec!["a".to_string()]));
        let Value::Object(keys) = json!({"uid": "root"}) else { panic!() };
        assert!(with_keys(&meta, keys).is_err());
    }

    #[test]
    fn the_time_is_given_or_the_environments() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let variable = |text: &str| Some(text.to_string());
        assert_eq!(epoch(Some(7), variable("8")).unwrap(), at(7));
        assert_eq!(epoch(None, variable("8")).unwrap(), at(8));
        assert!(epoch(None, None).is_err() && epoch(None, variable("soon")).is_err());
        assert!(epoch(Some(u64::MAX), None).is_err());
    }
}
