//! Finds and removes the directories that killed runs have left.
//!
//! The names and the locks that tell dead runs from live ones are in `rundir`.

use std::path::{Path, PathBuf};

use container::Cgroup;
use layer::json_path;
use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, openat, statat};
use serde::{Serialize, Serializer};
use serde_json::json;

use crate::error::{chain, io_error};
use crate::rundir::{PREFIX, RunDir, is_directory, is_name, may_be_own, scratch_dir};
use crate::{Error, Result, skeleton};

/// The result of a [`sweep`].
///
/// As JSON:
/// `{"removed":[PATH…],"skeletons":[PATH…],"live":N,"failed":[{"path":PATH,"message":TEXT}…]}`. A
/// path is a string, or an array of its bytes if it is not UTF-8.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Swept {
    /// The directories of dead runs that were removed, with their cgroups.
    pub removed: Vec<PathBuf>,
    /// The [skeletons](layer::Skeleton) that were removed. The next run that needs one makes it
    /// again.
    pub skeletons: Vec<PathBuf>,
    /// The number of runs that are in progress, or whose upper a value in this or another process
    /// still owns.
    pub live: usize,
    /// The directories that could not be removed, with the reasons. They are left.
    pub failed: Vec<(PathBuf, Error)>,
}

impl Serialize for Swept {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let paths = |paths: &[PathBuf]| paths.iter().map(json_path::to_value).collect::<Vec<_>>();
        let (removed, skeletons) = (paths(&self.removed), paths(&self.skeletons));
        let failed = self.failed.iter();
        let failed = failed.map(|(path, error)| json!({"path": json_path::to_value(path), "message": chain(error)}));
        json!({"removed": removed, "skeletons": skeletons, "live": self.live, "failed": failed.collect::<Vec<_>>()})
            .serialize(serializer)
    }
}

/// Removes what dead runs have left in the directory `scratch`: runs whose process was killed
/// before it could clean up.
///
/// The container of a killed run has died with it, and its mount was never visible on the host.
/// Only its directory and empty cgroups are left. If a process is still in one of these cgroups, a
/// sweep kills it.
///
/// Also removes the [skeletons](layer::Skeleton) that runs over layers of somebody else have left
/// for later runs, unless a run uses them at the moment.
///
/// A sweep does not touch:
/// - live runs, of any process,
/// - uppers that were [kept](crate::Upper::keep),
/// - anything that is not a run or a skeleton of this user.
///
/// Later runs work without a sweep. Sweeps only free disk space.
///
/// # Errors
/// [`Cause::Io`](crate::Cause::Io) if `scratch` cannot be read. If a run or a skeleton cannot be
/// removed, the sweep adds it to [`Swept::failed`] and continues.
pub fn sweep(scratch: impl AsRef<Path>) -> Result<Swept> {
    let scratch = scratch_dir(scratch.as_ref())?;
    let mut swept = Swept::default();
    let read = |errno| io_error("read", &scratch)(errno);
    // std's `read_dir` panics if the directory cannot be closed.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = openat(CWD, &scratch, flags, Mode::empty()).map_err(io_error("open", &scratch))?;
    for entry in Dir::read_from(&dir).map_err(read)? {
        let entry = entry.map_err(read)?;
        let Some(id) = entry.file_name().to_str().ok().and_then(run_name) else { continue };
        // In /tmp, any user can create a directory with the name of a live run that is elsewhere.
        let ours = statat(&dir, id, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|found| is_directory(&found) && may_be_own(found.st_uid));
        if !ours {
            continue;
        }
        let path = scratch.join(id);
        match RunDir::lock(&path) {
            Ok(Some(run)) => match run.is_own().and_then(|is_own| is_own.then(|| remove(&run)).transpose()) {
                Ok(None) => {}
                Ok(Some(())) => swept.removed.push(path),
                Err(error) => swept.failed.push((path, error)),
            },
            Ok(None) => swept.live += 1,
            Err(error) => swept.failed.push((path, error)),
        }
    }
    skeleton::sweep(&scratch, &mut swept)?;
    Ok(swept)
}

fn remove(run: &RunDir) -> Result<()> {
    // Kill the remaining processes first: nothing may be deleted while a process may use it.
    Cgroup::new(run.id().as_str())?.remove()?;
    run.remove()
}

/// Returns `name` if it is the name of a run: the prefix, `-` and 16 hexadecimal digits.
fn run_name(name: &str) -> Option<&str> {
    Some(name).filter(|name| is_name(PREFIX, name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn dead_runs_are_removed_and_the_rest_stays() {
        let scratch = tempfile::tempdir().unwrap();
        let dead = RunDir::create(scratch.path()).unwrap();
        fs::create_dir_all(dead.path().join("upper/deep")).unwrap();
        let gone = dead.path().to_path_buf();
        drop(dead);
        let live = RunDir::create(scratch.path()).unwrap();
        let mut run = RunDir::create(scratch.path()).unwrap();
        run.keep().unwrap();
        let kept = run.path().to_path_buf();
        for name in ["layered-of-somebody-else", "other"] {
            fs::create_dir(scratch.path().join(name)).unwrap();
        }
        fs::write(scratch.path().join("layered-0123456789abcdef"), "no directory").unwrap();
        let fifo = scratch.path().join("layered-fedcba9876543210");
        rustix::fs::mknodat(CWD, fifo, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();

        let swept = sweep(scratch.path()).unwrap();
        assert_eq!((swept.removed, swept.live, swept.failed.len()), (vec![gone.clone()], 1, 0));
        assert!(!gone.exists() && live.path().exists() && kept.exists());
        assert_eq!(fs::read_dir(&scratch).unwrap().count(), 6);
    }

    #[test]
    fn a_sweep_is_written_as_json() {
        let failed = vec![("/run/b".into(), io_error("remove", "/run/b")(rustix::io::Errno::BUSY))];
        let swept = Swept { removed: vec!["/run/a".into()], skeletons: vec!["/run/s".into()], live: 2, failed };
        let expected = json!({"removed": ["/run/a"], "skeletons": ["/run/s"], "live": 2, "failed": [
            {"path": "/run/b", "message": "cannot remove /run/b: Device or resource busy (os error 16)"}
        ]});
        assert_eq!(serde_json::to_value(&swept).unwrap(), expected);
    }

    #[test]
    fn only_a_prefix_and_16_digits_are_the_name_of_a_run() {
        let table = [
            ("layered-0123456789abcdef", true),
            ("layered-0123456789abcde", false),
            ("layered-0123456789abcdeg", false),
            ("kept-0123456789abcdef", false),
            ("layered-", false),
        ];
        for (name, is_one) in table {
            assert_eq!(run_name(name).is_some(), is_one, "{name}");
        }
    }
}
