//! Writes checked fields as the JSON of a configuration. The same fields always result in the same
//! JSON.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use oci_spec::runtime as oci;
use serde_json::Value;

use super::capability::Capability;
use super::choices::{Network, NoNewPrivileges, RootAccess, Terminal};
use super::defaults::{self, ROOTFS_PLACEHOLDER};
use super::error::TemplateError;
use super::fields::{CpuQuota, Fields};
use super::rlimit::Rlimit;
use super::seccomp;
use crate::network as private;
use crate::user::{NOBODY, UserSpec};

/// Returns the configuration with these fields, which `validate` has checked, and its JSON.
pub(super) fn of(fields: &Fields) -> Result<(oci::Spec, Value), TemplateError> {
    let mut root = oci::Root::default();
    root.set_path(PathBuf::from(ROOTFS_PLACEHOLDER)).set_readonly(Some(fields.root_access == RootAccess::ReadOnly));

    let system = defaults::MOUNTS.iter().map(defaults::SystemMount::to_spec);
    let mounts = system.chain(fields.mounts.iter().map(|mount| mount.to_spec())).collect();
    let annotations = fields.annotations.clone().into_iter().collect();

    let mut spec = oci::Spec::default();
    spec.set_version(defaults::OCI_VERSION.to_owned())
        .set_root(Some(root))
        .set_mounts(Some(mounts))
        .set_hostname(fields.hostname.clone())
        .set_annotations((!fields.annotations.is_empty()).then_some(annotations))
        .set_linux(Some(linux(fields)?))
        .set_process(Some(process(fields)));

    let mut value = serde_json::to_value(&spec).map_err(|source| TemplateError::Serialize { source })?;
    in_order(&mut value);
    Ok((spec, value))
}

/// Sorts the values that `oci-spec` keeps in hash tables, whose order differs between processes.
fn in_order(value: &mut Value) {
    if let Some(sets) = value.pointer_mut("/process/capabilities").and_then(Value::as_object_mut) {
        for set in sets.values_mut().filter_map(Value::as_array_mut) {
            set.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
        }
    }
    if let Some(annotations) = value.get_mut("annotations").and_then(Value::as_object_mut) {
        annotations.sort_keys();
    }
}

fn process(fields: &Fields) -> oci::Process {
    let mut user = self::user(&fields.user);
    user.set_additional_gids((!fields.additional_gids.is_empty()).then(|| fields.additional_gids.clone()));

    let mut env: Vec<String> = fields.env.iter().map(|(key, value)| format!("{key}={value}")).collect();
    if fields.terminal == Terminal::Attached && !fields.env.iter().any(|(key, _)| key == "TERM") {
        env.push(format!("TERM={}", defaults::TERM));
    }

    let mut process = oci::Process::default();
    process
        .set_terminal(Some(fields.terminal == Terminal::Attached))
        .set_user(user)
        .set_args(Some(fields.args.clone()))
        .set_env(Some(env))
        .set_cwd(fields.cwd.clone())
        .set_capabilities(Some(capabilities(&fields.capabilities)))
        .set_rlimits(Some(fields.rlimits.iter().map(rlimit).collect()))
        .set_no_new_privileges(Some(fields.no_new_privileges == NoNewPrivileges::On));
    process
}

/// Returns the user without supplementary groups. [`Template::user_spec`](super::Template) reads
/// it.
pub(super) fn user(spec: &UserSpec) -> oci::User {
    let mut user = oci::User::default();
    let (uid, gid) = spec.ids().unwrap_or((NOBODY, NOBODY));
    user.set_uid(uid).set_gid(gid);
    user.set_username(spec.ids().is_none().then(|| spec.to_string()));
    user
}

fn capabilities(capabilities: &[Capability]) -> oci::LinuxCapabilities {
    let all: HashSet<_> = capabilities.iter().copied().map(Capability::to_spec).collect();
    let mut sets = oci::LinuxCapabilities::default();
    sets.set_bounding(Some(all.clone()))
        .set_effective(Some(all.clone()))
        .set_permitted(Some(all))
        // A program with file capabilities would regain inheritable ones (CVE-2022-24769).
        .set_inheritable(Some(HashSet::new()))
        .set_ambient(Some(HashSet::new()));
    sets
}

fn rlimit(limit: &Rlimit) -> oci::PosixRlimit {
    // This type has no setters. Its builder fails only if a field is missing.
    let builder = oci::PosixRlimitBuilder::default().typ(limit.kind.to_spec()).soft(limit.soft).hard(limit.hard);
    builder.build().expect("every field is given")
}

fn linux(fields: &Fields) -> Result<oci::Linux, TemplateError> {
    let mut linux = oci::Linux::default();
    linux
        .set_resources(Some(resources(fields)))
        .set_cgroups_path(fields.cgroups_path.clone())
        .set_namespaces(Some(namespaces(&fields.network)))
        .set_sysctl(sysctl(&fields.network))
        .set_masked_paths(Some(defaults::MASKED_PATHS.map(String::from).to_vec()))
        .set_readonly_paths(Some(defaults::READ_ONLY_PATHS.map(String::from).to_vec()))
        .set_seccomp(seccomp::filter(&fields.seccomp, fields.fsync, fields.owners, &fields.capabilities)?);
    Ok(linux)
}

fn namespaces(network: &Network) -> Vec<oci::LinuxNamespace> {
    use oci::LinuxNamespaceType::{Cgroup, Ipc, Mount, Network as Net, Pid, Uts};

    let namespace = |kind, path| {
        let mut namespace = oci::LinuxNamespace::default();
        namespace.set_typ(kind).set_path(path);
        namespace
    };
    let network = match network {
        Network::None => Some(namespace(Net, None)),
        Network::Private => Some(namespace(Net, Some(private::PATH.into()))),
        Network::Joined(path) => Some(namespace(Net, Some(path.clone()))),
        Network::Host => None,
    };
    // Without a cgroup namespace, the container sees its own name in /proc/self/cgroup, which
    // differs in each run, and the names of the host's control groups. On v2 it sees all of them
    // with their usage.
    [Pid, Ipc, Uts, Mount, Cgroup].map(|kind| namespace(kind, None)).into_iter().chain(network).collect()
}

/// Returns the kernel settings of the container's own namespaces.
fn sysctl(network: &Network) -> Option<HashMap<String, String>> {
    let settings = defaults::SYSCTL.map(|(name, value)| (name.to_owned(), value.to_owned()));
    matches!(network, Network::None | Network::Private).then(|| settings.into())
}

fn resources(fields: &Fields) -> oci::LinuxResources {
    // The first rule denies every device. After it, the runtime allows the devices that it creates
    // itself (config-linux.md, "Default Devices").
    let mut every_device = oci::LinuxDeviceCgroup::default();
    every_device.set_allow(false).set_access(Some("rwm".to_owned()));

    let mut resources = oci::LinuxResources::default();
    resources.set_devices(Some(vec![every_device]));
    if let Some(bytes) = fields.memory_limit_bytes {
        let bytes = Some(signed(bytes));
        let mut memory = oci::LinuxMemory::default();
        // `swap` is the limit of memory and swap together. It is equal to that of memory, so that
        // the container cannot swap to exceed it. On cgroup v1 without swap accounting (before
        // Linux 6.1, with `swapaccount=0`), the runtime fails and names the missing file. That is
        // better than a limit without effect.
        memory.set_limit(bytes).set_swap(bytes);
        resources.set_memory(Some(memory));
    }
    if let Some(limit) = fields.pids_limit {
        let mut pids = oci::LinuxPids::default();
        pids.set_limit(signed(limit));
        resources.set_pids(Some(pids));
    }
    if fields.cpus.is_some() || fields.mems.is_some() || fields.cpu_quota.is_some() {
        resources.set_cpu(Some(cpu(fields)));
    }
    resources
}

fn cpu(fields: &Fields) -> oci::LinuxCpu {
    let mut cpu = oci::LinuxCpu::default();
    cpu.set_cpus(fields.cpus.clone()).set_mems(fields.mems.clone());
    if let Some(CpuQuota { quota, period }) = fields.cpu_quota {
        cpu.set_quota(Some(i64::try_from(quota.as_micros()).unwrap_or(i64::MAX)));
        cpu.set_period(Some(u64::try_from(period.as_micros()).unwrap_or(u64::MAX)));
    }
    cpu
}

/// Converts a limit. The specification's limits are signed, because -1 means "unlimited".
/// `validate` refuses limits that do not fit.
fn signed(limit: u64) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}
