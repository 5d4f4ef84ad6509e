use std::path::Path;
use std::time::SystemTime;

use container::{Excerpt, Status, Usage};
use layer::json_path::{self, JsonPath};
use layer::{Base, Capture, Layer, Made, Merged, Meta, Plan, Timing, UpperId, XattrNamespace};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{Cause, chain};
use crate::stack::absolute;
use crate::{Removal, Timings, Upper};

/// The outcome of a run. No collector removes the layers below the upper for as long as the upper exists.
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
    /// The excerpt of standard output, if it was captured.
    pub stdout: Option<Excerpt>,
    /// The excerpt of standard error, if it was captured.
    pub stderr: Option<Excerpt>,
    /// Why a part of the command's output is not where it should be, if that is so: a full disk, as a rule.
    pub output_error: Option<std::io::Error>,
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
    pub fn capture(&self) -> Capture<'static> {
        let capture = Capture::new(self.lowers()).made(self.made.iter().cloned()).xattrs(self.origin.xattrs);
        match UpperId::of(self.upper.path()) {
            Ok(id) => capture.of_upper(id),
            // It says what is wrong.
            Err(_) => capture,
        }
    }

    /// A `layer.json` for the upper, as far as the run knows: the names of the layers and the hash of the base, the numbers of the
    /// user and the group, as the stack has them, the timings, and the status as a shell would see it: 128+n for signal n, 124 after the time limit, 137 without
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
    /// A path is a string, or an array of its bytes if it is not UTF-8. `merge` is null if nothing was merged. `usage` has
    /// `cpu_seconds` and `peak_memory_bytes`, null where the machine's controllers do not report them, `out_of_memory`, and
    /// `upper_bytes` and `upper_entries`, for which the upper is [measured](Upper::measure). `capture` is a [`CaptureRecord`], which
    /// `layered commit --run` needs.
    pub fn to_json(&self) -> Value {
        let size = self.upper.measure().inspect_err(|error| log::warn!("{}", chain(error))).ok();
        json!({
            "status": self.status,
            "upper": json_path::to_value(self.upper.path()),
            "timings": self.timings,
            "plan": {
                "rung": self.plan.rung.to_string(),
                "separate": self.plan.separate.len(),
                "merged": self.plan.merged.len(),
            },
            "merge": self.merged.as_ref().map(|merged| json!({"linked": merged.linked, "copied": merged.copied})),
            "made": self.made.iter().map(|made| json_path::to_value(made.path())).collect::<Vec<_>>(),
            "usage": {
                "cpu_seconds": self.usage.cpu_time.map(|time| time.as_secs_f64()),
                "peak_memory_bytes": self.usage.peak_memory_bytes,
                "out_of_memory": self.usage.out_of_memory,
                "upper_bytes": size.map(|size| size.bytes),
                "upper_entries": size.map(|size| size.entries),
            },
            "output_error": self.output_error.as_ref().map(|error| chain(error)),
            "capture": self.capture_record(),
        })
    }

    /// What a process needs that captures the upper later.
    pub fn capture_record(&self) -> CaptureRecord {
        CaptureRecord {
            upper: UpperId::of(self.upper.path()).ok(),
            lowers: self.lowers().map(|tree| JsonPath(tree.into())).collect(),
            made: Some(self.made.clone()),
            xattrs: match self.origin.xattrs {
                XattrNamespace::Trusted => Xattrs::Trusted,
                XattrNamespace::User => Xattrs::User,
            },
            meta: self.meta(),
        }
    }
}

/// All that is needed to capture an upper in another process, as it is in a report and in the description of a kept run.
///
/// `{"upper":{"inode":N,"born":[S,NS]},"lowers":[PATH…],"made":[…],"xattrs":"trusted","meta":{…}}`: the identity of the upper, the
/// trees below it, topmost first, what the run put into it, the namespace of overlay xattrs (`trusted` or `user`), and a
/// `layer.json`. `upper` and `made` may be missing: any upper will do then, and what the run made is what it has
/// [recorded](layer::RunRecord) on the upper.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaptureRecord {
    #[serde(default)]
    upper: Option<UpperId>,
    lowers: Vec<JsonPath>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    made: Option<Vec<Made>>,
    xattrs: Xattrs,
    meta: Meta,
}

/// [`XattrNamespace`] in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Xattrs {
    Trusted,
    User,
}

impl CaptureRecord {
    /// The record for an upper over this stack, with `meta` as its `layer.json`.
    ///
    /// # Errors
    /// [`Cause::Io`] if a relative path cannot be made absolute.
    pub fn of_stack(base: &Base, layers: &[Layer], meta: Meta) -> Result<Self, Cause> {
        let trees = layers.iter().map(Layer::fs).chain([base.fs()]);
        let lowers = trees.map(|tree| Ok(JsonPath(absolute(tree)?))).collect::<Result<_, Cause>>()?;
        Ok(Self { upper: None, lowers, made: None, xattrs: Xattrs::Trusted, meta })
    }

    /// The same, for the directory `upper` and no other.
    ///
    /// # Errors
    /// [`Cause::Layer`] if it cannot be looked at.
    pub fn of_upper(mut self, upper: impl AsRef<Path>) -> Result<Self, Cause> {
        self.upper = Some(UpperId::of(upper)?);
        Ok(self)
    }

    /// The capture, and the `layer.json` to go with it.
    pub fn into_capture(self) -> (Capture<'static>, Meta) {
        let xattrs = match self.xattrs {
            Xattrs::Trusted => XattrNamespace::Trusted,
            Xattrs::User => XattrNamespace::User,
        };
        let mut capture = Capture::new(self.lowers.into_iter().map(|JsonPath(path)| path)).xattrs(xattrs);
        if let Some(made) = self.made {
            capture = capture.made(made);
        }
        if let Some(id) = self.upper {
            capture = capture.of_upper(id);
        }
        (capture, self.meta)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mutated;

    fn valid() -> Value {
        let meta = Meta { parent_hashes: vec!["a".into()], ..Meta::new("debian", SystemTime::UNIX_EPOCH) };
        json!({
            "upper": {"inode": 7, "born": [1, 2]},
            "lowers": ["/store/a/fs", [47, 255], "/base/fs"],
            "made": [],
            "xattrs": "user",
            "meta": meta,
        })
    }

    #[test]
    fn a_record_comes_back() {
        let record: CaptureRecord = serde_json::from_value(valid()).unwrap();
        assert_eq!(serde_json::to_value(record).unwrap(), valid());
    }

    proptest! {
        #![proptest_config(mutated::config())]

        #[test]
        fn records_of_any_shape(value in mutated::value(valid()), text in mutated::bytes([valid().to_string()])) {
            for text in [value.to_string().into_bytes(), text] {
                let Ok(record) = serde_json::from_slice::<CaptureRecord>(&text) else { continue };
                let again: CaptureRecord = serde_json::from_str(&serde_json::to_string(&record).unwrap()).unwrap();
                prop_assert_eq!(&again.lowers, &record.lowers);
                prop_assert_eq!(again.into_capture().1.base_hash, record.into_capture().1.base_hash);
            }
        }
    }
}
