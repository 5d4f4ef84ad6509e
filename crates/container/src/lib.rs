//! Containers: overlayfs mounts, the runtime-spec template, and the OCI runtimes that run it. No cache format, no layers'
//! metadata: any runner with directories of its own can use it.
//!
//! - **A root file system**: [`Overlay`] stacks directories and mounts them, in the caller's mount namespace or in
//!   [one of its own](in_private_mount_namespace); [`Mounted`] is the guard; [`Rootfs`] puts files into it safely, and
//!   finds its users.
//! - **What runs in it**: [`Template`] is a runtime-spec configuration without a root; [`Template::instantiate`] fills it in,
//!   [`Bundle`] writes it as `config.json`.
//! - **Running it**: [`Runtime`] is runc, crun, youki or another program with their command line. It tells its own failures
//!   from the command's, and nothing that a container has started outlives it. [`Output`] says where the command's output goes, [`Cancel`] ends it, [`Cgroup`] accounts for it.
//! - **What the machine has**: [`MountApi::detect`], [`Cgroup::layout`], [`Runtime::version`] with
//!   [what is known to be wrong](RuntimeVersion::flaws) with it.
//!
//! # A container over two directories
//! ```no_run
//! use container::{Bundle, ContainerId, Invocation, Output, Overlay, Runtime, Template, in_private_mount_namespace};
//!
//! let template = Template::builder(["cc", "-c", "hello.c"]).cwd("/src").build()?;
//! let status = in_private_mount_namespace(|| {
//!     let mounted = Overlay::new(["/srv/gcc", "/srv/debian"]).writable("run/upper", "run/work").mount("run/merged")?;
//!     let bundle = Bundle::create("run", &template.instantiate(mounted.path())?)?;
//!     let id = ContainerId::random("example")?;
//!     let finished = Runtime::default().run(Invocation::new(&bundle, &id).stderr(Output::Inherit))?;
//!     mounted.unmount()?;
//!     Ok::<_, container::Error>(finished.status)
//! })??;
//! println!("{status:?}");
//! # Ok::<(), container::Error>(())
//! ```

pub mod advanced;
mod bundle;
mod cgroup;
mod display;
mod error;
mod id;
mod init;
mod input;
mod mount_namespace;
#[cfg(test)]
#[path = "../../../integration-tests/src/mutated.rs"]
mod mutated;
mod output;
mod overlay;
#[cfg(test)]
mod parser_tests;
mod rootfs;
mod runtime;
mod supervise;
mod template;
mod user;

pub use bundle::Bundle;
pub use cgroup::{Cgroup, CgroupLayout, PreparedMoves, Usage};
pub use error::{Error, Result};
pub use id::ContainerId;
pub use init::Init;
pub use input::Input;
pub use mount_namespace::{in_private_mount_namespace, require_privilege};
pub use output::{Callback, CaptureLimit, Excerpt, Output};
pub use overlay::{DeviceNodes, LowerNames, MAX_LOWERS, MAX_OPTION_BYTES, MountApi, Mounted, Overlay, OverlayXattrs};
pub use rootfs::Rootfs;
pub use runtime::{Finished, Flaw, Invocation, Runtime, RuntimeVersion, Status};
pub use supervise::{Cancel, Signals};
pub use template::{
    Capability, Config, Fsync, Mount, MountEntry, Network, NoNewPrivileges, ROOTFS_PLACEHOLDER, Rlimit, RlimitKind,
    RootAccess, Seccomp, Template, TemplateBuilder, TemplateError, Terminal,
};
pub use user::{User, UserSpec};
