//! Reads JSON files, and replaces them atomically. `meta.rs` and `sidecar.rs` define their content.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, RawDir, fchmod, flock, openat, unlinkat};
use rustix::io::Errno;
use rustix::path::Arg;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::NamedTempFile;

use crate::error::{Error, Result};
use crate::tree::regular_file::read_regular_file;
use crate::tree::walk::READ;

/// Reads one JSON value. Returns `None` if the file does not exist.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let Some(text) = read_regular_file(path)? else { return Ok(None) };
    match serde_json::from_slice(&text) {
        Ok(value) => Ok(Some(value)),
        Err(source) => Err(Error::Json { path: path.into(), source }),
    }
}

/// Replaces the file with one JSON value and a newline: a reader sees the old file or the new one,
/// even after a power cut.
pub(crate) fn write<T: Serialize + ?Sized>(path: &Path, value: &T) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let text = to_text(path, value)?;
    remove_dead(dir).map_err(Error::io("read", dir))?;
    loop {
        let file = temporary(dir).map_err(Error::io("create a temporary file in", dir))?;
        file.as_file().write_all(&text).map_err(Error::io("write", path))?;
        file.as_file().sync_all().map_err(Error::io("sync", path))?;
        match file.persist(path) {
            Ok(_) => break,
            // Another writer took the file for one of a dead writer, and removed it before it was
            // locked.
            Err(error) if error.error.kind() == ErrorKind::NotFound && dir.is_dir() => {}
            Err(error) => return Err(Error::io("rename a temporary file to", path)(error.error)),
        }
    }
    // A sync of the directory makes the rename durable.
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("sync", dir))
}

/// Makes the new file `name` in `dir`, with one JSON value and a newline. The file is durable once
/// the file system is synced. Errors name it `path`.
pub(crate) fn write_new<T: Serialize + ?Sized>(
    dir: BorrowedFd<'_>,
    name: impl Arg,
    path: &Path,
    value: &T,
) -> Result<()> {
    let text = to_text(path, value)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(dir, name, flags, MODE).map_err(Error::io("create", path))?;
    // The umask may have cleared bits of the mode.
    fchmod(&file, MODE).map_err(Error::io("set the mode of", path))?;
    File::from(file).write_all(&text).map_err(Error::io("write", path))
}

fn to_text<T: Serialize + ?Sized>(path: &Path, value: &T) -> Result<Vec<u8>> {
    let serialize = |source| Error::Serialize { path: path.into(), source };
    let mut text = serde_json::to_vec(value).map_err(serialize)?;
    text.push(b'\n');
    Ok(text)
}

/// The mode of a JSON file.
const MODE: Mode = Mode::from_raw_mode(0o644);

/// The prefix of the names of files that are still being written.
const PREFIX: &str = ".json.";

/// Returns whether a file of this name is one that is still being written, or whose writer was
/// killed.
#[cfg(feature = "oci")]
pub(crate) fn is_temporary(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes().starts_with(PREFIX.as_bytes())
}

/// Makes a new temporary file, which is locked while it is being written.
fn temporary(dir: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    let file = builder.prefix(PREFIX).permissions(fs::Permissions::from_mode(MODE.as_raw_mode())).tempfile_in(dir)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        // `WOULDBLOCK`: another writer has it locked, to find out whether its writer is dead.
        Ok(()) | Err(Errno::WOULDBLOCK) => Ok(file),
        Err(errno) => Err(errno.into()),
    }
}

/// Removes the temporary files in `dir` whose writers were killed.
fn remove_dead(dir: &Path) -> rustix::io::Result<()> {
    let dir = openat(CWD, dir, READ.difference(OFlags::NOFOLLOW), Mode::empty())?;
    let mut dead = Vec::new();
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut entries = RawDir::new(&dir, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if entry.file_name().to_bytes().starts_with(PREFIX.as_bytes()) {
            dead.push(entry.file_name().to_owned());
        }
    }
    for name in dead {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // A file that cannot be opened, locked or removed does no harm.
        let Ok(file) = openat(&dir, &name, flags, Mode::empty()) else { continue };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _gone_or_not = unlinkat(&dir, &name, AtFlags::empty());
        }
    }
    Ok(())
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
    fn a_write_removes_the_temporary_files_of_killed_writers() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".json.dead"), "{").unwrap();
        let live = temporary(dir.path()).unwrap();
        write(&dir.path().join("doc.json"), &1).unwrap();
        let mut names: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        assert_eq!(names, [live.path(), &dir.path().join("doc.json")]);
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
    fn the_error_for_an_invalid_file_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("doc.json");
        fs::write(&path, "{").unwrap();
        assert!(matches!(read::<Value>(&path), Err(Error::Json { path: named, .. }) if named == path));
    }
}
