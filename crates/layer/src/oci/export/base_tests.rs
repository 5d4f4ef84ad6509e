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

/// Writes an image with one file for a platform, and returns the index that names it.
fn image_for(dir: &Path, name: &str, architecture: &str) -> Value {
    let mut layout = Layout::new(dir, &[Tar::new().add(spec(b'0', name).content(name.as_bytes())).end()]);
    layout.config["architecture"] = json!(architecture);
    layout.write(dir);
    let mut index: Value = serde_json::from_slice(&fs::read(dir.join("index.json")).unwrap()).unwrap();
    index["manifests"][0]["platform"] = json!({"os": "linux", "architecture": architecture});
    index
}

#[test]
fn a_base_of_another_platform_gets_its_own_blobs() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let (mut index, other) =
        (image_for(&image, "here", &Platform::host().architecture), image_for(&image, "there", "s390x"));
    index["manifests"].as_array_mut().unwrap().push(other["manifests"][0].clone());
    fs::write(image.join("index.json"), index.to_string()).unwrap();
    let source: Source = format!("oci:{}", image.display()).parse().unwrap();
    let import = Import::new(&source).privileges(Privileges::AsAvailable).xattrs(XattrNamespace::User);
    import.platform("linux/s390x".parse::<Platform>().unwrap()).into_base(dir.path().join("base")).unwrap();
    let base = Base::open(dir.path().join("base")).unwrap();
    assert!(base.fs().join("there").exists());
    assert_eq!(export(&dir, &base).original, 1);

    // An image of another build has the tag, and the blobs of the former are still there.
    let index = image_for(&image, "new", "s390x");
    fs::write(image.join("index.json"), index.to_string()).unwrap();
    assert_eq!(export(&dir, &base).original, 1);

    // A blob is gone.
    let record = Record::of(&Layer::at(base.path())).unwrap().unwrap();
    fs::remove_file(image.join(crate::oci::image::blob_name(record.blobs[0].digest))).unwrap();
    assert_eq!(export(&dir, &base).original, 0);
}

#[test]
fn an_archive_has_the_blobs_of_a_layout() {
    let (dir, base) = docker_base();
    let file = dir.path().join("out.tar");
    let destination = format!("oci-archive:{}:t", file.display()).parse().unwrap();
    let archived = Export::new(&[]).base(&base).xattrs(XattrNamespace::User).run(&destination).unwrap();
    assert_eq!(archived.manifest, export(&dir, &base).manifest);
    let source: Source = format!("oci-archive:{}:t", file.display()).parse().unwrap();
    let again = Import::new(&source).privileges(Privileges::AsAvailable).into_base(dir.path().join("again")).unwrap();
    assert_eq!(again.manifest, Some(archived.manifest));
    let mut names: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, [".layered", "again", "base", "image", "out", "out.tar"]);
}

#[test]
fn the_configuration_is_that_of_the_topmost_imported_layer() {
    let dir = tempfile::tempdir().unwrap();
    let archive = |name: &str| Tar::new().add(spec(b'5', "./")).add(spec(b'0', name)).end();
    let store = dir.path().join("store");
    fs::create_dir(&store).unwrap();
    let store = crate::Store::open(store).unwrap();
    // Two images share their lowest layer. The store has it from the first one.
    let [first, second] = ["first", "second"].map(|name| {
        let image = dir.path().join(name);
        let mut layout = Layout::new(&image, &[archive("shared"), archive(name)]);
        layout.config["config"] = json!({"Entrypoint": [name]});
        layout.write(&image);
        let source: Source = format!("oci:{}", image.display()).parse().unwrap();
        let import = Import::new(&source).privileges(Privileges::AsAvailable).xattrs(XattrNamespace::User);
        import.into_layers(&store).unwrap().layers.into_iter().map(|layer| layer.layer).collect::<Vec<_>>()
    });
    assert_eq!(first[1], second[1]);
    let base = Base::open(second[1].path()).unwrap();
    let entrypoint = |layers: &[Layer]| {
        let export = Export::new(layers).base(&base).xattrs(XattrNamespace::User);
        let config = export.image_config().unwrap();
        let destination = format!("oci:{}:t", dir.path().join("out").display()).parse().unwrap();
        let manifest = export.run(&destination).unwrap().manifest;
        let read = |digest: &Value| {
            let blob = crate::oci::image::blob_name(serde_json::from_value(digest.clone()).unwrap());
            serde_json::from_slice::<Value>(&fs::read(dir.path().join("out").join(blob)).unwrap()).unwrap()
        };
        let written = read(&read(&json!(manifest))["config"]["digest"]);
        assert_eq!(written["config"], config["config"]);
        config["config"]["Entrypoint"][0].as_str().unwrap().to_string()
    };
    assert_eq!(entrypoint(&second[..1]), "second");
    assert_eq!(entrypoint(&first[..1]), "first");
    // Without an imported layer, it is that of the base.
    assert_eq!(entrypoint(&[]), "first");
    // A layer that was pulled has a configuration of its own.
    let mut pulled = Record::of(&second[0]).unwrap().unwrap();
    pulled.source = "docker://localhost/r:l".into();
    let (manifest, blob) = (pulled.diff_id, pulled.blobs[0].clone());
    pulled.registries = vec![crate::oci::InRegistry { image: pulled.source.clone(), manifest, blob }];
    pulled.write(&second[0]).unwrap();
    assert_eq!(entrypoint(&second[..1]), "first");
}

#[test]
fn an_archive_has_no_blob_of_a_copy_that_failed() {
    let (dir, base) = docker_base();
    let record = Record::of(&Layer::at(base.path())).unwrap().unwrap();
    let blob = dir.path().join("image").join(crate::oci::image::blob_name(record.blobs[0].digest));
    let mut damaged = fs::read(&blob).unwrap();
    damaged[512] = b'!';
    fs::write(&blob, damaged).unwrap();
    let file = dir.path().join("out.tar");
    let destination = format!("oci-archive:{}:t", file.display()).parse().unwrap();
    let exported = Export::new(&[]).base(&base).xattrs(XattrNamespace::User).run(&destination).unwrap();
    assert_eq!(exported.original, 0);
    let archive = fs::read(file).unwrap();
    // The manifest, the configuration and the layer.
    assert_eq!(archive.windows(13).filter(|bytes| bytes == b"blobs/sha256/").count(), 3);
}
