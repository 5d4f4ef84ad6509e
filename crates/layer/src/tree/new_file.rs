//! A file that gets its name when it is complete: if its writer is killed, nothing of it is left.
//! The exceptions are short or rare. A file that replaces another has a temporary name `.new-…`
//! from its link until its rename, and a kill in between leaves it there. So does a kill at any
//! time on a file system that has no files without names. `output_file.rs` decides which files are
//! written in this way.

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, openat};
use rustix::io::Errno;
use tempfile::NamedTempFile;

/// The prefix of the name that a file has for a moment before it replaces another.
const PREFIX: &str = ".new-";

/// A new file without a name. Dropped, it is gone.
///
/// On a file system that has no such files, it has a temporary name (open(2), `O_TMPFILE`).
#[derive(Debug)]
#[must_use = "without `persist`, it is gone"]
pub(crate) struct NewFile {
    dir: PathBuf,
    file: Kind,
}

#[derive(Debug)]
enum Kind {
    Unnamed(File),
    Named(NamedTempFile),
}

impl NewFile {
    /// Makes a file on the file system of `dir`. Its mode is `mode` without the bits of the umask.
    pub(crate) fn create(dir: &Path, mode: u32) -> io::Result<Self> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = match openat(CWD, dir, flags, Mode::from_raw_mode(mode)) {
            Ok(file) => Kind::Unnamed(file.into()),
            Err(Errno::NOTSUP | Errno::ISDIR | Errno::INVAL) => Kind::Named(named(dir, mode)?),
            Err(errno) => return Err(errno.into()),
        };
        Ok(Self { dir: dir.into(), file })
    }

    /// Returns the file.
    pub(crate) fn file(&self) -> &File {
        match &self.file {
            Kind::Unnamed(file) => file,
            Kind::Named(file) => file.as_file(),
        }
    }

    /// Gives the file the name `path`, in the directory that it was made in. An existing file of
    /// this name is replaced in one step.
    pub(crate) fn persist(self, path: &Path) -> io::Result<()> {
        let file = match self.file {
            Kind::Unnamed(file) => file,
            Kind::Named(file) => return file.persist(path).map(drop).map_err(|error| error.error),
        };
        let link = |path: &Path| -> io::Result<()> {
            let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
            Ok(linkat(CWD, unnamed, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
        };
        match link(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            linked => return linked,
        }
        // Only a file with a name can replace another.
        let named = tempfile::Builder::new().prefix(PREFIX).make_in(&self.dir, link)?;
        named.persist(path).map(drop).map_err(|error| error.error)
    }
}

fn named(dir: &Path, mode: u32) -> io::Result<NamedTempFile> {
    tempfile::Builder::new().prefix(PREFIX).permissions(Permissions::from_mode(mode)).tempfile_in(dir)
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file().flush()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_appears_whole_in_place_of_another_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let names = || {
            let names = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.collect::<Vec<_>>()
        };
        // With and without support for files without a name.
        for is_named in [false, true] {
            let create = || {
                let mut new = NewFile::create(dir.path(), 0o600).unwrap();
                if is_named {
                    new.file = Kind::Named(named(dir.path(), 0o600).unwrap());
                }
                new
            };
            let mut new = create();
            new.write_all(b"lost").unwrap();
            assert_eq!(names().is_empty(), !is_named);
            drop(new);
            for text in ["one", "other"] {
                let mut new = create();
                new.write_all(text.as_bytes()).unwrap();
                new.persist(&path).unwrap();
                assert_eq!(fs::read_to_string(&path).unwrap(), text);
                assert_eq!(names(), ["file"]);
            }
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            fs::remove_file(&path).unwrap();
        }
        assert!(NewFile::create(&path, 0o600).is_err());
    }
}
