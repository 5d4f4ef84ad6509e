use std::path::{Path, PathBuf};

use container::Cgroup;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, openat, statat};

use crate::error::{Cause, io_cause};
use crate::rundir::{PREFIX, RunDir, is_name, scratch_dir};

/// What a [`sweep`] has found.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Swept {
    /// The directories of dead runs that are gone now, with their cgroups.
    pub removed: Vec<PathBuf>,
    /// Runs that are under way, or whose result somebody still has.
    pub live: usize,
    /// What could not be removed, and why: it is left.
    pub failed: Vec<(PathBuf, Cause)>,
}

/// Removes what dead runs have left in the directory `scratch`: those whose process was killed before it could tidy up.
///
/// A killed run's container has died with it, and its mount was never on the host; what is left are its directory and empty
/// cgroups. Should anything live in these, it is killed. Live runs, of whatever process, are left alone, and so is everything
/// that no run of this user has made, or that was [kept](crate::Upper::keep). No run needs this: it is for disks that are not to fill up.
///
/// # Errors
/// [`Cause::Io`] if `scratch` cannot be read. What fails for one run is told in [`Swept::failed`], and does not keep the others.
pub fn sweep(scratch: impl AsRef<Path>) -> Result<Swept, Cause> {
    let scratch = scratch_dir(scratch.as_ref())?;
    let mut swept = Swept::default();
    let read = |errno| io_cause("read", &scratch)(errno);
    // std's `read_dir` panics where the directory cannot be closed.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = openat(CWD, &scratch, flags, Mode::empty()).map_err(io_cause("open", &scratch))?;
    for entry in Dir::read_from(&dir).map_err(read)? {
        let entry = entry.map_err(read)?;
        let Some(id) = entry.file_name().to_str().ok().and_then(run_name) else { continue };
        // Where others may write, /tmp above all, anybody can make a directory of a live run's name, which lies elsewhere.
        let ours = statat(&dir, id, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|found| is_directory(&found) && found.st_uid == rustix::process::geteuid().as_raw());
        if !ours {
            continue;
        }
        let path = scratch.join(id);
        match RunDir::lock(&path) {
            Ok(Some(run)) => match remove(id, run) {
                Ok(()) => swept.removed.push(path),
                Err(cause) => swept.failed.push((path, cause)),
            },
            Ok(None) => swept.live += 1,
            Err(cause) => swept.failed.push((path, cause)),
        }
    }
    Ok(swept)
}

fn remove(id: &str, run: RunDir) -> Result<(), Cause> {
    // First the processes, if there are any: nothing is deleted while somebody may be using it.
    Cgroup::new(id)?.remove()?;
    run.remove()
}

fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// The name of a run, if it is one: the prefix and 16 hexadecimal digits.
fn run_name(name: &str) -> Option<&str> {
    Some(name).filter(|name| is_name(PREFIX, name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn dead_runs_go_and_the_rest_stays() {
        let scratch = tempfile::tempdir().unwrap();
        let (dead, _) = RunDir::create(scratch.path()).unwrap();
        fs::create_dir_all(dead.path().join("upper/deep")).unwrap();
        let gone = dead.path().to_path_buf();
        drop(dead);
        let (live, _) = RunDir::create(scratch.path()).unwrap();
        let (mut run, _) = RunDir::create(scratch.path()).unwrap();
        run.keep().unwrap();
        let kept = run.path().to_path_buf();
        for name in ["layered-of-somebody-else", "other"] {
            fs::create_dir(scratch.path().join(name)).unwrap();
        }
        fs::write(scratch.path().join("layered-0123456789abcdef"), "no directory").unwrap();
        let fifo = scratch.path().join("layered-fedcba9876543210");
        rustix::fs::mknodat(CWD, fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();

        let swept = sweep(scratch.path()).unwrap();
        assert_eq!((swept.removed, swept.live, swept.failed.len()), (vec![gone.clone()], 1, 0));
        assert!(!gone.exists() && live.path().exists() && kept.exists());
        assert_eq!(fs::read_dir(&scratch).unwrap().count(), 6);
    }

    #[test]
    fn names_of_runs() {
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
