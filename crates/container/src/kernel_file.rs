//! Reads the files that the kernel makes when they are read, as in procfs, sysfs and cgroup file
//! systems.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Enough for most files of the kernel, so that the buffer need not grow.
const USUAL_BYTES: usize = 16 << 10;

/// Returns the content of the file at `path`.
///
/// Such a file has no size, so std::fs::read would begin with a few bytes and double them with each
/// call. The kernel makes the text again for many of these calls.
///
/// # Errors
/// The kernel's.
pub fn read_kernel_file(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    let mut content = Vec::with_capacity(USUAL_BYTES);
    // `Take` does not ask for the size, as `File` does.
    File::open(path)?.take(u64::MAX).read_to_end(&mut content)?;
    Ok(content)
}

/// Returns the content of the file at `path` as text.
///
/// # Errors
/// The kernel's.
pub(crate) fn read_kernel_text(path: impl AsRef<Path>) -> io::Result<String> {
    read_kernel_file(path).map(|content| String::from_utf8_lossy(&content).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_any_length_is_read() {
        let dir = tempfile::tempdir().unwrap();
        for length in [0, 1, USUAL_BYTES - 1, USUAL_BYTES, 3 * USUAL_BYTES + 7] {
            std::fs::write(dir.path().join("file"), vec![7; length]).unwrap();
            assert_eq!(read_kernel_file(dir.path().join("file")).unwrap(), vec![7; length]);
        }
        assert!(read_kernel_text("/proc/self/status").unwrap().starts_with("Name:"));
        assert_eq!(read_kernel_file("/proc/none").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
