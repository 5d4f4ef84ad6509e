use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use container::advanced::id_of_earlier_run;
use container::{Cgroup, ContainerId};
use layer::display::quoted;
use rustix::fs::{CWD, Dir, FlockOperation, Mode, OFlags, flock, openat};
use rustix::io::Errno;

use crate::error::{Cause, io_cause};

/// What the names of runs begin with, and of what is kept of them.
pub(crate) const PREFIX: &str = "layered";
const KEPT: &str = "kept";

/// The directory of one run, mode 0700, named after it, and locked: the lock, flock(2), goes when its owner does, however that
/// happens, and a sweep takes only what nobody has locked.
#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    lock: File,
}

impl RunDir {
    /// Makes one in `parent`, which is a [real path](scratch_dir), for a new run, whose name it returns. On an error nothing is left.
    pub(crate) fn create(parent: &Path) -> Result<(Self, ContainerId), Cause> {
        loop {
            let id = ContainerId::random(PREFIX)?;
            let path = parent.join(id.as_str());
            DirBuilder::new().mode(0o700).create(&path).map_err(io_cause("make the directory", &path))?;
            match Self::lock(&path) {
                Ok(Some(run)) => return Ok((run, id)),
                // A sweep may have been quicker: then there is another name.
                Ok(None) => {}
                Err(cause) => {
                    if let Err(error) = fs::remove_dir(&path) {
                        log::error!("{} is left: cannot remove it: {error}", quoted(&path));
                    }
                    return Err(cause);
                }
            }
        }
    }

    /// Takes over the directory of a run whose owner has gone; `None` if it has not, or the directory has.
    pub(crate) fn lock(path: &Path) -> Result<Option<Self>, Cause> {
        // In a scratch directory that others may write to, a FIFO or a link may have that name.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let lock = match openat(CWD, path, flags, Mode::empty()) {
            Ok(lock) => File::from(lock),
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(io_cause("open", path)(errno)),
        };
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(io_cause("lock", path)(error)),
        }
        // Whoever had the lock before may have removed the directory under it.
        let metadata = lock.metadata().map_err(io_cause("look at", path))?;
        Ok((metadata.nlink() > 0).then(|| Self { path: path.into(), lock }))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the directory with all that is in it, which is locked until it is gone.
    pub(crate) fn remove(self) -> Result<(), Cause> {
        Ok(layer::remove_tree(&self.path)?)
    }

    /// Where it is once it is [kept](Self::keep), whether it has that name already or not.
    pub(crate) fn kept_path(&self) -> PathBuf {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.path.with_file_name(name.replacen(PREFIX, KEPT, 1))
    }

    /// Locks the directory of the run whose upper is at `upper`; `None` if the path is not that of a run's upper.
    ///
    /// # Errors
    /// [`Cause::InUse`] if another process has it locked, [`Cause::RunDirectory`] if `upper` is or holds the directory of a run, or is
    /// another part of one.
    pub(crate) fn lock_around(upper: &Path) -> Result<Option<Self>, Cause> {
        let not_an_upper = || Cause::RunDirectory { path: upper.into() };
        let Some(dir) = around(upper) else {
            return if holds_runs(upper)? { Err(not_an_upper()) } else { Ok(None) };
        };
        let run = Self::lock(&dir)?.ok_or_else(|| Cause::InUse { path: dir.clone() })?;
        match real(upper) == dir.join("upper") {
            true => Ok(Some(run)),
            false => Err(not_an_upper()),
        }
    }

    /// The directory at `path` that was [kept](Self::keep) of an earlier run, and that run's name.
    pub(crate) fn kept(path: &Path) -> Result<(Self, ContainerId), Cause> {
        let not_kept = || Cause::NotKept { path: path.into() };
        let path = fs::canonicalize(path).map_err(|_| not_kept())?;
        let name = path.file_name().and_then(OsStr::to_str).filter(|name| is_name(KEPT, name)).ok_or_else(not_kept)?;
        if !path.is_dir() {
            return Err(not_kept());
        }
        let id = id_of_earlier_run(name.replacen(KEPT, PREFIX, 1)).ok_or_else(not_kept)?;
        let run = Self::lock(&path)?.ok_or_else(|| Cause::InUse { path: path.clone() })?;
        // In /tmp anybody can have made it, with a stack and a container of their choice.
        let owner = run.lock.metadata().map_err(io_cause("look at", &path))?.uid();
        if owner != rustix::process::geteuid().as_raw() {
            return Err(not_kept());
        }
        // Should anything of a visit that was killed live, it ends now.
        Cgroup::new(id.as_str())?.remove()?;
        Ok((run, id))
    }

    /// Gives the directory a name that is none of a run's, and is still locked. Returns that run's name.
    pub(crate) fn keep(&mut self) -> Result<ContainerId, Cause> {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let kept = self.kept_path();
        fs::rename(&self.path, &kept).map_err(io_cause("rename", &self.path))?;
        self.path = kept;
        Ok(id_of_earlier_run(name).expect("it was a run's"))
    }
}

impl Drop for RunDir {
    /// A child that is just being started has the descriptor too, for a moment. Failing this, closing does.
    fn drop(&mut self) {
        if let Err(error) = flock(&self.lock, FlockOperation::Unlock) {
            log::debug!("cannot unlock {}: {error}", quoted(&self.path));
        }
    }
}

/// Whether the last name of `path`, which may be a link, is that of a kept run.
pub(crate) fn is_kept_name(path: &Path) -> bool {
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.into());
    real.file_name().and_then(OsStr::to_str).is_some_and(|name| is_name(KEPT, name))
}

/// The directory of the run that `path` is or lies in: of one that goes on, was killed or was kept.
pub(crate) fn around(path: &Path) -> Option<PathBuf> {
    real(path).ancestors().find(|dir| dir.file_name().is_some_and(is_run_name)).map(Path::to_path_buf)
}

fn is_run_name(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| is_name(PREFIX, name) || is_name(KEPT, name))
}

/// Whether the directory `dir` is a scratch directory: whether it has the directory of a run.
fn holds_runs(dir: &Path) -> Result<bool, Cause> {
    let read = |errno| io_cause("read", dir)(errno);
    let opened = match openat(CWD, dir, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(opened) => opened,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(false),
        Err(errno) => return Err(read(errno)),
    };
    for entry in Dir::new(opened).map_err(read)? {
        let entry = entry.map_err(read)?;
        if is_run_name(OsStr::from_bytes(entry.file_name().to_bytes())) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// `path` as an absolute one, without symbolic links as far as it exists.
fn real(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.into());
    let found = path.ancestors().find_map(|above| Some((above, fs::canonicalize(above).ok()?)));
    match found {
        // Joined, an empty path would leave a slash.
        Some((above, real)) if above == path => real,
        Some((above, real)) => path.strip_prefix(above).map_or(path.clone(), |rest| real.join(rest)),
        None => path,
    }
}

/// Whether `name` is the prefix and 16 hexadecimal digits.
pub(crate) fn is_name(prefix: &str, name: &str) -> bool {
    let digits = name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('-'));
    digits.is_some_and(|digits| digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// A scratch directory by its real path: runtimes refuse a root file system that is reached by a symbolic link.
pub(crate) fn scratch_dir(path: &Path) -> Result<PathBuf, Cause> {
    fs::canonicalize(path).map_err(io_cause("find the scratch directory", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_has_it() {
        let parent = tempfile::tempdir().unwrap();
        let (run, id) = RunDir::create(parent.path()).unwrap();
        let path = parent.path().join(id.as_str());
        assert_eq!(run.path(), path);
        assert!(RunDir::lock(&path).unwrap().is_none());
        drop(run);
        let taken = RunDir::lock(&path).unwrap().unwrap();
        fs::remove_dir(taken.path()).unwrap();
        drop(taken);
        assert!(RunDir::lock(&path).unwrap().is_none());
    }

    #[test]
    fn only_a_directory_is_locked() {
        let parent = tempfile::tempdir().unwrap();
        let (run, id) = RunDir::create(parent.path()).unwrap();
        for name in ["fifo", "file", "link", "kept-0123456789abcdef"] {
            let path = parent.path().join(name);
            match name {
                "file" => fs::write(&path, "").unwrap(),
                "link" => std::os::unix::fs::symlink(id.as_str(), &path).unwrap(),
                _ => rustix::fs::mknodat(CWD, &path, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap(),
            }
            assert!(matches!(RunDir::lock(&path), Err(Cause::Io { operation: "open", .. })), "{name}");
            assert!(matches!(RunDir::kept(&path), Err(Cause::NotKept { .. })), "{name}");
        }
        assert!(run.path().is_dir());
    }

    #[test]
    fn what_is_kept_has_another_name() {
        let parent = tempfile::tempdir().unwrap();
        let (mut run, id) = RunDir::create(parent.path()).unwrap();
        assert_eq!(run.keep().unwrap(), id);
        let kept = run.path().to_path_buf();
        drop(run);
        assert_eq!(kept, parent.path().join(id.as_str().replace("layered-", "kept-")));
        assert!(kept.is_dir());
        let (again, name) = RunDir::kept(&kept).unwrap();
        assert_eq!((again.path(), name), (&*kept, id));
        assert!(matches!(RunDir::kept(&kept), Err(Cause::InUse { path }) if path == kept));
        for other in [parent.path(), &parent.path().join("missing"), &kept.join("upper")] {
            assert!(!is_kept_name(other));
            assert!(matches!(RunDir::kept(other), Err(Cause::NotKept { path }) if path == other));
        }
    }
}
