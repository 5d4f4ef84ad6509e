//! Tests of the blobs that the image of a base gives back. They need no root.

use std::fs;

use super::*;
use crate::oci::testing::{Layout, Tar, spec};
use crate::oci::{Import, Privileges};

/// A base of an image with Docker's media types.
fn docker_base() -> (tempfile::TempDir, Base) {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let mut layout = Layout::new(&image, &[Tar::new().add(spec(b'0', "a").content(b"a")).end()]);
    layout.layers[0]["mediaType"] = json!("application/vnd.docker.image.rootfs.diff.tar.gzip");
    layout.write(&image);
    let source: Source = format!("oci:{}", image.display()).parse().unwrap();
    let import = Import::new(&source).privileges(Privileges::AsAvailable).xattrs(XattrNamespace::User);
    import.into_base(dir.path().join("base")).unwrap();
    let base = Base::open(dir.path().join("base")).unwrap();
    (dir, base)
}

fn export(dir: &tempfile::TempDir, base: &Base) -> Exported {
    let destination = format!("oci:{}:t", dir.path().join("out").display()).parse().unwrap();
    Export::new(&[]).base(base).xattrs(XattrNamespace::User).run(&destination).unwrap()
}

#[test]
fn an_original_blob_gets_the_media_type_of_its_compression() {
    let (dir, base) = docker_base();
    let exported = export(&dir, &base);
    let recorded = Record::of(&Layer::at(base.path())).unwrap().unwrap();
    assert_eq!((exported.original, exported.blobs[0].digest), (1, recorded.blobs[0].digest));
    assert_eq!(exported.blobs[0].media_type, "application/vnd.oci.image.layer.v1.tar");
    let manifest = fs::read_to_string(dir.path().join("out").join(crate::oci::image::blob_name(exported.manifest)));
    assert!(!manifest.unwrap().contains("docker"));
}

#[test]
fn a_base_that_changed_or_has_no_digest_becomes_one_layer() {
    let (dir, base) = docker_base();
    assert_eq!(export(&dir, &base).original, 1);
    fs::write(base.fs().join("a"), "changed").unwrap();
    let changed = export(&dir, &base);
    assert_eq!((changed.original, changed.blobs.len()), (0, 1));
    let known = Recorded::of(&Layer::at(base.path())).unwrap().unwrap().tree;
    assert_ne!(changed.blobs[0].diff_id, Some(known));

    let (dir, base) = docker_base();
    fs::remove_file(base.path().join("digest.json")).unwrap();
    assert_eq!(export(&dir, &base).original, 0);
}
