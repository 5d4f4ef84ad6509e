//! Imports and exports that run out of space or are killed: they name the place and the remedy, and
//! leave nothing.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use container::in_private_mount_namespace;
use integration_tests::{Fixture, find, layered};
use layer::oci::{Compression, Destination, Error, Export, Import, Source};
use layer::{Layer, Store};
use nix::mount::{MsFlags, mount};

use super::{done, program};

/// Calls `work` with the directory of a small tmpfs, which has options of mount(8).
fn on_tmpfs<T: Send>(fixture: &Fixture, options: &str, work: impl FnOnce(&Path) -> T + Send) -> T {
    let small = fixture.path().join("small");
    fs::create_dir(&small).unwrap();
    in_private_mount_namespace(|| {
        mount(Some("tmpfs"), &small, Some("tmpfs"), MsFlags::empty(), Some(options)).unwrap();
        work(&small)
    })
    .unwrap()
}

/// Makes a layer with `files` files of `bytes` bytes that cannot be compressed, and an archive of
/// it.
fn archived(fixture: &Fixture, files: usize, bytes: usize) -> (Layer, Source) {
    let layer = fixture.layer("layer", |tree| {
        let mut state = 1_u64;
        for number in 0..files {
            let mut random = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            };
            let content: Vec<_> = (0..bytes).map(|_| random()).collect();
            fs::write(tree.join(number.to_string()), content).unwrap();
        }
    });
    let archive = fixture.path().join("archive.tar").display().to_string();
    program("tar", &["-C", &layer.fs().display().to_string(), "-cf", &archive, "."]);
    (layer, format!("tar:{archive}").parse().unwrap())
}

/// Returns the names in a directory, and those of unfinished layers.
fn names(dir: &Path) -> Vec<String> {
    let list = |dir: &Path| fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().file_name());
    let names = list(dir).filter(|name| name != ".layered").chain(list(&dir.join(".layered/new")));
    names.map(|name| name.into_string().unwrap()).collect()
}

fn message(error: &Error) -> String {
    format!("{error:?}")
}

#[test]
fn an_import_into_a_small_file_system_names_it() {
    let fixture = Fixture::new();
    let (_, source) = archived(&fixture, 40, 100_000);
    on_tmpfs(&fixture, "size=2m", |small| {
        let import = Import::new(&source);
        let errors = [import.into_base(small.join("base")), import.into_layers(&Store::open(small).unwrap())];
        for error in errors.map(Result::unwrap_err) {
            assert!(matches!(&error, Error::TooLittleSpace { place, .. } if place == small), "{error:?}");
            assert!(message(&error).contains("free some space"), "{error:?}");
        }
        assert_eq!(names(small), [""; 0]);
    });
}

#[test]
fn an_import_that_finds_no_inodes_names_the_entry() {
    let fixture = Fixture::new();
    let (_, source) = archived(&fixture, 40, 1000);
    on_tmpfs(&fixture, "size=8m,nr_inodes=30", |small| {
        let error = Import::new(&source).into_base(small.join("base")).unwrap_err();
        let text = message(&error);
        assert!(matches!(&error, Error::Entry { .. }) && text.contains("free some space"), "{text}");
        assert_eq!(names(small), [""; 0]);
    });
}

#[test]
fn an_export_to_a_full_file_system_leaves_nothing() {
    let fixture = Fixture::new();
    let (layer, _) = archived(&fixture, 40, 100_000);
    on_tmpfs(&fixture, "size=2m", |small| {
        let layers = [layer];
        for compression in [Compression::None, Compression::Gzip] {
            let export = Export::new(&layers).compression(compression);
            let file = small.join("archive");
            let error = export.run(&Destination::OciArchive { file, tag: "tag".into() }).unwrap_err();
            assert!(message(&error).contains("free some space"), "{error:?}");
            assert_eq!(names(small), [""; 0]);

            let dir = small.join("layout");
            let error = export.run(&Destination::Layout { dir: dir.clone(), tag: "tag".into() }).unwrap_err();
            assert!(message(&error).contains("free some space"), "{error:?}");
            assert_eq!((names(&dir.join("blobs/sha256")), dir.join("index.json").exists()), (vec![], false));
            fs::remove_dir_all(dir).unwrap();
        }
    });
}

#[test]
fn a_killed_export_leaves_nothing() {
    let fixture = Fixture::new();
    let layer = fixture.layer("layer", |tree| fs::write(tree.join("file"), vec![1; 300_000]).unwrap());
    let place = fixture.path().join("place");
    fs::create_dir(&place).unwrap();
    let export = |image: &str| {
        let mut export = layered();
        export.current_dir(&place).args(["export", image, "--layer"]).arg(layer.path());
        export
    };
    // Everything of an archive is written when it is synced, and the first blob of a layout.
    done(&mut export("oci:layout:other"));
    for image in ["oci-archive:archive:tag", "oci:layout:tag"] {
        let before = (names(&place), names(&place.join("layout/blobs/sha256")), names(&place.join("layout")));
        let program = export(image);
        let mut traced = Command::new(find("strace"));
        traced.current_dir(&place).args(["-f", "-o", "/dev/null", "-e", "trace=fsync"]);
        traced.args(["-e", "inject=fsync:signal=KILL:when=1"]).arg(program.get_program()).args(program.get_args());
        let status = traced.stdin(Stdio::null()).status().unwrap();
        assert!(!status.success(), "{image}");
        let after = (names(&place), names(&place.join("layout/blobs/sha256")), names(&place.join("layout")));
        assert_eq!(after, before, "{image}");
    }
    done(&mut export("oci-archive:archive:tag"));
    assert_eq!(names(&place).len(), 2);
}
