//! The directory that a runtime is pointed to.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf, absolute};

use rustix::fs::OFlags;

use crate::template::{Config, TemplateError};

/// A directory with the `config.json` of one run in it: what `--bundle` of an OCI runtime names.
/// [`Runtime::run`](crate::Runtime::run) writes what its runtime needs into that file.
///
/// The directory is the caller's: it is there before, and removing it after the run is the caller's too.
#[derive(Debug, Clone, PartialEq)]
pub struct Bundle {
    path: PathBuf,
    config_path: PathBuf,
    config: Config,
}

impl Bundle {
    /// Writes `config` to `config.json` in the existing directory `dir`, readable by the owner alone, as the environment
    /// may hold secrets. It is not flushed to the disk: it is of no use after the run.
    ///
    /// # Errors
    ///
    /// [`TemplateError::Io`] when `dir` is no directory, when it has a `config.json` already (which is left as it is; a
    /// symbolic link of that name is not followed) or when the file cannot be written, which removes it again. Only if
    /// that fails too is a half-written file left, which [`TemplateError::Leftover`] names.
    pub fn create(dir: impl AsRef<Path>, config: &Config) -> Result<Bundle, TemplateError> {
        // Runtimes work in another directory.
        let path = absolute(dir.as_ref()).map_err(TemplateError::io("find", dir.as_ref()))?;
        let config_path = path.join("config.json");
        let json = serde_json::to_vec(config).map_err(|source| TemplateError::Serialize { source })?;
        write_new(&config_path, |file| file.write_all(&json))?;
        Ok(Bundle { path, config_path, config: config.clone() })
    }

    /// Writes what a runtime is to read in the place of the configuration.
    pub(crate) fn write(&self, config: &Config) -> Result<(), TemplateError> {
        let json = serde_json::to_vec(config).map_err(|source| TemplateError::Serialize { source })?;
        let mut options = OpenOptions::new();
        options.write(true).truncate(true).custom_flags(OFlags::NOFOLLOW.bits() as i32);
        let written = options.open(&self.config_path).and_then(|mut file| file.write_all(&json));
        written.map_err(TemplateError::io("write", &self.config_path))
    }

    /// The directory, as an absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// Whether the command gets a terminal of its own.
    pub(crate) fn has_terminal(&self) -> bool {
        self.config.has_terminal()
    }

    /// The `config.json` in it.
    pub fn config_path(&self) -> &Path {
        &self.config_path
    }
}

/// Makes the file at `path` with what `content` writes, or leaves none there.
fn write_new(path: &Path, content: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), TemplateError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits() as i32)
        .open(path)
        .map_err(TemplateError::io("create", path))?;
    let Err(failure) = content(&mut file).map_err(TemplateError::io("write", path)) else { return Ok(()) };
    // It is ours to remove: it was created exclusively.
    match fs::remove_file(path) {
        Ok(()) => Err(failure),
        Err(cleanup) => Err(TemplateError::Leftover { left: path.to_owned(), failure: Box::new(failure), cleanup }),
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
        let TemplateError::Io { operation: "create", source, .. } = error else { panic!("{error:?}") };
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
        assert!(matches!(error, TemplateError::Io { operation: "write", .. }), "{error:?}");
        assert!(!path.exists());
    }

    #[test]
    fn names_the_half_that_cannot_be_removed_beside_the_failure() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let error = write_new(&path, |_| {
            // A directory in the file's place: unlink(2) refuses it to root, too.
            fs::remove_file(&path)?;
            fs::create_dir(&path)?;
            Err(io::ErrorKind::StorageFull.into())
        })
        .unwrap_err();
        let TemplateError::Leftover { left, failure, .. } = error else { panic!("{error:?}") };
        assert_eq!(left, path);
        assert!(matches!(*failure, TemplateError::Io { operation: "write", .. }));
    }
}
