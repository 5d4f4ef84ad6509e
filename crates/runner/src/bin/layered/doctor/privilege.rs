//! Checks whether this process has the rights that a run needs. [`access`](super::access) checks
//! the rights of other users.

use std::fs;

use container::require_privilege;
use rustix::process::geteuid;

use super::check::Check;

pub(super) fn checks() -> Vec<Check> {
    vec![judge(
        geteuid().as_raw(),
        require_privilege().is_ok(),
        fs::read_to_string("/proc/self/uid_map").ok().as_deref(),
    )]
}

fn judge(uid: u32, may_mount: bool, uid_map: Option<&str>) -> Check {
    let whole = uid_map.is_none_or(|map| map.split_whitespace().eq(["0", "0", "4294967295"]));
    match (uid, may_mount) {
        (_, false) => Check::failed("privilege", format!("user {uid} without CAP_SYS_ADMIN"))
            .means("layered cannot mount anything")
            .advice("run layered as root, with all capabilities"),
        (0, true) if whole => Check::ok("privilege", "root, with CAP_SYS_ADMIN"),
        (0, true) => Check::warning("privilege", "root in a user namespace only")
            .means("the kernel may refuse device nodes, trusted xattrs and cgroups")
            .advice("if a check below fails, run layered as root of the host"),
        (uid, true) => Check::warning("privilege", format!("user {uid} with CAP_SYS_ADMIN"))
            .means("layers and runtimes need other rights of root, too")
            .advice("run layered as root"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::check::Verdict;

    #[test]
    fn only_root_of_the_host_is_ok() {
        let (host, own) = ("         0          0 4294967295\n", "0 100000 65536\n");
        let table = [
            ((0, true, Some(host)), Verdict::Ok),
            ((0, true, None), Verdict::Ok),
            ((0, true, Some(own)), Verdict::Warning),
            ((0, false, Some(host)), Verdict::Failed),
            ((1000, true, Some(host)), Verdict::Warning),
            ((1000, false, Some(host)), Verdict::Failed),
        ];
        for ((uid, may_mount, map), expected) in table {
            assert_eq!(judge(uid, may_mount, map).verdict, expected, "{uid} {may_mount} {map:?}");
        }
    }
}
