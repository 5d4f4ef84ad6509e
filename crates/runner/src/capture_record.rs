//! The `capture` object of a report and of a kept run: everything that another process needs to
//! capture the upper.
//!
//! The rest of the report is in `report`.

use std::path::{Path, PathBuf};

use container::UserNamespace;
use layer::json_path::JsonPath;
use layer::{Base, Capture, Layer, Made, Meta, UpperId, XattrNamespace};
use serde::{Deserialize, Serialize};

use crate::stack::absolute;
use crate::{Result, xattrs};

/// Everything that another process needs to capture an upper. The report of a run and the
/// description of a kept run contain it.
///
/// As JSON:
/// `{"upper":{"inode":N,"born":[S,NS]},"lowers":[PATH…],"made":[…],"xattrs":"trusted","skeleton":true,"meta":{…}}`.
/// The keys are:
/// - `upper`: the identity of the upper.
/// - `lowers`: the trees below it, topmost first.
/// - `made`: the entries that the run created in it.
/// - `xattrs`: the namespace of its overlay xattrs, `trusted` or `user`.
/// - `skeleton`: whether the run had a [skeleton](crate::Report::skeleton). Absent means false.
/// - `meta`: a `layer.json`.
///
/// `upper` and `made` may be absent. Without `upper`, the record fits any upper. Without `made`, a
/// capture uses the entries that the run [recorded](layer::RunRecord) on the upper.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaptureRecord {
    #[serde(default)]
    upper: Option<UpperId>,
    lowers: Vec<JsonPath>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    made: Option<Vec<Made>>,
    #[serde(with = "xattrs::InJson")]
    xattrs: XattrNamespace,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    skeleton: bool,
    meta: Meta,
}

impl CaptureRecord {
    /// Returns the record of a run's upper at `upper`, over `lowers`.
    pub(crate) fn of_run(
        upper: &Path,
        lowers: impl Iterator<Item = PathBuf>,
        made: Vec<Made>,
        xattrs: XattrNamespace,
        meta: Meta,
    ) -> Self {
        let lowers = lowers.map(JsonPath).collect();
        Self { upper: UpperId::of(upper).ok(), lowers, made: Some(made), xattrs, skeleton: false, meta }
    }

    /// Returns the record for any upper over this stack, with `meta` as its `layer.json`. The
    /// overlay xattrs of the upper are those of [this process](crate::xattrs_of_process), unless
    /// [`with_xattrs`](Self::with_xattrs) says otherwise. The record says that the run had a
    /// skeleton if a run of this process over this stack would have one.
    ///
    /// # Errors
    /// [`Cause::Io`](crate::Cause::Io) if a relative path cannot be made absolute.
    pub fn of_stack(base: &Base, layers: &[Layer], meta: Meta) -> Result<Self> {
        let trees = layers.iter().map(Layer::fs).chain([base.fs()]);
        let lowers = trees.map(|tree| Ok(JsonPath(absolute(tree)?))).collect::<Result<Vec<_>>>()?;
        let skeleton = lowers.iter().any(|JsonPath(tree)| UserNamespace::is_path_of_others(tree));
        Ok(Self { upper: None, lowers, made: None, xattrs: xattrs::xattrs_of_process(), skeleton, meta })
    }

    /// Returns the same record, for an upper that a command wrote over a skeleton. The capture
    /// hides [directories that it may not read](Capture::hide_unreadable), as the skeleton did.
    pub(crate) fn over_skeleton(mut self) -> Self {
        self.skeleton = true;
        self
    }

    /// Returns the same record, for an upper whose overlay xattrs are in this namespace:
    /// [`xattrs_of_upper`](crate::xattrs_of_upper) finds it.
    pub fn with_xattrs(mut self, xattrs: XattrNamespace) -> Self {
        self.xattrs = xattrs;
        self
    }

    /// Returns the same record, for the directory `upper` only.
    ///
    /// # Errors
    /// [`Cause::Layer`](crate::Cause::Layer) if `upper` cannot be inspected.
    pub fn of_upper(mut self, upper: impl AsRef<Path>) -> Result<Self> {
        self.upper = Some(UpperId::of(upper)?);
        Ok(self)
    }

    /// Returns the trees below the upper, topmost first, the base last.
    pub fn lowers(&self) -> impl Iterator<Item = &Path> {
        self.lowers.iter().map(|JsonPath(path)| path.as_path())
    }

    /// Returns the namespace of the upper's overlay xattrs.
    pub fn xattrs(&self) -> XattrNamespace {
        self.xattrs
    }

    /// Returns the capture, and the `layer.json` of the layer that it will create.
    pub fn into_capture(self) -> (Capture<'static>, Meta) {
        let mut capture = Capture::new(self.lowers.into_iter().map(|JsonPath(path)| path)).xattrs(self.xattrs);
        if let Some(made) = self.made {
            capture = capture.made(made);
        }
        if self.skeleton {
            capture = capture.hide_unreadable();
        }
        if let Some(id) = self.upper {
            capture = capture.of_upper(id);
        }
        (capture, self.meta)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::mutated;

    fn valid() -> Value {
        let meta = Meta { parent_hashes: vec!["a".into()], ..Meta::new("debian", SystemTime::UNIX_EPOCH) };
        json!({
            "upper": {"inode": 7, "born": [1, 2]},
            "lowers": ["/store/a/fs", [47, 255], "/base/fs"],
            "made": [],
            "xattrs": "user",
            "skeleton": true,
            "meta": meta,
        })
    }

    #[test]
    fn a_record_is_read_back_as_it_was_written() {
        let record: CaptureRecord = serde_json::from_value(valid()).unwrap();
        assert_eq!(serde_json::to_value(record).unwrap(), valid());
    }

    proptest! {
        #![proptest_config(mutated::config())]

        #[test]
        fn a_record_of_any_shape_is_refused_or_read_back(value in mutated::value(valid()), text in mutated::bytes([valid().to_string()])) {
            for text in [value.to_string().into_bytes(), text] {
                let Ok(record) = serde_json::from_slice::<CaptureRecord>(&text) else { continue };
                let again: CaptureRecord = serde_json::from_str(&serde_json::to_string(&record).unwrap()).unwrap();
                prop_assert_eq!(&again.lowers, &record.lowers);
                prop_assert_eq!(again.into_capture().1.base_hash, record.into_capture().1.base_hash);
            }
        }
    }
}
