use std::path::Path;
use std::time::SystemTime;

use container::{Excerpt, Status, Usage};
use layer::{Capture, Hold, Made, Merged, Meta, Plan, Timing, XattrNamespace};
use serde_json::{Value, json};

use crate::error::chain;
use crate::{Removal, Timings, Upper};

/// What came of a run. While it is there no collector takes the layers that it was made over.
#[derive(Debug)]
#[non_exhaustive]
#[must_use = "the upper is deleted when the report is dropped"]
pub struct Report {
    /// How the command ended. One that failed is a result too.
    pub status: Status,
    /// What it wrote, the caller's from now on.
    pub upper: Upper,
    /// How long each phase took, in order.
    pub timings: Timings,
    /// What was stacked, what merged, and how it was mounted.
    pub plan: Plan,
    /// What the merge did, if there was one.
    pub merged: Option<Merged>,
    /// The removal of all but the upper, if it goes on [behind](crate::Cleanup::Behind) the caller's back. Dropped with the report,
    /// it is waited for.
    pub removal: Option<Removal>,
    /// What the run itself put into the upper, parents first, by its path in the container: `/etc/hosts` and the like, and what
    /// the template's mounts stand on. With a template that mounts nothing on `/dev`, the runtime makes its device nodes in the
    /// upper, which is not told.
    pub made: Vec<Made>,
    pub(crate) origin: Origin,
    /// The layers stay for as long as this is there: whoever captures the upper needs them.
    pub(crate) _hold: Option<Hold>,
    /// The excerpt of standard output, if it was captured.
    pub stdout: Option<Excerpt>,
    /// The excerpt of standard error, if it was captured.
    pub stderr: Option<Excerpt>,
    /// What the command used.
    pub usage: Usage,
}

/// What the upper was made over, and by whom.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) base_hash: String,
    /// The names of the layers, topmost first.
    pub(crate) parent_hashes: Vec<String>,
    pub(crate) user: (u32, u32),
    pub(crate) xattrs: XattrNamespace,
}

impl Report {
    /// What makes a layer of the upper: it knows the lowers and what the run [made](Self::made). `run` itself captures nothing:
    /// see [`Upper::capture`].
    pub fn capture(&self) -> Capture {
        Capture::new(self.lowers()).made(self.made.iter().cloned()).xattrs(self.origin.xattrs)
    }

    /// A `layer.json` for the upper, as far as the run knows: the names of the layers and the hash of the base, the user and the
    /// group, the timings, and the status as a shell would see it: 128+n for signal n, 124 after the time limit, 137 without
    /// memory, 143 otherwise.
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

    /// The trees of the stack as it was planned, before anything was merged.
    fn lowers(&self) -> impl Iterator<Item = &Path> {
        let layers = self.plan.separate.iter().chain(&self.plan.merged);
        layers.chain([&self.plan.base]).map(|tree| tree.as_path())
    }

    /// The report as one JSON object:
    /// `{"status":{"exited":0},"upper":PATH,"timings":{NAME:SECONDS…},"plan":{"rung":…,"separate":N,"merged":N},"merge":{"linked":N,"copied":N},"made":[PATH…],"usage":{…},"capture":{…}}`.
    ///
    /// A path that is not UTF-8 is written with replacement characters. `merge` is null if nothing was merged. `usage` has
    /// `cpu_seconds` and `peak_memory_bytes`, null where the machine's controllers do not tell them, `out_of_memory`, and
    /// `upper_bytes` and `upper_entries`, for which the upper is [measured](Upper::measure). `capture` has what `layered commit --run`
    /// needs: `lowers`, topmost first, `made`, `xattrs` (`trusted` or `user`) and `meta`, a `layer.json`.
    pub fn to_json(&self) -> Value {
        let size = self.upper.measure().inspect_err(|error| log::warn!("{}", chain(error))).ok();
        json!({
            "status": self.status,
            "upper": self.upper.path().to_string_lossy(),
            "timings": self.timings,
            "plan": {
                "rung": self.plan.rung.to_string(),
                "separate": self.plan.separate.len(),
                "merged": self.plan.merged.len(),
            },
            "merge": self.merged.as_ref().map(|merged| json!({"linked": merged.linked, "copied": merged.copied})),
            "made": self.made.iter().map(|made| made.path().to_string_lossy()).collect::<Vec<_>>(),
            "usage": {
                "cpu_seconds": self.usage.cpu_time.map(|time| time.as_secs_f64()),
                "peak_memory_bytes": self.usage.peak_memory_bytes,
                "out_of_memory": self.usage.out_of_memory,
                "upper_bytes": size.map(|size| size.bytes),
                "upper_entries": size.map(|size| size.entries),
            },
            "capture": {
                "lowers": self.lowers().map(|tree| tree.to_string_lossy()).collect::<Vec<_>>(),
                // JSON has no place for a name that is not UTF-8: what has one stays in the layer.
                "made": self.made.iter().filter_map(|made| serde_json::to_value(made).ok()).collect::<Vec<_>>(),
                "xattrs": match self.origin.xattrs {
                    XattrNamespace::Trusted => "trusted",
                    XattrNamespace::User => "user",
                },
                "meta": self.meta(),
            },
        })
    }
}
