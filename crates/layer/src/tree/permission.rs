//! Finds out what this process may do with a directory of another owner. `merge/directory.rs` and
//! `skeleton.rs` use it.

use std::fmt;
use std::os::fd::BorrowedFd;

use rustix::fs::{Mode, Stat, openat};
use rustix::io::Errno;

use super::walk::{PATH, READ};

/// The use that this process may make of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Permission {
    /// It may list the entries and use them.
    List,
    /// It may use an entry whose name it knows, as in a directory with mode 0711.
    Search,
    /// It may use no entry.
    Nothing,
}

impl Permission {
    /// Returns the use of an open directory, which may have been opened without access to its
    /// content.
    pub(crate) fn of(dir: BorrowedFd<'_>) -> rustix::io::Result<Self> {
        for (flags, permission) in [(READ, Self::List), (PATH, Self::Search)] {
            // The kernel looks up `.` only for a process that may search the directory.
            match openat(dir, c".", flags, Mode::empty()) {
                Ok(_) => return Ok(permission),
                Err(Errno::ACCESS) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(Self::Nothing)
    }

    /// Returns whether the mode lets the owner, the group and all others list a directory. An ACL
    /// may still deny it.
    pub(crate) fn is_for_all(stat: &Stat) -> bool {
        let list = Mode::RUSR | Mode::XUSR | Mode::RGRP | Mode::XGRP | Mode::ROTH | Mode::XOTH;
        Mode::from_raw_mode(stat.st_mode).contains(list)
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::List => "list",
            Self::Search => "search",
            Self::Nothing => "nothing",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use rustix::fs::stat;

    use super::*;

    #[test]
    fn the_mode_must_let_every_class_list_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let table = [
            (0o755, true),
            (0o1777, true),
            (0o555, true),
            (0o705, false),
            (0o075, false),
            (0o750, false),
            (0o744, false),
        ];
        for (mode, expected) in table {
            fs::set_permissions(dir.path(), Permissions::from_mode(mode)).unwrap();
            assert_eq!(Permission::is_for_all(&stat(dir.path()).unwrap()), expected, "{mode:o}");
        }
    }
}
