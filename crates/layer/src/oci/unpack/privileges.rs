//! Decides what is left out without the privilege to set owners, extended attributes and devices.

use std::os::fd::BorrowedFd;

use rustix::fs::{Stat, StatVfs, fstatvfs};
use rustix::io::Errno;

use crate::oci::error::Problem;
use crate::tree::attributes::Attributes;

/// The treatment of owners, devices and attributes that this process cannot set or make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Privileges {
    /// An error. This is for root.
    #[default]
    Required,
    /// Each is left out by itself and counted: the user or the group of a file is the caller's,
    /// devices are missing, and capabilities are lost.
    AsAvailable,
}

/// The numbers of things that an import had to leave out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct LeftOut {
    /// Files whose user or group could not be set.
    pub owners: u64,
    /// Files without an extended attribute that this process cannot set: a capability, or an ACL
    /// for a user without a number here.
    pub xattrs: u64,
    /// Device nodes that could not be made, and hard links to them.
    pub devices: u64,
    /// Files whose ACL is a text of GNU tar, which layered does not read.
    pub acl_texts: u64,
}

impl LeftOut {
    /// Returns whether nothing was left out.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Returns whether a process with all privileges leaves out the same.
    pub(crate) fn is_same_with(self, privileges: Privileges) -> bool {
        match privileges {
            Privileges::Required => Self { acl_texts: 0, ..self }.is_empty(),
            Privileges::AsAvailable => true,
        }
    }
}

impl std::ops::AddAssign for LeftOut {
    fn add_assign(&mut self, other: Self) {
        self.owners += other.owners;
        self.xattrs += other.xattrs;
        self.devices += other.devices;
        self.acl_texts += other.acl_texts;
    }
}

/// Sets attributes by `set`. Without the privilege for all, sets each part that is allowed: the
/// user, the group, and every extended attribute for itself.
pub(super) fn apply(
    left_out: &mut LeftOut,
    privileges: Privileges,
    mut attributes: Attributes,
    stat: &Stat,
    set: impl Fn(&Attributes) -> rustix::io::Result<()>,
) -> rustix::io::Result<()> {
    match (set(&attributes), privileges) {
        (Err(errno), Privileges::AsAvailable) if is_refusal(errno) => {}
        (set, _) => return set,
    }
    let xattrs = std::mem::take(attributes.xattrs_mut());
    let ((uid, gid), (own_uid, own_gid)) = (attributes.owner(), (stat.st_uid, stat.st_gid));
    let mut allowed = Err(Errno::PERM);
    for owner in [(uid, gid), (uid, own_gid), (own_uid, gid), (own_uid, own_gid)] {
        attributes.set_owner(owner);
        allowed = set(&attributes);
        match allowed {
            Err(errno) if is_refusal(errno) => {}
            _ => break,
        }
    }
    allowed?;
    left_out.owners += u64::from(attributes.owner() != (uid, gid));
    let all = xattrs.len();
    let mut kept = Vec::with_capacity(all);
    // Each alone: a hostile file can have ten thousands.
    for xattr in xattrs {
        attributes.xattrs_mut().push(xattr);
        match set(&attributes) {
            Err(errno) if is_refusal(errno) => attributes.xattrs_mut().clear(),
            set => {
                set?;
                kept.append(attributes.xattrs_mut());
            }
        }
    }
    left_out.xattrs += u64::from(kept.len() < all);
    // Each attempt came with a change of the owner, which clears the attributes before it.
    attributes.xattrs_mut().append(&mut kept);
    set(&attributes)
}

/// Returns the conversion of an error of [`apply`] into its reason. `place` is a directory of the
/// file system.
pub(super) fn attributes_failed<'a>(
    operation: &'static str,
    attributes: &Attributes,
    place: BorrowedFd<'a>,
) -> impl FnOnce(Errno) -> Problem + use<'a> {
    let bytes = attributes.xattrs().iter().map(|(name, value)| name.count_bytes() + value.len()).sum();
    move |errno| match errno {
        Errno::NOSPC if bytes > 0 && fstatvfs(place).is_ok_and(|place| has_room(&place)) => {
            Problem::XattrsDoNotFit { bytes }
        }
        errno => Problem::io(operation)(errno),
    }
}

/// Returns whether a file system has room for any extended attributes, so that only a limit of its
/// own can be in their way.
fn has_room(place: &StatVfs) -> bool {
    // Some file systems have no fixed number of inodes. In a tmpfs, attributes take some.
    let has_inodes = place.f_files == 0 || place.f_favail >= 1024;
    has_inodes && place.f_bavail.saturating_mul(place.f_frsize) >= 1 << 20
}

/// Returns whether the kernel refuses what another process may do, or what another file system has.
fn is_refusal(errno: Errno) -> bool {
    // INVAL: an owner without a number in this user namespace.
    matches!(errno, Errno::PERM | Errno::INVAL | Errno::NOTSUP)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use std::os::fd::AsFd;

    use rustix::fs::{FileType, Timespec, stat};

    use super::*;
    use crate::oci::error::Error;

    /// The user, the group and the names of the extended attributes of a file.
    type Parts = (u32, u32, Vec<&'static str>);

    #[test]
    fn attributes_that_do_not_fit_are_not_a_full_disk() {
        // The kernel's own file systems report no free blocks, as a full one does.
        let [full, free] = ["/proc", "/tmp"].map(|path| std::fs::File::open(path).unwrap());
        let of = |xattrs| {
            let time = Timespec { tv_sec: 0, tv_nsec: 0 };
            Attributes::new(FileType::RegularFile, 0o644, (0, 0), time, xattrs)
        };
        let (with, without) = (of(vec![(c"user.a".to_owned(), vec![0; 9000])]), of(Vec::new()));
        for (attributes, place, errno, expected) in [
            (&with, &free, Errno::NOSPC, "a limit"),
            (&with, &full, Errno::NOSPC, "full"),
            (&with, &free, Errno::DQUOT, "full"),
            (&without, &free, Errno::NOSPC, "full"),
            (&with, &free, Errno::IO, "other"),
        ] {
            let problem = attributes_failed("set the attributes of", attributes, place.as_fd())(errno);
            let found = match problem {
                Problem::XattrsDoNotFit { bytes: 9006 } => "a limit",
                Problem::NoSpace { .. } => "full",
                _ => "other",
            };
            assert_eq!(found, expected, "{errno}");
            let error = Error::Entry { operation: "unpack", archive: "a".into(), entry: "e".into(), problem };
            assert_eq!(error.is_temporary(), expected == "full");
        }
    }

    #[test]
    fn every_part_that_is_allowed_is_set() {
        let is = stat(std::env::temp_dir()).unwrap();
        let (uid, gid) = (is.st_uid, is.st_gid);
        let names = ["security.capability", "trusted.a", "user.a"];
        // What the archive has and what is refused, what is set, and the numbers of what is left
        // out.
        let cases: [(Parts, Parts, Parts, (u64, u64)); 8] = [
            ((7, 8, vec![]), (0, 0, vec![]), (7, 8, vec![]), (0, 0)),
            ((7, 8, vec![]), (7, 0, vec![]), (uid, 8, vec![]), (1, 0)),
            ((7, 8, vec![]), (0, 8, vec![]), (7, gid, vec![]), (1, 0)),
            ((7, 8, vec![]), (7, 8, vec![]), (uid, gid, vec![]), (1, 0)),
            ((7, 8, vec![names[0]]), (0, 0, vec![names[0]]), (7, 8, vec![]), (0, 1)),
            ((7, 8, names.to_vec()), (0, 8, vec![names[1]]), (7, gid, vec![names[0], names[2]]), (1, 1)),
            ((7, 8, names.to_vec()), (7, 8, names.to_vec()), (uid, gid, vec![]), (1, 1)),
            ((uid, gid, names.to_vec()), (0, 0, names[..2].to_vec()), (uid, gid, vec![names[2]]), (0, 1)),
        ];
        for (wanted, refused, expected, counts) in cases {
            let xattrs = wanted.2.iter().map(|name| (std::ffi::CString::new(*name).unwrap(), Vec::new())).collect();
            let time = Timespec { tv_sec: 0, tv_nsec: 0 };
            let attributes = Attributes::new(FileType::RegularFile, 0o644, (wanted.0, wanted.1), time, xattrs);
            let last = RefCell::new((0, 0, Vec::new()));
            let set = |attributes: &Attributes| {
                let (uid, gid) = attributes.owner();
                let names: Vec<_> =
                    attributes.xattrs().iter().map(|(name, _)| name.to_str().unwrap().to_string()).collect();
                let is_refused = (refused.0, refused.1) != (0, 0) && (uid == refused.0 || gid == refused.1)
                    || names.iter().any(|name| refused.2.contains(&name.as_str()));
                if is_refused {
                    return Err(Errno::PERM);
                }
                *last.borrow_mut() = (uid, gid, names);
                Ok(())
            };
            let mut left_out = LeftOut::default();
            apply(&mut left_out, Privileges::AsAvailable, attributes, &is, set).unwrap();
            let (uid, gid, names) = last.into_inner();
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            assert_eq!((uid, gid, names), expected, "{wanted:?} {refused:?}");
            assert_eq!((left_out.owners, left_out.xattrs), counts, "{wanted:?} {refused:?}");
        }
        let attributes =
            || Attributes::new(FileType::RegularFile, 0o644, (7, 8), Timespec { tv_sec: 0, tv_nsec: 0 }, Vec::new());
        for (privileges, errno) in [(Privileges::Required, Errno::PERM), (Privileges::AsAvailable, Errno::NOSPC)] {
            let result = apply(&mut LeftOut::default(), privileges, attributes(), &is, |_| Err(errno));
            assert_eq!(result, Err(errno));
        }
    }

    #[test]
    fn the_cost_of_attributes_grows_with_their_number_and_not_its_square() {
        let is = stat(std::env::temp_dir()).unwrap();
        let xattrs = (0..1000).map(|number| (std::ffi::CString::new(format!("user.{number}")).unwrap(), Vec::new()));
        let time = Timespec { tv_sec: 0, tv_nsec: 0 };
        let owner = (is.st_uid, is.st_gid);
        let attributes = Attributes::new(FileType::RegularFile, 0o644, owner, time, xattrs.collect());
        let set_xattrs = std::cell::Cell::new(0);
        let set = |attributes: &Attributes| {
            set_xattrs.set(set_xattrs.get() + attributes.xattrs().len());
            match attributes.xattrs().iter().any(|(name, _)| name.as_c_str() == c"user.999") {
                true => Err(Errno::PERM),
                false => Ok(()),
            }
        };
        let mut left_out = LeftOut::default();
        apply(&mut left_out, Privileges::AsAvailable, attributes, &is, set).unwrap();
        // All at first, then each alone, and those that are kept.
        assert_eq!((left_out.xattrs, set_xattrs.get()), (1, 1000 + 1000 + 999));
    }
}
