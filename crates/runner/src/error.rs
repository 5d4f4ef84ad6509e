use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use layer::display::quoted;

use crate::Phase;

/// Why a run came to no result: the phase that failed, the reason, and what is left on disk.
///
/// A failed phase has undone the ones before it. Nothing is left unless unmounting or removing itself failed; then
/// [`left`](Self::left) says where, and nothing there has been touched since.
///
/// A command that fails is no error: see [`Report::status`](crate::Report::status).
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    phase: Phase,
    cause: Cause,
    left: Option<Left>,
}

/// The reason for an [`Error`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// A layer or the base.
    #[error(transparent)]
    Layer(#[from] layer::Error),
    /// The template, the mount or the runtime.
    #[error(transparent)]
    Container(#[from] container::Error),
    /// The caller's `prep_upper`.
    #[error("the caller's prep_upper failed")]
    PrepUpper(#[source] BoxError),
    /// Not the directory of a run whose upper was kept.
    #[error(
        "{} is not a kept run: give the directory that `layered run --keep-failed` printed (`Upper::keep` returned it)",
        quoted(path)
    )]
    NotKept {
        /// What was given.
        path: PathBuf,
    },
    /// Somebody is using the upper.
    #[error("{} is in use: wait until the other visit has ended", quoted(path))]
    InUse {
        /// The kept run's directory.
        path: PathBuf,
    },
    /// The directory of a run, or a part of it that is not its upper, was given as an upper.
    #[error("{} is the directory of a run, or holds one: give the directory `upper` in it", quoted(path))]
    RunDirectory {
        /// What was given.
        path: PathBuf,
    },
    /// A place in the directory of a run, which is removed as a whole.
    #[error(
        "{} lies in {}, the directory of a run, which is removed as a whole: choose another place",
        quoted(path),
        quoted(run)
    )]
    InRunDirectory {
        /// The place.
        path: PathBuf,
        /// The run's directory.
        run: PathBuf,
    },
    /// The scratch directory lies in a layer or the base, or is its tree.
    #[error(
        "the scratch directory {} lies in {}, which this run stacks: choose one outside of the layers and the base",
        quoted(scratch),
        quoted(tree)
    )]
    ScratchInLayer {
        /// The scratch directory, by its real path.
        scratch: PathBuf,
        /// The tree of the layer or of the base.
        tree: PathBuf,
    },
    /// The upper is to be moved into a layer or the base.
    #[error(
        "{} lies in {}, which this run stacks: choose a place for the upper outside of the layers and the base",
        quoted(destination),
        quoted(tree)
    )]
    UpperInLayer {
        /// Where the upper is to go.
        destination: PathBuf,
        /// The tree of the layer or of the base.
        tree: PathBuf,
    },
    /// The scratch directory.
    #[error("cannot {operation} {}", quoted(path))]
    Io {
        /// What was tried, as a verb.
        operation: &'static str,
        /// The path it was tried on.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// What `prep_upper` may fail with.
pub type BoxError = Box<dyn StdError + Send + Sync>;

#[derive(Debug)]
struct Left {
    path: PathBuf,
    /// A second failure, if it was not the first that left something.
    why: Option<String>,
}

/// The result of a run.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn new(phase: Phase, cause: impl Into<Cause>) -> Self {
        Self(Box::new(Inner { phase, cause: cause.into(), left: None }))
    }

    /// The same error, after which `path` is left on disk.
    pub(crate) fn leaving(mut self, path: &Path) -> Self {
        self.0.left.get_or_insert(Left { path: path.into(), why: None });
        self
    }

    /// The same error, after which `path` is left on disk because of a second one.
    pub(crate) fn leaving_for(mut self, path: &Path, why: &Error) -> Self {
        self.0.left.get_or_insert(Left { path: path.into(), why: Some(chain(why)) });
        self
    }

    /// The phase that failed.
    pub fn phase(&self) -> Phase {
        self.0.phase
    }

    /// The reason.
    pub fn cause(&self) -> &Cause {
        &self.0.cause
    }

    /// The path that the reason is about.
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

    /// What is left and why, as the message has it behind the reason: ` (/scratch/x is left, since …)`, or nothing.
    pub fn left_note(&self) -> String {
        match &self.0.left {
            None => String::new(),
            Some(Left { path, why: None }) => format!(" ({} is left)", quoted(path)),
            Some(Left { path, why: Some(why) }) => format!(" ({} is left, since {why})", quoted(path)),
        }
    }

    /// What is left on disk: `None` for nothing.
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

/// An error and its sources on one line.
pub(crate) fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}

/// For `map_err`: names the operation and the path of a failed system call.
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
    fn the_first_failure_is_told_and_the_second_beside_it() {
        let io = |text: &str| io::Error::other(text.to_string());
        let first = Error::new(Phase::RuncRun, io_cause("start", "/bin/runc")(io("gone")));
        let second = Error::new(Phase::Cleanup, io_cause("remove", "/s/x")(io("busy")));
        assert_eq!(chain(&first), "runc_run: cannot start /bin/runc: gone");
        let both = first.leaving_for(Path::new("/s"), &second);
        assert_eq!(
            chain(&both),
            "runc_run: cannot start /bin/runc (/s is left, since cleanup: cannot remove /s/x: busy): gone"
        );
        assert_eq!(
            (both.phase(), both.left(), both.path()),
            (Phase::RuncRun, Some("/s".as_ref()), Some("/bin/runc".as_ref()))
        );
    }

    #[test]
    fn prep_upper_shows_its_own_reason_as_the_source() {
        let error = Error::new(Phase::PrepUpper, Cause::PrepUpper("no space for toys".into()));
        assert_eq!(chain(&error), "prep_upper: the caller's prep_upper failed: no space for toys");
    }
}
