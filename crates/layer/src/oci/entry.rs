//! An entry of an archive, with everything that a tree keeps of it. `archive.rs` reads entries;
//! `entry_name.rs` decides where they belong.

use std::ffi::CString;

use rustix::fs::{Dev, Timespec, makedev};
use tar_core::parse::ParsedEntry;
use tar_core::{EntryType, SparseEntry};

use super::error::Problem;
use super::pax::Pax;

/// One entry of an archive.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    /// The path as the archive has it.
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    /// Permission bits, with setuid, setgid and sticky.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Timespec,
    /// Names and values, without those that overlayfs reserves for itself.
    pub(crate) xattrs: Vec<(CString, Vec<u8>)>,
    /// The bytes of content that follow in the archive.
    pub(crate) size: u64,
    /// Whether the entry has an ACL in the form of GNU tar, which is not unpacked.
    pub(crate) has_acl_text: bool,
}

/// The type of an entry.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind {
    Directory,
    File,
    /// A file with holes: the pieces in order, and the size of the whole file.
    Sparse {
        pieces: Vec<Piece>,
        size: u64,
    },
    HardLink {
        target: Vec<u8>,
    },
    Symlink {
        target: CString,
    },
    CharacterDevice(Dev),
    BlockDevice(Dev),
    Fifo,
}

/// A part of a sparse file that has content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl Entry {
    /// Checks an entry that `tar-core` has read. `sparse` has the map and the whole size of a
    /// sparse file.
    pub(crate) fn check(entry: &ParsedEntry<'_>, sparse: Option<(&[SparseEntry], u64)>) -> Result<Self, Problem> {
        let pax = entry.pax.map_or(Ok(Pax::default()), Pax::check)?;
        let mut kind = kind(entry, sparse)?;
        let mut size = entry.size;
        match kind {
            // The size is that of the target, in archives of some programs. No content follows.
            Kind::HardLink { .. } => size = 0,
            // Before POSIX, a directory was a file whose name ends with a slash.
            Kind::File if entry.path.ends_with(b"/") && size == 0 => kind = Kind::Directory,
            Kind::File | Kind::Sparse { .. } => {}
            _ if size > 0 => return Err(Problem::UnexpectedContent),
            _ => {}
        }
        // Before 1970, the binary form of a header is the two's complement.
        #[allow(clippy::cast_possible_wrap)]
        let mtime = pax.mtime.unwrap_or(Timespec { tv_sec: entry.mtime as i64, tv_nsec: 0 });
        Ok(Self {
            path: entry.path.to_vec(),
            kind,
            mode: entry.mode & 0o7777,
            uid: owner(entry.uid)?,
            gid: owner(entry.gid)?,
            mtime,
            xattrs: xattrs(entry)?,
            size,
            has_acl_text: pax.has_acl_text,
        })
    }
}

fn kind(entry: &ParsedEntry<'_>, sparse: Option<(&[SparseEntry], u64)>) -> Result<Kind, Problem> {
    let target = || entry.link_target.as_deref().ok_or(Problem::NoTarget);
    let device = || makedev(entry.dev_major.unwrap_or(0), entry.dev_minor.unwrap_or(0));
    Ok(match entry.entry_type {
        EntryType::Regular | EntryType::Continuous | EntryType::GnuSparse => match sparse {
            None => Kind::File,
            Some((map, size)) => Kind::Sparse { pieces: pieces(map, size, entry.size)?, size },
        },
        EntryType::Directory => Kind::Directory,
        EntryType::Link => Kind::HardLink { target: target()?.to_vec() },
        EntryType::Symlink => Kind::Symlink { target: CString::new(target()?).map_err(|_| Problem::NulInName)? },
        EntryType::Char if device() == 0 => return Err(Problem::WhiteoutDevice),
        EntryType::Char => Kind::CharacterDevice(device()),
        EntryType::Block => Kind::BlockDevice(device()),
        EntryType::Fifo => Kind::Fifo,
        other => return Err(Problem::UnknownType { kind: other.to_byte() }),
    })
}

/// Checks that the pieces of a sparse file are in order, fit into it, and are the whole content.
fn pieces(map: &[SparseEntry], size: u64, content: u64) -> Result<Vec<Piece>, Problem> {
    let (mut end, mut total) = (0, 0_u64);
    let mut pieces = Vec::with_capacity(map.len());
    for &SparseEntry { offset, length } in map {
        let fits = offset >= end && offset.checked_add(length).is_some_and(|end| end <= size);
        if !fits {
            return Err(Problem::SparseMap);
        }
        end = offset + length;
        total += length;
        pieces.extend((length > 0).then_some(Piece { offset, length }));
    }
    if total == content { Ok(pieces) } else { Err(Problem::SparseMap) }
}

/// Checks the number of a user or a group. The largest number means "no change" to the kernel.
fn owner(id: u64) -> Result<u32, Problem> {
    u32::try_from(id).ok().filter(|id| *id != u32::MAX).ok_or(Problem::Owner { id })
}

/// Returns the extended attributes without those of overlayfs: an archive could otherwise hide or
/// redirect what is below.
fn xattrs(entry: &ParsedEntry<'_>) -> Result<Vec<(CString, Vec<u8>)>, Problem> {
    let is_overlays =
        |name: &[u8]| [&b"trusted.overlay."[..], b"user.overlay."].iter().any(|prefix| name.starts_with(prefix));
    let mut xattrs = Vec::with_capacity(entry.xattrs.len());
    for (name, value) in entry.xattrs.iter().filter(|(name, _)| !is_overlays(name)) {
        let name = CString::new(&**name).map_err(|_| Problem::NulInName)?;
        xattrs.push((name, value.to_vec()));
    }
    Ok(xattrs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pieces_of_a_sparse_file_must_fit() {
        let map =
            |map: &[(u64, u64)]| map.iter().map(|&(offset, length)| SparseEntry { offset, length }).collect::<Vec<_>>();
        let kept = pieces(&map(&[(0, 1), (5, 0), (8, 2)]), 10, 3).unwrap();
        assert_eq!(kept, [Piece { offset: 0, length: 1 }, Piece { offset: 8, length: 2 }]);
        assert_eq!(pieces(&[], 10, 0).unwrap(), []);
        for (pieces_of, size, content) in [
            (map(&[(0, 11)]), 10, 11),
            (map(&[(0, 5), (4, 1)]), 10, 6),
            (map(&[(5, 1), (0, 1)]), 10, 2),
            (map(&[(0, 5)]), 10, 6),
            (map(&[(u64::MAX, 2)]), u64::MAX, 2),
            (map(&[(1, u64::MAX)]), u64::MAX, u64::MAX),
        ] {
            assert!(matches!(pieces(&pieces_of, size, content), Err(Problem::SparseMap)), "{pieces_of:?}");
        }
    }

    #[test]
    fn no_owner_means_no_change() {
        assert_eq!(owner(4_294_967_294).unwrap(), 4_294_967_294);
        for id in [4_294_967_295, 4_294_967_296, u64::MAX] {
            assert!(matches!(owner(id), Err(Problem::Owner { .. })));
        }
    }
}
