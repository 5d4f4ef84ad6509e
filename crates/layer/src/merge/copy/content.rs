//! Copies the bytes of a regular file. `merge/copy.rs` copies everything else.

use std::os::fd::BorrowedFd;

use rustix::fs::{SeekFrom, copy_file_range, ftruncate, ioctl_ficlone, seek};
use rustix::io::{Errno, pread, pwrite};

/// The number of bytes that one call moves where copy_file_range(2) cannot copy.
const BLOCK_BYTES: usize = 128 * 1024;

/// Makes the new, empty file `to` hold the `size` bytes of `from`. Clones the file if possible.
/// Otherwise copies its data and leaves its holes as holes.
pub(super) fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>, size: u64) -> rustix::io::Result<()> {
    // The reason why the file cannot be cloned does not matter: if one of the files has a problem,
    // the copy below fails as well.
    if ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    ftruncate(to, size)?;
    let mut position = 0;
    while let Some((start, end)) = next_data(from, position, size)? {
        copy_range(from, to, start, end)?;
        position = end;
    }
    Ok(())
}

/// Returns the start and the end of the next data from `position` on, or `None` after the last
/// data. Everything counts as data if the file system cannot report holes.
fn next_data(from: BorrowedFd<'_>, position: u64, size: u64) -> rustix::io::Result<Option<(u64, u64)>> {
    if position >= size {
        return Ok(None);
    }
    let start = match seek(from, SeekFrom::Data(position)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::NOTSUP) => return Ok(Some((position, size))),
        Err(error) => return Err(error),
    };
    let end = seek(from, SeekFrom::Hole(start))?.min(size);
    Ok((start < end).then_some((start, end)))
}

fn copy_range(from: BorrowedFd<'_>, to: BorrowedFd<'_>, start: u64, end: u64) -> rustix::io::Result<()> {
    let (mut read_at, mut write_at) = (start, start);
    while read_at < end {
        let left = usize::try_from(end - read_at).unwrap_or(usize::MAX);
        // This limit is far below the maximum of any 32-bit count in the kernel.
        match copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), left.min(1 << 30)) {
            // The file ends here, or its file system returns 0 for every file.
            Ok(0) => return copy_by_hand(from, to, read_at, end),
            Ok(_) => {}
            // The kernel cannot copy between these file systems, or cannot copy at all.
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::NOTSUP | Errno::PERM) => {
                return copy_by_hand(from, to, read_at, end);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn copy_by_hand(from: BorrowedFd<'_>, to: BorrowedFd<'_>, start: u64, end: u64) -> rustix::io::Result<()> {
    let mut buffer = vec![0; BLOCK_BYTES];
    let mut position = start;
    while position < end {
        let wanted = usize::try_from(end - position).unwrap_or(usize::MAX).min(BLOCK_BYTES);
        let read = pread(from, &mut buffer[..wanted], position)?;
        if read == 0 {
            // The file has been cut short since its size was read: the layer is being changed.
            return Err(Errno::STALE);
        }
        let mut block = &buffer[..read];
        while !block.is_empty() {
            let written = pwrite(to, block, position)?;
            position += written as u64;
            block = &block[written..];
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsFd;
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    /// Makes a file of data, a hole, data, and a hole at the end.
    fn sparse(path: &std::path::Path) -> File {
        let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
        file.write_all_at(&[1; 5000], 0).unwrap();
        file.write_all_at(&[2; 3], 40 << 20).unwrap();
        file.set_len(100 << 20).unwrap();
        file
    }

    #[test]
    fn holes_stay_holes() {
        let dir = tempfile::tempdir().unwrap();
        let from = sparse(&dir.path().join("from"));
        let to = File::create_new(dir.path().join("to")).unwrap();
        copy(from.as_fd(), to.as_fd(), 100 << 20).unwrap();
        assert!(fs::read(dir.path().join("to")).unwrap() == fs::read(dir.path().join("from")).unwrap());
        let disk = to.metadata().unwrap().blocks() * 512;
        assert!(disk < 1 << 20, "{disk} bytes on disk");
    }

    #[test]
    fn a_copy_by_hand_has_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let from = sparse(&dir.path().join("from"));
        let to = File::create_new(dir.path().join("to")).unwrap();
        copy_by_hand(from.as_fd(), to.as_fd(), 10, (40 << 20) + 3).unwrap();
        let mut expected = fs::read(dir.path().join("from")).unwrap();
        expected[..10].fill(0);
        expected.truncate((40 << 20) + 3);
        assert!(fs::read(dir.path().join("to")).unwrap() == expected);
    }

    #[test]
    fn a_file_that_shrinks_during_the_copy_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("from"), "four").unwrap();
        let from = File::open(dir.path().join("from")).unwrap();
        let to = File::create_new(dir.path().join("to")).unwrap();
        assert_eq!(copy_range(from.as_fd(), to.as_fd(), 0, 5), Err(Errno::STALE));
    }
}
