//! The directory of one run on disk: its name, its lock, and who may take it over.
//!
//! `scratch` has its contents, and `upper` the owner of the upper in it.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use container::advanced::id_of_earlier_run;
use container::{Cgroup, ContainerId, UserNamespace};
use layer::LockedDir;
use layer::display::quoted;
use rustix::fd::AsFd;
use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, Stat, fstat, openat};
use rustix::io::Errno;

use crate::Result;
use crate::error::{Cause, io_error};

/// The prefix of the names of runs.
pub(crate) const PREFIX: &str = "layered";

/// The prefix of the names of kept runs.
const KEPT: &str = "kept";

/// The directory of one run, mode 0700, named after the run, and locked.
///
/// The lock is a flock(2): the kernel releases it when its owner ends, even if the owner is killed.
/// A sweep removes only directories that no process has locked.
#[derive(Debug)]
pub(crate) struct RunDir {
    dir: LockedDir,
    id: ContainerId,
}

impl RunDir {
    /// Creates the directory of a new run in `parent`, which is a [real path](scratch_dir). On an
    /// error nothing is left.
    pub(crate) fn create(parent: &Path) -> Result<Self> {
        loop {
            let id = ContainerId::random(PREFIX)?;
            let path = parent.join(id.as_str());
            DirBuilder::new().mode(0o700).create(&path).map_err(io_error("make the directory", &path))?;
            match Self::lock(&path) {
                Ok(Some(run)) => return Ok(run),
                // A sweep has removed the directory before it was locked. Try another name.
                Ok(None) => {}
                Err(error) => {
                    if let Err(error) = fs::remove_dir(&path) {
                        log::error!("{} is left: cannot remove it: {error}", quoted(&path));
                    }
                    return Err(error);
                }
            }
        }
    }

    /// Takes over the directory of a run, or of a kept run, that no process has locked. Returns
    /// `None` if another process has locked it, if it does not exist, or if its name is not that of
    /// a run.
    pub(crate) fn lock(path: &Path) -> Result<Option<Self>> {
        let Some(id) = path.file_name().and_then(run_id) else { return Ok(None) };
        Ok(LockedDir::try_lock(path)?.map(|dir| Self { dir, id }))
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Returns whether the directory belongs to this process's user. In a user namespace, an owner
    /// without a number is nobody.
    pub(crate) fn is_own(&self) -> Result<bool> {
        is_own(&self.dir, self.path())
    }

    /// Returns the name of the run, which is also the name of its container.
    pub(crate) fn id(&self) -> &ContainerId {
        &self.id
    }

    /// Removes the directory and everything in it. The directory stays locked until it is removed.
    pub(crate) fn remove(&self) -> Result<()> {
        Ok(layer::remove_tree(self.path())?)
    }

    /// Returns the path of the directory after it is [kept](Self::keep). If it is kept already,
    /// that is its present path.
    pub(crate) fn kept_path(&self) -> PathBuf {
        self.path().with_file_name(self.id.as_str().replacen(PREFIX, KEPT, 1))
    }

    /// Locks the directory of the run whose upper is at `upper`. Returns `None` if the path is not
    /// that of a run's upper.
    ///
    /// # Errors
    /// [`Cause::InUse`] if another process has locked it. [`Cause::RunDirectory`] if `upper` is the
    /// directory of a run, contains one, or is another part of one.
    pub(crate) fn lock_around(upper: &Path) -> Result<Option<Self>> {
        let not_an_upper = || Cause::RunDirectory { path: upper.into() }.into();
        let Some(dir) = around(upper) else {
            return if holds_runs(upper)? { Err(not_an_upper()) } else { Ok(None) };
        };
        let run = Self::lock(&dir)?.ok_or_else(|| Cause::InUse { path: dir.clone() })?;
        match real(upper) == dir.join("upper") {
            true => Ok(Some(run)),
            false => Err(not_an_upper()),
        }
    }

    /// Takes over the directory at `path`, in which the upper of an earlier run was
    /// [kept](Self::keep).
    pub(crate) fn kept(path: &Path) -> Result<Self> {
        let not_kept = || Cause::NotKept { path: path.into() };
        let path = fs::canonicalize(path).map_err(|_| not_kept())?;
        if !ends_in_kept_name(&path) || !path.is_dir() {
            return Err(not_kept().into());
        }
        let run = Self::lock(&path)?.ok_or_else(|| Cause::InUse { path: path.clone() })?;
        // In /tmp, any user can create such a directory, with a stack and a container of their
        // choice.
        if !run.is_own()? {
            return Err(not_kept().into());
        }
        // Kills the processes that a killed run over this upper left, if there are any.
        Cgroup::new(run.id.as_str())?.remove()?;
        Ok(run)
    }

    /// Renames the directory to its [kept path](Self::kept_path), which no sweep removes. The
    /// directory stays locked.
    pub(crate) fn keep(&mut self) -> Result<()> {
        Ok(self.dir.rename(self.kept_path())?)
    }
}

/// Returns the name of the run whose directory is called `name`, or `None` if no run's directory
/// can have that name.
fn run_id(name: &OsStr) -> Option<ContainerId> {
    let name = name.to_str()?;
    match is_name(KEPT, name) {
        true => id_of_earlier_run(name.replacen(KEPT, PREFIX, 1)),
        false => id_of_earlier_run(name).filter(|_| is_name(PREFIX, name)),
    }
}

/// Returns whether the last component of `path`, which may be a symbolic link, is the name of a
/// kept run.
pub(crate) fn is_kept_name(path: &Path) -> bool {
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.into());
    ends_in_kept_name(&real)
}

fn ends_in_kept_name(path: &Path) -> bool {
    path.file_name().and_then(OsStr::to_str).is_some_and(|name| is_name(KEPT, name))
}

/// Returns the directory of the run that `path` is or lies in, whether the run is in progress, was
/// killed or was kept.
pub(crate) fn around(path: &Path) -> Option<PathBuf> {
    real(path).ancestors().find(|dir| dir.file_name().is_some_and(is_run_name)).map(Path::to_path_buf)
}

fn is_run_name(name: &OsStr) -> bool {
    run_id(name).is_some()
}

/// Returns whether the directory of a run is an entry of `dir`. Returns `false` if `dir` is not a
/// directory.
fn holds_runs(dir: &Path) -> Result<bool> {
    let read = |errno| io_error("read", dir)(errno);
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

/// Returns the absolute path of `path`, with the symbolic links resolved in the part that exists.
fn real(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.into());
    let found = path.ancestors().find_map(|above| Some((above, fs::canonicalize(above).ok()?)));
    match found {
        // Joining an empty path would append a slash.
        Some((above, real)) if above == path => real,
        Some((above, real)) => path.strip_prefix(above).map_or(path.clone(), |rest| real.join(rest)),
        None => path,
    }
}

/// Returns whether `name` is the prefix, `-` and 16 hexadecimal digits.
pub(crate) fn is_name(prefix: &str, name: &str) -> bool {
    let digits = name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('-'));
    digits.is_some_and(|digits| digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Returns the real path of a scratch directory: runtimes refuse a root file system that is reached
/// through a symbolic link.
pub(crate) fn scratch_dir(path: &Path) -> Result<PathBuf> {
    fs::canonicalize(path).map_err(io_error("find the scratch directory", path))
}

/// Returns whether the open directory `dir`, whose path is `path`, belongs to this process's user.
pub(crate) fn is_own(dir: impl AsFd, path: &Path) -> Result<bool> {
    let owner = fstat(&dir).map_err(io_error("look at", path))?.st_uid;
    Ok(may_be_own(owner) && UserNamespace::has_owner(dir, owner))
}

pub(crate) fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// Returns whether a file of `owner` may belong to this process's user: [`is_own`] decides.
pub(crate) fn may_be_own(owner: u32) -> bool {
    owner == rustix::process::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_owner_at_a_time() {
        let parent = tempfile::tempdir().unwrap();
        let run = RunDir::create(parent.path()).unwrap();
        let path = parent.path().join(run.id().as_str());
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
        let run = RunDir::create(parent.path()).unwrap();
        for (kind, name) in [
            ("file", "layered-0123456789abcdef"),
            ("link", "layered-0123456789abcde0"),
            ("fifo", "layered-0123456789abcde1"),
            ("fifo", "kept-0123456789abcdef"),
        ] {
            let path = parent.path().join(name);
            match kind {
                "file" => fs::write(&path, "").unwrap(),
                "link" => std::os::unix::fs::symlink(run.path(), &path).unwrap(),
                _ => rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).unwrap(),
            }
            let (locked, kept) = (RunDir::lock(&path).unwrap_err(), RunDir::kept(&path).unwrap_err());
            assert!(
                matches!(locked.cause(), Cause::Layer(layer::Error::Io { operation: "open", .. })),
                "{name}: {locked}"
            );
            assert!(matches!(kept.cause(), Cause::NotKept { .. }), "{name}: {kept}");
        }
        assert!(run.path().is_dir());
    }

    #[test]
    fn a_kept_run_has_another_name() {
        let parent = tempfile::tempdir().unwrap();
        let mut run = RunDir::create(parent.path()).unwrap();
        let id = run.id().clone();
        run.keep().unwrap();
        let kept = run.path().to_path_buf();
        drop(run);
        assert_eq!(kept, parent.path().join(id.as_str().replace("layered-", "kept-")));
        assert!(kept.is_dir());
        let again = RunDir::kept(&kept).unwrap();
        assert_eq!((again.path(), again.id()), (&*kept, &id));
        let error = RunDir::kept(&kept).unwrap_err();
        assert!(matches!(error.cause(), Cause::InUse { path } if *path == kept), "{error}");
        for other in [parent.path(), &parent.path().join("missing"), &kept.join("upper")] {
            assert!(!is_kept_name(other));
            let error = RunDir::kept(other).unwrap_err();
            assert!(matches!(error.cause(), Cause::NotKept { path } if path == other), "{error}");
        }
    }
}
