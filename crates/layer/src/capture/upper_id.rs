//! Recognises an upper after it was moved. `record.rs` stores the other facts about an upper.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, StatxFlags, openat, statx};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::tree::walk::READ;

/// The identity of an upper directory. A rename preserves it; a copy has another identity.
///
/// It is the inode number and, where the file system records it, the time at which the inode was
/// made (`stx_btime`, statx(2)), because file systems reuse inode numbers. As JSON:
/// `{"inode":N,"born":[SECONDS,NANOSECONDS]}`, with `born` null where the time is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpperId {
    inode: u64,
    born: Option<(i64, u32)>,
}

impl UpperId {
    /// Returns the identity of the directory `upper`.
    ///
    /// # Errors
    /// [`Error::Io`] if it is not a directory or cannot be opened.
    pub fn of(upper: impl AsRef<Path>) -> Result<Self> {
        let upper = upper.as_ref();
        let root = openat(CWD, upper, READ, Mode::empty()).map_err(Error::io("open", upper))?;
        Self::of_open(root.as_fd()).map_err(Error::io("look at", upper))
    }

    /// Returns the identity of an open directory.
    pub(crate) fn of_open(root: BorrowedFd<'_>) -> rustix::io::Result<Self> {
        let seen = statx(root, c"", AtFlags::EMPTY_PATH, StatxFlags::INO | StatxFlags::BTIME)?;
        let knows_birth = StatxFlags::from_bits_retain(seen.stx_mask).contains(StatxFlags::BTIME);
        let born = knows_birth.then_some((seen.stx_btime.tv_sec, seen.stx_btime.tv_nsec));
        Ok(Self { inode: seen.stx_ino, born })
    }

    /// Returns the identity as one line of text.
    pub(crate) fn to_text(self) -> String {
        match self.born {
            Some((seconds, nanoseconds)) => format!("{} {seconds} {nanoseconds}", self.inode),
            None => self.inode.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_rename_preserves_the_identity_and_another_directory_has_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir(path("one")).unwrap();
        let one = UpperId::of(path("one")).unwrap();
        fs::rename(path("one"), path("moved")).unwrap();
        fs::create_dir(path("one")).unwrap();
        assert_eq!(UpperId::of(path("moved")).unwrap(), one);
        assert_ne!(UpperId::of(path("one")).unwrap(), one);
        let text = serde_json::to_string(&one).unwrap();
        assert_eq!(serde_json::from_str::<UpperId>(&text).unwrap(), one, "{text}");
    }
}
