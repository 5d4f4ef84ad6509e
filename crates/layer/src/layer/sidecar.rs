//! Lists, reads and writes the sidecars of a layer. `json.rs` replaces the files; `meta.rs` handles
//! `layer.json`.

use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, openat};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::layer::{Layer, json};
use crate::tree::walk::{Entries, READ, as_os_str};

/// Sidecars: `<layer>/<name>.json`, one JSON value each. The sidecars that exist make the layer's
/// kind; this crate does not interpret them.
impl Layer {
    /// Returns the path of a sidecar.
    ///
    /// # Errors
    /// [`Error::SidecarName`] if `name` cannot be the name of a file, begins with a dot, or is
    /// `layer`.
    pub fn sidecar_path(&self, name: &str) -> Result<PathBuf> {
        // A file that is being written has a name with a leading dot.
        let usable = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']) && name != "layer";
        match usable {
            true => Ok(self.path().join(format!("{name}.json"))),
            false => Err(Error::SidecarName { name: name.into() }),
        }
    }

    /// Reads a sidecar as any type, for example as raw JSON ([`serde_json::Value`], which preserves
    /// the order of the keys). Returns `None` if the sidecar does not exist.
    ///
    /// # Errors
    /// [`Error::Json`] if the file does not contain a value of this type, [`Error::Io`] if it
    /// cannot be read, [`Error::SidecarName`] as for [`sidecar_path`](Self::sidecar_path).
    pub fn read_sidecar<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        json::read(&self.sidecar_path(name)?)
    }

    /// Writes a sidecar completely or not at all.
    ///
    /// # Errors
    /// [`Error::Serialize`] if `value` cannot be JSON, [`Error::Io`] if the file cannot be written,
    /// [`Error::SidecarName`] as for [`sidecar_path`](Self::sidecar_path). The former sidecar, if
    /// any, is then still there, unless only the last sync, of the directory, failed.
    pub fn write_sidecar<T: Serialize + ?Sized>(&self, name: &str, value: &T) -> Result<()> {
        json::write(&self.sidecar_path(name)?, value)
    }

    /// Returns the names of the sidecars that exist, in alphabetical order. Skips names that are
    /// not UTF-8.
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
