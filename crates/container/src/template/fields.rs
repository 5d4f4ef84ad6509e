//! The fields that `builder` collects, `validate` checks and `spec` writes as a configuration.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::capability::Capability;
use super::choices::{Fsync, Network, NoNewPrivileges, Owners, RootAccess, Seccomp, Terminal};
use super::defaults;
use super::mount::Mount;
use super::rlimit::Rlimit;
use crate::user::UserSpec;

/// The fields of a template before they are checked.
#[derive(Debug, Clone)]
pub(super) struct Fields {
    pub(super) args: Vec<String>,
    pub(super) cwd: PathBuf,
    pub(super) env: Vec<(String, String)>,
    pub(super) user: UserSpec,
    pub(super) additional_gids: Vec<u32>,
    pub(super) terminal: Terminal,
    pub(super) capabilities: Vec<Capability>,
    pub(super) no_new_privileges: NoNewPrivileges,
    pub(super) rlimits: Vec<Rlimit>,
    pub(super) root_access: RootAccess,
    pub(super) hostname: Option<String>,
    pub(super) mounts: Vec<Mount>,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) network: Network,
    pub(super) cgroups_path: Option<PathBuf>,
    pub(super) memory_limit_bytes: Option<u64>,
    pub(super) pids_limit: Option<u64>,
    pub(super) cpus: Option<String>,
    pub(super) mems: Option<String>,
    pub(super) cpu_quota: Option<CpuQuota>,
    pub(super) seccomp: Seccomp,
    pub(super) fsync: Fsync,
    pub(super) owners: Owners,
}

/// The processor time that a container may use in each period.
#[derive(Debug, Clone, Copy)]
pub(super) struct CpuQuota {
    pub(super) quota: Duration,
    pub(super) period: Duration,
}

impl Fields {
    /// Returns the fields of a container that runs `args`, with the defaults for everything else.
    pub(super) fn new(args: Vec<String>) -> Self {
        Self {
            args,
            cwd: PathBuf::from("/"),
            env: vec![("PATH".to_owned(), defaults::PATH.to_owned())],
            user: UserSpec::of_ids(0, 0),
            additional_gids: Vec::new(),
            terminal: Terminal::None,
            capabilities: Capability::DEFAULT.to_vec(),
            no_new_privileges: NoNewPrivileges::Off,
            rlimits: vec![defaults::OPEN_FILES],
            root_access: RootAccess::ReadWrite,
            hostname: None,
            mounts: Vec::new(),
            annotations: BTreeMap::new(),
            network: Network::None,
            cgroups_path: None,
            memory_limit_bytes: None,
            pids_limit: None,
            cpus: None,
            mems: None,
            cpu_quota: None,
            seccomp: Seccomp::Default,
            fsync: Fsync::Ignored,
            owners: Owners::Real,
        }
    }
}
