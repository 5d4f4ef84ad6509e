//! Applies whiteouts and opaque directories. In a whole file system they remove what earlier layers
//! brought; in a layer of a stack they become those of overlayfs. Both spare what the same layer
//! brings, whatever the order of the entries is.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, FileType, Mode, Stat, openat, statat};
use rustix::io::Errno;

use super::names::Names;
use super::parents::is_whiteout;
use super::{Dir, Needs, Target, Unpacker};
use crate::oci::entry_name::Path;
use crate::oci::error::Problem;
use crate::stack::overlayfs;
use crate::tree::walk::{Entries, Identity, READ, as_c_string, as_os_str, identity, open_beneath};

/// What a layer has brought so far, with the directories above it.
#[derive(Debug, Default)]
pub(super) struct Brought {
    /// Directories, and files that the layer has made.
    made: HashSet<Identity>,
    /// The names that the layer has given to files of the layers below. Other names of these files
    /// are not the layer's.
    links: Names,
    /// Directories in which everything of the layers below was hidden.
    cleared: HashSet<Identity>,
}

impl Brought {
    /// Adds a directory, or a file that is new. Returns whether it was not there yet.
    pub(super) fn add(&mut self, identity: Identity) -> bool {
        self.made.insert(identity)
    }

    /// Forgets a directory that was removed: a new one has its number.
    pub(super) fn forget(&mut self, identity: Identity) {
        self.made.remove(&identity);
        self.cleared.remove(&identity);
    }

    /// Adds the name of a file that can be one of the layers below.
    pub(super) fn add_link(&mut self, dir: Identity, name: &CStr, file: Identity) -> Result<(), Problem> {
        if self.made.contains(&file) { Ok(()) } else { self.links.add(dir, name) }
    }

    fn has(&self, dir: Identity, name: &CStr, file: Identity) -> bool {
        self.made.contains(&file) || self.links.has(dir, name)
    }
}

impl Unpacker {
    /// Hides `name` of the layers below.
    pub(super) fn whiteout(&mut self, parent: &Path, name: &CStr) -> Result<(), Problem> {
        if matches!(self.target, Target::Whole { brought: None }) {
            return Ok(());
        }
        let Some(dir) = self.existing(parent)? else { return Ok(()) };
        // The cached directory may be below the name that is removed.
        self.parent = None;
        self.whiteout_in(&dir, name)
    }

    fn whiteout_in(&mut self, dir: &Dir, name: &CStr) -> Result<(), Problem> {
        match statat(dir.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if self.brings(dir, name, &stat) => {
                if FileType::from_raw_mode(stat.st_mode).is_dir() {
                    let here = openat(dir.as_fd(), name, READ, Mode::empty()).map_err(Problem::io("open"))?;
                    self.directories.forget_below(identity(&stat));
                    self.hide_below(here.as_fd())?;
                }
                Ok(())
            }
            Ok(stat) if is_whiteout(&stat) && matches!(self.target, Target::Layer { .. }) => Ok(()),
            Ok(_) => {
                self.clear(dir, name)?;
                self.make_whiteout(dir, name)
            }
            Err(Errno::NOENT) => self.make_whiteout(dir, name),
            Err(errno) => Err(Problem::io("look at")(errno)),
        }
    }

    /// Makes a whiteout in a layer. In a whole file system there is nothing to hide.
    pub(super) fn make_whiteout(&mut self, dir: &Dir, name: &CStr) -> Result<(), Problem> {
        let xattrs = self.options.xattrs;
        let mark = || Problem::io("mark the directory of");
        if matches!(self.target, Target::Whole { .. }) {
            return Ok(());
        }
        // In an opaque directory, there is nothing to hide, either.
        if overlayfs::is_opaque_dir(dir.as_fd(), xattrs).map_err(Problem::io("read the directory of"))? {
            return Ok(());
        }
        overlayfs::make_whiteout(dir.as_fd(), name).map_err(Problem::io("make"))?;
        overlayfs::set_has_whiteouts(dir.as_fd(), xattrs).map_err(mark())?;
        overlayfs::set_has_whiteouts_elsewhere(dir.as_fd(), xattrs).map_err(mark())
    }

    /// Hides everything that the layers below have in a directory.
    pub(super) fn opaque(&mut self, path: &Path) -> Result<(), Problem> {
        if matches!(self.target, Target::Whole { brought: None }) {
            return Ok(());
        }
        let Some(dir) = self.existing(path)? else { return Ok(()) };
        self.parent = None;
        match &mut self.target {
            // Overlayfs does not look for the mark of the root of a layer.
            Target::Layer { stack, brought } if dir.identity == self.directories.root() => {
                self.needs = Needs::Layers;
                // What came later is this layer's.
                if !brought.cleared.insert(dir.identity) {
                    return Ok(());
                }
                let Some(stack) = stack else { return Ok(()) };
                let names = stack.names(&stack.root()).map_err(|error| Problem::Below(Box::new(error)))?;
                for name in names.into_keys() {
                    let name = as_c_string(&name).map_err(Problem::io("read the directory of"))?;
                    self.whiteout_in(&dir, &name)?;
                }
                Ok(())
            }
            _ => self.hide_below(dir.as_fd()),
        }
    }

    /// Hides what the layers below have in an open directory. The directories in it that this layer
    /// keeps look as if there were none below.
    fn hide_below(&mut self, top: BorrowedFd<'_>) -> Result<(), Problem> {
        if matches!(self.target, Target::Layer { .. }) {
            overlayfs::set_opaque(top, self.options.xattrs).map_err(Problem::io("mark the directory of"))?;
        }
        // Directories that stay, by their paths below the first.
        let mut waiting = vec![PathBuf::new()];
        while let Some(path) = waiting.pop() {
            let here = open_beneath(top, &path, READ).map_err(Problem::io("open"))?;
            let here = Dir::new(here)?;
            // What came later is this layer's.
            if self.target.brought().is_some_and(|brought| !brought.cleared.insert(here.identity)) {
                continue;
            }
            for (name, stat) in list(here.as_fd())? {
                if !self.brings(&here, &name, &stat) {
                    self.clear(&here, &name)?;
                } else if FileType::from_raw_mode(stat.st_mode).is_dir() {
                    self.directories.forget_below(identity(&stat));
                    waiting.push(path.join(as_os_str(&name)));
                }
            }
        }
        Ok(())
    }

    /// Returns whether this layer has brought the file `name` of `dir`, or something in it.
    fn brings(&self, dir: &Dir, name: &CStr, stat: &Stat) -> bool {
        match &self.target {
            Target::Whole { brought } => {
                brought.as_ref().is_none_or(|brought| brought.has(dir.identity, name, identity(stat)))
            }
            Target::Layer { brought, .. } => match FileType::from_raw_mode(stat.st_mode) {
                // It can be there for the sake of a whiteout in it.
                FileType::Directory => brought.made.contains(&identity(stat)),
                _ => !is_whiteout(stat),
            },
        }
    }
}

/// Lists a directory, with the attributes of each entry.
fn list(dir: BorrowedFd<'_>) -> Result<Vec<(CString, Stat)>, Problem> {
    let failed = || Problem::io("read the directory of");
    // The descriptor may have been read before.
    let again = openat(dir, c".", READ, Mode::empty()).map_err(failed())?;
    let mut listed = Vec::new();
    for entry in Entries::new(again).map_err(failed())? {
        let (name, _) = entry.map_err(failed())?;
        let stat = statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed())?;
        listed.push((name, stat));
    }
    Ok(listed)
}

#[cfg(test)]
mod tests {
    use super::super::{Budget, Options, Privileges};
    use super::*;
    use crate::stack::overlayfs::XattrNamespace;

    #[test]
    fn a_name_is_brought_with_its_file_or_by_itself() {
        let mut brought = Brought::default();
        let (dir, new, below) = ((0, 1), (0, 2), (0, 3));
        assert!(brought.add(new) && !brought.add(new));
        brought.add_link(dir, c"link", below).unwrap();
        brought.add_link(dir, c"other", new).unwrap();
        let has = |name, file| brought.has(dir, name, file);
        assert_eq!([has(c"any", new), has(c"link", below), has(c"original", below)], [true, true, false]);
        assert!(!brought.has((0, 4), c"link", below));
        // A new directory has the number of one that was removed.
        brought.cleared.insert(new);
        brought.forget(new);
        assert!(!brought.has(dir, c"any", new) && brought.cleared.is_empty());
    }

    #[test]
    fn an_opaque_root_lists_the_layers_below_once() {
        let dir = tempfile::tempdir().unwrap();
        let [tree, below] = ["tree", "below"].map(|name| dir.path().join(name));
        std::fs::create_dir(&below).unwrap();
        std::fs::write(below.join("before"), "").unwrap();
        let options = Options { privileges: Privileges::AsAvailable, xattrs: XattrNamespace::User };
        let mut unpacker =
            Unpacker::layer(tree.clone(), std::slice::from_ref(&below), options, Budget::new(1 << 20)).unwrap();
        unpacker.opaque(&Path::default()).unwrap();
        // A second listing would find this file.
        std::fs::write(below.join("after"), "").unwrap();
        unpacker.opaque(&Path::default()).unwrap();
        assert_eq!(["before", "after"].map(|name| tree.join(name).symlink_metadata().is_ok()), [true, false]);
    }
}
