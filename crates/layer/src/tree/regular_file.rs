//! Reads files whose type, size and content other programs decide: `layer.json`, sidecars, holds,
//! reports. `layer/json.rs` parses them.

use std::fs::File;
use std::io::Read;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;
use rustix::path::Arg;

use crate::error::{Error, Result};

/// The maximum size of a file that is read, in bytes. The report of a run over 500 layers has about
/// 100 KB.
const MAX_BYTES: u64 = 16 << 20;

/// Reads the whole file at `path`; `None` if there is nothing at `path`.
///
/// Never waits: a FIFO or a device is refused without being read. Never follows a symbolic link at
/// `path` itself.
///
/// # Errors
/// - [`Error::NotARegularFile`] if `path` is anything but a regular file.
/// - [`Error::FileTooLarge`] if the file has more than 16 MiB.
/// - [`Error::Io`] if it cannot be opened or read.
pub fn read_regular_file(path: impl AsRef<Path>) -> Result<Option<Vec<u8>>> {
    open(path.as_ref())?.map(|file| read(file, path.as_ref())).transpose()
}

/// Opens the regular file at `path`; `None` if there is nothing at `path`.
pub(crate) fn open(path: &Path) -> Result<Option<File>> {
    open_at(CWD, path, path)
}

/// Opens the regular file `name` in `dir`; `None` if there is nothing with this name. `path` is its
/// whole path.
pub(crate) fn open_at(dir: BorrowedFd<'_>, name: impl Arg, path: &Path) -> Result<Option<File>> {
    of_opened(openat(dir, name, FLAGS, Mode::empty()), path)
}

/// The flags to open a file that may be of any type. They never wait.
pub(crate) const FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOFOLLOW).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// Checks the result of opening a file with [`FLAGS`]; `None` if there is nothing. `path` is its
/// whole path.
pub(crate) fn of_opened(opened: rustix::io::Result<OwnedFd>, path: &Path) -> Result<Option<File>> {
    let not_regular = || Error::NotARegularFile { path: path.into() };
    let file = match opened {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        // LOOP: a symbolic link. NXIO, NODEV: a socket, or a device without a driver.
        Err(Errno::LOOP | Errno::NXIO | Errno::NODEV) => return Err(not_regular()),
        Err(errno) => return Err(Error::io("open", path)(errno)),
    };
    let stat = fstat(&file).map_err(Error::io("look at", path))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(Some(file.into())),
        _ => Err(not_regular()),
    }
}

/// Reads an open file to its end.
pub(crate) fn read(file: File, path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // Read one byte more than the limit, because the file may be growing.
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    match bytes.len() as u64 > MAX_BYTES {
        true => Err(Error::FileTooLarge { path: path.into(), max_bytes: MAX_BYTES }),
        false => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::fs::mknodat;

    use super::*;

    #[test]
    fn only_regular_files_of_a_bounded_size_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("file"), "text").unwrap();
        File::create(path("largest")).unwrap().set_len(MAX_BYTES).unwrap();
        File::create(path("too-large")).unwrap().set_len(MAX_BYTES + 1).unwrap();
        std::fs::create_dir(path("directory")).unwrap();
        symlink("file", path("link")).unwrap();
        mknodat(CWD, path("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();

        assert_eq!(read_regular_file(path("file")).unwrap().as_deref(), Some(&b"text"[..]));
        assert_eq!(read_regular_file(path("largest")).unwrap().unwrap().len() as u64, MAX_BYTES);
        assert_eq!(read_regular_file(path("missing")).unwrap(), None);
        for name in ["directory", "link", "fifo", "socket"] {
            let error = read_regular_file(path(name)).unwrap_err();
            assert!(
                matches!(&error, Error::NotARegularFile { path: named } if *named == path(name)),
                "{name}: {error}"
            );
        }
        let error = read_regular_file(path("too-large")).unwrap_err();
        assert!(matches!(error, Error::FileTooLarge { path: named, .. } if named == path("too-large")));
    }
}
