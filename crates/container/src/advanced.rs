//! Parts for a program that prepares containers step by step, as the crate `runner` does.
//!
//! [`Overlay`](crate::Overlay) and [`Runtime::run`](crate::Runtime::run) are enough for most
//! programs.

use crate::error::Result;
use crate::id::ContainerId;
use crate::network;
use crate::runtime::{Finished, Runtime, Status};
use crate::template::Config;

/// For a program that creates the upper of an overlay.
pub use crate::overlay::copy_root_attributes;

/// For a program that decides how many lowers an overlay gets before it mounts the overlay.
pub use crate::overlay::{fixed_option_bytes, lower_option_bytes};

/// For a program that mounts the lowest lowers of many overlays only once.
pub use crate::overlay::{DetachedOverlay, Nesting};

/// For a program that reads files of procfs.
pub use crate::kernel_file::read_kernel_file;

/// For a program that creates the directory of a bundle.
pub use crate::mount_namespace::mount_private_tmpfs;

/// For a command line with sizes in the notation of a [`Mount`](crate::Mount).
pub use crate::template::parse_size;

/// Checks whether the machine has what a [private](crate::Network::Private) network needs. Does not
/// try to connect one.
///
/// # Errors
/// [`Error::NoPasta`](crate::Error::NoPasta) or [`Error::NoTun`](crate::Error::NoTun).
pub fn require_private_network() -> Result<()> {
    network::require()
}

/// Returns the `/etc/resolv.conf` of a container in a [private](crate::Network::Private) network,
/// from that of the host. For a program that puts this file into root file systems.
///
/// The container cannot reach name servers on the host's loopback interface, such as that of
/// systemd-resolved. The gateway of the private network stands for the first of them, if it has an
/// IPv4 address. The others are left out.
pub fn resolv_conf_of_private_network(host: &str) -> String {
    network::resolv_conf(host)
}

/// Returns `config` adapted to `runtime`. Needed only to start the runtime without
/// [`Runtime::run`](crate::Runtime::run), which does this itself.
///
/// For every runtime, it lowers the default limit of open files to the caller's hard limit. It also
/// mounts read-only files, sockets and FIFOs without the recursive option, which some versions of
/// crun apply only to directories. It inspects the sources of bind mounts during this call.
///
/// In a [user namespace](crate::UserNamespace), it changes mounts that need root of the machine. It
/// removes the option `gid` of `devpts` if the namespace lacks that group. It removes the mount of
/// the control groups, unless the container has its own control group and its own network. With the
/// host's network, it replaces the `sysfs` with the host's `/sys`, read-only. It also removes the
/// template's own user namespace.
///
/// crun gets the seccomp filter of a [default](crate::Seccomp::Default) profile as a compiled BPF
/// program, in an annotation that crun defines. Compiling the profile with libseccomp takes half of
/// crun's time. The profile stays in the configuration for versions of crun that do not know the
/// annotation. On machines other than x86_64, and for a profile of the caller's, crun compiles the
/// profile.
///
/// Runtimes other than runc lose CAP_MKNOD, unless the template has its own device rules. The
/// reason is that crun and youki allow the host's console (`c 5:1`) after they have applied the
/// template's rules, even if these deny it. With the capability, the command could create a device
/// node for the console in `/dev`. Without it, the command can still create FIFOs and sockets.
/// Since Linux 5.8 it can also create whiteouts, though not on an overlay.
///
/// Under these runtimes, a device node for the console that a layer already contains can still be
/// opened.
pub fn prepare_config(runtime: &Runtime, config: Config) -> Config {
    runtime.prepare_config(config)
}

/// Returns the result of a command that never started, for a run that ended before it.
pub fn unstarted(status: Status) -> Finished {
    Finished::new(status)
}

/// Returns the name of an earlier run, for a program that cleans up after one. Returns `None` if
/// runtimes would refuse the name.
pub fn id_of_earlier_run(name: impl Into<String>) -> Option<ContainerId> {
    ContainerId::of_earlier_run(name.into())
}
