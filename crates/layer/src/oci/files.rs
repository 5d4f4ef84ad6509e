//! The files of an image: those of a directory, or of a tar archive that is indexed once.
//! `image.rs` decides which of them are needed.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags, openat, statvfs};
use rustix::io::Errno;

use super::archive::Archive;
use super::compression::{Compression, Decoder, Detected, detect};
use super::digest::Digest;
use super::entry::Kind;
use super::entry_name;
use super::error::{Error, Result};
use super::image::blob_name;
#[cfg(feature = "registry")]
use super::reference::RegistryImage;
#[cfg(feature = "registry")]
use super::registry::{Failure, Registry};
use crate::tree::regular_file;
use crate::tree::walk::{READ, open_beneath};

/// The most files of an archive that are indexed. An image of 500 layers has about two thousand.
const MAX_FILES: usize = 100_000;

/// The most links from one file of an archive to the next.
const MAX_LINKS: usize = 8;

/// The files of an image.
#[derive(Debug)]
pub(crate) enum Files {
    Directory {
        path: PathBuf,
        dir: OwnedFd,
    },
    Archive {
        path: PathBuf,
        file: Arc<File>,
        members: HashMap<entry_name::Path, Member>,
    },
    /// The blobs of a repository, and the error that has ended the reader of one.
    #[cfg(feature = "registry")]
    Registry {
        path: PathBuf,
        registry: Arc<Registry>,
        failure: Failure,
    },
}

/// A file in an archive.
#[derive(Debug)]
pub(crate) enum Member {
    File {
        offset: u64,
        size: u64,
    },
    /// A link, with the path of its target from the root of the archive.
    Link(entry_name::Path),
}

/// A part of a file, wherever the position of the file is. It can be read by several readers at the
/// same time.
#[derive(Debug)]
pub(crate) struct Section<F> {
    file: F,
    offset: u64,
    left: u64,
}

impl<F> Section<F> {
    /// Returns the first `bytes` bytes of a file.
    pub(crate) fn at_start(file: F, bytes: u64) -> Self {
        Self { file, offset: 0, left: bytes }
    }

    /// Returns the number of bytes that are left.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }
}

impl<F: Borrow<File>> Read for Section<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let read = self.file.borrow().read_at(&mut buffer[..most], self.offset)?;
        self.offset += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

impl Files {
    /// Opens the directory of a layout.
    pub(crate) fn of_directory(path: &Path) -> Result<Self> {
        let dir =
            openat(CWD, path, READ.difference(OFlags::NOFOLLOW), Mode::empty()).map_err(Error::io("open", path))?;
        Ok(Self::Directory { path: path.into(), dir })
    }

    /// Indexes an archive. One that is compressed, or that cannot be read twice, is first written
    /// to a file without a name in the directory `spool`, of at most `max_bytes` bytes.
    pub(crate) fn of_archive(path: &Path, spool: &Path, max_bytes: u64) -> Result<Self> {
        let file = open_given(path)?;
        let failed = |operation| Error::io(operation, path);
        let is_regular = file.metadata().map_err(failed("look at"))?.is_file();
        let (compression, begun) = detect(file.try_clone().map_err(failed("read"))?).map_err(failed("read"))?;
        let mut file = match known(compression, path)? {
            Compression::None if is_regular => file,
            compression => {
                let spooled = tempfile::tempfile_in(spool).map_err(Error::io("make a temporary file in", spool))?;
                let mut decoder =
                    Decoder::new(compression, begun).map_err(failed("decompress"))?.take(max_bytes.saturating_add(1));
                let written = io::copy(&mut decoder, &mut &spooled).map_err(failed("decompress"))?;
                if written > max_bytes {
                    return Err(Error::TooLarge { archive: path.into(), max_bytes });
                }
                spooled
            }
        };
        io::Seek::rewind(&mut file).map_err(failed("read"))?;
        let members = index(&file, path)?;
        Ok(Self::Archive { path: path.into(), file: Arc::new(file), members })
    }

    /// Opens the repository of an image.
    #[cfg(feature = "registry")]
    pub(crate) fn of_registry(registry: &Arc<Registry>, image: &RegistryImage) -> Self {
        let path = PathBuf::from(image.to_string());
        Self::Registry { path, registry: Arc::clone(registry), failure: Failure::default() }
    }

    /// Returns the path of the directory or archive.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Directory { path, .. } | Self::Archive { path, .. } => path,
            #[cfg(feature = "registry")]
            Self::Registry { path, .. } => path,
        }
    }

    /// Opens the regular file `name`. Follows no link of a directory, and only those of an archive
    /// that stay in it.
    pub(crate) fn open(&self, name: &str) -> Result<Section<Arc<File>>> {
        let whole = self.path().join(name);
        match self {
            Self::Directory { dir, .. } => {
                let opened = open_beneath(dir.as_fd(), Path::new(name), regular_file::FLAGS);
                let file = regular_file::of_opened(opened, &whole)?.ok_or(Errno::NOENT);
                let file = file.map_err(Error::io("open", &whole))?;
                let left = file.metadata().map_err(Error::io("look at", &whole))?.len();
                Ok(Section::at_start(Arc::new(file), left))
            }
            Self::Archive { file, members, .. } => {
                let mut path = entry_name::Path::parse(name.as_bytes()).ok();
                for _ in 0..MAX_LINKS {
                    match path.as_ref().and_then(|path| members.get(path)) {
                        Some(Member::Link(target)) => path = Some(target.clone()),
                        Some(&Member::File { offset, size }) => {
                            return Ok(Section { file: Arc::clone(file), offset, left: size });
                        }
                        None => return Err(Error::io("open", whole)(Errno::NOENT)),
                    }
                }
                Err(Error::io("open", whole)(Errno::LOOP))
            }
            // Its blobs have digests instead of names.
            #[cfg(feature = "registry")]
            Self::Registry { .. } => Err(Error::io("open", whole)(Errno::NOENT)),
        }
    }

    /// Reads the manifest or index with this digest, of at most `max_bytes` bytes, and checks the
    /// digest.
    pub(crate) fn manifest(&self, digest: Digest, max_bytes: u64) -> Result<Vec<u8>> {
        #[cfg(feature = "registry")]
        if let Self::Registry { registry, .. } = self {
            let manifest = registry.manifest(&digest.to_string())?;
            let missing = || Error::io("open", self.path().join(blob_name(digest)))(Errno::NOENT);
            return manifest.map(|manifest| manifest.bytes).ok_or_else(missing);
        }
        self.checked(digest, None, max_bytes)
    }

    /// Reads the blob with this digest and size, of at most `max_bytes` bytes, and checks both.
    pub(crate) fn blob(&self, digest: Digest, size: u64, max_bytes: u64) -> Result<Vec<u8>> {
        #[cfg(feature = "registry")]
        if let Self::Registry { registry, .. } = self {
            return registry.small_blob(digest, size, max_bytes);
        }
        self.checked(digest, Some(size), max_bytes)
    }

    /// Checks the size of the blob with this digest.
    pub(crate) fn check_size(&self, bytes: &[u8], digest: Digest, expected: u64) -> Result<()> {
        match bytes.len() as u64 {
            found if found == expected => Ok(()),
            found => Err(Error::WrongSize { path: self.path().into(), digest, expected, found }),
        }
    }

    fn checked(&self, digest: Digest, size: Option<u64>, max_bytes: u64) -> Result<Vec<u8>> {
        let bytes = self.read(&blob_name(digest), max_bytes)?;
        if let Some(size) = size {
            self.check_size(&bytes, digest, size)?;
        }
        let found = Digest::of(&bytes);
        match found == digest {
            true => Ok(bytes),
            false => Err(Error::WrongDigest { path: self.path().into(), expected: digest, found }),
        }
    }

    /// Reads the file `name`, of at most `max_bytes` bytes.
    pub(crate) fn read(&self, name: &str, max_bytes: u64) -> Result<Vec<u8>> {
        let mut file = self.open(name)?;
        let path = self.path().join(name);
        if file.left() > max_bytes {
            return Err(crate::Error::FileTooLarge { path, max_bytes }.into());
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(Error::io("read", path))?;
        Ok(bytes)
    }
}

/// Returns how many bytes the file system of a directory has free.
pub(crate) fn free_bytes(dir: &Path) -> Result<u64> {
    let free = statvfs(dir).map_err(Error::io("look at the file system of", dir))?;
    Ok(free.f_bavail.saturating_mul(free.f_frsize))
}

/// Opens a file that the caller has named. It can be a pipe.
pub(crate) fn open_given(path: &Path) -> Result<File> {
    File::open(path).map_err(Error::io("open", path))
}

/// Returns the compression that was detected.
pub(crate) fn known(detected: Detected, path: &Path) -> Result<Compression> {
    match detected {
        Detected::Known(compression) => Ok(compression),
        Detected::Unknown(program) => Err(Error::Unsupported {
            path: path.into(),
            part: format!("the compression of {program}"),
            reason: "layered reads gzip and zstd; decompress it first, as in `xz -dc FILE | layered import - DIR`",
        }),
    }
}

fn index(file: &File, path: &Path) -> Result<HashMap<entry_name::Path, Member>> {
    let mut archive = Archive::new(file.try_clone().map_err(Error::io("read", path))?);
    let mut members = HashMap::new();
    let mut last = PathBuf::from(".");
    loop {
        let entry = match archive.next() {
            Ok(Some(entry)) => entry,
            Ok(None) => return Ok(members),
            Err(refused) => return Err(refused.at(path, &last)),
        };
        let failed =
            |problem| Error::Entry { operation: "read", archive: path.into(), entry: lossless(&entry.path), problem };
        last = lossless(&entry.path);
        let name = entry_name::Path::parse(&entry.path).map_err(failed)?;
        let member = match &entry.kind {
            Kind::File => Member::File { offset: archive.position(), size: entry.size },
            Kind::HardLink { target } => Member::Link(entry_name::Path::parse(target).map_err(failed)?),
            // Archives of `docker save` have links such as `../HASH/layer.tar`.
            Kind::Symlink { target } => match beside(&name, target.to_bytes()) {
                Some(target) => Member::Link(target),
                None => continue,
            },
            _ => continue,
        };
        if members.len() >= MAX_FILES {
            return Err(failed(super::error::Problem::TooManyEntries { max: MAX_FILES as u64 }));
        }
        members.insert(name, member);
    }
}

/// Returns the path that a symbolic link at `link` leads to. Returns `None` if it leads out of the
/// archive.
fn beside(link: &entry_name::Path, target: &[u8]) -> Option<entry_name::Path> {
    let (parent, _) = link.split()?;
    let mut names: Vec<&[u8]> = if target.starts_with(b"/") { Vec::new() } else { parent.names().collect() };
    for name in target.split(|&byte| byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()?),
            name => names.push(name),
        }
    }
    entry_name::Path::parse(&names.join(&b'/')).ok()
}

/// Returns the path of an entry as it can be shown.
pub(crate) fn lossless(path: &[u8]) -> PathBuf {
    OsStr::from_bytes(path).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_of_an_archive_stays_in_it() {
        let path = |text: &str| entry_name::Path::parse(text.as_bytes()).unwrap();
        for (link, target, expected) in [
            ("a/layer.tar", "../b/layer.tar", Some("b/layer.tar")),
            ("a/layer.tar", "layer.tar", Some("a/layer.tar")),
            ("a", "b/./c//d", Some("b/c/d")),
            ("a/b", "/c", Some("c")),
            ("a", "../b", None),
            ("a/b/c", "../../../d", None),
        ] {
            assert_eq!(beside(&path(link), target.as_bytes()), expected.map(path), "{link} -> {target}");
        }
    }
}
