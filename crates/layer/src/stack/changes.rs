//! Lists what the tree of one layer does to the stack below it. `conflicts.rs` compares siblings;
//! `view.rs` answers what the stack below shows.

use std::collections::{HashSet, VecDeque};
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, OFlags, Stat, fstat, statat};
use rustix::io::Errno;
use serde::Serialize;

use super::Stack;
use crate::error::{Error, Result};
use crate::json_path;
use crate::layer::Layer;
use crate::stack::overlayfs::{self, Entry, EntryKind, XattrNamespace};
use crate::stack::sources::open_root;
use crate::stack::view::Shown;
use crate::tree::size::allocated;
use crate::tree::walk::{Entries, Identity, PATH, READ, as_os_str, identity, open_beneath, open_in};

/// The flags to open an entry of any type without access to its content.
const ANY: OFlags = PATH.difference(OFlags::DIRECTORY);

/// One thing that the tree of a layer does to the stack below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Change {
    /// The path below the root. In JSON it has a leading slash.
    #[serde(serialize_with = "json_path::serialize_absolute")]
    pub path: PathBuf,
    /// What happens at the path; `change` in JSON.
    #[serde(rename = "change")]
    pub effect: Effect,
    /// The kind of the layer's entry; `has` in JSON. [`Stack::changes`] reports the kind of a
    /// deleted entry instead of the whiteout.
    #[serde(rename = "has")]
    pub kind: EntryKind,
    /// The bytes that are allocated for the layer's entry, as [`TreeSize`](crate::TreeSize) counts
    /// them. A file with several names in the layer counts at the first of them, and has 0 bytes at
    /// the others.
    pub bytes: u64,
}

/// What a layer does at one path. In JSON it is the name of the variant in lower case, with hyphens
/// between the words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Effect {
    /// The layer has an entry. One layer alone cannot tell whether it is new:
    /// [`Stack::changes`] can.
    AddedOrChanged,
    /// The layer has an entry, and the stack below has none.
    Added,
    /// The layer has an entry, and the stack below has another one.
    Changed,
    /// The layer deletes what the stack below has.
    Deleted,
    /// The layer has an opaque directory, which replaces everything of its name in the stack below.
    Opaque,
}

/// Iterates over the changes that the tree of a layer makes to a stack. Each directory is followed
/// by its entries, in the order of the bytes of their names. The root of the tree is not among the
/// items.
///
/// Follows no symbolic link and enters no mount. Holds in memory the entries of the directories on
/// the way, and the identity of each file that has several names.
///
/// An item is an error for an entry or a directory that cannot be looked at: [`Error::Io`],
/// [`Error::MountInside`] or [`Error::Unmergeable`]. The iterator then continues with the next one.
#[derive(Debug)]
pub struct Changes {
    tree: PathBuf,
    root: OwnedFd,
    xattrs: XattrNamespace,
    /// The directory whose entries come next.
    unread: Option<PathBuf>,
    /// The entries that have not been returned, the next one last.
    entries: Vec<Result<(Change, Stat)>>,
    /// The files with several names that have been counted.
    counted: HashSet<Identity>,
}

impl Changes {
    /// Begins to list the tree of a layer (`<layer>/fs`) or an upper directory of an overlay that
    /// is not mounted.
    ///
    /// # Errors
    /// [`Error::NotADirectory`] if `tree` is not a directory, [`Error::Io`] if it cannot be opened.
    pub fn of(tree: impl AsRef<Path>, xattrs: XattrNamespace) -> Result<Self> {
        let tree: PathBuf = tree.as_ref().components().collect();
        let root = open_root(CWD.as_fd(), &tree, PATH)?;
        let unread = Some(PathBuf::new());
        Ok(Self { tree, root, xattrs, unread, entries: Vec::new(), counted: HashSet::new() })
    }

    fn next_with_stat(&mut self) -> Option<Result<(Change, Stat)>> {
        if let Some(path) = self.unread.take() {
            if let Err(error) = self.read(&path) {
                return Some(Err(error));
            }
        }
        let mut entry = self.entries.pop()?;
        if let Ok((change, stat)) = &mut entry {
            if change.kind == EntryKind::Directory {
                self.unread = Some(change.path.clone());
            } else if stat.st_nlink > 1 && !self.counted.insert(identity(stat)) {
                change.bytes = 0;
            }
        }
        Some(entry)
    }

    /// Reads the directory at `path`.
    fn read(&mut self, path: &Path) -> Result<()> {
        let place = self.tree.join(path);
        let dir = open_beneath(self.root.as_fd(), path, READ).map_err(at(&place, "open"))?;
        let list = dir.try_clone().map_err(Error::io("open", &place))?;
        let names: Result<Vec<CString>, Errno> =
            Entries::new(list).and_then(|entries| entries.map(|entry| Ok(entry?.0)).collect());
        let mut names = names.map_err(Error::io("read", &place))?;
        names.sort_unstable();
        for name in names.into_iter().rev() {
            let entry = self.look(path, &dir, &name);
            self.entries.push(entry);
        }
        Ok(())
    }

    /// Looks at the entry `name` of `dir`.
    fn look(&self, path: &Path, dir: &OwnedFd, name: &CString) -> Result<(Change, Stat)> {
        let path = path.join(as_os_str(name));
        let place = self.tree.join(&path);
        let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(at(&place, "look at"))?;
        let kind = Entry::new(dir.as_fd(), name, &stat).classify(self.xattrs).map_err(|why| why.at(&place))?;
        let effect = match kind {
            EntryKind::Whiteout => Effect::Deleted,
            EntryKind::Directory => {
                let opened = open_in(dir.as_fd(), name, READ).map_err(at(&place, "open"))?;
                match overlayfs::hides_below(opened.as_fd(), None, self.xattrs).map_err(|why| why.at(&place))? {
                    true => Effect::Opaque,
                    false => Effect::AddedOrChanged,
                }
            }
            _ => Effect::AddedOrChanged,
        };
        Ok((Change { path, effect, kind, bytes: allocated(&stat) }, stat))
    }

    /// Returns whether the tree has an entry at `path`.
    fn has(&self, path: &Path) -> Result<bool> {
        match open_beneath(self.root.as_fd(), path, ANY) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(at(&self.tree.join(path), "look at")(errno)),
        }
    }
}

impl Iterator for Changes {
    type Item = Result<Change>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_with_stat().map(|entry| entry.map(|(change, _)| change))
    }
}

/// The iterator that [`Stack::changes`] returns. Its items and its order are those of [`Changes`].
/// The entries that an opaque directory deletes follow the directory.
#[derive(Debug)]
pub struct StackChanges<'a> {
    stack: &'a Stack,
    upper: Changes,
    /// The entries that an opaque directory deletes.
    deleted: VecDeque<Result<Change>>,
}

impl Iterator for StackChanges<'_> {
    type Item = Result<Change>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(change) = self.deleted.pop_front() {
                return Some(change);
            }
            match self.upper.next_with_stat()?.and_then(|(change, stat)| self.compare(change, &stat)) {
                Ok(Some(change)) => return Some(Ok(change)),
                Ok(None) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl StackChanges<'_> {
    /// Compares an entry of the upper with what the stack shows. Returns `None` if the entry
    /// changes nothing.
    fn compare(&mut self, change: Change, stat: &Stat) -> Result<Option<Change>> {
        let view = &self.stack.view;
        let below = view.find(&change.path)?;
        let effect = match (&below, change.effect) {
            (None, Effect::Deleted) => return Ok(None),
            (None, _) => Effect::Added,
            (Some(Shown::Directory(_)), Effect::Deleted) => {
                return Ok(Some(Change { kind: EntryKind::Directory, bytes: 0, ..change }));
            }
            (Some(Shown::File(tree)), Effect::Deleted) => {
                let root = view.root_of(*tree);
                let file = root.and_then(|root| open_beneath(root.as_fd(), &change.path, ANY)).and_then(fstat);
                let stat = file.map_err(at(&view.path(*tree).join(&change.path), "look at"))?;
                let kind = EntryKind::of(FileType::from_raw_mode(stat.st_mode));
                return Ok(Some(Change { kind, bytes: 0, ..change }));
            }
            (Some(Shown::Directory(directory)), Effect::Opaque) => {
                for (name, (_, kind)) in view.names(directory)? {
                    let path = change.path.join(name);
                    match self.upper.has(&path) {
                        Ok(true) => {}
                        Ok(false) => {
                            let deleted = Change { path, effect: Effect::Deleted, kind, bytes: 0 };
                            self.deleted.push_back(Ok(deleted));
                        }
                        Err(error) => self.deleted.push_back(Err(error)),
                    }
                }
                Effect::Opaque
            }
            // Overlayfs copies a directory up when an entry of it changes.
            (Some(Shown::Directory(directory)), _) if change.kind == EntryKind::Directory => {
                let Some(tree) = directory.topmost() else { return Ok(None) };
                let shown = fstat(view.open(tree, directory)?);
                let shown = shown.map_err(Error::io("look at", view.path(tree).join(directory.path())))?;
                let seen = |stat: &Stat| (stat.st_mode, stat.st_uid, stat.st_gid);
                if seen(&shown) == seen(stat) {
                    return Ok(None);
                }
                Effect::Changed
            }
            (Some(_), _) => Effect::Changed,
        };
        Ok(Some(Change { effect, ..change }))
    }
}

impl Layer {
    /// Lists what the layer's tree does to a stack: the entries that it adds or changes, those that
    /// it deletes, and its opaque directories. Without the layers below, nothing shows whether an
    /// entry is added or changed, nor what an opaque directory hides: see [`Stack::changes`].
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let layer = layer::Layer::at(dir.path());
    /// # std::fs::create_dir(layer.fs())?;
    /// for change in layer.changes(layer::XattrNamespace::Trusted)? {
    ///     let change = change?;
    ///     println!("{:?} {:?}: {} bytes", change.effect, change.path, change.bytes);
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`Changes::of`] for the layer's tree.
    pub fn changes(&self, xattrs: XattrNamespace) -> Result<Changes> {
        Changes::of(self.fs(), xattrs)
    }
}

impl Stack {
    /// Lists what a layer's tree or an upper does to this stack, which is below it.
    ///
    /// - A directory that the stack has, too, is an item only if its mode or owner differs.
    ///   Overlayfs copies a directory up when an entry of it changes.
    /// - A file that the stack has, too, is [`Effect::Changed`]. Nothing reads its content.
    /// - A whiteout for something that the stack does not have is not an item.
    /// - What an opaque directory hides is [`Effect::Deleted`], unless the upper has an entry of
    ///   that name. An opaque directory that the stack does not have is [`Effect::Added`].
    /// - In an upper that was not captured, nothing shows the deletions in a directory below an
    ///   opaque one, if both the upper and the stack have that directory. A captured layer has
    ///   whiteouts for them.
    ///
    /// A deleted directory is one item, without its content.
    ///
    /// # Errors
    /// As [`Changes::of`]. An item can be an error about an entry of the stack, too.
    pub fn changes(&self, upper: impl AsRef<Path>) -> Result<StackChanges<'_>> {
        let upper = Changes::of(upper, self.view.xattr_namespace())?;
        Ok(StackChanges { stack: self, upper, deleted: VecDeque::new() })
    }
}

/// Returns a function for `map_err`. It makes the error of a failed system call on `path`.
fn at(path: &Path, operation: &'static str) -> impl FnOnce(Errno) -> Error + use<> {
    let path = path.to_path_buf();
    move |errno| match errno {
        Errno::XDEV => Error::MountInside { path },
        errno => Error::io(operation, path)(errno),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use rustix::fs::{Mode, XattrFlags, mknodat, setxattr};

    use super::*;
    use crate::tree::size::TreeSize;

    fn whiteout(path: &Path) {
        mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    }

    /// Makes a base and an upper that changes it in every way.
    fn make(dir: &Path) -> [PathBuf; 2] {
        let trees = ["upper", "base"].map(|name| dir.join(name));
        let [upper, base] = &trees;
        for (tree, directories) in
            [(upper, &["new", "replaced", "same", "mode"][..]), (base, &["replaced", "same", "mode"])]
        {
            directories.iter().for_each(|name| fs::create_dir_all(tree.join(name)).unwrap());
        }
        for (tree, files) in [
            (base, &["file", "gone", "replaced/kept", "replaced/old", "same/a", "was-file"][..]),
            (upper, &["file", "new/a", "replaced/kept", "replaced/new", "same/b"]),
        ] {
            files.iter().for_each(|name| fs::write(tree.join(name), "x").unwrap());
        }
        whiteout(&upper.join("gone"));
        whiteout(&upper.join("never"));
        fs::create_dir(upper.join("was-file")).unwrap();
        setxattr(upper.join("replaced"), "user.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
        fs::set_permissions(upper.join("mode"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::hard_link(upper.join("file"), upper.join("name")).unwrap();
        symlink("/etc", upper.join("link")).unwrap();
        trees
    }

    fn listed(changes: impl Iterator<Item = Result<Change>>) -> Vec<(String, Effect, EntryKind)> {
        let change = |change: Result<Change>| {
            let Change { path, effect, kind, .. } = change.unwrap();
            (path.into_os_string().into_string().unwrap(), effect, kind)
        };
        changes.map(change).collect()
    }

    #[test]
    fn a_layer_alone_shows_what_it_has_deletes_and_replaces() {
        use EntryKind::{Directory, File, Symlink, Whiteout};
        let dir = tempfile::tempdir().unwrap();
        let [upper, _] = make(dir.path());
        let expected = [
            ("file", Effect::AddedOrChanged, File),
            ("gone", Effect::Deleted, Whiteout),
            ("link", Effect::AddedOrChanged, Symlink),
            ("mode", Effect::AddedOrChanged, Directory),
            ("name", Effect::AddedOrChanged, File),
            ("never", Effect::Deleted, Whiteout),
            ("new", Effect::AddedOrChanged, Directory),
            ("new/a", Effect::AddedOrChanged, File),
            ("replaced", Effect::Opaque, Directory),
            ("replaced/kept", Effect::AddedOrChanged, File),
            ("replaced/new", Effect::AddedOrChanged, File),
            ("same", Effect::AddedOrChanged, Directory),
            ("same/b", Effect::AddedOrChanged, File),
            ("was-file", Effect::AddedOrChanged, Directory),
        ];
        let expected = expected.map(|(path, effect, kind)| (path.to_owned(), effect, kind));
        assert_eq!(listed(Changes::of(&upper, XattrNamespace::User).unwrap()), expected);
        let bytes: u64 = Changes::of(&upper, XattrNamespace::User).unwrap().map(|change| change.unwrap().bytes).sum();
        let root = allocated(&rustix::fs::stat(&upper).unwrap());
        assert_eq!(bytes + root, TreeSize::of(&upper).unwrap().bytes);
        assert!(matches!(Changes::of(upper.join("file"), XattrNamespace::User), Err(Error::NotADirectory { .. })));
    }

    #[test]
    fn a_stack_tells_added_from_changed_and_names_what_is_deleted() {
        use EntryKind::{Directory, File, Symlink};
        let dir = tempfile::tempdir().unwrap();
        let [upper, base] = make(dir.path());
        let stack = Stack::new(&[base], XattrNamespace::User).unwrap();
        let expected = [
            ("file", Effect::Changed, File),
            ("gone", Effect::Deleted, File),
            ("link", Effect::Added, Symlink),
            ("mode", Effect::Changed, Directory),
            ("name", Effect::Added, File),
            ("new", Effect::Added, Directory),
            ("new/a", Effect::Added, File),
            ("replaced", Effect::Opaque, Directory),
            ("replaced/old", Effect::Deleted, File),
            ("replaced/kept", Effect::Changed, File),
            ("replaced/new", Effect::Added, File),
            ("same/b", Effect::Added, File),
            ("was-file", Effect::Changed, Directory),
        ];
        let expected = expected.map(|(path, effect, kind)| (path.to_owned(), effect, kind));
        assert_eq!(listed(stack.changes(&upper).unwrap()), expected);
    }

    #[test]
    fn a_directory_that_cannot_be_classified_does_not_end_the_list() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        setxattr(dir.path().join("a"), "user.overlay.redirect", b"/x", XattrFlags::empty()).unwrap();
        let changes: Vec<_> = Changes::of(dir.path(), XattrNamespace::User).unwrap().collect();
        assert!(
            matches!(&changes[..], [Err(Error::Unmergeable { .. }), Ok(Change { path, .. })] if path == Path::new("b"))
        );
    }

    #[test]
    fn a_file_with_several_names_counts_at_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir(path("b")).unwrap();
        fs::write(path("d"), "content").unwrap();
        for name in ["b/c", "e"] {
            fs::hard_link(path("d"), path(name)).unwrap();
        }
        let changes: Vec<Change> = Changes::of(dir.path(), XattrNamespace::User).unwrap().map(Result::unwrap).collect();
        let bytes: Vec<_> = changes.iter().map(|change| (change.path.to_str().unwrap(), change.bytes)).collect();
        let allocated = |name| allocated(&rustix::fs::lstat(path(name)).unwrap());
        assert_eq!(bytes, [("b", allocated("b")), ("b/c", allocated("d")), ("d", 0), ("e", 0)]);
        assert!(allocated("d") > 0);
    }

    #[test]
    fn a_change_as_json_has_words() {
        let change = Change { path: "a".into(), effect: Effect::AddedOrChanged, kind: EntryKind::File, bytes: 9 };
        let expected = r#"{"path":"/a","change":"added-or-changed","has":"file","bytes":9}"#;
        assert_eq!(serde_json::to_string(&change).unwrap(), expected);
    }
}
