//! Repairs files that reached the limit of links during a merge: they were linked under some of
//! their names and copied under the others. `hardlinks.rs` records the copies.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, FileType, OFlags, RawDir, fstat, futimens, unlinkat};
use rustix::io::Errno;

use super::copy::Original;
use super::hardlinks::Copies;
use super::shared::Shared;
use crate::error::{Error, Result};
use crate::tree::attributes::times;
use crate::tree::walk::{Cursor, ENTRIES_SIZE_BYTES, Node, READ, file_type, is_dots};

/// Makes all names of such a file links to its copy, so that they are one file again. Returns the
/// number of names that were links to the original.
///
/// Reads the merged tree once more. Only a merge that has reached the limit of links (65,000 on
/// ext4) needs this.
pub(super) fn relink(shared: &Shared<'_>, copies: &mut Copies) -> Result<u64> {
    let mut buffer = Vec::with_capacity(ENTRIES_SIZE_BYTES);
    let mut cursor = Cursor::new(READ | OFlags::NOATIME);
    let mut waiting = vec![Node::root(())];
    let mut moved = 0;
    while let Some(node) = waiting.pop() {
        let dir = cursor.go(&node, || Ok(shared.target));
        let result = dir.and_then(|dir| {
            let before = fstat(dir)?;
            let links = relink_in(dir, &mut buffer, shared, copies, |name| {
                waiting.push(Node::child(&node, name.into(), ()));
            })?;
            if links > 0 {
                futimens(dir, &times(&before))?;
            }
            Ok(links)
        });
        moved += result.map_err(|errno| {
            Error::io("bring the hard links together in", shared.target_path.join(node.path()))(errno)
        })?;
    }
    Ok(moved)
}

fn relink_in(
    dir: BorrowedFd<'_>,
    buffer: &mut Vec<u8>,
    shared: &Shared<'_>,
    copies: &mut Copies,
    mut found: impl FnMut(&CStr),
) -> rustix::io::Result<u64> {
    let mut moved = 0;
    let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if is_dots(name) {
            continue;
        }
        if file_type(dir, &entry)? == FileType::Directory {
            found(name);
            continue;
        }
        let stat = Original::look(dir, name)?;
        if copies.have(&stat) {
            // No other program uses the tree yet, so the name may be missing for a moment.
            unlinkat(dir, name, AtFlags::empty())?;
            if !copies.link(&stat, shared.target, dir, name)? {
                // The copy has reached the limit of links, although the original did not exceed it.
                return Err(Errno::MLINK);
            }
            moved += 1;
        }
    }
    Ok(moved)
}
