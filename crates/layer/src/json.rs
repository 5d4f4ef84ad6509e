use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::NamedTempFile;

use crate::{Error, Result, read_regular_file};

/// Reads one JSON value; `None` if there is no such file.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let Some(text) = read_regular_file(path)? else { return Ok(None) };
    match serde_json::from_slice(&text) {
        Ok(value) => Ok(Some(value)),
        Err(source) => Err(Error::Json { path: path.into(), source }),
    }
}

/// Replaces the file with one JSON value and a newline: a reader sees the old file or the new one, also after a power cut.
pub(crate) fn write<T: Serialize + ?Sized>(path: &Path, value: &T) -> Result<()> {
    let staged = Staged::new(path, value)?;
    staged.file.as_file().sync_all().map_err(Error::io("sync", path))?;
    staged.publish()?;
    let dir = path.parent().unwrap_or(Path::new("."));
    // The rename itself is durable once the directory is.
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("sync", dir))
}

/// One JSON value and a newline in a temporary file beside the one that it is to be. Dropped, it is removed.
#[derive(Debug)]
pub(crate) struct Staged<'a> {
    path: &'a Path,
    file: NamedTempFile,
}

impl<'a> Staged<'a> {
    pub(crate) fn new<T: Serialize + ?Sized>(path: &'a Path, value: &T) -> Result<Self> {
        let dir = path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::Builder::new()
            .prefix(".json.")
            .permissions(fs::Permissions::from_mode(0o644))
            .tempfile_in(dir)
            .map_err(Error::io("create a temporary file in", dir))?;
        let mut writer = BufWriter::new(&mut file);
        serde_json::to_writer(&mut writer, value).map_err(|error| match error.is_io() {
            true => Error::io("write", path)(error),
            false => Error::Serialize { path: path.into(), source: error },
        })?;
        writer.write_all(b"\n").and_then(|()| writer.flush()).map_err(Error::io("write", path))?;
        drop(writer);
        Ok(Self { path, file })
    }

    /// Gives the file its name, in place of the former one. What was written has to be durable by then, and the name is once
    /// the directory is.
    pub(crate) fn publish(self) -> Result<()> {
        match self.file.persist(self.path) {
            Ok(_) => Ok(()),
            Err(error) => Err(Error::io("rename a temporary file to", self.path)(error.error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn a_failed_write_leaves_the_former_file_and_nothing_else() {
        struct Broken;
        impl Serialize for Broken {
            fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
                Err(serde::ser::Error::custom("broken"))
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("doc.json");
        write(&path, &json!({"a": 1})).unwrap();
        assert!(matches!(write(&path, &Broken), Err(Error::Serialize { .. })));
        assert_eq!(read::<Value>(&path).unwrap(), Some(json!({"a": 1})));
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
    }

    #[test]
    fn the_file_is_readable_for_all_and_ends_with_a_newline() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("doc.json");
        write(&path, &[1, 2]).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "[1,2]\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
    }

    #[test]
    fn a_broken_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("doc.json");
        fs::write(&path, "{").unwrap();
        assert!(matches!(read::<Value>(&path), Err(Error::Json { path: named, .. }) if named == path));
    }
}
