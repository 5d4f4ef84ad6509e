//! Records and reads when a layer was last used. `store/gc.rs` decides which layers are removed
//! because of it.

use std::fs;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, open, openat};
use nix::sys::stat::{Mode, UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;

use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::tree::owner;

/// The name of the sentinel.
const LAST_USED: &str = "last_used";

const NOW: TimeSpec = TimeSpec::UTIME_NOW;

/// Least-recently-used bookkeeping: the modification time of `<layer>/last_used`. The caller
/// decides what follows from it.
impl Layer {
    /// Marks the layer as used now. Makes the sentinel, with mode 0644, if it is missing. Rewrites
    /// no JSON. A sentinel that root makes belongs to the owner of the layer, who can then stamp
    /// it. A file that exists keeps its owner.
    ///
    /// # Errors
    /// [`Error::Io`] if the sentinel can be neither stamped nor made (a read-only store).
    pub fn touch(&self) -> Result<()> {
        let path = self.last_used_path();
        match utimensat(AT_FDCWD, &path, &NOW, &NOW, UtimensatFlags::NoFollowSymlink) {
            Err(Errno::ENOENT) => {}
            result => return result.map_err(Error::io("stamp", path)),
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let dir = open(self.path(), flags, Mode::empty()).map_err(Error::io("create", &path))?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match openat(&dir, LAST_USED, flags, Mode::from_bits_truncate(0o644)) {
            Ok(file) => owner::give(&file, &dir),
            // Another process has made the file first. Its owner stays.
            Err(Errno::EEXIST) => {}
            Err(errno) => return Err(Error::io("create", path)(errno)),
        }
        utimensat(&dir, LAST_USED, &NOW, &NOW, UtimensatFlags::NoFollowSymlink).map_err(Error::io("stamp", path))
    }

    /// Returns the time at which the layer was last used, or `None` if it never was.
    ///
    /// # Errors
    /// [`Error::Io`] if the time cannot be read.
    pub fn last_used(&self) -> Result<Option<SystemTime>> {
        modified(&self.last_used_path())
    }

    /// Returns the time at which the layer was last used or, if it never was, completed: the
    /// modification time of `layer.json`. A [`Collector`](crate::Collector) removes layers in the
    /// order of these times. Returns `None` if there is no `layer.json`, either.
    ///
    /// # Errors
    /// [`Error::Io`] if the time cannot be read.
    pub fn last_used_or_made(&self) -> Result<Option<SystemTime>> {
        let used = self.last_used()?;
        if used.is_some() {
            return Ok(used);
        }
        modified(&self.meta_path())
    }
}

/// Returns the modification time of a file, if the file exists.
fn modified(path: &Path) -> Result<Option<SystemTime>> {
    match fs::symlink_metadata(path).and_then(|metadata| metadata.modified()) {
        Ok(time) => Ok(Some(time)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::io("look at", path)(source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    #[test]
    fn a_touch_makes_the_sentinel_and_stamps_it() {
        let dir = tempfile::tempdir().unwrap();
        let layer = Layer::at(dir.path());
        assert_eq!(layer.last_used().unwrap(), None);
        layer.touch().unwrap();
        let metadata = fs::metadata(layer.last_used_path()).unwrap();
        assert_eq!((metadata.permissions().mode() & 0o7777, metadata.len()), (0o644, 0));

        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        fs::File::open(layer.last_used_path()).unwrap().set_modified(long_ago).unwrap();
        assert_eq!(layer.last_used().unwrap(), Some(long_ago));
        layer.touch().unwrap();
        assert!(layer.last_used().unwrap() > Some(long_ago));
    }

    #[test]
    fn a_missing_layer_is_an_error_and_a_symlink_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Layer::at(dir.path().join("x")).touch(), Err(Error::Io { operation: "create", .. })));

        let outside = dir.path().join("outside");
        let layer = Layer::at(dir.path().join("layer"));
        fs::create_dir(layer.path()).unwrap();
        std::os::unix::fs::symlink(&outside, layer.last_used_path()).unwrap();
        layer.touch().unwrap();
        assert!(!outside.exists());
    }
}
