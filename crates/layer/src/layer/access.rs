//! Decides who may enter a directory that holds a tree, by its mode and its group.
//! `tree/attributes.rs` sets the mode and the owner of the files in a tree.

use std::os::fd::AsFd;
use std::path::Path;
use std::str::FromStr;

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, chownat, fchmod, fstat, openat};

use crate::error::{Error, Result};
use crate::tree::walk::{self, PATH, READ};

/// The mode and the group of a directory that holds a tree.
///
/// A tree can hold set-user-ID programs and device nodes that a command made as root. A user who
/// can reach them on the host can use them. So by default only its owner can enter a directory that
/// this crate makes for a tree (0700).
///
/// ```
/// use layer::Access;
///
/// assert_eq!(Access::default(), Access::mode(0o700));
/// // A documentation browser runs as another user, in the group 993.
/// let access = Access::mode(0o750).group(993);
/// # let _ = access;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    mode: u32,
    group: Option<u32>,
}

impl Default for Access {
    /// Returns the access for the owner only: 0700.
    fn default() -> Self {
        Self::mode(0o700)
    }
}

impl Access {
    /// Returns the access with the permission bits `mode`. Ignores all bits but those for the
    /// owner, the group and others (0777).
    pub const fn mode(mode: u32) -> Self {
        Self { mode: mode & 0o777, group: None }
    }

    /// Sets the group to the one with the number `group`.
    pub const fn group(mut self, group: u32) -> Self {
        self.group = Some(group);
        self
    }

    /// Returns whether a tree in the directory `parent` must be closed, because every directory
    /// above the tree lets other users through.
    ///
    /// # Errors
    /// [`Error::Io`] if `parent` or a directory above it cannot be examined.
    pub fn is_needed_in(parent: impl AsRef<Path>) -> Result<bool> {
        let path = parent.as_ref();
        let parent = openat(CWD, path, PATH.difference(OFlags::NOFOLLOW), Mode::empty());
        let needed = parent.and_then(|parent| {
            let open = Mode::from_raw_mode(fstat(&parent)?.st_mode).contains(Mode::XOTH);
            Ok(open && is_reachable_by_others(&parent)?)
        });
        needed.map_err(Error::io("look at", path))
    }

    /// Gives the directory `path` this mode and group.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be opened or changed.
    pub fn set(self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let dir = openat(CWD, path, READ, Mode::empty()).map_err(Error::io("open", path))?;
        self.apply(dir, path)
    }

    /// Gives the open directory `dir` this mode and group.
    pub(crate) fn apply(self, dir: impl AsFd, path: &Path) -> Result<()> {
        if let Some(group) = self.group {
            let group = Some(Gid::from_raw(group));
            chownat(&dir, c"", None, group, AtFlags::EMPTY_PATH).map_err(Error::io("change the group of", path))?;
        }
        // The mode comes after the group: chown(2) can clear bits of the mode.
        fchmod(&dir, Mode::from_raw_mode(self.mode)).map_err(Error::io("change the mode of", path))
    }

    /// Returns the permission bits.
    pub(crate) fn bits(self) -> u32 {
        self.mode
    }
}

impl FromStr for Access {
    type Err = Error;

    /// Reads octal permission bits, for example `0750`.
    fn from_str(text: &str) -> Result<Self> {
        match u32::from_str_radix(text, 8) {
            Ok(mode) if mode <= 0o777 => Ok(Self::mode(mode)),
            _ => Err(Error::NotAMode { text: text.into() }),
        }
    }
}

/// Returns whether users other than the owner and the group can reach the open directory `dir`:
/// they can search every directory from its parent up to the root.
pub(crate) fn is_reachable_by_others(dir: impl AsFd) -> rustix::io::Result<bool> {
    for above in walk::upwards(dir.as_fd()).skip(1) {
        let (_, stat) = above?;
        if !Mode::from_raw_mode(stat.st_mode).contains(Mode::XOTH) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn modes_are_read_in_octal() {
        for (text, mode) in [("0750", 0o750), ("700", 0o700), ("0", 0), ("0777", 0o777)] {
            assert_eq!(text.parse::<Access>().unwrap(), Access::mode(mode), "{text}");
        }
        for text in ["", "8", "1777", "u+x", "-1", "0x1f"] {
            assert!(text.parse::<Access>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_directories_above_decide_whether_others_reach_a_tree() {
        let dir = tempfile::tempdir().unwrap();
        let [above, tree] = ["above", "above/tree"].map(|name| dir.path().join(name));
        fs::create_dir_all(&tree).unwrap();
        let set = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        let reachable = || is_reachable_by_others(File::open(&tree).unwrap()).unwrap();
        for (outer, inner, own, expected) in [
            (0o700, 0o755, 0o755, false),
            (0o755, 0o755, 0o700, true),
            (0o711, 0o755, 0o755, true),
            (0o755, 0o750, 0o755, false),
        ] {
            set(dir.path(), outer);
            set(&above, inner);
            set(&tree, own);
            // The directories above the temporary directory may be closed.
            let expected = expected && is_reachable_by_others(File::open(dir.path()).unwrap()).unwrap();
            assert_eq!(reachable(), expected, "{outer:o} {inner:o} {own:o}");
        }
    }

    #[test]
    fn mode_and_group_are_set() {
        let dir = tempfile::tempdir().unwrap();
        let group = rustix::process::getegid().as_raw();
        Access::mode(0o750).group(group).apply(File::open(dir.path()).unwrap(), dir.path()).unwrap();
        assert_eq!(fs::metadata(dir.path()).unwrap().permissions().mode() & 0o7777, 0o750);
    }
}
