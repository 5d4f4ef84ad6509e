//! Changes a configuration so that a runtime in a user namespace accepts it: mounts and namespaces
//! that the kernel grants only to root of the machine. `config` applies it.

use serde_json::{Value, json};

use super::Network;
use crate::user_namespace::UserNamespace;

/// The facts that decide the changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Surroundings {
    pub(super) namespace: UserNamespace,
    pub(super) network: Network,
}

/// Whether the container has its own control group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OwnGroup {
    Present,
    Absent,
}

impl Surroundings {
    /// Changes the `mounts` of a configuration.
    pub(super) fn change_mounts(&self, mounts: &mut Value, group: OwnGroup) {
        let Some(entries) = mounts.as_array_mut() else { return };
        let is_of_host = self.network == Network::Host;
        let changed = std::mem::take(entries).into_iter().flat_map(|mut mount| match mount["type"].as_str() {
            // The group that owns terminals may have no number here.
            Some("devpts") => {
                self.retain_known_groups(&mut mount);
                vec![mount]
            }
            // A sysfs shows the devices of a network namespace, so only root of that one may mount
            // it. The host's has the control groups of the host below it.
            Some("sysfs") if is_of_host => binds_of_sys(&mount),
            // Otherwise the container would see the group of the caller.
            Some("cgroup" | "cgroup2") if is_of_host || group == OwnGroup::Absent => vec![],
            _ => vec![mount],
        });
        *entries = changed.collect();
    }

    fn retain_known_groups(&self, mount: &mut Value) {
        let has_number = |option: &Value| {
            let gid = option.as_str().and_then(|option| option.strip_prefix("gid="));
            gid.and_then(|gid| gid.parse().ok()).is_none_or(|gid| self.namespace.gids().contains(gid))
        };
        if let Some(options) = mount["options"].as_array_mut() {
            options.retain(has_number);
        }
    }
}

/// Returns the mounts that replace a sysfs: the host's `/sys`, read-only and without its control
/// groups.
fn binds_of_sys(mount: &Value) -> Vec<Value> {
    let destination = mount["destination"].as_str().unwrap_or("/sys");
    vec![
        json!({
            "destination": destination, "type": "bind", "source": "/sys",
            "options": ["rbind", "nosuid", "noexec", "nodev", "ro", "rro"],
        }),
        json!({
            "destination": format!("{}/fs/cgroup", destination.trim_end_matches('/')), "type": "tmpfs",
            "source": "tmpfs", "options": ["nosuid", "noexec", "nodev", "ro", "size=0"],
        }),
    ]
}

/// Returns the namespaces of the container without a user namespace, if they have one: the process
/// is in one already. Returns `None` if nothing changes.
pub(super) fn without_user_namespace(namespaces: &Value) -> Option<Value> {
    let is_user = |entry: &Value| entry["type"] == "user";
    let entries = namespaces.as_array().filter(|entries| entries.iter().any(is_user))?;
    Some(entries.iter().filter(|entry| !is_user(entry)).cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::Template;

    fn mounts(namespace: UserNamespace, network: Network, group: OwnGroup) -> Vec<(String, String)> {
        let template = Template::builder(["x"]).network(network.clone()).build().unwrap();
        let mut mounts = template.value["mounts"].clone();
        Surroundings { namespace, network }.change_mounts(&mut mounts, group);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let joined = |options: &Value| options.as_array().unwrap().iter().map(text).collect::<Vec<_>>().join(",");
        let mounts = mounts.as_array().unwrap().iter();
        mounts.map(|mount| (text(&mount["destination"]), joined(&mount["options"]))).collect()
    }

    fn ranges() -> UserNamespace {
        let map = "0 1000 1\n1 100000 65536\n";
        UserNamespace::of(map, map)
    }

    fn options(mounts: &[(String, String)], at: &str) -> Option<String> {
        mounts.iter().find(|(destination, _)| destination == at).map(|(_, options)| options.clone())
    }

    #[test]
    fn the_group_of_terminals_is_dropped_if_it_has_no_number() {
        let single = UserNamespace::of("0 1000 1\n", "0 1000 1\n");
        for (namespace, has_group) in [(ranges(), true), (single, false)] {
            let mounts = mounts(namespace, Network::None, OwnGroup::Absent);
            let options = options(&mounts, "/dev/pts").unwrap();
            assert_eq!(options.contains("gid=5"), has_group, "{options}");
            assert!(options.contains("mode=0620"), "{options}");
        }
    }

    #[test]
    fn sys_and_control_groups_depend_on_network_and_group() {
        let (own, of_host) = ("nosuid,noexec,nodev,ro", "rbind,nosuid,noexec,nodev,ro,rro");
        let empty = "nosuid,noexec,nodev,ro,size=0";
        let table = [
            (Network::None, OwnGroup::Absent, own, None),
            (Network::None, OwnGroup::Present, own, Some(own)),
            (Network::Joined("/run/netns/x".into()), OwnGroup::Absent, own, None),
            (Network::Host, OwnGroup::Absent, of_host, Some(empty)),
            (Network::Host, OwnGroup::Present, of_host, Some(empty)),
        ];
        for (network, group, sys, cgroup) in table {
            let mounts = mounts(ranges(), network.clone(), group);
            assert_eq!(options(&mounts, "/sys").as_deref(), Some(sys), "{network:?}");
            assert_eq!(options(&mounts, "/sys/fs/cgroup").as_deref(), cgroup, "{network:?} {group:?}");
        }
    }

    #[test]
    fn only_a_user_namespace_is_removed() {
        let with = json!([{"type": "pid"}, {"type": "user"}, {"type": "mount"}]);
        assert_eq!(without_user_namespace(&with), Some(json!([{"type": "pid"}, {"type": "mount"}])));
        assert_eq!(without_user_namespace(&json!([{"type": "pid"}])), None);
        assert_eq!(without_user_namespace(&Value::Null), None);
    }
}
