//! Opens the directory of an entry, as a process would whose root is the tree. Makes the
//! directories on the way that the archive has no entries for: in a layer of a stack, they look as
//! they do below.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat, openat2, statat};
use rustix::io::Errno;

use super::{Dir, Needs, Target, Unpacker};
use crate::oci::entry_name::Path;
use crate::oci::error::Problem;
use crate::stack::resolve::{Known, known_directories};
use crate::stack::view::Directory;
use crate::tree::walk::{READ, as_c_string, identity};

/// Resolves a path as in a chroot(2), through no mount and no link of /proc (openat2(2)).
const IN_ROOT: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_XDEV);

/// An open directory, and the path by which entries name it.
pub(super) struct Parent {
    path: Path,
    dir: Rc<Dir>,
}

impl Unpacker {
    /// Opens the directory `path`, and makes what is missing of it.
    pub(super) fn parent(&mut self, path: &Path) -> Result<Rc<Dir>, Problem> {
        self.find(path, Missing::Made)?.ok_or(Problem::NotADirectory)
    }

    /// Opens the directory `path`. Returns `None` if neither the tree nor the layers below have it.
    pub(super) fn existing(&mut self, path: &Path) -> Result<Option<Rc<Dir>>, Problem> {
        self.find(path, Missing::LeftOut)
    }

    fn find(&mut self, path: &Path, missing: Missing) -> Result<Option<Rc<Dir>>, Problem> {
        if let Some(parent) = self.parent.as_ref().filter(|parent| parent.path == *path) {
            return Ok(Some(Rc::clone(&parent.dir)));
        }
        let (dir, is_in_tree) = match self.open(path) {
            Ok(dir) => (Rc::new(Dir::new(dir)?), true),
            Err(errno) if self.is_free(errno) => match self.make_missing(path, missing)? {
                Some(dir) => {
                    let is_in_tree = self.open(path).is_ok_and(|opened| is_same(&opened, &dir));
                    (dir, is_in_tree)
                }
                None => return Ok(None),
            },
            // A whiteout there has nothing to hide.
            Err(Errno::NOTDIR | Errno::LOOP) if missing == Missing::LeftOut => return Ok(None),
            Err(Errno::NOTDIR | Errno::LOOP) => return Err(Problem::NotADirectory),
            Err(errno) => return Err(Problem::io("open the directory of")(errno)),
        };
        // A whiteout brings nothing into the directory.
        if missing == Missing::Made {
            self.note_ancestors(&dir)?;
            // A new file can take the place of a link of the layers below, which the path leads
            // through. In the tree itself, a file must be removed first.
            self.parent = is_in_tree.then(|| Parent { path: path.clone(), dir: Rc::clone(&dir) });
        }
        Ok(Some(dir))
    }

    /// Opens a directory of the tree.
    pub(super) fn open(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let path = if path.is_root() { b"." } else { path.as_bytes() };
        loop {
            let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
            match openat2(&self.root, path, flags, Mode::empty(), IN_ROOT) {
                // Something was renamed somewhere on the machine while the kernel passed a `..`.
                Err(Errno::AGAIN) => {}
                opened => return opened,
            }
        }
    }

    /// Returns whether a path that could not be opened may be free: nothing is there, or perhaps a
    /// whiteout.
    fn is_free(&self, errno: Errno) -> bool {
        errno == Errno::NOENT || errno == Errno::NOTDIR && matches!(self.target, Target::Layer { .. })
    }

    fn make_missing(&mut self, path: &Path, missing: Missing) -> Result<Option<Rc<Dir>>, Problem> {
        let names: Vec<_> = path.names().collect();
        if let Target::Layer { .. } = &self.target {
            self.needs = Needs::Layers;
        }
        let (mut dir, known) = match &self.target {
            Target::Layer { stack: Some(stack), .. } => match (self.existing_alone(&names)?, missing) {
                (Some(_), Missing::LeftOut) => return Ok(None),
                (Some(found), Missing::Made) => found,
                (None, _) => {
                    let below = |error| Problem::Below(Box::new(error));
                    match (known_directories(stack, &path.to_path_buf()).map_err(below)?, missing) {
                        (Known::NotADirectory, Missing::Made) => return Err(Problem::NotADirectory),
                        (Known::Directories { way, missing: 0 }, _) => (self.make_as_below(&way)?, names.len()),
                        (_, Missing::LeftOut) => return Ok(None),
                        (Known::Directories { way, missing }, _) => {
                            let dir = self.make_as_below(&way)?;
                            if way.last().is_some_and(|last| last.trees() == [0]) {
                                self.alone.insert(dir.identity);
                            }
                            (dir, names.len() - missing)
                        }
                    }
                }
            },
            _ if missing == Missing::LeftOut => return Ok(None),
            _ => self.longest_existing(&names)?,
        };
        for name in &names[known..] {
            let name = std::ffi::CString::new(*name).map_err(|_| Problem::NulInName)?;
            // A link that leads nowhere may not be replaced by a directory of the same name.
            match self.look_at(&dir, &name) {
                Ok(stat) if !is_whiteout(&stat) => return Err(Problem::NotADirectory),
                _ => {}
            }
            dir = self.make_directory(&dir, &name)?;
            if let Target::Layer { .. } = self.target {
                self.alone.insert(dir.identity);
            }
        }
        Ok(Some(dir))
    }

    /// Opens the directories of the tree at the beginning of a path, as
    /// [`longest_existing`](Self::longest_existing) does, if the layers below have nothing in the
    /// last of them and the next name is free. Without it, each directory that is missing would
    /// cost a way through the stack from its root.
    fn existing_alone(&self, names: &[&[u8]]) -> Result<Option<(Rc<Dir>, usize)>, Problem> {
        let (dir, known) = match self.longest_existing(names) {
            Ok(found) => found,
            // The stack decides.
            Err(Problem::NotADirectory) => return Ok(None),
            Err(problem) => return Err(problem),
        };
        let Some(next) = names.get(known).filter(|_| self.alone.contains(&dir.identity)) else { return Ok(None) };
        let next = std::ffi::CString::new(*next).map_err(|_| Problem::NulInName)?;
        match statat(dir.as_fd(), &next, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(Some((dir, known))),
            Ok(stat) if is_whiteout(&stat) => Ok(Some((dir, known))),
            // A link can lead to what is below.
            Ok(_) => Ok(None),
            Err(errno) => Err(Problem::io("look at")(errno)),
        }
    }

    /// Opens the directories that exist at the beginning of a path. Returns the last, and how many
    /// names it has.
    fn longest_existing(&self, names: &[&[u8]]) -> Result<(Rc<Dir>, usize), Problem> {
        let open = |known: usize| match self.open(&Path::parse(&names[..known].join(&b'/'))?) {
            Ok(dir) => Ok(Some(dir)),
            Err(errno) if self.is_free(errno) => Ok(None),
            Err(Errno::NOTDIR | Errno::LOOP) => Err(Problem::NotADirectory),
            Err(errno) => Err(Problem::io("open the directory of")(errno)),
        };
        let root = self.open(&Path::default()).map_err(Problem::io("open the directory of"))?;
        // If a path is there, so is every beginning of it.
        let (mut found, mut known, mut absent) = (root, 0, names.len());
        while known + 1 < absent {
            let middle = known.midpoint(absent);
            match open(middle)? {
                Some(dir) => (found, known) = (dir, middle),
                None => absent = middle,
            }
        }
        Ok((Rc::new(Dir::new(found)?), known))
    }

    /// Makes directories of the stack, the uppermost first, each with the attributes that it has
    /// there. Opens those that the tree has.
    fn make_as_below(&mut self, way: &[Directory]) -> Result<Rc<Dir>, Problem> {
        let root = self.open(&Path::default()).map_err(Problem::io("open the directory of"))?;
        let mut dir = Rc::new(Dir::new(root)?);
        for directory in way {
            let name = as_c_string(directory.path().file_name().unwrap_or_default());
            let name = name.map_err(Problem::io("open the directory of"))?;
            dir = match openat(dir.as_fd(), &name, READ, Mode::empty()) {
                Ok(exists) => Rc::new(Dir::new(exists)?),
                Err(Errno::NOENT) => {
                    let made = self.make_directory(&dir, &name)?;
                    if let Target::Layer { stack: Some(stack), .. } = &self.target {
                        let attributes = stack.attributes(directory);
                        if let Some(attributes) = attributes.map_err(|error| Problem::Below(Box::new(error)))? {
                            self.directories.inherit(made.identity, attributes)?;
                        }
                    }
                    made
                }
                Err(errno) => return Err(Problem::io("open the directory of")(errno)),
            };
        }
        Ok(dir)
    }

    /// Notes that this layer has something in a directory and in those above it. A noted directory
    /// ends the way up, because those above it are noted, too.
    fn note_ancestors(&mut self, dir: &Rc<Dir>) -> Result<(), Problem> {
        let root = self.directories.root();
        let Some(brought) = self.target.brought() else { return Ok(()) };
        let mut above: Option<OwnedFd> = None;
        let mut identity = dir.identity;
        while brought.add(identity) && identity != root {
            let from = above.as_ref().map_or(dir.as_fd(), AsFd::as_fd);
            let next = Dir::new(openat(from, c"..", READ, Mode::empty()).map_err(Problem::io("open"))?)?;
            identity = next.identity;
            above = Some(next.fd);
        }
        Ok(())
    }
}

fn is_same(opened: &OwnedFd, dir: &Dir) -> bool {
    fstat(opened).is_ok_and(|stat| identity(&stat) == dir.identity)
}

/// The treatment of a directory that neither the tree nor the layers below have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    Made,
    LeftOut,
}

/// Returns whether a file that was unpacked is a whiteout.
pub(super) fn is_whiteout(stat: &Stat) -> bool {
    stat.st_rdev == 0 && FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
}
