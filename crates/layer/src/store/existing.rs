//! Decides whether a new layer can have a name that is taken. `draft.rs` publishes new layers;
//! `remove.rs` has the checks that it shares with a removal.

use rustix::fs::{AtFlags, CWD, statat};
use rustix::io::Errno;

use super::Store;
use super::remove::{check_exists, check_no_base, check_not_held};
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::store::hold::Stale;
use crate::store::store_dir::StoreDir;

/// The treatment of a layer that has the name of a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Existing {
    /// The existing layer stays, and the new one is refused.
    #[default]
    Refused,
    /// The new layer replaces the existing one if the command of the existing layer [failed],
    /// nothing [holds](crate::Hold) it, and no layer of the store names it as its base. Otherwise,
    /// the existing layer stays and the new one is refused.
    ///
    /// Layers that name the existing one in `parent_hashes` do not matter: each layer is complete
    /// without its parents. From then on, their `parent_hashes` name the new layer.
    ///
    /// [failed]: crate::Meta::is_failed
    ReplacedIfFailed,
    /// The new layer replaces the existing one, whatever the exit status of its command, under the
    /// other conditions of [`ReplacedIfFailed`](Self::ReplacedIfFailed).
    Replaced,
}

/// The entry at the path of a new layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    /// A layer that the new one may replace.
    Replaceable,
}

/// Does what [`check`] does, and checks that no other layer of the store has the existing one as
/// its base. This reads every `layer.json` of the store, so the caller must not have the lock: runs
/// that want a hold would wait for that.
pub(super) fn check_unlocked(layer: &Layer, existing: Existing) -> Result<Found> {
    let found = check(layer, existing, Stale::Left)?;
    if let (Found::Replaceable, Some(store)) = (found, layer.path().parent()) {
        check_no_base(&Store::open(store)?, layer)?;
    }
    Ok(found)
}

/// Looks at the path of the new layer `layer`. An error if `existing` does not let a new layer have
/// it. The answer lasts only while the caller has the exclusive lock of the store directory.
pub(super) fn check(layer: &Layer, existing: Existing, stale: Stale) -> Result<Found> {
    match statat(CWD, layer.path(), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) if existing == Existing::Refused => return Err(Error::LayerExists { path: layer.path().into() }),
        Ok(_) => {}
        Err(Errno::NOENT) => return Ok(Found::Nothing),
        Err(errno) => return Err(Error::io("look at", layer.path())(errno)),
    }
    check_exists(layer)?;
    match layer.meta()? {
        Some(meta) if meta.is_failed() || existing == Existing::Replaced => {}
        Some(_) => return Err(Error::NotFailed { layer: layer.path().into() }),
        None => return Err(Error::Incomplete { layer: layer.path().into() }),
    }
    if let Some(store) = layer.path().parent() {
        if let Some(store_dir) = StoreDir::open(store)? {
            check_not_held(&store_dir, layer, stale)?;
        }
    }
    Ok(Found::Replaceable)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::SystemTime;

    use super::*;
    use crate::layer::meta::Meta;
    use crate::store::Store;
    use crate::store::hold::{Hold, Holder};

    fn make(store: &Store, name: &str, exit_status: i64) -> Layer {
        let layer = store.layer(name).unwrap();
        fs::create_dir_all(layer.fs().join(name)).unwrap();
        layer.write_meta(&Meta { exit_status, ..Meta::new("base", SystemTime::UNIX_EPOCH) }).unwrap();
        layer
    }

    fn publish(store: &Store, name: &str, existing: Existing) -> Result<Layer> {
        let draft = store.draft()?.existing(existing);
        fs::create_dir_all(draft.layer().fs().join("new")).unwrap();
        draft.layer().write_meta(&Meta::new("base", SystemTime::UNIX_EPOCH))?;
        draft.publish(name)
    }

    fn entries(store: &Store) -> usize {
        fs::read_dir(store.path().join(".layered/new")).unwrap().count()
    }

    #[test]
    fn the_base_of_others_is_not_replaced_but_a_parent_is() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir).unwrap();
        let below = make(&store, "below", 2);
        let meta = |base: &str, parents: &[&str]| Meta {
            parent_hashes: parents.iter().map(ToString::to_string).collect(),
            ..Meta::new(base, SystemTime::UNIX_EPOCH)
        };
        let above = make(&store, "above", 0);
        above.write_meta(&meta("below", &[])).unwrap();
        for error in [
            store.check_new("below", Existing::ReplacedIfFailed).unwrap_err(),
            publish(&store, "below", Existing::ReplacedIfFailed).unwrap_err(),
        ] {
            let named = matches!(&error, Error::BaseOfOthers { layer, other } if layer == below.path() && other == above.path());
            assert!(named, "{error}");
        }
        assert!(below.fs().join("below").exists());
        above.write_meta(&meta("base", &["below"])).unwrap();
        publish(&store, "below", Existing::ReplacedIfFailed).unwrap();
        assert!(below.fs().join("new").exists());
    }

    #[test]
    fn only_a_failed_layer_that_nothing_holds_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir).unwrap();
        let failed = make(&store, "failed", 2);
        make(&store, "good", 0);
        fs::create_dir(store.path().join("half")).unwrap();
        fs::write(store.path().join("file"), "").unwrap();

        for name in ["failed", "good", "half", "file"] {
            let exists = |error| matches!(error, Error::LayerExists { path } if path == store.path().join(name));
            assert!(exists(store.check_new(name, Existing::Refused).unwrap_err()), "{name}");
            assert!(exists(publish(&store, name, Existing::Refused).unwrap_err()), "{name}");
        }
        for name in ["good", "half", "file"] {
            for error in [
                store.check_new(name, Existing::ReplacedIfFailed).unwrap_err(),
                publish(&store, name, Existing::ReplacedIfFailed).unwrap_err(),
            ] {
                let is_expected = match name {
                    "good" => matches!(error, Error::NotFailed { .. }),
                    "half" => matches!(error, Error::Incomplete { .. }),
                    _ => matches!(error, Error::NotADirectory { .. }),
                };
                assert!(is_expected, "{name}: {error}");
            }
        }

        let hold = Hold::of([failed.path()]).unwrap();
        for error in [
            store.check_new("failed", Existing::ReplacedIfFailed).unwrap_err(),
            publish(&store, "failed", Existing::ReplacedIfFailed).unwrap_err(),
        ] {
            assert!(matches!(&error, Error::LayerHeld { by: Holder::Process, .. }), "{error}");
        }
        hold.set_reason(store.path(), None).unwrap();
        hold.keep();
        let error = publish(&store, "failed", Existing::ReplacedIfFailed).unwrap_err();
        assert!(error.to_string().contains(&format!("{}, needs it", store.path().display())), "{error}");
        assert!(failed.fs().join("failed").exists());

        assert!(matches!(publish(&store, "half", Existing::Replaced), Err(Error::Incomplete { .. })));
        assert!(publish(&store, "good", Existing::Replaced).unwrap().fs().join("new").exists());

        fs::remove_dir_all(store.path().join(".layered/holds")).unwrap();
        for name in ["failed", "free"] {
            let layer = publish(&store, name, Existing::ReplacedIfFailed).unwrap();
            assert_eq!((layer.fs().join("new").exists(), layer.fs().join(name).exists()), (true, false));
            assert!(!layer.meta().unwrap().unwrap().is_failed());
        }
        // The old layer is gone from the disk, too.
        assert_eq!(entries(&store), 0);
    }
}
