//! Runs a command in a root file system that is stacked from many layers, and gives back what it wrote.
//!
//! - [`run`] is the whole: layers below, a command in the middle, an [`Upper`] out. It knows nothing of what the layers are for:
//!   no names, no cache policy, no metadata.
//! - [`plan`] is what `run` would stack and merge.
//! - [`Options`] says how: the scratch directory, the runtime, the output, limits in time, what to put into the upper.
//! - [`Report`] is what came of it: the status, the upper, the time of each [`Phase`].
//! - [`probe`] tries out what a scratch directory and the kernel can do for a run.
//! - [`sweep`] removes what killed runs have left.
//! - [`Error`] says which phase failed, why, and what is left on disk.
//!
//! Layers on disk are the crate [`layer`]'s, mounts and runtimes the crate [`container`]'s; this one is where they meet.
//!
//! # Example
//! ```no_run
//! use container::{Output, Template};
//! use layer::{Base, Layer};
//! use runner::Options;
//!
//! let base = Base::open("/var/cache/layers/debian-12")?;
//! let layers = [Layer::open("/var/cache/layers/gcc")?, Layer::open("/var/cache/layers/libc6-dev")?]; // topmost first
//! let template = Template::builder(["gcc", "--version"]).build()?;
//! let options = Options::new().scratch("/var/cache/layers/scratch").stdout(Output::Inherit);
//!
//! let report = runner::run(&base, &layers, &template, options)?;
//! println!("{:?} in {:?}", report.status, report.timings.total());
//! if report.status.success() {
//!     let (capture, meta) = (report.capture(), report.meta());
//!     report.upper.capture(&capture, &Layer::at("/var/cache/layers/new"), meta)?;
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod capture_record;
mod configure;
mod error;
mod etc;
mod inside;
mod kernel;
#[cfg(test)]
#[path = "../../../integration-tests/src/mutated.rs"]
mod mutated;
mod options;
mod probe;
mod removal;
mod report;
mod run;
mod rundir;
mod scratch;
mod stack;
mod sweep;
mod timings;
mod upper;
mod xattrs;

pub use capture_record::CaptureRecord;
pub use error::{BoxError, Cause, Error, Result};
pub use options::{Cleanup, EtcFiles, Options};
pub use probe::{Probe, probe};
pub use removal::Removal;
pub use report::Report;
pub use run::run;
pub use stack::{check_upper_destination, plan};
pub use sweep::{Swept, sweep};
pub use timings::{Phase, Timings};
pub use upper::{CaptureError, PersistError, RunLock, Upper};

/// What another thread may own, and what several may share.
const _: fn() = || {
    fn send<T: Send>() {}
    fn shared<T: Send + Sync>() {}
    send::<Options<'_>>();
    shared::<(Report, Upper, Removal, RunLock, Error, container::Cancel, container::Signals)>();
};

/// The examples of the README, which have to compile.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct ReadmeExamples;
