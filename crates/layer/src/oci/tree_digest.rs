//! The digest of a tree, which the sidecar `digest.json` of a layer keeps: with it, damage to the
//! layer can be found. `verify.rs` compares it.

use std::io;

use serde::{Deserialize, Serialize};

use super::digest::{Digest, Hashing};
use super::error::Result;
use super::pack::pack;
use crate::layer::Layer;
use crate::stack::overlayfs::XattrNamespace;
use crate::tree::owner::IdMaps;

/// The name of the sidecar.
const NAME: &str = "digest";

/// Whether an import reads the finished tree once more to record its digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TreeDigest {
    /// It does, and [`verify`](super::verify()) can find damage later.
    #[default]
    Recorded,
    /// It does not, and is faster.
    Omitted,
}

/// The content of the sidecar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Recorded {
    /// The diff ID that an export of the tree has.
    pub(crate) tree: Digest,
    /// The IDs with which the owners were read. Root outside of a user namespace has recorded a
    /// digest without them.
    #[serde(default)]
    pub(crate) ids: IdMaps,
}

impl Recorded {
    pub(crate) fn of(layer: &Layer) -> Result<Option<Self>> {
        Ok(layer.read_sidecar(NAME)?)
    }

    /// Returns the record of a digest that this process has computed.
    pub(crate) fn new(tree: Digest) -> Self {
        Self { tree, ids: IdMaps::of_process() }
    }

    pub(crate) fn write(&self, layer: &Layer) -> Result<()> {
        Ok(layer.write_sidecar(NAME, self)?)
    }
}

/// Computes the digest of a layer's tree: the diff ID that an export of the layer has.
pub(crate) fn compute(layer: &Layer, xattrs: XattrNamespace) -> Result<Digest> {
    let mut archive = Hashing::new(io::sink());
    pack(&layer.fs(), xattrs, &mut archive)?;
    Ok(archive.finish().1)
}

/// Reads the tree of `layer`, and writes its digest into the sidecar `digest.json`.
///
/// # Errors
/// [`Error::Entry`](super::Error::Entry) names a file that cannot be read,
/// [`Error::Layer`](super::Error::Layer) a sidecar that cannot be written.
pub fn record_digest(layer: &Layer, xattrs: XattrNamespace) -> Result<Digest> {
    let tree = compute(layer, xattrs)?;
    Recorded::new(tree).write(layer)?;
    Ok(tree)
}
