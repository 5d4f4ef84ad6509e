use std::io;
use std::path::{Path, PathBuf};

use container::ContainerId;
use layer::display::quoted;
use layer::{Capture, Captured, Layer, Meta, TreeSize};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::error::{Cause, chain, io_cause};
use crate::rundir::RunDir;

/// What a command wrote: the upper directory of its overlay, owned.
///
/// It stands in the run's scratch directory, which only root can enter. Dropped, it is deleted; [`keep`](Self::keep) leaves it
/// where it is, [`persist`](Self::persist) moves it, [`capture`](Self::capture) makes it a layer. One that was kept can be
/// [opened again](Self::reopen), and is not deleted by dropping it.
///
/// It is as the kernel left it, with whiteouts for what was deleted and overlayfs's own extended attributes, and not yet
/// synced: after a power cut it is not to be trusted.
#[derive(Debug)]
#[must_use = "the upper is deleted when this value is dropped"]
pub struct Upper {
    /// The run's directory; `None` once this is disarmed.
    run: Option<RunDir>,
    path: PathBuf,
    /// The run's name, if the directory has been kept before.
    kept: Option<ContainerId>,
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
        Self { run: Some(run), path, kept: None }
    }

    /// The upper in `dir`, the directory that [`keep`](Self::keep) left it in: to be looked at, [run over](crate::Options::over),
    /// moved or [deleted](Self::close), by one at a time. Dropped, it stays.
    ///
    /// # Errors
    /// [`Cause::NotKept`], [`Cause::InUse`].
    pub fn reopen(dir: impl AsRef<Path>) -> Result<Self, Cause> {
        let dir = dir.as_ref();
        let (run, id) = RunDir::kept(dir)?;
        let path = run.path().join("upper");
        match path.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => Ok(Self { run: Some(run), path, kept: Some(id) }),
            _ => Err(Cause::NotKept { path: dir.into() }),
        }
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
            log::error!("{} is kept, but a sweep would take it: {}", quoted(&self.path), chain(&cause));
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
            Ok(()) => Ok((new, self.run.take().expect("an upper has a directory until it is given away"))),
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

    /// Moves it to `destination`, which must not exist, by one rename: it is there whole or not at all.
    ///
    /// # Errors
    /// [`PersistError`], which gives the upper back: something is at `destination`, or it is on another file system.
    pub fn persist(mut self, destination: impl Into<PathBuf>) -> Result<PathBuf, Box<PersistError>> {
        let destination = destination.into();
        if let Err(error) = rename_new(&self.path, &destination) {
            return Err(Box::new(PersistError { upper: self, destination, source: error.into() }));
        }
        self.gone();
        Ok(destination)
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
    pub fn capture(mut self, capture: &Capture, layer: &Layer, meta: Meta) -> Result<Captured, Box<CaptureError>> {
        match capture.into_layer(&self.path, layer, meta) {
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
