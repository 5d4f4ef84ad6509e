//! Captured layers in stacks above and below layers that did not exist when they were written. The
//! kernel's own overlay is the oracle.
//!
//! This file has the named cases, with plain overlays and with runs. `property` makes random uppers
//! and siblings; `power` cuts the power at every step. `layered commit` is tested in module
//! `commit`.

mod power;
mod property;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use container::{Mount as TemplateMount, Network};
use integration_tests::stack::{Dir, Mount, require_root};
use integration_tests::tree::Snapshot;
use integration_tests::{Fixture, shell, stderr, stdout};
use layer::{Capture, Captured, Error, Layer, Meta};
use runner::{Report, xattrs_of_process};
use rustix::fs::{XattrFlags, lsetxattr};
use tempfile::TempDir;

/// Lowers on disk, and an upper that is written over them.
struct Stack {
    dir: TempDir,
    /// The topmost lower first, the base last.
    lowers: Vec<PathBuf>,
}

impl Stack {
    fn new(lowers: &[Dir]) -> Self {
        require_root();
        let dir = tempfile::tempdir().unwrap();
        let make = |(index, lower): (usize, &Dir)| {
            let path = dir.path().join(format!("lower{index}"));
            lower.make(&path).unwrap();
            path
        };
        let lowers = lowers.iter().enumerate().map(make).collect();
        Self { dir, lowers }
    }

    /// Mounts an overlay of the lowers for writing. Its upper is [`upper`](Self::upper).
    fn write(&self) -> Mount {
        Mount::writable(&self.lowers, &self.dir.path().join("session")).unwrap()
    }

    /// Mounts the overlay again that was [written](Self::write) to before.
    fn write_again(&self) -> Mount {
        // The kernel refuses the work directory of a volatile mount.
        layer::remove_tree(self.dir.path().join("session/work")).unwrap();
        self.write()
    }

    /// The path of the upper.
    fn upper(&self) -> PathBuf {
        self.dir.path().join("session/upper")
    }

    fn layer(&self) -> Layer {
        Layer::at(self.dir.path().join("layer"))
    }

    fn capture(&self) -> Captured {
        Capture::new(&self.lowers).xattrs(xattrs_of_process()).into_layer(self.upper(), &self.layer(), meta()).unwrap()
    }

    /// Returns the lowers with `above` on top of them, topmost first.
    fn with(&self, above: &[&Path]) -> Vec<PathBuf> {
        above.iter().map(|path| path.to_path_buf()).chain(self.lowers.iter().cloned()).collect()
    }
}

fn meta() -> Meta {
    Meta::new("base", UNIX_EPOCH)
}

/// Returns the paths of all entries below `dir`.
fn names(dir: &Path) -> Vec<String> {
    let entries = walkdir::WalkDir::new(dir).min_depth(1).sort_by_file_name();
    entries.into_iter().map(|entry| entry.unwrap().path().strip_prefix(dir).unwrap().display().to_string()).collect()
}

/// This case broke a real build farm: a package removes and recreates `/usr/include/GL`, and must
/// not hide the header that another package puts there.
#[test]
fn a_directory_that_is_made_again_hides_nothing_of_a_sibling() {
    let include = |gl: Dir| Dir::new().with("usr", Dir::new().with("include", Dir::new().with("GL", gl)));
    let stack = Stack::new(&[include(
        Dir::new().file("gl.h", "mesa").file("glx.h", "mesa").with("internal", Dir::new().file("a.h", "")),
    )]);
    let mount = stack.write();
    let gl = mount.path().join("usr/include/GL");
    fs::remove_dir_all(&gl).unwrap();
    fs::create_dir(&gl).unwrap();
    fs::write(gl.join("gl.h"), "nvidia").unwrap();
    let written = Snapshot::of(&mount).unwrap();
    drop(mount);
    assert_eq!(stack.capture(), captured(&stack, 1, 2));

    let sibling = stack.dir.path().join("sibling");
    include(Dir::new().file("glu.h", "glu").file("gl.h", "glu")).make(&sibling).unwrap();
    let layer = stack.layer().fs();
    let list = |stacked: &[PathBuf]| {
        let mount = Mount::read_only(stacked).unwrap();
        let gl = mount.path().join("usr/include/GL");
        let entries = fs::read_dir(&gl).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        entries.map(|name| (name.clone(), fs::read_to_string(gl.join(&name)).unwrap())).collect::<BTreeMap<_, _>>()
    };
    let expected =
        |files: &[(&str, &str)]| files.iter().map(|&(name, content)| (name.into(), content.into())).collect();
    assert_eq!(list(&stack.with(&[&layer, &sibling])), expected(&[("gl.h", "nvidia"), ("glu.h", "glu")]));
    assert_eq!(list(&stack.with(&[&sibling, &layer])), expected(&[("gl.h", "glu"), ("glu.h", "glu")]));
    // Over its own lowers, the layer shows what the command saw. Over an empty layer, it lists no
    // name that cannot be looked up.
    let again = Snapshot::of(Mount::read_only(&stack.with(&[&layer])).unwrap()).unwrap();
    assert_eq!(written.diff(&again), "");
    let empty = stack.dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    assert_eq!(list(&[layer, empty]), expected(&[("gl.h", "nvidia")]));
}

fn captured(stack: &Stack, opaques: u64, whiteouts: u64) -> Captured {
    let mut captured = Captured::default();
    captured.size = stack.layer().measure().unwrap();
    (captured.opaques, captured.whiteouts) = (opaques, whiteouts);
    captured
}

#[test]
fn a_deleted_file_stays_deleted_in_later_stacks() {
    let base = Dir::new().file("gone", "").file("kept", "").with("dir", Dir::new().file("gone", "").file("kept", ""));
    let stack = Stack::new(&[Dir::new().with("tree", Dir::new().file("x", "")), base]);
    let mount = stack.write();
    fs::remove_file(mount.path().join("gone")).unwrap();
    fs::remove_file(mount.path().join("dir/gone")).unwrap();
    fs::remove_dir_all(mount.path().join("tree")).unwrap();
    drop(mount);
    assert_eq!(stack.capture(), captured(&stack, 0, 0));
    let above = stack.dir.path().join("above");
    Dir::new().file("new", "").make(&above).unwrap();
    let seen = Snapshot::of(Mount::read_only(&stack.with(&[&above, &stack.layer().fs()])).unwrap()).unwrap();
    let seen: Vec<_> = seen.entries.keys().map(|path| path.display().to_string()).collect();
    assert_eq!(seen, ["", "dir", "dir/kept", "kept", "new"]);
}

#[test]
fn overlay_xattrs_are_removed_and_everything_else_is_unchanged() {
    let stack = Stack::new(&[Dir::new().with("dir", Dir::new().file("copied-up", "old").file("other", ""))]);
    let mount = stack.write();
    let path = |name: &str| mount.path().join(name);
    fs::write(path("dir/copied-up"), "new").unwrap();
    fs::write(path("one"), "two names").unwrap();
    fs::hard_link(path("one"), path("dir/two")).unwrap();
    let sparse = fs::File::create(path("sparse")).unwrap();
    sparse.set_len(1 << 26).unwrap();
    symlink("/nowhere", path("link")).unwrap();
    // The xattrs are CAP_NET_BIND_SERVICE and an ACL.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    lsetxattr(path("one"), "security.capability", &capability, XattrFlags::empty()).unwrap();
    let acl = integration_tests::stack::acl(1234, 6);
    lsetxattr(path("dir"), "system.posix_acl_access", &acl, XattrFlags::empty()).unwrap();
    let written = Snapshot::of(&mount).unwrap();
    drop(mount);
    let has_overlay_xattrs = |snapshot: &Snapshot| {
        let mut names = snapshot.entries.values().flat_map(|entry| entry.xattrs.keys());
        names.any(|name| name.to_string_lossy().starts_with("trusted.overlay."))
    };
    assert!(
        has_overlay_xattrs(&Snapshot::of_path(&stack.upper()).unwrap()),
        "the upper has no overlay xattrs to remove"
    );
    let inode = fs::metadata(stack.upper().join("sparse")).unwrap().ino();
    stack.capture();
    let layer = Snapshot::of_path(&stack.layer().fs()).unwrap();
    assert!(!has_overlay_xattrs(&layer), "{layer:#?}");
    let sparse = fs::metadata(stack.layer().fs().join("sparse")).unwrap();
    assert_eq!((sparse.ino(), sparse.blocks()), (inode, 0));
    assert_eq!(layer.entries[Path::new("one")].group.as_deref(), Some(Path::new("dir/two")));
    let again = Snapshot::of(Mount::read_only(&stack.with(&[&stack.layer().fs()])).unwrap()).unwrap();
    assert_eq!(written.diff(&again), "");
}

#[test]
fn a_hostile_upper_leads_nowhere() {
    let stack = Stack::new(&[Dir::new().with("a", Dir::new().file("secret", "")).with("b", Dir::new())]);
    let outside = stack.dir.path().join("outside");
    Dir::new().file("secret", "secret").xattr("trusted.overlay.opaque", b"y").make(&outside).unwrap();
    let before = Snapshot::of_path(&outside).unwrap();
    let mount = stack.write();
    fs::remove_dir_all(mount.path().join("a")).unwrap();
    fs::remove_dir_all(mount.path().join("b")).unwrap();
    fs::create_dir(mount.path().join("b")).unwrap();
    for (name, target) in [("a", &*outside), ("b/up", Path::new("../../../outside")), ("b/self", Path::new("."))] {
        symlink(target, mount.path().join(name)).unwrap();
    }
    drop(mount);
    // The list of files that the run made points behind the link.
    let made = layer::Made::look(&outside, ["/secret"]).unwrap();
    let moved: layer::Made = serde_json::from_value({
        let mut value = serde_json::to_value(&made[0]).unwrap();
        value["path"] = "/a/secret".into();
        value
    })
    .unwrap();
    let capture = Capture::new(&stack.lowers).xattrs(xattrs_of_process()).made([moved]).clamp_times(UNIX_EPOCH);
    assert_eq!(capture.into_layer(stack.upper(), &stack.layer(), meta()).unwrap().taken_out, 0);
    assert_eq!(before.diff(&Snapshot::of_path(&outside).unwrap()), "");
    assert_eq!(names(&stack.layer().fs()), ["a", "b", "b/self", "b/up"]);
}

#[test]
fn a_tree_of_any_depth_is_captured() {
    let stack = Stack::new(&[Dir::new()]);
    let mount = stack.write();
    let mut deepest =
        rustix::fs::openat(&mount, c".", rustix::fs::OFlags::DIRECTORY, rustix::fs::Mode::empty()).unwrap();
    for _ in 0..1200 {
        rustix::fs::mkdirat(&deepest, c"directory", rustix::fs::Mode::RWXU).unwrap();
        deepest = rustix::fs::openat(&deepest, c"directory", rustix::fs::OFlags::DIRECTORY, rustix::fs::Mode::empty())
            .unwrap();
    }
    drop((deepest, mount));
    assert_eq!(stack.capture().size.entries, 1200);
    layer::remove_tree(stack.layer().path()).unwrap();
}

#[test]
fn a_layer_on_another_file_system_is_refused_before_any_change() {
    let stack = Stack::new(&[Dir::new().file("gone", "")]);
    let mount = stack.write();
    fs::remove_file(mount.path().join("gone")).unwrap();
    drop(mount);
    let before = Snapshot::of_path(&stack.upper()).unwrap();
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    let layer = Layer::at(elsewhere.path().join("layer"));
    let refused =
        Capture::new(&stack.lowers).xattrs(xattrs_of_process()).into_layer(stack.upper(), &layer, meta()).unwrap_err();
    assert!(matches!(&refused, Error::OtherFileSystem { upper, .. } if *upper == stack.upper()), "{refused:?}");
    assert!(!layer.path().exists());
    assert_eq!(before.diff(&Snapshot::of_path(&stack.upper()).unwrap()), "");
}

/// Eight captures into the same layer start at the same time. One of them makes the whole layer,
/// and the others keep their uppers.
#[test]
fn one_of_many_concurrent_captures_wins() {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let lower = dir.path().join("lower");
    Dir::new().make(&lower).unwrap();
    let layer = Layer::at(dir.path().join("layer"));
    let upper = |number: usize| dir.path().join(format!("upper{number}"));
    for number in 0..8 {
        Dir::new().file("number", &number.to_string()).make(&upper(number)).unwrap();
    }
    let start = Barrier::new(8);
    let results: Vec<_> = std::thread::scope(|scope| {
        let one = |number: usize| {
            let (start, layer, lower, upper) = (&start, &layer, &lower, upper(number));
            move || {
                start.wait();
                Capture::new([lower]).xattrs(xattrs_of_process()).into_layer(upper, layer, meta())
            }
        };
        let threads: Vec<_> = (0..8).map(|number| scope.spawn(one(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let winners: Vec<_> = (0..8).filter(|&number| results[number].is_ok()).collect();
    assert_eq!(winners.len(), 1, "{results:?}");
    assert_eq!(fs::read_to_string(layer.fs().join("number")).unwrap(), winners[0].to_string());
    for (number, result) in results.iter().enumerate().filter(|(number, _)| *number != winners[0]) {
        assert!(matches!(result, Err(Error::AlreadyCaptured { .. })), "{result:?}");
        assert_eq!(fs::read_to_string(upper(number).join("number")).unwrap(), number.to_string());
    }
}

/// Captures the upper of a run.
fn capture_run(fixture: &Fixture, report: Report) -> (Layer, Captured) {
    assert!(report.status.success(), "{}", stderr(&report));
    let layer = Layer::at(fixture.store().join("captured"));
    let (capture, meta) = (report.capture(), report.meta());
    let captured = report.upper.capture(&capture, &layer, meta).unwrap();
    (layer, captured)
}

fn modified(path: &Path) -> SystemTime {
    fs::symlink_metadata(path).unwrap().modified().unwrap()
}

#[test]
fn a_command_that_writes_nothing_leaves_an_empty_layer() {
    let fixture = Fixture::new();
    let base = fixture.base().fs();
    fs::write(base.join("etc/hosts"), "of the base").unwrap();
    symlink("../run/systemd/resolve/stub-resolv.conf", base.join("etc/resolv.conf")).unwrap();
    fs::create_dir_all(base.join("usr/share")).unwrap();
    let long_ago = UNIX_EPOCH + Duration::new(1_000_000_000, 5);
    for path in ["usr/share", "usr", "etc", ""] {
        fs::File::open(base.join(path)).unwrap().set_modified(long_ago).unwrap();
    }
    let template = shell("cat /etc/hosts /etc/resolv.conf >/dev/null; stat -c %a /tmp; stat -c %Y /usr/share /etc /")
        .network(Network::Host)
        .cwd("/made/for/this")
        .mount(TemplateMount::bind(fixture.store(), "/src/deep"))
        .mount(TemplateMount::bind(fixture.base().fs().join("etc/hosts"), "/usr/share/point"));
    for runtime in ["runc", "crun"] {
        let options = fixture.options().runtime(container::Runtime::new(integration_tests::find(runtime)));
        let report = runner::run(&fixture.base(), &[], &template.clone().build().unwrap(), options).unwrap();
        assert_eq!(stdout(&report), "1777\n1000000000\n1000000000\n1000000000\n", "{}", stderr(&report));
        let expected: u64 = report.made.len().try_into().unwrap();
        assert!(expected > 5, "{:?}", report.made);
        let (layer, captured) = capture_run(&fixture, report);
        assert_eq!(names(&layer.fs()), [""; 0], "{runtime}");
        assert_eq!((captured.taken_out, captured.size.entries), (expected, 0), "{runtime}");
        assert_eq!(modified(&layer.fs()), long_ago);
        layer::remove_tree(layer.path()).unwrap();
    }
}

#[test]
fn files_of_the_run_that_the_command_changed_stay() {
    let fixture = Fixture::new();
    let long_ago = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    fs::create_dir_all(fixture.base().fs().join("opt/tools")).unwrap();
    for path in ["opt/tools", "opt", "etc", ""] {
        fs::File::open(fixture.base().fs().join(path)).unwrap().set_modified(long_ago).unwrap();
    }
    let bind = |target: &str| TemplateMount::bind(fixture.store(), target);
    let template = shell("echo more >> /etc/hosts; echo new > /job/result; chmod 700 /conf; echo x > /opt/tools/x")
        .cwd("/job")
        .mount(bind("/conf/one"))
        .mount(bind("/opt/tools/two"))
        .mount(bind("/gone/three"));
    let report = runner::run(&fixture.base(), &[], &template.build().unwrap(), fixture.options()).unwrap();
    let (layer, _) = capture_run(&fixture, report);
    let expected = ["conf", "etc", "etc/hosts", "job", "job/result", "opt", "opt/tools", "opt/tools/x"];
    assert_eq!(names(&layer.fs()), expected);
    assert!(fs::read_to_string(layer.fs().join("etc/hosts")).unwrap().ends_with("more\n"));
    assert_eq!(fs::metadata(layer.fs().join("conf")).unwrap().permissions().mode() & 0o7777, 0o700);
    // The command made and removed nothing directly in these directories.
    for path in ["", "etc", "opt"] {
        assert_eq!(modified(&layer.fs().join(path)), long_ago, "/{path}");
    }
    assert!(modified(&layer.fs().join("opt/tools")) > long_ago);
}

#[test]
fn the_metadata_names_parents_and_owner() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(4);
    // The layers are parents whether they are merged or not.
    let template = shell("echo new > /tmp/nothing; touch /home/new || exit 0").user(1000, 100).build().unwrap();
    let report = runner::run(&fixture.base(), &layers, &template, fixture.options().max_lowers(3)).unwrap();
    assert!(report.merged.is_some());
    let timings = layer::Timing::from(&report.timings);
    let before = SystemTime::now() - Duration::from_secs(2);
    let (layer, captured) = capture_run(&fixture, report);
    let meta = layer.meta().unwrap().unwrap();
    let parents = layers.iter().map(|layer| layer.name().to_str().unwrap().to_string()).collect();
    let expected = Meta {
        parent_hashes: parents,
        uid: 1000,
        gid: 100,
        disk_usage: captured.size.bytes,
        timing: timings,
        ..Meta::new("base", meta.created_at)
    };
    // JSON stores just the digits of a time that distinguish it from its neighbours, so reading
    // it back gives the same value.
    assert_eq!(meta, expected);
    assert!(meta.created_at > before);
}

#[test]
fn a_repeated_build_makes_the_same_tree() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(2);
    let latest = UNIX_EPOCH + Duration::from_secs(1_500_000_000);
    let build = "rm -r /deps; mkdir -p /deps/new; echo x > /deps/new/x; ln -s x /deps/new/y; rm /top";
    let trees = ["one", "two"].map(|name| {
        let report = fixture.run(&layers, build);
        let (capture, meta) = (report.capture().clamp_times(latest), report.meta());
        let layer = Layer::at(fixture.store().join(name));
        report.upper.capture(&capture, &layer, meta).unwrap();
        Snapshot::of_path(&layer.fs()).unwrap()
    });
    assert_eq!(trees[0].diff(&trees[1]), "");
    assert_eq!(trees[0].entries[Path::new("deps/new/y")].modified, (1_500_000_000, 0));
    let names: Vec<_> = trees[0].entries.keys().map(|path| path.display().to_string()).collect();
    assert_eq!(names, ["", "deps", "deps/0", "deps/1", "deps/new", "deps/new/x", "deps/new/y", "top"]);
}

#[test]
fn an_upper_that_cannot_be_captured_is_returned() {
    let fixture = Fixture::new();
    let taken = fixture.layer("taken", |fs| fs::write(fs.join("file"), "").unwrap());
    taken.write_meta(&meta()).unwrap();
    let report = fixture.run(&[], "echo new > /new");
    let (capture, meta) = (report.capture(), report.meta());
    let error = report.upper.capture(&capture, &taken, meta.clone()).unwrap_err();
    assert!(matches!(error.source, Error::AlreadyCaptured { .. }), "{error:?}");
    error.upper.capture(&capture, &Layer::at(fixture.store().join("free")), meta).unwrap();
    assert_eq!(fs::read(fixture.store().join("free/fs/new")).unwrap(), b"new\n");
}
