//! Decides what is left out without the privilege to set owners, extended attributes and devices.

use rustix::fs::Stat;
use rustix::io::Errno;

use crate::tree::attributes::Attributes;

/// The treatment of owners, devices and attributes that this process cannot set or make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Privileges {
    /// An error. This is for root.
    #[default]
    Required,
    /// They are left out and counted: files belong to the caller, devices are missing, and
    /// capabilities are lost.
    AsAvailable,
}

/// The numbers of things that an import had to leave out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[non_exhaustive]
pub struct LeftOut {
    /// Files whose owner could not be set.
    pub owners: u64,
    /// Files without an extended attribute that only a privileged process can set, such as a
    /// capability.
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
}

impl std::ops::AddAssign for LeftOut {
    fn add_assign(&mut self, other: Self) {
        self.owners += other.owners;
        self.xattrs += other.xattrs;
        self.devices += other.devices;
        self.acl_texts += other.acl_texts;
    }
}

/// Sets attributes by `set`. Without the privilege for all, sets those that are allowed.
pub(super) fn apply(
    left_out: &mut LeftOut,
    privileges: Privileges,
    mut attributes: Attributes,
    stat: &Stat,
    set: impl Fn(&Attributes) -> rustix::io::Result<()>,
) -> rustix::io::Result<()> {
    let refused = match (set(&attributes), privileges) {
        (Err(errno @ (Errno::PERM | Errno::INVAL | Errno::NOTSUP)), Privileges::AsAvailable) => errno,
        (set, _) => return set,
    };
    let takes_owner = attributes.take_owner(stat);
    if takes_owner && set(&attributes).is_ok() {
        left_out.owners += 1;
        return Ok(());
    }
    if !attributes.drop_privileged_xattrs() {
        return Err(refused);
    }
    left_out.owners += u64::from(takes_owner);
    left_out.xattrs += 1;
    set(&attributes)
}
