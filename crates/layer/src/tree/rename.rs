//! Renames without replacing anything.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, RenameFlags, renameat, renameat_with, statat};
use rustix::io::{Errno, Result};
use rustix::path::Arg;

/// Renames `name` in the directory `from` to `new_name` in `to`. Fails with [`Errno::EXIST`] if
/// `to` has that name.
///
/// Where the file system does not support RENAME_NOREPLACE, this looks first. A file that another
/// process creates in between can then be replaced, but no directory with entries.
pub(crate) fn rename_new(
    from: impl AsFd,
    name: impl Arg + Copy,
    to: impl AsFd,
    new_name: impl Arg + Copy,
) -> Result<()> {
    match renameat_with(&from, name, &to, new_name, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS) => match statat(&to, new_name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Err(Errno::EXIST),
            Err(Errno::NOENT) => renameat(&from, name, &to, new_name),
            Err(errno) => Err(errno),
        },
        renamed => renamed,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::CWD;

    use super::*;

    #[test]
    fn a_rename_moves_a_name_and_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["one", "other"] {
            fs::write(path(name), name).unwrap();
        }
        assert_eq!(rename_new(CWD, &*path("one"), CWD, &*path("other")), Err(Errno::EXIST));
        assert_eq!(rename_new(CWD, &*path("one"), CWD, &*path("new")), Ok(()));
        let contents = ["new", "other"].map(|name| fs::read_to_string(path(name)).unwrap());
        assert_eq!((contents, path("one").exists()), (["one".into(), "other".into()], false));
    }
}
