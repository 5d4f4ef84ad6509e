//! Tests of whole captures without root; `integration-tests` compares captured layers with the
//! kernel's overlay.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::process::Command;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, XattrFlags, getxattr, mknodat, setxattr};

use super::*;
use crate::store::gc::Collector;
use crate::tree::locked_dir::LockedDir;

/// A base with a directory, and an upper in which the directory was removed and made again.
struct Fixture {
    dir: tempfile::TempDir,
    base: PathBuf,
    upper: PathBuf,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (base, upper) = (dir.path().join("base"), dir.path().join("upper"));
        fill(&base, &upper);
        fs::create_dir(dir.path().join("store")).unwrap();
        Self { dir, base, upper }
    }

    fn layer(&self) -> Layer {
        Layer::at(self.dir.path().join("store/new"))
    }

    fn capture(&self) -> Capture<'static> {
        Capture::new([&self.base]).xattrs(XattrNamespace::User)
    }

    fn try_at(&self, upper: &Path) -> Result<Captured> {
        self.capture().into_layer(upper, &self.layer(), meta())
    }
}

fn meta() -> Meta {
    let long_ago = UNIX_EPOCH + Duration::from_secs(1);
    Meta { uid: 7, parent_hashes: vec!["zlib".into()], ..Meta::new("debian", long_ago) }
}

fn fill(base: &Path, upper: &Path) {
    for directory in ["usr/include/GL/sub", "usr/include/GL/file-above", "usr/bin"] {
        fs::create_dir_all(base.join(directory)).unwrap();
    }
    for file in ["usr/include/GL/gl.h", "usr/include/GL/old.h", "usr/include/GL/sub/deep.h", "usr/include/GL/dir-above"]
    {
        fs::write(base.join(file), "base").unwrap();
    }
    for directory in ["usr/include/GL/sub", "usr/include/GL/dir-above", "usr/bin"] {
        fs::create_dir_all(upper.join(directory)).unwrap();
    }
    for file in ["usr/include/GL/gl.h", "usr/include/GL/new.h", "usr/include/GL/file-above", "usr/bin/tool"] {
        fs::write(upper.join(file), "upper").unwrap();
    }
    symlink("tool", upper.join("usr/bin/link")).unwrap();
    mark(&upper.join("usr/include/GL"), "opaque", b"y");
    mark(&upper.join("usr/include/GL/dir-above"), "opaque", b"y");
    for path in ["usr", "usr/include", "usr/bin", "usr/bin/tool"] {
        mark(&upper.join(path), "origin", b"a handle");
    }
    mark(upper, "uuid", b"sixteen bytes...");
    mark(&upper.join("usr/bin"), "impure", b"y");
    mark(&upper.join("usr/bin/tool"), "overlay.origin", b"of an overlay inside");
    setxattr(upper.join("usr/bin/tool"), "user.comment", b"kept", XattrFlags::empty()).unwrap();
    whiteout(&upper.join("usr/bin/gone"));
    age(&upper.join("usr/include/GL"), 1000);
}

fn mark(path: &Path, name: &str, value: &[u8]) {
    setxattr(path, format!("user.overlay.{name}"), value, XattrFlags::empty()).unwrap();
}

fn whiteout(path: &Path) {
    mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
}

fn age(path: &Path, seconds: u64) {
    fs::File::open(path).unwrap().set_modified(UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
}

/// Lists every path below `dir`, followed by its overlay xattrs. A whiteout begins with `-`.
fn tree(dir: &Path) -> Vec<String> {
    let entries = walkdir::WalkDir::new(dir).min_depth(1).sort_by_file_name();
    let show = |entry: walkdir::DirEntry| {
        let metadata = entry.path().symlink_metadata().unwrap();
        let whiteout = metadata.rdev() == 0 && FileType::from_raw_mode(metadata.mode()) == FileType::CharacterDevice;
        let mut line =
            format!("{}{}", if whiteout { "-" } else { "" }, entry.path().strip_prefix(dir).unwrap().display());
        for name in ["opaque", "origin", "impure", "uuid", "whiteout", "overlay.origin"] {
            let mut value = [0; 64];
            if let Ok(length) = rustix::fs::lgetxattr(entry.path(), format!("user.overlay.{name}"), &mut value) {
                line += &format!(" {name}={}", value[..length].escape_ascii());
            }
        }
        line
    };
    entries.into_iter().map(|entry| show(entry.unwrap())).collect()
}

const CAPTURED: [&str; 14] = [
    "usr",
    "usr/bin origin=",
    "-usr/bin/gone",
    "usr/bin/link",
    "usr/bin/tool overlay.origin=of an overlay inside",
    "usr/include",
    "usr/include/GL origin=",
    "usr/include/GL/dir-above",
    "usr/include/GL/file-above",
    "usr/include/GL/gl.h",
    "usr/include/GL/new.h",
    "-usr/include/GL/old.h",
    "usr/include/GL/sub origin=",
    "-usr/include/GL/sub/deep.h",
];

#[test]
fn an_upper_becomes_a_layer() {
    let fixture = Fixture::new();
    let layer = fixture.layer();
    fs::create_dir(layer.path()).unwrap();
    layer.write_sidecar("package", "mesa").unwrap();
    let before = SystemTime::now() - Duration::from_secs(1);
    let done = fixture.try_at(&fixture.upper).unwrap();
    assert_eq!(tree(&layer.fs()), CAPTURED);
    assert_eq!(getxattr(layer.fs(), "user.overlay.uuid", &mut [0_u8; 64]), Err(Errno::NODATA));
    assert!(!fixture.upper.exists());
    let mut names: Vec<_> = fs::read_dir(layer.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["fs", "layer.json", "package.json"]);
    let modified = fs::metadata(layer.fs().join("usr/include/GL")).unwrap().modified().unwrap();
    assert_eq!(modified, UNIX_EPOCH + Duration::from_secs(1000));

    assert_eq!(done, Captured { size: layer.measure().unwrap(), taken_out: 0, opaques: 2, whiteouts: 2 });
    let written = layer.meta().unwrap().unwrap();
    assert!(written.created_at > before);
    assert_eq!(written, Meta { disk_usage: done.size.bytes, created_at: written.created_at, ..meta() });
}

#[test]
fn a_sidecar_replaces_no_file() {
    for kind in ["file", "directory"] {
        let fixture = Fixture::new();
        let layer = fixture.layer();
        let taken = layer.path().join("run.json");
        fs::create_dir(layer.path()).unwrap();
        match kind {
            "file" => fs::write(&taken, "of the caller").unwrap(),
            _ => fs::create_dir(&taken).unwrap(),
        }
        let capture = fixture.capture().made([]).sidecar("run", 1.into()).sidecar("free", 2.into());
        capture.into_layer(&fixture.upper, &layer, meta()).unwrap();
        let mut names: Vec<_> = fs::read_dir(layer.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["free.json", "fs", "layer.json", "run.json"], "{kind}");
        assert!(taken.is_dir() || fs::read_to_string(&taken).unwrap() == "of the caller", "{kind}");
    }
}

#[test]
fn xattr_whiteouts_become_devices() {
    let fixture = Fixture::new();
    fs::write(fixture.upper.join("usr/bin/attribute"), "").unwrap();
    mark(&fixture.upper.join("usr/bin/attribute"), "whiteout", b"");
    mark(&fixture.upper.join("usr/bin"), "opaque", b"x");
    fixture.try_at(&fixture.upper).unwrap();
    let tree = tree(&fixture.layer().fs());
    assert!(tree.contains(&"-usr/bin/attribute".to_string()), "{tree:?}");
    assert!(tree.contains(&"usr/bin origin=".to_string()), "{tree:?}");
}

#[test]
fn the_tree_may_already_be_in_its_place() {
    let fixture = Fixture::new();
    fs::create_dir(fixture.layer().path()).unwrap();
    fs::rename(&fixture.upper, fixture.layer().fs()).unwrap();
    fixture.try_at(&fixture.layer().fs()).unwrap();
    assert_eq!(tree(&fixture.layer().fs()), CAPTURED);
    assert!(fixture.layer().meta().unwrap().is_some());
}

#[test]
fn times_are_clamped_on_request() {
    let fixture = Fixture::new();
    age(&fixture.upper.join("usr/include/GL/gl.h"), 500);
    let latest = UNIX_EPOCH + Duration::from_secs(900);
    fixture.capture().clamp_times(latest).into_layer(&fixture.upper, &fixture.layer(), meta()).unwrap();
    for entry in walkdir::WalkDir::new(fixture.layer().fs()) {
        let entry = entry.unwrap();
        let expected = if entry.path().ends_with("gl.h") { 500 } else { 900 };
        assert_eq!(entry.metadata().unwrap().mtime(), expected, "{}", entry.path().display());
    }
}

#[test]
fn times_before_1970_are_converted() {
    for (seconds, nanoseconds) in [(0_i64, 0), (5, 1), (-5, 0), (-1, 999_999_999)] {
        let time = match seconds {
            0.. => UNIX_EPOCH + Duration::new(seconds as u64, nanoseconds),
            _ => UNIX_EPOCH - Duration::from_secs(seconds.unsigned_abs()) + Duration::new(0, nanoseconds),
        };
        let timespec = timespec(time);
        assert_eq!((timespec.tv_sec, timespec.tv_nsec), (seconds, nanoseconds.into()));
    }
}

#[test]
fn a_refused_upper_is_unchanged() {
    let fixture = Fixture::new();
    let (upper, layer) = (&fixture.upper, fixture.layer());
    let before = tree(upper);
    fs::create_dir_all(layer.fs()).unwrap();
    assert!(matches!(fixture.try_at(upper), Err(Error::TreeInTheWay { path }) if path == layer.fs()));
    fs::remove_dir(layer.fs()).unwrap();
    layer.write_meta(&meta()).unwrap();
    assert!(matches!(fixture.try_at(upper), Err(Error::AlreadyCaptured { layer: named }) if named == layer.path()));
    fs::remove_dir_all(layer.path()).unwrap();

    assert!(matches!(fixture.try_at(&fixture.base), Err(Error::UpperIsLower { upper }) if upper == fixture.base));
    let link = fixture.dir.path().join("link");
    symlink(upper, &link).unwrap();
    for path in [&link, &link.join(""), &upper.join("usr/bin/tool"), Path::new("/"), Path::new("")] {
        assert!(matches!(fixture.try_at(path), Err(Error::NotADirectory { .. })), "{}", path.display());
    }
    fs::write(layer.path(), "").unwrap();
    assert!(matches!(fixture.try_at(upper), Err(Error::NotADirectory { path, .. }) if path == layer.path()));
    fs::remove_file(layer.path()).unwrap();
    refuses_what_is_not_its_own(&fixture);
    assert_eq!(tree(upper), before);
    // Nothing is left where the layer would have been.
    assert_eq!(fs::read_dir(fixture.dir.path().join("store")).unwrap().count(), 0);

    for (path, name) in [("usr/bin", "redirect"), ("usr/bin/tool", "metacopy")] {
        mark(&upper.join(path), name, b"");
        let error = fixture.try_at(upper).unwrap_err();
        assert!(matches!(&error, Error::Unmergeable { path: named, .. } if *named == upper.join(path)), "{error:?}");
        rustix::fs::removexattr(upper.join(path), format!("user.overlay.{name}")).unwrap();
    }
    fixture.try_at(upper).unwrap();
    assert_eq!(tree(&layer.fs()), CAPTURED);
}

/// Checks that a capture refuses directories of layers and stores, and destinations inside trees.
fn refuses_what_is_not_its_own(fixture: &Fixture) {
    let (upper, path) = (&fixture.upper, |name: &str| fixture.dir.path().join(name));
    // Two layers that are not lowers: one is complete, the other one is held.
    let whole = Layer::at(path("other/whole"));
    fs::create_dir_all(whole.fs().join("sub")).unwrap();
    whole.write_meta(&meta()).unwrap();
    let used = Layer::at(path("other/used"));
    fs::create_dir_all(used.fs().join("sub")).unwrap();
    let _hold = crate::store::hold::Hold::of([used.path()]).unwrap();
    let uppers = [
        (whole.fs(), &whole),
        (whole.fs().join("sub"), &whole),
        (used.fs(), &used),
        (used.fs().join("sub"), &used),
        (whole.path().to_path_buf(), &whole),
    ];
    for (upper, layer) in uppers {
        let refused = fixture.try_at(&upper);
        assert!(
            matches!(&refused, Err(Error::UpperIsLayers { layer: named, .. }) if named == layer.path()),
            "{refused:?}"
        );
    }
    let refused = fixture.try_at(&path("other"));
    assert!(matches!(&refused, Err(Error::UpperIsLayers { .. })), "a store: {refused:?}");
    for upper in [fixture.base.join("usr/bin"), fixture.dir.path().to_path_buf()] {
        let refused = fixture.try_at(&upper);
        assert!(matches!(&refused, Err(Error::UpperOverlapsLower { .. })), "{}: {refused:?}", upper.display());
    }
    let destinations = [
        fixture.base.join("new"),
        fixture.base.clone(),
        fixture.base.join("usr/bin/new"),
        upper.join("new"),
        upper.join("usr/bin"),
        upper.clone(),
        whole.fs().join("new"),
        whole.fs(),
        used.fs().join("new"),
    ];
    for destination in destinations {
        let refused = fixture.capture().into_layer(upper, &Layer::at(&destination), meta());
        assert!(matches!(&refused, Err(Error::LayerInsideTree { .. })), "{}: {refused:?}", destination.display());
    }
    for root in ["/", "/..", "/."] {
        let refused = fixture.capture().into_layer(upper, &Layer::at(root), meta());
        assert!(matches!(&refused, Err(Error::RootDirectory { .. })), "{root}: {refused:?}");
    }
    let other = UpperId::of(fixture.dir.path()).unwrap();
    let refused = fixture.capture().of_upper(other).into_layer(upper, &fixture.layer(), meta());
    assert!(matches!(&refused, Err(Error::AnotherUpper { upper: named }) if named == upper), "{refused:?}");
}

#[test]
fn recorded_files_are_removed_without_a_report() {
    let fixture = Fixture::new();
    let upper = &fixture.upper;
    // A command may make files with the names of a layer's files.
    fs::create_dir_all(upper.join("fs/proc")).unwrap();
    fs::write(upper.join("layer.json"), "{}").unwrap();
    let mut record = RunRecord { root_mode: Some(0o751), ..RunRecord::default() };
    record.add(Made::look(upper, ["/fs", "/fs/proc"]).unwrap());
    record.write(upper, XattrNamespace::User).unwrap();
    let captured = fixture.try_at(upper).unwrap();
    assert_eq!(captured.taken_out, 2);
    let layer = fixture.layer();
    assert!(layer.fs().join("layer.json").exists() && !layer.fs().join("fs").exists());
    assert_eq!(RunRecord::read(layer.fs(), XattrNamespace::User).unwrap(), None);
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!((mode(&layer.fs()), mode(layer.path())), (0o751, 0o700));
}

#[test]
fn files_that_could_not_be_recorded_must_be_given() {
    let fixture = Fixture::new();
    RunRecord { made: None, root_mode: None }.write(&fixture.upper, XattrNamespace::User).unwrap();
    assert!(matches!(fixture.try_at(&fixture.upper), Err(Error::MadeUnknown { upper }) if upper == fixture.upper));
    fixture.capture().made([]).into_layer(&fixture.upper, &fixture.layer(), meta()).unwrap();
}

#[test]
fn a_missing_lower_is_an_error_only_where_it_is_needed() {
    let fixture = Fixture::new();
    fs::remove_dir_all(&fixture.base).unwrap();
    let error = fixture.try_at(&fixture.upper).unwrap_err();
    let named = fixture.upper.join("usr/include/GL");
    assert!(
        matches!(&error, Error::LowerMissing { path, lower } if *path == named && *lower == fixture.base),
        "{error}"
    );
    assert!(!fixture.layer().path().exists());
    for directory in ["usr/include/GL", "usr/include/GL/dir-above"] {
        rustix::fs::removexattr(fixture.upper.join(directory), "user.overlay.opaque").unwrap();
    }
    fixture.try_at(&fixture.upper).unwrap();
    assert!(fixture.layer().fs().join("usr/bin/tool").exists());
}

#[test]
fn the_directory_of_a_layer_is_closed_unless_access_opens_it() {
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    for (before, access, expected) in [
        (None, None, 0o700),
        (None, Some(Access::mode(0o750)), 0o750),
        (Some(0o755), None, 0o755),
        (Some(0o755), Some(Access::default()), 0o700),
    ] {
        let fixture = Fixture::new();
        let layer = fixture.layer();
        if let Some(mode) = before {
            fs::create_dir(layer.path()).unwrap();
            fs::set_permissions(layer.path(), std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        }
        let mut capture = fixture.capture();
        if let Some(access) = access {
            capture = capture.access(access);
        }
        capture.into_layer(&fixture.upper, &layer, meta()).unwrap();
        assert_eq!(mode(layer.path()), expected, "{before:?} {access:?}");
    }
}

#[test]
fn a_second_capture_fails_and_leaves_its_upper_unchanged() {
    let fixture = Fixture::new();
    let other = fixture.dir.path().join("other");
    fill(&fixture.dir.path().join("another-base"), &other);
    let before = tree(&other);
    let steps = std::sync::Mutex::new(Vec::new());
    let watch = |step| {
        steps.lock().unwrap().push(step);
        let refused = fixture.try_at(&other);
        assert!(matches!(refused, Err(Error::AlreadyCaptured { .. })), "{step:?}: {refused:?}");
    };
    fixture.capture().progress(&watch).into_layer(&fixture.upper, &fixture.layer(), meta()).unwrap();
    assert_eq!(steps.into_inner().unwrap(), Step::ALL);
    assert!(matches!(fixture.try_at(&other), Err(Error::AlreadyCaptured { .. })));
    assert_eq!(tree(&other), before);
}

#[test]
fn a_directory_that_a_hold_has_locked_does_not_become_a_layer() {
    let fixture = Fixture::new();
    let (upper, layer) = (&fixture.upper, fixture.layer());
    fs::create_dir(layer.path()).unwrap();
    let before = tree(upper);
    let lock = LockedDir::try_lock_shared(layer.path()).unwrap().unwrap();
    let refused = fixture.try_at(upper);
    assert!(matches!(&refused, Err(Error::DestinationLocked { layer: named }) if named == layer.path()), "{refused:?}");
    layer.write_meta(&meta()).unwrap();
    let refused = fixture.try_at(upper);
    assert!(matches!(&refused, Err(Error::AlreadyCaptured { layer: named }) if named == layer.path()), "{refused:?}");
    assert_eq!(tree(upper), before);
    fs::remove_file(layer.meta_path()).unwrap();
    drop(lock);
    fixture.try_at(upper).unwrap();
}

#[test]
fn a_collector_spares_all_lowers_of_a_capture_that_has_a_hold_on_some() {
    let fixture = Fixture::new();
    let store = fixture.dir.path().join("lowers");
    let lowers = ["held", "other"].map(|name| Layer::at(store.join(name)));
    for lower in &lowers {
        fs::create_dir_all(lower.fs()).unwrap();
        lower.write_meta(&Meta { disk_usage: 10, ..meta() }).unwrap();
    }
    let hold = Hold::of([lowers[0].path()]).unwrap();
    let collect = || Collector::new().max_bytes(0).collect(&store).unwrap().layers.len();
    let watch = |step| assert_eq!(collect(), 0, "{step:?}");
    let trees = lowers.iter().map(Layer::fs).chain([fixture.base.clone()]);
    let capture = Capture::new(trees).xattrs(XattrNamespace::User).held(&hold).progress(&watch);
    capture.into_layer(&fixture.upper, &fixture.layer(), meta()).unwrap();
    hold.release().unwrap();
    assert_eq!(collect(), 2, "nothing holds them any more");
}

#[test]
fn a_failed_capture_gives_the_upper_back() {
    let fixture = Fixture::new();
    let layer = fixture.layer();
    type Disturb = fn(&Fixture);
    let table: [(Step, Disturb, Disturb); 2] = [
        (
            Step::Move,
            |fixture| fs::create_dir(fixture.layer().fs()).unwrap(),
            |fixture| fs::remove_dir(fixture.layer().fs()).unwrap(),
        ),
        (
            Step::Publish,
            |fixture| fs::create_dir_all(fixture.layer().meta_path().join("x")).unwrap(),
            |fixture| fs::remove_dir_all(fixture.layer().meta_path()).unwrap(),
        ),
    ];
    for (at, disturb, tidy) in table {
        let watch = |step| {
            if step == at {
                disturb(&fixture)
            }
        };
        let result = fixture.capture().progress(&watch).into_layer(&fixture.upper, &layer, meta());
        assert!(matches!(result, Err(Error::Io { .. })), "{at:?}: {result:?}");
        tidy(&fixture);
        assert_eq!(fs::read_dir(layer.path()).unwrap().count(), 0, "{at:?}");
    }
    fixture.try_at(&fixture.upper).unwrap();
    assert_eq!(tree(&layer.fs()), CAPTURED);
}

const DIES_IN: &str = "LAYER_TEST_DIES_IN";
const DIES_AT: &str = "LAYER_TEST_DIES_AT";

/// Runs the test below in a separate process, which exits before the step with this number.
fn die(fixture: &Fixture, step: usize) {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "capture::tests::a_process_that_dies_at_any_step_leaves_a_layer_or_none"])
        .env(DIES_IN, fixture.dir.path())
        .env(DIES_AT, step.to_string())
        .output()
        .unwrap();
    assert_eq!(status.status.code(), Some(77), "{}", String::from_utf8_lossy(&status.stdout));
}

#[test]
fn a_process_that_dies_at_any_step_leaves_a_layer_or_none() {
    if let Some(dir) = std::env::var_os(DIES_IN).map(PathBuf::from) {
        let at = Step::ALL[std::env::var(DIES_AT).unwrap().parse::<usize>().unwrap()];
        let capture = Capture::new([dir.join("base")]).xattrs(XattrNamespace::User);
        let watch = |step| {
            if step == at {
                // `exit` drops no value.
                std::process::exit(77);
            }
        };
        let layer = Layer::at(dir.join("store/new"));
        panic!("{:?}", capture.progress(&watch).into_layer(dir.join("upper"), &layer, meta()));
    }
    for (number, step) in Step::ALL.into_iter().enumerate() {
        for next in [Next::Same, Next::Moved, Next::Other, Next::Collector] {
            let fixture = Fixture::new();
            let layer = fixture.layer();
            let mut same = fixture.capture();
            if number % 2 == 0 {
                // In the other cases, the capture recognises its layer by the path of the upper.
                same = same.of_upper(UpperId::of(&fixture.upper).unwrap());
            }
            die(&fixture, number);
            assert_eq!(layer.meta().unwrap().is_some(), step == Step::Finish, "{step:?}");
            let moved = step > Step::Move;
            assert_eq!((layer.fs().exists(), fixture.upper.exists()), (moved, !moved), "{step:?}");
            match next {
                Next::Same => {
                    let captured = same.into_layer(&fixture.upper, &layer, meta()).unwrap();
                    assert_eq!(captured.size, layer.measure().unwrap(), "{step:?}");
                }
                Next::Moved if step == Step::Finish => {
                    assert!(matches!(fixture.try_at(&layer.fs()), Err(Error::AlreadyCaptured { .. })));
                }
                Next::Moved if moved => drop(fixture.try_at(&layer.fs()).unwrap()),
                // The test moves the upper to where a capture would have moved it.
                Next::Moved => {
                    fs::create_dir_all(layer.path()).unwrap();
                    fs::rename(&fixture.upper, layer.fs()).unwrap();
                    fixture.try_at(&layer.fs()).unwrap();
                }
                Next::Other => {
                    let other = fixture.dir.path().join("other");
                    fill(&fixture.dir.path().join("another-base"), &other);
                    let before = tree(&other);
                    let result = fixture.try_at(&other);
                    if moved {
                        assert!(matches!(result, Err(Error::AlreadyCaptured { .. })), "{step:?}: {result:?}");
                        assert_eq!(tree(&other), before);
                    } else {
                        result.unwrap();
                        assert!(fixture.upper.exists());
                    }
                }
                Next::Collector => {
                    crate::store::gc::Collector::new().collect(fixture.dir.path().join("store")).unwrap();
                    assert_eq!(
                        layer.path().exists(),
                        moved,
                        "{step:?}: nothing is left of one that had not moved its tree"
                    );
                    same.into_layer(&fixture.upper, &layer, meta()).unwrap();
                }
            }
            assert_eq!(tree(&layer.fs()), CAPTURED, "{step:?}, {next:?}");
            let names: Vec<_> = fs::read_dir(layer.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(names.len(), 2, "{step:?}, {next:?}: {names:?}");
            assert!(layer.meta().unwrap().is_some());
        }
    }
}

/// The action after a capture that was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// The same capture again.
    Same,
    /// A capture of the tree in its final place.
    Moved,
    /// A capture of another upper.
    Other,
    /// A collector, then the same capture again.
    Collector,
}

#[test]
fn the_recorded_size_is_the_allocated_size() {
    let fixture = Fixture::new();
    let upper = |path: &str| fixture.upper.join(path);
    fs::File::create(upper("usr/sparse")).unwrap().set_len(300 << 30).unwrap();
    fs::write(upper("usr/large"), vec![1; 1 << 20]).unwrap();
    // One file with attributes to remove has names in many directories, so that several threads
    // process it.
    mark(&upper("usr/large"), "origin", &[b'x'; 2000]);
    for n in 0..40 {
        let dir = upper(&format!("usr/links/{n}"));
        fs::create_dir_all(&dir).unwrap();
        fs::hard_link(upper("usr/large"), dir.join("large")).unwrap();
        fs::write(dir.join("small"), "x").unwrap();
        symlink("long".repeat(100), dir.join("link")).unwrap();
        // These attributes take a block until they are removed.
        mark(&dir, "origin", &[b'x'; 2000]);
        mark(&dir.join("small"), "origin", &[b'x'; 2000]);
    }
    // The upper's directory must grow to hold the whiteouts for these names.
    for n in 0..1000 {
        fs::write(fixture.base.join(format!("usr/include/GL/{n:0100}")), "").unwrap();
    }
    let capture = fixture.capture().threads(NonZeroUsize::new(4).unwrap());
    let captured = capture.into_layer(&fixture.upper, &fixture.layer(), meta()).unwrap();
    let size = fixture.layer().measure().unwrap();
    assert_eq!(captured.size, size);
    assert!(size.bytes > (1 << 20) && size.bytes < (4 << 20), "{size:?}");
    assert_eq!(fixture.layer().meta().unwrap().unwrap().disk_usage, size.bytes);
}
