//! Refuses uppers and destinations that belong to a layer or to the upper itself. `lock.rs`
//! examines the content of the destination.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, fstat, openat, stat, statat};
use rustix::io::Errno;

use super::record::RunRecord;
use super::upper::Upper;
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::stack::overlayfs::XattrNamespace;
use crate::stack::view::View;
use crate::store::hold;
use crate::tree::walk::{self, Identity, PATH, upwards};

/// Refuses an upper that is, contains or lies inside a lower, that is or lies inside the tree of
/// any layer, or that is a layer's directory or a store. Refuses a destination inside the upper, a
/// lower or the tree of any layer. Also refuses the root directory as a destination. Changes
/// nothing.
pub(super) fn refuse(upper: &Upper, lowers: &View, layer: &Layer, xattrs: XattrNamespace) -> Result<()> {
    refuse_upper(upper, lowers, layer, xattrs)?;
    refuse_destination(upper, lowers, layer)
}

fn refuse_upper(upper: &Upper, lowers: &View, layer: &Layer, xattrs: XattrNamespace) -> Result<()> {
    let io = Error::io::<Errno>("look at the parents of", &upper.path);
    let path = || upper.path.clone();
    if lowers.tree_of(&upper.stat).is_some() {
        return Err(Error::UpperIsLower { upper: path() });
    }
    let above = identities_above(upper.root.as_fd()).map_err(io)?;
    if let Some(lower) = above.iter().find_map(|&identity| lowers.tree_with(identity)) {
        return Err(Error::UpperOverlapsLower { upper: path(), lower: lower.into() });
    }
    if let Some(lower) = lower_inside(upper, lowers)? {
        return Err(Error::UpperOverlapsLower { upper: path(), lower });
    }
    // A tree that is already in the destination belongs to the caller.
    let own = stat(layer.path()).ok().map(|stat| (stat.st_dev, stat.st_ino));
    if let Some(found) =
        layer_around(upper.root.as_fd(), own).map_err(Error::io("look at the parents of", &upper.path))?
    {
        return Err(Error::UpperIsLayers { upper: path(), layer: found });
    }
    let has = |name, kind| {
        let found = statat(&upper.root, name, AtFlags::SYMLINK_NOFOLLOW);
        found.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == kind)
    };
    // A command may make entries with these names in its root. An upper without the record of a run
    // is a layer or a store.
    let is_layer = has(c"layer.json", FileType::RegularFile) && has(c"fs", FileType::Directory);
    if (is_layer || has(c".layered", FileType::Directory))
        && RunRecord::of(upper.root.as_fd(), &upper.path, xattrs)?.is_none()
    {
        return Err(Error::UpperIsLayers { upper: path(), layer: path() });
    }
    Ok(())
}

fn refuse_destination(upper: &Upper, lowers: &View, layer: &Layer) -> Result<()> {
    let path = layer.path();
    let flags = PATH.difference(OFlags::NOFOLLOW);
    let above = match openat(CWD, path, flags, Mode::empty()) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => {
            let parent = walk::parent(path);
            openat(CWD, parent, flags, Mode::empty()).map_err(Error::io("open", parent))?
        }
        // `CaptureLock` reports the error for this path.
        Err(Errno::NOTDIR | Errno::LOOP) => return Ok(()),
        Err(errno) => return Err(Error::io("open", path)(errno)),
    };
    let io = |operation| Error::io::<Errno>(operation, path);
    let identities = identities_above(above.as_fd()).map_err(io("look at the parents of"))?;
    let root = stat("/").map_err(Error::io("look at", "/"))?;
    let itself = fstat(&above).map_err(io("look at"))?;
    if identities.len() == 1
        && (itself.st_dev, itself.st_ino) == (root.st_dev, root.st_ino)
        && path.file_name().is_none()
    {
        return Err(Error::RootDirectory { path: path.into() });
    }
    let inside = |tree: PathBuf| Err(Error::LayerInsideTree { layer: path.into(), tree });
    for identity in identities {
        if identity == (upper.stat.st_dev, upper.stat.st_ino) {
            return inside(upper.path.clone());
        }
        if let Some(tree) = lowers.tree_with(identity) {
            return inside(tree.into());
        }
    }
    match layer_around(above.as_fd(), None).map_err(io("look at the parents of"))? {
        Some(layer) => inside(layer.join("fs")),
        None => Ok(()),
    }
}

/// Returns the identities of a directory and of all directories above it.
fn identities_above(dir: BorrowedFd<'_>) -> rustix::io::Result<Vec<Identity>> {
    upwards(dir)?.map(|above| Ok(walk::identity(&fstat(above?)?))).collect()
}

/// Returns the first lower that lies inside the upper.
fn lower_inside(upper: &Upper, lowers: &View) -> Result<Option<PathBuf>> {
    // Layers of one store have the same directories above them.
    let mut seen = HashSet::new();
    for index in 0..lowers.len() {
        let io = || Error::io::<Errno>("look at the parents of", lowers.path(index));
        let root = lowers.root_of(index).map_err(io())?;
        for above in upwards(root.as_fd()).map_err(io())? {
            let identity = above.and_then(fstat).map(|stat| walk::identity(&stat)).map_err(io())?;
            if identity == walk::identity(&upper.stat) {
                return Ok(Some(lowers.path(index).into()));
            }
            if !seen.insert(identity) {
                break;
            }
        }
    }
    Ok(None)
}

/// Returns the directory of the layer whose tree is or contains `dir`. The directory must have a
/// `layer.json`, or must be held. Ignores the layer with the identity `own`.
fn layer_around(dir: BorrowedFd<'_>, own: Option<Identity>) -> rustix::io::Result<Option<PathBuf>> {
    let mut below: Option<Identity> = None;
    for above in upwards(dir)? {
        let above = above?;
        let identity = walk::identity(&fstat(&above)?);
        let tree = statat(&above, c"fs", AtFlags::SYMLINK_NOFOLLOW).ok().map(|stat| walk::identity(&stat));
        if below.is_some() && tree == below && Some(identity) != own {
            let whole = statat(&above, c"layer.json", AtFlags::SYMLINK_NOFOLLOW).is_ok();
            let path = walk::path_of(above.as_fd())?;
            if whole || is_held(&path) {
                return Ok(Some(path));
            }
        }
        below = Some(identity);
    }
    Ok(None)
}

fn is_held(layer: &Path) -> bool {
    match (layer.parent(), layer.file_name()) {
        (Some(store), Some(name)) => hold::held(store).is_ok_and(|held| held.contains(name)),
        _ => false,
    }
}
