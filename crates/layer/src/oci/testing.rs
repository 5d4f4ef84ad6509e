//! Makers of archives and layouts for the tests of this module.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tar_core::{EntryType, HeaderBuilder, PaxBuilder};

use super::digest::Digest;

/// An archive that is being made.
#[derive(Default, Clone)]
pub(super) struct Tar(Vec<u8>);

/// An entry: its type, path, link target, content and pax records.
#[derive(Clone)]
pub(super) struct Spec<'a> {
    pub(super) kind: u8,
    pub(super) path: &'a [u8],
    pub(super) target: &'a [u8],
    pub(super) content: &'a [u8],
    pub(super) mode: u32,
    pub(super) device: (u32, u32),
    /// The size in the header, in place of that of the content.
    pub(super) size: Option<u64>,
    pub(super) pax: Vec<(&'a str, &'a [u8])>,
}

pub(super) fn spec<'a>(kind: u8, path: &'a str) -> Spec<'a> {
    Spec {
        kind,
        path: path.as_bytes(),
        target: b"",
        content: b"",
        mode: if kind == b'5' { 0o755 } else { 0o644 },
        device: (0, 0),
        size: None,
        pax: Vec::new(),
    }
}

impl<'a> Spec<'a> {
    pub(super) fn target(mut self, target: &'a str) -> Self {
        self.target = target.as_bytes();
        self
    }

    pub(super) fn content(mut self, content: &'a [u8]) -> Self {
        self.content = content;
        self
    }

    pub(super) fn pax(mut self, key: &'a str, value: &'a [u8]) -> Self {
        self.pax.push((key, value));
        self
    }
}

impl Tar {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Adds an entry. A path or a target that is too long for a header becomes a pax record.
    pub(super) fn add(mut self, spec: Spec<'_>) -> Self {
        let mut pax = PaxBuilder::new();
        let mut short = |key: &str, value: &[u8]| -> Vec<u8> {
            if value.len() <= 100 {
                return value.to_vec();
            }
            pax.add(key, value);
            value[..100].to_vec()
        };
        let (path, target) = (short("path", spec.path), short("linkpath", spec.target));
        for (key, value) in &spec.pax {
            pax.add(key, value);
        }
        let pax = pax.finish();
        if !pax.is_empty() {
            self = self.raw(b'x', b"pax", b"", &pax, 0o644, (0, 0), None);
        }
        self.raw(spec.kind, &path, &target, spec.content, spec.mode, spec.device, spec.size)
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn raw(
        mut self,
        kind: u8,
        path: &[u8],
        target: &[u8],
        content: &[u8],
        mode: u32,
        device: (u32, u32),
        size: Option<u64>,
    ) -> Self {
        let mut header = HeaderBuilder::new_ustar();
        header.entry_type(EntryType::from_byte(kind)).path(path).unwrap().link_name(target).unwrap();
        header.mode(mode).unwrap().uid(0).unwrap().gid(0).unwrap().mtime(1_000_000_000).unwrap();
        header.size(size.unwrap_or(content.len() as u64)).unwrap();
        header.device(device.0, device.1).unwrap();
        self.0.extend_from_slice(header.finish().as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(super) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }

    /// Returns the archive without an end mark.
    pub(super) fn cut(self) -> Vec<u8> {
        self.0
    }
}

/// A layout that is being made, of which a test can spoil any part.
pub(super) struct Layout {
    pub(super) layers: Vec<Value>,
    pub(super) config: Value,
    pub(super) manifest: Value,
    pub(super) index: Value,
}

impl Layout {
    /// Writes the blobs of `archives`, the lowest first, and describes them.
    pub(super) fn new(dir: &Path, archives: &[Vec<u8>]) -> Self {
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let layers =
            archives.iter().map(|archive| descriptor(dir, "application/vnd.oci.image.layer.v1.tar", archive)).collect();
        let diff_ids: Vec<_> = archives.iter().map(|archive| Digest::of(archive)).collect();
        let config = json!({"os": "linux", "architecture": super::Platform::host().architecture,
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        Self { layers, config, manifest: json!({"schemaVersion": 2}), index: json!({"schemaVersion": 2}) }
    }

    /// Writes everything above the layers.
    pub(super) fn write(mut self, dir: &Path) {
        let config = descriptor(dir, "application/vnd.oci.image.config.v1+json", self.config.to_string().as_bytes());
        let parts = self.manifest.as_object_mut().unwrap();
        parts.entry("config").or_insert(config);
        parts.entry("layers").or_insert(self.layers.into());
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = descriptor(dir, media_type, self.manifest.to_string().as_bytes());
        self.index.as_object_mut().unwrap().entry("manifests").or_insert(json!([manifest]));
        fs::write(dir.join("index.json"), self.index.to_string()).unwrap();
    }
}

/// Writes a blob, and returns its descriptor.
pub(super) fn descriptor(dir: &Path, media_type: &str, bytes: &[u8]) -> Value {
    let digest = Digest::of(bytes);
    fs::write(dir.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
    json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
}
