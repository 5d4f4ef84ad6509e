//! Images in and out: compared with umoci, skopeo, GNU tar and the kernel's own view. `tools` has
//! Podman and Buildah, `failures` full disks and kills, `verify` damage.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use integration_tests::stack::{Dir, Mount, acl, set_xattr};
use integration_tests::tree::Snapshot;
use integration_tests::{Fixture, copy_program, find, layered};
use layer::oci::{Destination, Export, Import, Source};
use layer::{Layer, Store};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::Value;

mod failures;
mod tools;
mod verify;

use super::merge::property::property;
use super::merge::random::{Layers, layers};

/// Runs a program that must succeed, and returns its standard output.
fn done(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn program(name: &str, arguments: &[&str]) -> String {
    done(Command::new(find(name)).args(arguments))
}

/// Makes `store/0`, `store/1`, … of trees, topmost first.
fn store_of(dir: &Path, trees: &[Dir]) -> Vec<Layer> {
    let make = |(number, tree): (usize, &Dir)| {
        let layer = Layer::at(dir.join("store").join(number.to_string()));
        fs::create_dir_all(layer.path()).unwrap();
        tree.make(&layer.fs()).unwrap();
        layer
    };
    trees.iter().enumerate().map(make).collect()
}

/// Returns what a mount of the layers shows. The kernel mounts no single lower without an upper, so
/// a single tree is read as it is.
fn shown(layers: &[Layer]) -> Snapshot {
    let trees: Vec<_> = layers.iter().map(Layer::fs).collect();
    match &*trees {
        [tree] => Snapshot::of_path(tree).unwrap(),
        trees => Snapshot::of(Mount::read_only(trees).unwrap()).unwrap(),
    }
}

/// Takes out what no image has: sockets, and the attributes that overlayfs stores for an overlay in
/// an overlay.
fn as_in_an_image(mut snapshot: Snapshot) -> Snapshot {
    snapshot.entries.retain(|_, entry| entry.kind != FileType::Socket);
    for entry in snapshot.entries.values_mut() {
        entry.xattrs.retain(|name, _| !name.to_string_lossy().contains(".overlay."));
    }
    snapshot
}

#[test]
fn an_image_of_any_stack_looks_like_the_stack() {
    let xattrs = runner::xattrs_of_process();
    property(layers(), |Layers { separate, sources, base, .. }| {
        // In memory, where the syncs of the imports cost nothing.
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let stack = store_of(dir.path(), &[separate, sources, vec![base]].concat());
        let expected = as_in_an_image(shown(&stack));
        let [one, other] = ["one", "other"].map(|tag| {
            let dir = dir.path().join("image");
            (format!("oci:{}:{tag}", dir.display()), Destination::Layout { dir, tag: tag.into() })
        });
        let failed = |error: layer::oci::Error| format!("{error:?}");
        let exported = Export::new(&stack)
            .xattrs(xattrs)
            .compression(layer::oci::Compression::None)
            .run(&one.1)
            .map_err(failed)?;
        let source: Source = one.0.parse().unwrap();

        let flat = Import::new(&source).xattrs(xattrs).into_base(dir.path().join("flat")).map_err(failed)?;
        let found = as_in_an_image(shown(&[flat.layers[0].layer.clone()]));
        if found.entries != expected.entries || !found.phantoms.is_empty() {
            return Err(format!("as one tree:\n{}{:?}", expected.diff(&found), found.phantoms));
        }

        fs::create_dir(dir.path().join("imported")).unwrap();
        let store = Store::open(dir.path().join("imported")).unwrap();
        let imported = Import::new(&source).xattrs(xattrs).into_layers(&store).map_err(failed)?;
        let layers: Vec<_> = imported.layers.iter().map(|imported| imported.layer.clone()).collect();
        let found = as_in_an_image(shown(&layers));
        // The random layers lack the mark that makes the kernel look for whiteouts. Imported ones
        // have it.
        if found.entries != expected.entries || !found.phantoms.is_empty() {
            return Err(format!("as layers:\n{}{:?}", expected.diff(&found), found.phantoms));
        }
        let again = Export::new(&layers)
            .xattrs(xattrs)
            .compression(layer::oci::Compression::None)
            .run(&other.1)
            .map_err(failed)?;
        if again.manifest != exported.manifest {
            return Err("an export of the import has another digest".into());
        }
        Ok(())
    });
}

/// Needs Debian or Ubuntu, as `debian` does.
#[test]
fn debian_packages_are_unpacked_as_by_umoci_and_tar() {
    let fixture = Fixture::new();
    let dest = fixture.path().join("debian");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/debian-layers");
    done(Command::new(script).arg(&dest).args(["tcc", "libc6-dev", "make", "dash", "coreutils"]));
    let list = dest.join("layers");
    let layers: Vec<_> = fs::read_to_string(&list).unwrap().lines().map(|dir| Layer::open(dir).unwrap()).collect();
    let base = Layer::open(dest.join("base")).unwrap();
    let expected = shown(&[layers.clone(), vec![base.clone()]].concat());

    let image = format!("{}/image:deb", dest.display());
    let [oci, unpacked] = [format!("oci:{image}"), dest.join("unpacked").display().to_string()];
    let export = |image: &str, base: &Path, list: &Path, zip: &str| {
        let mut command = layered();
        command.args(["export", image, "--zip", zip, "--json", "--base"]).arg(base).arg("--layers-from").arg(list);
        serde_json::from_str::<Value>(&done(&mut command)).unwrap()
    };
    let exported = export(&oci, base.path(), &list, "gzip");
    assert_eq!(exported["blobs"].as_array().unwrap().len(), layers.len() + 1);
    program("umoci", &["unpack", "--image", &image, &unpacked]);
    let rootfs = Path::new(&unpacked).join("rootfs");
    assert_eq!(expected.diff(&Snapshot::of_path(&rootfs).unwrap()), "");

    // A docker archive has the same tree. So has an archive of the tree.
    let docker = format!("docker-archive:{}", dest.join("docker.tar").display());
    program("skopeo", &["copy", "--quiet", &oci, &format!("{docker}:debian:12")]);
    let tar = dest.join("root.tar").display().to_string();
    program(
        "tar",
        &["--xattrs", "--xattrs-include=*", "--format=posix", "-C", &rootfs.display().to_string(), "-cf", &tar, "."],
    );
    program("gzip", &["-1", "--keep", &tar]);
    for (name, source) in
        [("oci", &oci), ("docker", &docker), ("tar", &format!("tar:{tar}")), ("gz", &format!("tar:{tar}.gz"))]
    {
        let target = dest.join(name);
        done(layered().args(["import", source]).arg(&target));
        assert_eq!(expected.diff(&Snapshot::of_path(&target.join("fs")).unwrap()), "", "{name}");
    }

    // As layers, with the lowest as the base.
    let store = dest.join("imported");
    fs::create_dir(&store).unwrap();
    let text = done(layered().args(["import", &oci, "--layers"]).arg(&store));
    let (comment, _) = text.split_once('\n').unwrap();
    let imported = dest.join("list");
    fs::write(&imported, &text).unwrap();
    let lowest = PathBuf::from(comment.strip_prefix("# --base ").unwrap());
    let again = export(&format!("oci:{}/again:deb", dest.display()), &lowest, &imported, "gzip");
    assert_eq!((&again["manifest"], again["original"].as_u64()), (&exported["manifest"], Some(1)));
    done(layered().arg("verify").arg(&store));

    // A base gives back the blobs of its own image.
    let back = format!("oci:{}/back:deb", dest.display());
    let mut command = layered();
    let back: Value = serde_json::from_str(&done(
        command.args(["export", &back, "--zip", "zstd", "--json", "--base"]).arg(dest.join("oci")),
    ))
    .unwrap();
    assert_eq!(back["blobs"], exported["blobs"]);
    program("skopeo", &["inspect", &format!("oci:{}/back:deb", dest.display())]);

    // The program of a package runs from the image.
    let options = ["--base".as_ref(), lowest.as_os_str(), "--layers-from".as_ref(), imported.as_os_str()];
    let mut run = layered();
    run.arg("run").args(options).arg("--scratch").arg(fixture.scratch()).args(["--", "make", "--version"]);
    assert!(done(&mut run).starts_with("GNU Make"));
}

/// Makes a tree of files that archives often get wrong.
fn unusual_tree(root: &Path) {
    let path = |name: &str| root.join(name);
    let long = ["d".repeat(180), "f".repeat(180)].join("/");
    fs::create_dir_all(path(&long).parent().unwrap()).unwrap();
    fs::write(path(&long), "long").unwrap();
    fs::hard_link(path(&long), path("hard")).unwrap();
    symlink("t".repeat(300), path("link")).unwrap();
    fs::hard_link(path("link"), path("linked-link")).unwrap();
    for name in ["capable", "acl", "odd", "before", "new\nline", "zeros"] {
        fs::write(path(name), name).unwrap();
    }
    fs::write(root.join(OsStr::from_bytes(b"\xff\xfe")), "bytes").unwrap();
    chown(path("odd"), Some(3_000_000_000), Some(3_000_000_001)).unwrap();
    fs::set_permissions(path("odd"), fs::Permissions::from_mode(0o6755)).unwrap();
    // The bits of cap_dac_override and cap_fowner are the byte 0x0a, a newline.
    let capability = [1, 0, 0, 2, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    set_xattr(&path("capable"), "security.capability", &capability).unwrap();
    set_xattr(&path("acl"), "system.posix_acl_access", &acl(10, 4)).unwrap();
    set_xattr(&path("zeros"), "user.value", b"one\ntwo\0three").unwrap();
    set_xattr(&path("zeros"), "user.big", &[b'b'; 3000]).unwrap();
    set_xattr(&path("zeros"), "trusted.value", b"x").unwrap();
    program("mknod", &[&path("block").display().to_string(), "b", "8", "1"]);
    program("mknod", &[&path("char").display().to_string(), "c", "5", "300000"]);
    program("mkfifo", &[&path("fifo").display().to_string()]);
    let sparse = fs::File::create(path("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    sparse.write_all_at(b"in the middle", 32 << 20).unwrap();
    let before = rustix::fs::Timespec { tv_sec: -2, tv_nsec: 500_000_000 };
    let times = rustix::fs::Timestamps { last_access: before, last_modification: before };
    rustix::fs::utimensat(rustix::fs::CWD, path("before"), &times, rustix::fs::AtFlags::empty()).unwrap();
    // New files of a directory inherit its default ACL and its group, unless it gets them last.
    fs::create_dir(path("inherits")).unwrap();
    fs::write(path("inherits/plain"), "").unwrap();
    chown(path("inherits"), Some(7), Some(8)).unwrap();
    fs::set_permissions(path("inherits"), fs::Permissions::from_mode(0o2750)).unwrap();
    set_xattr(&path("inherits"), "system.posix_acl_default", &acl(11, 7)).unwrap();
}

#[test]
fn an_unusual_tree_survives_tar_and_umoci() {
    let fixture = Fixture::new();
    let layer = Layer::at(fixture.path().join("unusual"));
    fs::create_dir_all(layer.fs()).unwrap();
    unusual_tree(&layer.fs());
    let expected = Snapshot::of_path(&layer.fs()).unwrap();
    let tree = layer.fs().display().to_string();
    for format in ["0.0", "0.1", "1.0"] {
        let archive = fixture.path().join(format).display().to_string();
        let sparse = format!("--sparse-version={format}");
        let options = ["--format=posix", "--sparse", &sparse, "--xattrs", "--xattrs-include=*"];
        program("tar", &[&options[..], &["-C", &tree, "-cf", &archive, "."]].concat());
        let base = fixture.path().join(format!("base-{format}"));
        done(layered().args(["import", &format!("tar:{archive}")]).arg(&base));
        assert_eq!(expected.diff(&Snapshot::of_path(&base.join("fs")).unwrap()), "", "{format}");
        assert!(fs::metadata(base.join("fs/sparse")).unwrap().blocks() < 1024, "{format}");
    }
    let image = fixture.path().join("image").display().to_string();
    let unpacked = fixture.path().join("unpacked").display().to_string();
    done(layered().args(["export", &format!("oci:{image}:tag"), "--layer"]).arg(layer.path()));
    program("umoci", &["unpack", "--image", &format!("{image}:tag"), &unpacked]);
    assert_eq!(expected.diff(&Snapshot::of_path(&Path::new(&unpacked).join("rootfs")).unwrap()), "");
    // The archive has the hole of the sparse file as zeros.
    let base = fixture.path().join("again");
    done(layered().args(["import", &format!("oci:{image}:tag")]).arg(&base));
    assert_eq!(expected.diff(&Snapshot::of_path(&base.join("fs")).unwrap()), "");
    assert!(fs::metadata(base.join("fs/sparse")).unwrap().blocks() < 1024);
}

#[test]
fn an_empty_attribute_is_kept() {
    let fixture = Fixture::new();
    let layer = fixture.layer("empty", |tree| {
        fs::write(tree.join("f"), "").unwrap();
        set_xattr(&tree.join("f"), "user.empty", b"").unwrap();
    });
    let image = format!("oci:{}:tag", fixture.path().join("image").display());
    done(layered().args(["export", &image, "--layer"]).arg(layer.path()));
    let base = fixture.path().join("imported");
    done(layered().args(["import", &image]).arg(&base));
    let found = Snapshot::of_path(&base.join("fs")).unwrap();
    assert_eq!(Snapshot::of_path(&layer.fs()).unwrap().diff(&found), "");
    assert_eq!(found.entries[Path::new("f")].xattrs.len(), 1);
}

/// An archive that tar(1) has made of a small tree.
fn small_archive(fixture: &Fixture) -> PathBuf {
    let (tree, archive) = (fixture.path().join("small"), fixture.path().join("small.tar"));
    fs::create_dir_all(tree.join("d")).unwrap();
    fs::write(tree.join("d/f"), vec![b'x'; 300_000]).unwrap();
    chown(tree.join("d"), Some(7), Some(8)).unwrap();
    let arguments = [&tree.display().to_string(), "--format=posix", "-cf", &archive.display().to_string(), "."];
    program("tar", &[&["-C"], &arguments[..]].concat());
    archive
}

#[test]
fn a_killed_import_leaves_nothing_that_looks_whole() {
    let fixture = Fixture::new();
    let archive = fs::read(small_archive(&fixture)).unwrap();
    let place = fixture.path().join("place");
    fs::create_dir(&place).unwrap();
    let target = place.join("base");
    let start = || layered().args(["import", "-"]).arg(&target).stdin(Stdio::piped()).spawn().unwrap();
    let drafts = || fs::read_dir(place.join(".layered/new")).map_or(0, Iterator::count);

    let mut import = start();
    let mut stdin = import.stdin.take().unwrap();
    // The pipe takes less than this: when the write returns, the import has begun to read.
    stdin.write_all(&archive[..200_000]).unwrap();
    import.kill().unwrap();
    import.wait().unwrap();
    drop(stdin);
    assert!(!target.exists());
    assert_eq!(drafts(), 1);

    // An archive that ends early is refused, and nothing is left of it.
    let mut import = start();
    import.stdin.take().unwrap().write_all(&archive[..200_000]).unwrap();
    assert_eq!(import.wait().unwrap().code(), Some(125));
    assert_eq!((target.exists(), drafts()), (false, 1));

    let mut import = start();
    import.stdin.take().unwrap().write_all(&archive).unwrap();
    assert!(import.wait().unwrap().success());
    let expected = Snapshot::of_path(&fixture.path().join("small")).unwrap();
    assert_eq!(expected.diff(&Snapshot::of_path(&target.join("fs")).unwrap()), "");
    // The next collector removes what the killed import has left.
    done(layered().arg("gc").arg(&place).args(["--max-bytes", "1t"]));
    assert_eq!(drafts(), 0);
}

#[test]
fn a_user_imports_what_the_kernel_allows() {
    let fixture = Fixture::new();
    let archive = small_archive(&fixture);
    let place = fixture.path().join("place");
    fs::create_dir(&place).unwrap();
    chown(&place, Some(65534), Some(65534)).unwrap();
    for path in [fixture.path(), &archive] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let copy = fixture.path().join("layered");
    copy_program(Path::new(layered().get_program()), &copy);
    let mut nobody = Command::new(&copy);
    nobody.uid(65534).gid(65534).arg("import").arg(format!("tar:{}", archive.display())).arg(place.join("base"));
    let output = nobody.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.contains("files belong to you"), "{stderr}");
    assert_eq!(fs::read(place.join("base/fs/d/f")).unwrap().len(), 300_000);

    // The whiteouts of a layer are marked in the namespace that a user may write.
    let dirs = [Dir::new().with("d", Dir::new().whiteout("f")), Dir::new().with("d", Dir::new().file("f", "x"))];
    let image = fixture.path().join("image");
    let destination = Destination::Layout { dir: image.clone(), tag: "tag".into() };
    Export::new(&store_of(&fixture.path().join("source"), &dirs)).run(&destination).unwrap();
    let mut nobody = Command::new(&copy);
    nobody.uid(65534).gid(65534).arg("import").arg(format!("oci:{}", image.display())).arg("--layers").arg(&place);
    let list = done(&mut nobody);
    let topmost = Path::new(list.lines().nth(1).unwrap());
    let upper = topmost.join("fs/d");
    assert!(layer::is_whiteout(upper.join("f"), layer::XattrNamespace::User).unwrap());
    let mut origin = [0; 8];
    assert_eq!(rustix::fs::lgetxattr(&upper, "user.overlay.origin", &mut origin), Ok(0));
}

#[test]
fn an_image_that_cannot_be_used_is_one_line_of_advice() {
    let fixture = Fixture::new();
    let missing = format!("oci:{}/missing", fixture.path().display());
    for (arguments, part) in [
        (&["import", "docker://Debian:12", "new"][..], "its repository is not valid"),
        (&["import", "debian", "new"], "oci-archive:FILE"),
        (&["import", &missing, "new"], "cannot open"),
        (&["export", "oci:dir", "--base", "x"], "has no tag"),
        (&["export", "oci:dir:tag"], "nothing to export"),
        (&["pull", "debian:12"], "layered import"),
        (&["push", "debian:12"], "layered export"),
    ] {
        let output = layered().args(arguments).current_dir(fixture.path()).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{stderr}");
        assert!(stderr.contains(part), "{arguments:?}: {stderr}");
    }
}

#[test]
fn a_commit_records_the_digest_that_an_export_has() {
    let fixture = Fixture::new();
    let [upper, layer] = ["upper", "committed"].map(|name| fixture.path().join(name));
    fs::create_dir(&upper).unwrap();
    fs::write(upper.join("f"), "x").unwrap();
    done(layered().arg("commit").args([&upper, &layer]).arg("--base").arg(fixture.base().path()).arg("--digest"));
    let line = done(layered().arg("verify").arg(&layer));
    let image = format!("oci:{}:tag", fixture.path().join("image").display());
    let exported: Value =
        serde_json::from_str(&done(layered().args(["export", &image, "--json", "--layer"]).arg(&layer))).unwrap();
    let diff_id = exported["blobs"][0]["diff_id"].as_str().unwrap();
    assert!(line.ends_with(&format!(": intact, {diff_id}\n")), "{line}");
}

#[test]
fn sockets_are_left_out_and_reported() {
    let fixture = Fixture::new();
    let layer = fixture.layer("with-socket", |tree| drop(UnixListener::bind(tree.join("socket")).unwrap()));
    let image = format!("oci:{}:tag", fixture.path().join("image").display());
    let mut export = layered();
    let output =
        export.args(["export", &image, "--base"]).arg(fixture.base().path()).arg("--layer").arg(layer.path()).output();
    let output = output.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.contains("left out the socket"), "{stderr}");
    // Both exports are equal, and the tag is there once.
    let index = fixture.path().join("image/index.json");
    let first = fs::read_to_string(&index).unwrap();
    assert!(export.output().unwrap().status.success());
    assert_eq!(fs::read_to_string(&index).unwrap(), first);
    let config = fixture.path().join("config.json");
    fs::write(&config, r#"{"config": {"Entrypoint": ["/bin/true"]}}"#).unwrap();
    assert!(export.arg("--config").arg(config).output().unwrap().status.success());
    let inspected = program("skopeo", &["inspect", "--config", &image]);
    assert!(inspected.contains("/bin/true"), "{inspected}");
}

#[test]
fn an_archive_goes_through_a_link_and_a_fifo() {
    let fixture = Fixture::new();
    let layer = fixture.layer("layer", |tree| fs::write(tree.join("file"), "content").unwrap());
    let [link, target, fifo] = ["link", "target", "fifo"].map(|name| fixture.path().join(name));
    symlink("target", &link).unwrap();
    mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let export = |file: &Path| {
        let image = format!("oci-archive:{}:tag", file.display());
        done(layered().args(["export", &image, "--layer"]).arg(layer.path()))
    };
    export(&link);
    let reader = std::thread::spawn({
        let fifo = fifo.clone();
        move || fs::read(fifo).unwrap()
    });
    export(&fifo);
    let archive = reader.join().unwrap();
    assert!(!archive.is_empty() && archive == fs::read(&target).unwrap());
    assert!(link.is_symlink() && fs::symlink_metadata(&fifo).unwrap().file_type().is_fifo());
}
