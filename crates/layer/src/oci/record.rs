//! The sidecar `oci.json`: what image a layer or a base comes from. `docs/format.md` describes it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::digest::Digest;
use super::error::Result;
use super::image::Blob;
use super::unpack::{LeftOut, Needs};
use crate::layer::Layer;

/// The name of the sidecar.
const NAME: &str = "oci";

/// The image that a layer or a base was imported from. A base has all layers of the image in one
/// tree.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Record {
    /// The place of the image at the time of the import, by an absolute path; `-` for standard
    /// input.
    pub source: String,
    /// The digest of the manifest, if the image has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<Digest>,
    /// The digest of the configuration, if the image has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_digest: Option<Digest>,
    /// The diff ID of the topmost layer in the tree.
    pub diff_id: Digest,
    /// The chain ID of the topmost layer in the tree: with it, the whole tree down to the lowest
    /// layer is known.
    pub chain_id: Digest,
    /// The layers of the image in the tree, the lowest first.
    pub blobs: Vec<Blob>,
    /// The part of the layers below that decides how the tree looks. With anything but
    /// [`Needs::Nothing`], the layer looks right only over layers like those that it was imported
    /// with.
    #[serde(default, skip_serializing_if = "Needs::is_nothing")]
    pub needs: Needs,
    /// The numbers of things that the import had no privilege for.
    #[serde(default, skip_serializing_if = "LeftOut::is_empty")]
    pub left_out: LeftOut,
    /// The configuration of the image: an object with the keys of the image specification. Empty if
    /// the source has none.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub config: Map<String, Value>,
    /// The registries that have the tree as a layer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub registries: Vec<InRegistry>,
}

/// A layer in a registry, as a push or a pull has left it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct InRegistry {
    /// The repository, and the name of the layer as its tag.
    pub image: String,
    /// The digest of the manifest.
    pub manifest: Digest,
    /// The blob with the tree.
    pub blob: Blob,
}

impl Record {
    /// Reads the record of a layer or a base. Returns `None` if it has none.
    ///
    /// # Errors
    /// [`crate::Error::Json`] if the sidecar is not a record, [`crate::Error::Io`] if it cannot be
    /// read.
    pub fn of(layer: &Layer) -> Result<Option<Self>> {
        Ok(layer.read_sidecar(NAME)?)
    }

    /// Returns the record of a layer that came from no image but is in a registry.
    #[cfg(feature = "registry")]
    pub(crate) fn of_registry(place: &InRegistry, diff_id: Digest) -> Self {
        Self {
            source: place.image.clone(),
            manifest: Some(place.manifest),
            config_digest: None,
            diff_id,
            chain_id: diff_id,
            needs: Needs::Nothing,
            left_out: LeftOut::default(),
            blobs: vec![place.blob.clone()],
            config: Map::new(),
            registries: Vec::new(),
        }
    }

    /// Returns whether the tree is an import of an image with a configuration. It is not if it is a
    /// layer that was pulled: what that has as a configuration need not describe a stack.
    pub(crate) fn is_of_import(&self) -> bool {
        self.config_digest.is_some() && !self.registries.iter().any(|place| place.image == self.source)
    }

    /// Writes the record of a layer.
    pub(crate) fn write(&self, layer: &Layer) -> Result<()> {
        Ok(layer.write_sidecar(NAME, self)?)
    }
}
