//! The keys of `layer.json` and their forms. `json.rs` reads and replaces the file.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::{Deserializer, MapAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::Result;
use crate::layer::{Layer, json};

/// The content of `layer.json`: the metadata that every layer has, whichever program made it.
///
/// The keys are written in the order of the fields. Keys that this version does not know survive a
/// read and a write, and follow the known ones. The file marks the layer as complete: write it
/// last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    /// The exit status of the command that made the layer: 0 for success.
    pub exit_status: i64,
    /// The hashes of the layers that this layer was made over, topmost first, as the program that
    /// made them names them. May be absent in a file.
    #[serde(default)]
    pub parent_hashes: Vec<String>,
    /// The user that the command ran as.
    pub uid: u32,
    /// The group that the command ran as.
    pub gid: u32,
    /// The hash of the [base](crate::Base) below.
    pub base_hash: String,
    /// The number of bytes that were allocated for the tree when the layer was made, as
    /// [`TreeSize`](crate::TreeSize) counts them. May be absent in a file; the value is then 0. The
    /// number may be wrong: see [`Layer::disk_usage`].
    #[serde(default)]
    pub disk_usage: u64,
    /// The duration of each phase in seconds, in order. May be absent or null in a file.
    #[serde(default)]
    pub timing: Timing,
    /// When the layer was made, to the second: `2026-01-31T23:59:59Z`.
    #[serde(with = "timestamp")]
    pub created_at: SystemTime,
    /// The dependency whose failure caused the failure of this layer, if one did. May be absent in
    /// a file.
    #[serde(default)]
    pub failed_dep: Option<String>,
    /// Keys that this version does not know, in their order.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Meta {
    /// Returns the metadata of a layer that a command made successfully, as root, over `base_hash`
    /// at `created_at`. Nothing else is known about the layer.
    pub fn new(base_hash: impl Into<String>, created_at: SystemTime) -> Self {
        Self {
            exit_status: 0,
            parent_hashes: Vec::new(),
            uid: 0,
            gid: 0,
            base_hash: base_hash.into(),
            disk_usage: 0,
            timing: Timing::default(),
            created_at,
            failed_dep: None,
            extra: Map::new(),
        }
    }

    /// Returns whether the command that made the layer failed, or did not run because a dependency
    /// had failed.
    pub fn is_failed(&self) -> bool {
        self.exit_status != 0 || self.failed_dep.is_some()
    }
}

/// The duration of each phase in seconds, in the order in which they were written.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Timing(pub Vec<(String, f64)>);

impl Timing {
    /// Returns the duration of one phase in seconds.
    pub fn seconds(&self, phase: &str) -> Option<f64> {
        self.0.iter().find(|(name, _)| name == phase).map(|(_, seconds)| *seconds)
    }
}

impl<N: Into<String>> FromIterator<(N, f64)> for Timing {
    fn from_iter<I: IntoIterator<Item = (N, f64)>>(phases: I) -> Self {
        Self(phases.into_iter().map(|(name, seconds)| (name.into(), seconds)).collect())
    }
}

impl Serialize for Timing {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, seconds) in &self.0 {
            map.serialize_entry(name, seconds)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Timing {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Phases;
        impl<'de> Visitor<'de> for Phases {
            type Value = Timing;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object of seconds by phase, or null")
            }
            fn visit_unit<E>(self) -> Result<Timing, E> {
                Ok(Timing::default())
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Timing, A::Error> {
                let mut phases = Vec::new();
                while let Some(phase) = map.next_entry()? {
                    phases.push(phase);
                }
                Ok(Timing(phases))
            }
        }
        deserializer.deserialize_any(Phases)
    }
}

/// The form of a time: `YYYY-MM-DDTHH:MM:SSZ` on disk, a [`SystemTime`] here.
pub(crate) mod timestamp {
    use super::*;

    /// The start of the year 10000. humantime panics for it, and for years before 1970.
    const END: Duration = Duration::from_secs(253_402_300_800);

    pub(super) fn serialize<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        match time.duration_since(UNIX_EPOCH) {
            Ok(since) if since < END => serializer.collect_str(&humantime::format_rfc3339_seconds(*time)),
            _ => Err(serde::ser::Error::custom("created_at is before 1970 or after 9999")),
        }
    }

    /// Writes a time before 1970 or after 9999 as the first or last second of these years.
    pub(crate) fn serialize_clamped<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default().min(END - Duration::from_secs(1));
        serialize(&(UNIX_EPOCH + since), serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_rfc3339(&text).map_err(|reason| {
            serde::de::Error::custom(format_args!("{text:?} is not a time like 2026-01-31T23:59:59Z: {reason}"))
        })
    }
}

impl Layer {
    /// Reads `layer.json`. Returns `None` if it does not exist, which means that the layer is not
    /// complete.
    ///
    /// # Errors
    /// [`Error::Json`](crate::Error::Json) if the file is not a valid `layer.json`,
    /// [`Error::Io`](crate::Error::Io) if it cannot be read.
    pub fn meta(&self) -> Result<Option<Meta>> {
        json::read(&self.meta_path())
    }

    /// Writes `layer.json` completely or not at all. Its content is durable before other processes
    /// see it.
    ///
    /// # Errors
    /// [`Error::Serialize`](crate::Error::Serialize) if `created_at` is before 1970 or after 9999,
    /// [`Error::Io`](crate::Error::Io) if the file cannot be written. The former `layer.json`, if
    /// any, is then still there, unless only the last sync, of the directory, failed. No temporary
    /// file is left.
    pub fn write_meta(&self, meta: &Meta) -> Result<()> {
        json::write(&self.meta_path(), meta)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// A file as the replaced system writes it, with all keys in its order.
    const WHOLE: &str = r#"{"exit_status":0,"parent_hashes":["b","a"],"uid":1000,"gid":1000,"base_hash":"base","disk_usage":4096,"timing":{"runc_run":1.5,"merge":0.0},"created_at":"2026-01-31T23:59:59Z","failed_dep":null}"#;

    #[test]
    fn a_whole_file_is_read_and_written_back_to_the_letter() {
        let meta: Meta = serde_json::from_str(WHOLE).unwrap();
        let expected = Meta {
            parent_hashes: vec!["b".into(), "a".into()],
            uid: 1000,
            gid: 1000,
            disk_usage: 4096,
            timing: [("runc_run", 1.5), ("merge", 0.0)].into_iter().collect(),
            ..Meta::new("base", SystemTime::UNIX_EPOCH + Duration::from_secs(1_769_903_999))
        };
        assert_eq!(meta, expected);
        assert_eq!(serde_json::to_string(&meta).unwrap(), WHOLE);
    }

    #[test]
    fn keys_that_may_be_absent_have_defaults() {
        let text = r#"{"exit_status":2,"uid":0,"gid":0,"base_hash":"h","created_at":"2026-01-31T23:59:59Z"}"#;
        let meta: Meta = serde_json::from_str(text).unwrap();
        assert_eq!((meta.exit_status, meta.disk_usage, meta.failed_dep.clone()), (2, 0, None));
        assert!(meta.parent_hashes.is_empty() && meta.timing.0.is_empty() && meta.extra.is_empty());
    }

    #[test]
    fn timing_takes_integers_and_null() {
        assert_eq!(serde_json::from_str::<Timing>("null").unwrap(), Timing::default());
        let timing: Timing = serde_json::from_str(r#"{"z":3,"a":0.25}"#).unwrap();
        assert_eq!(timing.0, [("z".to_string(), 3.0), ("a".to_string(), 0.25)]);
        assert_eq!(timing.seconds("a"), Some(0.25));
        assert!(serde_json::from_str::<Timing>("[1]").is_err());
    }

    #[test]
    fn unknown_keys_survive_in_their_order() {
        let text =
            WHOLE.replace("\"failed_dep\":null", "\"failed_dep\":\"x\",\"zeta\":{\"b\":1,\"a\":[null]},\"alpha\":true");
        let meta: Meta = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&meta).unwrap(), text);
    }

    #[test]
    fn the_error_for_a_missing_or_invalid_key_names_it() {
        for key in ["exit_status", "uid", "gid", "base_hash", "created_at"] {
            let mut value: Map<String, Value> = serde_json::from_str(WHOLE).unwrap();
            value.remove(key);
            let error = serde_json::from_value::<Meta>(value.into()).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
        let error = serde_json::from_str::<Meta>(&WHOLE.replace("2026-01-31T23:59:59Z", "yesterday")).unwrap_err();
        assert!(error.to_string().contains("yesterday"), "{error}");
    }

    #[test]
    fn a_layer_reads_the_metadata_that_it_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let layer = Layer::at(dir.path());
        assert_eq!(layer.meta().unwrap(), None);
        let meta = Meta { exit_status: 7, ..Meta::new("base", SystemTime::UNIX_EPOCH) };
        layer.write_meta(&meta).unwrap();
        assert_eq!(layer.meta().unwrap(), Some(meta));
    }
}
