//! The manifest and the configuration of an image: which blobs are its layers, and what they must
//! be. `files.rs` opens the files; `import.rs` unpacks the layers.

use std::io::Read;
use std::path::{Path, PathBuf};
#[cfg(feature = "registry")]
use std::sync::Arc;

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest, MediaType, OciLayout};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::choice::{NoChoice, choose, matches, wanted};
use super::digest::Digest;
use super::error::{Error, Result};
use super::files::{Files, open_given};
use super::record::Record;
#[cfg(feature = "registry")]
use super::reference::RegistryImage;
#[cfg(feature = "registry")]
use super::registry::{BlobReader, Manifest, Registry};
use super::source::{Platform, Source};

/// The largest manifest, index or configuration, in bytes: the limit of registries.
pub(crate) const MAX_JSON_BYTES: u64 = 4 << 20;

/// The most indexes between `index.json` and a manifest.
const MAX_INDEXES: usize = 4;

/// The annotation with the tag of a manifest in a layout.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// An image that is open.
#[derive(Debug)]
pub(crate) struct Image {
    /// The directory or the archive.
    pub(crate) path: PathBuf,
    pub(crate) manifest: Option<Digest>,
    pub(crate) config_digest: Option<Digest>,
    /// The configuration; empty for an archive of a root file system.
    pub(crate) config: Map<String, Value>,
    /// The layers, the lowest first.
    pub(crate) layers: Vec<ImageLayer>,
    files: Option<Files>,
}

/// A layer of an image.
#[derive(Debug, Clone)]
pub(crate) struct ImageLayer {
    place: Place,
    /// The digest and the size of the blob, if the image names them.
    pub(crate) blob: Option<Blob>,
    pub(crate) diff_id: Option<Digest>,
}

/// A blob as a manifest describes it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, Deserialize)]
#[non_exhaustive]
pub struct Blob {
    /// The media type.
    pub media_type: String,
    /// The digest of the bytes.
    pub digest: Digest,
    /// The number of bytes.
    pub size: u64,
    /// The digest of the bytes after decompression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diff_id: Option<Digest>,
}

impl Blob {
    /// Describes an archive without compression.
    pub(crate) fn uncompressed(diff_id: Digest, size: u64) -> Self {
        Self { media_type: MediaType::ImageLayer.to_string(), digest: diff_id, size, diff_id: Some(diff_id) }
    }
}

/// Where the bytes of a layer are.
#[derive(Debug, Clone)]
enum Place {
    /// A file of the image.
    Member(String),
    /// A file of the caller.
    Given(PathBuf),
    Stdin,
}

impl Image {
    /// Opens an image. A compressed archive is decompressed into a temporary file in `spool`.
    pub(crate) fn open(source: &Source, platform: Option<&Platform>, spool: &Path, max_bytes: u64) -> Result<Self> {
        match source {
            Source::Layout { dir, tag } => Self::of_layout(Files::of_directory(dir)?, tag.as_deref(), platform),
            Source::OciArchive { file, tag } => {
                Self::of_layout(Files::of_archive(file, spool, max_bytes)?, tag.as_deref(), platform)
            }
            Source::DockerArchive { file, tag } => {
                Self::of_docker_archive(Files::of_archive(file, spool, max_bytes)?, tag.as_deref(), platform)
            }
            Source::Tar { file } => Ok(Self::of_tree(file, Place::Given(file.clone()))),
            Source::Stdin => Ok(Self::of_tree(Path::new("standard input"), Place::Stdin)),
            // `in_registry` opens these.
            Source::Registry { image } => Err(Error::InRegistry { image: image.to_string() }),
        }
    }

    /// Opens an image in a registry.
    #[cfg(feature = "registry")]
    pub(crate) fn in_registry(
        registry: &Arc<Registry>,
        image: &RegistryImage,
        platform: Option<&Platform>,
    ) -> Result<Self> {
        let reference = image.manifest();
        let Some(Manifest { bytes, digest, media_type }) = registry.manifest(&reference)? else {
            let (name, repository) = (reference, image.repository().clone());
            return Err(Error::NotInRegistry { name, repository });
        };
        let files = Files::of_registry(registry, image);
        let top =
            Chosen { media_type: media_type.as_str().into(), digest, size: bytes.len() as u64, bytes: Some(bytes) };
        Self::of_chosen(files, top, platform)
    }

    /// Takes the error that has ended the reader of a layer in a registry: the reason of the error
    /// that the reader's user has seen.
    pub(crate) fn take_failure(&self) -> Option<Error> {
        match &self.files {
            #[cfg(feature = "registry")]
            Some(Files::Registry { failure, .. }) => super::registry::take(failure),
            _ => None,
        }
    }

    fn of_tree(path: &Path, place: Place) -> Self {
        let layers = vec![ImageLayer { place, blob: None, diff_id: None }];
        Self { path: path.into(), manifest: None, config_digest: None, config: Map::new(), layers, files: None }
    }

    fn of_layout(files: Files, tag: Option<&str>, platform: Option<&Platform>) -> Result<Self> {
        let layout: OciLayout = parse(&files, "oci-layout", "the version of an OCI layout")?;
        if layout.image_layout_version() != "1.0.0" {
            return Err(Error::Unsupported {
                path: files.path().into(),
                part: format!("the layout version {}", layout.image_layout_version()),
                reason: "layered reads version 1.0.0",
            });
        }
        let index: ImageIndex = parse(&files, "index.json", "an image index")?;
        let chosen = choose(index.manifests(), tag, platform).map_err(|none| none.in_image(&files))?;
        let chosen = Chosen::of(&files, &chosen)?;
        Self::of_chosen(files, chosen, platform)
    }

    /// Opens the image with the manifest `chosen`, or the one of the index `chosen` that fits.
    fn of_chosen(files: Files, mut chosen: Chosen, platform: Option<&Platform>) -> Result<Self> {
        let mut indexes = 0;
        while is_index(&chosen.media_type) {
            indexes += 1;
            if indexes > MAX_INDEXES {
                return Err(Error::malformed(files.path(), "an image: its indexes name each other"));
            }
            let index: ImageIndex = chosen.read(&files, "an image index")?;
            let platform = platform.cloned().unwrap_or_else(Platform::host);
            let next = choose(index.manifests(), None, Some(&platform)).map_err(|none| none.in_image(&files))?;
            chosen = Chosen::of(&files, &next)?;
        }
        if !is_manifest(&chosen.media_type) {
            return Err(unsupported(&files, &chosen.media_type, "it is not an image that layered reads"));
        }
        let manifest: ImageManifest = chosen.read(&files, "an image manifest")?;
        Self::of_manifest(files, chosen.digest, &manifest, platform)
    }

    /// Opens the image that a record is about, by the digest of its manifest: its tag can be that
    /// of another image now. Does not check what its configuration says of its platform.
    pub(crate) fn open_again(source: &Source, record: &Record, spool: &Path, max_bytes: u64) -> Result<Self> {
        let (files, digest) = match (source, record.manifest) {
            (Source::Layout { dir, .. }, Some(digest)) => (Files::of_directory(dir)?, digest),
            (Source::OciArchive { file, .. }, Some(digest)) => (Files::of_archive(file, spool, max_bytes)?, digest),
            _ => return Self::open(source, Platform::of_config(&record.config).as_ref(), spool, max_bytes),
        };
        Self::of_digest(files, digest, record)
    }

    /// Opens the image in a registry that a record is about, by the digest of its manifest.
    #[cfg(feature = "registry")]
    pub(crate) fn again_in_registry(registry: &Arc<Registry>, image: &RegistryImage, record: &Record) -> Result<Self> {
        match record.manifest {
            Some(digest) => Self::of_digest(Files::of_registry(registry, image), digest, record),
            None => Self::in_registry(registry, image, Platform::of_config(&record.config).as_ref()),
        }
    }

    fn of_digest(files: Files, digest: Digest, record: &Record) -> Result<Self> {
        let bytes = files.manifest(digest, MAX_JSON_BYTES)?;
        let manifest = parse_blob(&files, &bytes, digest, "an image manifest")?;
        Self::of_manifest(files, digest, &manifest, Platform::of_config(&record.config).as_ref())
    }

    fn of_manifest(
        files: Files,
        digest: Digest,
        manifest: &ImageManifest,
        platform: Option<&Platform>,
    ) -> Result<Self> {
        if !is_config(manifest.config().media_type()) {
            let media_type = manifest.config().media_type();
            return Err(unsupported(&files, media_type, "it is an artifact and has no file system"));
        }
        let config: Map<String, Value> = read_blob(&files, manifest.config(), "an image configuration")?;
        let diff_ids = check_config(&files, &config, platform, manifest.layers().len())?;
        let mut layers = Vec::with_capacity(diff_ids.len());
        for (descriptor, diff_id) in manifest.layers().iter().zip(diff_ids) {
            check_layer_type(&files, descriptor.media_type())?;
            let digest = sha256(&files, descriptor)?;
            let media_type = descriptor.media_type().to_string();
            let blob = Blob { media_type, digest, size: descriptor.size(), diff_id: Some(diff_id) };
            layers.push(ImageLayer {
                place: Place::Member(blob_name(digest)),
                blob: Some(blob),
                diff_id: Some(diff_id),
            });
        }
        let config_digest = sha256(&files, manifest.config())?;
        Ok(Self {
            path: files.path().into(),
            manifest: Some(digest),
            config_digest: Some(config_digest),
            config,
            layers,
            files: Some(files),
        })
    }

    fn of_docker_archive(files: Files, tag: Option<&str>, platform: Option<&Platform>) -> Result<Self> {
        let images: Vec<DockerImage> = parse(&files, "manifest.json", "the list of images of `docker save`")?;
        let names = |image: &DockerImage| image.repo_tags.clone().unwrap_or_default();
        let found: Vec<_> = match tag {
            Some(tag) => images.iter().filter(|image| names(image).iter().any(|name| name == tag)).collect(),
            None => images.iter().collect(),
        };
        let [image] = *found else {
            let none = NoChoice { wanted: wanted(tag, None), available: images.iter().flat_map(names).collect() };
            return Err(none.in_image(&files));
        };
        let bytes = files.read(&image.config, MAX_JSON_BYTES)?;
        let path = files.path().join(&image.config);
        let config = parse_bytes(&bytes, &path, "an image configuration")?;
        let diff_ids = check_config(&files, &config, platform, image.layers.len())?;
        let layer = |(name, diff_id): (&String, Digest)| ImageLayer {
            place: Place::Member(name.clone()),
            blob: None,
            diff_id: Some(diff_id),
        };
        let layers = image.layers.iter().zip(diff_ids).map(layer).collect();
        let config_digest = Some(Digest::of(&bytes));
        Ok(Self { path: files.path().into(), manifest: None, config_digest, config, layers, files: Some(files) })
    }

    /// Opens the bytes of a layer.
    pub(crate) fn open_layer(&self, layer: &ImageLayer) -> Result<Box<dyn Read + Send>> {
        Ok(match (&layer.place, &self.files) {
            #[cfg(feature = "registry")]
            (_, Some(Files::Registry { registry, failure, .. })) => match &layer.blob {
                Some(blob) => Box::new(BlobReader::new(registry, blob.digest, blob.size).failing_into(failure)),
                None => return Err(Error::malformed(self.layer_path(layer), "a blob with a digest")),
            },
            (Place::Member(name), Some(files)) => Box::new(files.open(name)?),
            (Place::Given(path), _) => Box::new(open_given(path)?),
            _ => Box::new(std::io::stdin()),
        })
    }

    /// Returns the number of bytes of a layer, if it is known. Does not open a file of the caller,
    /// which can be a pipe.
    pub(crate) fn size_of(&self, layer: &ImageLayer) -> Result<Option<u64>> {
        match (&layer.place, &self.files) {
            #[cfg(feature = "registry")]
            (_, Some(Files::Registry { .. })) => Ok(layer.blob.as_ref().map(|blob| blob.size)),
            (Place::Member(name), Some(files)) => Ok(Some(files.open(name)?.left())),
            (Place::Given(path), _) => {
                let metadata = std::fs::metadata(path).map_err(Error::io("look at", path))?;
                Ok(metadata.is_file().then_some(metadata.len()))
            }
            _ => Ok(None),
        }
    }

    /// Returns the path of a layer, for messages.
    pub(crate) fn layer_path(&self, layer: &ImageLayer) -> PathBuf {
        match &layer.place {
            Place::Member(name) => self.path.join(name),
            Place::Given(_) | Place::Stdin => self.path.clone(),
        }
    }
}

/// An image in an archive of `docker save`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// The path of a blob in a layout.
pub(crate) fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn sha256(files: &Files, descriptor: &Descriptor) -> Result<Digest> {
    descriptor.digest().as_ref().parse().map_err(|_| Error::Unsupported {
        path: files.path().into(),
        part: format!("the digest {}", descriptor.digest()),
        reason: "layered reads SHA-256 alone; convert the image with skopeo",
    })
}

/// Reads a blob that is JSON, and checks its size and digest.
fn read_blob<T: DeserializeOwned>(files: &Files, descriptor: &Descriptor, expected: &'static str) -> Result<T> {
    let (digest, size) = (sha256(files, descriptor)?, descriptor.size());
    parse_blob(files, &files.blob(digest, size, MAX_JSON_BYTES)?, digest, expected)
}

/// A manifest or an index that was chosen.
struct Chosen {
    media_type: MediaType,
    digest: Digest,
    size: u64,
    /// Its content, if that was read already.
    bytes: Option<Vec<u8>>,
}

impl Chosen {
    fn of(files: &Files, descriptor: &Descriptor) -> Result<Self> {
        let (media_type, size) = (descriptor.media_type().clone(), descriptor.size());
        Ok(Self { media_type, digest: sha256(files, descriptor)?, size, bytes: None })
    }

    /// Reads it, and checks its size and digest.
    fn read<T: DeserializeOwned>(&mut self, files: &Files, expected: &'static str) -> Result<T> {
        let bytes = match self.bytes.take() {
            Some(bytes) => bytes,
            None => files.manifest(self.digest, MAX_JSON_BYTES)?,
        };
        files.check_size(&bytes, self.digest, self.size)?;
        parse_blob(files, &bytes, self.digest, expected)
    }
}

fn parse<T: DeserializeOwned>(files: &Files, name: &str, expected: &'static str) -> Result<T> {
    let bytes = files.read(name, MAX_JSON_BYTES)?;
    parse_bytes(&bytes, &files.path().join(name), expected)
}

fn parse_blob<T: DeserializeOwned>(files: &Files, bytes: &[u8], digest: Digest, expected: &'static str) -> Result<T> {
    parse_bytes(bytes, &files.path().join(blob_name(digest)), expected)
}

fn parse_bytes<T: DeserializeOwned>(bytes: &[u8], path: &Path, expected: &'static str) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| Error::Malformed {
        path: path.into(),
        expected,
        source: Some(Box::new(error)),
    })
}

/// The parts of a configuration that decide about the layers.
#[derive(Debug, Deserialize)]
struct ConfigParts {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
    rootfs: RootFs,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    diff_ids: Vec<Digest>,
}

/// Checks a configuration against the platform and the number of layers. Returns the diff IDs.
fn check_config(
    files: &Files,
    config: &Map<String, Value>,
    platform: Option<&Platform>,
    layers: usize,
) -> Result<Vec<Digest>> {
    let malformed = |source| Error::Malformed {
        path: files.path().into(),
        expected: "an image: its configuration cannot be used",
        source: Some(Box::new(source)),
    };
    let parts: ConfigParts = serde_json::from_value(config.clone().into()).map_err(malformed)?;
    let has = Platform { os: parts.os, architecture: parts.architecture, variant: parts.variant };
    let fits = match platform {
        Some(platform) => matches(platform, &has.os, &has.architecture, has.variant.as_deref()),
        None => has.os == "linux" || has.os.is_empty(),
    };
    if !fits {
        let none = NoChoice { wanted: wanted(None, platform), available: vec![has.to_string()] };
        return Err(none.in_image(files));
    }
    if parts.rootfs.diff_ids.len() != layers {
        let expected = "an image: its configuration and its manifest have different numbers of layers";
        return Err(Error::malformed(files.path(), expected));
    }
    if layers == 0 {
        return Err(Error::malformed(files.path(), "an image: it has no layers"));
    }
    Ok(parts.rootfs.diff_ids)
}

fn is_index(media_type: &MediaType) -> bool {
    matches!(media_type, MediaType::ImageIndex)
        || media_type.as_ref() == "application/vnd.docker.distribution.manifest.list.v2+json"
}

fn is_manifest(media_type: &MediaType) -> bool {
    matches!(media_type, MediaType::ImageManifest)
        || media_type.as_ref() == "application/vnd.docker.distribution.manifest.v2+json"
}

fn is_config(media_type: &MediaType) -> bool {
    matches!(media_type, MediaType::ImageConfig)
        || media_type.as_ref() == "application/vnd.docker.container.image.v1+json"
}

fn unsupported(files: &Files, media_type: &MediaType, reason: &'static str) -> Error {
    Error::Unsupported { path: files.path().into(), part: format!("the media type {media_type}"), reason }
}

/// Checks the media type of a layer. Its compression is found out from its first bytes.
fn check_layer_type(files: &Files, media_type: &MediaType) -> Result<()> {
    use MediaType::{
        ImageLayer, ImageLayerGzip, ImageLayerNonDistributable, ImageLayerNonDistributableGzip,
        ImageLayerNonDistributableZstd, ImageLayerZstd,
    };
    match media_type {
        ImageLayer | ImageLayerGzip | ImageLayerZstd => Ok(()),
        ImageLayerNonDistributable | ImageLayerNonDistributableGzip | ImageLayerNonDistributableZstd => Ok(()),
        other => match other.as_ref() {
            "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Ok(()),
            name if name.ends_with("+encrypted") => {
                Err(unsupported(files, other, "the layer is encrypted; decrypt the image first, as with `skopeo copy`"))
            }
            _ => Err(unsupported(files, other, "it is not a layer that layered reads")),
        },
    }
}
