//! Owners of files: which ones this process knows, and whom root makes files for.

use std::fs;
use std::sync::OnceLock;

use rustix::fd::AsFd;
use rustix::fs::{Gid, OFlags, Stat, Uid, fchown, fcntl_getfl, fcntl_setfl, fstat};
use rustix::process::geteuid;

/// The IDs that the kernel shows for owners without a number in this process's user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Overflow {
    uid: Option<u32>,
    gid: Option<u32>,
}

/// Returns the user that owns a file, or `None` if the user may have no number in this process's
/// user namespace. Two such users look the same, so neither can be identified. An
/// [open file](known_uid_of) says more.
pub(crate) fn known_uid(stat: &Stat) -> Option<u32> {
    Some(stat.st_uid).filter(|uid| Some(*uid) != overflow().uid)
}

/// Returns the user that owns an open file, or `None` if the user has no number in this process's
/// user namespace. The file must not have been opened with `O_PATH`, and `stat` must be its own.
///
/// A namespace can have the overflow ID as the number of a user: usually 65534 is nobody. The
/// number alone then does not say who the owner is, but the kernel does: see [`has_number`].
pub(crate) fn known_uid_of(file: impl AsFd, stat: &Stat) -> Option<u32> {
    known_uid(stat).or_else(|| has_number(file).then_some(stat.st_uid))
}

/// Returns whether the owner of an open file has a number in this process's user namespace. Also
/// returns false if the process is neither the owner nor root of the namespace.
///
/// The kernel lets a process set `O_NOATIME` if it is the owner of the file, or if it has
/// CAP_FOWNER and the owner has a number (`inode_owner_or_capable` in `fs/inode.c`).
fn has_number(file: impl AsFd) -> bool {
    let Ok(flags) = fcntl_getfl(&file) else { return false };
    if flags.contains(OFlags::NOATIME) {
        return true;
    }
    let may = fcntl_setfl(&file, flags | OFlags::NOATIME).is_ok();
    if may {
        if let Err(errno) = fcntl_setfl(&file, flags) {
            log::debug!("a file stays without times of access: {errno}");
        }
    }
    may
}

/// Returns the group of a file, or `None` if the group has no number in this process's user
/// namespace.
pub(crate) fn known_gid(stat: &Stat) -> Option<u32> {
    Some(stat.st_gid).filter(|gid| Some(*gid) != overflow().gid)
}

/// Returns the owner and the group that a copy of the file gets. Owners without a number become
/// root, because no file can be given to them. So does the overflow ID itself, unless the
/// [open file](of_copy_of) shows whose it is.
pub(crate) fn of_copy(stat: &Stat) -> (Uid, Gid) {
    (Uid::from_raw(known_uid(stat).unwrap_or(0)), Gid::from_raw(known_gid(stat).unwrap_or(0)))
}

/// Returns the owner and the group that a copy of an open file gets, as [`of_copy`] does.
///
/// Nothing shows whether a group has a number. If the owner is a user whose number is the overflow
/// ID, the group with that number is taken for that user's.
pub(crate) fn of_copy_of(file: impl AsFd, stat: &Stat) -> (Uid, Gid) {
    match (known_uid(stat), known_uid_of(file, stat)) {
        (None, Some(uid)) => (Uid::from_raw(uid), Gid::from_raw(stat.st_gid)),
        _ => of_copy(stat),
    }
}

/// The IDs of this process's user namespace. Owners that were read in another one have other
/// numbers.
#[cfg(feature = "oci")]
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct IdMaps {
    /// The lines of `/proc/self/uid_map`, with commas between them.
    uids: String,
    gids: String,
}

#[cfg(feature = "oci")]
impl IdMaps {
    /// Returns the maps of this process. On a kernel without user namespaces, they are the
    /// identity.
    pub(crate) fn of_process() -> Self {
        let read = |path: &str| fs::read_to_string(path).map_or_else(|_| IDENTITY.into(), |map| one_line(&map));
        Self { uids: read("/proc/self/uid_map"), gids: read("/proc/self/gid_map") }
    }

    /// Returns whether they are those of the machine's first user namespace, or equal to them.
    pub(crate) fn are_identity(&self) -> bool {
        self.uids == IDENTITY && self.gids == IDENTITY
    }
}

#[cfg(feature = "oci")]
impl Default for IdMaps {
    /// Returns the identity.
    fn default() -> Self {
        Self { uids: IDENTITY.into(), gids: IDENTITY.into() }
    }
}

#[cfg(feature = "oci")]
impl std::fmt::Display for IdMaps {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "uid_map {}; gid_map {}", self.uids, self.gids)
    }
}

/// The map of a namespace that has every ID under its own number.
const IDENTITY: &str = "0 0 4294967295";

/// Returns the lines of a map, with one space between numbers and a comma between lines.
fn one_line(map: &str) -> String {
    let line = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    map.lines().map(line).collect::<Vec<_>>().join(", ")
}

/// Gives `made`, a file or directory that this process has just created in `parent`, to the owner
/// of `parent`, if this process is root and the two differ. A user whose store root has used could
/// otherwise not use it any more.
///
/// Both are open, so no link decides who gets what: a file in a directory of root stays root's.
/// Never call this for a file that may have existed before.
///
/// A failure is only logged: the file works for root.
pub(crate) fn give(made: impl AsFd, parent: impl AsFd) {
    if !geteuid().is_root() {
        return;
    }
    let given = fstat(&parent).and_then(|parent| {
        let stat = fstat(&made)?;
        match known_uid(&parent) {
            Some(owner) if stat.st_uid == 0 && owner != 0 => {
                fchown(&made, Some(Uid::from_raw(owner)), Some(Gid::from_raw(parent.st_gid)))
            }
            _ => Ok(()),
        }
    });
    if let Err(error) = given {
        log::debug!("a file that root has made stays root's: {error}");
    }
}

/// Returns the owner of a file, if this process is root of the machine and the owner is an ordinary
/// user. Root of a user namespace has no rights that the namespace's owner lacks.
pub(crate) fn other_than_root(stat: &Stat) -> Option<u32> {
    let is_root_of_machine = geteuid().is_root() && overflow().uid.is_none();
    Some(stat.st_uid).filter(|uid| is_root_of_machine && *uid != 0)
}

/// Returns the overflow IDs of this process's user namespace. In a namespace that has every ID,
/// they are ordinary IDs.
fn overflow() -> Overflow {
    static OVERFLOW: OnceLock<Overflow> = OnceLock::new();
    *OVERFLOW.get_or_init(|| {
        let read = |path: &str| fs::read_to_string(path).ok();
        let id = |map: &str, id: &str| unless_whole(&read(map)?, || read(id));
        Overflow {
            uid: id("/proc/self/uid_map", "/proc/sys/kernel/overflowuid"),
            gid: id("/proc/self/gid_map", "/proc/sys/kernel/overflowgid"),
        }
    })
}

/// Returns the overflow ID, 65534 unless the system has another one, if a namespace with this map
/// does not have every ID.
fn unless_whole(map: &str, overflow: impl FnOnce() -> Option<String>) -> Option<u32> {
    (one_line(map) != IDENTITY).then(|| overflow().and_then(|id| id.trim().parse().ok()).unwrap_or(65534))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_has_one_form_however_the_kernel_aligns_it() {
        let map = "         0       1000          1\n         1     100000      65536\n";
        assert_eq!((&*one_line(map), &*one_line("")), ("0 1000 1, 1 100000 65536", ""));
    }

    #[test]
    fn only_a_namespace_without_some_ids_has_an_overflow_id() {
        let table = [
            ("         0          0 4294967295\n", Some("65534\n"), None),
            ("         0       1000          1\n", Some("65534\n"), Some(65534)),
            ("0 1000 1\n1 100000 65536\n", Some("99\n"), Some(99)),
            ("0 1000 1\n", None, Some(65534)),
            ("", None, Some(65534)),
        ];
        for (map, overflow, expected) in table {
            assert_eq!(unless_whole(map, || overflow.map(Into::into)), expected, "{map}");
        }
    }
}
