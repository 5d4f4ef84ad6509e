//! The upper of a run that has ended, as a value with an owner, and where it can go.
//!
//! Its directory and the lock on it are in `rundir`.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use container::ContainerId;
use layer::display::quoted;
use layer::{Access, Capture, Captured, Hold, Layer, Meta, RunRecord, TreeSize, UpperId, XattrNamespace};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::error::{Cause, chain, io_cause};
use crate::rundir::{self, RunDir};

/// What a command wrote: the upper directory of its overlay, owned.
///
/// It is in the run's scratch directory, which only root can enter. Dropped, it is deleted. [`keep`](Self::keep) leaves it
/// where it is, [`persist`](Self::persist) moves it, [`capture`](Self::capture) makes it a layer. One that was kept can be
/// [opened again](Self::reopen), and is not deleted by dropping it.
///
/// It is as the kernel left it, with whiteouts for what was deleted and with overlay xattrs, and not synced yet: after a power
/// cut it is not to be trusted.
///
/// No collector removes the layers below for as long as this value exists. After `keep` and `persist` they stay for as long as
/// the upper is where these have left it.
#[derive(Debug)]
#[must_use = "the upper is deleted when this value is dropped"]
pub struct Upper {
    /// The run's directory; `None` once this is disarmed.
    run: Option<RunDir>,
    path: PathBuf,
    /// The run's name, if the directory has been kept before.
    kept: Option<ContainerId>,
    /// The layers below, unless their hold has been left for the kept run.
    hold: Option<Hold>,
    xattrs: XattrNamespace,
}

/// An upper that could not be moved. It is still there: [`upper`](Self::upper) can be tried again.
#[derive(Debug, thiserror::Error)]
#[error("cannot move the upper {} to {}{}", quoted(upper.path()), quoted(destination), advice(source))]
pub struct PersistError {
    /// The upper, unchanged.
    pub upper: Upper,
    /// Where it was to go.
    pub destination: PathBuf,
    /// Why it could not.
    pub source: io::Error,
}

/// An upper that could not be captured. It is still there: [`upper`](Self::upper) can be tried again.
#[derive(Debug, thiserror::Error)]
#[error("cannot capture the upper as {}", quoted(layer))]
pub struct CaptureError {
    /// The upper, at its place unless the source says otherwise.
    pub upper: Upper,
    /// The layer that it was to be.
    pub layer: PathBuf,
    /// Why it could not.
    pub source: layer::Error,
}

fn advice(source: &io::Error) -> &'static str {
    match Errno::from_io_error(source) {
        Some(Errno::XDEV) => ": it is on another file system; choose a scratch directory beside the destination",
        Some(Errno::EXIST | Errno::NOTEMPTY) => ": something is there already; choose another destination",
        _ => "",
    }
}

impl Upper {
    /// The upper in the directory of a run.
    pub(crate) fn new(run: RunDir) -> Self {
        let path = run.path().join("upper");
        Self { run: Some(run), path, kept: None, hold: None, xattrs: XattrNamespace::default() }
    }

    /// The same, over layers that are held, with overlay xattrs in `xattrs`.
    pub(crate) fn over(mut self, hold: Option<Hold>, xattrs: XattrNamespace) -> Self {
        (self.hold, self.xattrs) = (hold, xattrs);
        self
    }

    /// The upper in `dir`, the directory that [`keep`](Self::keep) left it in: to be looked at, [run over](crate::Options::over),
    /// captured, moved or [deleted](Self::close), by one process at a time. Dropped, it stays.
    ///
    /// A directory is a kept run by its name, its owner and its lock; what it holds says nothing. The upper itself may be missing
    /// there, if a capture was killed that had moved it: [`capture`](Self::capture) can be repeated.
    ///
    /// # Errors
    /// [`Cause::NotKept`], [`Cause::InUse`].
    pub fn reopen(dir: impl AsRef<Path>) -> Result<Self, Cause> {
        let (run, id) = RunDir::kept(dir.as_ref())?;
        let mut upper = Self::new(run);
        upper.kept = Some(id);
        Ok(upper)
    }

    /// Whether `dir` has the name of a kept run. Only such a directory can be [opened again](Self::reopen).
    pub fn is_kept_name(dir: impl AsRef<Path>) -> bool {
        rundir::is_kept_name(dir.as_ref())
    }

    /// Refuses a place in the directory of a run, where nothing stays.
    ///
    /// # Errors
    /// [`Cause::InRunDirectory`].
    pub fn refuse_destination(destination: impl AsRef<Path>) -> Result<(), Cause> {
        let path = destination.as_ref();
        rundir::around(path).map_or(Ok(()), |run| Err(Cause::InRunDirectory { path: path.into(), run }))
    }

    /// Locks the directory of the run that `upper` belongs to, if its path is that of a run's upper, for as long as the result
    /// exists: neither that run nor a sweep touches it then.
    ///
    /// # Errors
    /// [`Cause::InUse`] if the run is still going on, or another process uses its upper; [`Cause::RunDirectory`] if `upper` is or
    /// holds the directory of a run.
    pub fn lock_run_of(upper: impl AsRef<Path>) -> Result<Option<RunLock>, Cause> {
        Ok(RunDir::lock_around(upper.as_ref())?.map(RunLock))
    }

    /// The name of the run that it was kept of.
    pub(crate) fn kept(&self) -> Option<&ContainerId> {
        self.kept.as_ref()
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How much was written: [`TreeSize::of`]. It takes a walk, and is not done unless it is asked for.
    ///
    /// # Errors
    /// As [`TreeSize::of`].
    pub fn measure(&self) -> layer::Result<TreeSize> {
        TreeSize::of(&self.path)
    }

    /// Leaves it in the scratch directory, as `upper` in a directory of its own that no [sweep](crate::sweep) takes away, and
    /// returns its path there.
    #[must_use = "nobody else knows where the upper is"]
    pub fn keep(mut self) -> PathBuf {
        if let Err(cause) = self.make_kept() {
            log::error!("{} is kept, but a sweep would remove it: {}", quoted(&self.path), chain(&cause));
        }
        self.run = None;
        std::mem::take(&mut self.path)
    }

    /// The same upper, kept from now on: dropped, it stays.
    pub(crate) fn into_kept(mut self) -> Result<Self, Cause> {
        match self.make_kept() {
            Ok(()) => Ok(self),
            Err(cause) => {
                // It is worth more than a tidy directory.
                self.leave();
                Err(cause)
            }
        }
    }

    fn make_kept(&mut self) -> Result<(), Cause> {
        if self.kept.is_none() {
            let run = self.run.as_mut().expect("an upper has a directory until it is given away");
            self.kept = Some(run.keep()?);
            self.path = run.path().join("upper");
            // From now on the directory's name holds the layers.
            self.hold.take().into_iter().for_each(Hold::keep);
        }
        Ok(())
    }

    /// Deletes what [`keep`](Self::keep) has left in `dir`, also if the upper itself is not there any more.
    ///
    /// # Errors
    /// [`Cause::NotKept`], [`Cause::InUse`]; [`Cause::Layer`] with the entry that could not be removed.
    pub fn discard(dir: impl AsRef<Path>) -> Result<(), Cause> {
        RunDir::kept(dir.as_ref())?.0.remove()
    }

    /// Moves it into a new directory beside its own, which is given back. On an error it is where it was.
    pub(crate) fn move_out(mut self) -> Result<(Self, RunDir), Box<(Self, Cause)>> {
        let parent = self.path.ancestors().nth(2).expect("an upper is in a directory of the scratch directory");
        let new = match RunDir::create(parent) {
            Ok((run, _)) => Self::new(run),
            Err(cause) => return Err(Box::new((self, cause))),
        };
        match std::fs::rename(&self.path, &new.path) {
            Ok(()) => {
                let new = new.over(self.hold.take(), self.xattrs);
                new.hold_for_kept();
                Ok((new, self.run.take().expect("an upper has a directory until it is given away")))
            }
            Err(error) => {
                let cause = io_cause("move", self.path.clone())(error);
                // Nothing is in it.
                drop(new);
                Err(Box::new((self, cause)))
            }
        }
    }

    /// Leaves it for a sweep.
    pub(crate) fn leave(mut self) {
        self.run = None;
    }

    /// Keeps the layers held if this is [kept](Self::keep) later. It needs no room on the disk.
    pub(crate) fn hold_for_kept(&self) {
        // Those of one that has been kept before are held already.
        let (Some(run), Some(hold), None) = (&self.run, &self.hold, &self.kept) else { return };
        self.report_unheld(hold.set_reason(&run.kept_path(), None));
    }

    fn report_unheld(&self, held: layer::Result<()>) {
        if let Err(error) = held {
            log::warn!("a collector may remove the layers below {}: {}", quoted(&self.path), chain(&error));
        }
    }

    /// Moves it to `destination`, which must not exist, by one rename: it is there whole or not at all.
    ///
    /// The upper may hold set-user-ID programs and device nodes. So, if other users can search every directory above
    /// `destination`, only the owner can enter the moved upper (0700). A capture gives its root the former mode again.
    ///
    /// # Errors
    /// [`PersistError`], which gives the upper back: something is at `destination`, or it is on another file system, or it lies in
    /// the run's own directory, which is removed.
    pub fn persist(self, destination: impl Into<PathBuf>) -> Result<PathBuf, Box<PersistError>> {
        self.persist_with(destination, None)
    }

    /// As [`persist`](Self::persist), with this mode and group for the root of the upper.
    ///
    /// # Errors
    /// As `persist`.
    pub fn persist_with(
        mut self,
        destination: impl Into<PathBuf>,
        access: Option<Access>,
    ) -> Result<PathBuf, Box<PersistError>> {
        let destination = destination.into();
        match self.move_to(&destination, access) {
            Ok(()) => {
                self.hold.take().into_iter().for_each(Hold::keep);
                self.gone();
                Ok(destination)
            }
            Err(source) => {
                self.hold_for_kept();
                Err(Box::new(PersistError { upper: self, destination, source }))
            }
        }
    }

    fn move_to(&self, destination: &Path, access: Option<Access>) -> io::Result<()> {
        if let Some(run) = rundir::around(destination) {
            let cause = Cause::InRunDirectory { path: destination.into(), run };
            return Err(io::Error::new(io::ErrorKind::InvalidInput, cause.to_string()));
        }
        let path = std::path::absolute(destination)?;
        if let Some(hold) = &self.hold {
            // Before it is there: killed after the rename, it holds its layers all the same.
            self.report_unheld(UpperId::of(&self.path).and_then(|id| hold.set_reason(&path, Some(id))));
        }
        // Closed before it can be reached.
        let opened = self.close_root(&path, access)?;
        rename_new(&self.path, destination).inspect_err(|_| {
            if let Some(mode) = opened {
                let _stays_closed = std::fs::set_permissions(&self.path, std::fs::Permissions::from_mode(mode));
            }
        })?;
        Ok(())
    }

    /// Closes the root to other users if they could get to `destination`, and records the mode that it had, which is returned.
    fn close_root(&self, destination: &Path, access: Option<Access>) -> io::Result<Option<u32>> {
        let access = match (access, destination.parent()) {
            (None, Some(parent)) if is_access_needed(parent)? => Access::default(),
            (Some(access), _) => access,
            _ => return Ok(None),
        };
        let mode = std::fs::symlink_metadata(&self.path)?.permissions().mode() & 0o7777;
        let mut record = match RunRecord::read(&self.path, self.xattrs) {
            Ok(record) => record.unwrap_or_default(),
            Err(error) => return Err(io::Error::other(chain(&error))),
        };
        record.root_mode.get_or_insert(mode);
        let closed = record.write(&self.path, self.xattrs).and_then(|()| access.set(&self.path));
        closed.map_err(|error| io::Error::other(chain(&error)))?;
        Ok(Some(mode))
    }

    /// Makes it a layer: [`Capture::into_layer`], with what [`Report::capture`](crate::Report::capture) knows of the run.
    ///
    /// ```no_run
    /// # fn example(report: runner::Report) -> Result<(), Box<dyn std::error::Error>> {
    /// let (capture, meta) = (report.capture(), report.meta());
    /// let captured = report.upper.capture(&capture, &layer::Layer::at("/var/cache/layers/new"), meta)?;
    /// println!("{} bytes", captured.size.bytes);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`CaptureError`], which gives the upper back.
    pub fn capture(mut self, capture: &Capture<'_>, layer: &Layer, meta: Meta) -> Result<Captured, Box<CaptureError>> {
        let captured = match rundir::around(layer.path()) {
            // It is removed with all that is in it.
            Some(run) => Err(layer::Error::LayerInsideTree { layer: layer.path().into(), tree: run }),
            None => capture.into_layer(&self.path, layer, meta),
        };
        match captured {
            Ok(captured) => {
                self.gone();
                Ok(captured)
            }
            Err(source) => Err(Box::new(CaptureError { upper: self, layer: layer.path().into(), source })),
        }
    }

    /// Removes the directory that it was moved out of.
    fn gone(&mut self) {
        let run = self.run.take().expect("an upper has a directory until it is given away");
        let dir = run.path().to_path_buf();
        if let Err(cause) = run.remove() {
            log::warn!("{} is left: {}", quoted(&dir), chain(&cause));
        }
    }

    /// Deletes it and says what dropping could not.
    ///
    /// # Errors
    /// [`Cause::Layer`] with the entry that could not be removed; the rest of it is left.
    pub fn close(mut self) -> Result<(), Cause> {
        self.run.take().map_or(Ok(()), RunDir::remove)
    }
}

impl Drop for Upper {
    fn drop(&mut self) {
        let Some(run) = self.run.take().filter(|_| self.kept.is_none()) else { return };
        let path = run.path().to_path_buf();
        if let Err(cause) = run.remove() {
            log::error!("{} is left: {}", quoted(&path), chain(&cause));
        }
    }
}

/// The lock on the directory of a run: see [`Upper::lock_run_of`].
#[derive(Debug)]
#[must_use = "dropped, the directory is unlocked"]
pub struct RunLock(#[expect(dead_code, reason = "it is held, not used")] RunDir);

fn rename_new(from: &Path, to: &Path) -> rustix::io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // A file system without RENAME_NOREPLACE. A rename never replaces a directory that holds something.
        Err(Errno::INVAL | Errno::NOSYS) => match to.symlink_metadata() {
            Ok(_) => Err(Errno::EXIST),
            Err(_) => rustix::fs::rename(from, to),
        },
        result => result,
    }
}

/// Whether a tree in `parent` has to be closed. The error is the kernel's answer.
fn is_access_needed(parent: &Path) -> io::Result<bool> {
    Access::is_needed_in(parent).map_err(|error| match error {
        layer::Error::Io { source, .. } => source,
        error => io::Error::other(chain(&error)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn upper(parent: &Path) -> Upper {
        let upper = Upper::new(RunDir::create(parent).unwrap().0);
        fs::create_dir_all(upper.path().join("dir")).unwrap();
        upper
    }

    #[test]
    fn it_is_deleted_unless_it_is_kept_or_moved() {
        let dir = tempfile::tempdir().unwrap();
        drop(upper(dir.path()));
        upper(dir.path()).close().unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);

        let moved = upper(dir.path()).persist(dir.path().join("moved")).unwrap();
        assert!(moved.join("dir").is_dir());
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);

        let kept = upper(dir.path()).keep();
        assert!(kept.join("dir").is_dir());
    }

    #[test]
    fn a_failed_move_gives_it_back() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("taken")).unwrap();
        let error = upper(dir.path()).persist(dir.path().join("taken")).unwrap_err();
        assert!(error.to_string().contains("something is there already"), "{error}");
        let moved = error.upper.persist(dir.path().join("free")).unwrap();
        assert!(moved.join("dir").is_dir());
    }
}
