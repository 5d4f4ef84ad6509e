//! The crate's error: the phase of the run that failed, the reason, and the directory that is left
//! on disk.
//!
//! `run` and `scratch` decide what is undone after a failure.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use container::TemplateError;
use layer::display::quoted;

use crate::Phase;

/// The failure of a run, or of another function of this crate: the phase of the run, the reason,
/// and the directory that is left on disk.
///
/// When a phase fails, the run undoes the phases before it. Nothing is left unless unmounting or
/// removing itself fails. Then [`left`](Self::left) returns the directory, and the run touches
/// nothing there after that failure.
///
/// A command that fails is not an error: see [`Report::status`](crate::Report::status).
///
/// `Debug` prints the error and its sources on one line, because a `main` that returns an error
/// prints its `Debug`.
pub struct Error(Box<Inner>);

struct Inner {
    /// `None` outside of a run.
    phase: Option<Phase>,
    cause: Cause,
    left: Option<Left>,
}

/// The reason for an [`Error`].
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// A layer, the base or the tree of the upper is at fault.
    #[error(transparent)]
    Layer(#[from] layer::Error),
    /// The template, the mount or the runtime is at fault.
    #[error(transparent)]
    Container(#[from] container::Error),
    /// The caller's `prep_upper` failed.
    #[error("the caller's prep_upper failed")]
    PrepUpper(#[source] BoxError),
    /// The caller's function that prepares a layer failed: see
    /// [`Report::publish`](crate::Report::publish).
    #[error("the caller's function that prepares the layer failed")]
    Prepare(#[source] BoxError),
    /// The path is not the directory of a kept run.
    #[error("{} is not a kept run; pass the directory that was printed when the run was kept", quoted(path))]
    NotKept {
        /// The path that the caller passed.
        path: PathBuf,
    },
    /// Another process uses the upper.
    #[error("{} is in use by another process; wait until that has ended", quoted(path))]
    InUse {
        /// The kept run's directory.
        path: PathBuf,
    },
    /// The caller gave the directory of a run, or a part of it that is not its upper, as an upper.
    #[error("{} is the directory of a run, or contains one; pass the directory `upper` in it", quoted(path))]
    RunDirectory {
        /// The path that the caller passed.
        path: PathBuf,
    },
    /// The path lies in the directory of a run, which is removed as a whole.
    #[error(
        "{} lies in {}, the directory of a run, which is removed as a whole; choose another place",
        quoted(path),
        quoted(run)
    )]
    InRunDirectory {
        /// The path that lies in it.
        path: PathBuf,
        /// The run's directory.
        run: PathBuf,
    },
    /// The tree of a layer or of the base belongs to another user, who does not let this user in.
    #[error(
        "cannot list and enter {}, which belongs to another user; ask its owner to run chmod a+rx on it, or use a copy of your own",
        quoted(tree)
    )]
    Closed {
        /// The tree.
        tree: PathBuf,
    },
    /// The scratch directory is the tree of a layer or of the base, or lies in it.
    #[error(
        "the scratch directory {} lies in {}, which this run stacks; choose one outside of the layers and the base",
        quoted(scratch),
        quoted(tree)
    )]
    ScratchInLayer {
        /// The real path of the scratch directory.
        scratch: PathBuf,
        /// The tree of the layer or of the base.
        tree: PathBuf,
    },
    /// The destination of the upper lies in a layer or the base.
    #[error(
        "cannot keep the upper as {}: it lies in {}, which this run stacks; choose a place outside of the layers and the base",
        quoted(destination),
        quoted(tree)
    )]
    UpperInLayer {
        /// The destination.
        destination: PathBuf,
        /// The tree of the layer or of the base.
        tree: PathBuf,
    },
    /// A system call failed, usually on the scratch directory.
    #[error("cannot {operation} {}", quoted(path))]
    Io {
        /// The operation as a verb: `open`, `move`, `make the directory`.
        operation: &'static str,
        /// The path of the operation.
        path: PathBuf,
        /// The reason, usually the kernel's error.
        source: io::Error,
    },
}

/// The error of a function of the caller: [`prep_upper`](crate::Options::prep_upper), or that of
/// [`Report::publish`](crate::Report::publish).
pub type BoxError = Box<dyn StdError + Send + Sync>;

#[derive(Debug)]
struct Left {
    path: PathBuf,
    /// The second failure, if the directory is left only because of it.
    why: Option<String>,
}

/// The result of a run, and of the crate's other functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Sets the phase of the error, unless the error has one already.
    pub(crate) fn in_phase(mut self, phase: Phase) -> Self {
        self.0.phase.get_or_insert(phase);
        self
    }

    /// Adds to the error that `path` is left on disk, unless the error names such a path already.
    pub(crate) fn leaving(mut self, path: &Path) -> Self {
        self.0.left.get_or_insert(Left { path: path.into(), why: None });
        self
    }

    /// Adds to the error that `path` is left on disk because of the second error `why`, unless the
    /// error names such a path already.
    pub(crate) fn leaving_for(mut self, path: &Path, why: &Error) -> Self {
        self.0.left.get_or_insert(Left { path: path.into(), why: Some(chain(why)) });
        self
    }

    /// Returns the phase that failed, or `None` if the function that failed has no phases.
    pub fn phase(&self) -> Option<Phase> {
        self.0.phase
    }

    /// Returns the reason.
    pub fn cause(&self) -> &Cause {
        &self.0.cause
    }

    /// Returns the path that the error concerns.
    pub fn path(&self) -> Option<&Path> {
        match &self.0.cause {
            Cause::Layer(error) => error.path(),
            Cause::Container(error) => error.path(),
            Cause::Io { path, .. }
            | Cause::NotKept { path }
            | Cause::InUse { path }
            | Cause::RunDirectory { path }
            | Cause::InRunDirectory { path, .. } => Some(path),
            Cause::Closed { tree } => Some(tree),
            Cause::ScratchInLayer { scratch, .. } => Some(scratch),
            Cause::UpperInLayer { destination, .. } => Some(destination),
            Cause::PrepUpper(_) | Cause::Prepare(_) => None,
        }
    }

    /// Returns the part of the message that names the path that is left, with the reason:
    /// ` (/scratch/x is left on disk because …)`. Returns an empty string if nothing is left.
    pub fn left_note(&self) -> String {
        match &self.0.left {
            None => String::new(),
            Some(Left { path, why: None }) => format!(" ({} is left on disk)", quoted(path)),
            Some(Left { path, why: Some(why) }) => format!(" ({} is left on disk because {why})", quoted(path)),
        }
    }

    /// Returns the directory that is left on disk, or `None` if nothing is left.
    pub fn left(&self) -> Option<&Path> {
        self.0.left.as_ref().map(|left| &*left.path)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(phase) = self.0.phase {
            write!(formatter, "{phase}: ")?;
        }
        write!(formatter, "{}{}", self.0.cause, self.left_note())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.cause.source()
    }
}

impl From<Cause> for Error {
    fn from(cause: Cause) -> Self {
        Self(Box::new(Inner { phase: None, cause, left: None }))
    }
}

impl From<layer::Error> for Error {
    fn from(error: layer::Error) -> Self {
        Cause::Layer(error).into()
    }
}

impl From<container::Error> for Error {
    fn from(error: container::Error) -> Self {
        Cause::Container(error).into()
    }
}

impl From<TemplateError> for Error {
    fn from(error: TemplateError) -> Self {
        container::Error::from(error).into()
    }
}

/// Does `work`, which is a part of `phase`. An error names the phase.
pub(crate) fn in_phase<T>(phase: Phase, work: impl FnOnce() -> Result<T>) -> Result<T> {
    work().map_err(|error| error.in_phase(phase))
}

/// Combines the result of some work with `undone`, the result of undoing that work. If undoing
/// failed, the error says that `dir` is left. If both failed, returns the first error, which then
/// contains the second.
pub(crate) fn with_undone<T>(result: Result<T>, undone: Result<()>, dir: &Path) -> Result<T> {
    match (result, undone) {
        (result, Ok(())) => result,
        (Ok(_), Err(error)) => Err(error.leaving(dir)),
        (Err(first), Err(second)) => Err(first.leaving_for(dir, &second)),
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&chain(self))
    }
}

impl fmt::Debug for Cause {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&chain(self))
    }
}

/// Returns an error and all of its sources on one line.
pub(crate) fn chain(error: &dyn StdError) -> String {
    let sources = std::iter::successors(error.source(), |error| (**error).source());
    sources.fold(error.to_string(), |text, source| format!("{text}: {source}"))
}

/// Returns a function for `map_err` that names the operation and the path of a failed system call.
pub(crate) fn io_error<E: Into<io::Error>>(
    operation: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(E) -> Error {
    let path = path.into();
    move |source| Cause::Io { operation, path, source: source.into() }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(phase: Phase, operation: &'static str, path: &str, reason: &str) -> Error {
        io_error(operation, path)(io::Error::other(reason.to_string())).in_phase(phase)
    }

    #[test]
    fn an_error_contains_the_failure_of_the_clean_up() {
        let first = failure(Phase::RuncRun, "start", "/bin/runc", "gone");
        assert_eq!(chain(&first), "runc_run: cannot start /bin/runc: gone");
        let second = failure(Phase::Cleanup, "remove", "/s/x", "busy");
        let both = with_undone::<()>(Err(first), Err(second), Path::new("/s")).unwrap_err();
        assert_eq!(
            chain(&both),
            "runc_run: cannot start /bin/runc (/s is left on disk because cleanup: cannot remove /s/x: busy): gone"
        );
        assert_eq!(
            (both.phase(), both.left(), both.path()),
            (Some(Phase::RuncRun), Some("/s".as_ref()), Some("/bin/runc".as_ref()))
        );
    }

    #[test]
    fn an_error_outside_of_a_run_names_no_phase() {
        let error = Error::from(Cause::InUse { path: "/s/kept-1".into() });
        assert_eq!(error.to_string(), "/s/kept-1 is in use by another process; wait until that has ended");
        assert_eq!((error.phase(), error.left()), (None, None));
    }

    #[test]
    fn the_reason_of_a_failed_prep_upper_is_the_source() {
        let error = Error::from(Cause::PrepUpper("no space for toys".into())).in_phase(Phase::PrepUpper);
        assert_eq!(chain(&error), "prep_upper: the caller's prep_upper failed: no space for toys");
    }
}
