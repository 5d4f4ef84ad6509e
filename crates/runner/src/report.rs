use std::path::PathBuf;

use container::{Excerpt, Status, Usage};
use layer::{Merged, Plan};
use serde_json::{Value, json};

use crate::error::chain;
use crate::{Removal, Timings, Upper};

/// What came of a run.
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
    /// What the run itself put into the upper, as absolute paths in the container, parents first: `/etc/hosts` and the like,
    /// and what the template's binds are mounted on. What the runtime made for its own mounts is not told.
    pub made: Vec<PathBuf>,
    /// The excerpt of standard output, if it was captured.
    pub stdout: Option<Excerpt>,
    /// The excerpt of standard error, if it was captured.
    pub stderr: Option<Excerpt>,
    /// What the command used.
    pub usage: Usage,
}

impl Report {
    /// The report as one JSON object:
    /// `{"status":{"exited":0},"upper":PATH,"timings":{NAME:SECONDS…},"plan":{"rung":…,"separate":N,"merged":N},"merge":{"linked":N,"copied":N},"made":[PATH…],"usage":{…}}`.
    ///
    /// A path that is not UTF-8 is written with replacement characters. `merge` is null if nothing was merged. `usage` has
    /// `cpu_seconds` and `peak_memory_bytes`, null where the machine's controllers do not tell them, `out_of_memory`, and
    /// `upper_bytes` and `upper_entries`, for which the upper is [measured](Upper::measure).
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
            "made": self.made.iter().map(|path| path.to_string_lossy()).collect::<Vec<_>>(),
            "usage": {
                "cpu_seconds": self.usage.cpu_time.map(|time| time.as_secs_f64()),
                "peak_memory_bytes": self.usage.peak_memory_bytes,
                "out_of_memory": self.usage.out_of_memory,
                "upper_bytes": size.map(|size| size.bytes),
                "upper_entries": size.map(|size| size.entries),
            },
        })
    }
}
