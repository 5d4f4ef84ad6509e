//! The defaults that a caller sets in the environment, and the arguments that they replace.
//!
//! [`stack`](crate::stack) has the other arguments that name a stack.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use container::Runtime;

/// The store in which a bare name of a layer is looked up.
pub(crate) const STORE: &str = "LAYERED_STORE";

/// The base of a run.
pub(crate) const BASE: &str = "LAYERED_BASE";

/// The scratch directory of a run.
const SCRATCH: &str = "LAYERED_SCRATCH";

/// The runtime of a run.
const RUNTIME: &str = "LAYERED_RUNTIME";

/// The runtime.
#[derive(Debug, clap::Args)]
pub(crate) struct RuntimeArgs {
    /// OCI runtime: runc, crun, youki or a path [default: $LAYERED_RUNTIME or runc].
    #[arg(long, value_name = "NAME|PATH")]
    runtime: Option<PathBuf>,
}

impl RuntimeArgs {
    pub(crate) fn get(&self) -> Runtime {
        Runtime::new(self.runtime.clone().or_else(|| path(RUNTIME)).unwrap_or_else(|| "runc".into()))
    }
}

/// Returns the directories in which a kept run is looked for: the chosen scratch directory, or else
/// those in which runs are kept without one, a store and the directory for temporary files. Each
/// directory is there once, even if it has two paths.
pub(crate) fn kept_runs(given: Option<&Path>) -> Vec<PathBuf> {
    let mut dirs = match chosen_scratch(given) {
        Some(scratch) => vec![scratch],
        None => path(STORE).into_iter().chain([std::env::temp_dir()]).collect(),
    };
    let mut seen = HashSet::new();
    // A directory that cannot be looked at stays, so that the caller reports it.
    dirs.retain(|dir| dir.metadata().map_or(true, |metadata| seen.insert((metadata.dev(), metadata.ino()))));
    dirs
}

/// Returns the value of a variable. An empty one counts as not set.
pub(crate) fn path(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Returns the scratch directory: the given one, or else the one of the environment.
pub(crate) fn scratch(given: Option<&Path>) -> PathBuf {
    chosen_scratch(given).unwrap_or_else(std::env::temp_dir)
}

/// Returns the scratch directory that the caller has chosen by an option or in the environment.
pub(crate) fn chosen_scratch(given: Option<&Path>) -> Option<PathBuf> {
    given.map(Path::to_path_buf).or_else(|| path(SCRATCH))
}

/// Returns the store that a subcommand works on: the given one, or else the one of the environment.
pub(crate) fn store(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    let store = given.map(Path::to_path_buf).or_else(|| path(STORE));
    store.with_context(|| format!("there is no store; pass its directory, or set {STORE}"))
}
