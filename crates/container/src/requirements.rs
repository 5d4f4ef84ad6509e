//! What a process needs before it can run a template: privilege, IDs and controllers.

use crate::cgroup::Cgroup;
use crate::error::Result;
use crate::mount_namespace::require_privilege;
use crate::template::Template;
use crate::user_namespace::UserNamespace;

/// Checks that this process can run `template`: that it may mount, that the command's user has a
/// number in this process's [user namespace](UserNamespace), and that the limits can be enforced. A
/// run fails without this check too, but later.
///
/// # Errors
/// - [`Error::Namespace`](crate::Error::Namespace) without CAP_SYS_ADMIN.
/// - [`Error::NotMapped`](crate::Error::NotMapped) for the first ID that the user namespace does
///   not have. A user that is given by name is looked up and checked later, by
///   [`Rootfs::find_user`](crate::Rootfs::find_user).
/// - The errors of [`Cgroup::require`].
pub fn require(template: &Template) -> Result<()> {
    require_privilege()?;
    if let (Some(namespace), Some((uid, gid))) = (UserNamespace::current(), template.user_spec().ids()) {
        namespace.check_ids(uid, template.additional_gids().chain([gid]))?;
    }
    Cgroup::require(template.controllers())
}
