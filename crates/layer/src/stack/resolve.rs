//! Resolves a path in a stack, through the symbolic links on the way. `view.rs` decides what the
//! stack shows in one directory.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, readlinkat};
use rustix::io::Errno;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::json_path;
use crate::stack::overlayfs::EntryKind;
use crate::stack::view::{Child, Directory, View};
use crate::tree::walk::LONGEST_PATH;

/// The maximum number of symbolic links on the way to a path (`MAXSYMLINKS` in the kernel).
const MOST_LINKS: usize = 40;

/// The treatment of a symbolic link that is the last name of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LastLink {
    Followed,
    NotFollowed,
}

/// The entry at the end of a path.
#[derive(Debug)]
pub(crate) enum Resolved {
    Directory(Directory),
    /// An entry that is not a directory, opened without access to its content.
    File {
        /// The path below the root of the stack, without links on the way.
        path: PathBuf,
        tree: usize,
        kind: EntryKind,
        file: OwnedFd,
    },
}

/// A symbolic link on the way to a path of a [`Stack`](crate::Stack).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct StackLink {
    /// The path of the link below the root of the stack, without links on the way. In JSON it has a
    /// leading slash.
    #[serde(serialize_with = "json_path::serialize_absolute")]
    pub path: PathBuf,
    /// The target, as the link has it.
    #[serde(serialize_with = "json_path::serialize")]
    pub target: PathBuf,
    /// The position of the layer that supplies the link: 0 is the topmost.
    pub layer: usize,
}

/// The way of a path through the symbolic links of a [`Stack`](crate::Stack), and its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Trace {
    /// The links, in the order in which they are followed.
    pub links: Vec<StackLink>,
    /// The path to which they lead, below the root of the stack and without links on the way. If
    /// the stack shows nothing there, the path ends with the names that it does not have. It ends
    /// with a slash if a file is in the place of a directory that the path needs. In JSON it has a
    /// leading slash.
    #[serde(serialize_with = "json_path::serialize_absolute")]
    pub path: PathBuf,
}

/// The end of a path.
pub(super) enum End {
    Found(Resolved),
    /// The stack shows nothing at this path, which has no links on the way.
    Missing(PathBuf, Errno),
}

/// The directories of a stack on the way to a path, as far as the stack has them.
#[cfg(feature = "oci")]
#[derive(Debug)]
pub(crate) enum Known {
    /// The directories, the uppermost first, by paths without links. The last `missing` names of
    /// the path are not in the stack.
    Directories { way: Vec<Directory>, missing: usize },
    /// A part of the path is not a directory, or is a link that leads nowhere or in a circle.
    NotADirectory,
}

/// Finds the directories of the stack on the way to `path`, which ends with one.
///
/// # Errors
/// As [`follow`].
#[cfg(feature = "oci")]
pub(crate) fn known_directories(view: &View, path: &Path) -> Result<Known> {
    let walked = match walk(view, path, LastLink::Followed) {
        Err(Error::Io { source, .. }) if Errno::from_io_error(&source) == Some(Errno::LOOP) => {
            return Ok(Known::NotADirectory);
        }
        walked => walked?,
    };
    Ok(match (walked.end, walked.missing) {
        (End::Found(Resolved::Directory(_)), _) => Known::Directories { way: walked.way, missing: 0 },
        (End::Missing(..), Some(missing)) => Known::Directories { way: walked.way, missing },
        _ => Known::NotADirectory,
    })
}

/// Resolves `path` as [`follow`] does, to an entry.
///
/// # Errors
/// As [`follow`]. [`Error::Io`] names `path`, with the kernel's error, if the stack shows nothing
/// there.
pub(crate) fn resolve(view: &View, path: &Path, last: LastLink) -> Result<Resolved> {
    match follow(view, path, last)?.1 {
        End::Found(resolved) => Ok(resolved),
        End::Missing(_, errno) => Err(Error::io("find the stack's", path)(errno)),
    }
}

/// Follows `path` as the kernel does in a root file system: `..` at the root is the root, and an
/// absolute link starts there again. The empty path is the root. Returns the links on the way and
/// the end.
///
/// # Errors
/// [`Error::Io`] names `path` if it, or a path to which its links lead, is too long or has too many
/// links. The other errors are those of [`View::open_child`].
pub(super) fn follow(view: &View, path: &Path, last: LastLink) -> Result<(Vec<StackLink>, End)> {
    walk(view, path, last).map(|walked| (walked.links, walked.end))
}

/// The way of a path through a stack.
struct Walked {
    links: Vec<StackLink>,
    /// The directories that were entered and not left, below the root.
    #[cfg_attr(not(feature = "oci"), allow(dead_code))]
    way: Vec<Directory>,
    /// The number of names of the path from the first one that the stack lacks. `None` if it lacks
    /// no name, or one of a link's target.
    #[cfg_attr(not(feature = "oci"), allow(dead_code))]
    missing: Option<usize>,
    end: End,
}

fn walk(view: &View, path: &Path, last: LastLink) -> Result<Walked> {
    let fail = |errno: Errno| Error::io("find the stack's", path)(errno);
    if path.as_os_str().len() > LONGEST_PATH {
        return Err(fail(Errno::NAMETOOLONG));
    }
    let root = view.root();
    // The directories on the way, below the root.
    let mut way: Vec<Directory> = Vec::new();
    // The names that are still to come, the next one last.
    let mut names = Vec::new();
    push_names(&mut names, path.as_os_str());
    // How many of them are names of the path itself. Those of links are above them.
    let mut own = names.len();
    let mut links = Vec::new();
    while let Some(name) = names.pop() {
        let of_link = names.len() >= own;
        own = own.min(names.len());
        match name.as_bytes() {
            b"." => continue,
            b".." => {
                way.pop();
                continue;
            }
            _ => {}
        }
        let directory = way.last().unwrap_or(&root);
        let path = directory.path().join(&name);
        let (layer, file, stat) = match view.open_child(directory, &name)? {
            None => {
                let missing = (!of_link).then_some(own + 1);
                return Ok(Walked { links, way, missing, end: End::Missing(with_rest(path, names), Errno::NOENT) });
            }
            // Links could lead deeper. The limit bounds the memory and the work that a hostile
            // layer can cost.
            Some(Child::Directory(directory)) if directory.path().as_os_str().len() > LONGEST_PATH => {
                return Err(fail(Errno::NAMETOOLONG));
            }
            Some(Child::Directory(directory)) => {
                way.push(directory);
                continue;
            }
            Some(Child::File { tree, file, stat }) => (tree, file, stat),
        };
        let place = || view.path(layer).join(&path);
        let kind = EntryKind::of(FileType::from_raw_mode(stat.st_mode));
        if kind == EntryKind::Symlink && (last == LastLink::Followed || !names.is_empty()) {
            if links.len() == MOST_LINKS {
                return Err(fail(Errno::LOOP));
            }
            let target = readlinkat(&file, c"", Vec::new()).map_err(Error::io("read the link", place()))?;
            let target = OsString::from_vec(target.into_bytes());
            if target.as_bytes().starts_with(b"/") {
                way.clear();
            }
            push_names(&mut names, &target);
            links.push(StackLink { path, target: target.into(), layer });
        } else if names.is_empty() {
            let end = End::Found(Resolved::File { path, tree: layer, kind, file });
            return Ok(Walked { links, way, missing: None, end });
        } else {
            let end = End::Missing(with_rest(path, names), Errno::NOTDIR);
            return Ok(Walked { links, way, missing: None, end });
        }
    }
    let end = End::Found(Resolved::Directory(way.last().cloned().unwrap_or(root)));
    Ok(Walked { links, way, missing: None, end })
}

/// Adds the names that are still to come, the next one last, to a path that the stack does not
/// have. Leaves out the first `..` and what follows: nothing can be above a missing directory. The
/// result ends with a slash if there are such names and no others.
fn with_rest(path: PathBuf, names: Vec<OsString>) -> PathBuf {
    let needs_directory = !names.is_empty();
    let names = names.into_iter().rev().take_while(|name| name != "..").filter(|name| name != ".");
    let whole: PathBuf = std::iter::once(path.clone().into_os_string()).chain(names).collect();
    if needs_directory && whole == path { path.join("") } else { whole }
}

/// Adds the names of `path`, the first one last. A slash at the end of `path` stands for `/.`: the
/// path must lead to a directory.
fn push_names(names: &mut Vec<OsString>, path: &OsStr) {
    let bytes = path.as_bytes();
    names.extend(bytes.ends_with(b"/").then(|| ".".into()));
    let parts = bytes.split(|byte| *byte == b'/').rev().filter(|name| !name.is_empty());
    names.extend(parts.map(|name| OsStr::from_bytes(name).to_owned()));
}
