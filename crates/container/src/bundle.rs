//! The bundle: the directory that an OCI runtime starts a container from.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf, absolute};

use rustix::fs::OFlags;

use crate::error::{Error, Result};
use crate::template::{Config, TemplateError};

/// A directory with the `config.json` of one run, which an OCI runtime takes as `--bundle`.
/// [`Runtime::run`](crate::Runtime::run) writes its runtime's own version of the configuration into
/// that file.
///
/// The directory belongs to the caller, who creates it before the run and removes it afterwards.
#[derive(Debug, Clone, PartialEq)]
pub struct Bundle {
    path: PathBuf,
    config_path: PathBuf,
    config: Config,
}

impl Bundle {
    /// Writes `config` to `config.json` in the existing directory `dir`. Only the owner can read
    /// the file, because the environment may hold secrets. The file is not flushed to the disk,
    /// because it is useless after the run.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if `dir` is not a directory, if it already has a `config.json`, or if
    /// the file cannot be written. An existing `config.json` stays as it is; a symbolic link of
    /// that name is not followed. A partly written file is removed. If that fails too,
    /// [`Error::HalfWritten`] names the file that is left.
    pub fn create(dir: impl AsRef<Path>, config: &Config) -> Result<Bundle> {
        // The runtime has another working directory.
        let path = absolute(dir.as_ref()).map_err(Error::io("find", dir.as_ref()))?;
        let config_path = path.join("config.json");
        let json = serde_json::to_vec(config).map_err(|source| TemplateError::Serialize { source })?;
        write_new(&config_path, |file| file.write_all(&json))?;
        Ok(Bundle { path, config_path, config: config.clone() })
    }

    /// Overwrites `config.json` with the configuration for a runtime.
    pub(crate) fn write(&self, config: &Config) -> Result<()> {
        let json = serde_json::to_vec(config).map_err(|source| TemplateError::Serialize { source })?;
        let mut options = OpenOptions::new();
        options.write(true).truncate(true).custom_flags(OFlags::NOFOLLOW.bits() as i32);
        let written = options.open(&self.config_path).and_then(|mut file| file.write_all(&json));
        written.map_err(Error::io("write", &self.config_path))
    }

    /// Returns the directory as an absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// Returns whether the command gets a terminal.
    pub(crate) fn has_terminal(&self) -> bool {
        self.config.has_terminal()
    }

    /// Returns the path of the `config.json`.
    pub fn config_path(&self) -> &Path {
        &self.config_path
    }
}

/// Creates the file at `path` and fills it with `content`. Removes the file if that fails.
fn write_new(path: &Path, content: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits() as i32)
        .open(path)
        .map_err(Error::io("create", path))?;
    let Err(failure) = content(&mut file).map_err(Error::io("write", path)) else { return Ok(()) };
    // This process may remove the file, because it has created it exclusively.
    match fs::remove_file(path) {
        Ok(()) => Err(failure),
        Err(cleanup) => Err(Error::HalfWritten { left: path.to_owned(), failure: Box::new(failure), cleanup }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use serde_json::Value;

    use super::*;
    use crate::Template;

    fn config() -> Config {
        Template::builder(["true"]).build().unwrap().instantiate("/rootfs".as_ref()).unwrap()
    }

    #[test]
    fn writes_the_whole_configuration_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = Bundle::create(dir.path(), &config()).unwrap();
        assert_eq!((bundle.path(), bundle.config_path()), (dir.path(), dir.path().join("config.json").as_path()));
        assert_eq!(fs::metadata(bundle.config_path()).unwrap().mode() & 0o7777, 0o600);
        let read: Value = serde_json::from_slice(&fs::read(bundle.config_path()).unwrap()).unwrap();
        assert_eq!(read, serde_json::to_value(config()).unwrap());
    }

    #[test]
    fn overwrites_nothing_and_follows_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = dir.path().join("elsewhere");
        symlink(&elsewhere, dir.path().join("config.json")).unwrap();
        let error = Bundle::create(dir.path(), &config()).unwrap_err();
        let Error::Io { operation: "create", source, .. } = error else { panic!("{error:?}") };
        assert_eq!(source.kind(), io::ErrorKind::AlreadyExists);
        assert!(!elsewhere.exists());
    }

    #[test]
    fn names_a_directory_that_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        let error = Bundle::create(&missing, &config()).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot create {}/config.json", missing.display()));
    }

    #[test]
    fn leaves_no_half_of_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let error = write_new(&path, |file| {
            file.write_all(b"{")?;
            Err(io::ErrorKind::StorageFull.into())
        })
        .unwrap_err();
        assert!(matches!(error, Error::Io { operation: "write", .. }), "{error:?}");
        assert!(!path.exists());
    }

    #[test]
    fn names_the_half_that_cannot_be_removed_beside_the_failure() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let error = write_new(&path, |_| {
            // unlink(2) fails on a directory, even for root.
            fs::remove_file(&path)?;
            fs::create_dir(&path)?;
            Err(io::ErrorKind::StorageFull.into())
        })
        .unwrap_err();
        let Error::HalfWritten { left, failure, .. } = error else { panic!("{error:?}") };
        assert_eq!(left, path);
        assert!(matches!(*failure, Error::Io { operation: "write", .. }));
    }
}
