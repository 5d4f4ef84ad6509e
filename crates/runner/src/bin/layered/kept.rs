//! What a kept run records beside its upper: enough for `layered shell` to open it and for `layered
//! commit` to capture it.
//!
//! [`run`](crate::run) writes the record. `runner::Upper` decides which directory is a kept run.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf, absolute};
use std::time::SystemTime;

use anyhow::{Context, anyhow, bail};
use container::Template;
use layer::display::quoted;
use layer::json_path::JsonPath;
use layer::{Base, Layer, Meta};
use runner::{CaptureRecord, Cause, CommandRecord, Upper};
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::stack::is_bare;
use crate::{complain, defaults, table};

/// The name of the description, beside the upper.
const DESCRIPTION: &str = "run.json";

/// The name of the file that replaces the description after the run. Its room is reserved before
/// the command runs.
const SPARE: &str = ".run.json";

/// Room for the result of the run in the description: its timings and the files that it created.
const RESULT_BYTES: u64 = 64 << 10;

/// The stack and the template of a run.
#[derive(Debug)]
pub(crate) struct KeptRun {
    pub(crate) base: Base,
    pub(crate) layers: Vec<Layer>,
    pub(crate) template: Template,
}

/// The content of the file.
#[derive(Debug, Serialize, Deserialize)]
struct Description {
    /// How the command ended, for people to read. Null while the command runs.
    #[serde(default)]
    status: Value,
    #[serde(default)]
    kept_at: Value,
    base: JsonPath,
    /// Whether the base is a root file system that is not in a directory `fs`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    base_is_tree: bool,
    layers: Vec<JsonPath>,
    config: Value,
    capture: CaptureRecord,
    /// Null while the command runs.
    #[serde(default)]
    command: Option<CommandRecord>,
}

/// What a commit needs of a kept run.
#[derive(Debug)]
pub(crate) struct Records {
    pub(crate) capture: CaptureRecord,
    pub(crate) command: Option<CommandRecord>,
}

/// A kept run in a list of them.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) dir: PathBuf,
    /// How the command ended, when, and the command itself. Null or empty if the run has no
    /// description, or ended before it was written.
    pub(crate) status: Value,
    pub(crate) kept_at: Value,
    pub(crate) argv: Vec<String>,
}

/// The arguments that name a kept run.
#[derive(Debug, clap::Args)]
pub(crate) struct KeptArgs {
    /// Directory of the kept run, or its name in --scratch.
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Directory in which to look up RUN, if RUN is a bare name.
    ///
    /// The default is $LAYERED_SCRATCH. If that is not set, layered looks in $LAYERED_STORE and
    /// then in $TMPDIR or /tmp.
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
}

impl KeptArgs {
    /// Returns the directory of the kept run.
    pub(crate) fn dir(&self) -> PathBuf {
        find(&self.run, self.scratch.as_deref())
    }

    /// Opens the upper for this process alone.
    pub(crate) fn reopen(&self) -> anyhow::Result<Upper> {
        Upper::reopen(self.dir()).map_err(advised)
    }

    /// Deletes the kept run.
    pub(crate) fn discard(&self) -> anyhow::Result<()> {
        Upper::discard(self.dir()).map_err(advised)
    }
}

/// Returns the path of a kept run, which can also be its name in a scratch directory. Any other
/// path is unchanged.
pub(crate) fn find(run: &Path, scratch: Option<&Path>) -> PathBuf {
    if !is_bare(run) || run.symlink_metadata().is_ok() || !Upper::is_kept_name(run) {
        return run.into();
    }
    let dirs = defaults::kept_runs(scratch);
    dirs.iter().map(|dir| dir.join(run)).find(|run| run.symlink_metadata().is_ok()).unwrap_or_else(|| run.into())
}

/// Returns an error about a kept run with the command that lists them.
fn advised(error: runner::Error) -> anyhow::Error {
    match error.cause() {
        Cause::NotKept { path } => {
            anyhow!(
                "{} is not a kept run; `layered ls --kept` lists the kept runs of a scratch directory",
                quoted(path)
            )
        }
        _ => error.into(),
    }
}

impl KeptRun {
    /// Writes the description beside the `upper` of a run that starts now. It already has what a
    /// capture needs, in case the command fails and leaves a full disk.
    pub(crate) fn write(&self, upper: &Path) -> anyhow::Result<()> {
        let dir = crate::stack::parent(upper);
        // Only a failed run is kept.
        let meta = Meta {
            exit_status: 1,
            parent_hashes: self.layers.iter().map(Layer::hash).collect(),
            // The number of a user name is known only after the stack is mounted.
            uid: self.template.user().0,
            gid: self.template.user().1,
            ..Meta::new(self.base.hash(), SystemTime::now())
        };
        let path = |path: &Path| Ok::<_, io::Error>(JsonPath(absolute(path)?));
        let text = to_text(&Description {
            status: Value::Null,
            kept_at: Value::Null,
            base: path(self.base.path())?,
            base_is_tree: self.base.is_tree(),
            layers: self.layers.iter().map(|layer| path(layer.path())).collect::<Result<_, _>>()?,
            config: serde_json::to_value(&self.template)?,
            capture: CaptureRecord::of_stack(&self.base, &self.layers, meta)?.of_upper(upper)?,
            command: None,
        })?;
        let mut file = create(&dir.join(DESCRIPTION))?;
        file.write_all(&text).with_context(|| format!("cannot write {}", quoted(&dir.join(DESCRIPTION))))?;
        // The record of the command repeats parts of the configuration.
        reserve(&create(&dir.join(SPARE))?, 2 * text.len() as u64 + RESULT_BYTES)
            .with_context(|| format!("cannot reserve room for {}", quoted(&dir.join(SPARE))))
    }

    /// Reads the description in `dir`, the directory of a kept run.
    pub(crate) fn read(dir: &Path) -> anyhow::Result<Self> {
        let description = read(dir)?;
        let config = Template::from_value(description.config);
        let base = if description.base_is_tree { Base::of_tree } else { Base::open };
        Ok(Self {
            base: base(description.base.0)?,
            layers: description.layers.into_iter().map(|JsonPath(path)| Layer::open(path)).collect::<Result<_, _>>()?,
            template: config.with_context(|| not_a_description(dir))?,
        })
    }
}

/// Adds the result of the run to the description in `dir`, the directory of the kept run.
pub(crate) fn add_result(dir: &Path, status: Value, records: Records) {
    let add = || {
        let kept_at = table::timestamp(SystemTime::now()).into();
        let Records { capture, command } = records;
        let text = to_text(&Description { status, kept_at, capture, command, ..read(dir)? })?;
        let spare = dir.join(SPARE);
        let mut file = OpenOptions::new().write(true).custom_flags(NOFOLLOW).open(&spare)?;
        file.write_all(&text)?;
        file.set_len(text.len() as u64)?;
        Ok::<_, anyhow::Error>(fs::rename(&spare, dir.join(DESCRIPTION))?)
    };
    if let Err(error) = add() {
        // The first description is enough for `shell` and `commit`.
        complain(format_args!("cannot record the status of the command in {}: {error:#}", quoted(dir)));
    }
}

/// Returns what a commit needs from the description in `dir`, the directory of a kept run.
pub(crate) fn records(dir: &Path) -> anyhow::Result<Records> {
    let Description { capture, command, .. } = read(dir)?;
    Ok(Records { capture, command })
}

/// Lists the kept runs of this user in a scratch directory, in any order.
pub(crate) fn list(scratch: &Path) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(scratch)? {
        let dir = entry?.path();
        // In /tmp, any user can create such a directory. One may go while this function looks.
        let is_own = |metadata: fs::Metadata| metadata.is_dir() && metadata.uid() == geteuid().as_raw();
        if !Upper::is_kept_name(&dir) || !dir.symlink_metadata().is_ok_and(is_own) {
            continue;
        }
        let (status, kept_at, argv) = match read(&dir) {
            Ok(Description { status, kept_at, config, .. }) => {
                let argv = serde_json::from_value(config["process"]["args"].clone());
                (status, kept_at, argv.unwrap_or_default())
            }
            // A library caller that keeps an upper writes no description.
            Err(_) => (Value::Null, Value::Null, Vec::new()),
        };
        found.push(Found { dir, status, kept_at, argv });
    }
    Ok(found)
}

impl Found {
    /// Returns a key that sorts kept runs, the latest last: the form of the times sorts by time.
    pub(crate) fn order(&self) -> impl Ord + use<> {
        (self.kept_at.to_string(), self.dir.clone())
    }
}

fn read(dir: &Path) -> anyhow::Result<Description> {
    let path = dir.join(DESCRIPTION);
    match layer::read_regular_file(&path)? {
        Some(text) => serde_json::from_slice(&text).with_context(|| not_a_description(dir)),
        None => bail!("the kept run {} has no run.json, which records its stack", quoted(dir)),
    }
}

fn not_a_description(dir: &Path) -> String {
    format!("{} does not describe a run", quoted(&dir.join(DESCRIPTION)))
}

fn to_text(description: &Description) -> serde_json::Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(description)?;
    text.push(b'\n');
    Ok(text)
}

const NOFOLLOW: i32 = rustix::fs::OFlags::NOFOLLOW.bits() as i32;

fn create(path: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).custom_flags(NOFOLLOW).open(path);
    file.with_context(|| format!("cannot create {}", quoted(path)))
}

/// Reserves `bytes` bytes for a file, if its file system can do that.
pub(crate) fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    use rustix::io::Errno;
    match fallocate(file, FallocateFlags::KEEP_SIZE, 0, bytes) {
        Err(errno @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG | Errno::IO)) => Err(errno.into()),
        // Pipes, terminals and some file systems cannot reserve room.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::test_runner::TestRunner;

    use super::*;
    use crate::mutated;

    #[test]
    fn descriptions_of_any_content_are_read_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["base/fs", "layer/fs", "kept/upper"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        let kept = dir.path().join("kept");
        let run = KeptRun {
            base: Base::open(dir.path().join("base")).unwrap(),
            layers: vec![Layer::open(dir.path().join("layer")).unwrap()],
            template: Template::builder(["make"]).build().unwrap(),
        };
        run.write(&kept.join("upper")).unwrap();
        assert_eq!(KeptRun::read(&kept).unwrap().layers, run.layers);
        let tree = Base::of_tree(dir.path().join("base")).unwrap();
        let over_tree = KeptRun { base: tree.clone(), layers: Vec::new(), template: run.template.clone() };
        fs::create_dir_all(dir.path().join("other/upper")).unwrap();
        over_tree.write(&dir.path().join("other/upper")).unwrap();
        assert_eq!(KeptRun::read(&dir.path().join("other")).unwrap().base, tree);
        let valid = fs::read(kept.join(DESCRIPTION)).unwrap();
        let value: Value = serde_json::from_slice(&valid).unwrap();
        let read = |text: &[u8]| {
            fs::write(kept.join(DESCRIPTION), text).unwrap();
            // The result does not matter, but there must be no panic.
            let _ = (KeptRun::read(&kept), records(&kept));
            Ok(())
        };
        TestRunner::new(mutated::config()).run(&mutated::bytes([valid]), |text| read(&text)).unwrap();
        let shapes = mutated::value(value);
        TestRunner::new(mutated::config()).run(&shapes, |value| read(value.to_string().as_bytes())).unwrap();
        for text in ["", "[]", "1", "\"x\"", "null", "true", "{}"] {
            fs::write(kept.join(DESCRIPTION), text).unwrap();
            let error = KeptRun::read(&kept).unwrap_err().to_string();
            assert!(error.ends_with("run.json does not describe a run"), "{error}");
        }
    }
}
