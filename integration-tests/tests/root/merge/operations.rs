//! The changes that a command in a container may make to a tree. The property tests of merges and
//! captures apply them.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use integration_tests::tree::through_proc;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, XattrFlags, chmodat, chownat, linkat,
    lsetxattr, mkdirat, mknodat, openat, openat2, renameat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::fs::{Dir, Gid, Uid};
use rustix::io::{Errno, Result, write};

/// One change to a tree.
#[derive(Debug, Clone)]
pub(crate) enum Operation {
    /// Appends to a regular file, and creates it if it is missing.
    Write(PathBuf, Vec<u8>),
    MakeDir(PathBuf),
    /// Like `rm` or `rmdir`.
    Remove(PathBuf),
    /// Like `rm -r`.
    RemoveAll(PathBuf),
    Rename(PathBuf, PathBuf),
    Link(PathBuf, PathBuf),
    Symlink(PathBuf, OsString),
    Fifo(PathBuf),
    Chmod(PathBuf, u32),
    Chown(PathBuf),
    SetXattr(PathBuf),
    SetTime(PathBuf),
}

impl Operation {
    /// Applies the change below `root`. Symbolic links are not followed.
    pub(crate) fn apply(&self, root: BorrowedFd<'_>) -> Result<()> {
        match self {
            Operation::Write(path, content) => {
                let (dir, name) = parent(root, path)?;
                let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = match kind(&dir, name) {
                    Ok(FileType::RegularFile) => openat(&dir, name, flags, Mode::empty())?,
                    Ok(_) => return Err(Errno::INVAL),
                    Err(_) => openat(&dir, name, flags | OFlags::CREATE | OFlags::EXCL, Mode::from_raw_mode(0o644))?,
                };
                write(&file, content).map(drop)
            }
            Operation::MakeDir(path) => {
                let (dir, name) = parent(root, path)?;
                mkdirat(dir, name, Mode::from_raw_mode(0o755))
            }
            Operation::Remove(path) => {
                let (dir, name) = parent(root, path)?;
                let is_dir = kind(&dir, name)? == FileType::Directory;
                unlinkat(dir, name, if is_dir { AtFlags::REMOVEDIR } else { AtFlags::empty() })
            }
            Operation::RemoveAll(path) => {
                let (dir, name) = parent(root, path)?;
                remove_all(dir.as_fd(), name)
            }
            Operation::Rename(from, to) => {
                let ((from_dir, from), (to_dir, to)) = (parent(root, from)?, parent(root, to)?);
                renameat(from_dir, from, to_dir, to)
            }
            Operation::Link(from, to) => {
                let ((from_dir, from), (to_dir, to)) = (parent(root, from)?, parent(root, to)?);
                linkat(from_dir, from, to_dir, to, AtFlags::empty())
            }
            Operation::Symlink(path, target) => {
                let (dir, name) = parent(root, path)?;
                symlinkat(target, dir, name)
            }
            Operation::Fifo(path) => {
                let (dir, name) = parent(root, path)?;
                mknodat(dir, name, FileType::Fifo, Mode::from_raw_mode(0o600), 0)
            }
            Operation::Chmod(path, mode) => {
                let (dir, name) = parent(root, path)?;
                if kind(&dir, name)? == FileType::Symlink {
                    return Err(Errno::LOOP);
                }
                chmodat(dir, name, Mode::from_raw_mode(*mode), AtFlags::empty())
            }
            Operation::Chown(path) => {
                let (dir, name) = parent(root, path)?;
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                chownat(dir, name, Some(Uid::from_raw(1234)), Some(Gid::from_raw(1234)), flags)
            }
            Operation::SetXattr(path) => {
                let (dir, name) = parent(root, path)?;
                lsetxattr(through_proc(&dir).join(name), "trusted.written", b"w", XattrFlags::empty())
            }
            Operation::SetTime(path) => {
                let (dir, name) = parent(root, path)?;
                let time = Timespec { tv_sec: 77, tv_nsec: 7 };
                let times = Timestamps { last_access: time, last_modification: time };
                utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
            }
        }
    }
}

fn parent<'a>(root: BorrowedFd<'_>, path: &'a Path) -> Result<(OwnedFd, &'a OsStr)> {
    let above = match path.parent() {
        Some(above) if !above.as_os_str().is_empty() => above,
        _ => Path::new("."),
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let dir = openat2(root, above, flags, Mode::empty(), resolve)?;
    Ok((dir, path.file_name().unwrap_or_default()))
}

fn kind(dir: &OwnedFd, name: &OsStr) -> Result<FileType> {
    Ok(FileType::from_raw_mode(statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode))
}

/// Removes everything that can be removed, whatever the order of the listing. That order is not
/// part of a tree.
fn remove_all(dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        result => return result,
    }
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inner = openat(dir, name, flags, Mode::empty())?;
    let mut removed = Ok(());
    for entry in Dir::read_from(&inner)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            use std::os::unix::ffi::OsStrExt;
            match remove_all(inner.as_fd(), OsStr::from_bytes(name)) {
                // The name is listed but does not exist, which is the fault of the layers. The
                // directory above it cannot be removed then.
                Err(Errno::NOENT) => {}
                result => removed = removed.and(result),
            }
        }
    }
    removed.and(unlinkat(dir, name, AtFlags::REMOVEDIR))
}
