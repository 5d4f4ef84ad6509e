//! The form of a layer in a registry: an image manifest with one blob, and `layer.json` and the
//! sidecars as annotations. `docs/format.md` describes it. Pure; `push.rs` and `pull.rs` use it.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::manifest::to_bytes;
use crate::layer::meta::Meta;
use crate::oci::digest::Digest;
use crate::oci::export::{CONFIG, MANIFEST};
use crate::oci::image::Blob;
use crate::oci::record::Record;
use crate::oci::reference::is_tag;
use crate::oci::source::Platform;

/// The media types.
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const FILES: &str = "application/vnd.layered.files.v1";
const JSON: &str = "application/json";

/// The annotations of a manifest.
const META: &str = "layered.layer.json";
const SIDECAR: &str = "layered.sidecar.";
const ARTIFACT: &str = "layered.files";
const TITLE: &str = "org.opencontainers.image.title";

/// The most bytes of annotations. Registries accept manifests of 4 MiB, and podman of fewer.
const MAX_ANNOTATIONS: usize = 1 << 20;

/// The most bytes of a configuration that the manifest has in itself, which saves a pull a request.
const MAX_DATA: usize = 8 << 10;

/// The most bytes of all files of an artifact together. It is also the limit of a sidecar on disk.
pub(super) const MAX_FILES_BYTES: u64 = 16 << 20;

/// The most files of an artifact.
const MAX_FILES: usize = 1000;

/// The end of the tag of an artifact.
const ARTIFACT_TAG: &str = ".meta";

/// The sidecars that are about one machine: where its image is, and with which IDs its digest was
/// computed. A pull makes new ones.
const LOCAL: [&str; 2] = ["oci", "digest"];

/// Returns whether a sidecar is about one machine and stays there.
pub(super) fn is_local(sidecar: &str) -> bool {
    LOCAL.contains(&sidecar)
}

/// Returns the tag of the artifact with the files of the layer `name`.
pub(super) fn artifact_tag(name: &str) -> String {
    format!("{name}{ARTIFACT_TAG}")
}

/// Returns why a layer of this name cannot be in a registry.
pub(super) fn refuse_name(name: &str) -> Option<&'static str> {
    if !is_tag(name) {
        Some("a tag has at most 128 letters, digits, dots, dashes and underscores, and begins with none of .-")
    } else if name.ends_with(ARTIFACT_TAG) {
        Some("names that end in .meta are those of what layers have beside their trees")
    } else if !is_tag(&artifact_tag(name)) {
        Some("it is longer than 123 bytes")
    } else {
        None
    }
}

/// What a layer has beside its tree.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Files {
    /// The content of `layer.json`.
    pub(super) meta: Value,
    /// The sidecars by name.
    pub(super) sidecars: Vec<(String, Value)>,
}

impl Files {
    /// Returns the files as annotations. Returns `None` if they are too large for that.
    pub(super) fn annotations(&self) -> Option<Map<String, Value>> {
        let mut annotations = Map::new();
        annotations.insert(META.into(), self.meta.to_string().into());
        for (name, value) in &self.sidecars {
            annotations.insert(format!("{SIDECAR}{name}"), value.to_string().into());
        }
        let bytes: usize = annotations.iter().map(|(key, value)| key.len() + value.as_str().map_or(0, str::len)).sum();
        (bytes <= MAX_ANNOTATIONS).then_some(annotations)
    }

    /// Returns the files as the blobs of an artifact, each with its title.
    pub(super) fn blobs(&self) -> Vec<(String, Vec<u8>)> {
        let sidecars = self.sidecars.iter().map(|(name, value)| (format!("{name}.json"), value.to_string().into()));
        std::iter::once(("layer.json".into(), self.meta.to_string().into())).chain(sidecars).collect()
    }

    /// Returns the files in annotations or in the blobs of an artifact.
    pub(super) fn parse(parts: impl IntoIterator<Item = (String, Vec<u8>)>) -> Result<Self, String> {
        let (mut meta, mut sidecars) = (None, Vec::new());
        for (name, bytes) in parts {
            let value: Value = serde_json::from_slice(&bytes).map_err(|error| format!("its {name}: {error}"))?;
            match name.strip_suffix(".json") {
                Some("layer") => {
                    serde_json::from_value::<Meta>(value.clone()).map_err(|error| format!("its {name}: {error}"))?;
                    meta = Some(value);
                }
                Some(stem) if crate::layer::Layer::at("").sidecar_path(stem).is_ok() => {
                    if !is_local(stem) {
                        sidecars.push((stem.to_string(), value));
                    }
                }
                _ => return Err(format!("it has a file {name:?}, which no layer can have")),
            }
        }
        let meta = meta.ok_or("it has no layer.json, so it is not a layer that `layered push` has written")?;
        Ok(Self { meta, sidecars })
    }
}

/// Returns the configuration of the image of one layer. That of the layer's own image, if it came
/// from one, decides about programs and variables.
pub(super) fn config(diff_id: Digest, record: Option<&Record>) -> Vec<u8> {
    let host = Platform::host();
    let mut config = record.map_or_else(Map::new, |record| record.config.clone());
    config.remove("history");
    config.entry("architecture").or_insert(host.architecture.into());
    config.entry("os").or_insert(host.os.into());
    config.entry("config").or_insert(json!({}));
    config.insert("rootfs".into(), json!({"type": "layers", "diff_ids": [diff_id]}));
    Value::from(config).to_string().into_bytes()
}

/// Where the files of a layer are.
#[derive(Debug)]
pub(super) enum Place {
    Annotations(Map<String, Value>),
    /// In the artifact with this digest of its manifest.
    Artifact(Digest),
}

/// Returns the manifest of a layer.
pub(super) fn manifest(config: &[u8], blob: &Blob, files: Place) -> Vec<u8> {
    let annotations = match files {
        Place::Annotations(annotations) => annotations,
        Place::Artifact(digest) => Map::from_iter([(ARTIFACT.to_string(), json!(digest))]),
    };
    let mut described = json!({"mediaType": CONFIG, "digest": Digest::of(config), "size": config.len()});
    if config.len() <= MAX_DATA {
        described["data"] = BASE64_STANDARD.encode(config).into();
    }
    to_bytes(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": described,
        "layers": [{"mediaType": blob.media_type, "digest": blob.digest, "size": blob.size}],
        "annotations": annotations,
    }))
}

/// The configuration of an artifact.
pub(super) const EMPTY_CONFIG: &[u8] = b"{}";

/// Returns the manifest of an artifact with these files.
pub(super) fn artifact(blobs: &[(String, Vec<u8>)]) -> Vec<u8> {
    let describe = |(name, bytes): &(String, Vec<u8>)| json!({"mediaType": JSON, "digest": Digest::of(bytes), "size": bytes.len(), "annotations": {TITLE: name}});
    to_bytes(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": FILES,
        "config": {"mediaType": EMPTY, "digest": Digest::of(EMPTY_CONFIG), "size": EMPTY_CONFIG.len()},
        "layers": blobs.iter().map(describe).collect::<Vec<_>>(),
    }))
}

/// A manifest as it is read.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawManifest {
    schema_version: u64,
    config: Descriptor,
    #[serde(default)]
    layers: Vec<Descriptor>,
    #[serde(default)]
    annotations: Map<String, Value>,
}

/// A blob in a manifest.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    pub(super) media_type: String,
    pub(super) digest: Digest,
    pub(super) size: u64,
    #[serde(default)]
    annotations: Map<String, Value>,
    #[serde(default)]
    data: Option<String>,
}

impl Descriptor {
    /// Returns the content of the blob if the manifest has it in itself. An error says why that is
    /// not the blob.
    pub(super) fn data(&self) -> Result<Option<Vec<u8>>, String> {
        let Some(data) = &self.data else { return Ok(None) };
        let content = BASE64_STANDARD.decode(data).map_err(|error| format!("the data of {}: {error}", self.digest))?;
        match content.len() as u64 == self.size && Digest::of(&content) == self.digest {
            true => Ok(Some(content)),
            false => Err(format!("its data is not the blob {}", self.digest)),
        }
    }
}

/// The manifest of a layer, as it was read.
#[derive(Debug)]
pub(super) struct LayerManifest {
    pub(super) config: Descriptor,
    pub(super) blob: Descriptor,
    pub(super) files: FilesIn,
}

/// Where the files of a layer are that was read.
#[derive(Debug)]
pub(super) enum FilesIn {
    Annotations(Files),
    Artifact(Digest),
}

/// Reads the manifest of a layer. An error says why it is not one.
pub(super) fn parse(bytes: &[u8]) -> Result<LayerManifest, String> {
    let raw: RawManifest = serde_json::from_slice(bytes).map_err(|error| format!("it is not a manifest: {error}"))?;
    if raw.schema_version != 2 {
        return Err(format!("its schema version is {} instead of 2", raw.schema_version));
    }
    if raw.config.media_type != CONFIG {
        return Err("it is an artifact and not a layer".into());
    }
    let [blob] = <[Descriptor; 1]>::try_from(raw.layers)
        .map_err(|layers| format!("it has {} blobs instead of one; import it as an image", layers.len()))?;
    let artifact = raw.annotations.get(ARTIFACT).and_then(Value::as_str);
    let files = match artifact {
        Some(digest) => FilesIn::Artifact(digest.parse().map_err(|error| format!("{error}"))?),
        None => {
            let parts = raw.annotations.iter().filter_map(|(key, value)| {
                let name = match key.strip_prefix(SIDECAR) {
                    Some(name) => format!("{name}.json"),
                    None if key == META => "layer.json".to_string(),
                    None => return None,
                };
                Some((name, value.as_str().unwrap_or_default().as_bytes().to_vec()))
            });
            FilesIn::Annotations(Files::parse(parts)?)
        }
    };
    Ok(LayerManifest { config: raw.config, blob, files })
}

/// Reads the manifest of an artifact. Returns its files, each with its name.
pub(super) fn parse_artifact(bytes: &[u8]) -> Result<Vec<(String, Descriptor)>, String> {
    let raw: RawManifest = serde_json::from_slice(bytes).map_err(|error| format!("it is not a manifest: {error}"))?;
    if raw.layers.len() > MAX_FILES {
        return Err(format!("it has more than {MAX_FILES} files"));
    }
    let bytes = raw.layers.iter().try_fold(0u64, |sum, blob| sum.checked_add(blob.size));
    if bytes.is_none_or(|bytes| bytes > MAX_FILES_BYTES) {
        return Err(format!("its files have more than {MAX_FILES_BYTES} bytes together"));
    }
    let named = |blob: Descriptor| match blob.annotations.get(TITLE).and_then(Value::as_str) {
        Some(title) => Ok((title.to_string(), blob)),
        None => Err("it has a file without a name".to_string()),
    };
    raw.layers.into_iter().map(named).collect()
}

/// The part of a configuration that counts.
#[derive(Deserialize)]
struct RawConfig {
    rootfs: RawRootfs,
}

#[derive(Deserialize)]
struct RawRootfs {
    diff_ids: Vec<Digest>,
}

/// Reads the configuration of a layer's image. Returns the diff ID with all keys.
pub(super) fn parse_config(bytes: &[u8]) -> Result<(Digest, Map<String, Value>), String> {
    let failed = |error: serde_json::Error| format!("its configuration: {error}");
    let all: Map<String, Value> = serde_json::from_slice(bytes).map_err(failed)?;
    let raw: RawConfig = serde_json::from_slice(bytes).map_err(failed)?;
    match *raw.rootfs.diff_ids {
        [diff_id] => Ok((diff_id, all)),
        _ => Err("its configuration has another number of layers than its manifest".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob() -> Blob {
        let digest = Digest::of(b"blob");
        Blob { media_type: "application/vnd.oci.image.layer.v1.tar+zstd".into(), digest, size: 4, diff_id: None }
    }

    fn files(size: usize) -> Files {
        let meta = serde_json::to_value(Meta::new("base", std::time::SystemTime::UNIX_EPOCH)).unwrap();
        Files { meta, sidecars: vec![("package".into(), json!({"name": "é\u{1}", "text": "x".repeat(size)}))] }
    }

    #[test]
    fn a_layer_round_trips_through_its_manifest() {
        let small = files(10);
        let bytes = manifest(b"{}", &blob(), Place::Annotations(small.annotations().unwrap()));
        let parsed = parse(&bytes).unwrap();
        assert_eq!((parsed.blob.digest, parsed.blob.size), (blob().digest, 4));
        assert_eq!(parsed.config.data(), Ok(Some(b"{}".to_vec())));
        assert!(matches!(parsed.files, FilesIn::Annotations(found) if found == small));

        let config = vec![b' '; MAX_DATA + 1];
        let bytes = manifest(&config, &blob(), Place::Annotations(small.annotations().unwrap()));
        assert_eq!(parse(&bytes).unwrap().config.data(), Ok(None));

        let large = files(MAX_ANNOTATIONS);
        assert_eq!(large.annotations(), None);
        let blobs = large.blobs();
        let artifact = artifact(&blobs);
        let listed = parse_artifact(&artifact).unwrap();
        let pairs: Vec<_> = listed.iter().map(|(name, blob)| (name, blob.digest, blob.size)).collect();
        let expected: Vec<_> =
            blobs.iter().map(|(name, bytes)| (name, Digest::of(bytes), bytes.len() as u64)).collect();
        assert_eq!(pairs, expected);
        assert_eq!(Files::parse(blobs).unwrap(), large);
        let bytes = manifest(b"{}", &blob(), Place::Artifact(Digest::of(&artifact)));
        assert!(matches!(parse(&bytes).unwrap().files, FilesIn::Artifact(digest) if digest == Digest::of(&artifact)));
        assert!(parse(&artifact).unwrap_err().contains("artifact"));
    }

    #[test]
    fn what_is_not_a_layer_is_refused() {
        let good: Value =
            serde_json::from_slice(&manifest(b"{}", &blob(), Place::Annotations(files(1).annotations().unwrap())))
                .unwrap();
        let changed = |change: &dyn Fn(&mut Value)| {
            let mut json = good.clone();
            change(&mut json);
            parse(json.to_string().as_bytes()).unwrap_err()
        };
        for (change, part) in [
            (&(|json: &mut Value| json["schemaVersion"] = json!(1)) as &dyn Fn(&mut Value), "schema"),
            (&|json| json["layers"] = json!([]), "0 blobs"),
            (&|json| json["layers"] = json!([json["layers"][0], json["layers"][0]]), "2 blobs"),
            (&|json| json["layers"][0]["digest"] = json!("sha256:../x"), "SHA-256"),
            (&|json| json["layers"][0]["size"] = json!(-1), "not a manifest"),
            (&|json| json["annotations"] = json!({}), "layered push"),
            (&|json| json["annotations"][META] = json!("{"), "layer.json"),
            (&|json| json["annotations"][META] = json!("{}"), "layer.json"),
            (&|json| json["annotations"]["layered.sidecar.../x"] = json!("1"), "no layer can have"),
            (&|json| json["annotations"]["layered.sidecar.layer"] = json!("1"), "layer.json"),
            (&|json| json["annotations"]["layered.sidecar..x"] = json!("1"), "no layer can have"),
            (&|json| json["annotations"][ARTIFACT] = json!("x"), "SHA-256"),
        ] {
            let error = changed(change);
            assert!(error.contains(part), "{error:?} has no {part:?}");
        }
        for (data, part) in [
            ("e30=", None),
            ("e3s=", Some("is not the blob")),
            ("e30gIA==", Some("is not the blob")),
            ("%", Some("data of")),
        ] {
            let mut json = good.clone();
            json["config"]["data"] = json!(data);
            let error = parse(json.to_string().as_bytes()).unwrap().config.data().err();
            assert_eq!(error.is_some(), part.is_some(), "{data}");
            assert!(error.unwrap_or_default().contains(part.unwrap_or_default()), "{data}");
        }
    }

    #[test]
    fn the_files_of_an_artifact_have_one_limit() {
        let artifact = |sizes: &[u64]| {
            let describe = |size: &u64| json!({"mediaType": JSON, "digest": Digest::of(b""), "size": size, "annotations": {TITLE: "a.json"}});
            let layers: Vec<_> = sizes.iter().map(describe).collect();
            let config = json!({"mediaType": EMPTY, "digest": Digest::of(EMPTY_CONFIG), "size": 2});
            parse_artifact(&to_bytes(&json!({"schemaVersion": 2, "config": config, "layers": layers})))
        };
        assert_eq!(artifact(&[MAX_FILES_BYTES - 1, 1]).unwrap().len(), 2);
        for sizes in [&[MAX_FILES_BYTES, 1][..], &[u64::MAX, 1], &[MAX_FILES_BYTES / 2 + 1; 2]] {
            assert!(artifact(sizes).unwrap_err().contains("bytes together"), "{sizes:?}");
        }
    }

    #[test]
    fn a_name_is_a_tag() {
        for (name, is_refused) in [
            ("0123456789ab", false),
            ("gcc-12_x.y", false),
            ("a/b", true),
            ("..", true),
            ("", true),
            ("a b", true),
            ("a.meta", true),
            ("é", true),
        ] {
            assert_eq!(refuse_name(name).is_some(), is_refused, "{name}");
        }
        assert!(refuse_name(&"a".repeat(123)).is_none() && refuse_name(&"a".repeat(124)).is_some());
    }
}
