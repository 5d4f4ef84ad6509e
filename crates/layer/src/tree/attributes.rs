//! Reads and sets mode, owner, times and extended attributes of a file. `stack/overlayfs.rs`
//! decides which attributes are overlayfs's own.

use std::ffi::{CStr, CString};
use std::os::fd::BorrowedFd;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, fchmod, fchown,
    fgetxattr, fremovexattr, fsetxattr, fstat, futimens, lgetxattr, llistxattr, lsetxattr, utimensat,
};
use rustix::io::Errno;

use super::xattr::{MAX_BYTES, USUAL_BYTES, XattrList, path_through_proc};
use super::{acl, owner};
use crate::stack::overlayfs::XattrNamespace;

/// The type, mode, owner, times and extended attributes of a file.
#[derive(Debug)]
pub(crate) struct Attributes {
    kind: FileType,
    mode: Mode,
    uid: Uid,
    gid: Gid,
    times: Timestamps,
    /// Names and values, in the order in which the file system lists them.
    xattrs: Vec<(CString, Vec<u8>)>,
}

/// The extended attributes to read.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Keep {
    /// All but those that overlayfs reserves for itself.
    Visible(XattrNamespace),
    /// All.
    All,
}

impl Attributes {
    /// Returns attributes that do not come from a file. The time of the last access is that of the
    /// last modification. `xattrs` has names and values, each name once.
    #[cfg(feature = "oci")]
    pub(crate) fn new(
        kind: FileType,
        mode: u32,
        (uid, gid): (u32, u32),
        modified: Timespec,
        xattrs: Vec<(CString, Vec<u8>)>,
    ) -> Self {
        Self {
            kind,
            mode: Mode::from_raw_mode(mode),
            uid: Uid::from_raw(uid),
            gid: Gid::from_raw(gid),
            times: Timestamps { last_access: modified, last_modification: modified },
            xattrs,
        }
    }

    /// Returns the user and the group.
    #[cfg(feature = "oci")]
    pub(crate) fn owner(&self) -> (u32, u32) {
        (self.uid.as_raw(), self.gid.as_raw())
    }

    /// Returns the names and values of the extended attributes.
    #[cfg(feature = "oci")]
    pub(crate) fn xattrs(&self) -> &[(CString, Vec<u8>)] {
        &self.xattrs
    }

    /// Replaces the user and the group.
    #[cfg(feature = "oci")]
    pub(crate) fn set_owner(&mut self, (uid, gid): (u32, u32)) {
        (self.uid, self.gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    }

    /// Returns the extended attributes, which can be changed.
    #[cfg(feature = "oci")]
    pub(crate) fn xattrs_mut(&mut self) -> &mut Vec<(CString, Vec<u8>)> {
        &mut self.xattrs
    }

    /// Reads the attributes of an open file. An [owner without a number](owner::of_copy) is read as
    /// root. `names` is the [list](XattrList::of) of its extended attributes.
    pub(crate) fn of(file: BorrowedFd<'_>, names: &XattrList, keep: Keep) -> rustix::io::Result<Self> {
        Self::of_known(file, &fstat(file)?, names, keep)
    }

    /// As [`of`](Self::of), if the file has been looked at already: `stat` is the result.
    pub(crate) fn of_known(
        file: BorrowedFd<'_>,
        stat: &Stat,
        names: &XattrList,
        keep: Keep,
    ) -> rustix::io::Result<Self> {
        let is_known = owner::known_uid_of(file, stat).is_some();
        let attributes = Self::read(stat, is_known, names, keep, |name, buffer| fgetxattr(file, name, buffer))?;
        let (uid, gid) = owner::of_copy_of(file, stat);
        Ok(Self { uid, gid, ..attributes })
    }

    /// Returns the attributes of a file that this process may not read, without extended
    /// attributes.
    pub(crate) fn of_unreadable(stat: &Stat) -> Self {
        let (uid, gid) = owner::of_copy(stat);
        let kind = FileType::from_raw_mode(stat.st_mode);
        Self { kind, mode: Mode::from_raw_mode(stat.st_mode), uid, gid, times: times(stat), xattrs: Vec::new() }
    }

    /// Reads the attributes of the file `name` in `dir` without opening it. `stat` must be that of
    /// the file.
    pub(crate) fn of_name(dir: BorrowedFd<'_>, name: &CStr, stat: &Stat, keep: Keep) -> rustix::io::Result<Self> {
        let path = path_through_proc(dir, name);
        let mut names = XattrList::default();
        names.read(|buffer| llistxattr(&path, buffer))?;
        let is_known = owner::known_uid(stat).is_some();
        Self::read(stat, is_known, &names, keep, |name, buffer| lgetxattr(&path, name, buffer))
    }

    /// Reads the attributes. `is_known` says whether the owner has a number in this process's user
    /// namespace. If not, the attributes `security.*` are left out: the capabilities and labels
    /// that the machine's root has given to a file cannot be read or set in another user namespace.
    fn read(
        stat: &Stat,
        is_known: bool,
        names: &XattrList,
        keep: Keep,
        get: impl Fn(&CStr, &mut [u8]) -> rustix::io::Result<usize>,
    ) -> rustix::io::Result<Self> {
        let mut xattrs = Vec::new();
        for name in names.iter() {
            let is_left_out = !is_known && name.to_bytes().starts_with(b"security.");
            if is_left_out || matches!(keep, Keep::Visible(namespace) if namespace.owns(name.to_bytes())) {
                continue;
            }
            let mut value = vec![0; USUAL_BYTES];
            let length = match get(name, &mut value) {
                Err(Errno::RANGE) => {
                    value.resize(MAX_BYTES, 0);
                    get(name, &mut value)?
                }
                length => length?,
            };
            value.truncate(length);
            if matches!(name.to_bytes(), b"system.posix_acl_access" | b"system.posix_acl_default") {
                acl::retain_known(&mut value);
            }
            value.shrink_to_fit();
            xattrs.push((name.to_owned(), value));
        }
        Ok(Self { xattrs, ..Self::of_unreadable(stat) })
    }

    /// Returns whether these attributes are equal to `other`, except for the time of the last
    /// access.
    pub(crate) fn look_like(&self, other: &Self) -> bool {
        let sorted = |attributes: &Self| {
            let mut xattrs = attributes.xattrs.clone();
            xattrs.sort();
            xattrs
        };
        let plain = |Self { kind, mode, uid, gid, times, .. }: &Self| {
            (*kind, *mode, *uid, *gid, times.last_modification.tv_sec, times.last_modification.tv_nsec)
        };
        plain(self) == plain(other) && sorted(self) == sorted(other)
    }

    /// Returns whether these attributes are equal to `other`, except for the times.
    #[cfg(feature = "oci")]
    pub(crate) fn look_like_but_for_time(&self, other: &Self) -> bool {
        let times = &other.times;
        let mode = self.mode.as_raw_mode() & 0o7777;
        let same_time = Self::new(self.kind, mode, self.owner(), times.last_modification, self.xattrs.clone());
        same_time.look_like(other)
    }

    /// Replaces the permission bits. Drops an ACL, because it can grant more than they do.
    pub(crate) fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
        self.xattrs.retain(|(name, _)| name.to_bytes() != b"system.posix_acl_access");
    }

    /// Sets these attributes on an open file. The file must have no other extended attributes, see
    /// [`strip`].
    ///
    /// The order matters. A change of the owner clears setuid bits and capabilities. An ACL changes
    /// the mode. The mode can take away the permission to set attributes.
    pub(crate) fn apply(&self, file: BorrowedFd<'_>) -> rustix::io::Result<()> {
        self.apply_over(file, &fstat(file)?)
    }

    /// As [`apply`](Self::apply), if the attributes that the file has are known.
    pub(crate) fn apply_over(&self, file: BorrowedFd<'_>, is: &Stat) -> rustix::io::Result<()> {
        if (is.st_uid, is.st_gid) != (self.uid.as_raw(), self.gid.as_raw()) {
            fchown(file, Some(self.uid), Some(self.gid))?;
        }
        for (name, value) in &self.xattrs {
            fsetxattr(file, name, value, XattrFlags::empty())?;
        }
        if !self.xattrs.is_empty() || Mode::from_raw_mode(is.st_mode) != self.mode {
            fchmod(file, self.mode)?;
        }
        futimens(file, &self.times)
    }

    /// Sets these attributes on the new file `name` in `dir`. This is for files that must not be
    /// opened: symbolic links, devices, FIFOs and sockets.
    pub(crate) fn apply_to_name(&self, dir: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<()> {
        chownat(dir, name, Some(self.uid), Some(self.gid), AtFlags::SYMLINK_NOFOLLOW)?;
        let path = path_through_proc(dir, name);
        for (attribute, value) in &self.xattrs {
            lsetxattr(&path, attribute, value, XattrFlags::empty())?;
        }
        // The mode of a symbolic link cannot be set.
        if self.kind != FileType::Symlink {
            chmodat(dir, name, self.mode, AtFlags::empty())?;
        }
        utimensat(dir, name, &self.times, AtFlags::SYMLINK_NOFOLLOW)
    }
}

/// Returns the times of a file that can be set: the last access and the last modification.
pub(crate) fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime as _, tv_nsec: stat.st_atime_nsec as _ },
        last_modification: Timespec { tv_sec: stat.st_mtime as _, tv_nsec: stat.st_mtime_nsec as _ },
    }
}

/// Removes from a new directory the attributes that it inherited from its parent: ACLs and the
/// setgid bit. Also removes all other extended attributes, except those in the namespace
/// `security`. Only the owner may enter the directory afterwards (mode 0700).
///
/// An attribute that a security module has set stays: it is not inherited from a layer, and
/// removing it may be forbidden.
pub(crate) fn strip(dir: BorrowedFd<'_>) -> rustix::io::Result<()> {
    for name in XattrList::of(dir)?.iter() {
        if !name.to_bytes().starts_with(b"security.") {
            match fremovexattr(dir, name) {
                Ok(()) | Err(Errno::NODATA) => {}
                Err(error) => return Err(error),
            }
        }
    }
    fchmod(dir, Mode::RWXU)
}
