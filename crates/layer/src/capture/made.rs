//! Recognises and removes the files that a run, and not the command, put into an upper. `record.rs`
//! stores the list.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Stat, Timespec, Timestamps, UTIME_OMIT, fstat, futimens, openat, statat, unlinkat,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::lowers::Lowers;
use crate::display::quoted;
use crate::error::{Error, Result};
use crate::json_path;
use crate::stack::overlayfs::{self, XattrNamespace};
use crate::stack::view::Shown;
use crate::tree::attributes::{Attributes, Keep};
use crate::tree::walk::{self, PATH, READ, as_c_string, open_beneath};
use crate::tree::xattr::XattrList;

/// A file or directory that the runner put into an upper before the command began, for example a
/// mount point or `/etc/hosts`.
///
/// A capture recognises the file by its path, its inode and the time of its last change (`ctime`,
/// inode(7)), which no process can set. If the command wrote to the file, changed its mode or put
/// something into the directory, the file belongs to the command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    #[serde(with = "json_path")]
    path: PathBuf,
    inode: u64,
    /// The `ctime` in seconds and nanoseconds.
    changed: (i64, i64),
}

impl Made {
    /// Returns the files and directories at `paths` in the upper directory `upper`. The paths are
    /// absolute as in the container, or relative to its root. Skips paths where nothing exists,
    /// paths with `..`, and paths that lead through a symbolic link.
    ///
    /// Call this when the run has made all of them: making an entry in a directory changes the
    /// directory.
    ///
    /// # Errors
    /// [`Error::Io`] if a path cannot be examined.
    pub fn look(upper: impl AsRef<Path>, paths: impl IntoIterator<Item = impl Into<PathBuf>>) -> Result<Vec<Self>> {
        let upper = upper.as_ref();
        let root = openat(CWD, upper, PATH, Mode::empty()).map_err(Error::io("open", upper))?;
        let mut made = Vec::new();
        for path in paths {
            let path = path.into();
            let Some(place) = Place::of(&path) else { continue };
            let found = place.look(root.as_fd()).map_err(Error::io("look at", upper.join(&place.path)))?;
            made.extend(found.map(|stat| Self { path, inode: stat.st_ino, changed: changed(&stat) }));
        }
        Ok(made)
    }

    /// Returns the path in the container.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns whether the upper directory `upper` still has the file as the run left it. Otherwise
    /// the command has removed or changed it.
    ///
    /// # Errors
    /// [`Error::Io`] if the path cannot be examined.
    pub fn is_unchanged(&self, upper: impl AsRef<Path>) -> Result<bool> {
        let upper = upper.as_ref();
        let root = openat(CWD, upper, PATH, Mode::empty()).map_err(Error::io("open", upper))?;
        let Some(place) = Place::of(&self.path) else { return Ok(false) };
        let found = place.look(root.as_fd()).map_err(Error::io("look at", upper.join(&place.path)))?;
        Ok(found.is_some_and(|stat| self.is(&stat)))
    }

    fn is(&self, stat: &Stat) -> bool {
        (self.inode, self.changed) == (stat.st_ino, changed(stat))
    }
}

fn changed(stat: &Stat) -> (i64, i64) {
    // The types differ between architectures.
    #[allow(clippy::unnecessary_cast)]
    (stat.st_ctime as i64, stat.st_ctime_nsec as i64)
}

/// A path in an upper, other than its root.
struct Place {
    path: PathBuf,
    parent: PathBuf,
    name: CString,
}

impl Place {
    /// Splits a path. Returns `None` for a path that has `..` or no name: the run makes nothing
    /// there.
    fn of(path: &Path) -> Option<Self> {
        let mut names = PathBuf::new();
        for component in path.components() {
            match component {
                Component::Normal(name) => names.push(name),
                Component::RootDir | Component::CurDir => {}
                Component::ParentDir | Component::Prefix(_) => return None,
            }
        }
        let (parent, name) = (names.parent()?.to_path_buf(), as_c_string(names.file_name()?).ok()?);
        Some(Self { path: names, parent, name })
    }

    fn look(&self, root: BorrowedFd<'_>) -> rustix::io::Result<Option<Stat>> {
        let look = |parent: BorrowedFd<'_>| statat(parent, &self.name, AtFlags::SYMLINK_NOFOLLOW);
        let found = match self.parent.as_os_str().is_empty() {
            true => look(root),
            false => open_beneath(root, &self.parent, PATH).and_then(|parent| look(parent.as_fd())),
        };
        match found {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(errno) => Err(errno),
        }
    }
}

/// An upper, the lowers that it was made over, and the means to remove the run's files from it.
pub(super) struct TakingOut<'a> {
    pub(super) root: BorrowedFd<'a>,
    pub(super) path: &'a Path,
    pub(super) below: &'a Lowers,
    pub(super) xattrs: XattrNamespace,
}

impl TakingOut<'_> {
    /// Removes the files in `made` that the command has not changed, then the directories that the
    /// kernel copied up only to hold them. Preserves the modification times of directories. Returns
    /// the number of files that were removed, without those directories.
    pub(super) fn run(&self, made: &[Made]) -> Result<u64> {
        let mut unchanged = Vec::new();
        // Look at all files before removing the first: a removal changes the directory that the
        // file is in.
        for made in made {
            let Some(place) = Place::of(&made.path) else { continue };
            match place.look(self.root).map_err(self.error("look at", &place.path))? {
                Some(stat) if made.is(&stat) => unchanged.push((place, FileType::from_raw_mode(stat.st_mode))),
                _ => log::debug!("the command changed or removed {}", quoted(&made.path)),
            }
        }
        // The entries of a directory come before the directory.
        unchanged.sort_by(|(one, _), (other, _)| other.path.cmp(&one.path));
        let mut taken = 0;
        let mut parents = BTreeSet::new();
        for (place, kind) in unchanged {
            if self.take(&place, kind == FileType::Directory)? {
                taken += 1;
                parents.insert(place.parent);
            }
        }
        while let Some(parent) = parents.pop_last() {
            let Some(place) = Place::of(&parent) else { continue };
            if self.is_only_on_the_way(&parent)? && self.take(&place, true)? {
                parents.insert(place.parent);
            }
        }
        Ok(taken)
    }

    /// Removes a file or an empty directory, and restores the modification time of its parent.
    /// Returns false if the directory is not empty.
    fn take(&self, place: &Place, is_directory: bool) -> Result<bool> {
        let flags = if is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        let parent = open_to_read(self.root, &place.parent).map_err(self.error("open", &place.parent))?;
        let before = fstat(&parent).map_err(self.error("look at", &place.parent))?;
        match unlinkat(&parent, &place.name, flags) {
            Ok(()) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) if is_directory => return Ok(false),
            Err(errno) => return Err(self.error("take out", &place.path)(errno)),
        }
        futimens(&parent, &modified(&before)).map_err(self.error("put the time back of", &place.parent))?;
        Ok(true)
    }

    /// Returns whether a directory exists only because the run made something in it: the directory
    /// is empty now, and has the attributes of the lowers' directory, which the kernel has copied
    /// up.
    fn is_only_on_the_way(&self, path: &Path) -> Result<bool> {
        // If a lower is missing, the attributes of the lowers' directory are unknown.
        let Some(lowers) = self.below.if_whole() else { return Ok(false) };
        let Some(Shown::Directory(directory)) = lowers.find(path)? else { return Ok(false) };
        let mut dir = openat(self.root, c".", READ, Mode::empty()).map_err(self.error("open", Path::new("")))?;
        let mut walked = PathBuf::new();
        for name in path {
            walked.push(name);
            dir = as_c_string(name)
                .and_then(|name| walk::open_in(dir.as_fd(), &name, READ))
                .map_err(self.error("open", &walked))?;
            // An opaque directory hides the lowers' directory, which therefore cannot take its
            // place.
            if overlayfs::is_opaque_dir(dir.as_fd(), self.xattrs)
                .map_err(self.error("read the extended attributes of", &walked))?
            {
                return Ok(false);
            }
        }
        if !walk::is_empty(dir.as_fd()).map_err(self.error("read", path))? {
            return Ok(false);
        }
        let attributes = XattrList::of(dir.as_fd())
            .and_then(|names| Attributes::of(dir.as_fd(), &names, Keep::Visible(self.xattrs)))
            .map_err(self.error("read the attributes of", path))?;
        Ok(lowers.attributes(&directory)?.is_some_and(|lower| lower.look_like(&attributes)))
    }

    /// Returns a function for `map_err` that describes a failed system call on a file of the upper.
    fn error(&self, operation: &'static str, path: &Path) -> impl FnOnce(Errno) -> Error {
        super::failure(operation, self.path.join(path))
    }
}

fn open_to_read(root: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<OwnedFd> {
    open_beneath(root, path, READ)
}

/// Returns times that set only the modification time.
pub(super) fn modified(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: stat.st_mtime as _, tv_nsec: stat.st_mtime_nsec as _ },
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::stack::sources::Unreadable;

    fn take_out(upper: &Path, lower: &Path, made: &[Made]) -> u64 {
        let root = openat(CWD, upper, READ, Mode::empty()).unwrap();
        let xattrs = XattrNamespace::User;
        let below = Lowers::open(&[lower.into()], None, xattrs, Unreadable::Refused).unwrap();
        TakingOut { root: root.as_fd(), path: upper, below: &below, xattrs }.run(made).unwrap()
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = walkdir::WalkDir::new(dir).min_depth(1).sort_by_file_name();
        entries
            .into_iter()
            .map(|entry| entry.unwrap().path().strip_prefix(dir).unwrap().display().to_string())
            .collect()
    }

    fn age(path: &Path, seconds: u64) {
        fs::File::open(path).unwrap().set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
    }

    #[test]
    fn unchanged_files_are_removed_and_the_rest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (upper, lower) = (dir.path().join("upper"), dir.path().join("lower"));
        for path in ["etc", "proc", "conf/deep", "full", "usr/share"] {
            fs::create_dir_all(upper.join(path)).unwrap();
        }
        for path in ["etc", "usr/share", "full"] {
            fs::create_dir_all(lower.join(path)).unwrap();
        }
        for path in ["etc/hosts", "etc/resolv.conf", "conf/deep/one", "usr/share/point", "full/point"] {
            fs::write(upper.join(path), "made").unwrap();
        }
        let paths = ["/etc/hosts", "/etc/resolv.conf", "/proc", "/conf", "/conf/deep", "/conf/deep/one"];
        let paths = [&paths[..], &["/usr/share/point", "/full/point", "/../x", "/"]].concat();
        let made = Made::look(&upper, &paths).unwrap();
        assert_eq!(made.len(), 8);

        // The command writes to one file, replaces one with the same content, and adds one.
        fs::write(upper.join("etc/hosts"), "more").unwrap();
        fs::remove_file(upper.join("etc/resolv.conf")).unwrap();
        fs::write(upper.join("etc/resolv.conf"), "made").unwrap();
        fs::write(upper.join("full/file"), "").unwrap();
        let changed: Vec<_> = made.iter().filter(|made| !made.is_unchanged(&upper).unwrap()).map(Made::path).collect();
        assert_eq!(changed, [Path::new("/etc/hosts"), Path::new("/etc/resolv.conf")]);
        // The kernel copied up `usr` and `usr/share` only for the file in them. `etc` and `full`
        // differ from the lower's directories.
        for path in ["usr/share", "usr", "etc", "full"] {
            age(&upper.join(path), 1000);
            if path != "etc" && path != "full" {
                age(&lower.join(path), 1000);
            }
        }
        age(&upper, 2000);
        assert_eq!(take_out(&upper, &lower, &made), 6);
        assert_eq!(names(&upper), ["etc", "etc/hosts", "etc/resolv.conf", "full", "full/file"]);
        let modified = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
        assert_eq!(modified(&upper.join("full")), SystemTime::UNIX_EPOCH + Duration::from_secs(1000));
        assert_eq!(modified(&upper), SystemTime::UNIX_EPOCH + Duration::from_secs(2000));
    }

    #[test]
    fn a_parent_that_was_changed_stays() {
        use rustix::fs::{XattrFlags, setxattr};
        use std::os::unix::fs::PermissionsExt;
        type Change = fn(&Path);
        let changes: [(Change, bool); 5] = [
            (|_| {}, false),
            (|etc| age(etc, 1001), true),
            (|etc| fs::set_permissions(etc, fs::Permissions::from_mode(0o700)).unwrap(), true),
            (|etc| setxattr(etc, "user.colour", b"blue", XattrFlags::empty()).unwrap(), true),
            (|etc| setxattr(etc, "user.overlay.opaque", b"y", XattrFlags::empty()).unwrap(), true),
        ];
        for (number, (change, stays)) in changes.into_iter().enumerate() {
            let dir = tempfile::tempdir().unwrap();
            let (upper, lower) = (dir.path().join("upper"), dir.path().join("lower"));
            for tree in [&upper, &lower] {
                fs::create_dir_all(tree.join("etc")).unwrap();
                fs::set_permissions(tree.join("etc"), fs::Permissions::from_mode(0o755)).unwrap();
            }
            fs::write(upper.join("etc/hosts"), "").unwrap();
            age(&upper.join("etc"), 1000);
            age(&lower.join("etc"), 1000);
            let made = Made::look(&upper, ["/etc/hosts"]).unwrap();
            change(&upper.join("etc"));
            assert_eq!(take_out(&upper, &lower, &made), 1);
            assert_eq!(upper.join("etc").exists(), stays, "change {number}");
        }
    }

    #[test]
    fn a_symlink_in_the_path_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (upper, lower) = (dir.path().join("upper"), dir.path().join("lower"));
        for path in [&upper.join("etc"), &lower, &dir.path().join("outside")] {
            fs::create_dir_all(path).unwrap();
        }
        fs::write(upper.join("etc/hosts"), "").unwrap();
        let made = Made::look(&upper, ["/etc/hosts"]).unwrap();
        // The command moves `etc` out of the upper, and replaces it with a symbolic link to it.
        fs::rename(upper.join("etc"), dir.path().join("outside/etc")).unwrap();
        symlink("../outside/etc", upper.join("etc")).unwrap();
        assert_eq!(take_out(&upper, &lower, &made), 0);
        assert!(dir.path().join("outside/etc/hosts").exists());
        assert_eq!(Made::look(&upper, ["/etc/hosts"]).unwrap(), []);
    }

    #[test]
    fn a_list_of_made_files_is_written_and_read_as_json() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("proc")).unwrap();
        let made = Made::look(dir.path(), ["/proc"]).unwrap();
        assert_eq!(made[0].path(), Path::new("/proc"));
        let text = serde_json::to_string(&made).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Made>>(&text).unwrap(), made, "{text}");
    }
}
