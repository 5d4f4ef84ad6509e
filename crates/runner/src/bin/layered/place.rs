//! The place of a layer in a store: which store and which name a path of the command line means,
//! and what to do if it is taken.
//!
//! [`stack`](crate::stack) has the paths of layers that are only read.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use layer::display::quoted;
use layer::{Existing, Layer, Store};
use runner::Upper;

use crate::defaults::{self, STORE};
use crate::stack::{is_bare, parent};

/// A name in a store.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) store: Store,
    pub(crate) name: OsString,
}

impl Place {
    /// Returns the place of a layer by its path. The store must exist.
    pub(crate) fn of(path: &Path) -> anyhow::Result<Self> {
        let Some(name) = path.file_name() else {
            return Err(anyhow!("{} does not end in the name of a layer; write STORE/NAME", quoted(path)));
        };
        let dir = parent(path);
        let store = Store::open(dir).map_err(|error| match error {
            layer::Error::NotADirectory { .. } if dir.symlink_metadata().is_err() => {
                anyhow!("there is no store {0}; create it with `mkdir {0}`", quoted(dir))
            }
            error => error.into(),
        })?;
        Ok(Self { store, name: name.into() })
    }

    /// Returns the place of a new layer: STORE/NAME, or NAME in the store of the environment.
    pub(crate) fn of_new(path: &Path) -> anyhow::Result<Self> {
        let path = match is_bare(path) {
            true => defaults::path(STORE)
                .with_context(|| {
                    format!("there is no store for the layer {}; write STORE/NAME, or set {STORE}", quoted(path))
                })?
                .join(path),
            false => path.into(),
        };
        Self::of(&path)
    }

    /// Returns the path of the layer.
    pub(crate) fn path(&self) -> PathBuf {
        self.store.path().join(&self.name)
    }

    /// Checks that a new layer can have the place.
    pub(crate) fn check_new(&self, existing: Existing) -> anyhow::Result<Layer> {
        Upper::refuse_destination(self.store.path())?;
        Upper::refuse_destination(self.path()).map_err(|_| {
            anyhow!(
                "{} cannot name a layer: directories of runs have such names, and are removed as a whole; choose another name",
                quoted(&self.name)
            )
        })?;
        self.store.check_new(&self.name, existing).map_err(advised)
    }
}

/// Returns an error about a place that is taken with the commands that help.
pub(crate) fn advised(error: layer::Error) -> anyhow::Error {
    match &error {
        layer::Error::LayerExists { path } => {
            let is_failed = Layer::at(path).meta().is_ok_and(|meta| meta.is_some_and(|meta| meta.is_failed()));
            let replace = if is_failed { ", or replace it with --replace, because its command failed" } else { "" };
            anyhow!("{0} exists; choose another name, or remove it with `layered rm {0}`{replace}", quoted(path))
        }
        layer::Error::NotFailed { layer } => anyhow!(
            "cannot replace {0}: its command succeeded; choose another name, or remove it with `layered rm {0}`",
            quoted(layer)
        ),
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::SystemTime;

    use layer::Meta;

    use super::*;

    #[test]
    fn a_path_is_a_name_in_an_existing_store() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        let place = Place::of_new(&at("new/")).unwrap();
        assert_eq!((place.store.path(), place.path()), (dir.path(), at("new")));
        let error = |path: &Path| format!("{:#}", Place::of_new(path).unwrap_err());
        let missing = at("missing");
        assert_eq!(
            error(&at("missing/new")),
            format!("there is no store {0}; create it with `mkdir {0}`", missing.display())
        );
        assert!(error(&at("..")).ends_with("does not end in the name of a layer; write STORE/NAME"));
        fs::write(&missing, "").unwrap();
        assert!(error(&at("missing/new")).contains("pass the path of a store of layers"));
    }

    #[test]
    fn a_place_that_is_taken_is_refused_with_the_command_that_helps() {
        let dir = tempfile::tempdir().unwrap();
        for (name, exit_status) in [("failed", 1), ("good", 0)] {
            fs::create_dir_all(dir.path().join(name).join("fs")).unwrap();
            let meta = Meta { exit_status, ..Meta::new("base", SystemTime::UNIX_EPOCH) };
            Layer::at(dir.path().join(name)).write_meta(&meta).unwrap();
        }
        let check = |name: &str, existing| Place::of(&dir.path().join(name)).unwrap().check_new(existing);
        let error = |name: &str, existing| format!("{:#}", check(name, existing).unwrap_err());
        for (name, end) in
            [("good", "/good`"), ("failed", "/failed`, or replace it with --replace, because its command failed")]
        {
            let error = error(name, Existing::Refused);
            assert!(error.contains("exists; choose another name") && error.ends_with(end), "{error}");
        }
        assert!(error("good", Existing::ReplacedIfFailed).contains("its command succeeded"));
        for name in ["kept-0123456789abcdef", "layered-0123456789abcdef"] {
            let error = error(name, Existing::Refused);
            assert!(error.starts_with(&format!("{name} cannot name a layer")), "{error}");
            fs::create_dir(dir.path().join(name)).unwrap();
            let inside = Place::of(&dir.path().join(name).join("new")).unwrap().check_new(Existing::Refused);
            assert!(format!("{:#}", inside.unwrap_err()).contains("the directory of a run"));
        }
        check("kept-0123", Existing::Refused).unwrap();
        check("failed", Existing::ReplacedIfFailed).unwrap();
        check("free", Existing::Refused).unwrap();
    }
}
