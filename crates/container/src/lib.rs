//! Runs a command in a container whose root file system is stacked from directories.
//!
//! A program that builds software in containers often has its files in many directories: one per
//! package, one per step. Copying them together for each command is slow. Overlayfs shows them as
//! one root file system without copying, and an OCI runtime runs the command in it. Both have sharp
//! edges. The kernel silently truncates long mount options. Runtimes follow symbolic links to the
//! host, report their own failures with the exit status of the command, and leave containers
//! running when their caller is killed. This crate deals with these edges. It does not know where
//! the directories come from.
//!
//! # Model
//! 1. [`Overlay`] stacks the *lowers*, topmost first. Writes go to another directory, the *upper*;
//!    the lowers never change. [`Mounted`] is the guard of the mount.
//! 2. [`Template`] describes the container except for its root file system: the command, its user,
//!    its limits, and the rest of a `config.json`. [`Template::instantiate`] adds the root file
//!    system. [`Bundle`] is the directory of that file, which [`Runtime::run`] writes.
//! 3. [`Runtime::run`] runs the command and returns its [`Status`]. When the caller is killed, the
//!    container dies with it. [`Output`] receives what the command prints, [`Cancel`] ends it
//!    early, and [`Cgroup`] accounts for what it uses.
//!
//! [`run_in`] is one call for the last two steps.
//!
//! The mount belongs to the host unless the caller creates a [mount
//! namespace](in_private_mount_namespace) first. In one, nothing remains mounted after a crash.
//!
//! # Example
//! ```no_run
//! use container::{Output, Overlay, Runtime, Supervision, Template, in_private_mount_namespace, run_in};
//!
//! let template = Template::builder(["cc", "-c", "hello.c"]).cwd("/src").build()?;
//! let status = in_private_mount_namespace(|| {
//!     let mounted = Overlay::new(["/srv/gcc", "/srv/debian"]).writable("run/upper", "run/work").mount("run/merged")?;
//!     let streams = Supervision::new().stderr(Output::Inherit);
//!     let finished = run_in(mounted.path(), &template, &Runtime::default(), streams)?;
//!     mounted.unmount()?;
//!     Ok::<_, container::Error>(finished.status)
//! })??;
//! println!("{status:?}");
//! # Ok::<(), container::Error>(())
//! ```
//! The command writes object files into `run/upper`. `examples/own_rootfs.rs` is a complete
//! program, and `examples/mini_runner.rs` runs commands in many ways.
//!
//! # Requirements
//! CAP_SYS_ADMIN ([`require_privilege`]), which root has and which [`UserNamespace::enter`] gives
//! to an ordinary user, and runc, crun or youki ([`Runtime::version`] returns their known
//! [flaws](RuntimeVersion::flaws)). [`Rootfs`] needs
//! Linux 5.6. From 5.10, overlays are volatile; from 6.7, the length of the paths of the lowers is
//! unlimited ([`MountApi::detect`]). cgroup v1, cgroup v2 and both side by side are supported
//! ([`Cgroup::layout`]).

pub mod advanced;
mod bundle;
mod cgroup;
mod chain;
mod display;
mod error;
mod id;
mod init;
mod input;
mod kernel_file;
mod mount_namespace;
#[cfg(test)]
#[path = "../../../integration-tests/src/mutated.rs"]
mod mutated;
mod network;
mod output;
mod overlay;
#[cfg(test)]
mod parser_tests;
mod requirements;
mod rootfs;
mod run_in;
mod runtime;
mod supervise;
mod supervision;
mod template;
mod user;
mod user_namespace;

pub use bundle::Bundle;
pub use cgroup::{Cgroup, CgroupLayout, PreparedMoves, Usage};
pub use error::{Error, Result};
pub use id::ContainerId;
pub use init::Init;
pub use input::Input;
pub use mount_namespace::{in_private_mount_namespace, require_privilege};
pub use output::{Callback, CaptureLimit, Excerpt, Output};
pub use overlay::{DeviceNodes, LowerNames, MAX_LOWERS, MAX_OPTION_BYTES, MountApi, Mounted, Overlay, OverlayXattrs};
pub use requirements::require;
pub use rootfs::Rootfs;
pub use run_in::run_in;
pub use runtime::{Finished, Flaw, PreparedRuntime, Runtime, RuntimeVersion, Status};
pub use supervise::{Cancel, Signals};
pub use supervision::Supervision;
pub use template::{
    Capability, Config, Fsync, Mount, MountEntry, Network, NoNewPrivileges, Owners, ROOTFS_PLACEHOLDER, Rlimit,
    RlimitKind, RootAccess, Seccomp, Template, TemplateBuilder, TemplateError, Terminal,
};
pub use user::{User, UserSpec};
pub use user_namespace::{IdMap, Ids, Obstacle, Refusal, UserNamespace, UserNamespaceError};

/// Checks at compile time that a caller can move these types to other threads, and share those that
/// `run` borrows.
const _: fn() = || {
    fn send<T: Send>() {}
    fn send_sync<T: Send + Sync>() {}
    send::<Supervision<'_>>();
    send::<Output<'_>>();
    send_sync::<(Bundle, Cancel, Cgroup, Config, ContainerId, Error, Finished, Mounted, Overlay)>();
    send_sync::<(Rootfs, Runtime, RuntimeVersion, Signals, Template, TemplateBuilder, TemplateError)>();
};
