use std::fs::{self, DirBuilder};
use std::io;
use std::ops::Deref;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use container::ContainerId;
use container::advanced::mount_private_tmpfs;
use layer::display::quoted;
use layer::{Hold, Made, RunRecord, XattrNamespace};

use crate::error::{Cause, chain, io_cause};
use crate::rundir::RunDir;
use crate::{Removal, Upper};

/// Where things are in the directory of one run, whose name is the container's.
///
/// ```text
/// <scratch>/<id>/upper          what the command writes
/// <scratch>/<id>/work           the kernel's
/// <scratch>/<id>/lower          the merged layers, if any had to be
/// <scratch>/<id>/bundle         in memory, and seen by the run alone:
///                bundle/merged       the mount point of the overlay
///                bundle/config.json  and beside it runtime.log and state/, the runtime's
/// ```
#[derive(Debug)]
pub(crate) struct Paths(PathBuf);

impl Paths {
    /// Those in the directory `dir`.
    pub(crate) fn new(dir: impl Into<PathBuf>) -> Self {
        Self(dir.into())
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.0
    }

    pub(crate) fn upper(&self) -> PathBuf {
        self.0.join("upper")
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.0.join("work")
    }

    pub(crate) fn bundle(&self) -> PathBuf {
        self.0.join("bundle")
    }

    pub(crate) fn merged(&self) -> PathBuf {
        self.0.join("bundle/merged")
    }

    pub(crate) fn lower(&self) -> PathBuf {
        self.0.join("lower")
    }
}

/// The directory of one run, mode 0700, as it is on disk.
///
/// This is the only place that deletes, and it must not be asked to before the overlay is known to be unmounted: deleting
/// through the mount would turn the upper into whiteouts.
#[derive(Debug)]
pub(crate) struct Scratch {
    paths: Paths,
    upper: Option<Upper>,
}

impl Deref for Scratch {
    type Target = Paths;

    fn deref(&self) -> &Paths {
        &self.paths
    }
}

impl Scratch {
    /// Makes the directory in `parent`, which is a [real path](crate::rundir::scratch_dir), and returns the name of the run. On an error nothing is left.
    pub(crate) fn create(parent: &Path) -> Result<(Self, ContainerId), Cause> {
        let (run, id) = RunDir::create(parent)?;
        // From here on it is removed when the value is dropped.
        let scratch = Self { paths: Paths::new(run.path()), upper: Some(Upper::new(run)) };
        for path in [scratch.upper(), scratch.work(), scratch.bundle()] {
            DirBuilder::new().mode(0o700).create(&path).map_err(io_cause("make the directory", path))?;
        }
        Ok((scratch, id))
    }

    /// The directory of an upper that was kept, or is from now on, made ready to be run over. What a visit that was killed has
    /// left goes first.
    pub(crate) fn over(upper: Upper) -> Result<(Self, ContainerId), Cause> {
        let dir = |upper: &Path| upper.parent().expect("an upper is in a directory").to_path_buf();
        let upper = upper.into_kept()?;
        let id = upper.kept().expect("it is kept").clone();
        let scratch = Self { paths: Paths::new(dir(upper.path())), upper: Some(upper) };
        scratch.remove_all_but_upper()?;
        for path in [scratch.work(), scratch.bundle()] {
            DirBuilder::new().mode(0o700).create(&path).map_err(io_cause("make the directory", path))?;
        }
        Ok((scratch, id))
    }

    /// Keeps the layers below the upper held for as long as that exists.
    pub(crate) fn hold(&mut self, hold: Option<Hold>, xattrs: XattrNamespace) {
        self.upper = self.upper.take().map(|upper| {
            let upper = upper.over(hold, xattrs);
            upper.hold_for_kept();
            upper
        });
    }

    /// Notes on the upper what the run made in it, beside what earlier runs did.
    pub(crate) fn record(&self, made: &[Made], xattrs: XattrNamespace) -> Result<(), Cause> {
        let before = if self.is_kept() { RunRecord::read(self.upper(), xattrs)? } else { None };
        let mut record = before.clone().unwrap_or_default();
        record.add(made.iter().cloned());
        if before.as_ref() != Some(&record) {
            record.write(self.upper(), xattrs)?;
        }
        Ok(())
    }

    /// Removes everything but the upper, which is the caller's from now on. On an error everything is left from there on.
    pub(crate) fn into_upper(mut self) -> Result<Upper, Cause> {
        let upper = self.upper.take().expect("an upper is taken once");
        match self.remove_all_but_upper() {
            Ok(()) => Ok(upper),
            Err(cause) => {
                upper.leave();
                Err(cause)
            }
        }
    }

    /// As [`into_upper`](Self::into_upper), with the removal left to another thread. The upper then stands in another directory.
    pub(crate) fn into_upper_behind(mut self) -> Result<(Upper, Option<Removal>), Cause> {
        let unmounted = self.remove_mount_point();
        let upper = self.upper.take().expect("an upper is taken once");
        if let Err(cause) = unmounted {
            upper.leave();
            return Err(cause);
        }
        match upper.move_out() {
            Ok((upper, rest)) => Ok((upper, Some(Removal::begin(rest)))),
            Err(failed) => {
                let (upper, cause) = *failed;
                log::warn!("{} is tidied up at once: {}", quoted(self.dir()), chain(&cause));
                self.upper = Some(upper);
                Ok((self.into_upper()?, None))
            }
        }
    }

    /// Makes the place for the overlay and the bundle, where the calling thread's mount namespace is the run's own. They go with it,
    /// so that a run that is killed has left none of them, and cost no disk anything.
    pub(crate) fn mount_bundle(&self) -> Result<(), Cause> {
        mount_private_tmpfs(&self.bundle())?;
        DirBuilder::new().mode(0o700).create(self.merged()).map_err(io_cause("make the directory", self.merged()))
    }

    fn remove_mount_point(&self) -> Result<(), Cause> {
        // Not recursively: if anything were still mounted here, where this thread sees it, it would be busy.
        match fs::remove_dir(self.bundle()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(io_cause("remove the mount point", self.bundle())(error))
            }
            _ => Ok(()),
        }
    }

    fn remove_all_but_upper(&self) -> Result<(), Cause> {
        self.remove_mount_point()?;
        for tree in [self.work(), self.lower()] {
            layer::remove_tree(&tree)?;
        }
        Ok(())
    }

    /// Removes everything, but for an upper that was kept before.
    pub(crate) fn remove(self) -> Result<(), Cause> {
        let upper = self.into_upper()?;
        match upper.kept() {
            None => upper.close(),
            Some(_) => Ok(()),
        }
    }

    /// Whether the upper was kept of an earlier run.
    pub(crate) fn is_kept(&self) -> bool {
        self.upper.as_ref().is_some_and(|upper| upper.kept().is_some())
    }

    /// Leaves everything as it is.
    pub(crate) fn leave(mut self) {
        self.upper.take().into_iter().for_each(Upper::leave);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn scratch(parent: &Path) -> Scratch {
        Scratch::create(parent).unwrap().0
    }

    #[test]
    fn it_is_private_and_goes_without_a_trace() {
        let parent = tempfile::tempdir().unwrap();
        let scratch = scratch(parent.path());
        assert_eq!(fs::metadata(scratch.dir()).unwrap().permissions().mode() & 0o7777, 0o700);
        fs::create_dir_all(scratch.work().join("work")).unwrap();
        fs::create_dir(scratch.lower()).unwrap();
        fs::write(scratch.upper().join("file"), "").unwrap();
        scratch.remove().unwrap();
        assert_eq!(fs::read_dir(&parent).unwrap().count(), 0);
    }

    #[test]
    fn the_upper_stays_and_the_rest_goes() {
        let parent = tempfile::tempdir().unwrap();
        let scratch = scratch(parent.path());
        fs::write(scratch.upper().join("file"), "kept").unwrap();
        fs::create_dir(scratch.lower()).unwrap();
        let dir = scratch.dir().to_path_buf();
        let upper = scratch.into_upper().unwrap();
        assert_eq!(fs::read(upper.path().join("file")).unwrap(), b"kept");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        drop(upper);
        assert_eq!(fs::read_dir(&parent).unwrap().count(), 0);
    }

    #[test]
    fn what_lies_in_the_mount_point_is_never_deleted() {
        for behind in [false, true] {
            let parent = tempfile::tempdir().unwrap();
            let scratch = scratch(parent.path());
            let bundle = scratch.bundle();
            let precious = bundle.join("precious");
            fs::write(&precious, "").unwrap();
            let upper = scratch.upper();
            let result = if behind { scratch.into_upper_behind().map(drop) } else { scratch.into_upper().map(drop) };
            assert!(matches!(result, Err(Cause::Io { path, .. }) if path == bundle));
            assert!(precious.exists() && upper.exists());
        }
    }

    #[test]
    fn a_parent_that_is_missing_is_named() {
        let parent = tempfile::tempdir().unwrap().path().join("missing");
        let error = Scratch::create(&parent).unwrap_err();
        assert!(matches!(error, Cause::Io { path, .. } if path.starts_with(&parent)));
    }
}
