//! The skeleton of a run over layers of somebody else: whether a run needs one, and where it is
//! kept for the next run.
//!
//! `layer::Skeleton` makes it. `stack` has the layers.

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use container::UserNamespace;
use layer::display::quoted;
use layer::{LockedDir, XattrNamespace};
use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, Stat, fstat, openat, statat};
use rustix::io::Errno;

use crate::error::{chain, io_error, with_undone};
use crate::rundir::{self, RunDir, is_name};
use crate::{Result, Swept};

/// The prefix of the names of skeletons in a scratch directory.
const PREFIX: &str = "skeleton";

/// The number of skeletons that stay in a scratch directory. One of a Debian base takes 4 MiB.
const MOST_KEPT: usize = 8;

/// A skeleton that a run uses. It is locked: no other run removes or replaces it.
#[derive(Debug)]
pub(crate) struct Skeleton {
    lock: LockedDir,
    /// The directory that it was made in. It is still there if the skeleton serves only this run.
    workshop: Option<RunDir>,
}

impl Skeleton {
    /// Returns the skeleton of `trees`, topmost first, the base last. Takes the one that an earlier
    /// run has left in the directory `cache`, if it is still right, or makes a new one and leaves
    /// it there. Returns `None` if `stop` ended the work. On an error, nothing is left.
    pub(crate) fn of(
        trees: &[&Path],
        cache: &Path,
        xattrs: XattrNamespace,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<Option<Self>> {
        let kept = cache.join(name(trees));
        if let Some(skeleton) = Self::take(&kept, trees)? {
            return Ok(Some(skeleton));
        }
        // If this process is killed, a sweep removes what it has made, as that of a dead run.
        let workshop = RunDir::create(cache)?;
        match Self::make(trees, &workshop, xattrs, stop) {
            Ok(Some(lock)) => {
                let mut skeleton = Self { lock, workshop: Some(workshop) };
                match skeleton.keep(&kept) {
                    Ok(()) => remove_oldest(cache),
                    Err(error) => log::debug!("the skeleton serves only one run: {}", chain(&error)),
                }
                Ok(Some(skeleton))
            }
            ended => {
                let removed = workshop.remove();
                with_undone(ended.map(|_| None), removed, workshop.path())
            }
        }
    }

    /// Makes the skeleton in `workshop`, and locks it.
    fn make(
        trees: &[&Path],
        workshop: &RunDir,
        xattrs: XattrNamespace,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<Option<LockedDir>> {
        let made = layer::Skeleton::at(workshop.path().join(PREFIX));
        match made.make(trees, xattrs, stop) {
            Err(layer::Error::Stopped { .. }) => return Ok(None),
            made => made?,
        }
        let busy = || io_error("lock", made.path())(Errno::BUSY);
        Ok(Some(LockedDir::try_lock_shared(made.path())?.ok_or_else(busy)?))
    }

    /// Leaves the skeleton on disk, because an overlay over it may still be mounted. A sweep
    /// removes it after this process has ended.
    pub(crate) fn leave(self) {
        // The locks must last as long as the process.
        std::mem::forget(self);
    }

    /// Returns the lower directory.
    pub(crate) fn tree(&self) -> PathBuf {
        layer::Skeleton::at(self.lock.path()).tree()
    }

    /// Takes the skeleton at `path`, if it is there, is right for `trees`, and only this user can
    /// have written in it.
    fn take(path: &Path, trees: &[&Path]) -> Result<Option<Self>> {
        // In a shared directory such as /tmp, another user can make a directory with this name.
        match path.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => {}
            _ => return Ok(None),
        }
        let lock = match LockedDir::try_lock_shared(path) {
            Ok(Some(lock)) => lock,
            Ok(None) | Err(_) => return Ok(None),
        };
        // It may have been replaced before it was locked.
        let same =
            |stat: Stat| fstat(&lock).is_ok_and(|locked| (stat.st_dev, stat.st_ino) == (locked.st_dev, locked.st_ino));
        if !statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(same) {
            return Ok(None);
        }
        if !is_closed(&lock, path)? || !layer::Skeleton::at(path).is_current(trees)? {
            return Ok(None);
        }
        // The oldest ones are removed first.
        let dir = lock.as_fd().try_clone_to_owned();
        if let Err(error) = dir.and_then(|dir| File::from(dir).set_modified(SystemTime::now())) {
            log::debug!("{}: cannot record the use: {error}", quoted(path));
        }
        Ok(Some(Self { lock, workshop: None }))
    }

    /// Moves the skeleton to `path`, in place of one that is not right any more. On an error, it is
    /// where it was.
    fn keep(&mut self, path: &Path) -> Result<()> {
        remove(path)?;
        // This fails if a run uses the old one, or if another run has left its own just now.
        self.lock.rename(path)?;
        self.workshop.take().map_or(Ok(()), |workshop| workshop.remove())
    }
}

impl Drop for Skeleton {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.workshop.take().map(|workshop| workshop.remove()) {
            log::error!("the skeleton of a run is left: {}", chain(&error));
        }
    }
}

/// Returns whether the open directory `dir`, whose path is `path`, is this user's, and nobody else
/// can reach the tree in it. Other users may write in some directories of the tree.
fn is_closed(dir: impl AsFd, path: &Path) -> Result<bool> {
    let mode = Mode::from_raw_mode(fstat(&dir).map_err(io_error("look at", path))?.st_mode);
    Ok(!mode.intersects(Mode::RWXG | Mode::RWXO) && rundir::is_own(dir, path)?)
}

/// Returns the name of the skeleton of `trees` in a scratch directory. The users and groups of this
/// process decide which directories belong to others and which can be read.
fn name(trees: &[&Path]) -> String {
    let mut hasher = DefaultHasher::new();
    trees.hash(&mut hasher);
    format!("{:?}", UserNamespace::current()).hash(&mut hasher);
    let groups = rustix::process::getgroups().unwrap_or_default();
    groups.iter().map(|group| group.as_raw()).collect::<Vec<_>>().hash(&mut hasher);
    format!("{PREFIX}-{:016x}", hasher.finish())
}

/// Removes the skeletons in `scratch`, a real path, that no run uses.
pub(crate) fn sweep(scratch: &Path, swept: &mut Swept) -> Result<()> {
    for path in list(scratch)? {
        match remove(&path) {
            Ok(true) => swept.skeletons.push(path),
            Ok(false) => {}
            Err(error) => swept.failed.push((path, error)),
        }
    }
    Ok(())
}

/// Removes all but the most recently used skeletons in `cache`.
fn remove_oldest(cache: &Path) {
    let mut found = match list(cache) {
        Ok(found) => found,
        Err(error) => return log::debug!("old skeletons stay: {}", chain(&error)),
    };
    let used = |path: &PathBuf| path.symlink_metadata().and_then(|metadata| metadata.modified()).ok();
    found.sort_by_cached_key(|path| std::cmp::Reverse(used(path)));
    for path in found.into_iter().skip(MOST_KEPT) {
        if let Err(error) = remove(&path) {
            log::debug!("{} stays: {}", quoted(&path), chain(&error));
        }
    }
}

/// Returns the skeletons of this user in `scratch`.
fn list(scratch: &Path) -> Result<Vec<PathBuf>> {
    let read = |errno| io_error("read", scratch)(errno);
    let mut found = Vec::new();
    // std's `read_dir` panics if the directory cannot be closed.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = openat(CWD, scratch, flags, Mode::empty()).map_err(io_error("open", scratch))?;
    for entry in Dir::read_from(&dir).map_err(read)? {
        let entry = entry.map_err(read)?;
        let Some(name) = entry.file_name().to_str().ok().filter(|name| is_name(PREFIX, name)) else { continue };
        // In a shared directory, those of other users do not count.
        let is_own = statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|found| rundir::is_directory(&found) && rundir::may_be_own(found.st_uid));
        if is_own {
            found.push(scratch.join(name));
        }
    }
    Ok(found)
}

/// Removes the skeleton at `path`, unless a run uses it or it belongs to somebody else. Returns
/// whether it was removed.
fn remove(path: &Path) -> Result<bool> {
    let Ok(Some(mut lock)) = LockedDir::try_lock(path) else { return Ok(false) };
    if !rundir::is_own(&lock, path)? {
        return Ok(false);
    }
    // If this process is killed, a sweep removes the rest with the directory of a dead run.
    let grave = RunDir::create(path.parent().unwrap_or(Path::new("/")))?;
    if let Err(error) = lock.rename(grave.path().join(PREFIX)) {
        grave.remove()?;
        return Err(error.into());
    }
    drop(lock);
    grave.remove()?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const XATTRS: XattrNamespace = XattrNamespace::User;

    fn tree(dir: &Path, number: usize) -> PathBuf {
        let tree = dir.join("trees").join(number.to_string());
        fs::create_dir_all(tree.join("usr/bin")).unwrap();
        tree
    }

    fn of(tree: &Path, cache: &Path) -> Skeleton {
        Skeleton::of(&[tree], cache, XATTRS, &|| false).unwrap().unwrap()
    }

    fn names(cache: &Path) -> Vec<PathBuf> {
        let mut names: Vec<_> = fs::read_dir(cache).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_most_recently_used_skeletons_stay_until_a_sweep() {
        let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let cache = cache.path();
        let in_use = of(&tree(dir.path(), 0), cache);
        let others: Vec<_> =
            (1..MOST_KEPT).map(|number| of(&tree(dir.path(), number), cache).lock.path().to_owned()).collect();
        let age = |path: &Path, seconds| {
            let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            File::open(path).unwrap().set_modified(time).unwrap();
        };
        (5..).zip(&others).for_each(|(seconds, path)| age(path, seconds));
        age(in_use.lock.path(), 1);
        // A use makes it young again.
        drop(of(&tree(dir.path(), 1), cache));
        // With one more, the second oldest is removed: a run uses the oldest.
        let newest = of(&tree(dir.path(), MOST_KEPT), cache);
        let mut expected = [&others[..], &[in_use.lock.path().into(), newest.lock.path().into()]].concat();
        expected.sort();
        assert_eq!(names(cache), expected, "a skeleton in use is spared");
        drop(in_use);
        drop(of(&tree(dir.path(), MOST_KEPT + 1), cache));
        assert_eq!(names(cache).len(), MOST_KEPT);
        assert!(others[0].exists() && !others[1].exists());

        let mut swept = Swept::default();
        sweep(cache, &mut swept).unwrap();
        assert_eq!((swept.skeletons.len(), swept.failed.len()), (MOST_KEPT - 1, 0));
        assert_eq!(names(cache), [newest.lock.path()]);
    }

    #[test]
    fn a_skeleton_that_is_wrong_is_replaced_unless_a_run_uses_it() {
        let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (tree, cache) = (tree(dir.path(), 0), cache.path());
        let first = of(&tree, cache);
        fs::create_dir(tree.join("usr/lib")).unwrap();
        let second = of(&tree, cache);
        assert!(second.tree().join("usr/lib").is_dir() && !first.tree().join("usr/lib").exists());
        assert_ne!(first.lock.path(), second.lock.path());
        drop(second);
        assert_eq!(names(cache), [first.lock.path()]);
        drop(first);
        let third = of(&tree, cache);
        assert!(third.tree().join("usr/lib").is_dir());
        assert_eq!(names(cache), [third.lock.path()]);
    }

    #[test]
    fn a_skeleton_of_one_run_is_removed_with_it_unless_it_is_left() {
        let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (tree, cache) = (tree(dir.path(), 0), cache.path());
        let in_use = of(&tree, cache);
        let changes = |number: usize| fs::create_dir(tree.join(number.to_string())).unwrap();
        changes(1);
        drop(of(&tree, cache));
        assert_eq!(names(cache), [in_use.lock.path()]);
        changes(2);
        let left = of(&tree, cache);
        let (path, kept) = (left.tree(), in_use.lock.path().to_path_buf());
        left.leave();
        in_use.leave();
        // An overlay over either may be mounted for as long as this process lives.
        let swept = crate::sweep(cache).unwrap();
        assert_eq!((swept.removed.len(), swept.skeletons.len(), swept.live, swept.failed.len()), (0, 0, 1, 0));
        assert!(path.join("2").is_dir() && kept.is_dir());
    }

    #[test]
    fn a_skeleton_that_was_not_finished_leaves_nothing() {
        let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let tree = tree(dir.path(), 0);
        assert!(Skeleton::of(&[&tree], cache.path(), XATTRS, &|| true).unwrap().is_none());
        let error = Skeleton::of(&[&tree, &dir.path().join("missing")], cache.path(), XATTRS, &|| false).unwrap_err();
        assert!(error.to_string().contains("missing"), "{error}");
        assert_eq!(names(cache.path()), Vec::<PathBuf>::new());
    }
}
