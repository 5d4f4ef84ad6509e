//! The bundle: the directory that an OCI runtime starts a container from.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf, absolute};

use rustix::fs::OFlags;

use crate::error::{Error, Result};
use crate::template::{Config, TemplateError};

/// A directory with the `config.json` of one run, which an OCI runtime takes as `--bundle`.
///
/// The directory belongs to the caller, who creates it before the run and removes it afterwards.
#[derive(Debug, Clone, PartialEq)]
pub struct Bundle {
    path: PathBuf,
    config_path: PathBuf,
    config: Config,
}

impl Bundle {
    /// Creates an empty `config.json` in the existing directory `dir`. Only the owner can read the
    /// file, because the environment may hold secrets. [`Runtime::run`](crate::Runtime::run) fills
    /// it with `config`, adapted to the runtime. To start a runtime without `run`, call
    /// [`write`](Self::write).
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if `dir` is not a directory, if it already has a `config.json`, or if
    /// the file cannot be created. An existing `config.json` stays as it is; a symbolic link of
    /// that name is not followed.
    pub fn create(dir: impl AsRef<Path>, config: Config) -> Result<Bundle> {
        // The runtime has another working directory.
        let path = absolute(dir.as_ref()).map_err(Error::io("find", dir.as_ref()))?;
        let config_path = path.join("config.json");
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        options.open(&config_path).map_err(Error::io("create", &config_path))?;
        Ok(Bundle { path, config_path, config })
    }

    /// Writes `config`, which may be adapted to a runtime, to `config.json`. Does not flush the
    /// file to the disk, because it is useless after the run.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the file cannot be written, or if a symbolic link has replaced it.
    /// A partly written file stays in the bundle.
    pub fn write(&self, config: &Config) -> Result<()> {
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io;
    use std::os::unix::fs::{MetadataExt, symlink};

    use serde_json::Value;

    use super::*;
    use crate::Template;

    fn config() -> Config {
        Template::builder(["true"]).build().unwrap().instantiate("/rootfs".as_ref()).unwrap()
    }

    #[test]
    fn a_bundle_has_the_whole_configuration_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = Bundle::create(dir.path(), config()).unwrap();
        assert_eq!(fs::read(bundle.config_path()).unwrap(), b"");
        bundle.write(bundle.config()).unwrap();
        assert_eq!((bundle.path(), bundle.config_path()), (dir.path(), dir.path().join("config.json").as_path()));
        assert_eq!(fs::metadata(bundle.config_path()).unwrap().mode() & 0o7777, 0o600);
        let read: Value = serde_json::from_slice(&fs::read(bundle.config_path()).unwrap()).unwrap();
        assert_eq!(read, serde_json::to_value(config()).unwrap());
    }

    #[test]
    fn a_bundle_overwrites_nothing_and_follows_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = dir.path().join("elsewhere");
        symlink(&elsewhere, dir.path().join("config.json")).unwrap();
        let error = Bundle::create(dir.path(), config()).unwrap_err();
        let Error::Io { operation: "create", source, .. } = error else { panic!("{error:?}") };
        assert_eq!(source.kind(), io::ErrorKind::AlreadyExists);
        assert!(!elsewhere.exists());
    }

    #[test]
    fn a_bundle_is_not_written_through_a_link_that_has_replaced_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = Bundle::create(dir.path(), config()).unwrap();
        let elsewhere = dir.path().join("elsewhere");
        fs::write(&elsewhere, "theirs").unwrap();
        fs::remove_file(bundle.config_path()).unwrap();
        symlink(&elsewhere, bundle.config_path()).unwrap();
        let error = bundle.write(bundle.config()).unwrap_err();
        assert!(matches!(error, Error::Io { operation: "write", .. }), "{error:?}");
        assert_eq!(fs::read_to_string(elsewhere).unwrap(), "theirs");
    }

    #[test]
    fn a_missing_directory_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        let error = Bundle::create(&missing, config()).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot create {}/config.json", missing.display()));
    }
}
