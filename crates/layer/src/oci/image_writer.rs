//! Where an export writes: a layout or a repository in a registry.

use std::io::Write;
#[cfg(feature = "registry")]
use std::sync::Arc;

use serde_json::json;

use super::digest::Digest;
use super::error::Result;
use super::layout_writer::{LayoutWriter, Written};
#[cfg(feature = "registry")]
use super::registry::Registry;

/// The place of an image that is being written.
#[derive(Debug)]
pub(crate) enum ImageWriter {
    Layout(LayoutWriter),
    #[cfg(feature = "registry")]
    Registry(Arc<Registry>),
}

impl ImageWriter {
    /// Returns whether the place has a blob.
    pub(crate) fn has(&self, digest: Digest, size: u64) -> Result<bool> {
        match self {
            Self::Layout(layout) => Ok(layout.has(digest, size)),
            #[cfg(feature = "registry")]
            Self::Registry(registry) => registry.has_blob(digest),
        }
    }

    /// Writes a blob by `write`. Returns what `write` returned.
    pub(crate) fn blob<T>(&self, write: impl FnOnce(&mut dyn Write) -> Result<T>) -> Result<(Written, T)> {
        match self {
            Self::Layout(layout) => layout.blob(write),
            #[cfg(feature = "registry")]
            Self::Registry(registry) => registry.written_blob(write),
        }
    }

    /// Writes a blob whose bytes are in memory.
    pub(crate) fn bytes(&self, bytes: Vec<u8>) -> Result<Written> {
        match self {
            Self::Layout(layout) => layout.bytes(&bytes),
            #[cfg(feature = "registry")]
            Self::Registry(registry) => {
                let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
                registry.put_blob(digest, &bytes)?;
                Ok(Written { digest, size })
            }
        }
    }

    /// Writes the manifest, and gives it the tag. Returns its digest.
    pub(crate) fn manifest(&self, tag: &str, media_type: &str, bytes: Vec<u8>) -> Result<Digest> {
        match self {
            Self::Layout(layout) => {
                let Written { digest, size } = layout.bytes(&bytes)?;
                layout.tag(tag, json!({"mediaType": media_type, "digest": digest, "size": size}))?;
                Ok(digest)
            }
            #[cfg(feature = "registry")]
            Self::Registry(registry) => {
                registry.put_manifest(tag, media_type, &bytes)?;
                Ok(Digest::of(&bytes))
            }
        }
    }
}
