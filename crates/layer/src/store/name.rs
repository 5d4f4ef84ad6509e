//! Decides which names a layer of a store can have.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::error::{Error, Result};

/// Returns `name` if a layer can have it: if it names an entry of the store itself, and not a
/// hidden one. The store's own `.layered` has a leading dot, and so have the files that other
/// programs hide.
pub(super) fn check(name: &OsStr) -> Result<&OsStr> {
    let bytes = name.as_bytes();
    let usable = !bytes.is_empty() && bytes[0] != b'.' && !bytes.contains(&b'/') && !bytes.contains(&0);
    if usable { Ok(name) } else { Err(Error::LayerName { name: name.into() }) }
}
