//! Applies whiteouts and opaque directories. In a whole file system they remove what earlier layers
//! brought; in a layer of a stack they become those of overlayfs. Both spare what the same layer
//! brings, whatever the order of the entries is.

use std::collections::HashSet;
use std::ffi::CStr;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, FileType, Mode, Stat, openat, statat, unlinkat};
use rustix::io::Errno;

use super::{Dir, Target, Unpacker};
use crate::oci::entry_name::Path;
use crate::oci::error::Problem;
use crate::stack::overlayfs::{self, EntryKind};
use crate::tree::remove::remove_at;
use crate::tree::walk::{Entries, Identity, READ, as_c_string, identity, open_beneath};

impl Unpacker {
    /// Hides `name` of the layers below.
    pub(super) fn whiteout(&mut self, parent: &Path, name: &CStr) -> Result<(), Problem> {
        if matches!(self.target, Target::Whole { brought: None }) {
            return Ok(());
        }
        let Some(dir) = self.existing(parent)? else { return Ok(()) };
        // The cached directory may be below the name that is removed.
        self.parent = None;
        let stat = match statat(dir.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Some(stat),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(Problem::io("look at")(errno)),
        };
        match &self.target {
            Target::Whole { brought } => {
                let (Some(brought), Some(stat)) = (brought, stat) else { return Ok(()) };
                remove_but(brought, dir.as_fd(), name, &stat)?;
                if brought.contains(&identity(&stat)) {
                    self.directories.forget_below(identity(&stat));
                }
                Ok(())
            }
            Target::Layer { .. } => self.whiteout_in_layer(&dir, name, stat.as_ref()),
        }
    }

    /// Hides `name` of the layers below by a whiteout. `stat` is that of what the layer itself has
    /// there.
    pub(super) fn whiteout_in_layer(&mut self, dir: &Dir, name: &CStr, stat: Option<&Stat>) -> Result<(), Problem> {
        let xattrs = self.options.xattrs;
        let mark = Problem::io("mark the directory of");
        match stat {
            // In an opaque directory, there is nothing to hide.
            None if overlayfs::is_opaque_dir(dir.as_fd(), xattrs).map_err(Problem::io("read the directory of"))? => {}
            None => {
                overlayfs::make_whiteout(dir.as_fd(), name).map_err(Problem::io("make"))?;
                overlayfs::set_has_whiteouts(dir.as_fd(), xattrs).map_err(mark)?;
                let mark = Problem::io("mark the directory of");
                overlayfs::set_has_whiteouts_elsewhere(dir.as_fd(), xattrs).map_err(mark)?;
            }
            Some(stat) if FileType::from_raw_mode(stat.st_mode).is_dir() => {
                let here = openat(dir.as_fd(), name, READ, Mode::empty()).map_err(Problem::io("open"))?;
                overlayfs::set_opaque(here.as_fd(), xattrs).map_err(mark)?;
                self.directories.forget_below(identity(stat));
            }
            // The layer itself has the name.
            Some(_) => {}
        }
        Ok(())
    }

    /// Hides everything that the layers below have in a directory.
    pub(super) fn opaque(&mut self, path: &Path) -> Result<(), Problem> {
        match &self.target {
            Target::Whole { brought: None } => Ok(()),
            Target::Whole { .. } => {
                let Some(dir) = self.existing(path)? else { return Ok(()) };
                self.parent = None;
                let Target::Whole { brought: Some(brought) } = &self.target else { return Ok(()) };
                for (name, stat) in list(dir.as_fd())? {
                    remove_but(brought, dir.as_fd(), &name, &stat)?;
                }
                Ok(())
            }
            // Overlayfs does not look for the mark of the root of a layer.
            Target::Layer { stack } if path.is_root() => {
                let Some(stack) = stack else { return Ok(()) };
                self.consulted = true;
                let names = stack.names(&stack.root()).map_err(|error| Problem::Below(Box::new(error)))?;
                for name in names.into_keys() {
                    let name = as_c_string(&name).map_err(Problem::io("read the directory of"))?;
                    self.whiteout(path, &name)?;
                }
                Ok(())
            }
            Target::Layer { .. } => {
                let dir = self.parent(path)?;
                overlayfs::set_opaque(dir.as_fd(), self.options.xattrs)
                    .map_err(Problem::io("mark the directory of"))?;
                self.remove_whiteouts(&dir)
            }
        }
    }

    /// Removes the whiteouts from a directory that has become opaque.
    fn remove_whiteouts(&self, dir: &Dir) -> Result<(), Problem> {
        for (name, stat) in list(dir.as_fd())? {
            let entry = overlayfs::Entry::new(dir.as_fd(), &name, &stat);
            let kind = entry.classify(self.options.xattrs);
            if kind.map_err(|why| Problem::Below(Box::new(why.at(self.path.clone()))))? == EntryKind::Whiteout {
                unlinkat(dir.as_fd(), &name, AtFlags::empty()).map_err(Problem::io("remove a whiteout beside"))?;
            }
        }
        Ok(())
    }
}

/// Removes `name` from `dir`, and everything in it, but nothing that is in `brought`.
fn remove_but(brought: &HashSet<Identity>, dir: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> Result<(), Problem> {
    let failed = Problem::io("remove what is hidden by");
    if !brought.contains(&identity(stat)) {
        let removed = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                remove_at(dir, name, &PathBuf::new(), NonZeroUsize::MIN)
                    .map_err(|error| Problem::Below(Box::new(error)))?;
                Ok(())
            }
            _ => unlinkat(dir, name, AtFlags::empty()),
        };
        return removed.map_err(failed);
    }
    if !FileType::from_raw_mode(stat.st_mode).is_dir() {
        return Ok(());
    }
    // Directories that stay, by their paths below the first.
    let top = openat(dir, name, READ, Mode::empty()).map_err(Problem::io("open"))?;
    let mut waiting = vec![PathBuf::new()];
    while let Some(path) = waiting.pop() {
        let here = open_beneath(top.as_fd(), &path, READ).map_err(Problem::io("open"))?;
        for (name, stat) in list(here.as_fd())? {
            let is_dir = FileType::from_raw_mode(stat.st_mode).is_dir();
            match brought.contains(&identity(&stat)) {
                true if is_dir => waiting.push(path.join(crate::tree::walk::as_os_str(&name))),
                true => {}
                false if is_dir => remove_at(here.as_fd(), &name, &path, NonZeroUsize::MIN)
                    .map_err(|error| Problem::Below(Box::new(error)))?,
                false => {
                    unlinkat(&here, &name, AtFlags::empty()).map_err(Problem::io("remove what is hidden by"))?;
                }
            }
        }
    }
    Ok(())
}

/// Lists a directory, with the attributes of each entry.
fn list(dir: BorrowedFd<'_>) -> Result<Vec<(std::ffi::CString, Stat)>, Problem> {
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
