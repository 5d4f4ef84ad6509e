//! Sidecars of a layer: their names, and reading and writing them. `json.rs` replaces the files;
//! `meta.rs` has `layer.json`.

use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, openat};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::layer::{Layer, json};
use crate::tree::walk::{Entries, READ, as_os_str};

/// Sidecars: `<layer>/<name>.json`, one JSON value each. Which of them exist is the layer's kind;
/// nothing here interprets them.
impl Layer {
    /// The path of a sidecar.
    ///
    /// # Errors
    /// [`Error::SidecarName`] if `name` cannot be the name of a file, or is `layer`.
    pub fn sidecar_path(&self, name: &str) -> Result<PathBuf> {
        // A leading dot is how a file is hidden while it is written.
        let usable = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']) && name != "layer";
        match usable {
            true => Ok(self.path().join(format!("{name}.json"))),
            false => Err(Error::SidecarName { name: name.into() }),
        }
    }

    /// Reads a sidecar as any type, or as raw JSON ([`serde_json::Value`], keys in their order);
    /// `None` if there is none.
    ///
    /// # Errors
    /// [`Error::Json`] if it is something else, [`Error::Io`] if it cannot be read,
    /// [`Error::SidecarName`].
    pub fn read_sidecar<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        json::read(&self.sidecar_path(name)?)
    }

    /// Writes a sidecar: whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Serialize`]; the former sidecar, if any, is then still there.
    /// [`Error::SidecarName`].
    pub fn write_sidecar<T: Serialize + ?Sized>(&self, name: &str, value: &T) -> Result<()> {
        json::write(&self.sidecar_path(name)?, value)
    }

    /// The names of the sidecars that are there, in order of the alphabet. Names that are not UTF-8
    /// are passed over.
    ///
    /// # Errors
    /// [`Error::Io`] if the layer's directory cannot be read.
    pub fn sidecars(&self) -> Result<Vec<String>> {
        let failed = |operation| Error::io(operation, self.path());
        let dir = openat(CWD, self.path(), READ.difference(OFlags::NOFOLLOW), Mode::empty()).map_err(failed("open"))?;
        let mut names = Vec::new();
        for entry in Entries::new(dir).map_err(failed("read"))? {
            let (name, kind) = entry.map_err(failed("read"))?;
            let name = Path::new(as_os_str(&name));
            let json = name.extension().is_some_and(|extension| extension == "json") && kind == FileType::RegularFile;
            match name.file_stem().and_then(|stem| stem.to_str()) {
                Some(stem) if json && self.sidecar_path(stem).is_ok() => names.push(stem.to_string()),
                _ => {}
            }
        }
        names.sort_unstable();
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::fs;

    #[test]
    fn sidecars_are_listed_read_and_written() {
        let dir = tempfile::tempdir().unwrap();
        let layer = Layer::at(dir.path());
        assert_eq!(layer.read_sidecar::<Value>("package").unwrap(), None);
        layer.write_sidecar("package", &json!({"name": "dune", "deps": [1, 2]})).unwrap();
        layer.write_sidecar("doc", "html").unwrap();
        fs::write(layer.meta_path(), "{}").unwrap();
        fs::write(dir.path().join("notes.txt"), "").unwrap();
        fs::create_dir(dir.path().join("fs.json")).unwrap();

        assert_eq!(layer.sidecars().unwrap(), ["doc", "package"]);
        assert_eq!(layer.read_sidecar::<String>("doc").unwrap().as_deref(), Some("html"));
        assert_eq!(layer.read_sidecar::<Value>("package").unwrap().unwrap()["deps"][1], 2);
        assert!(matches!(layer.read_sidecar::<u8>("doc"), Err(Error::Json { .. })));
    }

    #[test]
    fn a_sidecar_stays_in_its_layer() {
        let layer = Layer::at("/nowhere");
        for name in ["", "layer", "../x", "a/b", ".hidden", "a\0b"] {
            assert!(matches!(layer.write_sidecar(name, &0), Err(Error::SidecarName { .. })), "{name:?}");
        }
    }
}
