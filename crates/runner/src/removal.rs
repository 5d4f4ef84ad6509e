use std::io;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use crate::error::{Cause, chain, io_cause};
use crate::rundir::RunDir;

/// The removal of what was merged for a run that is over, going on by itself on a thread of its own.
///
/// It is a directory of its own in the scratch directory by now: the upper can be moved meanwhile, and if the process is killed
/// a [sweep](crate::sweep) finds the rest.
#[derive(Debug)]
#[must_use = "dropped, it is waited for"]
pub struct Removal {
    path: PathBuf,
    thread: Option<JoinHandle<Result<(), Cause>>>,
}

impl Removal {
    /// Begins to remove `tree`, which is in a run's directory in `parent`. On an error it is still there.
    pub(crate) fn begin(tree: &Path, parent: &Path) -> Result<Self, Cause> {
        let (run, _) = RunDir::create(parent)?;
        let path = run.path().to_path_buf();
        if let Err(error) = std::fs::rename(tree, path.join("lower")) {
            run.remove()?;
            return Err(io_cause("move aside", tree)(error));
        }
        let thread = thread::Builder::new().name("removal".into()).spawn(move || run.remove());
        if let Err(error) = &thread {
            log::warn!("{} is removed at once: cannot start a thread: {error}", path.display());
            layer::remove_tree(&path)?;
        }
        Ok(Self { path, thread: thread.ok() })
    }

    /// Where what is being removed was put.
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
        let Some(thread) = self.thread.take() else { return Ok(()) };
        let panicked = |_| Err(io_cause("remove", &self.path)(io::Error::other("the thread panicked")));
        thread.join().unwrap_or_else(panicked)
    }
}

impl Drop for Removal {
    fn drop(&mut self) {
        if let Err(cause) = self.join() {
            log::error!("{} is left: {}", self.path.display(), chain(&cause));
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
        let tree = parent.path().join("tree");
        for dropped in [false, true] {
            fs::create_dir_all(tree.join("deep/down")).unwrap();
            let removal = Removal::begin(&tree, parent.path()).unwrap();
            assert!(!tree.exists());
            if dropped {
                drop(removal)
            } else {
                removal.wait().unwrap()
            }
            assert_eq!(fs::read_dir(&parent).unwrap().count(), 0);
        }
        let missing = Removal::begin(&tree, parent.path()).unwrap_err();
        assert!(matches!(missing, Cause::Io { path, .. } if path == tree));
        assert_eq!(fs::read_dir(&parent).unwrap().count(), 0);
    }
}
