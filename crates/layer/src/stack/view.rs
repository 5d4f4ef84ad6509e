//! Answers what a stack of trees shows, directory by directory. `lookup.rs` answers for one path,
//! and also reports the hidden entries there.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{CStr, CString, OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Stat, fstat, openat, statat};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::stack::overlayfs::{self, Entry, EntryKind, XattrNamespace};
use crate::stack::sources::{Root, Sources, Unreadable};
use crate::tree::attributes::{Attributes, Keep};
use crate::tree::walk::{self, ENTRIES_SIZE_BYTES, PATH, READ, as_c_string, as_os_str, open_beneath};
use crate::tree::xattr::XattrList;

/// The tree that the kernel would show for a stack of trees, read directory by directory without a
/// mount and without privilege.
///
/// The rules are those of [`Merge`](crate::Merge). If the topmost entry of a name is a file, it
/// hides everything of its name below. A directory is the union of the directories of its name,
/// downwards to the first opaque one, and not past a file or a whiteout. A view follows no symbolic
/// link, neither on the way nor at the end of a path. ([`lookup`](crate::lookup) answers for one
/// path, and also reports the hidden entries there.)
#[derive(Debug)]
pub(crate) struct View {
    trees: Sources,
    xattrs: XattrNamespace,
    /// `None` if the view does not remember the directories that were found.
    directories: Option<Mutex<Found>>,
    unreadable: Unreadable,
}

/// The directories that a view has found, by their paths. With too many, it begins again.
#[derive(Debug, Default)]
struct Found {
    directories: HashMap<PathBuf, Directory>,
    /// The sum of the trees of all directories.
    trees: usize,
}

impl Found {
    const MOST_DIRECTORIES: usize = 10_000;
    /// 8 MB.
    const MOST_TREES: usize = 1_000_000;

    fn insert(&mut self, found: &Directory) {
        if self.directories.len() >= Self::MOST_DIRECTORIES || self.trees + found.trees.len() > Self::MOST_TREES {
            *self = Self::default();
        }
        self.trees += found.trees.len();
        let former = self.directories.insert(found.path.clone(), found.clone());
        // Another thread may have found the same directory.
        self.trees -= former.map_or(0, |former| former.trees.len());
    }
}

/// The entry that a stack shows at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Shown {
    /// A directory, merged from one or more trees.
    Directory(Directory),
    /// Anything else, from the tree with this index; the topmost tree is 0.
    File(usize),
}

/// The entry that a stack shows under a name of a directory.
#[derive(Debug)]
pub(crate) enum Child {
    Directory(Directory),
    /// Anything else.
    File {
        /// The tree that it is from; the topmost tree is 0.
        tree: usize,
        /// Opened with `O_PATH`.
        file: OwnedFd,
        stat: Stat,
    },
}

/// A directory as a stack shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Directory {
    path: PathBuf,
    trees: Vec<usize>,
}

impl Directory {
    /// Returns the path below the root of the stack.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the topmost tree that has the directory. `None` only for the root of a stack of no
    /// trees.
    pub(crate) fn topmost(&self) -> Option<usize> {
        self.trees.first().copied()
    }

    /// Returns the trees whose directories are merged, topmost first.
    #[cfg(feature = "oci")]
    pub(crate) fn trees(&self) -> &[usize] {
        &self.trees
    }
}

impl View {
    /// Makes a view of the stack of `trees` (`<layer>/fs`), **topmost first**, the base last. Opens
    /// only their roots.
    ///
    /// # Errors
    /// [`Error::NotADirectory`] if a tree is not a directory (a symbolic link is not one),
    /// [`Error::Io`] if its root cannot be opened.
    pub(crate) fn new(trees: &[impl AsRef<Path>]) -> Result<Self> {
        Sources::open(trees).map(Self::of)
    }

    /// Makes a view of those of the trees that exist. Also returns the first that does not.
    ///
    /// # Errors
    /// As [`new`](Self::new), for a tree that exists.
    pub(crate) fn of_existing(trees: &[impl AsRef<Path>]) -> Result<(Self, Option<PathBuf>)> {
        let (trees, missing) = Sources::open_existing(trees)?;
        Ok((Self::of(trees), missing))
    }

    fn of(trees: Sources) -> Self {
        Self { trees, xattrs: XattrNamespace::default(), directories: None, unreadable: Unreadable::default() }
    }

    /// Remembers from now on which trees have a directory, instead of looking into all of them for
    /// every path through it.
    pub(crate) fn remembering(mut self) -> Self {
        self.directories = Some(Mutex::default());
        self
    }

    /// Lists nothing of a directory that this process may not list or search, and shows nothing of
    /// its name below. Entries of a directory that can be searched are found by name.
    pub(crate) fn hide_unreadable(mut self) -> Self {
        self.unreadable = Unreadable::Hidden;
        self
    }

    /// Reads overlayfs's attributes in `namespace`.
    pub(crate) fn xattrs(mut self, namespace: XattrNamespace) -> Self {
        self.xattrs = namespace;
        self
    }

    /// Returns the namespace of overlayfs's attributes.
    pub(crate) fn xattr_namespace(&self) -> XattrNamespace {
        self.xattrs
    }

    /// Returns the root of the stack. A stack of no trees has an empty root.
    pub(crate) fn root(&self) -> Directory {
        Directory { path: PathBuf::new(), trees: (0..self.trees.len()).collect() }
    }

    /// Returns what the stack shows at `path`, which is absolute in the stack or relative to its
    /// root. Returns `None` if there is nothing, or if the path leads through something that is not
    /// a directory.
    ///
    /// # Errors
    /// The errors of [`child`](Self::child), and [`Error::Io`] if `path` has a `..`.
    pub(crate) fn find(&self, path: impl AsRef<Path>) -> Result<Option<Shown>> {
        let path = path.as_ref();
        let mut shown = Shown::Directory(self.root());
        for component in path.components() {
            let name = match component {
                Component::Normal(name) => name,
                Component::RootDir | Component::CurDir => continue,
                Component::ParentDir | Component::Prefix(_) => return Err(Error::io("look up", path)(Errno::INVAL)),
            };
            let Shown::Directory(directory) = shown else { return Ok(None) };
            match self.child(&directory, name)? {
                Some(found) => shown = found,
                None => return Ok(None),
            }
        }
        Ok(Some(shown))
    }

    /// Returns what `directory` shows under `name`.
    ///
    /// # Errors
    /// As [`open_child`](Self::open_child).
    pub(crate) fn child(&self, directory: &Directory, name: &OsStr) -> Result<Option<Shown>> {
        Ok(self.open_child(directory, name)?.map(|child| match child {
            Child::Directory(directory) => Shown::Directory(directory),
            Child::File { tree, .. } => Shown::File(tree),
        }))
    }

    /// Returns what `directory` shows under `name`. Opens anything but a directory, without access
    /// to its content, and does not follow it if it is a symbolic link.
    ///
    /// # Errors
    /// [`Error::Io`] names an entry that cannot be looked at, and [`Error::MountInside`] a mount
    /// point in a tree. [`Error::Unmergeable`] names a directory whose content is elsewhere in the
    /// layers below (`redirect`), or a file of which this is true (`metacopy`).
    pub(crate) fn open_child(&self, directory: &Directory, name: &OsStr) -> Result<Option<Child>> {
        let path = directory.path.join(name);
        if let Some(found) = self.remembered().and_then(|known| known.directories.get(&path).cloned()) {
            return Ok(Some(Child::Directory(found)));
        }
        let name = as_c_string(name).map_err(Error::io("look up", path.clone()))?;
        let mut trees = Vec::new();
        for &tree in &directory.trees {
            let error = |operation| self.error(operation, tree, directory, Some(&name));
            let root = self.trees.root(tree).map_err(error("open"))?;
            let file = match open_beneath(root.as_fd(), &path, PATH.difference(OFlags::DIRECTORY)) {
                Ok(file) => file,
                Err(Errno::NOENT) => continue,
                Err(errno) if self.is_hidden(errno) => continue,
                Err(errno) => return Err(error("look at")(errno)),
            };
            let stat = fstat(&file).map_err(error("look at"))?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                let is_hidden = !trees.is_empty() || {
                    let classified = Entry::of_open(file.as_fd(), &stat).classify(self.xattrs);
                    let kind = classified.map_err(|why| why.at(self.place(tree, directory, Some(&name))))?;
                    kind == EntryKind::Whiteout
                };
                if !is_hidden {
                    return Ok(Some(Child::File { tree, file, stat }));
                }
                break;
            }
            trees.push(tree);
            if self.ends(tree, directory, root.as_fd(), &name)? {
                break;
            }
        }
        if trees.is_empty() {
            return Ok(None);
        }
        let mut found = Directory { path, trees };
        if let Some(mut known) = self.remembered() {
            found.trees.shrink_to_fit();
            known.insert(&found);
        }
        Ok(Some(Child::Directory(found)))
    }

    fn remembered(&self) -> Option<MutexGuard<'_, Found>> {
        self.directories.as_ref().map(|known| known.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the names that `directory` shows, each with the tree that it comes from and the kind
    /// of its entry there.
    ///
    /// # Errors
    /// The errors of [`child`](Self::child).
    pub(crate) fn names(&self, directory: &Directory) -> Result<BTreeMap<OsString, (usize, EntryKind)>> {
        let mut names = BTreeMap::new();
        let mut hidden: HashSet<CString> = HashSet::new();
        let mut buffer = Vec::with_capacity(ENTRIES_SIZE_BYTES);
        for (index, &tree) in directory.trees.iter().enumerate() {
            let Some(dir) = self.open_to_read(tree, directory)? else { break };
            let mut entries = RawDir::new(&dir, buffer.spare_capacity_mut());
            while let Some(entry) = entries.next() {
                let entry = entry.map_err(self.error("read", tree, directory, None))?;
                let name = entry.file_name();
                if walk::is_dots(name) || hidden.contains(name) || names.contains_key(as_os_str(name)) {
                    continue;
                }
                let kind = walk::file_type(dir.as_fd(), &entry);
                let kind = match kind.map_err(self.error("look at", tree, directory, Some(name)))? {
                    FileType::CharacterDevice | FileType::RegularFile => {
                        let stat = statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW);
                        let stat = stat.map_err(self.error("look at", tree, directory, Some(name)))?;
                        self.kind(tree, directory, dir.as_fd(), name, &stat)?
                    }
                    file_type => EntryKind::of(file_type),
                };
                if kind != EntryKind::Whiteout {
                    names.insert(as_os_str(name).to_owned(), (tree, kind));
                } else if index + 1 < directory.trees.len() {
                    hidden.insert(name.to_owned());
                }
            }
        }
        Ok(names)
    }

    /// Returns the attributes that the directory has in the topmost tree, without overlayfs's own.
    /// Returns `None` for a stack of no trees.
    pub(crate) fn attributes(&self, directory: &Directory) -> Result<Option<Attributes>> {
        let Some(&tree) = directory.trees.first() else { return Ok(None) };
        let attributes = match self.open_to_read(tree, directory)? {
            Some(dir) => XattrList::of(dir.as_fd())
                .and_then(|names| Attributes::of(dir.as_fd(), &names, Keep::Visible(self.xattrs))),
            None => fstat(self.open(tree, directory)?).map(|stat| Attributes::of_unreadable(&stat)),
        };
        attributes.map(Some).map_err(self.error("read the attributes of", tree, directory, None))
    }

    /// Returns the path of the tree whose root `root` describes.
    pub(crate) fn tree_of(&self, root: &Stat) -> Option<&Path> {
        self.tree_with(walk::identity(root))
    }

    /// Returns the path of the tree whose root has this identity.
    pub(crate) fn tree_with(&self, identity: walk::Identity) -> Option<&Path> {
        self.trees.find(identity)
    }

    /// Returns the number of trees.
    pub(crate) fn len(&self) -> usize {
        self.trees.len()
    }

    /// Returns the path of a tree, as the caller gave it.
    pub(crate) fn path(&self, tree: usize) -> &Path {
        self.trees.path(tree)
    }

    /// Returns the root of a tree.
    pub(crate) fn root_of(&self, tree: usize) -> rustix::io::Result<Root<'_>> {
        self.trees.root(tree)
    }

    /// Opens a directory of a tree, without access to its content.
    pub(crate) fn open(&self, tree: usize, directory: &Directory) -> Result<OwnedFd> {
        let opened = self.trees.root(tree).and_then(|root| open_beneath(root.as_fd(), &directory.path, PATH));
        opened.map_err(self.error("open", tree, directory, None))
    }

    /// Opens a directory of a tree. Returns `None` if it is [hidden](Self::hide_unreadable).
    fn open_to_read(&self, tree: usize, directory: &Directory) -> Result<Option<OwnedFd>> {
        let opened = self.trees.root(tree).and_then(|root| {
            match open_beneath(root.as_fd(), &directory.path, READ | OFlags::NOATIME) {
                // Only root and the owner may open a directory with NOATIME.
                Err(Errno::PERM) => open_beneath(root.as_fd(), &directory.path, READ),
                opened => opened,
            }
        });
        match opened.and_then(|dir| self.searched(dir)) {
            Ok(dir) => Ok(Some(dir)),
            Err(errno) if self.is_hidden(errno) => Ok(None),
            Err(errno) => Err(self.error("open", tree, directory, None)(errno)),
        }
    }

    /// Returns `dir`, or `EACCES` if directories are hidden and this one can be listed, but not
    /// searched.
    fn searched(&self, dir: OwnedFd) -> rustix::io::Result<OwnedFd> {
        if self.unreadable == Unreadable::Hidden {
            openat(&dir, c".", PATH, Mode::empty())?;
        }
        Ok(dir)
    }

    /// Returns whether `errno` says that a directory is [hidden](Self::hide_unreadable).
    fn is_hidden(&self, errno: Errno) -> bool {
        self.unreadable == Unreadable::Hidden && errno == Errno::ACCESS
    }

    /// Returns what `name` in an open directory of a tree is to overlayfs.
    fn kind(
        &self,
        tree: usize,
        directory: &Directory,
        dir: BorrowedFd<'_>,
        name: &CStr,
        stat: &Stat,
    ) -> Result<EntryKind> {
        let classified = Entry::new(dir, name, stat).classify(self.xattrs);
        classified.map_err(|why| why.at(self.place(tree, directory, Some(name))))
    }

    /// Returns whether the directory `name` of the tree whose root is `root` hides the directories
    /// of that name in the trees below.
    fn ends(&self, tree: usize, directory: &Directory, root: BorrowedFd<'_>, name: &CStr) -> Result<bool> {
        // The lookup of `.` in the directory itself would need the permission to search it.
        let path = directory.path.join(as_os_str(name));
        let opened = match open_beneath(root, &path, READ).and_then(|dir| self.searched(dir)) {
            Ok(opened) => opened,
            Err(errno) if self.is_hidden(errno) => return Ok(true),
            Err(errno) => return Err(self.error("open", tree, directory, Some(name))(errno)),
        };
        let hides = overlayfs::hides_below(opened.as_fd(), None, self.xattrs);
        hides.map_err(|why| why.at(self.place(tree, directory, Some(name))))
    }

    /// Returns the path of a directory of a tree, or of `name` in it.
    fn place(&self, tree: usize, directory: &Directory, name: Option<&CStr>) -> PathBuf {
        let mut path = self.trees.path(tree).join(&directory.path);
        path.extend(name.map(as_os_str));
        path
    }

    /// Returns a function for `map_err`. It makes the error of a failed system call on a directory
    /// of a tree, or on `name` in it.
    fn error(
        &self,
        operation: &'static str,
        tree: usize,
        directory: &Directory,
        name: Option<&CStr>,
    ) -> impl FnOnce(Errno) -> Error {
        move |errno| match (errno, self.place(tree, directory, name)) {
            (Errno::XDEV, path) => Error::MountInside { path },
            (errno, path) => Error::io(operation, path)(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::fs::{CWD, XattrFlags, mknodat, setxattr};

    use super::*;

    fn whiteout(path: &Path) {
        mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    }

    /// Makes three trees that have a case for every rule.
    fn stack(dir: &Path) -> Vec<PathBuf> {
        let trees: Vec<_> = ["top", "middle", "base"].map(|name| dir.join(name)).into();
        let [top, middle, base] = [&trees[0], &trees[1], &trees[2]];
        for directory in ["union", "opaque/deep"] {
            trees.iter().for_each(|tree| fs::create_dir_all(tree.join(directory)).unwrap());
        }
        for (tree, files) in [
            (top, &["union/top", "opaque/new", "file"][..]),
            (middle, &["union/middle", "opaque/old", "cut", "marked"]),
            (base, &["union/base", "union/gone", "opaque/old", "dir-in-base", "marked"]),
        ] {
            files.iter().for_each(|file| fs::write(tree.join(file), "").unwrap());
        }
        whiteout(&middle.join("union/gone"));
        whiteout(&top.join("dir-in-base"));
        setxattr(top.join("opaque"), "user.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
        setxattr(middle.join("marked"), "user.overlay.whiteout", b"", XattrFlags::empty()).unwrap();
        // `cut` is a directory on top, a file in the middle and a directory in the base.
        fs::create_dir(top.join("cut")).unwrap();
        fs::create_dir(base.join("cut")).unwrap();
        fs::write(base.join("cut/hidden"), "").unwrap();
        symlink("union", top.join("link")).unwrap();
        trees
    }

    #[test]
    fn the_topmost_entries_are_shown_with_their_trees() {
        let dir = tempfile::tempdir().unwrap();
        let stack = View::new(&stack(dir.path())).unwrap().xattrs(XattrNamespace::User);
        let directory = |path: &str, trees: &[usize]| {
            Some(Shown::Directory(Directory { path: path.into(), trees: trees.to_vec() }))
        };
        for (path, expected) in [
            ("/", directory("", &[0, 1, 2])),
            ("union", directory("union", &[0, 1, 2])),
            ("/union/base", Some(Shown::File(2))),
            ("/union/gone", None),
            ("/file", Some(Shown::File(0))),
            ("/file/below", None),
            ("/dir-in-base", None),
            ("/marked", None),
            ("/opaque", directory("opaque", &[0])),
            ("/opaque/old", None),
            ("/opaque/deep", directory("opaque/deep", &[0])),
            ("/cut", directory("cut", &[0])),
            ("/link", Some(Shown::File(0))),
            ("/link/top", None),
            ("/missing", None),
        ] {
            assert_eq!(stack.find(path).unwrap(), expected, "{path}");
        }
        assert!(matches!(stack.find("/union/../file"), Err(Error::Io { .. })));

        let names = |path: &str| match stack.find(path).unwrap() {
            Some(Shown::Directory(directory)) => stack.names(&directory).unwrap(),
            other => panic!("{other:?}"),
        };
        use EntryKind::{Directory as D, File as F, Symlink as L};
        let expected = |names: &[(&str, usize, EntryKind)]| {
            names.iter().map(|&(name, tree, kind)| (name.into(), (tree, kind))).collect()
        };
        assert_eq!(names("/union"), expected(&[("top", 0, F), ("middle", 1, F), ("base", 2, F)]));
        assert_eq!(names("/opaque"), expected(&[("new", 0, F), ("deep", 0, D)]));
        let root = [("union", 0, D), ("opaque", 0, D), ("cut", 0, D), ("file", 0, F), ("link", 0, L)];
        assert_eq!(names("/"), expected(&root));
    }

    #[test]
    fn the_remembered_directories_are_bounded() {
        let mut found = Found::default();
        let directory = |number: usize, trees: usize| Directory {
            path: PathBuf::from(number.to_string()),
            trees: (0..trees).collect(),
        };
        for _ in 0..2 {
            found.insert(&directory(0, 400));
        }
        assert_eq!((found.directories.len(), found.trees), (1, 400));
        for number in 1..2500 {
            found.insert(&directory(number, 400));
        }
        assert_eq!((found.directories.len(), found.trees), (2500, Found::MOST_TREES));
        found.insert(&directory(2500, 1));
        assert_eq!((found.directories.len(), found.trees), (1, 1));
        for number in 0..=Found::MOST_DIRECTORIES {
            found.insert(&directory(number, 1));
        }
        assert_eq!((found.directories.len(), found.trees), (1, 1));
    }

    #[test]
    fn a_stack_of_no_trees_shows_nothing() {
        let stack = View::new(&[] as &[&Path]).unwrap();
        assert_eq!(stack.find("/usr").unwrap(), None);
        assert!(stack.names(&stack.root()).unwrap().is_empty());
    }

    #[test]
    fn a_directory_with_redirect_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("moved")).unwrap();
        setxattr(dir.path().join("moved"), "user.overlay.redirect", b"/other", XattrFlags::empty()).unwrap();
        let stack = View::new(&[dir.path()]).unwrap().xattrs(XattrNamespace::User);
        assert!(matches!(stack.find("/moved"), Err(Error::Unmergeable { path, .. }) if path.ends_with("moved")));
    }
}
