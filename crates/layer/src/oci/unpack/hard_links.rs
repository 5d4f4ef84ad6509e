//! Makes hard links, also to files of the layers below.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Stat, linkat, openat, renameat, statat};
use rustix::io::Errno;

use super::parents::is_whiteout;
use super::{Dir, Needs, Target, Unpacker, is_missing};
use crate::oci::entry_name::Path;
use crate::oci::error::Problem;
use crate::stack::overlayfs::{self, EntryKind};
use crate::stack::resolve::{LastLink, Resolved, resolve};
use crate::tree::walk::{self, READ, identity, open_beneath};

impl Unpacker {
    /// Links `name` in `dir` to the file at `target`, which is not followed if it is a link itself.
    /// Leaves the link out if it leads to a device that was left out.
    pub(super) fn hard_link(&mut self, dir: &Dir, name: &CStr, target: &Path) -> Result<(), Problem> {
        let missing = || Problem::TargetMissing { target: target.to_path_buf() };
        let not_linkable = || Problem::NotLinkable { target: target.to_path_buf() };
        let (parent, target_name) = target.split().ok_or_else(not_linkable)?;
        let here = match self.open(&parent) {
            Ok(parent) => {
                let parent = Dir::new(parent)?;
                let found = statat(parent.as_fd(), &target_name, AtFlags::SYMLINK_NOFOLLOW);
                if found.as_ref().map_or(true, is_whiteout) && self.absent.has(parent.identity, &target_name) {
                    return self.leave_out(dir, name);
                }
                match found {
                    Ok(stat) => Some((parent.fd, target_name, stat)),
                    Err(Errno::NOENT) => None,
                    Err(errno) => return Err(Problem::io("look at the target of")(errno)),
                }
            }
            Err(Errno::NOENT) => None,
            Err(Errno::NOTDIR | Errno::LOOP) => return Err(missing()),
            Err(errno) => return Err(Problem::io("open the directory of the target of")(errno)),
        };
        let Some((parent, target_name, stat)) =
            here.map_or_else(|| self.find_below(target), |found| Ok(Some(found)))?
        else {
            return Err(missing());
        };
        let is_whiteout = overlayfs::Entry::new(parent.as_fd(), &target_name, &stat)
            .classify(self.options.xattrs)
            .map_err(|why| Problem::Below(Box::new(why.at(target.to_path_buf()))))?
            == EntryKind::Whiteout;
        if is_whiteout {
            return Err(missing());
        }
        if FileType::from_raw_mode(stat.st_mode).is_dir() {
            return Err(not_linkable());
        }
        // A link of a file to itself is the file. To remove it first would lose it.
        let exists = statat(dir.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW);
        if !exists.is_ok_and(|exists| identity(&exists) == identity(&stat)) {
            self.budget.pay_file()?;
            match linkat(&parent, &target_name, dir.as_fd(), name, AtFlags::empty()) {
                Err(Errno::EXIST) => self.replace_by_link(dir, name, parent.as_fd(), &target_name)?,
                linked => linked.map_err(Problem::io("make"))?,
            }
        }
        if let Target::Whole { brought: Some(brought) } = &mut self.target {
            brought.add_link(dir.identity, name, identity(&stat))?;
        }
        Ok(())
    }

    /// Links `name` in `dir` in place of what is there, which can be a directory with the target.
    fn replace_by_link(
        &mut self,
        dir: &Dir,
        name: &CStr,
        parent: BorrowedFd<'_>,
        target: &CStr,
    ) -> Result<(), Problem> {
        let free = loop {
            let free = CString::new(format!(".link.{}", self.next_link)).map_err(|_| Problem::NulInName)?;
            match linkat(parent, target, dir.as_fd(), &free, AtFlags::empty()) {
                // The archive has a file of this name. The number is not tried again.
                Err(Errno::EXIST) => self.next_link += 1,
                linked => break linked.map(|()| free).map_err(Problem::io("make"))?,
            }
        };
        self.clear(dir, name)?;
        renameat(dir.as_fd(), &free, dir.as_fd(), name).map_err(Problem::io("make"))
    }

    /// Finds the target of a hard link in the layers below.
    fn find_below(&mut self, target: &Path) -> Result<Option<(OwnedFd, CString, Stat)>, Problem> {
        let Target::Layer { stack: Some(stack), .. } = &self.target else { return Ok(None) };
        let below = |error: crate::Error| Problem::Below(Box::new(error));
        let (path, tree) = match resolve(stack, &target.to_path_buf(), LastLink::NotFollowed) {
            Ok(Resolved::File { path, tree, .. }) => (path, tree),
            Ok(Resolved::Directory(_)) => return Err(Problem::NotLinkable { target: target.to_path_buf() }),
            Err(crate::Error::Io { source, .. }) if is_missing(&source) => return Ok(None),
            Err(error) => return Err(below(error)),
        };
        self.needs = Needs::Layers;
        let failed = |errno: Errno| below(crate::Error::io("open", stack.path(tree).join(&path))(errno));
        let root = openat(CWD, stack.path(tree), READ, Mode::empty()).map_err(failed)?;
        let parent = open_beneath(root.as_fd(), walk_parent(&path), READ).map_err(failed)?;
        let name = walk::as_c_string(path.file_name().unwrap_or_default()).map_err(failed)?;
        let stat = statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        Ok(Some((parent, name, stat)))
    }
}

/// Returns the directory of a path below a root; the empty path is the root.
fn walk_parent(path: &std::path::Path) -> &std::path::Path {
    path.parent().unwrap_or(std::path::Path::new(""))
}
