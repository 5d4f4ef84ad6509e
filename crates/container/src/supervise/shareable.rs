//! Decides which files of the caller the container may have as they are. `streams` puts pipes in
//! the place of all others.

use std::io;

use rustix::fd::AsFd;
use rustix::fs::{FileType, fstat, fstatfs, makedev};

/// `PIPEFS_MAGIC` in linux/magic.h: the file system of pipes without a name.
const PIPEFS_MAGIC: u64 = 0x5049_5045;

/// Returns whether the container may have the file as it is: a pipe without a name, a socket, or
/// `/dev/null`. A process with a file or a terminal can open it again through `/proc/self/fd` with
/// other rights, and some runtimes make the command's user its owner.
pub(super) fn may_be_shared(file: impl AsFd) -> io::Result<bool> {
    let stat = fstat(&file)?;
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Fifo => fstatfs(&file)?.f_type as u64 == PIPEFS_MAGIC,
        FileType::Socket => true,
        FileType::CharacterDevice => stat.st_rdev == makedev(1, 3),
        _ => false,
    })
}
