//! Refuses uppers and destinations that belong to a layer or to the upper itself. `lock.rs`
//! examines the content of the destination.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, openat, stat, statat};
use rustix::io::Errno;

use super::record::RunRecord;
use super::upper::Upper;
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::stack::overlayfs::XattrNamespace;
use crate::stack::view::View;
use crate::store::hold;
use crate::tree::walk::{self, Identity, PATH, Place, upwards};

/// Refuses an upper that is, contains or lies inside a lower, that is or lies inside the tree of
/// any layer, or that is a layer's directory or a store. Refuses a destination inside the upper, a
/// lower or the tree of any layer. Also refuses the root directory as a destination. Changes
/// nothing.
pub(super) fn refuse(upper: &Upper, lowers: &View, layer: &Layer, xattrs: XattrNamespace) -> Result<()> {
    refuse_upper(upper, lowers, layer, xattrs)?;
    refuse_destination(upper, lowers, layer)
}

fn refuse_upper(upper: &Upper, lowers: &View, layer: &Layer, xattrs: XattrNamespace) -> Result<()> {
    let path = || upper.path.clone();
    if lowers.tree_of(&upper.stat).is_some() {
        return Err(Error::UpperIsLower { upper: path() });
    }
    // A tree that is already in the destination belongs to the caller.
    let own = stat(layer.path()).ok().map(|stat| walk::identity(&stat));
    let above = Above::of(upper.root.as_fd(), own).map_err(Error::io("look at the parents of", &upper.path))?;
    if let Some(lower) = above.identities.iter().find_map(|&identity| lowers.tree_with(identity)) {
        return Err(Error::UpperOverlapsLower { upper: path(), lower: lower.into() });
    }
    if let Some(lower) = lower_inside(upper, lowers)? {
        return Err(Error::UpperOverlapsLower { upper: path(), lower });
    }
    if let Some(layer) = above.layer {
        return Err(Error::UpperIsLayers { upper: path(), layer });
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
    let dir = match openat(CWD, path, flags, Mode::empty()) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => {
            let parent = walk::parent(path);
            openat(CWD, parent, flags, Mode::empty()).map_err(Error::io("open", parent))?
        }
        // `CaptureLock` reports the error for this path.
        Err(Errno::NOTDIR | Errno::LOOP) => return Ok(()),
        Err(errno) => return Err(Error::io("open", path)(errno)),
    };
    let above = Above::of(dir.as_fd(), None).map_err(Error::io("look at the parents of", path))?;
    let root = stat("/").map_err(Error::io("look at", "/"))?;
    if above.identities == [walk::identity(&root)] && path.file_name().is_none() {
        return Err(Error::RootDirectory { path: path.into() });
    }
    let inside = |tree: PathBuf| Err(Error::LayerInsideTree { layer: path.into(), tree });
    for identity in above.identities {
        if identity == walk::identity(&upper.stat) {
            return inside(upper.path.clone());
        }
        if let Some(tree) = lowers.tree_with(identity) {
            return inside(tree.into());
        }
    }
    above.layer.map_or(Ok(()), |layer| inside(layer.join("fs")))
}

/// A directory and the directories above it.
struct Above {
    /// The identities, that of the directory itself first.
    identities: Vec<Identity>,
    /// The directory of the layer whose tree is or contains the directory.
    layer: Option<PathBuf>,
}

impl Above {
    /// Looks at `dir` and upwards. A layer counts only if it has a `layer.json` or is held. Ignores
    /// the layer with the identity `own`.
    fn of(dir: BorrowedFd<'_>, own: Option<Identity>) -> rustix::io::Result<Self> {
        let mut found = Self { identities: Vec::new(), layer: None };
        for above in upwards(dir) {
            let (dir, stat) = above?;
            let identity = walk::identity(&stat);
            if let Some(below) = found.identities.last().filter(|_| found.layer.is_none() && Some(identity) != own) {
                let tree = statat(&dir, c"fs", AtFlags::SYMLINK_NOFOLLOW);
                if tree.is_ok_and(|tree| walk::identity(&tree) == *below) {
                    found.layer = layer_at(dir.as_fd())?;
                }
            }
            found.identities.push(identity);
        }
        Ok(found)
    }
}

/// Returns the path of the open directory `dir` if it is a layer with a `layer.json`, or a layer
/// that is held.
fn layer_at(dir: BorrowedFd<'_>) -> rustix::io::Result<Option<PathBuf>> {
    let is_whole = statat(dir, c"layer.json", AtFlags::SYMLINK_NOFOLLOW).is_ok();
    let path = walk::path_of(dir)?;
    Ok((is_whole || is_held(&path)).then_some(path))
}

/// Returns the first lower that lies inside the upper.
fn lower_inside(upper: &Upper, lowers: &View) -> Result<Option<PathBuf>> {
    let mut outside = HashSet::new();
    for index in 0..lowers.len() {
        let root = lowers.root_of(index);
        let is_inside = root.and_then(|root| is_inside(root.as_fd(), walk::identity(&upper.stat), &mut outside));
        if is_inside.map_err(Error::io("look at the parents of", lowers.path(index)))? {
            return Ok(Some(lowers.path(index).into()));
        }
    }
    Ok(None)
}

/// Returns whether the tree `root` lies inside the directory `upper`. If not, adds the directories
/// above `root` to `outside`.
fn is_inside(root: BorrowedFd<'_>, upper: Identity, outside: &mut HashSet<Place>) -> rustix::io::Result<bool> {
    // The trees of a store differ only in the directory of the layer.
    let [layer, store] = [Place::of(root, c"..")?, Place::of(root, c"../..")?];
    if layer.identity != upper && outside.contains(&store) {
        return Ok(false);
    }
    let above = upwards(root).skip(1).map(|above| Place::of(above?.0.as_fd(), c""));
    let above = above.collect::<rustix::io::Result<Vec<_>>>()?;
    if above.iter().any(|above| above.identity == upper) {
        return Ok(true);
    }
    outside.extend(above);
    Ok(false)
}

fn is_held(layer: &Path) -> bool {
    match (layer.parent(), layer.file_name()) {
        (Some(store), Some(name)) => hold::held(store).is_ok_and(|held| held.contains(name)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_tree_is_inside_of_every_directory_above_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["a/store/one/fs/sub", "a/store/two/fs", "a/other/three/fs", "b"] {
            fs::create_dir_all(path(name)).unwrap();
        }
        let trees = ["a/store/one/fs", "a/store/two/fs", "a/other/three/fs"];
        let table = [
            ("a", [true, true, true]),
            ("a/store", [true, true, false]),
            ("a/store/one", [true, false, false]),
            ("a/store/two", [false, true, false]),
            ("a/other/three", [false, false, true]),
            ("a/store/one/fs", [false; 3]),
            ("a/store/one/fs/sub", [false; 3]),
            ("b", [false; 3]),
            ("", [true, true, true]),
        ];
        for (upper, expected) in table {
            let upper = walk::identity(&stat(path(upper)).unwrap());
            let mut outside = HashSet::new();
            let found = trees.map(|tree| {
                let root = openat(CWD, path(tree), PATH, Mode::empty()).unwrap();
                is_inside(root.as_fd(), upper, &mut outside).unwrap()
            });
            assert_eq!(found, expected);
        }
    }
}
