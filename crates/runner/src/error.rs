//! The crate's error: which phase of a run failed, why, and what is left on disk.
//!
//! What a failed phase undoes is decided in `run` and `scratch`.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use container::TemplateError;
use layer::display::quoted;

use crate::Phase;

/// Why a run has no result, or another function of this crate failed: the phase of the run, the
/// reason, and what is left on disk.
///
/// When a phase fails, the run undoes the phases before it. Nothing is left unless unmounting or
/// removing itself failed. Then [`left`](Self::left) says where, and the run has not touched
/// anything there since.
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
    /// A layer or the base is at fault, or the upper as a tree.
    #[error(transparent)]
    Layer(#[from] layer::Error),
    /// The template, the mount or the runtime is at fault.
    #[error(transparent)]
    Container(#[from] container::Error),
    /// The caller's `prep_upper` failed.
    #[error("the caller's prep_upper failed")]
    PrepUpper(#[source] BoxError),
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
    /// The place is in the directory of a run, which is removed as a whole.
    #[error(
        "{} lies in {}, the directory of a run, which is removed as a whole; choose another place",
        quoted(path),
        quoted(run)
    )]
    InRunDirectory {
        /// The place.
        path: PathBuf,
        /// The run's directory.
        run: PathBuf,
    },
    /// The scratch directory is the tree of a layer or of the base, or lies in it.
    #[error(
        "the scratch directory {} lies in {}, which this run stacks; choose one outside of the layers and the base",
        quoted(scratch),
        quoted(tree)
    )]
    ScratchInLayer {
        /// The scratch directory, by its real path.
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
        /// What the call was for, as a verb.
        operation: &'static str,
        /// The path it was for.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// The error of a [`prep_upper`](crate::Options::prep_upper).
pub type BoxError = Box<dyn StdError + Send + Sync>;

#[derive(Debug)]
struct Left {
    path: PathBuf,
    /// The second failure, if the first one alone would have left nothing.
    why: Option<String>,
}

/// The result of a run, and of the crate's other functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Returns the same error as one of `phase`, unless its phase is known already.
    pub(crate) fn in_phase(mut self, phase: Phase) -> Self {
        self.0.phase.get_or_insert(phase);
        self
    }

    /// Returns the same error, after which `path` is left on disk.
    pub(crate) fn leaving(mut self, path: &Path) -> Self {
        self.0.left.get_or_insert(Left { path: path.into(), why: None });
        self
    }

    /// Returns the same error, after which `path` is left on disk because of a second one.
    pub(crate) fn leaving_for(mut self, path: &Path, why: &Error) -> Self {
        self.0.left.get_or_insert(Left { path: path.into(), why: Some(chain(why)) });
        self
    }

    /// Returns the phase that failed; `None` if the error is not one of a run.
    pub fn phase(&self) -> Option<Phase> {
        self.0.phase
    }

    /// Returns the reason.
    pub fn cause(&self) -> &Cause {
        &self.0.cause
    }

    /// Returns the path that the reason is about.
    pub fn path(&self) -> Option<&Path> {
        match &self.0.cause {
            Cause::Layer(error) => error.path(),
            Cause::Container(error) => error.path(),
            Cause::Io { path, .. }
            | Cause::NotKept { path }
            | Cause::InUse { path }
            | Cause::RunDirectory { path }
            | Cause::InRunDirectory { path, .. } => Some(path),
            Cause::ScratchInLayer { scratch, .. } => Some(scratch),
            Cause::UpperInLayer { destination, .. } => Some(destination),
            Cause::PrepUpper(_) => None,
        }
    }

    /// Returns the part of the message that says what is left and why: ` (/scratch/x is left on disk
    /// because …)`, or an empty string.
    pub fn left_note(&self) -> String {
        match &self.0.left {
            None => String::new(),
            Some(Left { path, why: None }) => format!(" ({} is left on disk)", quoted(path)),
            Some(Left { path, why: Some(why) }) => format!(" ({} is left on disk because {why})", quoted(path)),
        }
    }

    /// Returns what is left on disk; `None` if nothing is.
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

/// Does a part of the run's `phase`, which an error then names.
pub(crate) fn in_phase<T>(phase: Phase, work: impl FnOnce() -> Result<T>) -> Result<T> {
    work().map_err(|error| error.in_phase(phase))
}

/// Joins a result and that of undoing what led to it. If undoing failed, `dir` is left, and the
/// error says so. The first failure is the one that is returned; it names the second.
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
    fn a_second_failure_is_named_beside_the_first() {
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
    fn prep_upper_shows_its_own_reason_as_the_source() {
        let error = Error::from(Cause::PrepUpper("no space for toys".into())).in_phase(Phase::PrepUpper);
        assert_eq!(chain(&error), "prep_upper: the caller's prep_upper failed: no space for toys");
    }
}
