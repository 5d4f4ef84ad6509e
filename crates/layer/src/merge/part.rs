//! Takes one layer's part of a merged directory. `directory.rs` decides which layers have a part.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, RawDir, linkat, llistxattr, mkdirat};
use rustix::io::Errno;

use super::copy::Original;
use super::node::DirNode;
use super::shared::Shared;
use super::{Content, Merged};
use crate::error::{Error, Result};
use crate::stack::overlayfs::{Entry, EntryKind};
use crate::tree::attributes::Attributes;
use crate::tree::walk::{as_os_str, file_type, is_dots};
use crate::tree::xattr::{XattrList, path_through_proc};

/// The entries that the layers have contributed to a directory so far.
#[derive(Default)]
pub(super) struct Gathered {
    /// The result for each name. It is not recorded for the last layer, because no layer below
    /// needs it.
    slots: HashMap<CString, Slot>,
    pub(super) children: Vec<Child>,
    pub(super) whiteouts: Vec<CString>,
    /// The attributes of the directory in the topmost layer.
    pub(super) attributes: Option<Attributes>,
}

enum Slot {
    /// A file or a whiteout, which hides everything of its name below.
    Taken,
    /// The directory at this index of the children.
    Directory(usize),
}

/// A child directory of the merged directory.
pub(super) struct Child {
    pub(super) name: CString,
    /// The layers that it comes from, topmost first.
    pub(super) layers: Vec<usize>,
    /// Whether a file or a whiteout below these layers ends the union.
    pub(super) cut: bool,
}

/// One layer's part of a merged directory.
pub(super) struct Part<'a> {
    pub(super) shared: &'a Shared<'a>,
    pub(super) node: &'a Arc<DirNode>,
    pub(super) layer: usize,
    pub(super) content: Content,
    pub(super) from: BorrowedFd<'a>,
    pub(super) to: BorrowedFd<'a>,
    /// Whether this thread has its own working directory.
    pub(super) own_cwd: bool,
    /// Whether `from` is the working directory of this thread.
    pub(super) is_cwd: bool,
    /// The reason why no file of this directory can be linked, if there is one.
    pub(super) no_links: Option<Errno>,
    pub(super) names: &'a mut XattrList,
    pub(super) merged: &'a mut Merged,
}

impl Part<'_> {
    /// Takes the entries that no layer above has. `is_last` says that no layer below will be
    /// gathered.
    pub(super) fn gather(&mut self, buffer: &mut Vec<u8>, is_last: bool, gathered: &mut Gathered) -> Result<()> {
        let Gathered { slots, children, whiteouts, .. } = gathered;
        let mut entries = RawDir::new(self.from, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(self.error("read", None))?;
            let name = entry.file_name();
            if is_dots(name) {
                continue;
            }
            let kind = file_type(self.from, &entry).map_err(self.error("look at", Some(name)))?;
            match slots.get(name) {
                None => {}
                Some(Slot::Taken) => continue,
                Some(&Slot::Directory(index)) => {
                    let child = &mut children[index];
                    match kind {
                        _ if child.cut => {}
                        FileType::Directory => child.layers.push(self.layer),
                        _ => child.cut = true,
                    }
                    continue;
                }
            }
            let slot = if kind == FileType::Directory {
                mkdirat(self.to, name, Mode::RWXU).map_err(|errno| {
                    let path = self.shared.target_path.join(self.node.path()).join(as_os_str(name));
                    Error::io("make", path)(errno)
                })?;
                children.push(Child { name: name.into(), layers: vec![self.layer], cut: false });
                Slot::Directory(children.len() - 1)
            } else {
                if self.content == Content::Directories {
                    // It only hides what is below.
                } else if self.is_whiteout(name, kind)? {
                    whiteouts.push(name.into());
                } else {
                    self.link(name)?;
                }
                Slot::Taken
            };
            if !is_last {
                slots.insert(name.into(), slot);
            }
        }
        Ok(())
    }

    /// Returns whether the entry, which is not a directory, is a whiteout.
    fn is_whiteout(&mut self, name: &CStr, kind: FileType) -> Result<bool> {
        // One call that lists the attributes costs less than two that query one each, and a merge
        // does this for every file.
        if kind == FileType::RegularFile {
            self.list_xattrs(name).map_err(self.error("list the extended attributes of", Some(name)))?;
        }
        let entry = Entry { dir: self.from, name, kind, stat: None, names: Some(self.names) };
        let classified = entry.classify(self.shared.xattrs);
        let kind = classified.map_err(|why| why.at(self.shared.source_path(self.layer, self.node, Some(name))))?;
        Ok(kind == EntryKind::Whiteout)
    }

    /// Lists the attributes of a file without opening it. The system call takes only a path. If the
    /// thread has its own working directory, that path is the name alone.
    fn list_xattrs(&mut self, name: &CStr) -> rustix::io::Result<()> {
        if self.own_cwd {
            if !self.is_cwd {
                rustix::process::fchdir(self.from)?;
                self.is_cwd = true;
            }
            self.names.read(|buffer| llistxattr(name, buffer))
        } else {
            let path = path_through_proc(self.from, name);
            self.names.read(|buffer| llistxattr(&path, buffer))
        }
    }

    fn link(&mut self, name: &CStr) -> Result<()> {
        let why = match self.no_links {
            Some(why) => why,
            None => match linkat(self.from, name, self.to, name, AtFlags::empty()) {
                Ok(()) => {
                    self.merged.linked += 1;
                    return Ok(());
                }
                Err(why @ (Errno::XDEV | Errno::MLINK | Errno::PERM)) => why,
                Err(errno) => return Err(self.error("link", Some(name))(errno)),
            },
        };
        if why == Errno::XDEV {
            // This is true for the whole directory. It need not be true for the whole layer, which
            // may contain a subvolume.
            self.no_links = Some(why);
        }
        self.shared.why_copied.get_or_init(|| why);
        self.copy(name, why).map_err(|errno| match errno {
            Errno::XDEV => Error::MountInside { path: self.shared.source_path(self.layer, self.node, Some(name)) },
            errno => self.error("copy", Some(name))(errno),
        })?;
        self.merged.copied += 1;
        Ok(())
    }

    fn copy(&self, name: &CStr, why: Errno) -> rustix::io::Result<()> {
        let stat = Original::look(self.from, name)?;
        let original = Original { dir: self.from, name, stat: &stat };
        if stat.st_nlink == 1 {
            return original.copy(self.to, self.shared.xattrs);
        }
        let mut copies = self.shared.hard_links.lock();
        if !copies.link(&stat, self.shared.target, self.to, name)? {
            original.copy(self.to, self.shared.xattrs)?;
            copies.insert(&stat, self.node, name, why);
        }
        Ok(())
    }

    /// Returns a function for `map_err`. It makes the error of a failed system call on the
    /// directory in this layer, or on `name` in it.
    fn error(&self, operation: &'static str, name: Option<&CStr>) -> impl FnOnce(Errno) -> Error {
        // Every file passes through here, so the path is built only after a failure.
        move |errno| Error::io(operation, self.shared.source_path(self.layer, self.node, name))(errno)
    }
}
