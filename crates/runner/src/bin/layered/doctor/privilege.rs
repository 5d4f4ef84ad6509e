//! Checks whether this process has the rights that a run needs, and which users and groups a user
//! namespace has. [`access`](super::access) checks the rights of other users.

use container::{Ids, UserNamespace, require_privilege};
use rustix::process::geteuid;

use super::check::Check;

pub(super) fn checks(chosen: Ids, not_entered: Option<&anyhow::Error>) -> Vec<Check> {
    if let Some(error) = not_entered {
        return vec![
            Check::failed("privilege", format!("{error:#}"))
                .means("layered cannot mount anything")
                .advice("follow the reason, or run layered as root"),
        ];
    }
    let namespace = UserNamespace::current();
    let privilege = judge(geteuid().as_raw(), require_privilege().is_ok(), namespace.is_some());
    // In a namespace that existed before, `chosen` says nothing about the user.
    let chosen = UserNamespace::entered().map(|_| chosen);
    [privilege].into_iter().chain(namespace.map(|namespace| ids(&namespace, chosen))).collect()
}

fn judge(uid: u32, may_mount: bool, is_in_user_namespace: bool) -> Check {
    match (uid, may_mount, is_in_user_namespace) {
        (_, false, _) => Check::failed("privilege", format!("user {uid} without CAP_SYS_ADMIN"))
            .means("layered cannot mount anything")
            .advice("run layered as root, with all capabilities"),
        (0, true, false) => Check::ok("privilege", "root, with CAP_SYS_ADMIN"),
        (0, true, true) => Check::ok("privilege", "root of a user namespace")
            .means("the kernel refuses device nodes, and overlays use user.overlay xattrs"),
        (uid, true, _) => Check::warning("privilege", format!("user {uid} with CAP_SYS_ADMIN"))
            .means("layers and runtimes need other rights of root, too")
            .advice("run layered as root"),
    }
}

/// `chosen` are the IDs that the caller has chosen for the namespace, if this process has created
/// it.
fn ids(namespace: &UserNamespace, chosen: Option<Ids>) -> Check {
    let found = format!("users {}; groups {}", namespace.uids(), namespace.gids());
    match namespace.uids().count().min(namespace.gids().count()) {
        0 | 1 => Check::warning("ids", found)
            .means(
                "the container has no other user than root: chown, --user and package managers that change users fail",
            )
            .advice(advice_for_single(chosen)),
        _ => Check::ok("ids", found).means("files in the container can have these owners"),
    }
}

/// Returns the way to more users and groups than root.
fn advice_for_single(chosen: Option<Ids>) -> &'static str {
    match chosen {
        // It would have taken subordinate IDs.
        Some(Ids::Auto | Ids::Ranges) => {
            "install uidmap and, as root, give the user subordinate IDs that no other line of /etc/subuid and /etc/subgid \
             has: usermod --add-subuids FIRST-LAST --add-subgids FIRST-LAST USER"
        }
        Some(Ids::Single) | None => "use --ids ranges, which takes your subordinate IDs",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::check::Verdict;

    #[test]
    fn only_root_may_run() {
        let table = [
            ((0, true, false), Verdict::Ok),
            ((0, true, true), Verdict::Ok),
            ((0, false, false), Verdict::Failed),
            ((1000, true, false), Verdict::Warning),
            ((1000, false, true), Verdict::Failed),
        ];
        for ((uid, may_mount, is_in_user_namespace), expected) in table {
            assert_eq!(judge(uid, may_mount, is_in_user_namespace).verdict, expected, "{uid} {may_mount}");
        }
    }

    #[test]
    fn only_a_user_who_has_no_subordinate_ids_is_advised_to_get_some() {
        for (chosen, part) in [
            (Some(Ids::Auto), "usermod --add-subuids FIRST-LAST"),
            (Some(Ids::Single), "use --ids ranges"),
            (None, "use --ids ranges"),
        ] {
            assert!(advice_for_single(chosen).contains(part), "{chosen:?}");
        }
    }

    #[test]
    fn the_reason_for_no_namespace_is_a_failure() {
        let [check] = &checks(Ids::Auto, Some(&anyhow::anyhow!("threads")))[..] else { panic!("one check") };
        assert_eq!(check.verdict, Verdict::Failed);
    }
}
