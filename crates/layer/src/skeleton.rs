//! The directories of a stack, for an overlay in which a user may create entries although another
//! user owns the layers. `merge/directory.rs` makes them.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Stat, fstat, statat};

use crate::error::{Error, Result};
use crate::merge::{Merge, ReadDir};
use crate::stack::overlayfs::XattrNamespace;
use crate::stack::sources::Sources;
use crate::tree::permission::Permission;
use crate::tree::regular_file::read_regular_file;
use crate::tree::walk::{PATH, open_beneath};

/// A lower with the directories that a stack shows, and hardly anything else.
///
/// Overlayfs copies a directory into the upper, with its owner, before a command makes or removes
/// an entry in it. It refuses that for an owner who has no number in the user namespace of the
/// mount. So an ordinary user cannot write in a stack of root's layers. A skeleton on top of these
/// layers has the same directories with the same modes and times, but such owners are replaced by
/// root of the namespace, who is the user. The overlay then copies the directories of the skeleton,
/// and all files come from the layers, as before.
///
/// With a skeleton, a command can make, remove and replace files everywhere, as `make install`
/// does. It cannot change a file of others in place: writing into it, chmod(2) and rename(2) still
/// fail.
///
/// A directory that this process may not list or search is opaque in the skeleton. It contains only
/// what the layers above it have there. Without that, the kernel would refuse every lookup in it.
///
/// There is one exception: in the lowest layer that has the directory above, usually the base, a
/// directory that this process may search, such as one with mode 0711, stays open. A command finds
/// its files by name, and cannot list it. Directories in it that no other layer has are not in the
/// skeleton, so the command cannot write in them.
///
/// ```text
/// <skeleton>/tree      the lower
/// <skeleton>/sources   the directories that it was made of, when they changed last, and what this
///                      process may do with them
/// ```
///
/// A skeleton can be used for as long as it [is current](Self::is_current).
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let base = dir.path().join("base");
/// # std::fs::create_dir_all(base.join("usr/bin"))?;
/// # std::fs::write(base.join("usr/bin/cc"), "")?;
/// let skeleton = layer::Skeleton::at(dir.path().join("skeleton"));
/// skeleton.make(&[&base], layer::XattrNamespace::User, &|| false)?;
/// assert!(skeleton.tree().join("usr/bin").is_dir() && !skeleton.tree().join("usr/bin/cc").exists());
/// assert!(skeleton.is_current(&[&base])?);
/// std::fs::create_dir(base.join("usr/lib"))?;
/// assert!(!skeleton.is_current(&[&base])?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skeleton {
    dir: PathBuf,
}

/// The first and the last field of the record of sources. A record without both is not whole.
const MARK: &[u8] = b"layered skeleton 2";

impl Skeleton {
    /// Returns the skeleton in the directory `dir`, which need not exist.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Returns the directory that contains the tree and the record.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Returns the lower. It belongs above the trees that it was made of.
    pub fn tree(&self) -> PathBuf {
        self.dir.join("tree")
    }

    fn record(&self) -> PathBuf {
        self.dir.join("sources")
    }

    /// Makes the skeleton of `sources`, the trees of layers, topmost first, the base last. The
    /// directory must not exist, and its parent must. It gets mode 0700: directories of the tree
    /// have the modes of the layers' directories, and other users may write in some of them. Opaque
    /// directories have their mark in the namespace `xattrs`. Stops with [`Error::Stopped`] as soon
    /// as `stop` returns true.
    ///
    /// # Errors
    /// The errors of [`Merge::run`](crate::Merge::run). The directory is left, without a record: it
    /// is not [current](Self::is_current).
    pub fn make(
        &self,
        sources: &[impl AsRef<Path>],
        xattrs: XattrNamespace,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<()> {
        DirBuilder::new().mode(0o700).create(&self.dir).map_err(Error::io("make the directory", &self.dir))?;
        let merge = Merge::new().xattrs(xattrs).hide_unreadable().stop(stop);
        let read = merge.directories(sources, &self.tree())?;
        let mut record = MARK.to_vec();
        record.push(0);
        for source in sources {
            record.extend_from_slice(source.as_ref().as_os_str().as_bytes());
            record.push(0);
        }
        record.push(0);
        for ReadDir { layer, path, stat, permission } in &read {
            // Writing to a vector does not fail.
            let _ = write!(record, "{layer} {} ", stamp(stat, *permission));
            record.extend_from_slice(path.as_os_str().as_bytes());
            record.push(0);
        }
        record.extend_from_slice(MARK);
        fs::write(self.record(), record).map_err(Error::io("write", self.record()))
    }

    /// Returns whether the skeleton exists, was made of `sources`, and shows the directories that
    /// they have now. Looks at each directory of the sources once, and reads none.
    ///
    /// # Errors
    /// [`Error::Io`] if the record cannot be read, and as [`make`](Self::make) if a source cannot
    /// be opened.
    pub fn is_current(&self, sources: &[impl AsRef<Path>]) -> Result<bool> {
        let record = match read_regular_file(self.record()) {
            Ok(record) => record.unwrap_or_default(),
            // Such a skeleton serves one run.
            Err(Error::FileTooLarge { .. }) => return Ok(false),
            Err(error) => return Err(error),
        };
        let Some(stamps) = parse(&record, sources) else { return Ok(false) };
        let trees = Sources::open(sources)?;
        Ok(stamps.iter().all(|(layer, stamped, path)| {
            let found = trees.root(*layer).and_then(|root| look(root.as_fd(), path));
            found.is_ok_and(|(stat, permission)| stamp(&stat, permission) == *stamped)
        }))
    }
}

/// Looks at a directory of a source. Finds out what this process may do with it if its mode alone
/// does not say: the groups of the process may be others now.
fn look(root: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<(Stat, Permission)> {
    let stat = match path.as_os_str().is_empty() {
        true => fstat(root),
        false => statat(root, path, AtFlags::SYMLINK_NOFOLLOW),
    }?;
    let permission = match Permission::is_for_all(&stat) {
        true => Permission::List,
        false => Permission::of(open_beneath(root, path, PATH)?.as_fd())?,
    };
    Ok((stat, permission))
}

/// Returns a stamp. It changes whenever a directory is replaced, an entry in it is made or removed,
/// or this process may do something else with it.
fn stamp(stat: &Stat, permission: Permission) -> String {
    format!("{}:{}.{}:{permission}", stat.st_ino, stat.st_ctime, stat.st_ctime_nsec)
}

/// A directory in a record: the number of the source, the [stamp] and the path.
type Stamped<'a> = (usize, &'a str, &'a Path);

/// Returns the directories in a record of `sources`. Returns `None` if the record is not whole, or
/// if it is of other sources.
fn parse<'a>(record: &'a [u8], sources: &[impl AsRef<Path>]) -> Option<Vec<Stamped<'a>>> {
    let mut fields = record.split(|byte| *byte == 0);
    let mut is = |expected: &[u8]| fields.next() == Some(expected);
    let begins = is(MARK) && sources.iter().all(|source| is(source.as_ref().as_os_str().as_bytes())) && is(b"");
    let mut stamps: Vec<_> = begins.then_some(fields)?.collect();
    let ends = stamps.pop() == Some(MARK);
    let stamps = ends.then_some(stamps)?.into_iter().map(|field| {
        let mut parts = field.splitn(3, |byte| *byte == b' ');
        let mut text = || std::str::from_utf8(parts.next()?).ok();
        let (layer, stamp) = (text()?.parse().ok()?, text()?);
        let path = Path::new(OsStr::from_bytes(parts.next()?));
        (layer < sources.len()).then_some((layer, stamp, path))
    });
    stamps.collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::time::{Duration, SystemTime};

    use proptest::prelude::*;
    use rustix::fs::{CWD, FileType, Mode, XattrFlags, mknodat, setxattr};

    use super::*;
    use crate::mutated;

    const XATTRS: XattrNamespace = XattrNamespace::User;

    fn make(dir: &Path, sources: &[PathBuf]) -> Skeleton {
        let skeleton = Skeleton::at(dir.join("skeleton"));
        skeleton.make(sources, XATTRS, &|| false).unwrap();
        skeleton
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = walkdir::WalkDir::new(dir).min_depth(1).sort_by_file_name();
        let name = |path: &Path| path.strip_prefix(dir).unwrap().display().to_string();
        entries.into_iter().map(|entry| name(entry.unwrap().path())).collect()
    }

    #[test]
    fn it_has_the_directories_that_the_stack_shows() {
        let dir = tempfile::tempdir().unwrap();
        let sources = ["top", "middle", "base"].map(|name| dir.path().join(name));
        let [top, middle, base] = &sources;
        for (tree, made) in [(top, "a/b"), (middle, "cut/new"), (base, "a/c"), (base, "gone/x"), (base, "cut/old")] {
            fs::create_dir_all(tree.join(made)).unwrap();
        }
        for made in ["marked/new", "marked/old"] {
            let tree = if made.ends_with("new") { middle } else { base };
            fs::create_dir_all(tree.join(made)).unwrap();
        }
        fs::create_dir_all(base.join("file")).unwrap();
        fs::write(top.join("file"), "").unwrap();
        symlink("a", top.join("link")).unwrap();
        fs::create_dir(base.join("link")).unwrap();
        mknodat(CWD, middle.join("gone"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        fs::create_dir(top.join("cut")).unwrap();
        setxattr(middle.join("marked"), "user.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
        fs::set_permissions(top.join("a"), fs::Permissions::from_mode(0o1750)).unwrap();
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        fs::File::open(top.join("a")).unwrap().set_modified(long_ago).unwrap();

        let skeleton = make(dir.path(), &sources);
        let tree = skeleton.tree();
        assert_eq!(names(&tree), ["a", "a/b", "a/c", "cut", "cut/new", "cut/old", "marked", "marked/new"]);
        let metadata = fs::metadata(tree.join("a")).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.modified().unwrap()), (0o1750, long_ago));
        assert_eq!(fs::metadata(skeleton.path()).unwrap().mode() & 0o7777, 0o700);
        // The layers below decide what is hidden.
        assert!(!crate::is_opaque(tree.join("marked"), XATTRS).unwrap());
    }

    #[test]
    fn it_is_current_until_a_directory_changes() {
        fn change(base: &Path, what: &str) {
            match what {
                "a file replaces a directory" => {
                    fs::remove_dir(base.join("a/b")).unwrap();
                    fs::write(base.join("a/b"), "").unwrap();
                }
                "a new directory" => fs::create_dir(base.join("a/b/new")).unwrap(),
                "a mode" => fs::set_permissions(base.join("a"), fs::Permissions::from_mode(0o700)).unwrap(),
                "another directory" => {
                    fs::rename(base.join("a"), base.join("old")).unwrap();
                    fs::create_dir_all(base.join("a/b")).unwrap();
                }
                _ => setxattr(base.join("a"), "user.overlay.opaque", b"y", XattrFlags::empty()).unwrap(),
            }
        }
        for what in ["a file replaces a directory", "a new directory", "a mode", "another directory", "a mark"] {
            let dir = tempfile::tempdir().unwrap();
            let sources = ["top", "base"].map(|name| dir.path().join(name));
            sources.iter().for_each(|source| fs::create_dir_all(source.join("a/b")).unwrap());
            let skeleton = make(dir.path(), &sources);
            assert!(skeleton.is_current(&sources).unwrap(), "{what}");
            assert!(!skeleton.is_current(&sources[..1]).unwrap(), "{what}");
            change(&sources[1], what);
            assert!(!skeleton.is_current(&sources).unwrap(), "{what}");
        }
    }

    #[test]
    fn a_skeleton_that_was_not_finished_is_not_current() {
        let dir = tempfile::tempdir().unwrap();
        let sources = [dir.path().join("base")];
        fs::create_dir_all(sources[0].join("a")).unwrap();
        let skeleton = Skeleton::at(dir.path().join("skeleton"));
        assert!(!skeleton.is_current(&sources).unwrap());
        let stopped = skeleton.make(&sources, XATTRS, &|| true).unwrap_err();
        assert!(matches!(stopped, Error::Stopped { .. }), "{stopped}");
        assert!(!skeleton.is_current(&sources).unwrap());
        fs::remove_dir(skeleton.path()).unwrap();
        let skeleton = make(dir.path(), &sources);
        let record = fs::read(skeleton.record()).unwrap();
        for length in 0..record.len() {
            fs::write(skeleton.record(), &record[..length]).unwrap();
            assert!(!skeleton.is_current(&sources).unwrap(), "{length}");
        }
    }

    proptest! {
        #![proptest_config(mutated::config())]

        #[test]
        fn a_record_of_any_content_is_read_or_refused(record in mutated::bytes(["layered skeleton 2\0/a\0\x000 5:7.9:list \x000 6:7.9:search a b\0layered skeleton 2"])) {
            if let Some(stamps) = parse(&record, &["/a"]) {
                prop_assert!(stamps.iter().all(|(layer, ..)| *layer == 0));
            }
        }
    }
}
