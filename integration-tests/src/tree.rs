//! A snapshot of a directory tree: everything in which two equal trees must agree. `stack` makes
//! trees.

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

/// A whole tree. The root has the empty path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The entries that can be looked up.
    pub entries: BTreeMap<PathBuf, Entry>,
    /// The names that a directory lists but that cannot be looked up.
    pub phantoms: BTreeSet<PathBuf>,
}

/// One file of any type.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// The type that a lookup returns.
    pub kind: FileType,
    /// The type that the directory lists.
    pub listed: FileType,
    /// Permission bits, including setuid, setgid and sticky.
    pub mode: u32,
    /// User and group id.
    pub owner: (u32, u32),
    /// Seconds and nanoseconds.
    pub modified: (i64, i64),
    /// The size and content of a regular file, or the target of a symbolic link.
    pub content: Content,
    /// The device number of a device node, otherwise 0.
    pub rdev: u64,
    /// All xattrs that the tree shows, without the mark of a capture for the other kind of mount. A
    /// mount shows all but the overlay xattrs.
    pub xattrs: BTreeMap<OsString, Vec<u8>>,
    /// For a file with several names, the first of them in the tree.
    pub group: Option<PathBuf>,
}

/// The content of a file.
#[derive(Clone, PartialEq, Eq)]
pub enum Content {
    /// No content: a directory, a device, a FIFO or a socket.
    None,
    /// The whole content.
    Bytes(Vec<u8>),
    /// Size and hash of a file that is too large to print.
    Hash(u64, u64),
}

/// The size up to which a file's content is kept.
const WHOLE_BYTES: u64 = 4096;

impl Snapshot {
    /// Takes a snapshot of the tree at `path`. A symbolic link is not followed.
    pub fn of_path(path: &Path) -> Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root =
            openat(CWD, path, flags, Mode::empty()).with_context(|| format!("cannot open {}", path.display()))?;
        Self::of(root)
    }

    /// Takes a snapshot of the tree below an open directory, at any depth.
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

    /// Replaces every time after `seconds` by the same value. Times of files that were written
    /// since then differ by nanoseconds.
    pub fn with_times_until(mut self, seconds: i64) -> Self {
        for entry in self.entries.values_mut() {
            if entry.modified.0 > seconds {
                entry.modified = (i64::MAX, 0);
            }
        }
        self
    }

    /// Lists the differences from `other`, one per line. Empty if the trees are equal. Phantoms
    /// are not compared.
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
    // 15 names of 255 bytes with their slashes are shorter than PATH_MAX.
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
    // One byte more than the size, to detect the end of the file.
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
    // Before Linux 6.13, the calls accept no pair of descriptor and name.
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
        // A capture leaves this mark for mounts of ordinary users. Mounts of root show it.
        if !(value.is_empty() && name == b"user.overlay.origin") {
            xattrs.insert(OsString::from_vec(name.to_vec()), value);
        }
    }
    Ok(xattrs)
}

/// Returns a path to an open directory, for calls that take paths. It is valid as long as the
/// directory is open.
pub fn through_proc(dir: impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd()))
}
