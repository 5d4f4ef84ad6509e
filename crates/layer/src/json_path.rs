//! Paths in JSON: a string in JSON is UTF-8, but a path can have any bytes.
//! [`display`](crate::display) prints paths.
//!
//! A path that is UTF-8 becomes a string. Any other path becomes an array of its bytes. Every path
//! is therefore read back unchanged. Use the module with `#[serde(with = "layer::json_path")]`, or
//! call its functions directly.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

/// Writes a path as a string or as an array of bytes.
pub fn serialize<S: Serializer>(path: impl AsRef<Path>, serializer: S) -> Result<S::Ok, S::Error> {
    let path = path.as_ref();
    match path.to_str() {
        Some(text) => serializer.serialize_str(text),
        None => path.as_os_str().as_bytes().serialize(serializer),
    }
}

/// Reads a path that [`serialize`] has written.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a path: a string, or an array of bytes")]
    enum Form {
        Text(String),
        Bytes(Vec<u8>),
    }
    Ok(match Form::deserialize(deserializer)? {
        Form::Text(text) => text.into(),
        Form::Bytes(bytes) => OsString::from_vec(bytes).into(),
    })
}

/// Writes a path below the root of a stack with a leading slash.
pub(crate) fn serialize_absolute<S: Serializer>(path: impl AsRef<Path>, serializer: S) -> Result<S::Ok, S::Error> {
    serialize(Path::new("/").join(path), serializer)
}

/// Writes a list of paths.
pub(crate) fn serialize_list<S: Serializer>(paths: &[impl AsRef<Path>], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(paths.iter().map(to_value))
}

/// Writes a path, or null.
pub(crate) fn serialize_option<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    path.as_ref().map(to_value).serialize(serializer)
}

/// Returns the path as a JSON value.
pub fn to_value(path: impl AsRef<Path>) -> Value {
    let path = path.as_ref();
    match path.to_str() {
        Some(text) => text.into(),
        None => path.as_os_str().as_bytes().into(),
    }
}

/// A path that serde writes and reads in this form, for lists of paths.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JsonPath(#[serde(with = "self")] pub PathBuf);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_is_read_back_unchanged() {
        let paths: [&[u8]; 4] = [b"/a b", "/tmp/\u{e9}".as_bytes(), b"/\xff/x", b""];
        for bytes in paths {
            let path = JsonPath(OsString::from_vec(bytes.into()).into());
            let value = to_value(&path.0);
            assert_eq!(serde_json::to_value(&path).unwrap(), value);
            assert_eq!(serde_json::from_value::<JsonPath>(value).unwrap(), path);
        }
        for wrong in ["null", "1", "{}", "[256]", "[\"a\"]"] {
            let error = serde_json::from_str::<JsonPath>(wrong).unwrap_err();
            assert!(error.to_string().contains("an array of bytes"), "{error}");
        }
    }
}
