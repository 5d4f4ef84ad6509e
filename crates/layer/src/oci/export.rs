//! A stack becomes an image: one layer of the image for the base and for each layer. `pack.rs`
//! writes the archives, `layout_writer.rs` the blobs.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::compression::{Compression, detect};
use super::destination::Destination;
use super::digest::{Digest, Hashing};
use super::encoder::Encoder;
use super::error::{Error, Result};
use super::files::{free_bytes, known};
use super::image::{Blob, Image, ImageLayer};
use super::image_writer::ImageWriter;
use super::layout_writer::{LayoutWriter, Written};
use super::pack::{Differences, pack};
use super::progress::{Meter, OnProgress, Progress};
use super::record::Record;
#[cfg(feature = "registry")]
use super::registry;
use super::source::{Platform, Source};
use super::tree_digest::{self, Recorded};
use crate::callback::Callback;
use crate::layer::{Base, Layer};
use crate::stack::overlayfs::XattrNamespace;
use crate::tree::output_file::OutputFile;

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// A builder for the export of a stack as an image.
///
/// The export of the same trees by the same version of layered gives the same bytes: no time and no
/// name of this machine gets into the image. Another version of a compressor can give other blobs;
/// the diff IDs stay the same.
///
/// ```no_run
/// use layer::oci::{Destination, Export};
///
/// let destination: Destination = "oci:images:hello".parse()?;
/// let (base, layers) = (layer::Base::open("debian")?, [layer::Layer::open("store/hello")?]);
/// let exported = Export::new(&layers).base(&base).run(&destination)?;
/// println!("{}", exported.manifest);
/// # Ok::<(), layer::oci::Error>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "it exports when `run` is called"]
pub struct Export<'a> {
    base: Option<&'a Base>,
    layers: &'a [Layer],
    compression: Compression,
    xattrs: XattrNamespace,
    config: Map<String, Value>,
    #[cfg(feature = "registry")]
    registry: registry::Options,
    progress: OnProgress<'a>,
}

/// The result of an export.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Exported {
    /// The digest of the manifest.
    pub manifest: Digest,
    /// The layers of the image, the lowest first.
    pub blobs: Vec<Blob>,
    /// The number of these that are blobs of the image that the base came from.
    pub original: usize,
    /// The paths of sockets, which no image can have. Whiteouts take their place.
    #[serde(serialize_with = "paths")]
    pub sockets: Vec<PathBuf>,
    /// The number of files whose user or group has no number in this process's user namespace. They
    /// are root's in the image, as in a [merge](crate::Merge).
    pub owners_as_root: u64,
}

fn paths<S: serde::Serializer>(paths: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
    crate::json_path::serialize_list(paths, serializer)
}

impl<'a> Export<'a> {
    /// Returns an export of `layers`, topmost first, without a base and compressed with gzip.
    pub fn new(layers: &'a [Layer]) -> Self {
        Self {
            base: None,
            layers,
            compression: Compression::default(),
            xattrs: XattrNamespace::default(),
            config: Map::new(),
            #[cfg(feature = "registry")]
            registry: registry::Options::default(),
            progress: Callback::default(),
        }
    }

    /// Sets how registries are used: that of the new image, and that of the base's own.
    #[cfg(feature = "registry")]
    pub fn registry(mut self, options: registry::Options) -> Self {
        self.registry = options;
        self
    }

    /// Adds the base below the layers. If it came from an image whose files are still in their
    /// place, and its tree still has the digest that the import recorded, the image gets the blobs
    /// of that one. Otherwise the base becomes one layer.
    pub fn base(mut self, base: impl Into<Option<&'a Base>>) -> Self {
        self.base = base.into();
        self
    }

    /// Sets how layers are compressed. The default is gzip. The blobs of the base's own image stay
    /// as they are.
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// Sets the namespace in which the layers mark whiteouts and opaque directories.
    pub fn xattrs(mut self, namespace: XattrNamespace) -> Self {
        self.xattrs = namespace;
        self
    }

    /// Sets keys of the image's configuration, such as `architecture` or `author`. The keys of its
    /// object `config`, such as `Entrypoint` and `Env`, are set one by one. All others are those of
    /// the [image](Self::image_config) that the stack comes from. An `Entrypoint` also removes its
    /// `Cmd`.
    ///
    /// The keys `rootfs` and `history` describe the layers and are ignored.
    pub fn config(mut self, config: Map<String, Value>) -> Self {
        self.config = config;
        self
    }

    /// Calls `progress` whenever a part of an archive was written. The total is not known.
    pub fn progress(mut self, progress: &'a (dyn Fn(Progress) + Sync + 'a)) -> Self {
        self.progress = Callback(Some(progress));
        self
    }

    /// Returns the configuration of the image that the stack comes from: that of the topmost layer
    /// that was imported from an image, and without one that of the base. It is empty if neither
    /// comes from an image.
    ///
    /// Images share layers. So the record of the base can be that of another image, which has the
    /// same lowest layer.
    ///
    /// # Errors
    /// Those of [`Record::of`].
    pub fn image_config(&self) -> Result<Map<String, Value>> {
        for layer in self.layers {
            if let Some(record) = Record::of(layer)?.filter(Record::is_of_import) {
                return Ok(record.config);
            }
        }
        let base = self.base.filter(|base| !base.is_tree());
        let record = base.map(|base| Record::of(&Layer::at(base.path()))).transpose()?.flatten();
        Ok(record.map_or_else(Map::new, |record| record.config))
    }

    /// Writes the image. Records the digest of each layer beside it, in the sidecar `digest.json`,
    /// if the layer has none and is in a place that can be written.
    ///
    /// # Errors
    /// After an error, the tag is as it was. A layout can have blobs that no manifest names. So it
    /// is if the process is killed.
    /// - [`Error::Entry`] names a file that cannot be in an image, or cannot be read.
    /// - [`Error::Malformed`] if the destination is a directory that is not a layout.
    /// - [`Error::Io`] if the image cannot be written.
    pub fn run(&self, destination: &Destination) -> Result<Exported> {
        match destination {
            Destination::Layout { dir, tag } => self.write(&ImageWriter::Layout(LayoutWriter::open(dir)?), tag),
            #[cfg(feature = "registry")]
            Destination::Registry { image } => {
                let registry = registry::Registry::open(image.repository(), &self.registry);
                self.write(&ImageWriter::Registry(registry), destination.tag())
            }
            #[cfg(not(feature = "registry"))]
            Destination::Registry { image } => Err(Error::InRegistry { image: image.to_string() }),
            Destination::OciArchive { file, tag } => {
                let output = OutputFile::create(file).map_err(Error::io("write", file))?;
                // Blobs must not be written beside a device file, such as in /dev.
                let spool = output.dir().map_or_else(std::env::temp_dir, Path::to_path_buf);
                let writer = ImageWriter::Layout(LayoutWriter::of_archive(&spool));
                let exported = self.write(&writer, tag)?;
                writer.finish(output, file)?;
                Ok(exported)
            }
        }
    }

    fn write(&self, writer: &ImageWriter, tag: &str) -> Result<Exported> {
        let meter = Meter::new(None, self.progress);
        let config = self.image_config()?;
        let mut blobs = Vec::new();
        let mut differences = Differences::default();
        let mut original = 0;
        if let Some(base) = self.base {
            let record = if base.is_tree() { None } else { Record::of(&Layer::at(base.path()))? };
            if let Some(record) = record {
                if let Some(copied) = self.copy_original(base, &record, writer) {
                    original = copied.len();
                    blobs = copied;
                }
            }
            if original == 0 {
                let (blob, found) = self.write_tree(writer, base.fs(), &meter)?;
                differences.add(found);
                blobs.push(blob);
            }
        }
        for layer in self.layers.iter().rev() {
            let (blob, found) = self.write_tree(writer, Layer::open(layer.path())?.fs(), &meter)?;
            differences.add(found);
            remember(layer, &blob);
            blobs.push(blob);
        }
        let config = self.configuration(config, &blobs, blobs.len() - original);
        let config = writer.bytes(Value::from(config).to_string().into_bytes())?;
        let describe = |blob: &Blob| json!({"mediaType": blob.media_type, "digest": blob.digest, "size": blob.size});
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, config),
            "layers": blobs.iter().map(describe).collect::<Vec<_>>(),
        });
        let manifest = writer.manifest(tag, MANIFEST, manifest.to_string().into_bytes())?;
        let Differences { sockets, owners_as_root } = differences;
        Ok(Exported { manifest, blobs, original, sockets, owners_as_root })
    }

    /// Copies the blobs of the image that a base came from. Returns `None` if they are not there
    /// any more or are others, or if the base is not known to be what they contain.
    fn copy_original(&self, base: &Base, record: &Record, writer: &ImageWriter) -> Option<Vec<Blob>> {
        // An archive of a root file system is not an image.
        record.config_digest?;
        let layer = Layer::at(base.path());
        // The base is read only if its image is still there.
        let copied =
            self.open_original(record, &writer.spool()).and_then(|original| match self.is_as_recorded(&layer)? {
                true => original.copy(writer).map(Some),
                false => Ok(None),
            });
        if let Ok(None) = copied {
            let path = crate::display::quoted(layer.path());
            log::warn!("exporting {path} as one layer: it has changed since its import, or has no digest");
        }
        if let Err(error) = &copied {
            log::warn!("exporting the base as one layer: {}", crate::error::Chain(error));
        }
        copied.ok().flatten()
    }

    /// Opens the image that a base came from, and checks that its blobs are there. A compressed
    /// archive is decompressed in the directory `spool`.
    fn open_original(&self, record: &Record, spool: &Path) -> Result<Original> {
        let source: Source = record.source.parse()?;
        let image = match &source {
            #[cfg(feature = "registry")]
            Source::Registry { image } => {
                let registry = registry::Registry::open(image.repository(), &self.registry);
                Image::again_in_registry(&registry, image, record)?
            }
            source => {
                let metadata = std::fs::metadata(source.path()).map_err(Error::io("look at", source.path()))?;
                // A record can name anything. To open a FIFO would wait.
                if !metadata.is_dir() && !metadata.is_file() {
                    return Err(Error::malformed(source.path(), "an image"));
                }
                Image::open_again(source, record, spool, free_bytes(spool)?)?
            }
        };
        let changed = || Error::malformed(&image.path, "the image that the base came from");
        if image.config_digest != record.config_digest {
            return Err(changed());
        }
        let mut layers = Vec::with_capacity(record.blobs.len());
        for blob in &record.blobs {
            // A base can be the lowest layer of the image alone.
            let layer = image.layers.iter().find(|layer| layer.diff_id == blob.diff_id).ok_or_else(changed)?;
            if image.size_of(layer)? != Some(blob.size) {
                return Err(changed());
            }
            layers.push((layer.clone(), blob.clone()));
        }
        Ok(Original { image, layers })
    }

    /// Returns whether the tree of a layer has the digest that was recorded of it.
    fn is_as_recorded(&self, layer: &Layer) -> Result<bool> {
        let Some(recorded) = Recorded::of(layer)? else { return Ok(false) };
        Ok(tree_digest::compute(layer, self.xattrs)? == recorded.tree)
    }

    fn write_tree(&self, writer: &ImageWriter, tree: PathBuf, meter: &Meter<'_>) -> Result<(Blob, Differences)> {
        let (written, (diff_id, mut differences)) = writer.blob(|out| {
            let failed = || Error::io("compress", &tree);
            let mut encoder = Encoder::new(self.compression, out).map_err(failed())?;
            let reporting = Reporting { out: &mut encoder, meter };
            let mut archive = Hashing::new(reporting);
            let differences = pack(&tree, self.xattrs, &mut archive)?;
            let (_, diff_id, _) = archive.finish();
            encoder.finish().map_err(failed())?;
            Ok((diff_id, differences))
        })?;
        let media_type = self.compression.media_type().to_string();
        let Written { digest, size } = written;
        differences.sockets.iter_mut().for_each(|socket| *socket = tree.join(&*socket));
        Ok((Blob { media_type, digest, size, diff_id: Some(diff_id) }, differences))
    }

    /// Returns the configuration of the image. `added` layers are not those of the base's image.
    fn configuration(&self, mut config: Map<String, Value>, blobs: &[Blob], added: usize) -> Map<String, Value> {
        let host = Platform::host();
        config.entry("architecture").or_insert(host.architecture.into());
        config.entry("os").or_insert(host.os.into());
        for (key, value) in &self.config {
            match (key.as_str(), value, config.get_mut(key)) {
                ("rootfs" | "history", ..) => {}
                ("config", Value::Object(given), Some(Value::Object(parts))) => {
                    // The base's arguments belong to the base's program, as in a Dockerfile.
                    if given.contains_key("Entrypoint") {
                        parts.remove("Cmd");
                    }
                    parts.extend(given.clone());
                }
                _ => drop(config.insert(key.clone(), value.clone())),
            }
        }
        config.entry("config").or_insert(json!({}));
        let diff_ids: Vec<_> = blobs.iter().filter_map(|blob| blob.diff_id).collect();
        config.insert("rootfs".into(), json!({"type": "layers", "diff_ids": diff_ids}));
        extend_history(&mut config, blobs.len() - added, added);
        config
    }
}

/// Adds `added` layers to the history in a configuration. Removes the history if it describes other
/// layers than the `original` ones.
fn extend_history(config: &mut Map<String, Value>, original: usize, added: usize) {
    let Some(Value::Array(history)) = config.get_mut("history") else { return };
    let layers = history.iter().filter(|step| step["empty_layer"] != true).count();
    match original > 0 && layers == original {
        true => history.extend(std::iter::repeat_n(json!({"created_by": "layered export"}), added)),
        false => drop(config.remove("history")),
    }
}

/// The image that a base came from, as far as it is in the base.
struct Original {
    image: Image,
    layers: Vec<(ImageLayer, Blob)>,
}

impl Original {
    fn copy(self, writer: &ImageWriter) -> Result<Vec<Blob>> {
        let mut copied = Vec::with_capacity(self.layers.len());
        for (layer, blob) in self.layers {
            let path = self.image.layer_path(&layer);
            let (detected, mut reader) = detect(self.image.open_layer(&layer)?).map_err(Error::io("read", &path))?;
            // The base's image can have Docker's media types, which no OCI manifest may have.
            let media_type = known(detected, &path)?.media_type().to_string();
            if !writer.has(blob.digest, blob.size)? {
                let copy = |out: &mut dyn Write| {
                    let copied = io::copy(&mut reader, out).map_err(Error::io("copy", &path));
                    self.image.take_failure().map_or(copied, Err)
                };
                let (Written { digest: found, .. }, _) = writer.blob(copy)?;
                if found != blob.digest {
                    return Err(Error::WrongDigest { path, expected: blob.digest, found });
                }
            }
            copied.push(Blob { media_type, ..blob });
        }
        Ok(copied)
    }
}

/// Records the digest of a layer, so that damage can be found later.
fn remember(layer: &Layer, blob: &Blob) {
    let Some(tree) = blob.diff_id else { return };
    let is_known = !matches!(Recorded::of(layer), Ok(None));
    if is_known || matches!(layer.meta(), Ok(None) | Err(_)) {
        return;
    }
    // The store may be read-only.
    if let Err(error) = Recorded::new(tree).write(layer) {
        log::info!("not recording the digest: {}", crate::error::Chain(&error));
    }
}

fn descriptor(media_type: &str, written: Written) -> Value {
    json!({"mediaType": media_type, "digest": written.digest, "size": written.size})
}

/// A writer that reports how much was written.
struct Reporting<'a, W> {
    out: &'a mut W,
    meter: &'a Meter<'a>,
}

impl<W: Write> Write for Reporting<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.meter.add(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod base_tests;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_history_describes_the_layers_or_is_removed() {
        let config = || {
            let json = json!({"history": [{"created_by": "a"}, {"empty_layer": true}, {"created_by": "b"}]});
            json.as_object().unwrap().clone()
        };
        for (original, added, expected) in [(2, 0, Some(3)), (2, 2, Some(5)), (1, 1, None), (0, 1, None), (3, 0, None)]
        {
            let mut config = config();
            extend_history(&mut config, original, added);
            let found = config.get("history").map(|history| history.as_array().unwrap().len());
            assert_eq!(found, expected, "{original} {added}");
        }
    }

    #[test]
    fn an_entrypoint_removes_the_arguments_of_the_base() {
        for (given, expected) in [
            (json!({"Entrypoint": ["/e"]}), json!({"Entrypoint": ["/e"]})),
            (json!({"Entrypoint": ["/e"], "Cmd": ["x"]}), json!({"Entrypoint": ["/e"], "Cmd": ["x"]})),
            (json!({"Env": []}), json!({"Cmd": ["sh"], "Env": []})),
        ] {
            let given = json!({ "config": given });
            let export = Export::new(&[]).config(given.as_object().unwrap().clone());
            let base = json!({"config": {"Cmd": ["sh"]}});
            let config = export.configuration(base.as_object().unwrap().clone(), &[], 0);
            assert_eq!(config["config"], expected);
        }
    }

    #[test]
    fn given_keys_replace_those_of_the_base_one_by_one() {
        let given = json!({"author": "me", "config": {"Env": ["A=1"], "Cmd": null}, "rootfs": 1, "history": []});
        let export = Export::new(&[]).config(given.as_object().unwrap().clone());
        let base =
            json!({"author": "you", "os": "linux", "architecture": "arm64", "config": {"Cmd": ["x"], "User": "u"}});
        let diff_id = Digest::of(b"");
        let blob = Blob { media_type: String::new(), digest: diff_id, size: 0, diff_id: Some(diff_id) };
        let config = export.configuration(base.as_object().unwrap().clone(), &[blob], 1);
        let expected = json!({"author": "me", "os": "linux", "architecture": "arm64",
            "config": {"Cmd": null, "User": "u", "Env": ["A=1"]}, "rootfs": {"type": "layers", "diff_ids": [diff_id]}});
        assert_eq!(Value::from(config), expected);
    }
}
