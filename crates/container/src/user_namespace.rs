//! The user namespace in which an ordinary user is root. `mount_namespace` is for what root does in
//! it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Uid, User};
use rustix::fd::AsFd;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{getegid, geteuid, getpid};

use crate::error::{Error, Result};
use crate::mount_namespace::{is_privileged, require_privilege};
use crate::user::NOBODY;

mod error;
mod helpers;
mod id_map;
mod ranges;

pub use error::{Obstacle, Refusal, UserNamespaceError};
use helpers::Helpers;
pub use id_map::IdMap;
use ranges::{Owner, Ranges};

/// The IDs that a user namespace gets, for [`UserNamespace::enter`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Ids {
    /// [`Ranges`](Ids::Ranges) if the user has subordinate IDs, and [`Single`](Ids::Single)
    /// otherwise. It is an error if the user has subordinate IDs and they cannot be used: the files
    /// of such a run would have other owners than those of the run before.
    #[default]
    Auto,
    /// 0 is the caller, and the IDs from 1 on are the caller's subordinate IDs, from `/etc/subuid`
    /// and `/etc/subgid` or another source that nsswitch.conf(5) names. This needs the set-user-ID
    /// programs newuidmap(1) and newgidmap(1).
    Ranges,
    /// 0 is the caller, and the namespace has only this ID. This needs no other program.
    Single,
}

/// The user namespace of this process, if it is not the first one of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserNamespace {
    uids: IdMap,
    gids: IdMap,
}

impl UserNamespace {
    /// Makes an ordinary user root: moves this process into a new user namespace and a new mount
    /// namespace. Does nothing if the process has CAP_SYS_ADMIN already, as root has.
    ///
    /// Call it first in `main`. The kernel refuses it to a process with threads. If a program
    /// cannot call it, start the program as `layered unshare -- PROGRAM`.
    ///
    /// The process keeps its PID, its descriptors and its terminal. In the namespace it is root
    /// over the [`ids`](Ids), and only over these: files of other owners seem to belong to nobody,
    /// and set-user-ID programs of other owners gain no privileges. With [`Ids::Single`], the
    /// process keeps its supplementary groups and cannot change them.
    ///
    /// ```no_run
    /// use container::{Ids, UserNamespace};
    ///
    /// fn main() -> Result<(), container::Error> {
    ///     UserNamespace::enter(Ids::Auto)?;
    ///     container::require_privilege()
    /// }
    /// ```
    ///
    /// # Errors
    /// [`Error::UserNamespace`](crate::Error::UserNamespace) with the reason and the remedy. If
    /// [`entered`](Self::entered) then returns a namespace, the process is in one without IDs: end
    /// it.
    pub fn enter(ids: Ids) -> Result<()> {
        if is_privileged() {
            if Self::is_here() {
                // fsopen(2) asks for a privilege over the owner of the mount namespace. Another
                // program may have created the user namespace without one.
                unshare(CloneFlags::CLONE_NEWNS).map_err(|error| UserNamespaceError::of_kernel(error.into()))?;
            }
            return Ok(());
        }
        enter(ids)?;
        require_privilege()
    }

    /// Returns whether this process is in another user namespace than the machine's first one. In
    /// such a namespace, the kernel grants root only what concerns the namespace's own IDs.
    ///
    /// The first call finds out, and later calls return the same result until
    /// [`enter`](Self::enter) moves the process.
    pub fn is_here() -> bool {
        match IS_HERE.load(Ordering::Relaxed) {
            UNKNOWN => {}
            known => return known != NO,
        }
        // The map of IDs alone does not say: it can be the identity.
        let is_here = fs::read_link("/proc/self/ns/user").is_ok_and(|link| link != Path::new(FIRST));
        IS_HERE.store(if is_here { YES } else { NO }, Ordering::Relaxed);
        is_here
    }

    /// Returns the user namespace of this process. Returns `None` in the machine's first one.
    pub fn current() -> Option<Self> {
        // The kernel lets every process read its own maps.
        let map = |path| read_map(path).unwrap_or_default();
        Self::is_here().then(|| Self { uids: map(UID_MAP), gids: map(GID_MAP) })
    }

    /// Returns the user namespace into which [`enter`](Self::enter) has moved this process, even if
    /// `enter` has failed afterwards. Returns `None` if `enter` has moved it nowhere.
    ///
    /// The caller knows the users and groups by the numbers that they have outside of this
    /// namespace. [`IdMap::inside`] translates them.
    pub fn entered() -> Option<Self> {
        Self::current().filter(|_| IS_HERE.load(Ordering::Relaxed) == ENTERED)
    }

    /// Returns the user IDs of the namespace.
    pub fn uids(&self) -> &IdMap {
        &self.uids
    }

    /// Returns the group IDs of the namespace.
    pub fn gids(&self) -> &IdMap {
        &self.gids
    }

    /// Checks that a process can have these IDs.
    ///
    /// # Errors
    /// [`Error::NotMapped`](crate::Error::NotMapped) for the first ID that the namespace does not
    /// have.
    pub(crate) fn check_ids(&self, uid: u32, gids: impl IntoIterator<Item = u32>) -> Result<()> {
        if !self.uids.contains(uid) {
            return Err(Error::NotMapped { kind: "user", id: uid });
        }
        match gids.into_iter().find(|gid| !self.gids.contains(*gid)) {
            Some(id) => Err(Error::NotMapped { kind: "group", id }),
            None => Ok(()),
        }
    }

    /// Returns whether this process has supplementary groups that it would lose for good by
    /// setgroups(2): they have no number in its user namespace. With [`Ids::Single`], the kernel
    /// refuses setgroups, so all groups stay.
    pub(crate) fn has_groups_of_caller() -> bool {
        let may_change = || fs::read_to_string("/proc/self/setgroups").is_ok_and(|text| text.trim() == "allow");
        let groups = || rustix::process::getgroups().unwrap_or_default();
        Self::is_here() && may_change() && groups().iter().any(|group| group.as_raw() == overflow_gid())
    }

    /// Returns whether the user `uid`, who owns the open `file`, has a number in this process's
    /// user namespace. For owners without one, the kernel shows the overflow ID, usually 65534,
    /// which can also be the number of a user. The file must not have been opened with `O_PATH`.
    ///
    /// Returns false for a user with the overflow ID if the process is neither that user nor root
    /// of the namespace.
    pub fn has_owner(file: impl AsFd, uid: u32) -> bool {
        if !Self::is_here() || uid != overflow_uid() {
            return true;
        }
        // `inode_owner_or_capable` in fs/inode.c grants this to the owner, and to CAP_FOWNER if the
        // owner has a number.
        let Ok(flags) = fcntl_getfl(&file) else { return false };
        let may = fcntl_setfl(&file, flags | OFlags::NOATIME).is_ok();
        if may {
            if let Err(errno) = fcntl_setfl(&file, flags) {
                log::debug!("a file stays without times of access: {errno}");
            }
        }
        may
    }

    /// Returns whether the directory `path`, of the user `uid` and the group `gid`, belongs to a
    /// user or a group without a number in this process's user namespace. An overlay cannot copy up
    /// such a directory, so nothing can be made or removed in it. Opens the directory only if the
    /// numbers do not say.
    pub fn is_of_others(path: &Path, uid: u32, gid: u32) -> bool {
        if !(Self::is_here() && uid == overflow_uid()) {
            return Self::is_here() && gid == overflow_gid();
        }
        // Nothing shows whether a group has a number: see `owner_of_copy`.
        !fs::File::open(path).is_ok_and(|dir| Self::has_owner(dir, uid))
    }

    /// Returns whether `path` exists and belongs to [others](Self::is_of_others). Does not follow a
    /// symbolic link at `path` itself.
    pub fn is_path_of_others(path: &Path) -> bool {
        // Outside a user namespace, every owner has a number.
        let metadata = Self::is_here().then(|| path.symlink_metadata().ok()).flatten();
        metadata.is_some_and(|metadata| Self::is_of_others(path, metadata.uid(), metadata.gid()))
    }

    /// Returns the owner and the group that a copy of the open `file` of `uid` and `gid` gets in
    /// this process's namespace. Owners without a number become root, because no file can be given
    /// to them. Nothing shows whether a group has a number: the overflow ID is taken for one only
    /// if the owner has the overflow ID and a number.
    pub(crate) fn owner_of_copy(file: impl AsFd, uid: u32, gid: u32) -> (u32, u32) {
        let has_owner = Self::has_owner(file, uid);
        let is_nobody = has_owner && Self::is_here() && uid == overflow_uid();
        let has_group = is_nobody || !(Self::is_here() && gid == overflow_gid());
        (if has_owner { uid } else { 0 }, if has_group { gid } else { 0 })
    }

    #[cfg(test)]
    pub(crate) fn of(uids: &str, gids: &str) -> Self {
        Self { uids: IdMap::parse(uids), gids: IdMap::parse(gids) }
    }
}

/// Returns the ID that the kernel shows for users without a number.
fn overflow_uid() -> u32 {
    static ID: OnceLock<u32> = OnceLock::new();
    *ID.get_or_init(|| overflow_id("/proc/sys/kernel/overflowuid"))
}

/// Returns the ID that the kernel shows for groups without a number.
fn overflow_gid() -> u32 {
    static ID: OnceLock<u32> = OnceLock::new();
    *ID.get_or_init(|| overflow_id("/proc/sys/kernel/overflowgid"))
}

fn overflow_id(path: &str) -> u32 {
    let read = fs::read_to_string(path).ok();
    read.and_then(|id| id.trim().parse().ok()).unwrap_or(NOBODY)
}

/// Whether this process is in a user namespace, as far as [`UserNamespace::is_here`] has found out.
static IS_HERE: AtomicU8 = AtomicU8::new(UNKNOWN);
const UNKNOWN: u8 = 0;
const NO: u8 = 1;
const YES: u8 = 2;
/// In one, because [`UserNamespace::enter`] has moved the process.
const ENTERED: u8 = 3;

/// The link of the first user namespace: `PROC_USER_INIT_INO` in include/linux/proc_ns.h.
const FIRST: &str = "user:[4026531837]";

const UID_MAP: &str = "/proc/self/uid_map";
const GID_MAP: &str = "/proc/self/gid_map";

fn read_map(path: &'static str) -> Result<IdMap, UserNamespaceError> {
    let text = fs::read_to_string(path).map_err(|source| UserNamespaceError::Io { operation: "read", path, source })?;
    Ok(IdMap::parse(&text))
}

fn enter(ids: Ids) -> Result<(), UserNamespaceError> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let name = User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.name);
    let owner = Owner { uid, name };
    let ranges = match ids {
        Ids::Single => None,
        Ids::Auto => ranges::of(&owner)?,
        Ids::Ranges => {
            let none = || UserNamespaceError::NoRanges { user: owner.shown() };
            Some(ranges::of(&owner)?.ok_or_else(none)?)
        }
    };
    match ranges {
        Some(ranges) => with_ranges(uid, gid, &ranges),
        None => with_single(uid, gid),
    }?;
    try_to_mount()
}

/// Tries the privilege over mounts. On some systems, a security policy lets a user create a
/// namespace and then denies what root may do in it: the first mount fails, and nothing says why.
fn try_to_mount() -> Result<(), UserNamespaceError> {
    // The mounts of the namespace are slaves already, so this changes nothing.
    match mount(None::<&str>, "/", None::<&str>, MsFlags::MS_SLAVE, None::<&str>) {
        Err(errno @ (Errno::EPERM | Errno::EACCES)) => {
            Err(UserNamespaceError::Powerless { refusal: Refusal::find(), source: errno.into() })
        }
        // Other errors are not about privilege: see `mount_namespace`.
        _ => Ok(()),
    }
}

fn unshare_namespaces() -> Result<(), UserNamespaceError> {
    // The mount namespace must belong to the user namespace. The kernel makes its mounts slaves of
    // the host's.
    let flags = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS;
    unshare(flags).map_err(|error| UserNamespaceError::of_kernel(error.into()))?;
    IS_HERE.store(ENTERED, Ordering::Relaxed);
    Ok(())
}

fn with_single(uid: u32, gid: u32) -> Result<(), UserNamespaceError> {
    unshare_namespaces()?;
    let files =
        [("/proc/self/setgroups", "deny".into()), (UID_MAP, format!("0 {uid} 1")), (GID_MAP, format!("0 {gid} 1"))];
    for (path, content) in files {
        fs::write(path, content).map_err(|source| match source.kind() {
            std::io::ErrorKind::PermissionDenied => UserNamespaceError::of_kernel(source),
            _ => UserNamespaceError::Io { operation: "write", path, source },
        })?;
    }
    Ok(())
}

fn with_ranges(uid: u32, gid: u32, ranges: &Ranges) -> Result<(), UserNamespaceError> {
    let pid = getpid().as_raw_nonzero().get().unsigned_abs();
    let mut helpers = Helpers::new()?;
    helpers.start("newuidmap", &ranges::arguments(pid, uid, &ranges.uids))?;
    helpers.start("newgidmap", &ranges::arguments(pid, gid, &ranges.gids))?;
    unshare_namespaces()?;
    helpers.finish(&[UID_MAP, GID_MAP])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_is_told_how_to_enter() {
        // The test harness has threads, and root needs no namespace.
        let error = unshare_namespaces().unwrap_err();
        let UserNamespaceError::Threads { .. } = &error else { panic!("{error}") };
        assert!(error.to_string().contains("layered unshare -- PROGRAM"), "{error}");
    }
}
