//! Writes an OCI image layout: blobs under their digests, and `index.json` last, by a rename. A
//! writer that is killed leaves the layout as it was. Each file is on the disk before it gets its
//! name. An archive is made of files without names, so nothing is left of one that is not complete.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};

use super::digest::{Digest, Hashing};
use super::error::{Error, Result};
use super::files::Section;
use super::image::{REF_NAME, blob_name};
use super::pack::{Member, end, header, pad};
use crate::layer::json;
use crate::tree::new_file::NewFile;
use crate::tree::output_file::OutputFile;

/// The version of the layout, in `oci-layout`.
const VERSION: &str = "1.0.0";

/// A layout that is being written.
#[derive(Debug)]
pub(crate) enum LayoutWriter {
    Directory(PathBuf),
    Archive {
        /// The directory on whose file system the blobs wait.
        spool: PathBuf,
        /// Files without a name, and their sizes.
        blobs: RefCell<BTreeMap<Digest, (File, u64)>>,
        index: RefCell<Value>,
    },
}

/// A blob that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

impl LayoutWriter {
    /// Opens the layout `dir`, and makes it if it does not exist. Goes on with one whose maker was
    /// killed. Several processes can make it at the same time.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).map_err(Error::io("make the directory", dir))?;
        let version = dir.join("oci-layout");
        if !version.is_file() {
            // Another export can have written the version since. It does so before anything else.
            if has_other_files(dir)? && !version.is_file() {
                return Err(Error::malformed(dir, "an OCI layout, and it is not empty; choose another directory"));
            }
            json::write(&version, &json!({"imageLayoutVersion": VERSION}))?;
        }
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(Error::io("make the directory", &blobs))?;
        Ok(Self::Directory(dir.into()))
    }

    /// Begins an archive, whose blobs wait on the file system of the directory `spool`.
    pub(crate) fn of_archive(spool: &Path) -> Self {
        Self::Archive { spool: spool.into(), blobs: RefCell::default(), index: RefCell::new(empty_index()) }
    }

    /// Returns the directory of the blobs, which has room for them.
    pub(crate) fn dir(&self) -> &Path {
        match self {
            Self::Directory(dir) => dir,
            Self::Archive { spool, .. } => spool,
        }
    }

    /// Returns whether the layout has a blob of this digest and size.
    pub(crate) fn has(&self, digest: Digest, size: u64) -> bool {
        match self {
            Self::Directory(dir) => {
                let found = dir.join(blob_name(digest)).symlink_metadata();
                found.is_ok_and(|found| found.is_file() && found.len() == size)
            }
            Self::Archive { blobs, .. } => blobs.borrow().contains_key(&digest),
        }
    }

    /// Writes a blob by `write`. Returns what `write` returned.
    pub(crate) fn blob<T>(&self, write: impl FnOnce(&mut dyn Write) -> Result<T>) -> Result<(Written, T)> {
        match self {
            Self::Directory(dir) => {
                let blobs = dir.join("blobs/sha256");
                let file = NewFile::create(&blobs, 0o644).map_err(Error::io("make a file in", &blobs))?;
                let (file, written, result) = written(file, &blobs, write)?;
                file.file().sync_all().map_err(Error::io("sync a blob in", &blobs))?;
                let named = file.persist(&dir.join(blob_name(written.digest)));
                named.map_err(Error::io("name a blob in", &blobs))?;
                Ok((written, result))
            }
            Self::Archive { spool, blobs, .. } => {
                let file = tempfile::tempfile_in(spool).map_err(Error::io("make a temporary file in", spool))?;
                let (file, written, result) = written(file, spool, write)?;
                blobs.borrow_mut().insert(written.digest, (file, written.size));
                Ok((written, result))
            }
        }
    }

    /// Writes a blob whose bytes are in memory.
    pub(crate) fn bytes(&self, bytes: &[u8]) -> Result<Written> {
        let write = |out: &mut dyn Write| out.write_all(bytes).map_err(Error::io("write a blob in", self.dir()));
        Ok(self.blob(write)?.0)
    }

    /// Adds a manifest to the index, in place of one with the same tag.
    pub(crate) fn tag(&self, tag: &str, manifest: Value) -> Result<()> {
        let dir = match self {
            Self::Directory(dir) => dir,
            Self::Archive { index, .. } => {
                add(&mut index.borrow_mut(), tag, manifest);
                return Ok(());
            }
        };
        // Another export can add its tag at the same time. The lock ends with the descriptor.
        let locked = File::open(dir).map_err(Error::io("open", dir))?;
        flock(&locked, FlockOperation::LockExclusive).map_err(Error::io("lock", dir))?;
        let path = dir.join("index.json");
        let mut index = json::read(&path)?.unwrap_or_else(empty_index);
        match add(&mut index, tag, manifest) {
            true => Ok(json::write(&path, &index)?),
            false => Err(Error::malformed(path, "an image index")),
        }
    }

    /// Writes the whole archive to `output`, whose path is `file`.
    pub(crate) fn finish(self, output: OutputFile, file: &Path) -> Result<()> {
        let Self::Archive { blobs, index, .. } = self else { return Ok(()) };
        let (mut blobs, index) = (blobs.into_inner(), index.into_inner());
        // Not what an attempt to copy the base's image has left.
        let named = named(&index, &blobs).map_err(Error::io("read a blob of", file))?;
        blobs.retain(|digest, _| named.contains(digest));
        let mut out = BufWriter::with_capacity(128 * 1024, output);
        let write = |out: &mut BufWriter<OutputFile>| -> io::Result<()> {
            let [version, index] = [json!({"imageLayoutVersion": VERSION}), index].map(|json| {
                let text = json.to_string().into_bytes();
                (text.len() as u64, text)
            });
            for (name, (size, text)) in [("oci-layout", version), ("index.json", index)] {
                write_member(out, name, size, &*text)?;
            }
            for (digest, (blob, size)) in blobs {
                write_member(out, &blob_name(digest), size, Section::at_start(&blob, size))?;
            }
            end(out)
        };
        write(&mut out).map_err(Error::io("write", file))?;
        let output = out.into_inner().map_err(|error| Error::io("write", file)(error.into_error()))?;
        output.finish().map_err(Error::io("write", file))
    }
}

/// Returns whether a directory has files that an unfinished layout has not.
fn has_other_files(dir: &Path) -> Result<bool> {
    let failed = || Error::io("read", dir);
    for entry in fs::read_dir(dir).map_err(failed())? {
        let name = entry.map_err(failed())?.file_name();
        if name != "blobs" && !json::is_temporary(&name) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn empty_index() -> Value {
    json!({"schemaVersion": 2, "manifests": []})
}

/// Adds a manifest to an index. Returns whether it is an index.
fn add(index: &mut Value, tag: &str, mut manifest: Value) -> bool {
    let Some(manifests) = index.get_mut("manifests").and_then(Value::as_array_mut) else { return false };
    manifest["annotations"] = json!({ REF_NAME: tag });
    manifests.retain(|other| other["annotations"][REF_NAME] != tag);
    manifests.push(manifest);
    true
}

/// Returns the digests of the manifests of an index and of all blobs that these name.
fn named(index: &Value, blobs: &BTreeMap<Digest, (File, u64)>) -> io::Result<BTreeSet<Digest>> {
    let digest = |descriptor: &Value| descriptor["digest"].as_str().and_then(|digest| digest.parse().ok());
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut named = BTreeSet::new();
    for manifest in list(&index["manifests"]).iter().filter_map(digest) {
        named.insert(manifest);
        let Some((file, size)) = blobs.get(&manifest) else { continue };
        let manifest: Value = serde_json::from_reader(Section::at_start(file, *size))?;
        named.extend(list(&manifest["layers"]).iter().chain([&manifest["config"]]).filter_map(digest));
    }
    Ok(named)
}

/// Writes a blob into `file`, which is in `dir`.
fn written<W: Write, T>(
    file: W,
    dir: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<T>,
) -> Result<(W, Written, T)> {
    let mut out = Hashing::new(BufWriter::with_capacity(128 * 1024, file));
    let result = write(&mut out)?;
    let (out, digest, size) = out.finish();
    let file = out.into_inner().map_err(|error| Error::io("write a blob in", dir)(error.into_error()))?;
    Ok((file, Written { digest, size }, result))
}

fn write_member(out: &mut impl Write, name: &str, size: u64, content: impl Read) -> io::Result<()> {
    let header = header(&Member::plain(name.as_bytes(), 0o644, size)).map_err(io::Error::other)?;
    out.write_all(&header)?;
    if io::copy(&mut content.take(size), out)? != size {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    pad(out, size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_of_parallel_exports_are_all_kept() {
        let writers = 8;
        // Each round makes a new layout.
        for _ in 0..10 {
            let dir = tempfile::tempdir().unwrap();
            let layout = &dir.path().join("new/layout");
            let barrier = &std::sync::Barrier::new(writers);
            std::thread::scope(|scope| {
                for number in 0..writers {
                    scope.spawn(move || {
                        barrier.wait();
                        let writer = LayoutWriter::open(layout).unwrap();
                        for round in 0..3 {
                            writer.tag(&format!("{number}-{round}"), json!({})).unwrap();
                        }
                    });
                }
            });
            let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
            assert_eq!(index["manifests"].as_array().unwrap().len(), writers * 3);
        }
    }

    #[test]
    fn a_layout_whose_maker_was_killed_is_finished_and_other_files_are_refused() {
        for (left, is_ours) in [
            (&[][..], true),
            (&["blobs/sha256/"], true),
            (&[".json.a1b2c3"], true),
            (&["blobs/", ".json.a1b2c3"], true),
            (&["notes"], false),
            (&["blobs/", "index.json"], false),
        ] {
            let dir = tempfile::tempdir().unwrap();
            for name in left {
                let path = dir.path().join(name);
                match name.ends_with('/') {
                    true => fs::create_dir_all(path).unwrap(),
                    false => fs::write(path, "").unwrap(),
                }
            }
            match LayoutWriter::open(dir.path()) {
                Ok(writer) => {
                    assert!(is_ours, "{left:?}");
                    writer.bytes(b"blob").unwrap();
                    assert!(dir.path().join("oci-layout").is_file(), "{left:?}");
                }
                Err(error) => {
                    assert!(!is_ours && error.to_string().contains("choose another directory"), "{left:?}: {error}");
                    assert!(!dir.path().join("oci-layout").exists(), "{left:?}");
                }
            }
        }
    }

    #[test]
    fn an_index_that_is_a_fifo_or_no_index_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let writer = LayoutWriter::open(dir.path()).unwrap();
        let index = dir.path().join("index.json");
        nix::unistd::mkfifo(&index, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(writer.tag("a", json!({})).unwrap_err().to_string().contains("not a regular file"));
        for text in ["[]", r#"{"manifests":{}}"#, "{"] {
            fs::remove_file(&index).unwrap();
            fs::write(&index, text).unwrap();
            let message = writer.tag("a", json!({})).unwrap_err().to_string();
            assert!(message.contains("index.json"), "{message}");
            assert_eq!(fs::read_to_string(&index).unwrap(), text);
        }
    }
}
