//! Runs a command in a root file system that is stacked from many layers, and returns what the
//! command wrote.
//!
//! [`run`] takes a base, layers and a [`Template`](container::Template) of the container. It mounts
//! them as one overlay, runs the command in it, unmounts it and returns a [`Report`].
//!
//! - **Order.** The caller passes the layers topmost first: if two layers have the same file, the
//!   command sees the file of the first. The base lies below all layers. The command never changes
//!   a layer or the base.
//! - **The upper.** The report's [`Upper`] contains everything that the command wrote and deleted.
//!   The caller owns it: [publish](Report::publish) it as a new layer, [keep](Upper::keep) or
//!   [move](Upper::persist) it. Dropping it deletes it.
//! - **Limits.** The kernel stacks a limited number of directories. `run` merges the layers that do
//!   not fit, by hard links. [`plan`] returns in advance which layers these are.
//! - **Failures.** A command that fails is a result, with a status and an upper. If the run itself
//!   fails, [`Error`] names the [`Phase`], the reason, and the directory that is left on disk.
//!   Usually nothing is left.
//! - **Kills.** If this process is killed, the kernel also kills the container and removes the
//!   mount. Only the run's directory is left; [`sweep`] removes it.
//!
//! `run` does not know what the layers are for: it reads no names, no metadata and no cache policy.
//! Any number of threads can run at the same time. [`Options`] sets the scratch directory, the
//! runtime, and the command's streams and limits. Runs with the same [`Stacks`] share the overlay
//! of the layers that all of them have at the bottom. [`Options::watch`] reports [`Event`]s while
//! the run is in progress. [`probe`] finds out what a scratch directory and the kernel support.
//!
//! The crate [`layer`] manages the layers on disk. The crate [`container`] mounts overlays and
//! drives the runtimes. This crate connects the two.
//!
//! # Example
//! ```no_run
//! use container::{Output, Template};
//! use layer::{Base, Layer, Store};
//! use runner::Options;
//!
//! let base = Base::open("/var/cache/layers/debian-12")?;
//! // Topmost first.
//! let layers = [Layer::open("/var/cache/layers/gcc")?, Layer::open("/var/cache/layers/libc6-dev")?];
//! let template = Template::builder(["gcc", "--version"]).build()?;
//! let options = Options::new().scratch("/var/cache/layers/scratch").stdout(Output::Inherit);
//!
//! let report = runner::run(&base, &layers, &template, options)?;
//! println!("{:?} in {:?}", report.status, report.timings.total());
//! if report.status.success() {
//!     report.publish(&Store::open("/var/cache/layers")?, "new", |_| Ok(()))?;
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The directory `examples` contains complete programs: `build_and_capture`, and `farm`, which
//! builds on several threads.

mod capture_record;
mod command_record;
mod configure;
mod error;
mod etc;
mod events;
mod inside;
mod kernel;
#[cfg(test)]
#[path = "../../../integration-tests/src/mutated.rs"]
mod mutated;
mod options;
mod paths;
mod probe;
mod publish;
mod removal;
mod report;
mod run;
mod rundir;
mod scratch;
mod skeleton;
mod stack;
mod stacks;
mod sweep;
mod timings;
mod upper;
mod xattrs;

pub use capture_record::CaptureRecord;
pub use command_record::{CommandRecord, RecordEnv};
pub use error::{BoxError, Cause, Error, Result};
pub use events::Event;
pub use options::{Cleanup, EtcFiles, Options};
pub use probe::{Probe, probe};
pub use publish::{NewLayer, PublishError};
pub use removal::Removal;
pub use report::Report;
pub use run::run;
pub use stack::{check_upper_destination, plan};
pub use stacks::Stacks;
pub use sweep::{Swept, sweep};
pub use timings::{Phase, Timings};
pub use upper::{CaptureError, PersistError, RunLock, Upper};
pub use xattrs::{xattrs_of_process, xattrs_of_upper};

/// Checks at compile time which types a caller can move to another thread, and which it can share
/// between threads.
const _: fn() = || {
    fn send<T: Send>() {}
    fn shared<T: Send + Sync>() {}
    send::<Options<'_>>();
    shared::<(Report, Upper, Removal, RunLock, Stacks, Error, container::Cancel, container::Signals)>();
};

/// The examples in the READMEs, which must compile.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
#[doc = include_str!("../../layer/README.md")]
#[doc = include_str!("../../container/README.md")]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
