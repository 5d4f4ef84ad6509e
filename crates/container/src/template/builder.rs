//! Builds a template from typed fields. `validate` checks the fields, and `spec` writes them as a
//! configuration.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::capability::Capability;
use super::choices::{Fsync, Network, NoNewPrivileges, Owners, RootAccess, Seccomp, Terminal};
use super::error::TemplateError;
use super::fields::{CpuQuota, Fields};
use super::mount::Mount;
use super::rlimit::{Rlimit, RlimitKind};
use super::{Template, spec, validate};
use crate::user::UserSpec;

/// Builds a [`Template`]. Each setter documents its default.
///
/// A later call of a setter replaces the value of an earlier one. `env`, `annotation` and `rlimit`
/// replace only the value with the same key, and `mount` always adds a mount.
/// [`build`](Self::build) checks everything. Setters that take `impl Into<Option<_>>` restore the
/// default if they get `None`.
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until `build`"]
pub struct TemplateBuilder {
    fields: Fields,
}

impl Template {
    /// Starts a template for the program `argv[0]` with the arguments that follow. If the name has
    /// no slash, the program is looked up in the container's `PATH`.
    pub fn builder(argv: impl IntoIterator<Item = impl Into<String>>) -> TemplateBuilder {
        TemplateBuilder { fields: Fields::new(argv.into_iter().map(Into::into).collect()) }
    }
}

impl TemplateBuilder {
    /// Sets the command's working directory, an absolute path in the container. The default is `/`.
    /// If the directory is missing, [`Rootfs::mount_points`](crate::Rootfs::mount_points) creates
    /// it, owned by the command's [user](Self::user).
    pub fn cwd(mut self, cwd: impl Into<PathBuf>) -> Self {
        self.fields.cwd = cwd.into();
        self
    }

    /// Sets an environment variable. By default the command has Docker's `PATH`, and `HOME` from
    /// [`Rootfs::find_user`](crate::Rootfs::find_user).
    pub fn env(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        let (key, value) = (key.into(), value.into());
        match self.fields.env.iter_mut().find(|(known, _)| *known == key) {
            Some((_, known)) => *known = value,
            None => self.fields.env.push((key, value)),
        }
        self
    }

    /// Sets the command's user and group by number. The default is root.
    pub fn user(self, uid: u32, gid: u32) -> Self {
        self.user_spec(UserSpec::of_ids(uid, gid))
    }

    /// Sets the command's user and group by number or by name. The default is root.
    ///
    /// A template has no root file system in which a name could be looked up. It stores the name in
    /// `process.user.username`, and [`Rootfs::find_user`](crate::Rootfs::find_user) looks it up.
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

    /// Sets supplementary groups. By default there are none. A user that is given only by name is
    /// also in the groups that list it.
    pub fn additional_groups(mut self, gids: impl IntoIterator<Item = u32>) -> Self {
        self.fields.additional_gids = gids.into_iter().collect();
        self
    }

    /// Sets whether the command gets a terminal. By default it gets none.
    pub fn terminal(mut self, terminal: Terminal) -> Self {
        self.fields.terminal = terminal;
        self
    }

    /// Sets the capabilities of root in the container. No process there can get others.
    ///
    /// The default is Docker's set of 14: `chown`, `dac_override`, `fsetid`, `fowner`, `mknod`,
    /// `net_raw`, `setgid`, `setuid`, `setfcap`, `setpcap`, `net_bind_service`, `sys_chroot`,
    /// `kill` and `audit_write`. They are not inheritable, so a command that runs as another user
    /// has none of them.
    pub fn capabilities(mut self, capabilities: impl IntoIterator<Item = Capability>) -> Self {
        self.fields.capabilities = capabilities.into_iter().collect();
        self
    }

    /// Sets whether set-user-ID programs gain privileges. By default they do.
    pub fn no_new_privileges(mut self, no_new_privileges: NoNewPrivileges) -> Self {
        self.fields.no_new_privileges = no_new_privileges;
        self
    }

    /// Sets how many files each process may have open, as the soft and the hard limit.
    ///
    /// The default is 1,024, which a process may raise to 524,288. If the hard limit of the calling
    /// process is lower, a run lowers this default to it.
    pub fn open_files_limit(self, limit: u64) -> Self {
        self.rlimit(RlimitKind::Nofile, limit, limit)
    }

    /// Sets a limit of [`setrlimit(2)`], in the kernel's unit. [`Rlimit`] can be parsed from text.
    /// Limits that are not set are those of the runtime.
    ///
    /// [`setrlimit(2)`]: https://man7.org/linux/man-pages/man2/getrlimit.2.html
    pub fn rlimit(mut self, kind: RlimitKind, soft: u64, hard: u64) -> Self {
        self.fields.rlimits.retain(|known| known.kind != kind);
        self.fields.rlimits.push(Rlimit { kind, soft, hard });
        self
    }

    /// Sets whether the command may write to the root file system. By default it may.
    pub fn root_access(mut self, access: RootAccess) -> Self {
        self.fields.root_access = access;
        self
    }

    /// Sets the container's hostname, at most 64 bytes. The default is the host's.
    pub fn hostname<'a>(mut self, hostname: impl Into<Option<&'a str>>) -> Self {
        self.fields.hostname = hostname.into().map(str::to_owned);
        self
    }

    /// Adds a mount, on top of the default mounts and those added before.
    pub fn mount(mut self, mount: Mount) -> Self {
        self.fields.mounts.push(mount);
        self
    }

    /// Sets an annotation, which the runtime keeps in the container's state for other programs.
    pub fn annotation(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.fields.annotations.insert(key.into(), value.into());
        self
    }

    /// Sets the container's network. By default it has none.
    pub fn network(mut self, network: Network) -> Self {
        self.fields.network = network;
        self
    }

    /// Sets the control group of the container: see [`linux.cgroupsPath`]. By default the runtime
    /// chooses one.
    ///
    /// [`linux.cgroupsPath`]: https://github.com/opencontainers/runtime-spec/blob/v1.1.0/config-linux.md#cgroups-path
    pub fn cgroups_path(mut self, path: impl Into<PathBuf>) -> Self {
        self.fields.cgroups_path = Some(path.into());
        self
    }

    /// Limits the memory of the container in bytes, including swap. By default it is unlimited.
    pub fn memory_limit_bytes(mut self, limit: impl Into<Option<u64>>) -> Self {
        self.fields.memory_limit_bytes = limit.into();
        self
    }

    /// Limits how many processes and threads the container has at the same time. By default it is
    /// unlimited.
    pub fn pids_limit(mut self, limit: impl Into<Option<u64>>) -> Self {
        self.fields.pids_limit = limit.into();
        self
    }

    /// Sets the processors that the container may run on, in the format of [`cpuset(7)`]: `0-3,5`.
    /// By default it may use all.
    ///
    /// [`cpuset(7)`]: https://man7.org/linux/man-pages/man7/cpuset.7.html
    pub fn cpus<'a>(mut self, list: impl Into<Option<&'a str>>) -> Self {
        self.fields.cpus = list.into().map(str::to_owned);
        self
    }

    /// Sets the memory nodes that the container may allocate from, in the format of [`cpuset(7)`]:
    /// `0-1`. By default it may use all.
    ///
    /// [`cpuset(7)`]: https://man7.org/linux/man-pages/man7/cpuset.7.html
    pub fn mems<'a>(mut self, list: impl Into<Option<&'a str>>) -> Self {
        self.fields.mems = list.into().map(str::to_owned);
        self
    }

    /// Limits the processor time that the container may use in each period. For example, 150 ms per
    /// 100 ms is one and a half processors. By default it is unlimited. Both are rounded down to
    /// microseconds.
    pub fn cpu_quota(mut self, quota: Duration, period: Duration) -> Self {
        self.fields.cpu_quota = Some(CpuQuota { quota, period });
        self
    }

    /// Sets the system calls that the container may make. By default, these are the calls that
    /// Docker's default profile allows with these [capabilities](Self::capabilities).
    ///
    /// For the `fsync` family, [`fsync`](Self::fsync) overrides the profile, and for changes of
    /// owners, [`owners`](Self::owners) does. To use a profile unchanged, set [`Fsync::Real`] too.
    pub fn seccomp(mut self, seccomp: Seccomp) -> Self {
        self.fields.seccomp = seccomp;
        self
    }

    /// Sets what `fsync` and its family do. By default they do not wait for the disk of the root
    /// file system.
    pub fn fsync(mut self, fsync: Fsync) -> Self {
        self.fields.fsync = fsync;
        self
    }

    /// Sets whether the container can change owners and users. By default it can, as far as the
    /// kernel lets it.
    pub fn owners(mut self, owners: Owners) -> Self {
        self.fields.owners = owners;
        self
    }

    /// Checks the fields and returns the template.
    ///
    /// # Errors
    /// The first [`TemplateError`] found: a command, an environment variable, a path, a name, a
    /// list or a limit that the kernel or the runtime would refuse later or misunderstand.
    pub fn build(self) -> Result<Template, TemplateError> {
        validate::fields(&self.fields)?;
        // Only the runtime interprets a profile of the caller's.
        let filter = matches!(self.fields.seccomp, Seccomp::Default | Seccomp::Native).then(Arc::default);
        let (spec, value) = spec::of(&self.fields)?;
        validate::configuration(&value, &spec)?;
        Ok(Template { value: Arc::new(value), filter })
    }
}
