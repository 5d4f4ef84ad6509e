//! What a process needs before it can run a template: privilege, IDs and controllers.

use crate::cgroup::Cgroup;
use crate::error::{Error, Result};
use crate::mount_namespace::require_privilege;
use crate::network;
use crate::template::{Network, Template};
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
/// - [`Error::FakedUsers`](crate::Error::FakedUsers) if the template fakes
///   [owners](crate::Owners::Fake) although this process's user namespace has several users.
/// - [`Error::NoPasta`](crate::Error::NoPasta) or [`Error::NoTun`](crate::Error::NoTun) if a
///   [private](Network::Private) network cannot be made.
/// - The errors of [`Cgroup::require`].
pub fn require(template: &Template) -> Result<()> {
    require_privilege()?;
    let namespace = UserNamespace::current();
    if let (Some(namespace), Some((uid, gid))) = (&namespace, template.user_spec().ids()) {
        namespace.check_ids(uid, template.additional_gids().chain([gid]))?;
    }
    // runc loads the filter before it changes the user, so a command of another user would be root.
    let has_others = namespace.is_none_or(|namespace| namespace.uids().count().max(namespace.gids().count()) > 1);
    if has_others && template.fakes_users() {
        return Err(Error::FakedUsers);
    }
    if template.network() == Network::Private {
        network::require()?;
    }
    Cgroup::require(template.controllers())
}
