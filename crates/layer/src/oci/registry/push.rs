//! Writes layers of stores to a registry. `form.rs` defines what they are there; `pull.rs` is the
//! way back.

use std::fs::File;
use std::io::{BufWriter, ErrorKind, Write};
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

use super::Registry;
use super::blob::{Cancellable, FileContent};
use super::form::{self, Files, Place};
use super::jobs::{self, Jobs};
use super::local::{self, Local};
use super::pins::Pins;
use crate::callback::Callback;
use crate::layer::Layer;
use crate::oci::compression::Compression;
use crate::oci::digest::{Digest, Hashing};
use crate::oci::encoder::Encoder;
use crate::oci::error::{Error, Result};
use crate::oci::export::MANIFEST;
use crate::oci::image::Blob;
use crate::oci::pack::{Differences, pack};
use crate::oci::progress::{Meter, OnProgress, Progress};
use crate::oci::record::{InRegistry, Record};
use crate::oci::tree_digest::Recorded;
use crate::stack::overlayfs::XattrNamespace;
use crate::store::Store;
use crate::store::hold::Hold;

/// A builder for a push of layers into a registry.
///
/// A layer gets its name in the registry last, so a push that is killed leaves nothing that looks
/// whole. A layer whose name is there already stays as it is: the first push wins. Registries
/// cannot do that in one step. Of two pushes that write the name within the same milliseconds, the
/// later one wins, and the earlier one can have reported success.
///
/// The layer's sidecar `oci.json` remembers where it is, so a second push sends and compresses
/// nothing.
///
/// ```no_run
/// use layer::oci::registry::{Options, Push, Registry};
///
/// let registry = Registry::open(&"docker://registry.example/farm".parse()?, &Options::default());
/// let layers = [layer::Layer::open("/var/cache/layers/gcc")?];
/// for pushed in Push::new(&registry).run(&layers) {
///     println!("{}", pushed?.manifest);
/// }
/// # Ok::<(), layer::oci::Error>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "it pushes when `run` is called"]
pub struct Push<'a> {
    registry: &'a Arc<Registry>,
    jobs: Jobs,
    xattrs: XattrNamespace,
    pins: Option<&'a Pins>,
    into: Option<&'a Store>,
    progress: OnProgress<'a>,
}

/// A layer that is in the registry.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Pushed {
    /// The name of the layer, which is its tag.
    pub name: String,
    /// The digest of the manifest that has the name.
    pub manifest: Digest,
    /// The digest of the tree's archive without compression.
    pub diff_id: Digest,
    /// The blob with the tree.
    pub blob: Digest,
    /// Whether this push has given the layer its name. If not, it had it before.
    pub pushed: bool,
    /// Whether the layer in the registry has the tree of this one. Another push can have been
    /// faster with another tree.
    pub same: bool,
    /// The digest of the manifest to which the name is pinned. It can be another one than
    /// `manifest`. `None` for a push without [`pins`](Push::pins).
    pub pin: Option<Digest>,
    /// Where the layer is now. Only a push [`into`](Push::into) a store moves it.
    pub local: Local,
    /// The bytes that were sent.
    pub bytes_sent: u64,
    /// The bytes that the registry had.
    pub bytes_spared: u64,
    /// The paths of sockets, which no archive can have.
    #[serde(serialize_with = "paths")]
    pub sockets: Vec<PathBuf>,
    /// The number of files whose user or group has no number in this process's user namespace. They
    /// are root's in the registry.
    pub owners_as_root: u64,
}

fn paths<S: serde::Serializer>(paths: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
    crate::json_path::serialize_list(paths, serializer)
}

impl<'a> Push<'a> {
    /// Returns a push into `registry` with four jobs.
    pub fn new(registry: &'a Arc<Registry>) -> Self {
        Self {
            registry,
            jobs: Jobs::default(),
            xattrs: XattrNamespace::default(),
            pins: None,
            into: None,
            progress: Callback::default(),
        }
    }

    /// Sets how many layers are pushed at a time.
    pub fn jobs(mut self, jobs: usize) -> Self {
        self.jobs = Jobs(jobs);
        self
    }

    /// Sets the namespace in which the layers mark whiteouts and opaque directories.
    pub fn xattrs(mut self, namespace: XattrNamespace) -> Self {
        self.xattrs = namespace;
        self
    }

    /// Pins each layer to its manifest in the registry, unless it is pinned already. So of two
    /// pushes that write a name at the same time, the first pin decides what the name means.
    pub fn pins(mut self, pins: impl Into<Option<&'a Pins>>) -> Self {
        self.pins = pins.into();
        self
    }

    /// Moves each layer to `store` after its push if it is the one that others get: the registry
    /// has its tree, and it is not pinned to another manifest. Otherwise, and if `store` has the
    /// name, the layer is removed. A layer of `store` itself stays, and so does a layer that
    /// another process uses.
    ///
    /// If a layer does not exist, but `store` has its name, the layer of `store` is pushed: an
    /// earlier push can have moved it there.
    pub fn into(mut self, store: impl Into<Option<&'a Store>>) -> Self {
        self.into = store.into();
        self
    }

    /// Calls `progress` whenever a part of a blob was sent. The total is not known.
    pub fn progress(mut self, progress: &'a (dyn Fn(Progress) + Sync + 'a)) -> Self {
        self.progress = Callback(Some(progress));
        self
    }

    /// Pushes the layers, each under the name of its directory. Returns the results in the same
    /// order. After a temporary error of the registry, the disk or the pins, and after a
    /// cancellation, no further layer is begun. Each of these layers has the error
    /// [`Error::NotBegun`].
    ///
    /// # Errors
    /// - [`Error::NotATag`] if a registry cannot have the name.
    /// - [`Error::Layer`] if the layer is not complete, or cannot be read or held.
    /// - [`Error::Entry`] names a file that no archive can have.
    /// - [`Error::Registry`] if a request failed.
    /// - [`Error::Pins`] or [`Error::Malformed`] if a pin cannot be used, and
    ///   [`Error::NotInRegistry`] if the registry does not have the manifest that it names.
    /// - [`Error::Layer`] with [`StoresApart`](crate::Error::StoresApart) if the layer and the
    ///   other store are on two mounts. Nothing was sent then.
    /// - [`Error::Layer`] if the layer cannot be moved or removed. The registry has it then.
    /// - [`Error::Cancelled`].
    pub fn run(&self, layers: &[Layer]) -> Vec<Result<Pushed>> {
        let meter = Meter::new(None, self.progress);
        jobs::run(self.jobs, layers, |layer| self.push(layer, &meter))
    }

    fn push(&self, layer: &Layer, meter: &Meter<'_>) -> Result<Pushed> {
        let refused = |reason| Error::NotATag { name: layer.name().into(), reason };
        let name = layer.name().to_str().ok_or_else(|| refused("it is not UTF-8"))?;
        if let Some(reason) = form::refuse_name(name) {
            return Err(refused(reason));
        }
        // Held before it is looked at, so that no collector takes it in between.
        let (held, hold) = self.hold(layer)?;
        let work = Work::begin(self, &held, name)?;
        if let Some(store) = self.into {
            local::check(&held, store)?;
        }
        let mut pushed = work.push(meter)?;
        drop(hold);
        if let Some(pins) = self.pins {
            pushed.pin = Some(self.pin(pins, &pushed)?);
        }
        if let Some(store) = self.into {
            let is_chosen = pushed.same && pushed.pin.is_none_or(|pin| pin == pushed.manifest);
            pushed.local = local::settle(layer, store, is_chosen)?;
        }
        Ok(pushed)
    }

    /// Holds a layer, which another push may have moved to the other store.
    fn hold(&self, layer: &Layer) -> Result<(Layer, Hold)> {
        let missing = match Hold::of([layer.path()]) {
            Err(error @ crate::Error::NotADirectory { .. }) => error,
            hold => return Ok((layer.clone(), hold?)),
        };
        let Some(store) = self.into else { return Err(missing.into()) };
        let moved = store.layer(layer.name())?;
        match Hold::of([moved.path()]) {
            Err(crate::Error::NotADirectory { .. }) => Err(missing.into()),
            hold => Ok((moved, hold?)),
        }
    }

    /// Pins a layer. Returns the digest to which it is pinned. The registry has its manifest.
    fn pin(&self, pins: &Pins, pushed: &Pushed) -> Result<Digest> {
        let pin = pins.pin(&pushed.name, pushed.manifest)?;
        if pin != pushed.manifest && self.registry.manifest_digest(&pin.to_string())?.is_none() {
            let name = format!("{}@{pin}", pushed.name);
            return Err(Error::NotInRegistry { name, repository: self.registry.repository().clone() });
        }
        Ok(pin)
    }
}

/// A layer that is being pushed.
struct Work<'a> {
    registry: &'a Arc<Registry>,
    layer: &'a Layer,
    name: &'a str,
    image: String,
    files: Files,
    record: Option<Record>,
    xattrs: XattrNamespace,
}

impl<'a> Work<'a> {
    fn begin(push: &Push<'a>, layer: &'a Layer, name: &'a str) -> Result<Self> {
        Layer::open(layer.path())?;
        // Not as `Meta`, which would add the keys that are missing.
        let meta: Option<Value> = crate::layer::json::read(&layer.meta_path())?;
        if layer.meta()?.is_none() {
            return Err(crate::Error::Incomplete { layer: layer.path().into() }.into());
        }
        let mut sidecars = Vec::new();
        for sidecar in layer.sidecars()?.into_iter().filter(|sidecar| !form::is_local(sidecar)) {
            if let Some(value) = layer.read_sidecar(&sidecar)? {
                sidecars.push((sidecar, value));
            }
        }
        Ok(Self {
            registry: push.registry,
            layer,
            name,
            image: push.registry.repository().image(name).to_string(),
            files: Files { meta: meta.unwrap_or_default(), sidecars },
            record: Record::of(layer)?,
            xattrs: push.xattrs,
        })
    }

    fn push(&self, meter: &Meter<'_>) -> Result<Pushed> {
        if let Some(there) = self.registry.manifest_digest(self.name)? {
            return self.found(there);
        }
        let mut sent = Sent::default();
        let known = self.known_blob()?;
        let (blob, diff_id, differences) = match known {
            Some((blob, diff_id)) => {
                sent.spared += blob.size;
                (blob, diff_id, Differences::default())
            }
            None => self.send_tree(meter, &mut sent)?,
        };
        let config = form::config(diff_id, self.record.as_ref());
        self.send_bytes(&config, &mut sent)?;
        let (place, artifact) = match self.files.annotations() {
            Some(annotations) => (Place::Annotations(annotations), None),
            None => {
                let artifact = self.artifact()?;
                (Place::Artifact(Digest::of(&artifact.manifest)), Some(artifact))
            }
        };
        let bytes = form::manifest(&config, &blob, place);
        let manifest = Digest::of(&bytes);
        // Packing can take long. The tag of an artifact, too, belongs to the first push.
        if let Some(there) = self.registry.manifest_digest(self.name)?.filter(|there| *there != manifest) {
            return self.found(there);
        }
        if let Some(artifact) = artifact {
            self.send_artifact(&artifact, &mut sent)?;
        }
        self.registry.put_manifest(self.name, MANIFEST, &bytes)?;
        if let Some(there) = self.registry.manifest_digest(self.name)?.filter(|there| *there != manifest) {
            return self.found(there);
        }
        self.remember(manifest, &blob, diff_id);
        Ok(Pushed {
            name: self.name.into(),
            manifest,
            diff_id,
            blob: blob.digest,
            pushed: true,
            same: true,
            pin: None,
            local: Local::Kept,
            bytes_sent: sent.sent,
            bytes_spared: sent.spared,
            sockets: differences.sockets,
            owners_as_root: differences.owners_as_root,
        })
    }

    /// Returns the result for a name that has the manifest `there`.
    fn found(&self, there: Digest) -> Result<Pushed> {
        let known = self.places().find(|place| place.image == self.image && place.manifest == there);
        let (blob, diff_id) = match known.and_then(|known| Some((known.blob.clone(), known.blob.diff_id?))) {
            Some(known) => known,
            None => self.read(there)?,
        };
        let ours = match self.places().find_map(|place| place.blob.diff_id) {
            Some(ours) => Some(ours),
            None => Recorded::of(self.layer)?.map(|recorded| recorded.tree),
        };
        let same = match ours {
            Some(ours) => ours == diff_id,
            // Rarely: the name is there, and nothing is known about the tree here.
            None => crate::oci::tree_digest::compute(self.layer, self.xattrs)? == diff_id,
        };
        if same {
            self.remember(there, &blob, diff_id);
        }
        Ok(Pushed {
            name: self.name.into(),
            manifest: there,
            diff_id,
            blob: blob.digest,
            pushed: false,
            same,
            pin: None,
            local: Local::Kept,
            bytes_sent: 0,
            bytes_spared: if same { blob.size } else { 0 },
            sockets: Vec::new(),
            owners_as_root: 0,
        })
    }

    /// Reads the manifest of the layer in the registry. Returns its blob and its diff ID.
    fn read(&self, digest: Digest) -> Result<(Blob, Digest)> {
        let reference = digest.to_string();
        let unusable = |reason| self.registry.unusable(self.name, reason);
        let manifest = self.registry.manifest(&reference)?.ok_or_else(|| unusable("its manifest is gone".into()))?;
        let parsed = form::parse(&manifest.bytes).map_err(unusable)?;
        let config = self.registry.config(self.name, &parsed.config)?;
        let (diff_id, _) = form::parse_config(&config).map_err(unusable)?;
        let form::Descriptor { media_type, digest, size, .. } = parsed.blob;
        Ok((Blob { media_type, digest, size, diff_id: Some(diff_id) }, diff_id))
    }

    fn places(&self) -> impl Iterator<Item = &InRegistry> {
        self.record.iter().flat_map(|record| &record.registries)
    }

    /// Returns the blob with the tree, if its digest is known and the repository has it.
    fn known_blob(&self) -> Result<Option<(Blob, Digest)>> {
        for place in self.places() {
            if let Some(diff_id) = place.blob.diff_id {
                if self.registry.has_blob(place.blob.digest)? {
                    return Ok(Some((place.blob.clone(), diff_id)));
                }
            }
        }
        Ok(None)
    }

    /// Packs the tree into a file without a name, and sends it.
    fn send_tree(&self, meter: &Meter<'_>, sent: &mut Sent) -> Result<(Blob, Digest, Differences)> {
        self.registry.check_cancelled()?;
        let file = self.temporary()?;
        let (blob, diff_id, differences) = self.pack(&file)?;
        let report = |bytes| meter.add(bytes);
        let content = FileContent { file: &file, size: blob.size, sent: &report };
        let is_sent = self.registry.put_blob(blob.digest, &content)?;
        sent.add(is_sent, blob.size);
        Ok((blob, diff_id, differences))
    }

    /// Makes a file without a name beside the layer, where there is room for it most likely. The
    /// store may be read-only.
    fn temporary(&self) -> Result<File> {
        let dir = local::parent(self.layer);
        match tempfile::tempfile_in(dir) {
            Err(error) if matches!(error.kind(), ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied) => {
                let other = std::env::temp_dir();
                tempfile::tempfile_in(&other).map_err(Error::io("make a temporary file in", &other))
            }
            file => file.map_err(Error::io("make a temporary file in", dir)),
        }
    }

    fn pack(&self, file: &File) -> Result<(Blob, Digest, Differences)> {
        let tree = self.layer.fs();
        let failed = || Error::io("compress", &tree);
        let cancellable = Cancellable { registry: self.registry, out: file };
        let mut out = Hashing::new(BufWriter::with_capacity(128 * 1024, cancellable));
        let mut encoder = Encoder::new(Compression::Zstd, &mut out).map_err(failed())?;
        let mut archive = Hashing::new(&mut encoder);
        let packed = pack(&tree, self.xattrs, &mut archive);
        self.registry.check_cancelled()?;
        let mut differences = packed?;
        let (_, diff_id, _) = archive.finish();
        encoder.finish().and_then(|()| out.flush()).map_err(failed())?;
        let (_, digest, size) = out.finish();
        differences.sockets.iter_mut().for_each(|socket| *socket = tree.join(&*socket));
        let media_type = Compression::Zstd.media_type().to_string();
        Ok((Blob { media_type, digest, size, diff_id: Some(diff_id) }, diff_id, differences))
    }

    fn send_bytes(&self, bytes: &Vec<u8>, sent: &mut Sent) -> Result<()> {
        let digest = Digest::of(bytes);
        sent.add(self.registry.put_blob(digest, bytes)?, bytes.len() as u64);
        Ok(())
    }

    /// Returns what the layer has beside its tree as an artifact.
    fn artifact(&self) -> Result<Artifact> {
        let files = self.files.blobs();
        let bytes: u64 = files.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        if bytes > form::MAX_FILES_BYTES {
            let (layer, max_bytes) = (self.layer.path().into(), form::MAX_FILES_BYTES);
            return Err(Error::SidecarsTooLarge { layer, max_bytes });
        }
        Ok(Artifact { manifest: form::artifact(&files), files })
    }

    fn send_artifact(&self, artifact: &Artifact, sent: &mut Sent) -> Result<()> {
        for (_, bytes) in &artifact.files {
            self.send_bytes(bytes, sent)?;
        }
        self.send_bytes(&form::EMPTY_CONFIG.to_vec(), sent)?;
        self.registry.put_manifest(&form::artifact_tag(self.name), MANIFEST, &artifact.manifest)
    }

    /// Records in `oci.json` where the layer is. The store may be read-only.
    fn remember(&self, manifest: Digest, blob: &Blob, diff_id: Digest) {
        let blob = Blob { diff_id: Some(diff_id), ..blob.clone() };
        let place = InRegistry { image: self.image.clone(), manifest, blob };
        if self.places().any(|known| *known == place) {
            return;
        }
        let mut record = self.record.clone().unwrap_or_else(|| Record::of_registry(&place, diff_id));
        record.registries.retain(|known| known.image != place.image);
        record.registries.insert(0, place);
        if let Err(error) = record.write(self.layer) {
            log::info!("not recording where the layer is: {}", crate::error::Chain(&error));
        }
    }
}

/// What a layer has beside its tree, if that is too large for annotations.
struct Artifact {
    files: Vec<(String, Vec<u8>)>,
    manifest: Vec<u8>,
}

/// The bytes of a push.
#[derive(Debug, Default)]
struct Sent {
    sent: u64,
    spared: u64,
}

impl Sent {
    fn add(&mut self, is_sent: bool, bytes: u64) {
        *(if is_sent { &mut self.sent } else { &mut self.spared }) += bytes;
    }
}
