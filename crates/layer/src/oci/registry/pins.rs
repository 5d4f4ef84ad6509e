//! Pins: which manifest a name means for everyone. `push.rs` writes them. The caller of `pull.rs`
//! reads them.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::form;
use crate::oci::digest::Digest;
use crate::oci::error::{Error, Result};

/// A directory of pins. The file `NAME` has the digest of the manifest of the layer `NAME`, in one
/// line. A user who can write to the directory decides what the names mean.
///
/// Several machines can share the directory, also over NFS.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// use layer::oci::registry::Pins;
///
/// let pins = Pins::open(&dir)?;
/// let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855".parse()?;
/// assert_eq!(pins.get("gcc")?, None);
/// assert_eq!(pins.pin("gcc", digest)?, digest);
/// assert_eq!(pins.get("gcc")?, Some(digest));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pins {
    dir: PathBuf,
}

impl Pins {
    /// Returns the pins in the directory `dir`.
    ///
    /// # Errors
    /// [`Error::Pins`] if it is not a directory: it may not be mounted.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let metadata = fs::metadata(dir).map_err(failed("look at", dir))?;
        match metadata.is_dir() {
            true => Ok(Self { dir: dir.into() }),
            false => Err(failed("look into", dir)(ErrorKind::NotADirectory.into())),
        }
    }

    /// Returns the digest of the manifest to which the layer `name` is pinned.
    ///
    /// # Errors
    /// - [`Error::NotATag`] if no layer in a registry can have the name.
    /// - [`Error::Pins`] if the pin cannot be read.
    /// - [`Error::Malformed`] if the file is not a pin.
    pub fn get(&self, name: &str) -> Result<Option<Digest>> {
        let path = self.path(name)?;
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            bytes => bytes.map_err(failed("read", &path))?,
        };
        let pin = std::str::from_utf8(&bytes).ok().and_then(|text| text.trim_end().parse().ok());
        let expected = "a pin: write the digest of a manifest into it, or remove it";
        pin.map(Some).ok_or_else(|| Error::malformed(&path, expected))
    }

    /// Pins the layer `name` to the manifest `digest`, unless it is pinned already. Returns the
    /// digest to which it is pinned now. Of several callers at the same time, one wins.
    ///
    /// A caller that is killed can leave a file whose name begins with a dot.
    ///
    /// # Errors
    /// As [`get`](Self::get), and [`Error::Pins`] if the pin cannot be written.
    pub fn pin(&self, name: &str, digest: Digest) -> Result<Digest> {
        if let Some(pin) = self.get(name)? {
            return Ok(pin);
        }
        let path = self.path(name)?;
        let write = || -> io::Result<()> {
            let mut new = tempfile::Builder::new().prefix(&format!(".{name}.")).tempfile_in(&self.dir)?;
            writeln!(new, "{digest}")?;
            new.as_file().set_permissions(Permissions::from_mode(0o644))?;
            new.as_file().sync_all()?;
            // Unlike a rename without replacement, link(2) also works on NFS.
            fs::hard_link(new.path(), &path)
        };
        let written = write();
        // Another process has pinned the layer, or NFS lost the answer to the link that it made.
        match self.get(name)? {
            Some(pin) => Ok(pin),
            None => Err(failed("write", &path)(written.err().unwrap_or_else(|| ErrorKind::NotFound.into()))),
        }
    }

    fn path(&self, name: &str) -> Result<PathBuf> {
        match form::refuse_name(name) {
            Some(reason) => Err(Error::NotATag { name: name.into(), reason }),
            None => Ok(self.dir.join(name)),
        }
    }
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Pins { operation, path, source }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_first_pin_stays() {
        let dir = tempfile::tempdir().unwrap();
        let pins = Pins::open(&dir).unwrap();
        let digests: Vec<_> = (0..8u8).map(|number| Digest::of(&[number])).collect();
        let pinned: HashSet<Digest> = std::thread::scope(|scope| {
            let pins = &pins;
            let threads: Vec<_> =
                digests.iter().map(|&digest| scope.spawn(move || pins.pin("gcc", digest).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(pinned.into_iter().collect::<Vec<_>>(), [pins.get("gcc").unwrap().unwrap()]);
        let file = dir.path().join("gcc");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644);
        // Nothing else is left. A pin that a person wrote may have no newline.
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        fs::write(&file, digests[3].to_string()).unwrap();
        assert_eq!(pins.pin("gcc", digests[4]).unwrap(), digests[3]);
    }

    #[test]
    fn only_pins_that_are_away_are_a_temporary_error() {
        let dir = tempfile::tempdir().unwrap();
        let error = Pins::open(dir.path().join("missing")).unwrap_err();
        assert!(error.is_temporary() && format!("{error:?}").contains("mount the directory of the pins"), "{error:?}");
        let pins = Pins::open(&dir).unwrap();
        for content in [&b""[..], b"\xff"] {
            fs::write(dir.path().join("wrong"), content).unwrap();
            for error in [pins.get("wrong").unwrap_err(), pins.pin("wrong", Digest::of(b"")).unwrap_err()] {
                assert!(!error.is_temporary() && error.to_string().contains("is not a pin"), "{error}");
            }
        }
        fs::create_dir(dir.path().join("dir")).unwrap();
        let file = dir.path().join("wrong");
        let wrong_paths =
            [pins.get("dir").unwrap_err(), Pins::open(&file).unwrap_err(), Pins::open(file.join("a")).unwrap_err()];
        for error in wrong_paths {
            assert!(!error.is_temporary(), "{error:?}");
        }
        assert!(matches!(pins.get("../a"), Err(Error::NotATag { .. })));
        fs::remove_dir_all(dir).unwrap();
        assert!(pins.pin("gcc", Digest::of(b"")).unwrap_err().is_temporary());
    }
}
