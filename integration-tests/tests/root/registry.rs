//! Layers and images in registries: `docker-registry` and its clients, a registry that lies, and
//! pushes and pulls that are killed.

mod ends;
mod hostile;
mod logins;
mod pins;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use integration_tests::disk::Disk;
use integration_tests::registry::DockerRegistry;
use integration_tests::stack::{Dir, Item, private_mounts, set_xattr};
use integration_tests::tree::Snapshot;
use integration_tests::{Fixture, find, layered};
use layer::{Layer, Meta};
use rustix::fs::FileType;
use serde_json::{Value, json};

/// The `layer.json` of the tests, with a key that layered does not know.
const META: &str = r#"{"exit_status":0,"parent_hashes":["a"],"uid":0,"gid":0,"base_hash":"base","disk_usage":8192,"timing":{"make":1.5},"created_at":"2026-01-31T23:59:59Z","failed_dep":null,"note":["é"]}"#;

/// Makes a layer of a tree, with a sidecar.
fn make(store: &Path, name: &str, tree: &Dir) -> Layer {
    let layer = Layer::at(store.join(name));
    fs::create_dir_all(layer.path()).unwrap();
    tree.make(&layer.fs()).unwrap();
    layer.write_sidecar("package", &json!({"name": name, "text": "\u{1b}[31m"})).unwrap();
    fs::write(layer.log_path(), "log").unwrap();
    fs::write(layer.meta_path(), META).unwrap();
    layer
}

/// Makes a layer with one file of bytes that no compressor makes smaller.
fn make_large(store: &Path, name: &str, bytes: usize) -> Layer {
    let layer = make(store, name, &Dir::new());
    let mut state = name.bytes().fold(1u64, |state, byte| state * 31 + u64::from(byte));
    let content: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
    .take(bytes)
    .collect();
    fs::write(layer.fs().join("large"), content).unwrap();
    layer
}

fn unusual() -> Dir {
    Dir::new()
        .mode(0o750)
        .file("file", "content")
        .with("link", Item::symlink("file"))
        .with("fifo", Item::special(FileType::Fifo, 0))
        .with("old", Dir::new().whiteout("gone").xattr("user.note", b"1\n2"))
}

fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

/// Runs a command that must end with `status`. Returns its standard output and error.
fn ends(command: &mut Command, status: i32) -> (String, String) {
    let output = run(command);
    let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert_eq!(output.status.code(), Some(status), "{command:?}: {stdout}{stderr}");
    (stdout, stderr)
}

fn push(layers: &[&Layer], repository: &str) -> Command {
    let mut command = layered();
    command.arg("push").args(layers.iter().map(|layer| layer.path())).arg(repository);
    command
}

fn pull(store: &Path, repository: &str, names: &[&str]) -> Command {
    let mut command = layered();
    command.arg("pull").arg(store).arg(repository).args(names);
    command
}

/// Runs a command with `--json` that must succeed.
fn json_of(command: &mut Command) -> Value {
    serde_json::from_str(&ends(command.arg("--json"), 0).0).unwrap()
}

fn new_store(fixture: &Fixture, name: &str) -> PathBuf {
    let store = fixture.path().join(name);
    fs::create_dir(&store).unwrap();
    store
}

/// Returns the names of what is in a store, its drafts included.
fn names(store: &Path) -> Vec<String> {
    let list = |dir: &Path| match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect(),
        Err(_) => Vec::new(),
    };
    let mut names: Vec<_> = list(store).into_iter().filter(|name| name != ".layered").collect();
    names.extend(list(&store.join(".layered/new")).iter().map(|name| format!("new/{name}")));
    names.sort();
    names
}

fn is_intact(layer: &Path) -> bool {
    String::from_utf8(run(layered().arg("verify").arg(layer)).stdout).unwrap().contains(": intact, ")
}

fn skopeo(arguments: &[&str]) -> String {
    // Without this, it looks for the logins of root even inside of a user namespace.
    ends(Command::new(find("skopeo")).args(arguments).env("XDG_RUNTIME_DIR", "/nonexistent"), 0).0
}

#[test]
fn a_layer_comes_back_as_it_was() {
    let (fixture, registry) = (Fixture::new(), DockerRegistry::start());
    let (there, here) = (new_store(&fixture, "there"), new_store(&fixture, "here"));
    let tree = unusual().with("opaque", Dir::new().opaque().file("new", "y")).file("tool", "x");
    let layer = make(&there, "0123456789ab", &tree);
    fs::set_permissions(layer.fs().join("tool"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(layer.fs().join("file"), layer.fs().join("old/file")).unwrap();
    set_xattr(&layer.fs(), "user.of-the-root", b"").unwrap();
    layer.touch().unwrap();
    let repository = registry.repository("team/farm");
    let pushed = json_of(&mut push(&[&layer], &repository));
    assert_eq!((&pushed["layers"][0]["pushed"], &pushed["failed"]), (&json!(true), &json!([])));
    assert!(pushed["bytes_sent"].as_u64() > Some(0));
    let pulled = json_of(&mut pull(&here, &repository, &["0123456789ab"]));
    for key in ["manifest", "diff_id", "name"] {
        assert_eq!(pulled["layers"][0][key], pushed["layers"][0][key], "{key}");
    }
    let copy = Layer::at(here.join("0123456789ab"));
    let [expected, found] = [&layer, &copy].map(|layer| {
        // A whiteout has no time of its own, and its directory gets the mark that a capture makes.
        let mut snapshot = Snapshot::of_path(&layer.fs()).unwrap();
        snapshot.entries.retain(|path, _| !path.ends_with("gone"));
        snapshot.entries.values_mut().for_each(|entry| {
            entry.xattrs.retain(|name, _| name != "trusted.overlay.origin");
        });
        snapshot
    });
    assert_eq!(expected.diff(&found), "");
    assert_eq!(fs::metadata(copy.fs().join("old/gone")).unwrap().rdev(), 0);
    assert!(fs::metadata(copy.fs().join("old/gone")).unwrap().file_type().is_char_device());
    assert_eq!(fs::read_to_string(copy.meta_path()).unwrap().trim_end(), META);
    assert_eq!(
        fs::read(layer.path().join("package.json")).unwrap(),
        fs::read(copy.path().join("package.json")).unwrap()
    );
    // The log stays on its machine; what names this machine is made anew.
    assert!(!copy.log_path().exists() && copy.last_used_path().exists());
    assert_eq!(copy.sidecars().unwrap(), ["digest", "oci", "package"]);
    assert!(is_intact(copy.path()));
    assert_eq!(names(&here), ["0123456789ab"]);
}

#[test]
fn other_programs_read_a_layer_as_an_image() {
    let (fixture, registry) = (Fixture::new(), DockerRegistry::start());
    let store = new_store(&fixture, "there");
    // umoci 0.4 knows neither zstd nor overlayfs' whiteouts, so the tree is a plain one.
    let tree = Dir::new().file("file", "content").with("bin", Dir::new().file("tool", "x"));
    let layer = make(&store, "gcc", &tree);
    fs::set_permissions(layer.fs().join("bin/tool"), fs::Permissions::from_mode(0o4755)).unwrap();
    let repository = registry.repository("farm");
    let pushed = json_of(&mut push(&[&layer], &repository));
    let image = format!("{repository}:gcc");
    let inspected: Value = serde_json::from_str(&skopeo(&["inspect", "--tls-verify=false", &image])).unwrap();
    assert_eq!(inspected["Digest"], pushed["layers"][0]["manifest"]);
    assert_eq!((&inspected["Os"], &inspected["Layers"][0]), (&json!("linux"), &pushed["layers"][0]["blob"]));
    let copy = format!("oci:{}:gcc", fixture.path().join("copy").display());
    skopeo(&["copy", "--quiet", "--src-tls-verify=false", &image, &copy]);
    for (source, base) in [(&copy, "one"), (&image, "other")] {
        let base = fixture.path().join(base);
        ends(layered().args(["import", source]).arg(&base), 0);
        let [expected, found] = [layer.fs(), base.join("fs")].map(|tree| Snapshot::of_path(&tree).unwrap());
        assert_eq!(expected.diff(&found), "", "{source}");
    }
}

#[test]
fn a_second_push_or_pull_moves_no_blob() {
    let (fixture, mut registry) = (Fixture::new(), DockerRegistry::start());
    let (there, here) = (new_store(&fixture, "there"), new_store(&fixture, "here"));
    let names: Vec<_> = (0..30).map(|number| format!("layer-{number}")).collect();
    let layers: Vec<_> = names.iter().map(|name| make(&there, name, &Dir::new().file("name", name))).collect();
    let (layers, names): (Vec<_>, Vec<_>) = (layers.iter().collect(), names.iter().map(String::as_str).collect());
    let repository = registry.repository("farm");
    json_of(&mut push(&layers, &repository));
    json_of(&mut pull(&here, &repository, &names));
    registry.restart();
    let again = json_of(&mut push(&layers, &repository));
    assert_eq!(again["bytes_sent"], 0);
    assert!(again["layers"].as_array().unwrap().iter().all(|layer| layer["pushed"] == false && layer["same"] == true));
    // Layers that came from the registry need not be packed to know that it has them.
    let pulled: Vec<_> = names.iter().map(|name| Layer::at(here.join(name))).collect();
    assert_eq!(json_of(&mut push(&pulled.iter().collect::<Vec<_>>(), &repository))["bytes_sent"], 0);
    let again = json_of(&mut pull(&here, &repository, &names));
    assert_eq!((&again["bytes_received"], again["layers"].as_array().unwrap().len()), (&json!(0), 30));
    // Another repository of the same registry does not have them.
    let other = registry.repository("other");
    assert_ne!(json_of(&mut push(&layers[..1], &other))["bytes_sent"], 0);
    let requests = registry.requests();
    let (to_other, requests): (Vec<_>, Vec<_>) = requests.iter().partition(|line| line.contains("/v2/other/"));
    let is_head = |line: &&&String| line.contains("HEAD /v2/farm/manifests/");
    assert_eq!((requests.len(), requests.iter().filter(is_head).count()), (60, 60), "{requests:#?}");
    assert!(!to_other.is_empty());
}

#[test]
fn a_pull_asks_for_the_manifest_and_the_tree_of_a_layer_only() {
    let (fixture, mut registry) = (Fixture::new(), DockerRegistry::start());
    let there = new_store(&fixture, "there");
    let layers = ["gcc", "make"].map(|name| make(&there, name, &unusual().file("name", name)));
    let repository = registry.repository("farm");
    let pushed = json_of(&mut push(&[&layers[0], &layers[1]], &repository));
    registry.restart();
    json_of(&mut pull(&new_store(&fixture, "here"), &repository, &["gcc", "make"]));
    let requests = registry.requests();
    for layer in pushed["layers"].as_array().unwrap() {
        let [name, blob] = ["name", "blob"].map(|key| layer[key].as_str().unwrap());
        for path in [format!("/v2/farm/manifests/{name}"), format!("/v2/farm/blobs/{blob}")] {
            let get = format!("GET {path} ");
            assert_eq!(requests.iter().filter(|line| line.contains(&get)).count(), 1, "{get}: {requests:#?}");
        }
    }
    assert_eq!(requests.len(), 4, "{requests:#?}");
}

#[test]
fn of_two_pushes_the_first_wins_and_the_second_says_so() {
    let (fixture, registry) = (Fixture::new(), DockerRegistry::start());
    let stores = ["one", "other"].map(|name| new_store(&fixture, name));
    let layers = [0, 1].map(|number| make(&stores[number], "gcc", &Dir::new().file("number", &number.to_string())));
    let repository = registry.repository("farm");
    let first = json_of(&mut push(&[&layers[0]], &repository));
    let second = json_of(&mut push(&[&layers[1]], &repository));
    let second = &second["layers"][0];
    assert_eq!((&second["pushed"], &second["same"]), (&json!(false), &json!(false)));
    for key in ["manifest", "diff_id", "blob"] {
        assert_eq!(second[key], first["layers"][0][key], "{key}");
    }
    let (text, _) = ends(&mut push(&[&layers[1]], &repository), 0);
    assert!(text.contains("with another tree, which stays"), "{text}");
    // A layer with the same tree is the same, whoever made it.
    let third = make(&new_store(&fixture, "third"), "gcc", &Dir::new());
    fs::remove_dir(third.fs()).unwrap();
    ends(Command::new("cp").arg("-a").args([layers[0].fs(), third.fs()]), 0);
    assert_eq!(json_of(&mut push(&[&third], &repository))["layers"][0]["same"], true);
    let here = new_store(&fixture, "here");
    json_of(&mut pull(&here, &repository, &["gcc"]));
    assert_eq!(fs::read_to_string(here.join("gcc/fs/number")).unwrap(), "0");
}

#[test]
fn many_pulls_of_one_name_do_the_work_once() {
    let (fixture, registry) = (Fixture::new(), DockerRegistry::start());
    let (there, here) = (new_store(&fixture, "there"), new_store(&fixture, "here"));
    let layer = make_large(&there, "gcc", 3 << 20);
    let repository = registry.repository("farm");
    let pushed = json_of(&mut push(&[&layer], &repository));
    let pulls: Vec<_> = (0..6)
        .map(|_| pull(&here, &repository, &["gcc"]).arg("--json").stdout(Stdio::piped()).spawn().unwrap())
        .collect();
    let outputs: Vec<_> = pulls.into_iter().map(|pull| pull.wait_with_output().unwrap()).collect();
    let made = outputs.iter().filter(|output| {
        assert!(output.status.success());
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["layers"][0]["pulled"] == true
    });
    assert_eq!(made.count(), 1);
    let blob = format!("GET /v2/farm/blobs/{}", pushed["layers"][0]["blob"].as_str().unwrap());
    let requests = registry.requests();
    assert_eq!(requests.iter().filter(|line| line.contains(&blob)).count(), 1, "{requests:#?}");
    assert_eq!(names(&here), ["gcc"]);
}

#[test]
fn a_pinned_layer_is_the_pinned_one() {
    let (fixture, registry) = (Fixture::new(), DockerRegistry::start());
    let (there, here) = (new_store(&fixture, "there"), new_store(&fixture, "here"));
    let layers = ["gcc", "make"].map(|name| make(&there, name, &Dir::new().file("name", name)));
    let repository = registry.repository("farm");
    let pushed = json_of(&mut push(&[&layers[0], &layers[1]], &repository));
    let digest = |number: usize| pushed["layers"][number]["manifest"].as_str().unwrap().to_string();
    let [gcc, make_digest] = [digest(0), digest(1)];

    // No manifest has this digest.
    let missing = format!("gcc@sha256:{}", "0".repeat(64));
    let (_, error) = ends(&mut pull(&here, &repository, &[&missing]), 1);
    assert!(error.contains("is not in"), "{error}");
    ends(pull(&here, &repository, &["gcc"]).args(["--digest", &gcc, "--digest", &make_digest]), 125);
    ends(pull(&here, &repository, &[&format!("gcc@{gcc}")]).args(["--digest", &make_digest]), 125);
    ends(&mut pull(&here, &repository, &["gcc", &format!("gcc@{gcc}")]), 125);
    assert_eq!(names(&here), [""; 0]);

    let pinned = format!("gcc@{gcc}");
    assert_eq!(json_of(&mut pull(&here, &repository, &[&pinned, &pinned]))["layers"].as_array().unwrap().len(), 1);
    json_of(pull(&here, &repository, &["gcc", "make"]).args(["--digest", &gcc, "--digest", &make_digest]));
    let (output, error) = ends(pull(&here, &repository, &["gcc"]).args(["--json", "--digest", &make_digest]), 1);
    assert!(error.contains("is not the layer with the manifest"), "{error}");
    assert_eq!(serde_json::from_str::<Value>(&output).unwrap()["failed"][0]["kind"], "not_pinned");
    // A layer of the same tree that was made here is the pinned one, too.
    let made = new_store(&fixture, "made");
    let copy = make(&made, "gcc", &Dir::new());
    fs::remove_dir(copy.fs()).unwrap();
    ends(Command::new("cp").arg("-a").args([layers[0].fs(), copy.fs()]), 0);
    assert_eq!(json_of(&mut pull(&made, &repository, &[&pinned]))["layers"][0]["pulled"], false);
    fs::write(made.join("gcc/fs/name"), "changed").unwrap();
    fs::remove_file(made.join("gcc/oci.json")).unwrap();
    ends(&mut pull(&made, &repository, &[&pinned]), 1);
}

#[test]
fn large_sidecars_are_beside_the_layer() {
    let (fixture, registry) = (Fixture::new(), DockerRegistry::start());
    let (there, here) = (new_store(&fixture, "there"), new_store(&fixture, "here"));
    let layer = make(&there, "gcc", &Dir::new().file("a", "b"));
    layer.write_sidecar("files", &"x".repeat(3 << 20)).unwrap();
    let repository = registry.repository("farm");
    json_of(&mut push(&[&layer], &repository));
    let tags: Value = serde_json::from_str(&skopeo(&["list-tags", "--tls-verify=false", &repository])).unwrap();
    assert_eq!(tags["Tags"], json!(["gcc", "gcc.meta"]));
    json_of(&mut pull(&here, &repository, &["gcc"]));
    for file in ["files.json", "package.json"] {
        assert_eq!(fs::read(there.join("gcc").join(file)).unwrap(), fs::read(here.join("gcc").join(file)).unwrap());
    }
    assert_eq!(fs::read_to_string(here.join("gcc/layer.json")).unwrap().trim_end(), META);
    // The artifact is not a layer, and the layer cannot be named like one.
    ends(&mut pull(&here, &repository, &["gcc.meta"]), 125);
    let refused = make(&there, "a.meta", &Dir::new());
    assert!(ends(&mut push(&[&refused], &repository), 1).1.contains("cannot be the name"));
    // All files together have one limit.
    let large = make(&there, "large", &Dir::new());
    for name in ["a", "b"] {
        large.write_sidecar(name, &"x".repeat(9 << 20)).unwrap();
    }
    assert!(ends(&mut push(&[&large], &repository), 1).1.contains("bytes together"));
}

#[test]
fn what_is_missing_is_named_and_the_rest_is_pulled() {
    let (fixture, registry) = (Fixture::new(), DockerRegistry::start());
    let (there, here) = (new_store(&fixture, "there"), new_store(&fixture, "here"));
    let layer = make(&there, "gcc", &Dir::new());
    let repository = registry.repository("farm");
    let (output, error) = ends(pull(&here, &repository, &["gcc"]).arg("--json"), 1);
    assert!(error.contains(&format!("gcc is not in {repository}")), "{error}");
    assert_eq!(serde_json::from_str::<Value>(&output).unwrap()["failed"][0]["kind"], "absent");
    let half = there.join("half");
    fs::create_dir_all(half.join("fs")).unwrap();
    let layers = [&layer, &Layer::at(&half), &Layer::at(there.join("missing"))];
    let output = ends(push(&layers, &repository).arg("--json"), 1).0;
    let output: Value = serde_json::from_str(&output).unwrap();
    let failed: Vec<_> = output["failed"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!((output["layers"].as_array().unwrap().len(), failed), (1, vec!["half", "missing"]));
    ends(&mut pull(&here, &repository, &["x", "gcc", "y"]), 1);
    assert_eq!(names(&here), ["gcc"]);
    // A directory without a layer.json belongs to somebody else.
    fs::create_dir_all(here.join("make")).unwrap();
    ends(&mut pull(&here, &repository, &["make"]), 1);
    assert!(here.join("make").exists());
    ends(&mut pull(&fixture.path().join("nowhere"), &repository, &["gcc"]), 1);
}

#[test]
fn an_image_goes_to_a_registry_and_comes_back() {
    let (fixture, registry) = (Fixture::new(), DockerRegistry::start());
    let store = new_store(&fixture, "there");
    let base = make(&store, "base", &Dir::new().file("low", "1").file("gone", "2"));
    let layer = make(&store, "top", &Dir::new().file("high", "3").whiteout("gone"));
    let (image, local) = (registry.repository("image:1"), format!("oci:{}:1", fixture.path().join("oci").display()));
    let export = |image: &str| {
        let mut command = layered();
        command.args(["export", image, "--base"]).arg(base.path()).arg("--layer").arg(layer.path());
        json_of(&mut command)
    };
    let [there, here] = [&image, &local].map(|image| export(image));
    assert_eq!(there["manifest"], here["manifest"]);
    // With its digest, the image is pinned.
    let pinned = format!("{image}@{}", there["manifest"].as_str().unwrap());
    for (source, name) in [(&image, "one"), (&pinned, "other")] {
        let base = fixture.path().join(name);
        ends(layered().args(["import", source]).arg(&base), 0);
        assert_eq!(fs::read_to_string(base.join("fs/high")).unwrap(), "3");
        assert!(!base.join("fs/gone").exists());
    }
    let layers = new_store(&fixture, "layers");
    let imported = json_of(layered().args(["import", &image, "--layers"]).arg(&layers));
    assert_eq!(imported["layers"].as_array().unwrap().len(), 1);
    // The base gives back the blobs of the image in the registry.
    let again = format!("oci:{}:2", fixture.path().join("oci").display());
    let one = fixture.path().join("one");
    assert_eq!(json_of(layered().args(["export", &again, "--base"]).arg(&one))["original"], 2);
    ends(layered().args(["import", &registry.repository("image:2")]).arg(fixture.path().join("none")), 1);
    ends(layered().args(["import", "docker://127.0.0.1:1/a", "--retries", "0"]).arg(fixture.path().join("none")), 75);
    ends(layered().args(["export", &registry.repository("image"), "--layer"]).arg(layer.path()), 125);
    assert!(!fixture.path().join("none").exists());
    let mut wrong = layered();
    wrong.args(["import", &format!("{}@sha256:{}", registry.repository("image"), "0".repeat(64))]);
    ends(wrong.arg(fixture.path().join("none")), 1);
}

#[test]
fn a_full_disk_is_temporary_and_leaves_nothing() {
    private_mounts().unwrap();
    let (fixture, registry) = (Fixture::new(), DockerRegistry::start());
    let there = new_store(&fixture, "there");
    let layer = make_large(&there, "gcc", 8 << 20);
    let repository = registry.repository("farm");
    json_of(&mut push(&[&layer], &repository));
    let image = fixture.path().join("image");
    Disk::format(&image, 8 << 20, "");
    let disk = Disk::mount(&image, fixture.path().join("disk"));
    let here = disk.path().join("store");
    fs::create_dir(&here).unwrap();
    let (_, error) = ends(&mut pull(&here, &repository, &["gcc"]), 75);
    assert!(error.contains("No space left"), "{error}");
    assert_eq!(names(&here), [""; 0]);
    // A push needs room for the blob beside the layer.
    let full = make_large(&here, "make", 5 << 20);
    let (_, error) = ends(&mut push(&[&full], &repository), 75);
    assert!(error.contains("No space left"), "{error}");
    assert_eq!(names(&here), ["make"]);
    let (_, error) = ends(&mut pull(&new_store(&fixture, "here"), &repository, &["make"]), 1);
    assert!(error.contains("is not in"), "{error}");
    drop(disk);
}

#[test]
fn a_layer_is_whole_by_its_metadata() {
    let (fixture, registry) = (Fixture::new(), DockerRegistry::start());
    let there = new_store(&fixture, "there");
    let failed = make(&there, "failed", &Dir::new());
    let meta = Meta { exit_status: 2, ..failed.meta().unwrap().unwrap() };
    failed.write_meta(&meta).unwrap();
    let (here, repository) = (new_store(&fixture, "here"), registry.repository("farm"));
    json_of(&mut push(&[&failed], &repository));
    json_of(&mut pull(&here, &repository, &["failed"]));
    assert_eq!(Layer::at(here.join("failed")).meta().unwrap(), Some(meta));
}
