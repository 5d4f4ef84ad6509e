//! What a tree looks like: everything that two trees which are to be the same must agree in.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt::{self, Write};
use std::hash::{DefaultHasher, Hasher};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, Stat, openat, readlinkat, statat};
use rustix::io::Errno;

/// All of a tree, its root under the empty path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// What can be looked up.
    pub entries: BTreeMap<PathBuf, Entry>,
    /// Names that a directory lists and that cannot be looked up.
    pub phantoms: BTreeSet<PathBuf>,
}

/// One file of any type.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its type, as looked up.
    pub kind: FileType,
    /// Its type, as its directory lists it.
    pub listed: FileType,
    /// Permission bits, setuid, setgid and sticky included.
    pub mode: u32,
    /// User and group.
    pub owner: (u32, u32),
    /// Seconds and nanoseconds.
    pub modified: (i64, i64),
    /// Size and content of a regular file, the target of a symbolic link.
    pub content: Content,
    /// The device that a device node stands for, 0 for any other.
    pub rdev: u64,
    /// All that the tree shows; through a mount that is all but overlayfs's own.
    pub xattrs: BTreeMap<OsString, Vec<u8>>,
    /// The first name in the tree of a file that has several.
    pub group: Option<PathBuf>,
}

/// What is in a file.
#[derive(Clone, PartialEq, Eq)]
pub enum Content {
    /// Nothing to compare: a directory, a device, a fifo, a socket.
    None,
    /// All of it.
    Bytes(Vec<u8>),
    /// Size and hash of a file that is too large to show.
    Hash(u64, u64),
}

/// Files up to this size are kept whole.
const WHOLE_BYTES: u64 = 4096;

impl Snapshot {
    /// Of the tree at `path`, which is not followed if it is a symbolic link.
    pub fn of_path(path: &Path) -> Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root =
            openat(CWD, path, flags, Mode::empty()).with_context(|| format!("cannot open {}", path.display()))?;
        Self::of(root)
    }

    /// Of the tree below an open directory, at any depth.
    pub fn of(root: impl AsFd) -> Result<Self> {
        let root = root.as_fd();
        let mut snapshot = Self::default();
        let mut names: BTreeMap<(u64, u64), Vec<PathBuf>> = BTreeMap::new();
        let stat = rustix::fs::fstat(root)?;
        let mut waiting = vec![PathBuf::new()];
        snapshot.entries.insert(PathBuf::new(), entry(root, Path::new("."), FileType::Directory, &stat)?);
        while let Some(path) = waiting.pop() {
            let dir = open_deep(root, &path).with_context(|| format!("cannot open {}", path.display()))?;
            for (name, listed) in list(dir.as_fd()).with_context(|| format!("cannot list {}", path.display()))? {
                let below = path.join(&name);
                let stat = match statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => stat,
                    Err(Errno::NOENT) => {
                        snapshot.phantoms.insert(below);
                        continue;
                    }
                    Err(error) => return Err(error).with_context(|| format!("cannot look at {}", below.display())),
                };
                let entry = entry(dir.as_fd(), Path::new(&name), listed, &stat)
                    .with_context(|| format!("cannot read {}", below.display()))?;
                if entry.kind == FileType::Directory {
                    waiting.push(below.clone());
                } else {
                    names.entry((stat.st_dev, stat.st_ino)).or_default().push(below.clone());
                }
                snapshot.entries.insert(below, entry);
            }
        }
        for mut group in names.into_values().filter(|group| group.len() > 1) {
            group.sort();
            for name in &group {
                if let Some(entry) = snapshot.entries.get_mut(name) {
                    entry.group = Some(group[0].clone());
                }
            }
        }
        Ok(snapshot)
    }

    /// The same, with every time after `seconds` made the same: what has been written since is not the same to the
    /// nanosecond.
    pub fn with_times_until(mut self, seconds: i64) -> Self {
        for entry in self.entries.values_mut() {
            if entry.modified.0 > seconds {
                entry.modified = (i64::MAX, 0);
            }
        }
        self
    }

    /// What is different in `other`, a line each; empty if nothing is. Phantoms are no part of this.
    pub fn diff(&self, other: &Self) -> String {
        let mut lines = String::new();
        let paths: BTreeSet<_> = self.entries.keys().chain(other.entries.keys()).collect();
        for path in paths {
            match (self.entries.get(path), other.entries.get(path)) {
                (Some(here), Some(there)) if here == there => {}
                (Some(here), Some(there)) => {
                    let _ = writeln!(lines, "  /{}\n    expected {here:?}\n    found    {there:?}", path.display());
                }
                (Some(here), None) => {
                    let _ = writeln!(lines, "  /{}\n    expected {here:?}\n    found nothing", path.display());
                }
                (None, Some(there)) => {
                    let _ = writeln!(lines, "  /{}\n    expected nothing\n    found    {there:?}", path.display());
                }
                (None, None) => {}
            }
        }
        lines
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, listed, mode, owner, modified, content, rdev, xattrs, group } = self;
        write!(formatter, "{kind:?} {mode:04o} {}:{} {}.{:09}", owner.0, owner.1, modified.0, modified.1)?;
        if listed != kind {
            write!(formatter, " listed as {listed:?}")?;
        }
        match content {
            Content::None => {}
            Content::Bytes(bytes) => write!(formatter, " \"{}\"", bytes.escape_ascii())?,
            Content::Hash(size, hash) => write!(formatter, " {size} bytes #{hash:x}")?,
        }
        if *rdev != 0 {
            write!(formatter, " device {rdev:x}")?;
        }
        for (name, value) in xattrs {
            write!(formatter, " {}=\"{}\"", name.to_string_lossy(), value.escape_ascii())?;
        }
        match group {
            Some(group) => write!(formatter, " linked with /{}", group.display()),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Content::None => formatter.write_str("None"),
            Content::Bytes(bytes) => write!(formatter, "\"{}\"", bytes.escape_ascii()),
            Content::Hash(size, hash) => write!(formatter, "{size} bytes #{hash:x}"),
        }
    }
}

/// Opens the directory `path` below `root`, however long the path is.
pub fn open_deep(root: impl AsFd, path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut dir = openat(root, c".", flags, Mode::empty())?;
    let names: Vec<_> = path.iter().collect();
    // 15 names of 255 bytes and their slashes are less than PATH_MAX.
    for some in names.chunks(15) {
        dir = openat(&dir, some.iter().collect::<PathBuf>(), flags, Mode::empty())?;
    }
    Ok(dir)
}

fn list(dir: BorrowedFd<'_>) -> Result<Vec<(OsString, FileType)>> {
    let mut names = Vec::new();
    let mut buffer = [MaybeUninit::uninit(); 32 * 1024];
    let mut entries = RawDir::new(dir, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push((OsString::from_vec(name.to_vec()), entry.file_type()));
        }
    }
    Ok(names)
}

fn entry(dir: BorrowedFd<'_>, name: &Path, listed: FileType, stat: &Stat) -> Result<Entry> {
    let kind = FileType::from_raw_mode(stat.st_mode);
    let content = match kind {
        FileType::RegularFile => content(dir, name, u64::try_from(stat.st_size)?)?,
        FileType::Symlink => Content::Bytes(readlinkat(dir, name, Vec::new())?.into_bytes()),
        _ => Content::None,
    };
    let device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
    Ok(Entry {
        kind,
        listed,
        mode: stat.st_mode & 0o7777,
        owner: (stat.st_uid, stat.st_gid),
        modified: (stat.st_mtime, i64::try_from(stat.st_mtime_nsec)?),
        content,
        rdev: if device { stat.st_rdev } else { 0 },
        xattrs: xattrs(dir, name)?,
        group: None,
    })
}

fn content(dir: BorrowedFd<'_>, name: &Path, size: u64) -> Result<Content> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(dir, name, flags, Mode::empty())?;
    let mut hasher = DefaultHasher::new();
    // One more, to see the end.
    let mut buffer = vec![0; usize::try_from(size)?.min(1 << 20) + 1];
    let mut total = 0;
    loop {
        let read = rustix::io::read(&file, &mut *buffer)?;
        total += read as u64;
        if read == 0 {
            break;
        }
        if size <= WHOLE_BYTES && total == size {
            return Ok(Content::Bytes(buffer[..read].to_vec()));
        }
        hasher.write(&buffer[..read]);
    }
    if total != size {
        bail!("{total} bytes can be read of {size}");
    }
    Ok(if total == 0 { Content::Bytes(Vec::new()) } else { Content::Hash(total, hasher.finish()) })
}

fn xattrs(dir: BorrowedFd<'_>, name: &Path) -> Result<BTreeMap<OsString, Vec<u8>>> {
    // The calls take no descriptor and name before Linux 6.13.
    let path = through_proc(dir).join(name);
    let mut xattrs = BTreeMap::new();
    let mut names = match rustix::fs::llistxattr_query(&path) {
        Ok(0) | Err(Errno::NOTSUP) => return Ok(xattrs),
        length => vec![0; length?],
    };
    let length = rustix::fs::llistxattr(&path, &mut *names)?;
    for name in names[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 64 * 1024];
        let length = rustix::fs::lgetxattr(&path, name, &mut *value)
            .with_context(|| format!("{} is listed and cannot be read", name.escape_ascii()))?;
        value.truncate(length);
        xattrs.insert(OsString::from_vec(name.to_vec()), value);
    }
    Ok(xattrs)
}

/// The path of an open directory for calls that take paths, valid as long as it is open.
pub fn through_proc(dir: impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd()))
}
