//! Captures an upper into a draft, and publishes that: the layer appears with one rename, under a
//! name that another process may have taken in the meantime. `capture.rs` makes the layer in the
//! draft; `store/draft.rs` moves it into the store.

use std::ffi::OsStr;
use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;

use rustix::fs::CWD;

use super::{Appearance, Capture, Captured};
use crate::display::quoted;
use crate::error::{Error, Result};
use crate::layer::meta::Meta;
use crate::store::draft::Draft;
use crate::tree::rename::rename_new;

impl Capture<'_> {
    /// Turns the upper directory `upper` into the tree of `draft`, writes `meta` as its
    /// `layer.json`, and publishes the draft under `name`. When this returns, the layer is durable,
    /// with one exception: if the last sync, that of the store's directory, fails, the layer exists
    /// but may be gone after a power failure. That failure is logged and not returned, because the
    /// upper is a layer already and cannot be given back.
    ///
    /// A program that lists the store sees the layer with all its sidecars or not at all. If the
    /// process is killed in between, a [collector](crate::Collector) removes the draft with the
    /// upper in it: use [`into_layer`](Self::into_layer) for an upper that must survive that.
    ///
    /// The [access](Draft::access) of the draft decides who can enter the layer.
    ///
    /// # Errors
    /// The errors of [`into_layer`](Self::into_layer) and of [`Draft::publish`]. The upper is where
    /// it was, unless [`Error::NotMovedBack`] says otherwise. It can be captured again: see
    /// `into_layer`. The draft is removed.
    pub fn publish(
        &self,
        upper: impl AsRef<Path>,
        draft: Draft,
        name: impl AsRef<OsStr>,
        meta: Meta,
    ) -> Result<Captured> {
        let (upper, name) = (upper.as_ref(), name.as_ref());
        draft.check(name)?;
        let captured = self.capture(upper, draft.layer(), meta, Appearance::WithName);
        match captured.and_then(|captured| Ok((captured, draft.try_publish(name)?))) {
            Ok((captured, layer)) => {
                let store = layer.path().parent().unwrap_or(Path::new("."));
                // An error would let the caller repeat the capture of an upper that is gone.
                if let Err(error) = File::open(store).and_then(|store| store.sync_all()) {
                    log::warn!("{} may be gone after a power failure: {error}", quoted(layer.path()));
                }
                Ok(captured)
            }
            Err(failure) => Err(give_back(upper, draft, failure)),
        }
    }
}

/// Moves the tree of `draft`, if it has one, back to `upper`. Returns `failure`, or an error that
/// also says where the tree is now.
fn give_back(upper: &Path, draft: Draft, failure: Error) -> Error {
    let tree = draft.layer().fs();
    let failure = match failure {
        Error::NotMovedBack { failure, .. } => *failure,
        failure => failure,
    };
    if tree.symlink_metadata().is_err_and(|error| error.kind() == ErrorKind::NotFound) {
        // The capture has not moved the upper, or has moved it back itself.
        return failure;
    }
    match rename_new(CWD, &*tree, CWD, upper) {
        Ok(()) => failure,
        Err(errno) => {
            draft.leave();
            Error::NotMovedBack { left: tree, failure: Box::new(failure), cleanup: errno.into() }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;
    use std::time::SystemTime;

    use serde_json::{Value, json};

    use super::*;
    use crate::capture::Step;
    use crate::stack::overlayfs::XattrNamespace;
    use crate::store::Store;
    use crate::store::existing::Existing;

    fn capture() -> Capture<'static> {
        Capture::new([""; 0]).made([]).xattrs(XattrNamespace::User)
    }

    fn upper(dir: &Path) -> PathBuf {
        let upper = dir.join("upper");
        fs::create_dir_all(upper.join("usr")).unwrap();
        fs::write(upper.join("usr/new"), "new").unwrap();
        upper
    }

    fn meta(exit_status: i64) -> Meta {
        Meta { exit_status, ..Meta::new("base", SystemTime::UNIX_EPOCH) }
    }

    #[test]
    fn a_layer_appears_with_its_sidecars() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir).unwrap();
        let draft = store.draft().unwrap();
        draft.layer().write_sidecar("doc", "html").unwrap();
        let capture = capture().sidecar("run", json!({"argv": ["make"]}));
        let captured = capture.publish(upper(dir.path()), draft, "new", meta(0)).unwrap();
        let layer = store.layer("new").unwrap();
        assert_eq!(captured.size, layer.measure().unwrap());
        assert_eq!(layer.sidecars().unwrap(), ["doc", "run"]);
        assert_eq!(layer.read_sidecar::<Value>("run").unwrap(), Some(json!({"argv": ["make"]})));
        assert_eq!(fs::read_to_string(layer.fs().join("usr/new")).unwrap(), "new");
        assert!(!dir.path().join("upper").exists());
        assert_eq!(fs::read_dir(dir.path().join(".layered/new")).unwrap().count(), 0);
    }

    #[test]
    fn an_upper_that_cannot_be_published_is_where_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir).unwrap();
        let taken = dir.path().join("taken");
        // Another process takes the name when the capture has moved the upper already.
        let take = |step| {
            if step == Step::Finish {
                fs::create_dir_all(&taken).unwrap();
            }
        };
        let late = capture().progress(&take).publish(upper(dir.path()), store.draft().unwrap(), "taken", meta(0));
        assert!(matches!(late, Err(Error::LayerExists { path }) if path == taken));
        let early = capture().publish(upper(dir.path()), store.draft().unwrap(), "taken", meta(0));
        assert!(matches!(early, Err(Error::LayerExists { .. })));
        let no_name = capture().publish(upper(dir.path()), store.draft().unwrap(), "a/b", meta(0));
        assert!(matches!(no_name, Err(Error::LayerName { .. })));
        let no_sidecar = capture().sidecar("a/b", json!(1));
        let no_sidecar = no_sidecar.publish(upper(dir.path()), store.draft().unwrap(), "free", meta(0));
        assert!(matches!(no_sidecar, Err(Error::SidecarName { .. })));

        assert_eq!(fs::read_to_string(dir.path().join("upper/usr/new")).unwrap(), "new");
        assert_eq!(fs::read_dir(dir.path().join(".layered/new")).unwrap().count(), 0);
        fs::remove_dir(&taken).unwrap();
        capture().publish(dir.path().join("upper"), store.draft().unwrap(), "taken", meta(1)).unwrap();
        let again = store.draft().unwrap().existing(Existing::ReplacedIfFailed);
        capture().publish(upper(dir.path()), again, "taken", meta(0)).unwrap();
        assert_eq!(store.layer("taken").unwrap().meta().unwrap().unwrap().exit_status, 0);
    }
}
