//! Makes layers of a store from a registry. `push.rs` is the way there.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Map, Value};

use super::Registry;
use super::blob::{BlobReader, take};
use super::form::{self, Descriptor, Files, FilesIn};
use super::jobs::{self, Jobs};
use super::manifest::Manifest;
use super::name_lock::NameLock;
use crate::callback::Callback;
use crate::capture::barrier;
use crate::layer::{Layer, json};
use crate::oci::digest::Digest;
use crate::oci::error::{Error, Result};
use crate::oci::image::Blob;
use crate::oci::import::{MAX_BYTES, unpack_all};
use crate::oci::pipeline::{self, Expected};
use crate::oci::progress::{Meter, OnProgress, Progress};
use crate::oci::record::{InRegistry, Record};
use crate::oci::tree_digest::{self, Recorded, TreeDigest};
use crate::oci::unpack::{Budget, LeftOut, Options as Unpacking, Privileges, Unpacker};
use crate::stack::overlayfs::XattrNamespace;
use crate::store::Store;
use crate::store::draft::Draft;
use crate::store::existing::Existing;
use crate::store::hold::Hold;

/// The most layers that wait for a sync. When the disk is slow, pulls wait for it, too.
const MAX_READY: usize = 64;

/// How long a complete layer waits for others to share its sync. A sync makes the processes that
/// unpack files wait, so many of them would make a pull slow.
const GATHER: Duration = Duration::from_millis(500);

/// A layer to pull: its name, and the digest of its manifest if it is pinned.
///
/// ```
/// use layer::oci::registry::Wanted;
///
/// let wanted: Wanted = "gcc".parse()?;
/// assert_eq!((wanted.name(), wanted.digest()), ("gcc", None));
/// assert!("../gcc".parse::<Wanted>().is_err());
/// # Ok::<(), layer::oci::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    name: String,
    digest: Option<Digest>,
}

impl Wanted {
    /// Returns the layer `name`, which can have any manifest.
    ///
    /// # Errors
    /// [`Error::NotATag`] if no layer in a registry can have the name.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        match form::refuse_name(&name) {
            Some(reason) => Err(Error::NotATag { name: name.into(), reason }),
            None => Ok(Self { name, digest: None }),
        }
    }

    /// Pins the layer to the manifest with this digest.
    pub fn pinned(mut self, digest: impl Into<Option<Digest>>) -> Self {
        self.digest = digest.into();
        self
    }

    /// Returns the name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the digest of the manifest, if the layer is pinned.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }
}

impl FromStr for Wanted {
    type Err = Error;

    /// Parses NAME or NAME@sha256:DIGITS.
    fn from_str(text: &str) -> Result<Self> {
        let Some((name, digest)) = text.split_once('@') else { return Self::new(text) };
        let digest: Digest = digest
            .parse()
            .map_err(|_| Error::NotATag { name: text.into(), reason: "what follows the @ is not a SHA-256 digest" })?;
        Ok(Self::new(name)?.pinned(digest))
    }
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.name)?;
        self.digest.as_ref().map_or(Ok(()), |digest| write!(formatter, "@{digest}"))
    }
}

/// A builder for a pull of layers from a registry.
///
/// A layer gets its name in the store once all its digests are verified. A pull that is killed
/// leaves a draft, which a [collector](crate::Collector) removes. Two pulls of one name into one
/// store of one machine do the work once.
///
/// ```no_run
/// use layer::oci::registry::{Options, Pull, Registry};
///
/// let registry = Registry::open(&"docker://registry.example/farm".parse()?, &Options::default());
/// let store = layer::Store::open("/var/cache/layers")?;
/// for pulled in Pull::new(&registry).run(&store, &["gcc".parse()?]) {
///     println!("{}", pulled?.layer.path().display());
/// }
/// # Ok::<(), layer::oci::Error>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "it pulls when `run` is called"]
pub struct Pull<'a> {
    registry: &'a Arc<Registry>,
    jobs: Jobs,
    max_bytes: u64,
    unpacking: Unpacking,
    digest: TreeDigest,
    existing: Existing,
    progress: OnProgress<'a>,
}

/// A layer that is in the store.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Pulled {
    /// The name.
    pub name: String,
    /// The layer.
    #[serde(serialize_with = "path_of")]
    pub layer: Layer,
    /// The digest of its manifest. `None` if the layer was in the store, and not from this
    /// registry.
    pub manifest: Option<Digest>,
    /// The digest of the tree's archive without compression, if it is known.
    pub diff_id: Option<Digest>,
    /// Whether this pull has made the layer. If not, it was in the store.
    pub pulled: bool,
    /// The bytes that were received.
    pub bytes_received: u64,
    /// The bytes that the store had.
    pub bytes_spared: u64,
    /// The things that the caller has no privilege for.
    pub left_out: LeftOut,
}

fn path_of<S: serde::Serializer>(layer: &Layer, serializer: S) -> Result<S::Ok, S::Error> {
    crate::json_path::serialize(layer.path(), serializer)
}

impl<'a> Pull<'a> {
    /// Returns a pull from `registry` that needs root, with four jobs.
    pub fn new(registry: &'a Arc<Registry>) -> Self {
        Self {
            registry,
            jobs: Jobs::default(),
            max_bytes: MAX_BYTES,
            unpacking: Unpacking { privileges: Privileges::Required, xattrs: XattrNamespace::default() },
            digest: TreeDigest::default(),
            existing: Existing::default(),
            progress: Callback::default(),
        }
    }

    /// Sets how many layers are pulled at a time.
    pub fn jobs(mut self, jobs: usize) -> Self {
        self.jobs = Jobs(jobs);
        self
    }

    /// Refuses a layer with more than `bytes` bytes when decompressed, or whose files take more.
    /// The default is 64 GiB.
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Decides what is done without the privilege to set owners and make devices.
    pub fn privileges(mut self, privileges: Privileges) -> Self {
        self.unpacking.privileges = privileges;
        self
    }

    /// Sets the namespace in which whiteouts and opaque directories are marked.
    pub fn xattrs(mut self, namespace: XattrNamespace) -> Self {
        self.unpacking.xattrs = namespace;
        self
    }

    /// Decides whether the digest of each tree is recorded, so that
    /// [`verify`](crate::oci::verify()) can find damage later. The default is to record it.
    pub fn tree_digest(mut self, digest: TreeDigest) -> Self {
        self.digest = digest;
        self
    }

    /// Decides what happens to a layer of the store that is not the pinned one. By default, it
    /// stays, and the result is [`Error::NotPinned`].
    pub fn existing(mut self, existing: Existing) -> Self {
        self.existing = existing;
        self
    }

    /// Calls `progress` whenever a part of a blob was received. The total is not known.
    pub fn progress(mut self, progress: &'a (dyn Fn(Progress) + Sync + 'a)) -> Self {
        self.progress = Callback(Some(progress));
        self
    }

    /// Pulls the layers into `store`. Returns the results in the same order. A layer that the store
    /// has is only touched. If it is pinned, it must be known to be the pinned one.
    ///
    /// After a temporary error of the registry or the disk, and after a cancellation, no further
    /// layer is begun. Each of these layers has the error [`Error::NotBegun`].
    ///
    /// # Errors
    /// - [`Error::NotInRegistry`] if the registry has no layer of this name.
    /// - [`Error::NotPinned`] if the store has another layer of the name, and [`Error::Layer`] if
    ///   it should be [replaced](Self::existing) and is in use.
    /// - [`Error::WrongDigest`], [`Error::WrongSize`] and [`Error::WrongDiffId`] for damage.
    /// - [`Error::Registry`] if a request failed, or its answer is not a layer.
    /// - [`Error::Cancelled`].
    /// - The other errors name the part of the layer or of the store.
    pub fn run(&self, store: &Store, wanted: &[Wanted]) -> Vec<Result<Pulled>> {
        let meter = Meter::new(None, self.progress);
        let numbered: Vec<_> = wanted.iter().enumerate().collect();
        let (sender, receiver) = sync_channel(MAX_READY);
        // A layer that cannot be published now stops the others, as one that cannot be pulled does.
        let stopped = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let publisher = scope.spawn(|| self.publish_all(store, wanted, receiver, &stopped));
            let pulled = jobs::run(self.jobs, &numbered, |&(number, wanted)| {
                if stopped.load(Ordering::Acquire) {
                    return Err(Error::NotBegun);
                }
                match self.pull(store, wanted, &meter)? {
                    Step::There(pulled) => Ok(Some(pulled)),
                    Step::Ready(ready) => {
                        // The publisher ends after the last sender.
                        let _ = sender.send((number, ready));
                        Ok(None)
                    }
                }
            });
            drop(sender);
            let mut published = publisher.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let result = |(number, pulled): (usize, Result<Option<Pulled>>)| match pulled? {
                Some(pulled) => Ok(pulled),
                None => published.remove(&number).unwrap_or(Err(Error::NotBegun)),
            };
            pulled.into_iter().enumerate().map(result).collect()
        })
    }

    /// Gives layers their names. All that are ready share one sync, and the others are pulled
    /// concurrently: a sync can take longer than a layer.
    fn publish_all(
        &self,
        store: &Store,
        wanted: &[Wanted],
        ready: Receiver<(usize, Box<Ready>)>,
        stopped: &AtomicBool,
    ) -> HashMap<usize, Result<Pulled>> {
        let mut published = HashMap::new();
        while let Ok(first) = ready.recv() {
            let end = Instant::now() + GATHER;
            // After the last layer, nothing is left to wait for.
            let next = || ready.recv_timeout(end.saturating_duration_since(Instant::now())).ok();
            let batch: Vec<_> = std::iter::once(first).chain(std::iter::from_fn(next).take(MAX_READY)).collect();
            let failed = |source| Error::Io { operation: "sync the file system of", path: store.path().into(), source };
            let synced = File::open(store.path()).and_then(|dir| Ok(barrier::sync(dir.as_fd())?));
            for (number, ready) in batch {
                let result = match &synced {
                    Ok(()) => self.publish(store, &wanted[number], *ready),
                    // An error of the kernel has a number, so that nothing of it is lost.
                    Err(error) => Err(failed(
                        error
                            .raw_os_error()
                            .map_or_else(|| std::io::Error::from(error.kind()), std::io::Error::from_raw_os_error),
                    )),
                };
                if matches!(&result, Err(error) if error.affects_others()) {
                    stopped.store(true, Ordering::Release);
                }
                published.insert(number, result);
            }
        }
        published
    }

    fn publish(&self, store: &Store, wanted: &Wanted, ready: Ready) -> Result<Pulled> {
        let Ready { draft, lock, remote, left_out } = ready;
        self.registry.check_cancelled()?;
        let layer = match draft.publish(&wanted.name) {
            // A program without the lock was faster.
            Err(crate::Error::LayerExists { path }) => {
                return match self.look(store, wanted, Unknown::Compared)? {
                    There::Usable(there) => Ok(there),
                    There::Other(_) | There::Nothing => Err(crate::Error::LayerExists { path }.into()),
                };
            }
            published => published?,
        };
        drop(lock);
        Ok(Pulled {
            name: wanted.name.clone(),
            layer,
            manifest: Some(remote.manifest.digest),
            diff_id: Some(remote.diff_id),
            pulled: true,
            bytes_received: remote.blob.size,
            bytes_spared: 0,
            left_out,
        })
    }

    fn pull(&self, store: &Store, wanted: &Wanted, meter: &Meter<'_>) -> Result<Step> {
        // A comparison holds the layer. Without the lock, it would keep another process from
        // replacing the layer.
        let unknown = if self.existing == Existing::Refused { Unknown::Compared } else { Unknown::Left };
        if let There::Usable(there) = self.look(store, wanted, unknown)? {
            return Ok(Step::There(there));
        }
        let lock = NameLock::wait(store, &wanted.name, &self.registry.cancel)?.ok_or(Error::Cancelled)?;
        // Another process may have pulled it while this one waited.
        let remote = match self.look(store, wanted, Unknown::Compared)? {
            There::Usable(there) => return Ok(Step::There(there)),
            There::Other(remote) => Some(*remote),
            There::Nothing => None,
        };
        // A download would be in vain if the layer of the store must stay.
        store.check_new(&wanted.name, self.existing)?;
        let remote = remote.map_or_else(|| self.read(wanted), Ok)?;
        let draft = store.draft()?.existing(self.existing);
        let left_out = self.unpack(&remote, &draft, meter)?;
        self.complete(wanted, &remote, &draft, left_out)?;
        Ok(Step::Ready(Box::new(Ready { draft, lock, remote, left_out })))
    }

    /// Looks for the layer in the store, and touches it if it is the wanted one.
    fn look(&self, store: &Store, wanted: &Wanted, unknown: Unknown) -> Result<There> {
        let layer = store.layer(&wanted.name)?;
        // Held before it is looked at, so that no collector takes it in between.
        let hold = match Hold::of([layer.path()]) {
            Err(crate::Error::NotADirectory { .. }) => {
                store.check_new(&wanted.name, Existing::Refused)?;
                return Ok(There::Nothing);
            }
            hold => hold?,
        };
        if layer.meta()?.is_none() {
            return Err(crate::Error::Incomplete { layer: layer.path().into() }.into());
        }
        Layer::open(layer.path())?;
        let record = Record::of(&layer)?;
        let image = self.registry.repository().image(&wanted.name).to_string();
        let places = || record.iter().flat_map(|record| &record.registries);
        let place = match wanted.digest {
            None => places().find(|place| place.image == image),
            // A manifest is the same in every registry.
            Some(digest) => match places().find(|place| place.manifest == digest) {
                Some(place) => Some(place),
                None if unknown == Unknown::Left => return Ok(There::Nothing),
                None => {
                    let remote = self.read(wanted)?;
                    return match self.compare(layer, wanted, digest, &remote, &hold) {
                        Err(Error::NotPinned { .. }) if self.existing != Existing::Refused => {
                            Ok(There::Other(Box::new(remote)))
                        }
                        compared => compared.map(There::Usable),
                    };
                }
            },
        };
        layer.touch()?;
        Ok(There::Usable(Pulled {
            name: wanted.name.clone(),
            manifest: place.map(|place| place.manifest),
            diff_id: place.and_then(|place| place.blob.diff_id),
            pulled: false,
            bytes_received: 0,
            bytes_spared: place.map_or(0, |place| place.blob.size),
            left_out: record.as_ref().map_or_else(LeftOut::default, |record| record.left_out),
            layer,
        }))
    }

    /// Checks that a layer whose origin is not known is `remote`, the one that `digest` pins.
    fn compare(&self, layer: Layer, wanted: &Wanted, digest: Digest, remote: &Remote, _hold: &Hold) -> Result<Pulled> {
        let known = match Recorded::of(&layer)? {
            Some(recorded) => recorded.tree,
            None => tree_digest::compute(&layer, self.unpacking.xattrs)?,
        };
        if known != remote.diff_id {
            return Err(Error::NotPinned { layer: layer.path().into(), digest });
        }
        layer.touch()?;
        let place = remote.place(self.registry.repository().image(&wanted.name).to_string());
        let mut record = Record::of(&layer)?.unwrap_or_else(|| Record::of_registry(&place, remote.diff_id));
        record.registries.insert(0, place);
        if let Err(error) = record.write(&layer) {
            log::info!("not recording where the layer is: {}", crate::error::Chain(&error));
        }
        Ok(Pulled {
            name: wanted.name.clone(),
            manifest: Some(digest),
            diff_id: Some(remote.diff_id),
            pulled: false,
            bytes_received: 0,
            bytes_spared: remote.blob.size,
            left_out: record.left_out,
            layer,
        })
    }

    /// Reads everything of a layer but its blob.
    fn read(&self, wanted: &Wanted) -> Result<Remote> {
        let registry = self.registry;
        let reference = wanted.digest.map_or_else(|| wanted.name.clone(), |digest| digest.to_string());
        let manifest = registry.manifest(&reference)?.ok_or_else(|| Error::NotInRegistry {
            name: wanted.to_string(),
            repository: registry.repository().clone(),
        })?;
        let unusable = |reason| registry.unusable(&wanted.name, reason);
        let parsed = form::parse(&manifest.bytes).map_err(unusable)?;
        let config_digest = parsed.config.digest;
        let config = registry.config(&wanted.name, &parsed.config)?;
        let (diff_id, config) = form::parse_config(&config).map_err(unusable)?;
        let files = match parsed.files {
            FilesIn::Annotations(files) => files,
            FilesIn::Artifact(digest) => self.read_files(wanted, digest)?,
        };
        Ok(Remote { manifest, config_digest, config, diff_id, blob: parsed.blob, files })
    }

    /// Reads the artifact with what a layer has beside its tree.
    fn read_files(&self, wanted: &Wanted, digest: Digest) -> Result<Files> {
        let registry = self.registry;
        let unusable = |reason| registry.unusable(&form::artifact_tag(&wanted.name), reason);
        let manifest = registry.manifest(&digest.to_string())?;
        let manifest =
            manifest.ok_or_else(|| unusable(format!("it is not there, but the layer names it ({digest})")))?;
        let mut parts = Vec::new();
        for (name, Descriptor { digest, size, .. }) in form::parse_artifact(&manifest.bytes).map_err(unusable)? {
            parts.push((name, registry.small_blob(digest, size, form::MAX_FILES_BYTES)?));
        }
        Files::parse(parts).map_err(unusable)
    }

    /// Unpacks the blob into the draft.
    fn unpack(&self, remote: &Remote, draft: &Draft, meter: &Meter<'_>) -> Result<LeftOut> {
        let blob = remote.blob();
        let path = PathBuf::from(self.registry.place(&blob.digest.to_string()));
        let reader = BlobReader::new(self.registry, blob.digest, blob.size);
        let failure = reader.failure();
        let expected = Expected {
            path: &path,
            blob: Some(&blob),
            diff_id: Some(remote.diff_id),
            left_bytes: self.max_bytes,
            max_bytes: self.max_bytes,
        };
        let progress = |bytes| meter.add(bytes);
        let budget = Budget::new(self.max_bytes);
        let mut unpacker = Unpacker::layer(draft.layer().fs(), &[], self.unpacking, budget)?;
        let read = pipeline::read(reader, expected, &progress, |archive| unpack_all(archive, &path, &mut unpacker));
        // The error of the connection is the reason of the other.
        if let Some(error) = take(&failure) {
            return Err(error);
        }
        read?;
        let failed =
            |problem| Error::Entry { operation: "unpack", archive: draft.layer().fs(), entry: ".".into(), problem };
        Ok(unpacker.finish().map_err(failed)?.left_out)
    }

    /// Writes what the layer has beside its tree. The draft is no layer yet, so one sync is enough
    /// for all files.
    fn complete(&self, wanted: &Wanted, remote: &Remote, draft: &Draft, left_out: LeftOut) -> Result<()> {
        let layer = draft.layer();
        let dir = File::open(layer.path()).map_err(Error::io("open", layer.path()))?;
        let write = |stem: &str, value: &Value| {
            let path = layer.path().join(format!("{stem}.json"));
            // A number can be longer here than it was in the registry. With a newline, the file
            // must not be larger than what is read.
            if value.to_string().len() as u64 >= form::MAX_FILES_BYTES {
                let reason = format!("its {stem}.json would have more than {} bytes", form::MAX_FILES_BYTES);
                return Err(self.registry.unusable(&wanted.name, reason));
            }
            // A name with a NUL was refused.
            let name = CString::new(format!("{stem}.json")).unwrap_or_default();
            Ok(json::write_new(dir.as_fd(), &name, &path, value)?)
        };
        for (name, value) in &remote.files.sidecars {
            write(name, value)?;
        }
        let place = remote.place(self.registry.repository().image(&wanted.name).to_string());
        let record = Record {
            config_digest: Some(remote.config_digest),
            left_out,
            config: remote.config.clone(),
            registries: vec![place.clone()],
            ..Record::of_registry(&place, remote.diff_id)
        };
        let to_value = |path: &Path, value: serde_json::Result<Value>| {
            value.map_err(|source| Error::from(crate::Error::Serialize { path: path.into(), source }))
        };
        write("oci", &to_value(layer.path(), serde_json::to_value(&record))?)?;
        if self.digest == TreeDigest::Recorded {
            let recorded = Recorded::new(tree_digest::compute(layer, self.unpacking.xattrs)?);
            write("digest", &to_value(layer.path(), serde_json::to_value(&recorded))?)?;
        }
        layer.touch()?;
        write("layer", &remote.files.meta)
    }
}

/// What is done with a layer of the store if nothing but its tree can show whether it is the pinned
/// one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unknown {
    /// Its tree is compared with that of the registry.
    Compared,
    Left,
}

/// What the store has under the name of a layer.
enum There {
    Nothing,
    Usable(Pulled),
    /// A layer that may be replaced. The pinned one is in the registry.
    Other(Box<Remote>),
}

/// How far a layer is.
enum Step {
    /// The store has it.
    There(Pulled),
    Ready(Box<Ready>),
}

/// A layer that is complete in its draft and on its way to the disk.
struct Ready {
    draft: Draft,
    lock: NameLock,
    remote: Remote,
    left_out: LeftOut,
}

/// A layer in the registry.
struct Remote {
    manifest: Manifest,
    config_digest: Digest,
    config: Map<String, Value>,
    diff_id: Digest,
    blob: Descriptor,
    files: Files,
}

impl Remote {
    fn blob(&self) -> Blob {
        let Descriptor { media_type, digest, size, .. } = self.blob.clone();
        Blob { media_type, digest, size, diff_id: Some(self.diff_id) }
    }

    fn place(&self, image: String) -> InRegistry {
        InRegistry { image, manifest: self.manifest.digest, blob: self.blob() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_can_be_pinned() {
        let digest = Digest::of(b"");
        let wanted: Wanted = format!("a@{digest}").parse().unwrap();
        assert_eq!((wanted.name(), wanted.digest()), ("a", Some(digest)));
        assert_eq!(wanted.to_string(), format!("a@{digest}"));
        for text in ["", "@", "a@", "a@sha256:0", "a/b", "a:b", "..", ".a", "a.meta", "a\n"] {
            assert!(matches!(text.parse::<Wanted>(), Err(Error::NotATag { .. })), "{text:?}");
        }
    }
}
