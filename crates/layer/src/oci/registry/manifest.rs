//! Reads and writes manifests. `form.rs` defines those of layers.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;
use ureq::http::Method;
use ureq::http::header::CONTENT_TYPE;

use super::form::Descriptor;
use super::http::{Request, read_all};
use super::problem::RegistryProblem;
use super::{Access, Registry};
use crate::oci::digest::Digest;
use crate::oci::error::{Error, Result};
use crate::oci::image::MAX_JSON_BYTES;

/// The media types of manifests and indexes.
const TYPES: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// A manifest or an index as a registry has it.
#[derive(Debug, Clone)]
pub(crate) struct Manifest {
    pub(crate) bytes: Vec<u8>,
    pub(crate) digest: Digest,
    pub(crate) media_type: String,
}

/// The part of a manifest that says what it is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kind {
    #[serde(default)]
    media_type: Option<String>,
}

impl Registry {
    /// Returns the digest of the manifest `reference`, a tag or a digest. Returns `None` if there
    /// is none.
    pub(crate) fn manifest_digest(&self, reference: &str) -> Result<Option<Digest>> {
        let request = Request::new(Method::HEAD, self.url(&format!("manifests/{reference}")), Access::Pull);
        let request = request.accept(&TYPES);
        let found = self.retrying(|| {
            let response = self.expect(&request, &[200, 404])?;
            if response.status() == 404 {
                return Ok(Some(None));
            }
            let digest = response.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
            Ok(digest.and_then(|digest| digest.parse().ok()).map(Some))
        });
        match found.map_err(self.failed("look for", self.place(reference)))? {
            Some(found) => Ok(found),
            // The header is not a duty.
            None => Ok(self.manifest(reference)?.map(|manifest| manifest.digest)),
        }
    }

    /// Reads the manifest `reference`, a tag or a digest. Returns `None` if there is none.
    pub(crate) fn manifest(&self, reference: &str) -> Result<Option<Manifest>> {
        let request = Request::new(Method::GET, self.url(&format!("manifests/{reference}")), Access::Pull);
        let request = request.accept(&TYPES);
        let read = self.retrying(|| {
            let response = self.expect(&request, &[200, 404])?;
            if response.status() == 404 {
                return Ok(None);
            }
            let given = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).map(String::from);
            Ok(Some((given, read_all(response, MAX_JSON_BYTES)?)))
        });
        let Some((given, bytes)) = read.map_err(self.failed("read", self.place(reference)))? else { return Ok(None) };
        let digest = Digest::of(&bytes);
        if let Some(expected) = reference.parse().ok().filter(|expected| *expected != digest) {
            return Err(Error::WrongDigest { path: self.place(reference).into(), expected, found: digest });
        }
        let kind: Option<Kind> = serde_json::from_slice(&bytes).ok();
        // The manifest itself says it for certain; the header need not be about it.
        let media_type = kind.and_then(|kind| kind.media_type).or(given).unwrap_or_default();
        Ok(Some(Manifest { bytes, digest, media_type }))
    }

    /// Reads the configuration of the layer `name`, which the manifest can have in itself.
    pub(super) fn config(self: &Arc<Self>, name: &str, descriptor: &Descriptor) -> Result<Vec<u8>> {
        match descriptor.data().map_err(|reason| self.unusable(name, reason))? {
            Some(config) => Ok(config),
            None => self.small_blob(descriptor.digest, descriptor.size, MAX_JSON_BYTES),
        }
    }

    /// Writes a manifest under `reference`, a tag or its digest.
    pub(crate) fn put_manifest(&self, reference: &str, media_type: &str, bytes: &Vec<u8>) -> Result<()> {
        let request = Request::new(Method::PUT, self.url(&format!("manifests/{reference}")), Access::Push);
        let request = request.content(media_type, bytes);
        let written = self.retrying(|| self.expect(&request, &[200, 201, 202]).map(drop));
        written.map_err(self.failed("write", self.place(reference)))
    }

    /// Returns a manifest of the repository as people write it.
    pub(crate) fn place(&self, reference: &str) -> String {
        let separator = if reference.contains(':') { '@' } else { ':' };
        format!("{}{separator}{reference}", self.repository)
    }

    /// Returns the error about a manifest that cannot be used.
    pub(crate) fn unusable(&self, reference: &str, reason: impl Into<String>) -> Error {
        self.failed("use", self.place(reference))(RegistryProblem::Answer(reason.into()))
    }
}

/// Returns the JSON of a manifest that is being written.
pub(super) fn to_bytes(manifest: &Value) -> Vec<u8> {
    manifest.to_string().into_bytes()
}
