//! The outcome of a run, and its forms as JSON and as a `layer.json`.
//!
//! Its `capture` object, which other processes read, is in `capture_record`.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use container::{Excerpt, Status, Usage};
use layer::json_path;
use layer::{Base, Capture, Layer, Made, Merged, Meta, Plan, Timing, XattrNamespace};
use serde_json::{Value, json};

use crate::error::chain;
use crate::{CaptureRecord, CommandRecord, Removal, Timings, Upper};

/// The outcome of a run. No collector removes the layers below the upper while the upper exists.
#[derive(Debug)]
#[non_exhaustive]
#[must_use = "the upper is deleted when the report is dropped"]
pub struct Report {
    /// How the command ended. A command that failed has a status, too.
    pub status: Status,
    /// The upper, with everything that the command wrote. The caller owns it.
    pub upper: Upper,
    /// How long each phase took, in order.
    pub timings: Timings,
    /// Which layers were stacked, which were merged, and how the overlay was mounted. The estimates
    /// of the rungs do not count the [shared](Self::shared) layers.
    pub plan: Plan,
    /// The [skeleton](layer::Skeleton) that was mounted on top of the layers of somebody else, if
    /// there were any. Later runs use it, too, and a [sweep](crate::sweep) removes it. It is not a
    /// part of the plan, and no capture needs it.
    pub skeleton: Option<PathBuf>,
    /// How many of the lowest layers of the plan were in an overlay that other runs
    /// [share](crate::Stacks). 0 if the run stacked all layers itself.
    pub shared: usize,
    /// The result of the merge, if there was one.
    pub merged: Option<Merged>,
    /// The removal of everything but the upper, if it [continues](crate::Cleanup::Behind) after the
    /// run. Dropping it, or the report with it, waits for the removal to end.
    pub removal: Option<Removal>,
    /// The entries that the run itself created in the upper, parents first, by their paths in the
    /// container: `/etc/hosts` and the like, and the mount points of the template. If the template
    /// mounts nothing on `/dev`, the runtime creates its device nodes in the upper; this list does
    /// not contain them.
    pub made: Vec<Made>,
    pub(crate) origin: Origin,
    pub(crate) command: CommandRecord,
    /// The excerpt of standard output, if it was captured.
    pub stdout: Option<Excerpt>,
    /// The excerpt of standard error, if it was captured.
    pub stderr: Option<Excerpt>,
    /// Why a part of the command's output was lost, if it was. Usually the disk is full.
    pub output_error: Option<std::io::Error>,
    /// The resources that the command used.
    pub usage: Usage,
}

/// Where the upper comes from: the layers below it, and the user who wrote it.
#[derive(Debug)]
pub(crate) struct Origin {
    base_hash: String,
    /// The names of the layers, topmost first.
    parent_hashes: Vec<String>,
    /// The IDs of the user and the group.
    user: (u32, u32),
    xattrs: XattrNamespace,
}

impl Origin {
    pub(crate) fn new(base: &Base, plan: &Plan, user: (u32, u32), xattrs: XattrNamespace) -> Self {
        // The parent of a tree is the directory of its layer, which has the layer's name.
        let dirs = plan.separate.iter().chain(&plan.merged).filter_map(|tree| tree.parent());
        let parent_hashes = dirs.map(|dir| Layer::at(dir).hash()).collect();
        Self { base_hash: base.hash().into(), parent_hashes, user, xattrs }
    }
}

impl Report {
    /// Returns a capture that turns the upper into a layer. It knows the lowers and the entries
    /// that the run [made](Self::made). `run` itself captures nothing: see
    /// [`publish`](Self::publish) and [`Upper::capture`].
    pub fn capture(&self) -> Capture<'static> {
        self.capture_record().into_capture().0
    }

    /// Returns a `layer.json` for the upper, as far as the run knows it: the names of the layers,
    /// the hash of the base, the IDs of the user and the group in the stack, the timings, and the
    /// exit status.
    ///
    /// The exit status is the command's own if the command exited. Otherwise it is 128+n for signal
    /// n, 124 after the timeout, 137 if the memory was used up, and 143 in all other cases.
    pub fn meta(&self) -> Meta {
        let exit_status = match self.status {
            Status::Exited(code) => code.into(),
            Status::Signaled(signal) => 128 + i64::from(signal),
            Status::TimedOut => 124,
            Status::OutOfMemory => 137,
            _ => 143,
        };
        Meta {
            exit_status,
            parent_hashes: self.origin.parent_hashes.clone(),
            uid: self.origin.user.0,
            gid: self.origin.user.1,
            timing: Timing::from(&self.timings),
            ..Meta::new(&self.origin.base_hash, SystemTime::now())
        }
    }

    /// Returns the trees of the planned stack, before anything was merged.
    fn lowers(&self) -> impl Iterator<Item = &Path> {
        let layers = self.plan.separate.iter().chain(&self.plan.merged);
        layers.chain([&self.plan.base]).map(|tree| tree.as_path())
    }

    /// Returns the report as one JSON object:
    /// ```json
    /// {"status":{"exited":0},"upper":PATH,"timings":{NAME:SECONDS…},
    ///  "plan":{"rung":…,"separate":N,"merged":N,"skeleton":PATH},
    ///  "merge":{"linked":N,"copied":N},"made":[PATH…],"usage":{…},"output_error":…,"capture":{…},"command":{…}}
    /// ```
    ///
    /// A path is a string, or an array of its bytes if it is not UTF-8. `skeleton` is null if all
    /// layers belong to the user. `merge` is null if nothing was merged. `output_error` is null if
    /// no output was lost.
    ///
    /// The keys of `usage` are:
    /// - `cpu_seconds` and `peak_memory_bytes`, which are null if the machine's controllers do not
    ///   report them.
    /// - `out_of_memory`.
    /// - `upper_bytes` and `upper_entries`. `to_json` [measures](Upper::measure) the upper for
    ///   these two. They are null if that fails.
    ///
    /// `capture` is a [`CaptureRecord`] and `command` a [`CommandRecord`]. `layered commit --run`
    /// needs both.
    pub fn to_json(&self) -> Value {
        let size = self.upper.measure().inspect_err(|error| log::warn!("{}", chain(error))).ok();
        let mut usage = json!(self.usage);
        usage["upper_bytes"] = json!(size.map(|size| size.bytes));
        usage["upper_entries"] = json!(size.map(|size| size.entries));
        json!({
            "status": self.status,
            "upper": json_path::to_value(self.upper.path()),
            "timings": self.timings,
            "plan": {
                "rung": self.plan.rung.to_string(),
                "separate": self.plan.separate.len(),
                "merged": self.plan.merged.len(),
                "skeleton": self.skeleton.as_ref().map(json_path::to_value),
            },
            "merge": self.merged.as_ref().map(|merged| json!({"linked": merged.linked, "copied": merged.copied})),
            "made": self.made.iter().map(|made| json_path::to_value(made.path())).collect::<Vec<_>>(),
            "usage": usage,
            "output_error": self.output_error.as_ref().map(|error| chain(error)),
            "capture": self.capture_record(),
            "command": self.command,
        })
    }

    /// Returns the record of the command: what was run, and by which runtime.
    pub fn command_record(&self) -> &CommandRecord {
        &self.command
    }

    /// Returns the record that a process needs to capture the upper later.
    pub fn capture_record(&self) -> CaptureRecord {
        let (lowers, made) = (self.lowers().map(Path::to_path_buf), self.made.clone());
        let record = CaptureRecord::of_run(self.upper.path(), lowers, made, self.origin.xattrs, self.meta());
        match self.skeleton {
            Some(_) => record.over_skeleton(),
            None => record,
        }
    }
}
