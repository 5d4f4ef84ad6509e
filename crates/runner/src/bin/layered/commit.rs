use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use layer::display::quoted;
use layer::{Base, Capture, Captured, Layer, Meta};
use runner::{CaptureRecord, Upper};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::access::AccessArgs;
use crate::stack::{LayerArgs, read_given};
use crate::{kept, table};

/// Capture an upper as a layer that is right in any stack.
///
/// Moves UPPER, the directory that `layered run --upper` made, to LAYER/fs on the same file system; it may also be there already.
/// LAYER is made if it is missing. The layer contains only what the command wrote: overlay xattrs and the files that the run itself
/// made are removed. A directory that was removed and made again hides by name what it hid in the layers below.
///
/// layer.json is written last, so after a power cut or a kill the layer is complete or absent. A commit that was killed can be
/// repeated.
///
/// To know what was below the upper, commit needs the report of the run, or --base and --layer. A kept run records it itself.
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
    /// A JSON object with keys of layer.json that replace those of the report or the defaults: exit_status, parent_hashes, uid, gid,
    /// base_hash, timing, failed_dep, and keys of your own.
    #[arg(long, value_name = "FILE")]
    meta: Option<PathBuf>,
    #[command(flatten)]
    access: AccessArgs,
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
    let kept = match Upper::is_kept_name(&args.upper) {
        true if args.run.is_some() || args.base.is_some() => {
            bail!("{} is a kept run, which records what was below it: leave out --run and --base", quoted(&args.upper))
        }
        true if args.upper.join("upper").symlink_metadata().is_err() => return repeat(args),
        true => Some(Upper::reopen(&args.upper)?),
        false => None,
    };
    let record = match (&kept, &args.run, &args.base) {
        (Some(_), ..) => kept::capture_record(&args.upper)?,
        (None, Some(report), _) => of_report(report)?,
        (None, None, Some(base)) => of_stack(&Base::open(base)?, &args.layers.open()?)?,
        (None, None, None) => bail!("what was below the upper has to be told: give --run or --base"),
    };
    let (mut capture, meta) = record.into_capture();
    let meta = match &args.meta {
        Some(path) => {
            let keys = read(path)?;
            with_keys(&meta, keys).with_context(|| format!("{} is not part of a layer.json", quoted(path)))?
        }
        None => meta,
    };
    if let Some(seconds) = args.source_date_epoch {
        capture = capture.clamp_times(epoch(seconds, std::env::var("SOURCE_DATE_EPOCH").ok())?);
    }
    if let Some(access) = args.access.get()? {
        capture = capture.access(access);
    }
    let layer = Layer::at(&args.layer);
    let captured = match kept {
        // If this fails, the upper stays in its directory.
        Some(upper) => upper.capture(&capture, &layer, meta)?,
        None => {
            let _lock = Upper::lock_run_of(&args.upper)?;
            Upper::refuse_destination(&args.layer)?;
            capture.into_layer(&args.upper, &layer, meta)?
        }
    };
    tell(args, &captured)
}

/// The commit of a kept run whose upper is gone: if it was killed after it had moved the upper, the rest of it is done.
fn repeat(args: &Args) -> anyhow::Result<ExitCode> {
    let upper = args.upper.join("upper");
    let finished = Capture::new([""; 0]).into_layer(upper, &Layer::at(&args.layer), Meta::new("", SystemTime::now()));
    let exists = args.upper.symlink_metadata().is_ok();
    match finished {
        Ok(captured) => {
            if exists {
                Upper::discard(&args.upper)?;
            }
            tell(args, &captured)
        }
        Err(error) if exists => Err(error.into()),
        Err(_) => bail!("{} does not exist", quoted(&args.upper)),
    }
}

fn tell(args: &Args, captured: &Captured) -> anyhow::Result<ExitCode> {
    let (size, entries) = (table::bytes(captured.size.bytes), captured.size.entries);
    let made = match captured.taken_out {
        0 => String::new(),
        taken_out => format!("; {taken_out} that the run had made were removed"),
    };
    writeln!(io::stdout(), "{}: {size} in {entries} entries{made}", quoted(&args.layer))?;
    Ok(ExitCode::SUCCESS)
}

/// The part of a report that a capture needs.
#[derive(Debug, Deserialize)]
struct ReportFile {
    capture: CaptureRecord,
}

fn of_report(path: &Path) -> anyhow::Result<CaptureRecord> {
    let Some(text) = layer::read_regular_file(path)? else { bail!("cannot read {}: it does not exist", quoted(path)) };
    parse_report(&text).with_context(|| format!("{} is not the report of a run that came to a result", quoted(path)))
}

fn parse_report(text: &[u8]) -> serde_json::Result<CaptureRecord> {
    Ok(serde_json::from_slice::<ReportFile>(text)?.capture)
}

fn of_stack(base: &Base, layers: &[Layer]) -> anyhow::Result<CaptureRecord> {
    let parent_hashes = layers.iter().map(Layer::hash).collect();
    let meta = Meta { parent_hashes, ..Meta::new(base.hash(), SystemTime::now()) };
    Ok(CaptureRecord::of_stack(base, layers, meta)?)
}

/// Reads a JSON object that the caller has named: from a file, or from a pipe.
fn read(path: &Path) -> anyhow::Result<Map<String, Value>> {
    serde_json::from_slice(&read_given(path)?).with_context(|| format!("{} is not a JSON object", quoted(path)))
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

    use proptest::prelude::*;

    use crate::mutated;

    fn valid() -> Value {
        let meta = Meta::new("debian", UNIX_EPOCH);
        json!({"capture": {"lowers": ["/a", [47, 255]], "made": [], "xattrs": "user", "meta": meta}, "status": {"exited": 0}})
    }

    proptest! {
        #![proptest_config(mutated::config())]

        #[test]
        fn reports_of_any_shape(value in mutated::value(valid()), text in mutated::bytes([valid().to_string()])) {
            for text in [value.to_string().into_bytes(), text] {
                if let Ok(record) = parse_report(&text) {
                    let again = json!({"capture": record}).to_string();
                    prop_assert!(parse_report(again.as_bytes()).is_ok());
                }
            }
        }

        #[test]
        fn keys_of_any_shape(keys in mutated::value(json!({"uid": 1, "timing": {"build": 2}, "colour": ["blue"], "failed_dep": "a"}))) {
            let Value::Object(keys) = keys else { return Ok(()) };
            let colour = keys.get("colour").cloned();
            if let Ok(meta) = with_keys(&Meta::new("debian", UNIX_EPOCH), keys) {
                prop_assert_eq!(meta.extra.get("colour").cloned(), colour);
                prop_assert_eq!(meta.base_hash, "debian");
            }
        }

        #[test]
        fn times_of_any_text(text in mutated::text(["1769903999"])) {
            if let Ok(time) = epoch(None, Some(text)) {
                prop_assert!(time >= UNIX_EPOCH);
            }
        }
    }

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
    fn a_report_of_any_shape_is_read_or_refused() {
        let meta = serde_json::to_value(Meta::new("debian", UNIX_EPOCH)).unwrap();
        let capture = json!({"lowers": ["/a", [47, 255]], "made": [], "xattrs": "user", "meta": meta});
        let record = parse_report(json!({"capture": capture, "more": 1}).to_string().as_bytes()).unwrap();
        let mut written = serde_json::to_value(&record).unwrap();
        assert_eq!(written.as_object_mut().unwrap().remove("upper"), Some(Value::Null));
        assert_eq!(written, capture);
        let mut wrong_namespace = capture.clone();
        wrong_namespace["xattrs"] = "security".into();
        for text in ["[]", "1", "\"x\"", "null", "{}", "{\"capture\":[]}", "{\"capture\":null}", "", "{"] {
            assert!(parse_report(text.as_bytes()).is_err(), "{text}");
        }
        assert!(parse_report(json!({"capture": wrong_namespace}).to_string().as_bytes()).is_err());
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
