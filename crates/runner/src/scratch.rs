//! The contents of a run's directory, and what happens to them when the run ends.
//!
//! `rundir` has the directory itself and its lock, and `upper` the upper in it.

use std::fs::{self, DirBuilder};
use std::io;
use std::ops::Deref;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use container::ContainerId;
use container::advanced::copy_root_attributes;
use layer::display::quoted;
use layer::{Hold, Made, Plan, RunRecord, XattrNamespace};

use crate::error::{Cause, chain, in_phase, io_error, with_undone};
use crate::options::PrepUpper;
use crate::paths::Paths;
use crate::rundir::{RunDir, scratch_dir};
use crate::stack::Stack;
use crate::{Cleanup, Phase, Removal, Result, Upper};

/// The directory of one run, mode 0700, on disk.
///
/// Nothing may delete anything in it before the overlay is known to be unmounted: deleting through
/// the mount would fill the upper with whiteouts. [`settle`](Self::settle) decides when to delete.
#[derive(Debug)]
pub(crate) struct Scratch {
    paths: Paths,
    upper: Upper,
}

impl Deref for Scratch {
    type Target = Paths;

    fn deref(&self) -> &Paths {
        &self.paths
    }
}

impl Scratch {
    /// Creates the directory of a run in `parent`, or reuses the one that `over` was kept in.
    /// Refuses a directory inside one of the stack's trees.
    pub(crate) fn open(over: Option<Upper>, parent: &Path, stack: &Stack<'_>) -> Result<Self> {
        match over {
            None => {
                let parent = scratch_dir(parent)?;
                stack.refuse_scratch(&parent)?;
                Self::create(&parent)
            }
            Some(upper) => {
                stack.refuse_scratch(upper.path())?;
                Self::over(upper)
            }
        }
    }

    /// Creates the directory in `parent`, which is a [real path](scratch_dir). On an error nothing
    /// is left.
    pub(crate) fn create(parent: &Path) -> Result<Self> {
        let run = RunDir::create(parent)?;
        // From here on, dropping the value removes the directory.
        let scratch = Self { paths: Paths::new(run.path()), upper: Upper::new(run) };
        make_directories([scratch.upper(), scratch.work(), scratch.bundle()])?;
        Ok(scratch)
    }

    /// Prepares the directory of a kept upper for another run. Removes what a killed run over this
    /// upper left.
    fn over(upper: Upper) -> Result<Self> {
        let scratch = Self { paths: Paths::new(upper.run_dir().path()), upper };
        scratch.remove_all_but_upper()?;
        make_directories([scratch.work(), scratch.bundle()])?;
        Ok(scratch)
    }

    /// Keeps the layers below the upper held while the upper exists.
    pub(crate) fn holding(self, hold: Option<Hold>, xattrs: XattrNamespace) -> Self {
        Self { upper: self.upper.over(hold, xattrs), ..self }
    }

    /// Returns the name of the run.
    pub(crate) fn id(&self) -> &ContainerId {
        self.upper.run_dir().id()
    }

    /// Copies the attributes of the topmost lower to the upper's root, and calls the caller's
    /// function.
    pub(crate) fn prepare_upper(&self, lowers: &[PathBuf], prepare: Option<PrepUpper<'_>>) -> Result<()> {
        self.copy_root_attributes(&lowers[0])?;
        match prepare {
            Some(prepare) => Ok(prepare(&self.upper(), lowers).map_err(Cause::PrepUpper)?),
            None => Ok(()),
        }
    }

    /// Copies the root attributes to the upper of a run that was cancelled before the mount, in
    /// case the caller keeps that upper.
    pub(crate) fn never_mounted(&self, plan: &Plan) {
        let topmost = plan.separate.first().or(plan.merged.first()).unwrap_or(&plan.base);
        if let Err(error) = self.copy_root_attributes(topmost) {
            log::warn!("{}", chain(&error));
        }
    }

    /// Copies the attributes of `lower` to the upper's root. Leaves the root of a kept upper as the
    /// earlier run left it.
    fn copy_root_attributes(&self, lower: &Path) -> Result<()> {
        if self.upper.is_kept() { Ok(()) } else { Ok(copy_root_attributes(lower, &self.upper())?) }
    }

    /// Records on the upper the entries that the run created in it, beside those of earlier runs.
    pub(crate) fn record(&self, made: &[Made], xattrs: XattrNamespace) -> Result<()> {
        let before = if self.upper.is_kept() { RunRecord::read(self.upper(), xattrs)? } else { None };
        let mut record = before.clone().unwrap_or_default();
        record.add(made.iter().cloned());
        if before.as_ref() != Some(&record) {
            record.write(self.upper(), xattrs)?;
        }
        Ok(())
    }

    /// Ends the use of the directory, depending on `result`:
    /// - After a success, returns the upper and removes the rest.
    /// - After an error that [leaves](crate::Error::left) the directory, because the overlay is
    ///   still mounted, touches nothing.
    /// - After any other error, removes everything except an upper that was kept before.
    ///
    /// If removing fails, the rest is left, and the error names the directory.
    pub(crate) fn settle<T>(self, result: Result<T>, cleanup: Cleanup) -> Result<(T, Upper, Option<Removal>)> {
        let dir = self.dir().to_path_buf();
        match result {
            Ok(value) => {
                let kept = in_phase(Phase::Cleanup, || match cleanup {
                    Cleanup::Behind if !self.upper.is_kept() => self.into_upper_behind(),
                    _ => Ok((self.into_upper()?, None)),
                });
                let (upper, removal) = kept.map_err(|error| error.leaving(&dir))?;
                Ok((value, upper, removal))
            }
            Err(error) if error.left().is_some() => {
                self.upper.leave();
                Err(error)
            }
            Err(error) => with_undone(Err(error), in_phase(Phase::Cleanup, || self.remove()), &dir),
        }
    }

    /// Removes everything but the upper, and returns the upper, which the caller then owns. On an
    /// error, the entry that could not be removed is left, and so is everything that would have
    /// been removed after it.
    fn into_upper(self) -> Result<Upper> {
        match self.remove_all_but_upper() {
            Ok(()) => Ok(self.upper),
            Err(error) => {
                self.upper.leave();
                Err(error)
            }
        }
    }

    /// Moves the upper into another directory, and removes this one on another thread. If the upper
    /// cannot be moved, removes everything else before returning.
    fn into_upper_behind(mut self) -> Result<(Upper, Option<Removal>)> {
        if let Err(error) = self.remove_mount_point() {
            self.upper.leave();
            return Err(error);
        }
        match self.upper.move_out() {
            Ok(rest) => Ok((self.upper, Some(Removal::begin(rest)))),
            Err(error) => {
                log::warn!("cleaning up {} before the run returns: {}", quoted(self.dir()), chain(&error));
                Ok((self.into_upper()?, None))
            }
        }
    }

    fn remove_mount_point(&self) -> Result<()> {
        // This is not recursive. It fails with EBUSY if this thread still sees a mount here.
        match fs::remove_dir(self.bundle()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(io_error("remove the mount point", self.bundle())(error))
            }
            _ => Ok(()),
        }
    }

    fn remove_all_but_upper(&self) -> Result<()> {
        self.remove_mount_point()?;
        self.remove_work()?;
        let lower = self.lower();
        match lower.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            // If the kernel refuses to look, the removal returns the reason.
            _ => Ok(layer::remove_tree(lower)?),
        }
    }

    /// Removes the work directory. It usually has only what a volatile overlay leaves there, so
    /// that it can be removed without a walk.
    fn remove_work(&self) -> Result<()> {
        let work = self.work();
        let _gone_or_not = fs::remove_file(work.join("work/incompat/volatile/dirty"));
        let directories = ["work/incompat/volatile", "work/incompat", "work", ""];
        match directories.iter().try_for_each(|name| fs::remove_dir(work.join(name))) {
            Ok(()) => Ok(()),
            Err(_) => Ok(layer::remove_tree(work)?),
        }
    }

    /// Removes everything except an upper that was kept before.
    fn remove(self) -> Result<()> {
        let upper = self.into_upper()?;
        if upper.is_kept() { Ok(()) } else { upper.close() }
    }
}

fn make_directories<const N: usize>(paths: [PathBuf; N]) -> Result<()> {
    let make =
        |path: PathBuf| DirBuilder::new().mode(0o700).create(&path).map_err(io_error("make the directory", path));
    paths.into_iter().try_for_each(make)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// Creates the directory of a run, with files in the upper and the work directory, and merged
    /// layers.
    fn scratch(parent: &Path) -> Scratch {
        let scratch = Scratch::create(parent).unwrap();
        fs::create_dir_all(scratch.work().join("work")).unwrap();
        fs::create_dir(scratch.lower()).unwrap();
        fs::write(scratch.upper().join("file"), "kept").unwrap();
        scratch
    }

    fn failed() -> Result<()> {
        Err(io_error("try", "this")(io::Error::other("no")))
    }

    #[test]
    fn the_directory_is_private_and_a_failed_run_leaves_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let scratch = scratch(parent.path());
        assert_eq!(fs::metadata(scratch.dir()).unwrap().permissions().mode() & 0o7777, 0o700);
        scratch.settle(failed(), Cleanup::Awaited).unwrap_err();
        assert_eq!(fs::read_dir(&parent).unwrap().count(), 0);
    }

    #[test]
    fn the_upper_of_a_run_stays_and_the_rest_is_removed() {
        for cleanup in [Cleanup::Awaited, Cleanup::Behind] {
            let parent = tempfile::tempdir().unwrap();
            let ((), upper, removal) = scratch(parent.path()).settle(Ok(()), cleanup).unwrap();
            assert_eq!(fs::read(upper.path().join("file")).unwrap(), b"kept");
            drop(removal);
            assert_eq!(fs::read_dir(upper.path().parent().unwrap()).unwrap().count(), 1);
            assert_eq!(fs::read_dir(&parent).unwrap().count(), 1);
            drop(upper);
            assert_eq!(fs::read_dir(&parent).unwrap().count(), 0);
        }
    }

    #[test]
    fn nothing_is_removed_while_the_overlay_may_be_mounted() {
        let parent = tempfile::tempdir().unwrap();
        let scratch = scratch(parent.path());
        let left = [scratch.upper().join("file"), scratch.work().join("work"), scratch.lower(), scratch.bundle()];
        let mounted = failed().map_err(|error| error.leaving(scratch.dir()));
        scratch.settle(mounted, Cleanup::Awaited).unwrap_err();
        assert!(left.iter().all(|path| path.exists()));
    }

    #[test]
    fn a_file_in_the_mount_point_is_never_deleted() {
        for cleanup in [Cleanup::Awaited, Cleanup::Behind] {
            let parent = tempfile::tempdir().unwrap();
            let scratch = scratch(parent.path());
            let (dir, bundle, upper) = (scratch.dir().to_path_buf(), scratch.bundle(), scratch.upper());
            let precious = bundle.join("precious");
            fs::write(&precious, "").unwrap();
            let error = scratch.settle(Ok(()), cleanup).unwrap_err();
            assert_eq!(
                (error.phase(), error.path(), error.left()),
                (Some(Phase::Cleanup), Some(&*bundle), Some(&*dir))
            );
            assert!(precious.exists() && upper.exists());
        }
    }

    #[test]
    fn a_missing_parent_is_named() {
        let parent = tempfile::tempdir().unwrap().path().join("missing");
        let error = Scratch::create(&parent).unwrap_err();
        assert!(error.path().is_some_and(|path| path.starts_with(&parent)), "{error}");
    }
}
