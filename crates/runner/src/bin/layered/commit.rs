//! `layered commit`: decides what was below an upper and which `layer.json` the new layer gets.
//!
//! `layer::Capture` turns the upper into the layer. [`kept`] has the record of a kept run.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use layer::display::quoted;
use layer::oci::record_digest;
use layer::{Base, Capture, Captured, Existing, Layer, Meta, Step};
use runner::{CaptureRecord, CommandRecord, Upper};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::access::AccessArgs;
use crate::kept::{self, Records};
use crate::place::{Place, advised};
use crate::progress::Progress;
use crate::stack::{BaseArgs, LayerArgs, read_object};
use crate::table;

/// Turn an upper directory into a layer.
///
/// Moves UPPER, the directory that `layered run --upper` kept, to LAYER/fs on the same file system.
/// UPPER can also be LAYER/fs already. LAYER is created if it does not exist.
///
/// The new layer fits into any stack. It contains only what the command wrote: overlay xattrs and
/// the files that the run itself created are removed. A directory that the command deleted and
/// created again hides exactly the entries that it replaced, by one whiteout for each.
///
/// layer.json is written last. After a power failure or a kill, the layer is therefore complete or
/// absent. After a kill, the commit can be repeated.
///
/// commit needs the stack that was below the upper. Pass the report of the run (--run), or pass
/// --base and --layer. A kept run records its own stack. A report and a kept run also record the
/// command, which commit writes to run.json. A run.json that LAYER already has stays as it is.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
#[command(group = clap::ArgGroup::new("below").args(["run", "base", "rootfs"]))]
pub(crate) struct Args {
    /// Upper directory, or a kept run: its directory or its name.
    ///
    /// layered looks up the name in $LAYERED_SCRATCH. If that is not set, it looks in
    /// $LAYERED_STORE and then in $TMPDIR or /tmp.
    ///
    /// An upper must not be mounted. The commit of a kept run deletes the rest of its directory.
    upper: PathBuf,
    /// Directory of the layer: new, or without a layer.json.
    layer: PathBuf,
    /// Report of the run, from its --json.
    ///
    /// The report says what was below the upper and which files the run itself created in it. It
    /// also has most keys of layer.json.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["layers", "layers_from"])]
    run: Option<PathBuf>,
    #[command(flatten)]
    base: BaseArgs,
    #[command(flatten)]
    layers: LayerArgs,
    /// JSON object with keys for layer.json.
    ///
    /// They replace those of the report or the defaults: exit_status, parent_hashes, uid, gid,
    /// base_hash, timing, failed_dep. Other keys are added. FILE can be a pipe.
    #[arg(long, value_name = "FILE")]
    meta: Option<PathBuf>,
    #[command(flatten)]
    access: AccessArgs,
    /// Replace the existing LAYER if its command failed.
    ///
    /// The new layer takes the place of the old one in one step. Without --mode and --group, it has
    /// the mode and group of the old one. A layer is never replaced if its command succeeded, if a
    /// run uses it, or if it is the base of other layers. Unlike a plain commit, this one can lose
    /// the upper. If layered is killed before it has finished, the upper may be left in the store's
    /// `.layered/new`, and the next `layered gc` deletes it.
    #[arg(long)]
    replace: bool,
    /// Record the digest of the layer in its digest.json, so that `layered verify` finds damage.
    #[arg(long)]
    digest: bool,
    /// Clamp modification times to SECONDS since 1970.
    ///
    /// Later times become this time, so that a repeated build results in the same tree. Without
    /// SECONDS, the time is that of SOURCE_DATE_EPOCH in the environment.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true)]
    source_date_epoch: Option<Option<u64>>,
}

const AFTER_HELP: &str = "\
Examples:
  layered run --base debian --layer gcc --upper upper --json report.json -- make install
  layered commit upper store/hello --run report.json
  layered commit upper store/hello --run report.json --meta meta.json --source-date-epoch
  layered commit store/hello/fs store/hello --base debian --layer gcc
  layered commit scratch/kept-0123456789abcdef store/fixed";

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let upper = &*kept::find(&args.upper, None);
    let kept = match Upper::is_kept_name(upper) {
        true if args.run.is_some() || args.base.is_given() => {
            bail!("{} is a kept run, which records what was below it; leave out --run and --base", quoted(upper))
        }
        true if upper.join("upper").symlink_metadata().is_err() => return repeat(args, upper),
        true => Some(Upper::reopen(upper)?),
        false => None,
    };
    let Records { capture, command } = match (&kept, &args.run, args.base.open()?) {
        (Some(_), ..) => kept::records(upper)?,
        (None, Some(report), _) => of_report(report)?,
        (None, None, Some(base)) => {
            let capture = of_stack(&base, &args.layers.open()?)?.with_xattrs(runner::xattrs_of_upper(upper)?);
            Records { capture, command: None }
        }
        (None, None, None) => {
            bail!("cannot commit {}: layered has to be told what was below it; pass --run or --base", quoted(upper))
        }
    };
    let (capture, meta) = capture.into_capture();
    let mut capture = with_command(capture, command)?;
    let meta = match &args.meta {
        Some(path) => {
            let keys = read_object(path)?;
            with_keys(&meta, keys).with_context(|| format!("cannot use {} as keys of a layer.json", quoted(path)))?
        }
        None => meta,
    };
    if let Some(seconds) = args.source_date_epoch {
        capture = capture.clamp_times(epoch(seconds, std::env::var("SOURCE_DATE_EPOCH").ok())?);
    }
    let access = args.access.get()?;
    let layer = Layer::at(&args.layer);
    let progress = Progress::begin("preparing the capture");
    let show = |step| progress.tell(|| doing(step).into());
    capture = capture.progress(&show);
    let replaced = args.replace && layer.meta_path().symlink_metadata().is_ok();
    let captured = if replaced {
        let place = Place::of(&args.layer)?;
        place.check_new(Existing::ReplacedIfFailed)?;
        let Place { store, name } = &place;
        let draft = store.draft()?.existing(Existing::ReplacedIfFailed).access(access);
        match kept {
            Some(upper) => upper.publish(&capture, draft, name, meta)?,
            None => {
                let _lock = Upper::lock_run_of(upper)?;
                capture.publish(upper, draft, name, meta).map_err(advised)?
            }
        }
    } else {
        if let Some(access) = access {
            capture = capture.access(access);
        }
        match kept {
            // On an error, the upper stays in its directory.
            Some(upper) => upper.capture(&capture, &layer, meta)?,
            None => {
                let _lock = Upper::lock_run_of(upper)?;
                Upper::refuse_destination(&args.layer)?;
                capture.into_layer(upper, &layer, meta)?
            }
        }
    };
    drop(progress);
    report(args, &captured)
}

fn doing(step: Step) -> &'static str {
    match step {
        Step::TakeOut => "removing what the run itself created",
        Step::Settle => "reading the upper",
        Step::Stage | Step::Sync => "syncing the file system",
        _ => "moving the tree",
    }
}

/// Repeats the commit of a kept run that has no upper any more. If an earlier commit was killed
/// after it had moved the upper, this one completes it.
fn repeat(args: &Args, dir: &Path) -> anyhow::Result<ExitCode> {
    let upper = dir.join("upper");
    let finished = Capture::new([""; 0]).xattrs(runner::xattrs_of_process()).into_layer(
        upper,
        &Layer::at(&args.layer),
        Meta::new("", SystemTime::now()),
    );
    let exists = dir.symlink_metadata().is_ok();
    match finished {
        Ok(captured) => {
            if exists {
                Upper::discard(dir)?;
            }
            report(args, &captured)
        }
        Err(error) if exists => Err(error.into()),
        Err(_) => bail!("{} does not exist", quoted(dir)),
    }
}

fn report(args: &Args, captured: &Captured) -> anyhow::Result<ExitCode> {
    if args.digest {
        record_digest(&Layer::at(&args.layer), runner::xattrs_of_process())?;
    }
    let (size, entries) = (table::bytes(captured.size.bytes), captured.size.entries);
    let made = match captured.taken_out {
        0 => String::new(),
        taken_out => format!("; removed {taken_out} that the run itself had created"),
    };
    writeln!(io::stdout(), "{}: {size} in {}{made}", quoted(&args.layer), table::entries(entries))?;
    Ok(ExitCode::SUCCESS)
}

/// Returns a capture that also writes the sidecar of what was run.
fn with_command<'a>(capture: Capture<'a>, command: Option<CommandRecord>) -> anyhow::Result<Capture<'a>> {
    Ok(match command {
        Some(command) => capture.sidecar(CommandRecord::SIDECAR, serde_json::to_value(command)?),
        None => capture,
    })
}

/// The part of a report that a commit needs.
#[derive(Debug, Deserialize)]
struct ReportFile {
    capture: CaptureRecord,
    /// Absent in the reports of earlier versions.
    #[serde(default)]
    command: Option<CommandRecord>,
}

/// Returns what a capture needs from the report of a run.
pub(crate) fn of_report(path: &Path) -> anyhow::Result<Records> {
    let Some(text) = layer::read_regular_file(path)? else {
        bail!("cannot read {}: it does not exist; pass the file of the run's --json", quoted(path))
    };
    parse_report(&text).with_context(|| format!("{} is not the report of a run with a result", quoted(path)))
}

fn parse_report(text: &[u8]) -> serde_json::Result<Records> {
    let ReportFile { capture, command } = serde_json::from_slice(text)?;
    Ok(Records { capture, command })
}

fn of_stack(base: &Base, layers: &[Layer]) -> anyhow::Result<CaptureRecord> {
    let parent_hashes = layers.iter().map(Layer::hash).collect();
    let meta = Meta { parent_hashes, ..Meta::new(base.hash(), SystemTime::now()) };
    Ok(CaptureRecord::of_stack(base, layers, meta)?)
}

/// Returns `meta` with `keys` of its JSON replaced or added.
fn with_keys(meta: &Meta, keys: Map<String, Value>) -> serde_json::Result<Meta> {
    let mut value = serde_json::to_value(meta)?;
    for (key, given) in keys {
        value[key] = given;
    }
    serde_json::from_value(value)
}

/// Returns the time of `--source-date-epoch`: the given seconds, or else those of the variable.
fn epoch(given: Option<u64>, variable: Option<String>) -> anyhow::Result<SystemTime> {
    let seconds = match (given, variable) {
        (Some(seconds), _) => seconds,
        (None, Some(text)) => {
            text.parse().ok().with_context(|| format!("SOURCE_DATE_EPOCH is {text:?}; set it to seconds since 1970"))?
        }
        (None, None) => bail!("--source-date-epoch without SECONDS needs SOURCE_DATE_EPOCH in the environment"),
    };
    UNIX_EPOCH
        .checked_add(Duration::from_secs(seconds))
        .with_context(|| format!("{seconds} seconds since 1970 are beyond the latest time"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    use crate::mutated;

    fn valid() -> Value {
        let meta = Meta::new("debian", UNIX_EPOCH);
        json!({"capture": {"lowers": ["/a", [47, 255]], "made": [], "xattrs": "user", "meta": meta}, "command": {"argv": ["make"]}, "status": {"exited": 0}})
    }

    proptest! {
        #![proptest_config(mutated::config())]

        #[test]
        fn a_report_of_any_shape_round_trips_or_is_refused(value in mutated::value(valid()), text in mutated::bytes([valid().to_string()])) {
            for text in [value.to_string().into_bytes(), text] {
                if let Ok(Records { capture, command }) = parse_report(&text) {
                    let again = json!({"capture": capture, "command": command}).to_string();
                    prop_assert!(parse_report(again.as_bytes()).is_ok());
                }
            }
        }

        #[test]
        fn keys_of_any_shape_are_added_or_refused(keys in mutated::value(json!({"uid": 1, "timing": {"build": 2}, "colour": ["blue"], "failed_dep": "a"}))) {
            let Value::Object(keys) = keys else { return Ok(()) };
            let colour = keys.get("colour").cloned();
            if let Ok(meta) = with_keys(&Meta::new("debian", UNIX_EPOCH), keys) {
                prop_assert_eq!(meta.extra.get("colour").cloned(), colour);
                prop_assert_eq!(meta.base_hash, "debian");
            }
        }

        #[test]
        fn a_source_date_epoch_of_any_text_is_after_1970_or_refused(text in mutated::text(["1769903999"])) {
            if let Ok(time) = epoch(None, Some(text)) {
                prop_assert!(time >= UNIX_EPOCH);
            }
        }
    }

    #[test]
    fn the_callers_keys_replace_known_ones_and_are_added_otherwise() {
        let meta = Meta { parent_hashes: vec!["a".into()], ..Meta::new("debian", UNIX_EPOCH) };
        let Value::Object(keys) = json!({"uid": 1000, "timing": {"build": 2}, "colour": "blue"}) else { panic!() };
        let changed = with_keys(&meta, keys).unwrap();
        assert_eq!((changed.uid, changed.gid, changed.timing.seconds("build")), (1000, 0, Some(2.0)));
        assert_eq!((changed.extra["colour"].as_str(), changed.parent_hashes), (Some("blue"), vec!["a".to_string()]));
        let Value::Object(keys) = json!({"uid": "root"}) else { panic!() };
        assert!(with_keys(&meta, keys).is_err());
    }

    #[test]
    fn a_report_without_a_valid_capture_is_refused() {
        let meta = serde_json::to_value(Meta::new("debian", UNIX_EPOCH)).unwrap();
        let capture = json!({"lowers": ["/a", [47, 255]], "made": [], "xattrs": "user", "meta": meta});
        let record = parse_report(json!({"capture": capture, "more": 1}).to_string().as_bytes()).unwrap();
        assert_eq!(record.command, None);
        let mut written = serde_json::to_value(&record.capture).unwrap();
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
    fn the_epoch_is_the_given_one_or_that_of_the_environment() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let variable = |text: &str| Some(text.to_string());
        assert_eq!(epoch(Some(7), variable("8")).unwrap(), at(7));
        assert_eq!(epoch(None, variable("8")).unwrap(), at(8));
        assert!(epoch(None, None).is_err() && epoch(None, variable("soon")).is_err());
        assert!(epoch(Some(u64::MAX), None).is_err());
    }
}
