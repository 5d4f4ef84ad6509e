//! Why a run has no result: [`Error`] has the phase and what is left on disk, and [`Cause`] the
//! reason. [`Phase`] lists the phases.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use layer::display::quoted;

use crate::Phase;

/// Why a run has no result: the phase that failed, the reason, and what is left on disk.
///
/// If a phase fails, the run undoes the phases before it. Something is left on disk only if
/// unmounting or removing failed. Then [`left`](Self::left) returns its path, and the run has not
/// touched it since.
///
/// A command that fails is not an error: see [`Report::status`](crate::Report::status).
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    phase: Phase,
    cause: Cause,
    left: Option<Left>,
}

/// The reason for an [`Error`].
///
/// The message of an I/O error starts with "cannot" and the operation. After a semicolon, a message
/// names the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// An error about a layer or the base.
    #[error(transparent)]
    Layer(#[from] layer::Error),
    /// An error about the template, the mount or the runtime.
    #[error(transparent)]
    Container(#[from] container::Error),
    /// The caller's `prep_upper` returned an error.
    #[error("the caller's prep_upper failed")]
    PrepUpper(#[source] BoxError),
    /// The path is not the directory of a kept run.
    #[error(
        "{} is not a kept run; pass the directory that `layered run --keep-failed` printed (`Upper::keep` returned it)",
        quoted(path)
    )]
    NotKept {
        /// The path that the caller passed.
        path: PathBuf,
    },
    /// Another process uses the upper.
    #[error("{} is in use by another process; wait until that has ended", quoted(path))]
    InUse {
        /// The directory of the kept run.
        path: PathBuf,
    },
    /// The caller passed the directory of a run, or a part of it other than its upper, as an upper.
    #[error("{} is the directory of a run, or contains one; pass the directory `upper` in it", quoted(path))]
    RunDirectory {
        /// The path that the caller passed.
        path: PathBuf,
    },
    /// The path is in the directory of a run, which is removed as a whole.
    #[error(
        "{} lies in {}, the directory of a run, which is removed as a whole; choose another place",
        quoted(path),
        quoted(run)
    )]
    InRunDirectory {
        /// The path that the caller passed.
        path: PathBuf,
        /// The directory of the run.
        run: PathBuf,
    },
    /// The scratch directory lies in the tree of a layer or of the base, or is that tree.
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
        /// The destination of the upper.
        destination: PathBuf,
        /// The tree of the layer or of the base.
        tree: PathBuf,
    },
    /// A system call failed, usually in the scratch directory.
    #[error("cannot {operation} {}", quoted(path))]
    Io {
        /// The operation, as a verb.
        operation: &'static str,
        /// The path of the operation.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
}

/// The error type of `prep_upper`.
pub type BoxError = Box<dyn StdError + Send + Sync>;

#[derive(Debug)]
struct Left {
    path: PathBuf,
    /// The second failure, if that one left something and not the first.
    why: Option<String>,
}

/// The result of a run.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn new(phase: Phase, cause: impl Into<Cause>) -> Self {
        Self(Box::new(Inner { phase, cause: cause.into(), left: None }))
    }

    /// Returns this error with the note that `path` is left on disk.
    pub(crate) fn leaving(mut self, path: &Path) -> Self {
        self.0.left.get_or_insert(Left { path: path.into(), why: None });
        self
    }

    /// Returns this error with the note that `path` is left on disk because of a second error.
    pub(crate) fn leaving_for(mut self, path: &Path, why: &Error) -> Self {
        self.0.left.get_or_insert(Left { path: path.into(), why: Some(chain(why)) });
        self
    }

    /// Returns the phase that failed.
    pub fn phase(&self) -> Phase {
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

    /// Returns the part of the message about what is left on disk, with a leading space:
    /// ` (/scratch/x is left on disk because …)`. It is empty if nothing is left.
    pub fn left_note(&self) -> String {
        match &self.0.left {
            None => String::new(),
            Some(Left { path, why: None }) => format!(" ({} is left on disk)", quoted(path)),
            Some(Left { path, why: Some(why) }) => format!(" ({} is left on disk because {why})", quoted(path)),
        }
    }

    /// Returns the path that is left on disk, or `None` if nothing is left.
    pub fn left(&self) -> Option<&Path> {
        self.0.left.as_ref().map(|left| &*left.path)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}{}", self.0.phase, self.0.cause, self.left_note())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.cause.source()
    }
}

/// Formats an error and its sources on one line.
pub(crate) fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}

/// Returns a function for `map_err` that adds the operation and the path to a failed system call.
pub(crate) fn io_cause<E: Into<io::Error>>(
    operation: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(E) -> Cause {
    let path = path.into();
    move |source| Cause::Io { operation, path, source: source.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_the_first_failure_and_the_second_beside_it() {
        let io = |text: &str| io::Error::other(text.to_string());
        let first = Error::new(Phase::RuncRun, io_cause("start", "/bin/runc")(io("gone")));
        let second = Error::new(Phase::Cleanup, io_cause("remove", "/s/x")(io("busy")));
        assert_eq!(chain(&first), "runc_run: cannot start /bin/runc: gone");
        let both = first.leaving_for(Path::new("/s"), &second);
        assert_eq!(
            chain(&both),
            "runc_run: cannot start /bin/runc (/s is left on disk because cleanup: cannot remove /s/x: busy): gone"
        );
        assert_eq!(
            (both.phase(), both.left(), both.path()),
            (Phase::RuncRun, Some("/s".as_ref()), Some("/bin/runc".as_ref()))
        );
    }

    #[test]
    fn the_error_of_prep_upper_is_the_source() {
        let error = Error::new(Phase::PrepUpper, Cause::PrepUpper("no space for toys".into()));
        assert_eq!(chain(&error), "prep_upper: the caller's prep_upper failed: no space for toys");
    }
}
