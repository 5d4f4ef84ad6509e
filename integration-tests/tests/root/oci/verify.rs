//! Damage that `layered verify` finds.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use integration_tests::stack::set_xattr;
use integration_tests::{Fixture, copy_program, layered};
use layer::{Layer, Meta};
use serde_json::Value;

use super::{program, small_archive};

/// Makes a layer of every kind of file, and records its digest.
fn recorded(dir: &Path) -> Layer {
    let layer = Layer::at(dir);
    let tree = layer.fs();
    fs::create_dir_all(tree.join("d/e")).unwrap();
    for name in ["d/f", "d/g", "a"] {
        fs::write(tree.join(name), name).unwrap();
    }
    fs::hard_link(tree.join("a"), tree.join("b")).unwrap();
    symlink("a", tree.join("s")).unwrap();
    set_xattr(&tree.join("a"), "user.x", b"1").unwrap();
    program("mknod", &[&tree.join("gone").display().to_string(), "c", "0", "0"]);
    program("mknod", &[&tree.join("tty").display().to_string(), "c", "5", "0"]);
    layer.write_meta(&Meta::new("base", std::time::SystemTime::UNIX_EPOCH)).unwrap();
    layer::oci::record_digest(&layer, layer::XattrNamespace::Trusted).unwrap();
    layer
}

/// Sets the time of a file to what it was before a change, so that only the change is seen.
fn with_time_of(path: &Path, change: impl FnOnce(&Path)) {
    let times = fs::metadata(path).unwrap().modified().unwrap();
    change(path);
    fs::File::open(path).unwrap().set_modified(times).unwrap();
}

#[test]
fn every_kind_of_damage_is_found() {
    type Damage = fn(&Layer);
    let cases: Vec<(&str, Damage, &str)> = vec![
        (
            "a byte",
            |layer| with_time_of(&layer.fs().join("d/f"), |file| fs::write(file, "d/F").unwrap()),
            "has the digest",
        ),
        (
            "a size",
            |layer| with_time_of(&layer.fs().join("d/f"), |file| fs::write(file, "").unwrap()),
            "has the digest",
        ),
        (
            "a mode",
            |layer| {
                fs::set_permissions(layer.fs().join("d/f"), fs::Permissions::from_mode(0o600)).unwrap();
            },
            "has the digest",
        ),
        (
            "the mode of the root",
            |layer| {
                fs::set_permissions(layer.fs(), fs::Permissions::from_mode(0o711)).unwrap();
            },
            "has the digest",
        ),
        (
            "a set-user-ID bit",
            |layer| {
                fs::set_permissions(layer.fs().join("d/f"), fs::Permissions::from_mode(0o4644)).unwrap();
            },
            "has the digest",
        ),
        ("an owner", |layer| chown(layer.fs().join("d/f"), Some(5), None).unwrap(), "has the digest"),
        ("a group", |layer| chown(layer.fs().join("d"), None, Some(5)).unwrap(), "has the digest"),
        (
            "a time",
            |layer| {
                fs::File::open(layer.fs().join("d/f"))
                    .unwrap()
                    .set_modified(std::time::SystemTime::UNIX_EPOCH)
                    .unwrap();
            },
            "has the digest",
        ),
        (
            "the time of a directory",
            |layer| {
                fs::File::open(layer.fs().join("d")).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
            },
            "has the digest",
        ),
        ("the value of an xattr", |layer| set_xattr(&layer.fs().join("a"), "user.x", b"2").unwrap(), "has the digest"),
        ("another xattr", |layer| set_xattr(&layer.fs().join("d"), "user.y", b"").unwrap(), "has the digest"),
        (
            "an opaque directory",
            |layer| {
                set_xattr(&layer.fs().join("d"), "trusted.overlay.opaque", b"y").unwrap();
            },
            "has the digest",
        ),
        (
            "a missing file",
            |layer| with_time_of(&layer.fs().join("d"), |dir| fs::remove_file(dir.join("g")).unwrap()),
            "has the digest",
        ),
        (
            "an added file",
            |layer| with_time_of(&layer.fs().join("d"), |dir| fs::write(dir.join("h"), "").unwrap()),
            "has the digest",
        ),
        (
            "a missing directory",
            |layer| with_time_of(&layer.fs().join("d"), |dir| fs::remove_dir(dir.join("e")).unwrap()),
            "has the digest",
        ),
        (
            "a renamed file",
            |layer| {
                with_time_of(&layer.fs().join("d"), |dir| fs::rename(dir.join("g"), dir.join("h")).unwrap());
            },
            "has the digest",
        ),
        (
            "the target of a link",
            |layer| {
                with_time_of(&layer.fs(), |root| {
                    fs::remove_file(root.join("s")).unwrap();
                    symlink("b", root.join("s")).unwrap();
                });
            },
            "has the digest",
        ),
        (
            "a broken hard link",
            |layer| {
                with_time_of(&layer.fs(), |root| {
                    fs::copy(root.join("b"), root.join("copy")).unwrap();
                    fs::rename(root.join("copy"), root.join("b")).unwrap();
                });
            },
            "has the digest",
        ),
        (
            "a missing whiteout",
            |layer| {
                with_time_of(&layer.fs(), |root| fs::remove_file(root.join("gone")).unwrap());
            },
            "has the digest",
        ),
        (
            "another device",
            |layer| {
                with_time_of(&layer.fs(), |root| {
                    fs::remove_file(root.join("tty")).unwrap();
                    program("mknod", &[&root.join("tty").display().to_string(), "c", "5", "1"]);
                });
            },
            "has the digest",
        ),
        ("a name that no image has", |layer| fs::write(layer.fs().join("d/.wh.x"), "").unwrap(), "begins with .wh."),
        (
            "a redirect",
            |layer| set_xattr(&layer.fs().join("d"), "trusted.overlay.redirect", b"/x").unwrap(),
            "redirect",
        ),
        ("a missing layer.json", |layer| fs::remove_file(layer.meta_path()).unwrap(), "has no layer.json"),
        ("a truncated layer.json", |layer| fs::write(layer.meta_path(), r#"{"exit_st"#).unwrap(), "cannot parse"),
        (
            "a layer.json that is a link",
            |layer| {
                fs::remove_file(layer.meta_path()).unwrap();
                symlink("/etc/passwd", layer.meta_path()).unwrap();
            },
            "not a regular file",
        ),
        ("a truncated digest", |layer| fs::write(layer.path().join("digest.json"), "{").unwrap(), "cannot parse"),
        (
            "another digest",
            |layer| {
                let other = layer::oci::Digest::of(b"");
                fs::write(layer.path().join("digest.json"), format!(r#"{{"tree":"{other}"}}"#)).unwrap();
            },
            "has the digest",
        ),
        (
            "a missing tree",
            |layer| fs::rename(layer.fs(), layer.path().join("moved")).unwrap(),
            "has no directory `fs`",
        ),
        (
            "a tree that is a link",
            |layer| {
                fs::rename(layer.fs(), layer.path().join("moved")).unwrap();
                symlink("moved", layer.fs()).unwrap();
            },
            "has no directory `fs`",
        ),
        (
            "a missing layer",
            |layer| fs::rename(layer.path(), layer.path().with_extension("moved")).unwrap(),
            "does not exist",
        ),
    ];
    for (what, damage, part) in cases {
        let dir = tempfile::tempdir().unwrap();
        let layer = recorded(&dir.path().join("layer"));
        let verify = || {
            let output = layered().arg("verify").arg(layer.path()).output().unwrap();
            (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
        };
        let (status, line) = verify();
        assert!(status == 0 && line.contains(": intact, sha256:"), "{what}: {line}");
        damage(&layer);
        let (status, line) = verify();
        assert_eq!((status, line.lines().count()), (1, 1), "{what}: {line}");
        assert!(line.contains(": damaged: ") && line.contains(part), "{what}: {line}");
    }
}

#[test]
fn a_whole_store_is_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    fs::create_dir(&store).unwrap();
    recorded(&store.join("good"));
    let bad = recorded(&store.join("bad"));
    fs::write(bad.fs().join("d/f"), "other").unwrap();
    let plain = recorded(&store.join("plain"));
    fs::remove_file(plain.path().join("digest.json")).unwrap();
    fs::create_dir_all(store.join("unfinished/fs")).unwrap();
    let output = layered().arg("verify").arg(&store).arg("--json").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let lines: Vec<Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let states: Vec<_> = lines.iter().map(|line| line["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["damaged", "intact", "not recorded", "damaged"]);
    assert!(lines[3]["damage"].as_str().unwrap().contains("no layer.json"));
}

/// Root can read every directory, so an ordinary user verifies one that is root's by now.
#[test]
fn a_directory_that_cannot_be_read_is_named() {
    let fixture = Fixture::new();
    let archive = small_archive(&fixture);
    let (place, copy) = (fixture.path().join("place"), fixture.path().join("layered"));
    fs::create_dir(&place).unwrap();
    chown(&place, Some(65534), Some(65534)).unwrap();
    copy_program(Path::new(layered().get_program()), &copy);
    for path in [fixture.path(), &archive] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let base = place.join("base");
    let nobody = |arguments: &[&str]| {
        let output = Command::new(&copy).uid(65534).gid(65534).args(arguments).arg(&base).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(nobody(&["import", &format!("tar:{}", archive.display())]).0, Some(0));
    assert_eq!(nobody(&["verify"]).0, Some(0));
    chown(base.join("fs/d"), Some(0), Some(0)).unwrap();
    fs::set_permissions(base.join("fs/d"), fs::Permissions::from_mode(0o700)).unwrap();
    let (status, line) = nobody(&["verify"]);
    assert_eq!(status, Some(1), "{line}");
    assert!(line.contains(": damaged: ") && line.contains(" d of ") && line.contains("Permission denied"), "{line}");
}
