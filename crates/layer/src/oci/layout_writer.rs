//! Writes an OCI image layout: blobs under their digests, and `index.json` last, by a rename. A
//! writer that is killed leaves the layout as it was. Each file is on the disk before its rename.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use super::digest::{Digest, Hashing};
use super::error::{Error, Result};
use super::image::{REF_NAME, blob_name};
use super::pack::{Member, end, header, pad};
use crate::tree::output_file::OutputFile;

/// The content of `oci-layout`.
const VERSION: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

/// A layout that is being written.
#[derive(Debug)]
pub(crate) struct LayoutWriter {
    dir: PathBuf,
}

/// A blob that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

impl LayoutWriter {
    /// Opens the layout `dir`, and makes it if it does not exist.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let blobs = dir.join("blobs/sha256");
        let is_new = dir.symlink_metadata().is_err();
        let version = dir.join("oci-layout");
        if !is_new && !version.is_file() && fs::read_dir(dir).map_err(Error::io("read", dir))?.next().is_some() {
            return Err(Error::malformed(dir, "an OCI layout, and it is not empty; choose another directory"));
        }
        fs::create_dir_all(&blobs).map_err(Error::io("make the directory", &blobs))?;
        let writer = Self { dir: dir.into() };
        if !version.is_file() {
            writer.replace("oci-layout", VERSION.as_bytes())?;
        }
        Ok(writer)
    }

    /// Returns whether the layout has a blob of this digest and size.
    pub(crate) fn has(&self, digest: Digest, size: u64) -> bool {
        let path = self.dir.join(blob_name(digest));
        path.symlink_metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() == size)
    }

    /// Writes a blob by `write`. Returns what `write` returned.
    pub(crate) fn blob<T>(&self, write: impl FnOnce(&mut dyn Write) -> Result<T>) -> Result<(Written, T)> {
        let blobs = self.dir.join("blobs/sha256");
        let failed = |operation| Error::io(operation, &blobs);
        let file = self.temporary(&blobs)?;
        let mut out = Hashing::new(BufWriter::with_capacity(128 * 1024, file));
        let result = write(&mut out)?;
        let (out, digest, size) = out.finish();
        let file = out.into_inner().map_err(|error| failed("write a blob in")(error.into_error()))?;
        file.as_file().sync_all().map_err(failed("sync a blob in"))?;
        let file = file.persist(self.dir.join(blob_name(digest)));
        file.map_err(|error| failed("rename a blob in")(error.error))?;
        Ok((Written { digest, size }, result))
    }

    /// Writes a blob whose bytes are in memory.
    pub(crate) fn bytes(&self, bytes: &[u8]) -> Result<Written> {
        let path = self.dir.join("blobs/sha256");
        let write = |out: &mut dyn Write| out.write_all(bytes).map_err(Error::io("write a blob in", &path));
        Ok(self.blob(write)?.0)
    }

    /// Adds a manifest to the index, in place of one with the same tag.
    pub(crate) fn tag(&self, tag: &str, mut manifest: Value) -> Result<()> {
        // Another export can add its tag at the same time. The lock ends with the descriptor.
        let dir = File::open(&self.dir).map_err(Error::io("open", &self.dir))?;
        flock(&dir, FlockOperation::LockExclusive).map_err(Error::io("lock", &self.dir))?;
        let path = self.dir.join("index.json");
        let mut index: Value = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| Error::Malformed {
                path: path.clone(),
                expected: "an image index",
                source: Some(Box::new(error)),
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => json!({"schemaVersion": 2, "manifests": []}),
            Err(error) => return Err(Error::io("read", path)(error)),
        };
        manifest["annotations"] = json!({ REF_NAME: tag });
        let manifests = index.get_mut("manifests").and_then(Value::as_array_mut);
        let manifests = manifests.ok_or_else(|| Error::malformed(&path, "an image index"))?;
        manifests.retain(|other| other["annotations"][REF_NAME] != tag);
        manifests.push(manifest);
        self.replace("index.json", index.to_string().as_bytes())
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.dir.join(name);
        let mut file = self.temporary(&self.dir)?;
        file.write_all(bytes).map_err(Error::io("write", &path))?;
        file.as_file().sync_all().map_err(Error::io("sync", &path))?;
        file.persist(&path).map_err(|error| Error::io("write", &path)(error.error))?;
        Ok(())
    }

    fn temporary(&self, dir: &Path) -> Result<NamedTempFile> {
        let mode = fs::Permissions::from_mode(0o644);
        let file = tempfile::Builder::new().prefix(".export-").permissions(mode).tempfile_in(dir);
        file.map_err(Error::io("make a temporary file in", dir))
    }

    /// Writes the whole layout as a tar archive to `output`, whose path is `file`.
    pub(crate) fn archive(&self, output: OutputFile, file: &Path) -> Result<()> {
        let failed = |operation| Error::io(operation, file);
        let mut out = BufWriter::with_capacity(128 * 1024, output);
        let mut names = vec!["oci-layout".to_string(), "index.json".into()];
        let blobs = self.dir.join("blobs/sha256");
        let mut digests = Vec::new();
        for entry in fs::read_dir(&blobs).map_err(Error::io("read", &blobs))? {
            let entry = entry.map_err(Error::io("read", &blobs))?;
            digests.extend(entry.file_name().into_string().ok().map(|name| format!("blobs/sha256/{name}")));
        }
        digests.sort();
        names.extend(digests);
        for name in names {
            let member = File::open(self.dir.join(&name)).map_err(failed("write"))?;
            let size = member.metadata().map_err(failed("write"))?.len();
            let header = header(&Member::plain(name.as_bytes(), 0o644, size));
            out.write_all(&header.map_err(io::Error::other).map_err(failed("write"))?).map_err(failed("write"))?;
            let written = io::copy(&mut member.take(size), &mut out).map_err(failed("write"))?;
            if written != size {
                return Err(failed("write")(io::Error::from(io::ErrorKind::UnexpectedEof)));
            }
            pad(&mut out, size).map_err(failed("write"))?;
        }
        end(&mut out).map_err(failed("write"))?;
        let output = out.into_inner().map_err(|error| failed("write")(error.into_error()))?;
        output.finish().map_err(failed("write"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_of_parallel_exports_are_all_kept() {
        let dir = tempfile::tempdir().unwrap();
        let writers = 8;
        let barrier = std::sync::Barrier::new(writers);
        std::thread::scope(|scope| {
            for number in 0..writers {
                let (writer, barrier) = (LayoutWriter::open(dir.path()).unwrap(), &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    for round in 0..20 {
                        writer.tag(&format!("{number}-{round}"), json!({})).unwrap();
                    }
                });
            }
        });
        let index: Value = serde_json::from_slice(&fs::read(dir.path().join("index.json")).unwrap()).unwrap();
        assert_eq!(index["manifests"].as_array().unwrap().len(), writers * 20);
    }
}
