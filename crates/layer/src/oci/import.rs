//! An image becomes a base or layers of a store: the order of the steps. `pipeline.rs` reads a
//! layer, `unpack.rs` makes its files.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use serde::Serialize;

use super::archive::Archive;
use super::digest::Digest;
use super::error::{Error, Problem, Result};
use super::files::{free_bytes, lossless};
use super::image::{Blob, Image, ImageLayer};
use super::pipeline::{self, Expected, Finished, Parts};
use super::progress::{Meter, OnProgress, Progress};
use super::record::Record;
#[cfg(feature = "registry")]
use super::registry;
use super::source::{Platform, Source};
use super::tree_digest::{TreeDigest, record_digest};
use super::unpack::{Budget, LeftOut, Needs, Options, Privileges, Unpacked, Unpacker, has_usual_root};
use crate::callback::Callback;
use crate::capture::barrier;
use crate::layer::Layer;
use crate::layer::meta::{Meta, Timing};
use crate::stack::overlayfs::XattrNamespace;
use crate::store::Store;
use crate::store::draft::Draft;
use crate::store::hold::Hold;
use crate::tree::walk;

/// The default of [`Import::max_bytes`]: 64 GiB.
pub(crate) const MAX_BYTES: u64 = 64 << 30;

/// A builder for the import of an image.
///
/// Nothing appears under its final name before the size and the digest of each blob and the diff ID
/// of each layer are verified. If the process is killed, a [collector](crate::Collector) of the
/// store removes what is left.
///
/// No part of an image is trusted. Every file is made by descriptor inside of the new directory, as
/// a process would see it whose root that directory is. A symbolic link cannot lead out of it.
///
/// An import takes less than 8 MB of memory, whatever the size of the image is. The window of a
/// layer that is compressed with zstd comes on top: 2 MB for the usual levels, 128 MB at most.
///
/// ```no_run
/// use layer::oci::{Import, Source};
///
/// let source: Source = "oci:images/debian:12".parse()?;
/// let base = Import::new(&source).into_base("debian")?;
/// println!("{} has {} layers of the image", base.layers[0].layer.path().display(), base.blobs);
/// # Ok::<(), layer::oci::Error>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "it imports when `into_base` or `into_layers` is called"]
pub struct Import<'a> {
    source: &'a Source,
    platform: Option<Platform>,
    max_bytes: u64,
    options: Options,
    digest: TreeDigest,
    #[cfg(feature = "registry")]
    registry: registry::Options,
    progress: OnProgress<'a>,
}

/// The result of an import.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Imported {
    /// The base alone, or one layer for each layer of the image, topmost first.
    pub layers: Vec<ImportedLayer>,
    /// The digest of the manifest, if the image has one.
    pub manifest: Option<Digest>,
    /// The number of layers of the image.
    pub blobs: usize,
    /// The decompressed bytes that were read.
    pub bytes: u64,
    /// The things that the caller has no privilege for.
    pub left_out: LeftOut,
}

/// A layer or a base of an import.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ImportedLayer {
    /// The layer.
    #[serde(serialize_with = "path_of")]
    pub layer: Layer,
    /// The diff ID; of a base, that of its topmost layer.
    pub diff_id: Digest,
    /// The chain ID.
    pub chain_id: Digest,
    /// Whether the store had the layer already.
    pub reused: bool,
}

fn path_of<S: serde::Serializer>(layer: &Layer, serializer: S) -> Result<S::Ok, S::Error> {
    crate::json_path::serialize(layer.path(), serializer)
}

impl<'a> Import<'a> {
    /// Returns an import of `source` that needs root, for the platform of this machine.
    pub fn new(source: &'a Source) -> Self {
        Self {
            source,
            platform: None,
            max_bytes: MAX_BYTES,
            options: Options { privileges: Privileges::Required, xattrs: XattrNamespace::Trusted },
            digest: TreeDigest::default(),
            #[cfg(feature = "registry")]
            registry: registry::Options::default(),
            progress: Callback::default(),
        }
    }

    /// Sets how the registry of an image is used, if it is in one.
    #[cfg(feature = "registry")]
    pub fn registry(mut self, options: registry::Options) -> Self {
        self.registry = options;
        self
    }

    /// Chooses the image for this platform, and refuses others. Without it, an image for another
    /// architecture is imported if it is the only one.
    pub fn platform(mut self, platform: impl Into<Option<Platform>>) -> Self {
        self.platform = platform.into();
        self
    }

    /// Refuses an image whose layers have more than `bytes` bytes together when decompressed, or
    /// whose files take more. Each file counts with its size, holes included, and 4096 bytes. So
    /// does a directory that only the path of another entry names. The default is 64 GiB. The free
    /// space of the file system is always a limit, too.
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Decides what is done without the privilege to set owners and make devices.
    pub fn privileges(mut self, privileges: Privileges) -> Self {
        self.options.privileges = privileges;
        self
    }

    /// Sets the namespace in which whiteouts and opaque directories of a layer are marked.
    pub fn xattrs(mut self, namespace: XattrNamespace) -> Self {
        self.options.xattrs = namespace;
        self
    }

    /// Decides whether the digest of each tree is recorded, so that [`verify`](super::verify()) can
    /// find damage later. The default is to record it.
    pub fn tree_digest(mut self, digest: TreeDigest) -> Self {
        self.digest = digest;
        self
    }

    /// Calls `progress` whenever bytes of the image were read, from another thread.
    pub fn progress(mut self, progress: &'a (dyn Fn(Progress) + Sync + 'a)) -> Self {
        self.progress = Callback(Some(progress));
        self
    }

    /// Unpacks all layers of the image into one tree, the base at `dir`, which must not exist.
    ///
    /// # Errors
    /// After an error, `dir` does not exist.
    /// - [`Error::Exists`] if `dir` exists.
    /// - [`Error::Entry`] and [`Error::Archive`] name an entry that is refused.
    /// - [`Error::TooLarge`] if the image exceeds [`max_bytes`](Self::max_bytes),
    ///   [`Error::TooLittleSpace`] if it exceeds what the file system has free, and
    ///   [`Error::NoSpace`] if that has become full in the meantime.
    /// - [`Error::WrongDigest`], [`Error::WrongSize`] and [`Error::WrongDiffId`] for damaged blobs.
    /// - The other errors name the part of the image or of the store.
    pub fn into_base(&self, dir: impl AsRef<Path>) -> Result<Imported> {
        let begun = Instant::now();
        // The last name of `base/` is `base`.
        let dir: PathBuf = dir.as_ref().components().collect();
        if dir.symlink_metadata().is_ok() {
            return Err(Error::Exists { path: dir });
        }
        let name = dir.file_name().ok_or_else(|| Error::Exists { path: dir.clone() })?.to_owned();
        let draft = Draft::begin(walk::parent(&dir))?;
        let work = self.open(walk::parent(&dir))?;
        let mut unpacker = Unpacker::whole(draft.layer().fs(), self.options, Budget::new(work.max_bytes))?;
        let mut read = Read::default();
        for (number, layer) in work.image.layers.iter().enumerate() {
            if number > 0 {
                unpacker.begin_layer();
            }
            let finished = work.unpack(layer, &read, &mut unpacker)?;
            read.add(layer, finished);
        }
        let unpacked = unpacker.finish().map_err(|problem| root_error(draft.layer(), problem))?;
        let record = Record { left_out: unpacked.left_out, ..work.record(&read) };
        let hash = record.chain_id.hex();
        let (diff_id, chain_id) = (record.diff_id, record.chain_id);
        work.complete(&draft, &record, Meta::new(hash, SystemTime::now()), begun)?;
        let layer = match draft.publish(&name) {
            Err(error) if exists(&error) => return Err(Error::Exists { path: dir }),
            layer => layer?,
        };
        Ok(Imported {
            layers: vec![ImportedLayer { layer, diff_id, chain_id, reused: false }],
            manifest: work.image.manifest,
            blobs: read.blobs.len(),
            bytes: read.bytes,
            left_out: unpacked.left_out,
        })
    }

    /// Unpacks each layer of the image into a layer of `store`.
    ///
    /// The name of a layer is the beginning of its diff ID. If its tree depends on the layers
    /// below ([`Needs`]), it is the beginning of its chain ID. So it is if the image has the layer
    /// twice. A layer that the store has under that name, and that looks the same over the layers
    /// of this image, is reused without being read. What its import had to leave out counts as left
    /// out.
    ///
    /// # Errors
    /// The errors of [`into_base`](Self::into_base), without [`Error::Exists`]. Layers that were
    /// complete before the error stay in the store. [`Error::OtherLayer`] if a name belongs to
    /// something else. [`Error::NotWhole`] with [`Privileges::Required`] if the store has the layer
    /// from an import that had to leave something out.
    pub fn into_layers(&self, store: &Store) -> Result<Imported> {
        let work = self.open(store.path())?;
        let mut read = Read::default();
        let mut left_out = LeftOut::default();
        let mut budget = Budget::new(work.max_bytes);
        let mut layers: Vec<ImportedLayer> = Vec::new();
        let mut holds = Vec::new();
        for layer in &work.image.layers {
            let wanted = layer.diff_id.map(|diff_id| Wanted::new(diff_id, read.chain_id, &layers, work.options.xattrs));
            let found = wanted.transpose()?.map(|wanted| wanted.find(store)).transpose()?.flatten();
            let imported = match found {
                Some((found, record, hold)) => {
                    work.check_whole(&found, &record)?;
                    found.touch()?;
                    left_out += record.left_out;
                    holds.push(hold);
                    read.reuse(&record);
                    let (diff_id, chain_id) = (record.diff_id, read.chain_id.unwrap_or(record.chain_id));
                    ImportedLayer { layer: found, diff_id, chain_id, reused: true }
                }
                None => {
                    let (imported, unpacked) = work.import_layer(store, layer, &layers, &mut read, budget)?;
                    left_out += unpacked.left_out;
                    budget = unpacked.budget;
                    holds.push(Hold::of([imported.layer.path()])?);
                    imported
                }
            };
            layers.insert(0, imported);
        }
        let (manifest, blobs) = (work.image.manifest, work.image.layers.len());
        Ok(Imported { layers, manifest, blobs, bytes: read.bytes, left_out })
    }

    fn open(&self, store: &Path) -> Result<Work<'_>> {
        let free_bytes = free_bytes(store)?;
        let max_bytes = self.max_bytes.min(free_bytes);
        let limited_by = (free_bytes < self.max_bytes).then(|| store.to_path_buf());
        let platform = self.platform.as_ref();
        let image = match self.source {
            #[cfg(feature = "registry")]
            Source::Registry { image } => {
                let registry = registry::Registry::open(image.repository(), &self.registry);
                Image::in_registry(&registry, image, platform)
            }
            source => Image::open(source, platform, store, max_bytes),
        };
        let image = image.map_err(|error| name_limit(error, limited_by.as_deref()))?;
        let sizes = image.layers.iter().map(|layer| image.size_of(layer));
        let total_bytes = sizes.sum::<Result<Option<u64>>>()?;
        Ok(Work {
            image,
            source: self.source.absolute(),
            max_bytes,
            limited_by,
            options: self.options,
            digest: self.digest,
            meter: Meter::new(total_bytes, self.progress),
        })
    }
}

/// An import that has begun.
struct Work<'a> {
    image: Image,
    source: Source,
    max_bytes: u64,
    /// The directory whose file system has no more than `max_bytes` bytes free.
    limited_by: Option<PathBuf>,
    options: Options,
    digest: TreeDigest,
    meter: Meter<'a>,
}

/// The layers that were read so far.
#[derive(Debug, Default)]
struct Read {
    blobs: Vec<Blob>,
    diff_id: Option<Digest>,
    chain_id: Option<Digest>,
    bytes: u64,
}

impl Read {
    fn add(&mut self, layer: &ImageLayer, finished: Finished) {
        self.chain_id = Some(finished.diff_id.chained(self.chain_id));
        self.diff_id = Some(finished.diff_id);
        self.bytes += finished.bytes;
        self.blobs.push(layer.blob.clone().unwrap_or_else(|| Blob::uncompressed(finished.diff_id, finished.bytes)));
    }

    fn reuse(&mut self, record: &Record) {
        self.chain_id = Some(record.diff_id.chained(self.chain_id));
        self.diff_id = Some(record.diff_id);
        self.blobs.extend(record.blobs.last().cloned());
    }
}

impl Work<'_> {
    /// Unpacks one layer.
    fn unpack(&self, layer: &ImageLayer, read: &Read, unpacker: &mut Unpacker) -> Result<Finished> {
        let path = self.image.layer_path(layer);
        let reader = self.image.open_layer(layer)?;
        let expected = Expected {
            path: &path,
            blob: layer.blob.as_ref(),
            diff_id: layer.diff_id,
            left_bytes: self.max_bytes.saturating_sub(read.bytes),
            max_bytes: self.max_bytes,
        };
        let progress = |bytes| self.meter.add(bytes);
        let read = pipeline::read(reader, expected, &progress, |archive| unpack_all(archive, &path, unpacker));
        let read = self.image.take_failure().map_or(read, Err);
        read.map_err(|error| name_limit(error, self.limited_by.as_deref()))
    }

    /// Makes one layer of the store. `below` are those below it, topmost first.
    fn import_layer(
        &self,
        store: &Store,
        layer: &ImageLayer,
        below: &[ImportedLayer],
        read: &mut Read,
        budget: Budget,
    ) -> Result<(ImportedLayer, Unpacked)> {
        let begun = Instant::now();
        let draft = store.draft()?;
        let chain_below = read.chain_id;
        let trees: Vec<_> = below.iter().map(|below| below.layer.fs()).collect();
        let mut unpacker = Unpacker::layer(draft.layer().fs(), &trees, self.options, budget)?;
        let finished = self.unpack(layer, read, &mut unpacker)?;
        let unpacked = unpacker.finish().map_err(|problem| root_error(draft.layer(), problem))?;
        read.add(layer, finished);
        let mut record = self.record(read);
        record.blobs.drain(..record.blobs.len() - 1);
        record.needs = unpacked.needs;
        record.left_out = unpacked.left_out;
        let (diff_id, chain_id) = (record.diff_id, record.chain_id);
        let hash = |layer: &ImportedLayer| match layer.layer.has_hash(&layer.chain_id.hex()) {
            true => layer.chain_id.hex(),
            false => layer.diff_id.hex(),
        };
        let wanted = Wanted::new(diff_id, chain_below, below, self.options.xattrs)?;
        let name = if wanted.fits_by_diff_id(unpacked.needs) { diff_id } else { chain_id };
        let base_hash = below.last().map_or_else(|| name.hex(), hash);
        let parent_hashes = below.iter().rev().skip(1).rev().map(hash).collect();
        let meta = Meta { parent_hashes, ..Meta::new(base_hash, SystemTime::now()) };
        self.complete(&draft, &record, meta, begun)?;
        let published = match draft.publish(name.layer_name()) {
            // Another import was faster.
            Err(error) if exists(&error) => {
                let there = store.layer(name.layer_name())?;
                match Record::of(&there)? {
                    Some(other) if wanted.is(&other) => {
                        self.check_whole(&there, &other)?;
                        there
                    }
                    _ => return Err(Error::OtherLayer { layer: there.path().into(), diff_id }),
                }
            }
            published => published?,
        };
        Ok((ImportedLayer { layer: published, diff_id, chain_id, reused: false }, unpacked))
    }

    /// Makes everything durable, and writes `layer.json` last.
    fn complete(&self, draft: &Draft, record: &Record, mut meta: Meta, begun: Instant) -> Result<()> {
        let layer = draft.layer();
        meta.disk_usage = layer.measure()?.bytes;
        record.write(layer)?;
        if self.digest == TreeDigest::Recorded {
            record_digest(layer, self.options.xattrs)?;
        }
        meta.timing = Timing(vec![("import".into(), begun.elapsed().as_secs_f64())]);
        let dir = File::open(layer.path()).map_err(Error::io("open", layer.path()))?;
        barrier::sync(dir.as_fd()).map_err(Error::io("sync the file system of", layer.path()))?;
        Ok(layer.write_meta(&meta)?)
    }

    /// Checks that a layer of an earlier import has all that this one requires.
    fn check_whole(&self, layer: &Layer, record: &Record) -> Result<()> {
        match record.left_out.is_same_with(self.options.privileges) {
            true => Ok(()),
            false => Err(Error::NotWhole { layer: layer.path().into() }),
        }
    }

    fn record(&self, read: &Read) -> Record {
        let none = Digest::of(b"");
        Record {
            source: self.source.to_string(),
            manifest: self.image.manifest,
            config_digest: self.image.config_digest,
            diff_id: read.diff_id.unwrap_or(none),
            chain_id: read.chain_id.unwrap_or(none),
            blobs: read.blobs.clone(),
            needs: Needs::Nothing,
            left_out: LeftOut::default(),
            config: self.image.config.clone(),
            registries: Vec::new(),
        }
    }
}

/// A layer of an image that is looked for in a store.
#[derive(Debug)]
struct Wanted {
    diff_id: Digest,
    chain_id: Digest,
    /// Whether the image has the layer below, too. No stack can have one directory twice.
    is_repeated: bool,
    /// Whether the root below looks as that of an archive without an entry for it.
    over_usual_root: bool,
}

impl Wanted {
    /// Describes the layer over those `below`, topmost first.
    fn new(
        diff_id: Digest,
        chain_below: Option<Digest>,
        below: &[ImportedLayer],
        xattrs: XattrNamespace,
    ) -> Result<Self> {
        Ok(Self {
            diff_id,
            chain_id: diff_id.chained(chain_below),
            is_repeated: below.iter().any(|below| below.diff_id == diff_id),
            over_usual_root: match below.first() {
                Some(topmost) => has_usual_root(&topmost.layer.fs(), xattrs)?,
                None => true,
            },
        })
    }

    /// Returns whether the layer looks the same here and wherever else its diff ID is its name.
    fn fits_by_diff_id(&self, needs: Needs) -> bool {
        let fits = match needs {
            Needs::Nothing => true,
            Needs::Root => self.over_usual_root,
            // Without a layer below, the chain ID is the diff ID.
            Needs::Layers => self.chain_id == self.diff_id,
        };
        fits && !self.is_repeated
    }

    /// Returns whether a layer with this record looks as it should here.
    fn is(&self, record: &Record) -> bool {
        let is_same_chain = record.chain_id == self.chain_id;
        record.diff_id == self.diff_id
            && (is_same_chain || record.needs != Needs::Layers && self.fits_by_diff_id(record.needs))
    }

    /// Finds a layer that an earlier import has made, and holds it.
    fn find(&self, store: &Store) -> Result<Option<(Layer, Record, Hold)>> {
        let names = if self.is_repeated { &[self.chain_id][..] } else { &[self.diff_id, self.chain_id] };
        for name in names {
            let layer = store.layer(name.layer_name())?;
            // A layer is held before it is looked at, so that no collector takes it in between.
            let hold = match Hold::of([layer.path()]) {
                Err(crate::Error::NotADirectory { .. }) => continue,
                hold => hold?,
            };
            let record = match (layer.meta(), Record::of(&layer)) {
                (Ok(Some(_)), Ok(Some(record))) => record,
                _ => continue,
            };
            if self.is(&record) && Layer::open(layer.path()).is_ok() {
                return Ok(Some((layer, record, hold)));
            }
        }
        Ok(None)
    }
}

pub(crate) fn unpack_all(archive: &mut Archive<Parts>, path: &Path, unpacker: &mut Unpacker) -> Result<()> {
    let mut last = PathBuf::from(".");
    loop {
        let entry = match archive.next() {
            Ok(Some(entry)) => entry,
            Ok(None) => return Ok(()),
            Err(refused) => return Err(refused.at(path, &last)),
        };
        last = lossless(&entry.path);
        let failed = |problem| Error::Entry { operation: "unpack", archive: path.into(), entry: last.clone(), problem };
        unpacker.unpack(entry, archive).map_err(failed)?;
    }
}

/// Turns an error about the limit of an import into one about the space at `limited_by`, if that is
/// the limit.
fn name_limit(error: Error, limited_by: Option<&Path>) -> Error {
    match (error, limited_by) {
        (
            Error::TooLarge { archive, max_bytes }
            | Error::Entry { archive, problem: Problem::TreeTooLarge { max_bytes }, .. },
            Some(place),
        ) => Error::TooLittleSpace { archive, place: place.into(), free_bytes: max_bytes },
        (error, _) => error,
    }
}

fn exists(error: &crate::Error) -> bool {
    matches!(error, crate::Error::LayerExists { .. })
}

fn root_error(layer: &Layer, problem: Problem) -> Error {
    Error::Entry { operation: "unpack", archive: layer.fs(), entry: ".".into(), problem }
}

#[cfg(test)]
mod tests;
