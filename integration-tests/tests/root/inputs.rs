//! Inputs that a run refuses: the error names the path and the remedy, and nothing is left. Places
//! for scratch directories are tested in module `places`.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use container::{Error as ContainerError, Overlay, Template};
use integration_tests::{Fixture, shell};
use layer::{Base, Error as LayerError, Layer};
use runner::{Cause, Error, Options, Phase};

fn refused(fixture: &Fixture, base: &Base, layers: &[Layer], options: Options<'_>) -> Error {
    let template = shell("true").build().unwrap();
    let error = runner::run(base, layers, &template, options).unwrap_err();
    assert_eq!(error.left(), None, "{error}");
    fixture.assert_clean();
    error
}

#[test]
fn paths_that_are_not_layers_are_refused() {
    let fixture = Fixture::new();
    let store = fixture.store();
    let good = fixture.layer("good", |_| {});
    fs::create_dir(store.join("bare")).unwrap();
    fs::write(store.join("file"), "").unwrap();
    fs::create_dir(store.join("file-as-tree")).unwrap();
    fs::write(store.join("file-as-tree/fs"), "").unwrap();
    fs::create_dir(store.join("linked")).unwrap();
    std::os::unix::fs::symlink("/", store.join("linked/fs")).unwrap();
    std::os::unix::fs::symlink("missing", store.join("dangling")).unwrap();

    for (name, expected) in [
        ("missing", "missing does not exist; pass the path of a layer"),
        ("dangling", "dangling is a symbolic link to a path that does not exist; pass the path of a layer"),
        ("file", "file is not a directory; pass the path of a layer"),
        ("bare", "bare has no directory `fs`"),
        ("file-as-tree", "file-as-tree has no directory `fs`"),
        ("linked", "linked has no directory `fs`"),
    ] {
        let layers = [good.clone(), Layer::at(store.join(name))];
        let error = refused(&fixture, &fixture.base(), &layers, fixture.options());
        assert_eq!(error.phase(), Some(Phase::Inputs));
        assert_eq!(error.path(), Some(&*store.join(name)), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
    // The run has marked no layer as used.
    assert_eq!(good.last_used().unwrap(), None);
}

#[test]
fn a_removed_base_is_refused() {
    let fixture = Fixture::new();
    let dir = fixture.path().join("other-base");
    fs::create_dir_all(dir.join("fs")).unwrap();
    let base = Base::open(&dir).unwrap();
    fs::remove_dir(dir.join("fs")).unwrap();
    let error = refused(&fixture, &base, &[], fixture.options());
    assert!(matches!(error.cause(), Cause::Layer(LayerError::NoTree { layer }) if *layer == dir), "{error}");

    let base = Base::of_tree(&dir).unwrap();
    fs::remove_dir(&dir).unwrap();
    let error = refused(&fixture, &base, &[], fixture.options());
    assert!(error.to_string().ends_with("other-base does not exist; pass the path of a root file system"), "{error}");
}

#[test]
fn an_unusable_scratch_directory_is_refused() {
    let fixture = Fixture::new();
    let missing = fixture.path().join("missing");
    let error = refused(&fixture, &fixture.base(), &[], fixture.options().scratch(&missing));
    assert_eq!(error.phase(), Some(Phase::Scratch));
    assert!(error.path().is_some_and(|path| path.starts_with(&missing)), "{error}");

    let strange = fixture.path().join(std::ffi::OsStr::from_bytes(b"\xff"));
    fs::create_dir(&strange).unwrap();
    let error = refused(&fixture, &fixture.base(), &[], fixture.options().scratch(&strange));
    assert!(error.to_string().contains("config"), "{error}");
    assert_eq!(fs::read_dir(&strange).unwrap().count(), 0);
}

#[test]
fn an_upper_on_overlayfs_is_refused() {
    let fixture = Fixture::new();
    let dir = |name: &str| {
        let path = fixture.path().join(name);
        fs::create_dir(&path).unwrap();
        path
    };
    let (lower, upper, work, merged) = (dir("lower"), dir("upper"), dir("work"), dir("merged"));
    container::in_private_mount_namespace(|| {
        let mounted = Overlay::new([&lower]).writable(&upper, &work).mount(&merged).unwrap();
        let template = shell("true").build().unwrap();
        for rung in layer::Rung::LADDER {
            let options = fixture.options().scratch(&merged).rung(rung);
            let error = runner::run(&fixture.base(), &[], &template, options).unwrap_err();
            assert_eq!((error.phase(), error.left()), (Some(Phase::OverlayMount), None), "{error}");
            assert!(error.to_string().contains("the upper directory is on overlayfs"), "{error}");
            assert_eq!(fs::read_dir(&merged).unwrap().count(), 0);
        }
        mounted.unmount().unwrap();
    })
    .unwrap();
}

#[test]
fn a_failing_or_panicking_prep_upper_leaves_nothing() {
    let fixture = Fixture::new();
    let options = fixture.options().prep_upper(|upper, _| {
        fs::write(upper.join("half"), "")?;
        Err("the toys are missing".into())
    });
    let error = refused(&fixture, &fixture.base(), &fixture.numbered_layers(2), options);
    assert_eq!(error.phase(), Some(Phase::PrepUpper));
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "the toys are missing");

    let options = fixture.options().prep_upper(|_, _| panic!("no toys at all"));
    let run = std::panic::AssertUnwindSafe(|| refused(&fixture, &fixture.base(), &[], options));
    assert!(std::panic::catch_unwind(run).is_err());
    fixture.assert_clean();
}

#[test]
fn invalid_templates_are_refused() {
    let build = |builder: container::TemplateBuilder| builder.build().unwrap_err().to_string();
    for (error, expected) in [
        (build(Template::builder(Vec::<String>::new())), "process.args is empty"),
        (build(shell("true").cwd("relative")), "is relative"),
        (build(shell("true").env("A", "nul\0")), "NUL"),
        (build(shell("true").hostname("h".repeat(65).as_str())), "64"),
    ] {
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_config_json_without_the_rootfs_placeholder_is_refused() {
    let fixture = Fixture::new();
    let path = fixture.path().join("config.json");
    let mut value = serde_json::to_value(shell("true").build().unwrap()).unwrap();
    value["root"]["path"] = "/elsewhere".into();
    fs::write(&path, value.to_string()).unwrap();
    match Template::from_file(&path).unwrap_err() {
        ContainerError::TemplateFile { path: named, source } => {
            assert_eq!(named, path);
            assert!(source.to_string().contains("<rootfs>"), "{source}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_limit_without_a_cgroup_controller_is_refused() {
    let fixture = Fixture::new();
    let template = container::Template::builder(["true"]).pids_limit(5).build().unwrap();
    let mut config = serde_json::to_value(&template).unwrap();
    config["linux"]["resources"]["thermal"] = serde_json::json!({"limit": 60});
    let template = container::Template::from_value(config).unwrap();
    let error = runner::run(&fixture.base(), &[], &template, fixture.options()).unwrap_err();
    assert_eq!(error.phase(), Some(Phase::Inputs));
    assert!(error.to_string().contains(r#"no cgroup controller "thermal""#), "{error}");
}

#[test]
fn a_bind_of_a_missing_source_is_refused() {
    let fixture = Fixture::new();
    let mount = container::Mount::bind("/no/such/source", "/target");
    let template = shell("true").mount(mount).build().unwrap();
    let error = runner::run(&fixture.base(), &[], &template, fixture.options()).unwrap_err();
    assert_eq!(error.phase(), Some(Phase::Config));
    assert_eq!(error.path(), Some(Path::new("/no/such/source")), "{error}");
}

#[test]
fn paths_that_exceed_a_page_are_refused_not_truncated() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(200);
    let lowers = layers.iter().map(Layer::fs);
    // The overlay is mounted without a plan. Options that do not fit into a page are refused, not
    // truncated.
    let overlay = Overlay::new(lowers).api(container::MountApi::Mount2).names(container::LowerNames::Paths);
    match overlay.mount(fixture.scratch()).unwrap_err() {
        ContainerError::OptionsTooLong { bytes, limit } => assert!(bytes > limit),
        other => panic!("{other:?}"),
    }
}
