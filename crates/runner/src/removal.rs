//! Removes a run's leftovers on a separate thread, for [`Cleanup::Behind`](crate::Cleanup::Behind).
//!
//! `scratch` decides what is removed.

use std::io;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use layer::display::quoted;

use crate::Result;
use crate::error::{chain, io_error};
use crate::rundir::RunDir;

/// The removal of everything that a run left except its upper, in progress on a separate thread.
///
/// The upper is already in another directory, so the caller can move it concurrently. If the
/// process is killed, a [sweep](crate::sweep) removes the rest.
#[derive(Debug)]
#[must_use = "dropping this value waits for the removal"]
pub struct Removal {
    path: PathBuf,
    state: State,
}

#[derive(Debug)]
enum State {
    Running(JoinHandle<Result<()>>),
    Ended(Result<()>),
}

impl Removal {
    /// Begins to remove the directory of a run that has ended. If no thread can be started, removes
    /// it before returning.
    pub(crate) fn begin(run: RunDir) -> Self {
        let path = run.path().to_path_buf();
        match thread::Builder::new().name("removal".into()).spawn(move || run.remove()) {
            Ok(thread) => Self { path, state: State::Running(thread) },
            Err(error) => {
                log::warn!("removing {} before the run returns: cannot start a thread: {error}", quoted(&path));
                let removed = layer::remove_tree(&path).map_err(crate::Error::from);
                Self { path, state: State::Ended(removed) }
            }
        }
    }

    /// Returns the directory that is being removed.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the removal to end.
    ///
    /// # Errors
    /// [`Cause::Layer`](crate::Cause::Layer) with the entry that could not be removed. That entry
    /// and the rest are left for a [sweep](crate::sweep).
    pub fn wait(mut self) -> Result<()> {
        self.join()
    }

    fn join(&mut self) -> Result<()> {
        match std::mem::replace(&mut self.state, State::Ended(Ok(()))) {
            State::Ended(removed) => removed,
            State::Running(thread) => thread
                .join()
                .unwrap_or_else(|_| Err(io_error("remove", &self.path)(io::Error::other("the thread panicked")))),
        }
    }
}

impl Drop for Removal {
    fn drop(&mut self) {
        if let Err(error) = self.join() {
            log::error!("{} is left: {}", quoted(&self.path), chain(&error));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_removal_leaves_nothing_whether_awaited_or_dropped() {
        let parent = tempfile::tempdir().unwrap();
        for dropped in [false, true] {
            let run = RunDir::create(parent.path()).unwrap();
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
