//! Finds out what this process may do with a directory of another owner. `merge/directory.rs` and
//! `stack/view.rs` decide what a stack shows of such a directory.

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

    /// Returns whether the mode alone lets every user list a directory, unless an ACL denies it.
    pub(crate) fn is_for_all(stat: &Stat) -> bool {
        Mode::from_raw_mode(stat.st_mode).contains(Mode::ROTH | Mode::XOTH)
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
