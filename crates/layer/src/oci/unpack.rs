//! Makes the files of the entries of archives below one directory. Follows no link out of it:
//! every step is by descriptor. `unpack/` has the directories on the way, whiteouts, hard links,
//! and the attributes of directories.

mod budget;
mod directories;
mod hard_links;
mod holes;
mod names;
mod parents;
mod privileges;
mod whiteouts;

use std::collections::HashSet;
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Stat, fstat, mkdirat, mknodat, openat, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;

pub(crate) use self::budget::Budget;
use self::directories::Directories;
pub(crate) use self::directories::has_usual_root;
use self::names::Names;
use self::parents::Parent;
pub use self::privileges::{LeftOut, Privileges};
use self::privileges::{apply, attributes_failed};
use self::whiteouts::Brought;
use super::archive::{Archive, Input};
use super::entry::{Entry, Kind};
use super::entry_name::{EntryName, Path};
use super::error::Problem;
use crate::stack::overlayfs::{self, XattrNamespace};
use crate::stack::view::View;
use crate::tree::attributes::Attributes;
use crate::tree::remove::remove_at;
use crate::tree::walk::{Identity, READ, as_os_str, identity};

/// How entries are unpacked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    pub(crate) privileges: Privileges,
    /// The namespace in which whiteouts and opaque directories are marked.
    pub(crate) xattrs: XattrNamespace,
}

/// The kind of tree that is being made.
enum Target {
    /// A whole file system, into which one layer after the other is unpacked. A whiteout removes.
    Whole {
        /// The files that the layer has brought so far. Its own whiteouts spare them. `None` in the
        /// lowest layer, where there is nothing to remove.
        brought: Option<Brought>,
    },
    /// One layer of a stack. A whiteout stays one.
    Layer {
        /// The tree itself over the layers below. `None` in the lowest layer.
        stack: Option<View>,
        /// The directories in which the layer has brought something. The others are there for the
        /// sake of a whiteout.
        brought: Brought,
    },
}

impl Target {
    fn brought(&mut self) -> Option<&mut Brought> {
        match self {
            Self::Whole { brought } => brought.as_mut(),
            Self::Layer { brought, .. } => Some(brought),
        }
    }
}

/// The part of the layers below that decides how the tree of a layer looks. It depends on the
/// archive alone, so that the same layer of several images has the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Needs {
    /// None: the archive says everything.
    #[default]
    Nothing,
    /// The root directory, which the archive has no entry for.
    Root,
    /// Other directories that the archive has no entry for, or files that it links to or hides.
    Layers,
}

impl Needs {
    /// Returns whether the tree looks the same over any layers.
    pub(crate) fn is_nothing(&self) -> bool {
        *self == Self::Nothing
    }
}

/// Unpacks entries into a new directory.
pub(crate) struct Unpacker {
    root: OwnedFd,
    path: PathBuf,
    target: Target,
    options: Options,
    directories: Directories,
    /// The directory of the last entry. Most entries are in the same one as the entry before.
    parent: Option<Parent>,
    left_out: LeftOut,
    /// The devices that were left out, by their directories and names. A hard link can lead to one.
    absent: Names,
    /// Directories of a layer in which the layers below have nothing that shows. That stays so as
    /// long as they exist.
    alone: HashSet<Identity>,
    /// The number in the temporary name of the next hard link that replaces a file.
    next_link: u64,
    budget: Budget,
    needs: Needs,
}

/// The result of unpacking.
#[derive(Debug)]
pub(crate) struct Unpacked {
    pub(crate) left_out: LeftOut,
    /// The rest of the budget.
    pub(crate) budget: Budget,
    /// The part of the layers below that the tree depends on.
    pub(crate) needs: Needs,
}

/// An open directory of the tree.
#[derive(Debug)]
struct Dir {
    fd: OwnedFd,
    identity: Identity,
}

impl Dir {
    fn new(fd: OwnedFd) -> Result<Self, Problem> {
        let identity = identity(&fstat(&fd).map_err(Problem::io("look at"))?);
        Ok(Self { fd, identity })
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Unpacker {
    /// Makes the new directory `tree` for a whole file system.
    pub(crate) fn whole(tree: PathBuf, options: Options, budget: Budget) -> Result<Self, crate::Error> {
        Self::new(tree, Target::Whole { brought: None }, options, budget)
    }

    /// Makes the new directory `tree` for one layer over the trees `below`, topmost first.
    pub(crate) fn layer(
        tree: PathBuf,
        below: &[PathBuf],
        options: Options,
        budget: Budget,
    ) -> Result<Self, crate::Error> {
        let target = Target::Layer { stack: None, brought: Brought::default() };
        let mut unpacker = Self::new(tree.clone(), target, options, budget)?;
        if let Some(topmost) = below.first() {
            let trees: Vec<_> = std::iter::once(&tree).chain(below).collect();
            let stack = Some(View::new(&trees)?.xattrs(options.xattrs));
            unpacker.target = Target::Layer { stack, brought: Brought::default() };
            unpacker.directories.inherit_root(topmost, options.xattrs)?;
        }
        Ok(unpacker)
    }

    fn new(tree: PathBuf, target: Target, options: Options, budget: Budget) -> Result<Self, crate::Error> {
        mkdirat(CWD, &tree, Mode::RWXU).map_err(crate::Error::io("make the directory", &tree))?;
        let root = openat(CWD, &tree, READ, Mode::empty()).map_err(crate::Error::io("open", &tree))?;
        crate::tree::attributes::strip(root.as_fd()).map_err(crate::Error::io("clear the attributes of", &tree))?;
        let stat = fstat(&root).map_err(crate::Error::io("look at", &tree))?;
        Ok(Self {
            directories: Directories::new(identity(&stat)),
            root,
            path: tree,
            target,
            options,
            parent: None,
            left_out: LeftOut::default(),
            absent: Names::default(),
            alone: HashSet::new(),
            next_link: 0,
            budget,
            needs: Needs::Nothing,
        })
    }

    /// Begins a further layer, over all that were unpacked so far.
    pub(crate) fn begin_layer(&mut self) {
        if let Target::Whole { brought } = &mut self.target {
            *brought = Some(Brought::default());
        }
        // This layer has brought none of the directories above it so far.
        self.parent = None;
        self.directories.begin_layer();
    }

    /// Makes what an entry describes. Its content is read from `archive`.
    pub(crate) fn unpack<R: Input>(&mut self, entry: Entry, archive: &mut Archive<R>) -> Result<(), Problem> {
        self.left_out.acl_texts += u64::from(entry.has_acl_text);
        match EntryName::parse(&entry.path)? {
            EntryName::Skipped => Ok(()),
            EntryName::Root => match entry.kind {
                Kind::Directory => self.set_directory_attributes(self.directories.root(), entry),
                _ => Err(Problem::RootNotADirectory),
            },
            // AUFS has hard links among its whiteouts.
            EntryName::Whiteout { .. } | EntryName::Opaque { .. }
                if !matches!(entry.kind, Kind::File | Kind::HardLink { .. }) =>
            {
                Err(Problem::WhiteoutNotAFile)
            }
            EntryName::Whiteout { parent, name } => self.whiteout(&parent, &name),
            EntryName::Opaque { directory } => self.opaque(&directory),
            EntryName::File { parent, name } => self.file(&parent, &name, entry, archive),
        }
    }

    /// Sets the attributes of all directories. Without it, they have none.
    pub(crate) fn finish(mut self) -> Result<Unpacked, Problem> {
        if self.needs == Needs::Nothing && !self.directories.has_root() {
            self.needs = Needs::Root;
        }
        let directories = std::mem::take(&mut self.directories);
        directories.apply(self.root.as_fd(), |attributes, dir| {
            let operation = "set the attributes of the directories of";
            let stat = fstat(dir).map_err(Problem::io(operation))?;
            let failed = attributes_failed(operation, &attributes, self.root.as_fd());
            apply(&mut self.left_out, self.options.privileges, attributes, &stat, |attributes| {
                attributes.apply_over(dir, &stat)
            })
            .map_err(failed)
        })?;
        Ok(Unpacked { left_out: self.left_out, budget: self.budget, needs: self.needs })
    }

    fn file<R: Input>(
        &mut self,
        parent: &Path,
        name: &CStr,
        entry: Entry,
        archive: &mut Archive<R>,
    ) -> Result<(), Problem> {
        let dir = self.parent(parent)?;
        match &entry.kind {
            Kind::Directory => {
                let made = self.make_directory(&dir, name)?;
                self.set_directory_attributes(made.identity, entry)
            }
            Kind::File | Kind::Sparse { .. } => self.regular_file(&dir, name, entry, archive),
            Kind::HardLink { target } => {
                let target = Path::parse(target)?;
                self.hard_link(&dir, name, &target)
            }
            Kind::Symlink { target } => {
                self.make(&dir, name, |dir| symlinkat(target, dir, name))?;
                self.apply_to_name(&dir, name, FileType::Symlink, entry)
            }
            Kind::CharacterDevice(device) => self.special(&dir, name, FileType::CharacterDevice, *device, entry),
            Kind::BlockDevice(device) => self.special(&dir, name, FileType::BlockDevice, *device, entry),
            Kind::Fifo => self.special(&dir, name, FileType::Fifo, 0, entry),
        }
    }

    /// Opens the directory `name` in `dir`. Makes it if it is missing, and replaces any other file.
    /// Does not note it: a noted directory stands for all those above it.
    fn make_directory(&mut self, dir: &Dir, name: &CStr) -> Result<Rc<Dir>, Problem> {
        let mut replaces = false;
        loop {
            match mkdirat(dir.as_fd(), name, Mode::RWXU) {
                Ok(()) => break self.budget.pay_file()?,
                Err(Errno::EXIST) => match openat(dir.as_fd(), name, READ, Mode::empty()) {
                    Ok(exists) => return Dir::new(exists).map(Rc::new),
                    Err(Errno::NOTDIR | Errno::LOOP) => {
                        self.clear(dir, name)?;
                        replaces = true;
                    }
                    Err(errno) => return Err(Problem::io("open")(errno)),
                },
                Err(errno) => return Err(Problem::io("make")(errno)),
            }
        }
        let made = openat(dir.as_fd(), name, READ, Mode::empty()).map_err(Problem::io("open"))?;
        // Whatever the name was before, in this layer it hides what is below.
        if replaces && matches!(self.target, Target::Layer { .. }) {
            overlayfs::set_opaque(made.as_fd(), self.options.xattrs).map_err(Problem::io("mark"))?;
        }
        let made = Rc::new(Dir::new(made)?);
        // It can have the number of one that was removed.
        self.alone.remove(&made.identity);
        if let Some(brought) = self.target.brought() {
            brought.forget(made.identity);
        }
        self.directories.add(made.identity)?;
        Ok(made)
    }

    fn set_directory_attributes(&mut self, directory: Identity, entry: Entry) -> Result<(), Problem> {
        if let Some(brought) = self.target.brought() {
            brought.add(directory);
        }
        self.directories.set(directory, attributes(FileType::Directory, entry))
    }

    fn regular_file<R: Input>(
        &mut self,
        dir: &Dir,
        name: &CStr,
        entry: Entry,
        archive: &mut Archive<R>,
    ) -> Result<(), Problem> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Where the umask leaves it alone, the mode needs no further call.
        let mode = Mode::from_raw_mode(entry.mode & 0o777);
        // Before a file gets its size: a hole costs nothing now, but time whenever it is read.
        self.budget.pay_bytes(size(&entry))?;
        let mut file = File::from(self.make(dir, name, |dir| openat(dir, name, flags, mode))?);
        match &entry.kind {
            Kind::Sparse { pieces, size } => holes::write_pieces(&file, pieces, *size, archive)?,
            _ if entry.size >= holes::LEAST_BYTES => holes::write_without_zeros(&file, entry.size, archive)?,
            _ => loop {
                let content = archive.content()?;
                if content.is_empty() {
                    break;
                }
                file.write_all(content).map_err(Problem::io("write"))?;
            },
        }
        let stat = fstat(&file).map_err(Problem::io("look at"))?;
        self.note(identity(&stat));
        let attributes = attributes(FileType::RegularFile, entry);
        let failed = attributes_failed("set the attributes of", &attributes, self.root.as_fd());
        apply(&mut self.left_out, self.options.privileges, attributes, &stat, |attributes| {
            attributes.apply_over(file.as_fd(), &stat)
        })
        .map_err(failed)
    }

    fn special(&mut self, dir: &Dir, name: &CStr, kind: FileType, device: u64, entry: Entry) -> Result<(), Problem> {
        match self.make(dir, name, |dir| mknodat(dir, name, kind, Mode::RUSR | Mode::WUSR, device)) {
            Ok(()) => self.apply_to_name(dir, name, kind, entry),
            Err(Problem::Io { source, .. })
                if self.options.privileges == Privileges::AsAvailable
                    && source.kind() == io::ErrorKind::PermissionDenied =>
            {
                self.leave_out(dir, name)
            }
            Err(problem) => Err(problem),
        }
    }

    /// Leaves out the device `name` in `dir`. It hides what the layers below have under that name,
    /// as the device would.
    fn leave_out(&mut self, dir: &Dir, name: &CStr) -> Result<(), Problem> {
        self.left_out.devices += 1;
        self.absent.add(dir.identity, name)?;
        self.clear(dir, name)?;
        self.make_whiteout(dir, name)
    }

    fn apply_to_name(&mut self, dir: &Dir, name: &CStr, kind: FileType, entry: Entry) -> Result<(), Problem> {
        let stat = self.look_at(dir, name)?;
        self.note(identity(&stat));
        let attributes = attributes(kind, entry);
        let failed = attributes_failed("set the attributes of", &attributes, self.root.as_fd());
        apply(&mut self.left_out, self.options.privileges, attributes, &stat, |attributes| {
            attributes.apply_to_name(dir.as_fd(), name)
        })
        .map_err(failed)
    }

    /// Makes the file `name` in `dir` by the system call `make`, in place of what is there.
    fn make<T>(
        &mut self,
        dir: &Dir,
        name: &CStr,
        make: impl Fn(BorrowedFd<'_>) -> rustix::io::Result<T>,
    ) -> Result<T, Problem> {
        self.budget.pay_file()?;
        match make(dir.as_fd()) {
            Err(Errno::EXIST) => {
                self.clear(dir, name)?;
                make(dir.as_fd()).map_err(Problem::io("make"))
            }
            made => made.map_err(Problem::io("make")),
        }
    }

    /// Removes `name` from `dir`, with everything in it.
    fn clear(&mut self, dir: &Dir, name: &CStr) -> Result<(), Problem> {
        // The path of the directory may lead through what is removed.
        self.parent = None;
        let removed = match unlinkat(dir.as_fd(), name, AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) => {
                let path = self.path.join(as_os_str(name));
                remove_at(dir.as_fd(), name, &path, NonZeroUsize::MIN)
            }
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => return Err(Problem::io("remove what was at the place of")(errno)),
        };
        removed.map_err(|error| Problem::Below(Box::new(error)))
    }

    fn look_at(&self, dir: &Dir, name: &CStr) -> Result<Stat, Problem> {
        statat(dir.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW).map_err(Problem::io("look at"))
    }

    /// Notes a file that this layer has made. In a layer of a stack, every file is one.
    fn note(&mut self, identity: Identity) {
        if let Target::Whole { brought: Some(brought) } = &mut self.target {
            brought.add(identity);
        }
    }
}

/// Returns whether an error means that nothing is at a path.
fn is_missing(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP))
}

/// Returns the size of the file that an entry describes, with its holes.
fn size(entry: &Entry) -> u64 {
    match entry.kind {
        Kind::Sparse { size, .. } => size,
        _ => entry.size,
    }
}

fn attributes(kind: FileType, entry: Entry) -> Attributes {
    Attributes::new(kind, entry.mode, (entry.uid, entry.gid), entry.mtime, entry.xattrs)
}
