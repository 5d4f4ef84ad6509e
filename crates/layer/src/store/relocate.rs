//! Moves a layer to another store. `remove.rs` has the checks that it shares with a removal.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{CWD, FlockOperation, rename};
use rustix::io::Errno;

use super::Store;
use super::remove::{check_exists, check_not_held};
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::store::hold::Stale;
use crate::store::store_dir::{StoreDir, check_may_change};
use crate::tree::rename::rename_new;

/// Checks that a rename from one store to the other can succeed. Changes nothing.
pub(super) fn check_mount(from: &Store, to: &Store) -> Result<()> {
    let device = |path: &Path| Ok(fs::metadata(path).map_err(Error::io("look at", path))?.dev());
    // The kernel never renames a `.`, but compares the mounts first.
    let dot = |store: &Store| store.path().join(".");
    let are_mounts_apart = || rename(dot(from), dot(to)) == Err(Errno::XDEV);
    // Two subvolumes of Btrfs can be on one mount, but have two device numbers.
    match device(from.path())? != device(to.path())? || are_mounts_apart() {
        true => Err(apart(from, to)),
        false => Ok(()),
    }
}

fn apart(from: &Store, to: &Store) -> Error {
    Error::StoresApart { from: from.path().into(), to: to.path().into() }
}

/// Moves `layer` of `from` to the path of `new` in the store `to`, unless it is held.
pub(super) fn relocate(from: &Store, layer: &Layer, to: &Store, new: &Layer) -> Result<()> {
    check_may_change(to.path())?;
    let store_dir = StoreDir::make_to_change(from.path())?;
    // Under this lock, no process makes a hold.
    let lock = store_dir.lock(FlockOperation::LockExclusive)?;
    check_not_held(&store_dir, layer, Stale::Removed)?;
    check_exists(layer)?;
    let _locked = lock.lock_layer(layer.name())?;
    match rename_new(CWD, layer.path(), CWD, new.path()) {
        Err(Errno::EXIST) => Err(Error::LayerExists { path: new.path().into() }),
        Err(Errno::XDEV) => Err(apart(from, to)),
        renamed => renamed.map_err(Error::io("move to another store", layer.path())),
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::layer::meta::Meta;
    use crate::store::hold::Hold;

    fn make(store: &Store, name: &str) -> Layer {
        let layer = store.layer(name).unwrap();
        fs::create_dir_all(layer.fs().join("a")).unwrap();
        layer.write_meta(&Meta::new("base", SystemTime::UNIX_EPOCH)).unwrap();
        layer
    }

    #[test]
    fn a_layer_is_moved_unless_it_is_needed_or_its_name_is_taken() {
        let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let [from, to] = dirs.each_ref().map(|dir| Store::open(dir).unwrap());
        let gcc = make(&from, "gcc");

        let hold = Hold::of([gcc.path()]).unwrap();
        assert!(matches!(from.move_to("gcc", &to), Err(Error::LayerHeld { .. })));
        hold.release().unwrap();
        make(&from, "base");
        assert!(matches!(from.move_to("base", &to), Err(Error::BaseOfOthers { .. })));

        let moved = from.move_to("gcc", &to).unwrap();
        assert_eq!(moved, to.layer("gcc").unwrap());
        assert!(moved.fs().join("a").exists() && !gcc.path().exists());

        make(&from, "gcc");
        assert!(matches!(from.move_to("gcc", &to), Err(Error::LayerExists { path }) if path == moved.path()));
        assert!(gcc.fs().exists());
        assert!(matches!(from.move_to("none", &to), Err(Error::NotADirectory { .. })));
        from.check_mount(&to).unwrap();
        let proc = Store::open("/proc").unwrap();
        let error = from.check_mount(&proc).unwrap_err();
        assert!(matches!(error, Error::StoresApart { to, .. } if to == Path::new("/proc")));
    }
}
