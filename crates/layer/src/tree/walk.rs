//! Walks trees through descriptors: at any depth, with a bounded number of descriptors, without
//! recursion, and by several threads. `remove.rs`, `size.rs`, `merge` and `capture` are the walks.
//!
//! A directory that is still to be processed is a [`Node`], which has a name and a parent. A
//! [`Cursor`] opens it, usually from the directory that the cursor holds open already. A
//! [`work_queue`] shares the work among threads. Nothing here follows a symbolic link or enters
//! another mount. [`Entries`] reads a single directory.

mod cursor;
mod node;
pub(crate) mod visit;
pub(crate) mod work_queue;

use std::ffi::{CStr, CString, OsStr};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, RawDir, RawDirEntry, ResolveFlags, Stat, StatxFlags, fstat, makedev,
    openat, openat2, readlinkat, statat, statx,
};
use rustix::io::Errno;
use rustix::path::Arg;

pub(crate) use self::cursor::Cursor;
pub(crate) use self::node::Node;

/// The flags to open a directory from which other files are opened. They need no permission on the
/// directory itself.
pub(crate) const PATH: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The flags to open a directory for reading.
pub(crate) const READ: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The size of the buffer for one `getdents64`, enough for a thousand short names.
pub(crate) const ENTRIES_SIZE_BYTES: usize = 64 * 1024;

/// The length of the longest path that one call takes, without its terminating NUL (`PATH_MAX`,
/// path_resolution(7)).
pub(crate) const LONGEST_PATH: usize = 4095;

/// The flags that keep a path below a directory and on its mount, whatever is renamed concurrently
/// (openat2(2), Linux 5.6). A mount point on the way fails with `EXDEV`. A symbolic link fails with
/// `ELOOP`, or with `ENOTDIR` if it is the last name and a directory should be opened.
const STAY: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_XDEV);

/// The device and the inode number of a file, which identify it under all its names.
pub(crate) type Identity = (u64, u64);

/// Opens `path` below `root`. The empty path is `root` itself. The path may be longer than one call
/// can take.
pub(crate) fn open_beneath(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let mut rest = path.as_os_str().as_bytes();
    let mut passed: Option<OwnedFd> = None;
    while rest.len() > LONGEST_PATH {
        // Of 4,096 bytes at least one is a slash: a name has at most 255.
        let slash = rest[..=LONGEST_PATH].iter().rposition(|&byte| byte == b'/').ok_or(Errno::NAMETOOLONG)?;
        let from = passed.as_ref().map_or(root, AsFd::as_fd);
        passed = Some(open_staying(from, &rest[..slash], PATH)?);
        rest = &rest[slash + 1..];
    }
    let from = passed.as_ref().map_or(root, AsFd::as_fd);
    open_staying(from, if rest.is_empty() { b"." } else { rest }, flags)
}

/// Opens the file `name` in `dir`. `name` is a single name, not a path.
pub(crate) fn open_in(dir: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    open_staying(dir, name, flags)
}

/// Opens the directory above `dir`, which must be `expected`. Fails with `ESTALE` if `dir` was
/// moved.
#[cfg(feature = "oci")]
pub(crate) fn open_above(dir: BorrowedFd<'_>, expected: Identity) -> rustix::io::Result<OwnedFd> {
    let above = openat(dir, c"..", READ, Mode::empty())?;
    if identity(&fstat(&above)?) == expected { Ok(above) } else { Err(Errno::STALE) }
}

/// Opens `path`, which [stays](STAY) below `dir`. Fails with `EXDEV` only at a mount point.
fn open_staying<P: Arg + Copy>(dir: BorrowedFd<'_>, path: P, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    match openat2(dir, path, flags, Mode::empty(), STAY) {
        // The kernel also returns `EXDEV` if the file was moved out of the directory before it was
        // opened (`complete_walk` in fs/namei.c).
        Err(Errno::XDEV) => {}
        opened => return opened,
    }
    match openat2(dir, path, flags, Mode::empty(), STAY.difference(ResolveFlags::NO_XDEV)) {
        // The file was moved back.
        Ok(found) if mount_of(found.as_fd())? == mount_of(dir)? => Ok(found),
        Ok(_) => Err(Errno::XDEV),
        Err(Errno::XDEV) => Err(Errno::NOENT),
        Err(errno) => Err(errno),
    }
}

/// Returns the ID of the mount that an open file is on (statx(2), Linux 5.8).
pub(crate) fn mount_of(file: BorrowedFd<'_>) -> rustix::io::Result<u64> {
    Ok(Place::of(file, c"")?.mount)
}

/// A file and the mount through which a process sees it. Two mounts can show one directory, with
/// different directories above it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(crate) identity: Identity,
    pub(crate) mount: u64,
}

impl Place {
    /// Looks at `path`, which starts at the open directory `dir`. The empty path is `dir` itself.
    pub(crate) fn of(dir: BorrowedFd<'_>, path: &CStr) -> rustix::io::Result<Self> {
        let wanted = StatxFlags::INO | StatxFlags::MNT_ID;
        let seen = statx(dir, path, AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW, wanted)?;
        let device = makedev(seen.stx_dev_major, seen.stx_dev_minor);
        Ok(Self { identity: (device, seen.stx_ino), mount: seen.stx_mnt_id })
    }
}

/// Returns the identity of the file that `stat` describes.
pub(crate) fn identity(stat: &Stat) -> Identity {
    (stat.st_dev, stat.st_ino)
}

/// Returns the path of an open file, as the kernel knows it now (proc_pid_fd(5)).
pub(crate) fn path_of(file: BorrowedFd<'_>) -> rustix::io::Result<PathBuf> {
    let path = readlinkat(CWD, format!("/proc/self/fd/{}", file.as_raw_fd()), Vec::new())?;
    Ok(OsStr::from_bytes(path.as_bytes()).into())
}

/// Returns the open directory `dir` and the directories above it, up to the root of the file system
/// that this process sees, each with its attributes.
pub(crate) fn upwards(dir: BorrowedFd<'_>) -> impl Iterator<Item = rustix::io::Result<(OwnedFd, Stat)>> {
    let mut next = Some(openat(dir, c".", PATH, Mode::empty()));
    let mut below = None;
    std::iter::from_fn(move || {
        let this = next.take()?.and_then(|this| Ok((fstat(&this)?, this)));
        let (stat, this) = match this {
            Ok(this) => this,
            Err(errno) => return Some(Err(errno)),
        };
        // The parent of the root is the root.
        if below.replace(identity(&stat)) == Some(identity(&stat)) {
            return None;
        }
        next = Some(openat(&this, c"..", PATH, Mode::empty()));
        Some(Ok((this, stat)))
    })
}

/// Returns whether `name` is `.` or `..`, which every directory has.
pub(crate) fn is_dots(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

/// Returns whether an open directory has no entries. It must have been opened for [reading](READ)
/// and not read from before.
pub(crate) fn is_empty(dir: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    let mut buffer = [MaybeUninit::uninit(); 1024];
    let mut entries = RawDir::new(dir, &mut buffer);
    while let Some(entry) = entries.next() {
        if !is_dots(entry?.file_name()) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Returns the directory that contains `path`: `.` for a name alone.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Returns the type of `entry` in `dir`. Looks at the file itself only if the file system does not
/// report the type in the directory.
pub(crate) fn file_type(dir: BorrowedFd<'_>, entry: &RawDirEntry<'_>) -> rustix::io::Result<FileType> {
    known_type(dir, entry.file_name(), entry.file_type())
}

fn known_type(dir: BorrowedFd<'_>, name: &CStr, reported: FileType) -> rustix::io::Result<FileType> {
    match reported {
        FileType::Unknown => {
            let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            Ok(FileType::from_raw_mode(stat.st_mode))
        }
        known => Ok(known),
    }
}

/// The names in an open directory, each with its type, without `.` and `..` and in no particular
/// order.
///
/// std's `ReadDir`, and therefore walkdir, panics if the directory cannot be closed (closedir(3)
/// fails with `EIO`). This iterator ignores such a failure, because nothing has been written.
#[derive(Debug)]
pub(crate) struct Entries(Dir);

impl Entries {
    /// Reads `dir`, which must have been opened for [reading](READ) and not read from before.
    pub(crate) fn new(dir: OwnedFd) -> rustix::io::Result<Self> {
        Dir::new(dir).map(Self)
    }
}

impl Iterator for Entries {
    type Item = rustix::io::Result<(CString, FileType)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let entry = match self.0.next()? {
                Ok(entry) => entry,
                Err(errno) => return Some(Err(errno)),
            };
            let name = entry.file_name();
            if is_dots(name) {
                continue;
            }
            match self.0.fd().and_then(|dir| known_type(dir, name, entry.file_type())) {
                Ok(kind) => return Some(Ok((name.into(), kind))),
                // The entry has been removed since.
                Err(Errno::NOENT) => {}
                Err(errno) => return Some(Err(errno)),
            }
        }
    }
}

/// Returns `name` as a part of a path.
pub(crate) fn as_os_str(name: &CStr) -> &OsStr {
    OsStr::from_bytes(name.to_bytes())
}

/// Returns `name` in the form that a system call takes. Fails with `EINVAL` if the name contains a
/// NUL. No file has such a name.
pub(crate) fn as_c_string(name: &OsStr) -> rustix::io::Result<CString> {
    CString::new(name.as_bytes()).map_err(|_| Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::fs::mkdirat;

    use super::*;

    fn open(path: &Path) -> OwnedFd {
        openat(CWD, path, READ, Mode::empty()).unwrap()
    }

    #[test]
    fn a_path_may_be_longer_than_one_call_takes() {
        let dir = tempfile::tempdir().unwrap();
        let name = "n".repeat(255);
        let mut deepest = open(dir.path());
        for _ in 0..50 {
            mkdirat(&deepest, &name, Mode::RWXU).unwrap();
            deepest = openat(&deepest, &name, READ, Mode::empty()).unwrap();
        }
        let path: PathBuf = std::iter::repeat_n(&name, 50).collect();
        assert!(path.as_os_str().len() > 3 * LONGEST_PATH);
        let opened = open_beneath(open(dir.path()).as_fd(), &path, READ).unwrap();
        assert_eq!(fstat(opened).unwrap().st_ino, fstat(deepest).unwrap().st_ino);
        crate::tree::remove::remove_tree(dir.path().join(name)).unwrap();
    }

    #[test]
    fn names_are_listed_with_their_types() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("dir")).unwrap();
        fs::write(dir.path().join(OsStr::from_bytes(b"\xff")), "").unwrap();
        symlink("dir", dir.path().join("link")).unwrap();
        let mut entries: Vec<_> = Entries::new(open(dir.path())).unwrap().map(Result::unwrap).collect();
        entries.sort_by(|one, other| one.0.cmp(&other.0));
        let expected = [(c"dir", FileType::Directory), (c"link", FileType::Symlink), (c"\xff", FileType::RegularFile)];
        assert_eq!(entries, expected.map(|(name, kind)| (name.to_owned(), kind)));
    }

    #[test]
    fn a_path_leads_through_no_link_and_stays_below_the_root() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("root/a/b")).unwrap();
        symlink("a", dir.path().join("root/link")).unwrap();
        let root = open(&dir.path().join("root"));
        let open = |path: &str| open_beneath(root.as_fd(), Path::new(path), READ).map(drop);
        assert_eq!(open(""), Ok(()));
        assert_eq!(open("a/b"), Ok(()));
        assert_eq!(open("link"), Err(Errno::NOTDIR));
        assert_eq!(open("link/b"), Err(Errno::LOOP));
        assert_eq!(open("../root"), Err(Errno::NOENT));
        assert_eq!(open("/"), Err(Errno::NOENT));
        assert_eq!(open("missing"), Err(Errno::NOENT));
    }
}
