//! Decides how a file that a caller names as the output is written: replaced as a whole, or opened
//! as it is. `regular_file.rs` reads files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::tree::new_file::NewFile;
use crate::tree::walk::parent;

/// A file that is written as a whole.
///
/// A regular file is replaced in one step by [`finish`](Self::finish), and so is a file that does
/// not exist yet. Symbolic links to it stay. Everything else, such as `/dev/null`, a FIFO or a
/// terminal, stays as well, and is written to immediately.
///
/// Dropping the value leaves a regular file as it was. If the process is killed, nothing of the new
/// one is left, unless the file system has no files without a name (open(2), `O_TMPFILE`).
///
/// ```
/// use std::io::Write;
///
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("list");
/// let mut file = layer::OutputFile::create(&path)?;
/// file.write_all(b"gcc\n")?;
/// file.finish()?;
/// assert_eq!(std::fs::read(&path)?, b"gcc\n");
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "a regular file is replaced only by `finish`"]
pub struct OutputFile(Output);

#[derive(Debug)]
enum Output {
    /// The new file, and the path of the file that it replaces, without a link at its end.
    Replacement(NewFile, PathBuf),
    Open(File),
}

impl OutputFile {
    /// Begins to write the file at `path`. Its mode is 0666 without the bits of the umask.
    ///
    /// # Errors
    /// The kernel's error if nothing can be created beside a regular file, or if a file of another
    /// type cannot be opened for writing.
    pub fn create(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        let Some(replaced) = replaced(path)? else {
            return Ok(Self(Output::Open(OpenOptions::new().write(true).open(path)?)));
        };
        Ok(Self(Output::Replacement(NewFile::create(parent(&replaced), 0o666)?, replaced)))
    }

    /// Returns the directory of a regular file; `None` for a file of another type.
    pub fn dir(&self) -> Option<&Path> {
        match &self.0 {
            Output::Replacement(_, path) => Some(parent(path)),
            Output::Open(_) => None,
        }
    }

    /// Ends the output. A regular file is on the disk before it gets its name.
    ///
    /// # Errors
    /// The kernel's error if the new file cannot be written to the disk or renamed. The former one
    /// is then unchanged.
    pub fn finish(self) -> io::Result<()> {
        match self.0 {
            Output::Replacement(new, path) => {
                new.file().sync_all()?;
                new.persist(&path)
            }
            Output::Open(_) => Ok(()),
        }
    }
}

impl Write for OutputFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Output::Replacement(file, _) => file.write(bytes),
            Output::Open(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Output::Replacement(file, _) => file.flush(),
            Output::Open(file) => file.flush(),
        }
    }
}

/// Returns the path of the regular file or of nothing to which `path` leads; `None` for a file of
/// another type.
fn replaced(path: &Path) -> io::Result<Option<PathBuf>> {
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Some(end_of_links(path))),
        metadata => metadata?,
    };
    if !metadata.is_file() {
        return Ok(None);
    }
    let is_same = |path: &Path| {
        let same = |other: fs::Metadata| (other.dev(), other.ino()) == (metadata.dev(), metadata.ino());
        path.symlink_metadata().is_ok_and(same)
    };
    // A link in /proc can lead to a file that has no path.
    Ok(fs::canonicalize(path).ok().filter(|path| is_same(path)))
}

/// Returns the path of the missing file to which `path` leads.
fn end_of_links(path: &Path) -> PathBuf {
    let mut path = path.to_path_buf();
    // The kernel has found an end, so the links are not a loop.
    while let Ok(target) = fs::read_link(&path) {
        path = parent(&path).join(target);
    }
    path
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, symlink};
    use std::thread;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    fn write(path: &Path, text: &str) -> io::Result<()> {
        let mut file = OutputFile::create(path)?;
        file.write_all(text.as_bytes())?;
        file.finish()
    }

    #[test]
    fn a_regular_file_is_replaced_and_links_to_it_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir(path("sub")).unwrap();
        fs::write(path("sub/old"), "old").unwrap();
        symlink("sub/old", path("link")).unwrap();
        symlink("sub/chain", path("dangling")).unwrap();
        symlink("made", path("sub/chain")).unwrap();
        fs::hard_link(path("sub/old"), path("other")).unwrap();
        for (name, target) in [("new", "new"), ("link", "sub/old"), ("dangling", "sub/made")] {
            drop(OutputFile::create(path(name)).unwrap());
            write(&path(name), name).unwrap();
            assert_eq!(fs::read_to_string(path(target)).unwrap(), name);
        }
        assert!(["link", "dangling", "sub/chain"].iter().all(|name| path(name).is_symlink()));
        // The file was replaced, not written to.
        assert_eq!(fs::read_to_string(path("other")).unwrap(), "old");
        let count = |dir: PathBuf| fs::read_dir(dir).unwrap().count();
        assert_eq!((count(path("")), count(path("sub"))), (5, 3));
    }

    #[test]
    fn a_file_of_another_type_stays_and_is_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let [fifo, link] = ["fifo", "link"].map(|name| dir.path().join(name));
        mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        symlink("fifo", &link).unwrap();
        for path in [&fifo, &link] {
            let text = thread::scope(|scope| {
                let reader = scope.spawn(|| fs::read_to_string(&fifo).unwrap());
                write(path, "text").unwrap();
                reader.join().unwrap()
            });
            assert_eq!(text, "text");
        }
        assert!(fifo.symlink_metadata().unwrap().file_type().is_fifo() && link.is_symlink());
        assert_eq!(OutputFile::create("/dev/null").unwrap().dir(), None);
        assert_eq!(OutputFile::create(dir.path()).unwrap_err().kind(), ErrorKind::IsADirectory);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_file_without_a_path_is_written_to() {
        use std::os::fd::AsRawFd;
        let mut file = tempfile::tempfile().unwrap();
        write(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())), "text").unwrap();
        let mut text = String::new();
        io::Read::read_to_string(&mut file, &mut text).unwrap();
        assert_eq!(text, "text");
    }
}
