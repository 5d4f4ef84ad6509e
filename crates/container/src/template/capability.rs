//! The capabilities that the builder can give to a container. `spec` writes them into the
//! configuration.

use std::fmt;
use std::str::FromStr;

use oci_spec::runtime as oci;

use super::error::TemplateError;

/// Declares the enum and its counterpart in `oci-spec`, which has the same names.
macro_rules! capabilities {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A capability of [`capabilities(7)`], which divides root's privileges.
        ///
        /// The name of a variant is that of the capability: `NetRaw` is displayed as `CAP_NET_RAW`,
        /// and parsed from that name in any case, with or without `CAP_`.
        ///
        /// [`capabilities(7)`]: https://man7.org/linux/man-pages/man7/capabilities.7.html
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Capability {
            $($(#[$doc])* $name,)*
        }

        impl Capability {
            /// All capabilities, in alphabetical order.
            pub const ALL: &[Capability] = &[$(Capability::$name,)*];

            pub(super) fn to_spec(self) -> oci::Capability {
                match self {
                    $(Capability::$name => oci::Capability::$name,)*
                }
            }
        }
    };
}

impl Capability {
    /// Docker's capabilities of root in a container (moby, daemon/pkg/oci/caps/defaults.go), which
    /// a container has by [default](crate::TemplateBuilder::capabilities). They are enough for
    /// package managers and services, and none of them reaches the host.
    pub const DEFAULT: &[Capability] = &[
        Capability::Chown,
        Capability::DacOverride,
        Capability::Fsetid,
        Capability::Fowner,
        Capability::Mknod,
        Capability::NetRaw,
        Capability::Setgid,
        Capability::Setuid,
        Capability::Setfcap,
        Capability::Setpcap,
        Capability::NetBindService,
        Capability::SysChroot,
        Capability::Kill,
        Capability::AuditWrite,
    ];
}

impl fmt::Display for Capability {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("CAP")?;
        for letter in format!("{self:?}").chars() {
            let word = if letter.is_ascii_uppercase() { "_" } else { "" };
            write!(formatter, "{word}{}", letter.to_ascii_uppercase())?;
        }
        Ok(())
    }
}

impl FromStr for Capability {
    type Err = TemplateError;

    fn from_str(name: &str) -> Result<Capability, TemplateError> {
        let upper = name.to_ascii_uppercase();
        let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
        let known = Capability::ALL.iter().find(|capability| capability.to_string() == full);
        known.copied().ok_or_else(|| TemplateError::Capability { name: name.to_owned() })
    }
}

capabilities! {
    /// Enables and disables kernel auditing and changes its rules.
    AuditControl,
    /// Reads the audit log through a netlink socket.
    AuditRead,
    /// Writes records to the audit log.
    AuditWrite,
    /// Prevents the system from suspending.
    BlockSuspend,
    /// Loads BPF programs and creates all types of BPF maps.
    Bpf,
    /// Checkpoints and restores processes.
    CheckpointRestore,
    /// Changes the owner and the group of any file.
    Chown,
    /// Bypasses permission checks for reading, writing and executing files.
    DacOverride,
    /// Bypasses permission checks for reading files and searching directories.
    DacReadSearch,
    /// Bypasses checks that the caller must own a file.
    Fowner,
    /// Keeps set-user-ID and set-group-ID bits when a file changes.
    Fsetid,
    /// Locks memory.
    IpcLock,
    /// Bypasses permission checks for System V IPC objects.
    IpcOwner,
    /// Sends signals to any process.
    Kill,
    /// Takes leases on any file.
    Lease,
    /// Sets the immutable and append-only attributes of files.
    LinuxImmutable,
    /// Configures mandatory access control.
    MacAdmin,
    /// Overrides mandatory access control.
    MacOverride,
    /// Creates device nodes.
    Mknod,
    /// Configures the network.
    NetAdmin,
    /// Binds sockets to ports below 1024.
    NetBindService,
    /// Unused by the kernel.
    NetBroadcast,
    /// Uses raw and packet sockets.
    NetRaw,
    /// Uses performance monitoring.
    Perfmon,
    /// Changes process group IDs.
    Setgid,
    /// Sets file capabilities.
    Setfcap,
    /// Changes the capability sets of processes.
    Setpcap,
    /// Changes process user IDs.
    Setuid,
    /// Mounts file systems, creates namespaces, and much more.
    SysAdmin,
    /// Reboots the machine and loads another kernel.
    SysBoot,
    /// Uses chroot(2).
    SysChroot,
    /// Loads and unloads kernel modules.
    SysModule,
    /// Raises priorities and sets the affinity of any process.
    SysNice,
    /// Switches process accounting.
    SysPacct,
    /// Traces any process.
    SysPtrace,
    /// Accesses I/O ports and devices directly.
    SysRawio,
    /// Exceeds resource limits and quotas.
    SysResource,
    /// Sets the system clock.
    SysTime,
    /// Configures terminals and uses vhangup(2).
    SysTtyConfig,
    /// Reads the kernel's log.
    Syslog,
    /// Sets timers that wake the system up.
    WakeAlarm,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_in_any_case_with_or_without_the_prefix() {
        for name in ["CAP_SYS_TTY_CONFIG", "sys_tty_config", "Cap_Sys_Tty_Config"] {
            assert_eq!(name.parse::<Capability>().unwrap(), Capability::SysTtyConfig);
        }
        for capability in Capability::ALL {
            assert_eq!(capability.to_string().parse::<Capability>().unwrap(), *capability);
        }
        for name in ["", "CAP_", "cap_cap_chown", "systtyconfig", "all"] {
            let error = name.parse::<Capability>().unwrap_err().to_string();
            assert_eq!(
                error,
                format!("the capability {name:?} is unknown: the names are those of capabilities(7), as in net_admin")
            );
        }
    }
}
