//! The upper directory of a run, as an owned value: how the caller keeps, moves or captures it, and
//! what happens to the directory when the value is dropped.
//!
//! `rundir` has the directory that contains the upper, and the lock on it.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::{fmt, io};

use layer::display::quoted;
use layer::{Access, Capture, Captured, Draft, Hold, Layer, Meta, RunRecord, TreeSize, UpperId, XattrNamespace};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::Result;
use crate::error::{Cause, chain, io_error};
use crate::rundir::{self, RunDir};
use crate::xattrs::xattrs_of_process;

/// The upper directory of a command's overlay, with everything that the command wrote.
///
/// The upper is in the run's own directory, which only the user of the run can enter. Dropping this
/// value deletes the upper. [`keep`](Self::keep) leaves it where it is, [`persist`](Self::persist)
/// moves it, and [`capture`](Self::capture) makes it a layer. A kept upper can be [opened
/// again](Self::reopen); dropping it then does not delete it.
///
/// The upper is as the kernel left it, with whiteouts for deleted files and with overlay xattrs. It
/// has not been synced: do not trust it after a power failure.
///
/// No collector removes the layers below the upper while this value exists. After `keep` and
/// `persist`, no collector removes these layers while the upper is where the method left it.
#[derive(Debug)]
#[must_use = "the upper is deleted when this value is dropped"]
pub struct Upper {
    run: RunDir,
    path: PathBuf,
    fate: Fate,
    /// The hold on the layers below. Keeping the upper ends it, because the path of the kept
    /// directory then holds them.
    hold: Option<Hold>,
    xattrs: XattrNamespace,
}

/// The effect of dropping an upper on its directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Delete,
    Keep,
}

/// An upper that could not be moved. It still exists: [`upper`](Self::upper) can be moved again.
#[derive(thiserror::Error)]
#[error("cannot move the upper {} to {}{}", quoted(upper.path()), quoted(destination), advice(source))]
pub struct PersistError {
    /// The upper, unchanged.
    pub upper: Upper,
    /// The destination.
    pub destination: PathBuf,
    /// The reason.
    pub source: io::Error,
}

/// An upper that could not be captured. It still exists: [`upper`](Self::upper) can be captured
/// again.
#[derive(thiserror::Error)]
#[error("cannot capture the upper as {}", quoted(layer))]
pub struct CaptureError {
    /// The upper. It is where it was, unless the source says otherwise.
    pub upper: Upper,
    /// The directory of the layer.
    pub layer: PathBuf,
    /// The reason.
    pub source: layer::Error,
}

impl fmt::Debug for PersistError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&chain(self))
    }
}

impl fmt::Debug for CaptureError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&chain(self))
    }
}

fn advice(source: &io::Error) -> &'static str {
    match Errno::from_io_error(source) {
        Some(Errno::XDEV) => ": it is on another file system; choose a scratch directory beside the destination",
        Some(Errno::EXIST | Errno::NOTEMPTY) => ": something is there already; choose another destination",
        _ => "",
    }
}

impl Upper {
    /// Creates the value for the upper in the directory of a run.
    pub(crate) fn new(run: RunDir) -> Self {
        let path = run.path().join("upper");
        Self { run, path, fate: Fate::Delete, hold: None, xattrs: xattrs_of_process() }
    }

    /// Sets the hold on the layers below the upper, and the namespace of its overlay xattrs. If the
    /// upper is [kept](Self::keep) later, its layers stay held. That needs no room on the disk.
    pub(crate) fn over(mut self, hold: Option<Hold>, xattrs: XattrNamespace) -> Self {
        (self.hold, self.xattrs) = (hold, xattrs);
        self.hold_for_kept();
        self
    }

    /// Opens the upper in `dir`, the directory that [`keep`](Self::keep) left it in. The caller can
    /// inspect it, [run over it](crate::Options::over), capture it, move it or
    /// [delete](Self::close) it. Only one process at a time can have it open. Dropping it leaves it
    /// where it is.
    ///
    /// Only the name, the owner and the lock of a directory decide whether it is a kept run, not
    /// its contents. The upper itself may be missing if a capture was killed after it had moved the
    /// upper. That [`capture`](Self::capture) can be repeated.
    ///
    /// # Errors
    /// [`Cause::NotKept`], [`Cause::InUse`].
    pub fn reopen(dir: impl AsRef<Path>) -> Result<Self> {
        let mut upper = Self::new(RunDir::kept(dir.as_ref())?);
        upper.fate = Fate::Keep;
        Ok(upper)
    }

    /// Returns whether `dir` has the name of a kept run. Only such a directory can be [opened
    /// again](Self::reopen).
    pub fn is_kept_name(dir: impl AsRef<Path>) -> bool {
        rundir::is_kept_name(dir.as_ref())
    }

    /// Fails if `destination` lies in the directory of a run, which is removed as a whole.
    ///
    /// # Errors
    /// [`Cause::InRunDirectory`].
    pub fn refuse_destination(destination: impl AsRef<Path>) -> Result<()> {
        let path = destination.as_ref();
        rundir::around(path).map_or(Ok(()), |run| Err(Cause::InRunDirectory { path: path.into(), run }.into()))
    }

    /// Locks the directory of the run that `upper` belongs to. Returns `None` if `upper` is not the
    /// path of a run's upper. While the lock exists, neither that run nor a sweep touches the
    /// directory.
    ///
    /// # Errors
    /// [`Cause::InUse`] if the run has not ended yet, or if another process uses its upper.
    /// [`Cause::RunDirectory`] if `upper` is the directory of a run or contains one.
    pub fn lock_run_of(upper: impl AsRef<Path>) -> Result<Option<RunLock>> {
        Ok(RunDir::lock_around(upper.as_ref())?.map(RunLock))
    }

    /// Returns the directory of the upper's run.
    pub(crate) fn run_dir(&self) -> &RunDir {
        &self.run
    }

    /// Returns whether dropping this value leaves the upper on disk.
    pub(crate) fn is_kept(&self) -> bool {
        self.fate == Fate::Keep
    }

    /// Returns the path of the upper.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Measures how much the command wrote: [`TreeSize::of`]. This walks the whole upper.
    ///
    /// # Errors
    /// As [`TreeSize::of`].
    pub fn measure(&self) -> layer::Result<TreeSize> {
        TreeSize::of(&self.path)
    }

    /// Leaves the upper in the scratch directory, as `upper` in a directory that no
    /// [sweep](crate::sweep) removes. Returns the path of the upper.
    #[must_use = "the returned path is the only record of where the upper is"]
    pub fn keep(mut self) -> PathBuf {
        if let Err(error) = self.make_kept() {
            log::error!("{} is kept, but a sweep would remove it: {}", quoted(&self.path), chain(&error));
        }
        self.fate = Fate::Keep;
        std::mem::take(&mut self.path)
    }

    /// Keeps the upper: from now on, dropping the value leaves the upper on disk.
    pub(crate) fn into_kept(mut self) -> Result<Self> {
        match self.make_kept() {
            Ok(()) => Ok(self),
            Err(error) => {
                // The upper is worth more than a clean scratch directory.
                self.leave();
                Err(error)
            }
        }
    }

    fn make_kept(&mut self) -> Result<()> {
        if self.fate == Fate::Delete {
            self.run.keep()?;
            self.fate = Fate::Keep;
            self.path = self.run.path().join("upper");
            // From now on, the path of the kept directory holds the layers.
            self.hold.take().into_iter().for_each(Hold::keep);
        }
        Ok(())
    }

    /// Deletes `dir`, the directory that [`keep`](Self::keep) left, even if the upper is missing
    /// there.
    ///
    /// # Errors
    /// [`Cause::NotKept`], [`Cause::InUse`]; [`Cause::Layer`] with the entry that could not be
    /// removed.
    pub fn discard(dir: impl AsRef<Path>) -> Result<()> {
        RunDir::kept(dir.as_ref())?.remove()
    }

    /// Moves the upper into a new directory beside its own. Returns the old directory, which
    /// contains the rest of the run. On an error, the upper is where it was.
    pub(crate) fn move_out(&mut self) -> Result<RunDir> {
        let parent = self.run.path().parent().unwrap_or(Path::new("/"));
        let new = RunDir::create(parent)?;
        let path = new.path().join("upper");
        if let Err(error) = std::fs::rename(&self.path, &path) {
            if let Err(error) = new.remove() {
                log::error!("{} is left: {}", quoted(new.path()), chain(&error));
            }
            return Err(io_error("move", &self.path)(error));
        }
        self.path = path;
        let rest = std::mem::replace(&mut self.run, new);
        self.hold_for_kept();
        Ok(rest)
    }

    /// Drops the value without deleting the directory. A sweep removes the directory later, unless
    /// it is kept.
    pub(crate) fn leave(mut self) {
        self.fate = Fate::Keep;
    }

    fn hold_for_kept(&self) {
        // The path of a directory that is kept already holds the layers.
        let (Some(hold), Fate::Delete) = (&self.hold, self.fate) else { return };
        self.report_unheld(hold.set_reason(&self.run.kept_path(), None));
    }

    fn report_unheld(&self, held: layer::Result<()>) {
        if let Err(error) = held {
            log::warn!("a collector may remove the layers below {}: {}", quoted(&self.path), chain(&error));
        }
    }

    /// Moves the upper to `destination`, which must not exist, by one rename: `destination` then
    /// contains the whole upper or does not exist.
    ///
    /// The upper may contain set-user-ID programs and device nodes. Therefore, if other users can
    /// search every directory above `destination`, only the owner can enter the moved upper (0700).
    /// A capture restores the former mode of its root.
    ///
    /// # Errors
    /// [`PersistError`], which gives the upper back, if `destination` exists, is on another file
    /// system, or lies in the directory of a run, which is removed as a whole.
    pub fn persist(self, destination: impl Into<PathBuf>) -> Result<PathBuf, Box<PersistError>> {
        self.persist_with(destination, None)
    }

    /// Moves the upper as [`persist`](Self::persist) does, and gives its root the mode and group of
    /// `access`. `None` does the same as `persist`.
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
            // Do this before the rename: the layers then stay held even if the process is killed
            // right after the rename.
            self.report_unheld(UpperId::of(&self.path).and_then(|id| hold.set_reason(&path, Some(id))));
        }
        // Close the root before other users can reach it.
        let opened = self.close_root(&path, access)?;
        rename_new(&self.path, destination).inspect_err(|_| {
            if let Some(mode) = opened {
                let _stays_closed = std::fs::set_permissions(&self.path, std::fs::Permissions::from_mode(mode));
            }
        })?;
        Ok(())
    }

    /// Gives the root the mode and group of `access`, or closes it to other users if they could
    /// reach `destination`. Records the former mode on the upper and returns it. Returns `None` if
    /// nothing had to be changed.
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

    /// Turns the upper into a layer: [`Capture::into_layer`].
    /// [`Report::capture`](crate::Report::capture) returns a `capture` that knows the run.
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
    pub fn capture(self, capture: &Capture<'_>, layer: &Layer, meta: Meta) -> Result<Captured, Box<CaptureError>> {
        let captured = match rundir::around(layer.path()) {
            // The directory of a run is removed with everything in it.
            Some(run) => Err(layer::Error::LayerInsideTree { layer: layer.path().into(), tree: run }),
            None => self.held(capture).into_layer(&self.path, layer, meta),
        };
        self.captured(captured, layer.path())
    }

    /// Makes the upper the layer `name` of the store of `draft`: [`Capture::publish`].
    /// [`Report::publish`](crate::Report::publish) makes draft and capture itself.
    ///
    /// # Errors
    /// [`CaptureError`], which gives the upper back. The draft is removed.
    pub fn publish(
        self,
        capture: &Capture<'_>,
        draft: Draft,
        name: impl AsRef<OsStr>,
        meta: Meta,
    ) -> Result<Captured, Box<CaptureError>> {
        let layer = draft.store().join(name.as_ref());
        let published = match rundir::around(&layer) {
            // The directory of a run is removed with everything in it.
            Some(run) => Err(layer::Error::LayerInsideTree { layer: layer.clone(), tree: run }),
            None => self.held(capture).publish(&self.path, draft, name, meta),
        };
        self.captured(published, &layer)
    }

    /// Returns the same capture, which relies on the hold on the layers below the upper.
    fn held<'a>(&'a self, capture: &Capture<'a>) -> Capture<'a> {
        match &self.hold {
            Some(hold) => capture.clone().held(hold),
            None => capture.clone(),
        }
    }

    fn captured(self, captured: layer::Result<Captured>, layer: &Path) -> Result<Captured, Box<CaptureError>> {
        match captured {
            Ok(captured) => {
                self.gone();
                Ok(captured)
            }
            Err(source) => Err(Box::new(CaptureError { upper: self, layer: layer.into(), source })),
        }
    }

    /// Removes the directory that the upper was moved out of.
    fn gone(mut self) {
        self.fate = Fate::Keep;
        if let Err(error) = self.run.remove() {
            log::warn!("{} is left: {}", quoted(self.run.path()), chain(&error));
        }
    }

    /// Deletes the upper, kept or not. Returns a failure, which dropping could only log.
    ///
    /// # Errors
    /// [`Cause::Layer`] with the entry that could not be removed. That entry and the rest are left.
    pub fn close(mut self) -> Result<()> {
        self.fate = Fate::Keep;
        self.run.remove()
    }
}

impl Drop for Upper {
    fn drop(&mut self) {
        if self.fate == Fate::Keep {
            return;
        }
        if let Err(error) = self.run.remove() {
            log::error!("{} is left: {}", quoted(self.run.path()), chain(&error));
        }
    }
}

/// The lock on the directory of a run: see [`Upper::lock_run_of`].
#[derive(Debug)]
#[must_use = "dropping this value unlocks the directory"]
pub struct RunLock(#[expect(dead_code, reason = "it is held, not used")] RunDir);

fn rename_new(from: &Path, to: &Path) -> rustix::io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // The file system does not support RENAME_NOREPLACE. A plain rename never replaces a
        // directory that is not empty.
        Err(Errno::INVAL | Errno::NOSYS) => match to.symlink_metadata() {
            Ok(_) => Err(Errno::EXIST),
            Err(_) => rustix::fs::rename(from, to),
        },
        result => result,
    }
}

/// Returns whether a tree in `parent` must be closed to other users. The error is the kernel's.
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
        let upper = Upper::new(RunDir::create(parent).unwrap()).over(None, XattrNamespace::User);
        fs::create_dir_all(upper.path().join("dir")).unwrap();
        upper
    }

    #[test]
    fn a_dropped_upper_is_deleted_unless_it_is_kept_or_moved() {
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
    fn a_failed_move_gives_the_upper_back() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("taken")).unwrap();
        let error = upper(dir.path()).persist(dir.path().join("taken")).unwrap_err();
        assert!(error.to_string().contains("something is there already"), "{error}");
        let moved = error.upper.persist(dir.path().join("free")).unwrap();
        assert!(moved.join("dir").is_dir());
    }
}
