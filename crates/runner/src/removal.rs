use std::io;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use layer::display::quoted;

use crate::error::{Cause, chain, io_cause};
use crate::rundir::RunDir;

/// The removal of all that is left of a run but its upper, going on by itself on a thread of its own.
///
/// The upper is in another directory by now and can be moved meanwhile. If the process is killed, a [sweep](crate::sweep) finds the
/// rest.
#[derive(Debug)]
#[must_use = "dropped, it is waited for"]
pub struct Removal {
    path: PathBuf,
    state: State,
}

#[derive(Debug)]
enum State {
    Going(JoinHandle<Result<(), Cause>>),
    Over(Result<(), Cause>),
}

impl Removal {
    /// Begins to remove the directory of a run that is over; if no thread can be started, it is removed at once.
    pub(crate) fn begin(run: RunDir) -> Self {
        let path = run.path().to_path_buf();
        match thread::Builder::new().name("removal".into()).spawn(move || run.remove()) {
            Ok(thread) => Self { path, state: State::Going(thread) },
            Err(error) => {
                log::warn!("{} is removed immediately: cannot start a thread: {error}", quoted(&path));
                let removed = layer::remove_tree(&path).map_err(Cause::from);
                Self { path, state: State::Over(removed) }
            }
        }
    }

    /// The directory that is being removed.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// [`Cause::Layer`] with the entry that could not be removed; the rest of it is left for a [sweep](crate::sweep).
    pub fn wait(mut self) -> Result<(), Cause> {
        self.join()
    }

    fn join(&mut self) -> Result<(), Cause> {
        match std::mem::replace(&mut self.state, State::Over(Ok(()))) {
            State::Over(removed) => removed,
            State::Going(thread) => thread
                .join()
                .unwrap_or_else(|_| Err(io_cause("remove", &self.path)(io::Error::other("the thread panicked")))),
        }
    }
}

impl Drop for Removal {
    fn drop(&mut self) {
        if let Err(cause) = self.join() {
            log::error!("{} is left: {}", quoted(&self.path), chain(&cause));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn it_goes_on_by_itself_and_leaves_nothing() {
        let parent = tempfile::tempdir().unwrap();
        for dropped in [false, true] {
            let (run, _) = RunDir::create(parent.path()).unwrap();
            fs::create_dir_all(run.path().join("lower/deep")).unwrap();
            let path = run.path().to_path_buf();
            let removal = Removal::begin(run);
            assert_eq!(removal.path(), path);
            if dropped {
                drop(removal)
            } else {
                removal.wait().unwrap()
            }
            assert_eq!(fs::read_dir(&parent).unwrap().count(), 0);
        }
    }
}
