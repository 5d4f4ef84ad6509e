use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::capability::Capability;
use super::choices::{Fsync, Network, NoNewPrivileges, RootAccess, Seccomp, Terminal};
use super::error::TemplateError;
use super::fields::{CpuQuota, Fields};
use super::mount::Mount;
use super::rlimit::{Rlimit, RlimitKind};
use super::{Template, spec, validate};
use crate::user::UserSpec;

/// The fields of a [`Template`]. Each setter says what is the case without it.
///
/// A field set twice has its last value; `env`, `annotation` and `rlimit` are set twice by the same key, `mount` only adds.
/// Everything is checked by [`build`](Self::build).
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until `build`"]
pub struct TemplateBuilder {
    fields: Fields,
}

impl Template {
    /// Starts a template that runs the program `argv[0]` with the arguments that follow.
    ///
    /// A name without a slash is looked up in the container's `PATH`.
    pub fn builder(argv: impl IntoIterator<Item = impl Into<String>>) -> TemplateBuilder {
        TemplateBuilder { fields: Fields::new(argv.into_iter().map(Into::into).collect()) }
    }
}

impl TemplateBuilder {
    /// The command's working directory, absolute inside the container; `/` by default. If it is missing,
    /// [`Rootfs::mount_points`](crate::Rootfs::mount_points) makes it, and it belongs to the command's [user](Self::user).
    pub fn cwd(mut self, cwd: impl Into<PathBuf>) -> Self {
        self.fields.cwd = cwd.into();
        self
    }

    /// An environment variable. The only one by default is Docker's `PATH`, and `HOME` once the user is known: see
    /// [`Rootfs::find_user`](crate::Rootfs::find_user).
    pub fn env(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        let (key, value) = (key.into(), value.into());
        match self.fields.env.iter_mut().find(|(known, _)| *known == key) {
            Some((_, known)) => *known = value,
            None => self.fields.env.push((key, value)),
        }
        self
    }

    /// The user and the group that the command runs as, by number; root by default.
    pub fn user(self, uid: u32, gid: u32) -> Self {
        self.user_spec(UserSpec::of_ids(uid, gid))
    }

    /// The user and the group that the command runs as, by number or by name.
    ///
    /// A template belongs to no root file system, so it keeps a name as it is, in `process.user.username`:
    /// [`Rootfs::find_user`](crate::Rootfs::find_user) looks it up.
    ///
    /// ```
    /// # use container::Template;
    /// let template = Template::builder(["opam", "install", "dune"]).user_spec("opam".parse()?).build()?;
    /// assert_eq!(template.user_spec().to_string(), "opam");
    /// # Ok::<(), container::TemplateError>(())
    /// ```
    pub fn user_spec(mut self, user: UserSpec) -> Self {
        self.fields.user = user;
        self
    }

    /// The groups that the command belongs to besides; none by default. A user that is given by name alone is in the groups
    /// that list it, too.
    pub fn additional_groups(mut self, gids: impl IntoIterator<Item = u32>) -> Self {
        self.fields.additional_gids = gids.into_iter().collect();
        self
    }

    /// Whether the command gets a terminal of its own; it gets none by default.
    pub fn terminal(mut self, terminal: Terminal) -> Self {
        self.fields.terminal = terminal;
        self
    }

    /// The capabilities that root has in the container, bounding what any process there can get.
    ///
    /// By default the 14 that Docker leaves: `chown`, `dac_override`, `fsetid`, `fowner`, `mknod`, `net_raw`, `setgid`,
    /// `setuid`, `setfcap`, `setpcap`, `net_bind_service`, `sys_chroot`, `kill` and `audit_write`. They are not
    /// inheritable, so a command that runs as another user has none of them.
    pub fn capabilities(mut self, capabilities: impl IntoIterator<Item = Capability>) -> Self {
        self.fields.capabilities = capabilities.into_iter().collect();
        self
    }

    /// Whether set-user-ID programs work; they do by default.
    pub fn no_new_privileges(mut self, no_new_privileges: NoNewPrivileges) -> Self {
        self.fields.no_new_privileges = no_new_privileges;
        self
    }

    /// How many files each process may have open, soft and hard.
    ///
    /// By default 1,024, which a process may raise to 524,288. A run lowers this default to the hard limit of the calling process
    /// where that is lower.
    pub fn open_files_limit(self, limit: u64) -> Self {
        self.rlimit(RlimitKind::Nofile, limit, limit)
    }

    /// A limit of [`setrlimit(2)`], in the unit that it has there; [`Rlimit`] reads one from text. Those not set are the
    /// runtime's own.
    ///
    /// [`setrlimit(2)`]: https://man7.org/linux/man-pages/man2/getrlimit.2.html
    pub fn rlimit(mut self, kind: RlimitKind, soft: u64, hard: u64) -> Self {
        self.fields.rlimits.retain(|known| known.kind != kind);
        self.fields.rlimits.push(Rlimit { kind, soft, hard });
        self
    }

    /// Whether the root file system can be written to; it can by default.
    pub fn root_access(mut self, access: RootAccess) -> Self {
        self.fields.root_access = access;
        self
    }

    /// The container's own hostname, at most 64 bytes; the host's by default.
    pub fn hostname<'a>(mut self, hostname: impl Into<Option<&'a str>>) -> Self {
        self.fields.hostname = hostname.into().map(str::to_owned);
        self
    }

    /// One more mount, over the system's own and those given before.
    pub fn mount(mut self, mount: Mount) -> Self {
        self.fields.mounts.push(mount);
        self
    }

    /// A note for other programs, which the runtime keeps with the container's state.
    pub fn annotation(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.fields.annotations.insert(key.into(), value.into());
        self
    }

    /// The network that the container sees; by default none.
    pub fn network(mut self, network: Network) -> Self {
        self.fields.network = network;
        self
    }

    /// The control group of the container; by default the runtime chooses one. See [`linux.cgroupsPath`].
    ///
    /// [`linux.cgroupsPath`]: https://github.com/opencontainers/runtime-spec/blob/v1.1.0/config-linux.md#cgroups-path
    pub fn cgroups_path(mut self, path: impl Into<PathBuf>) -> Self {
        self.fields.cgroups_path = Some(path.into());
        self
    }

    /// The most memory that the container may use, in bytes, with no swap beyond it; unlimited by default.
    pub fn memory_limit_bytes(mut self, limit: impl Into<Option<u64>>) -> Self {
        self.fields.memory_limit_bytes = limit.into();
        self
    }

    /// How many processes and threads the container may have at a time; unlimited by default.
    pub fn pids_limit(mut self, limit: impl Into<Option<u64>>) -> Self {
        self.fields.pids_limit = limit.into();
        self
    }

    /// The processors that the container may run on, as in [`cpuset(7)`]: `0-3,5`; all by default.
    ///
    /// [`cpuset(7)`]: https://man7.org/linux/man-pages/man7/cpuset.7.html
    pub fn cpus<'a>(mut self, list: impl Into<Option<&'a str>>) -> Self {
        self.fields.cpus = list.into().map(str::to_owned);
        self
    }

    /// The memory nodes that the container may allocate from, as in [`cpuset(7)`]: `0-1`; all by default.
    ///
    /// [`cpuset(7)`]: https://man7.org/linux/man-pages/man7/cpuset.7.html
    pub fn mems<'a>(mut self, list: impl Into<Option<&'a str>>) -> Self {
        self.fields.mems = list.into().map(str::to_owned);
        self
    }

    /// The processor time that the container may use in every period: 150 ms in every 100 ms is one and a half
    /// processors; unlimited by default. Both are rounded down to a microsecond.
    pub fn cpu_quota(mut self, quota: Duration, period: Duration) -> Self {
        self.fields.cpu_quota = Some(CpuQuota { quota, period });
        self
    }

    /// The system calls that are let through; by default those that Docker's default profile lets through with these
    /// [capabilities](Self::capabilities).
    ///
    /// The `fsync` family is answered as [`fsync`](Self::fsync) says, whatever a profile says of it: give
    /// [`Fsync::Real`] as well for one that is used as it is.
    pub fn seccomp(mut self, seccomp: Seccomp) -> Self {
        self.fields.seccomp = seccomp;
        self
    }

    /// What `fsync` and its family do; by default they do not wait for the disk of the root file system.
    pub fn fsync(mut self, fsync: Fsync) -> Self {
        self.fields.fsync = fsync;
        self
    }

    /// The template, if every field holds.
    ///
    /// # Errors
    ///
    /// The first [`TemplateError`] found: a command, an environment variable, a path, a name, a list or a limit that the
    /// kernel or the runtime would refuse later, or would take for something else.
    pub fn build(self) -> Result<Template, TemplateError> {
        validate::fields(&self.fields)?;
        // Of a profile of the caller's only a runtime knows what it means.
        let filter = matches!(self.fields.seccomp, Seccomp::Default | Seccomp::Native).then(Arc::default);
        let value = spec::to_value(&self.fields)?;
        validate::value(&value)?;
        Ok(Template { value: Arc::new(value), filter })
    }
}
