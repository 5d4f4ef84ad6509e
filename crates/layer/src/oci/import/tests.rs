//! Tests of the names of imported layers, and of what is reused. They need no root.

use std::fs;
use std::path::Path;
use std::sync::Mutex;

use super::*;
use crate::oci::testing::{Layout, Spec, Tar, spec};
use crate::stack::view::View;

fn place() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("store")).unwrap();
    dir
}

fn source_of(dir: &Path, archives: &[Vec<u8>]) -> Source {
    let image = dir.join("image");
    let _ = fs::remove_dir_all(&image);
    Layout::new(&image, archives).write(&image);
    format!("oci:{}", image.display()).parse().unwrap()
}

fn import(source: &Source) -> Import<'_> {
    Import::new(source).privileges(Privileges::AsAvailable).xattrs(XattrNamespace::User)
}

fn file(path: &str) -> Vec<u8> {
    Tar::new().add(spec(b'0', path).content(path.as_bytes())).end()
}

#[test]
fn a_layer_that_needs_what_is_below_has_the_name_of_its_chain() {
    let below = Tar::new().add(spec(b'5', "d")).add(spec(b'0', "d/f").content(b"x")).end();
    let link = Tar::new().add(spec(b'1', "h").target("d/f")).end();
    let opaque = Tar::new().add(spec(b'0', ".wh..wh..opq")).end();
    let whole = Tar::new().add(spec(b'5', "d")).add(spec(b'0', "d/g")).end();
    // The upper layer of an image, and whether its name is that of its chain.
    for (what, upper, by_chain) in [
        ("a file of the root", file("a"), false),
        ("a directory with its entry", whole, false),
        ("a directory without an entry", file("d/g"), true),
        ("a hard link to a layer below", link, true),
        ("an opaque root", opaque, true),
        ("the same layer again", below.clone(), true),
    ] {
        let dir = place();
        let source = source_of(dir.path(), &[below.clone(), upper]);
        let store = Store::open(dir.path().join("store")).unwrap();
        let imported = import(&source).into_layers(&store).unwrap();
        let [upper, lower] = &*imported.layers else { panic!("{what}") };
        let expected = if by_chain { upper.chain_id } else { upper.diff_id };
        assert_eq!(upper.layer.name(), expected.layer_name().as_str(), "{what}");
        assert_eq!(lower.layer.name(), lower.diff_id.layer_name().as_str(), "{what}");
        let meta = upper.layer.meta().unwrap().unwrap();
        assert_eq!((meta.base_hash, meta.parent_hashes.len()), (lower.diff_id.hex(), 0), "{what}");

        let again = import(&source).into_layers(&store).unwrap();
        assert!(again.layers.iter().all(|layer| layer.reused) && again.bytes == 0, "{what}");
        let layers = |imported: &Imported| imported.layers.iter().map(|layer| layer.layer.clone()).collect::<Vec<_>>();
        assert_eq!(layers(&again), layers(&imported), "{what}");
        assert!(again.layers.iter().all(|layer| layer.layer.last_used().unwrap().is_some()), "{what}");
    }
}

#[test]
fn a_layer_that_was_the_lowest_is_not_reused_where_it_would_look_different() {
    let root = |mode| Tar::new().add(Spec { mode, ..spec(b'5', "./") }).add(spec(b'5', "d")).end();
    let whole = Tar::new().add(spec(b'5', "./")).add(spec(b'5', "e")).add(spec(b'0', "e/f")).end();
    // A layer, the root below it, and whether the layer of another image has the name.
    for (what, layer, mode, is_reused, needs) in [
        ("everything has an entry", &whole, 0o700, true, Needs::Nothing),
        ("the root has no entry, and is a usual one", &file("a"), 0o755, true, Needs::Root),
        ("the root has no entry, and is not a usual one", &file("a"), 0o700, false, Needs::Root),
        ("a directory has no entry", &file("d/f"), 0o755, false, Needs::Layers),
        ("a whiteout is in a directory without an entry", &file("d/.wh.f"), 0o755, false, Needs::Layers),
    ] {
        let dir = place();
        let store = Store::open(dir.path().join("store")).unwrap();
        let alone = source_of(dir.path(), std::slice::from_ref(layer));
        let alone = import(&alone).into_layers(&store).unwrap().layers.remove(0);
        let above = source_of(dir.path(), &[root(mode), layer.clone()]);
        let above = import(&above).into_layers(&store).unwrap().layers.remove(0);
        assert_eq!(alone.layer.name(), alone.diff_id.layer_name().as_str(), "{what}");
        assert_eq!((above.layer == alone.layer, above.reused), (is_reused, is_reused), "{what}");
        assert_eq!(Record::of(&above.layer).unwrap().unwrap().needs, needs, "{what}");
    }
}

#[test]
fn a_long_path_is_made_in_few_steps() {
    // Each layer misses all directories. With a step for each beginning of a path, this took
    // minutes.
    let paths = ["a", "b", "c"].map(|first| format!("{first}/{}f", "d/".repeat(1000)));
    let archive = |paths: &[String]| paths.iter().fold(Tar::new(), |tar, path| tar.add(spec(b'0', path))).end();
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    fs::create_dir(dir.path().join("store")).unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    let source = source_of(dir.path(), &[archive(&paths[..1]), archive(&paths)]);
    let imported = import(&source).into_layers(&store).unwrap();
    for path in &paths {
        assert!(imported.layers[0].layer.fs().join(path).is_file());
    }
    crate::remove_tree(store.path()).unwrap();
}

#[test]
fn many_missing_directories_at_the_end_of_a_long_path_are_made_in_few_steps() {
    // With a way through the stack for each of them, this took minutes.
    let deep = "d/".repeat(1000);
    let paths: Vec<_> = (0..1000).map(|number| format!("a/{deep}{number}/f")).collect();
    let upper = paths.iter().fold(Tar::new(), |tar, path| tar.add(spec(b'0', path)));
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    fs::create_dir(dir.path().join("store")).unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    let source = source_of(dir.path(), &[file("b"), upper.end()]);
    let imported = import(&source).into_layers(&store).unwrap();
    for path in &paths {
        assert!(imported.layers[0].layer.fs().join(path).is_file());
    }
    crate::remove_tree(store.path()).unwrap();
}

#[test]
fn a_directory_of_the_layer_alone_stays_over_what_is_below() {
    // The lower layer has directories that the upper one hides, links to, and names again.
    let below = ["d/old/f", "e/f", "real/f"].iter().fold(Tar::new(), |tar, path| tar.add(spec(b'0', path)));
    let upper = Tar::new()
        .add(spec(b'0', "new/x/f"))
        .add(spec(b'2', "new/l").target("/real"))
        .add(spec(b'0', "new/l/y/f"))
        .add(spec(b'0', ".wh.e"))
        .add(spec(b'0', "e/z/f"))
        .add(spec(b'0', "new/.wh.w"))
        .add(spec(b'0', "new/w/v/f"))
        .add(spec(b'0', "d/old/g/f"));
    let dir = place();
    let source = source_of(dir.path(), &[below.end(), upper.end()]);
    let imported = import(&source).into_layers(&Store::open(dir.path().join("store")).unwrap()).unwrap();
    let trees: Vec<_> = imported.layers.iter().map(|layer| layer.layer.fs()).collect();
    let stack = View::new(&trees).unwrap().xattrs(XattrNamespace::User);
    let shown = |path: &&&str| stack.find(path).unwrap().is_some();
    let expected = ["d/old/f", "d/old/g/f", "e/z/f", "new/w/v/f", "new/x/f", "real/f", "real/y/f"];
    let all: Vec<_> = expected.iter().chain(&["e/f"]).filter(shown).copied().collect();
    assert_eq!(all, expected);
}

#[test]
fn an_implied_directory_looks_as_it_does_below() {
    let below = Tar::new().add(spec(b'5', "real")).add(spec(b'2', "link").target("real")).end();
    let dir = place();
    let source = source_of(dir.path(), &[below, file("link/new/f")]);
    let imported = import(&source).into_layers(&Store::open(dir.path().join("store")).unwrap()).unwrap();
    let upper = imported.layers[0].layer.fs();
    // The link leads to the directory, which is where the kernel finds the file.
    assert!(upper.join("real/new/f").is_file() && !upper.join("link").exists());
    let modified = |path: &str| fs::metadata(upper.join(path)).unwrap().modified().unwrap();
    assert_eq!(modified("real"), SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000));
    assert_eq!(modified("real/new"), SystemTime::UNIX_EPOCH);
}

#[test]
fn nothing_that_exists_is_replaced() {
    let dir = place();
    let source = source_of(dir.path(), &[file("a")]);
    fs::create_dir(dir.path().join("base")).unwrap();
    let error = import(&source).into_base(dir.path().join("base/")).unwrap_err();
    assert!(matches!(error, Error::Exists { path } if path == dir.path().join("base")));

    let store = Store::open(dir.path().join("store")).unwrap();
    let name = Digest::of(&file("a")).layer_name();
    fs::create_dir_all(store.path().join(&name).join("fs")).unwrap();
    let error = import(&source).into_layers(&store).unwrap_err();
    assert!(matches!(error, Error::OtherLayer { layer, .. } if layer == store.path().join(&name)));
    assert_eq!(fs::read_dir(store.path().join(".layered/new")).unwrap().count(), 0);
}

#[test]
fn of_two_imports_at_once_the_slower_finds_the_work_of_the_faster() {
    let dir = place();
    let source = source_of(dir.path(), &[file("a")]);
    let store = Store::open(dir.path().join("store")).unwrap();
    let base = dir.path().join("base");
    // The faster import begins and ends while the slower one reads.
    let faster = Mutex::new(Some(()));
    let into_layers = |_| {
        if faster.lock().unwrap().take().is_some() {
            import(&source).into_layers(&store).unwrap();
        }
    };
    let slower = import(&source).progress(&into_layers).into_layers(&store).unwrap();
    assert_eq!(*faster.lock().unwrap(), None);
    assert_eq!(slower.layers[0].layer, store.layer(slower.layers[0].diff_id.layer_name()).unwrap());

    let faster = Mutex::new(Some(()));
    let into_base = |_| {
        if faster.lock().unwrap().take().is_some() {
            import(&source).into_base(&base).unwrap();
        }
    };
    let refused = import(&source).progress(&into_base).into_base(&base).unwrap_err();
    assert!(matches!(refused, Error::Exists { path } if path == base));
    assert_eq!(fs::read_dir(store.path().join(".layered/new")).unwrap().count(), 0);
}

/// Calls `call` on a thread that may make no device, set no owner and pass no permission.
fn without_privilege<T: Send>(call: impl FnOnce() -> T + Send) -> T {
    let drop = || {
        let mut sets = rustix::thread::capabilities(None).unwrap();
        sets.effective = rustix::thread::CapabilitySet::empty();
        rustix::thread::set_capabilities(None, sets).unwrap();
    };
    std::thread::scope(|scope| {
        let called = scope.spawn(|| {
            drop();
            call()
        });
        called.join().unwrap()
    })
}

#[test]
fn a_device_that_is_left_out_hides_what_is_below_it() {
    let below = ["etc/x", "etc/y", "etc/z"].iter().fold(Tar::new(), |tar, path| tar.add(spec(b'0', path)));
    let mut device = spec(b'3', "etc/x");
    device.device = (1, 3);
    let upper = Tar::new().add(device).add(spec(b'1', "etc/y").target("etc/x")).add(spec(b'1', "w").target("etc/y"));
    let dir = place();
    let source = source_of(dir.path(), &[below.end(), upper.end()]);
    let store = Store::open(dir.path().join("store")).unwrap();
    let (flat, layered) = without_privilege(|| {
        let import = import(&source);
        (import.into_base(dir.path().join("base")).unwrap(), import.into_layers(&store).unwrap())
    });
    let left_out = LeftOut { devices: 3, ..LeftOut::default() };
    assert_eq!([&flat, &layered].map(|imported| LeftOut { owners: 0, ..imported.left_out }), [left_out; 2]);
    for imported in [flat, layered] {
        let trees: Vec<_> = imported.layers.iter().map(|layer| layer.layer.fs()).collect();
        let stack = View::new(&trees).unwrap().xattrs(XattrNamespace::User);
        let shown = ["etc/x", "etc/y", "etc/z", "w"].map(|path| stack.find(path).unwrap().is_some());
        assert_eq!(shown, [false, false, true, false]);
    }
}

#[test]
fn the_record_has_the_image_and_the_progress_its_bytes() {
    let dir = place();
    let archives = [file("a"), file("b")];
    let source = source_of(dir.path(), &archives);
    let seen = Mutex::new(Vec::new());
    let progress = |progress| seen.lock().unwrap().push(progress);
    let imported = import(&source).progress(&progress).into_base(dir.path().join("base")).unwrap();
    let record = Record::of(&imported.layers[0].layer).unwrap().unwrap();
    let diff_ids = archives.clone().map(|archive| Digest::of(&archive));
    assert_eq!(record.blobs.iter().map(|blob| blob.digest).collect::<Vec<_>>(), diff_ids);
    assert_eq!((record.diff_id, record.chain_id), (diff_ids[1], diff_ids[1].chained(Some(diff_ids[0]))));
    assert_eq!((record.source, record.config["os"].as_str()), (source.to_string(), Some("linux")));
    let bytes: u64 = archives.iter().map(|archive| archive.len() as u64).sum();
    assert_eq!(seen.lock().unwrap().last(), Some(&Progress { done_bytes: bytes, total_bytes: Some(bytes) }));
    assert_eq!(imported.bytes, bytes);
}

#[test]
fn a_reused_layer_still_lacks_what_its_import_left_out() {
    let device = Spec { device: (1, 3), ..spec(b'3', "x") };
    let dir = place();
    let source = source_of(dir.path(), &[Tar::new().add(spec(b'5', "./")).add(device).end()]);
    let store = Store::open(dir.path().join("store")).unwrap();
    let [first, again] = without_privilege(|| [(); 2].map(|()| import(&source).into_layers(&store).unwrap()));
    assert_eq!((first.layers[0].reused, again.layers[0].reused), (false, true));
    assert_eq!((first.left_out.devices, again.left_out), (1, first.left_out));
    // Root could make the device.
    let error = import(&source).privileges(Privileges::Required).into_layers(&store).unwrap_err();
    assert!(matches!(&error, Error::NotWhole { layer } if layer == first.layers[0].layer.path()), "{error}");
    assert!(error.to_string().contains("layered rm"), "{error}");
}

#[test]
fn a_text_of_an_acl_is_left_out_by_root_too() {
    for (left_out, is_same) in [
        (LeftOut::default(), true),
        (LeftOut { acl_texts: 1, ..LeftOut::default() }, true),
        (LeftOut { owners: 1, ..LeftOut::default() }, false),
    ] {
        let expected = [is_same, true];
        assert_eq!([Privileges::Required, Privileges::AsAvailable].map(|all| left_out.is_same_with(all)), expected);
    }
}
