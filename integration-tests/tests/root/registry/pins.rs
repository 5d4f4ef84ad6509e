//! Pins, and the place of a layer after its push.

use std::collections::BTreeSet;

use integration_tests::disk::run as run_tool;
use layer::Hold;

use super::*;

/// Makes `gcc` with this text in a new store.
fn gcc(fixture: &Fixture, store: &str, text: &str) -> Layer {
    make(&new_store(fixture, store), "gcc", &Dir::new().file("text", text))
}

fn text(store: &Path) -> String {
    fs::read_to_string(store.join("gcc/fs/text")).unwrap()
}

fn with_pins(mut command: Command, pins: &Path) -> Command {
    command.arg("--pins").arg(pins);
    command
}

fn pin(pins: &Path) -> Value {
    fs::read_to_string(pins.join("gcc")).unwrap().trim_end().into()
}

/// Returns the only layer of a result.
fn only(result: &Value) -> &Value {
    assert_eq!(result["layers"].as_array().unwrap().len(), 1, "{result}");
    &result["layers"][0]
}

#[test]
fn a_pull_takes_the_pinned_layer_and_replaces_another_one() {
    let (fixture, registry) = (Fixture::new(), DockerRegistry::start());
    let [here, pins] = ["here", "pins"].map(|name| new_store(&fixture, name));
    let repository = registry.repository("farm");
    let pinned = json_of(&mut push(&[&gcc(&fixture, "one", "pinned")], &repository));
    fs::write(pins.join("gcc"), only(&pinned)["manifest"].as_str().unwrap()).unwrap();
    // The name means another layer now.
    let other = registry.repository("other");
    json_of(&mut push(&[&gcc(&fixture, "other", "other")], &other));
    retag(&other, &repository);

    let pull = || with_pins(pull(&here, &repository, &["gcc"]), &pins);
    let old = make(&here, "gcc", &Dir::new().file("text", "old"));
    let hold = Hold::of([old.path()]).unwrap();
    let (_, error) = ends(&mut pull(), 75);
    assert!(error.contains("cannot remove or replace") || error.contains("in use"), "{error}");
    hold.release().unwrap();
    let over = make(&here, "over", &Dir::new());
    over.write_meta(&Meta::new("gcc", std::time::SystemTime::UNIX_EPOCH)).unwrap();
    assert!(ends(&mut pull(), 75).1.contains("is the base of"));
    assert_eq!(text(&here), "old");
    fs::remove_dir_all(over.path()).unwrap();

    assert_eq!(only(&json_of(&mut pull()))["pulled"], true);
    assert_eq!((text(&here), names(&here)), ("pinned".into(), vec!["gcc".to_string()]));
    // The pinned one is there, so the pull needs no registry.
    drop(registry);
    assert_eq!(only(&json_of(&mut pull()))["pulled"], false);
}

/// Gives the tag `gcc` of a repository to the layer that has it in another one.
fn retag(from: &str, to: &str) {
    let [from, to] = [from, to].map(|repository| format!("{repository}:gcc"));
    let options = ["copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false", "--preserve-digests"];
    skopeo(&[&options[..], &[&from, &to]].concat());
}

#[test]
fn pins_that_are_away_are_tried_again_and_wrong_ones_are_not() {
    let (fixture, registry) = (Fixture::new(), DockerRegistry::start());
    let [here, pins] = ["here", "pins"].map(|name| new_store(&fixture, name));
    let (layer, repository) = (gcc(&fixture, "one", "a"), registry.repository("farm"));
    let away = fixture.path().join("away");
    for mut command in [pull(&here, &repository, &["gcc"]), push(&[&layer], &repository)] {
        let (_, error) = ends(command.arg("--pins").arg(&away), 75);
        assert!(error.contains("mount the directory of the pins"), "{error}");
    }
    for pin in [&b"latest\n"[..], b"\xff"] {
        fs::write(pins.join("gcc"), pin).unwrap();
        for command in [pull(&here, &repository, &["gcc"]), push(&[&layer], &repository)] {
            let (_, error) = ends(&mut with_pins(command, &pins), 1);
            assert!(error.contains("gcc is not a pin"), "{error}");
        }
    }
    for command in [pull(&here, &repository, &["gcc"]), push(&[&layer], &repository)] {
        let (_, error) = ends(&mut with_pins(command, &pins.join("gcc")), 1);
        assert!(error.contains("cannot look into"), "{error}");
    }
}

#[test]
fn a_layer_that_must_stay_is_not_downloaded_and_stops_no_other() {
    let (fixture, mut registry) = (Fixture::new(), DockerRegistry::start());
    let [there, here, pins] = ["there", "here", "pins"].map(|name| new_store(&fixture, name));
    let repository = registry.repository("farm");
    let layers = ["gcc", "make"].map(|name| make(&there, name, &Dir::new().file("text", name)));
    let pushed = json_of(&mut with_pins(push(&[&layers[0], &layers[1]], &repository), &pins));
    registry.restart();
    let old = make(&here, "gcc", &Dir::new().file("text", "old"));
    let hold = Hold::of([old.path()]).unwrap();
    let (_, error) = ends(with_pins(pull(&here, &repository, &["gcc", "make"]), &pins).args(["--jobs", "1"]), 75);
    assert!(error.contains("cannot remove or replace"), "{error}");
    assert_eq!((text(&here), names(&here)), ("old".into(), ["gcc", "make"].map(String::from).to_vec()));
    hold.release().unwrap();
    let requests = registry.requests();
    for (layer, downloads) in pushed["layers"].as_array().unwrap().iter().zip([0, 1]) {
        let [manifest, blob] = ["manifest", "blob"].map(|key| layer[key].as_str().unwrap());
        for (path, count) in [(format!("manifests/{manifest}"), 1), (format!("blobs/{blob}"), downloads)] {
            let get = format!("GET /v2/farm/{path} ");
            assert_eq!(requests.iter().filter(|line| line.contains(&get)).count(), count, "{get}: {requests:#?}");
        }
    }
}

#[test]
fn a_missing_layer_is_ignored_only_without_a_pin() {
    let (fixture, registry) = (Fixture::new(), DockerRegistry::start());
    let [here, pins] = ["here", "pins"].map(|name| new_store(&fixture, name));
    let repository = registry.repository("farm");
    json_of(&mut push(&[&gcc(&fixture, "one", "a")], &repository));
    let pull = |names: &[&str]| {
        let mut command = with_pins(pull(&here, &repository, names), &pins);
        command.arg("--ignore-missing");
        command
    };
    let pulled = json_of(&mut pull(&["gcc", "make"]));
    assert_eq!((&only(&pulled)["name"], &pulled["missing"]), (&json!("gcc"), &json!(["make"])));
    assert_eq!(ends(&mut pull(&["make"]), 0).0, "make: not in the registry\n");
    fs::write(pins.join("make"), format!("sha256:{}\n", "0".repeat(64))).unwrap();
    assert!(ends(&mut pull(&["make"]), 1).1.contains("is not in"));
    drop(registry);
    ends(pull(&["sed"]).args(["--retries", "0"]), 75);
}

#[test]
fn of_two_pushes_that_both_succeed_the_first_pin_wins() {
    let (fixture, registry) = (Fixture::new(), DockerRegistry::start());
    let [pins, store] = ["pins", "final"].map(|name| new_store(&fixture, name));
    let (repository, other) = (registry.repository("farm"), registry.repository("other"));
    let into = |command: Command| {
        let mut command = with_pins(command, &pins);
        command.arg("--into").arg(&store);
        command
    };
    let winner = gcc(&fixture, "one", "winner");
    let first = json_of(&mut into(push(&[&winner], &repository)));
    let first = only(&first);
    assert_eq!((&first["pin"], &first["local"]), (&first["manifest"], &json!("moved")));
    assert!(!winner.path().exists());
    assert_eq!((pin(&pins), text(&store)), (first["manifest"].clone(), "winner".into()));

    // The tag is that of the other push, which wrote it within the same milliseconds.
    let loser = gcc(&fixture, "two", "loser");
    json_of(&mut push(&[&loser], &other));
    retag(&other, &repository);
    let second = json_of(&mut into(push(&[&loser], &repository)));
    let second = only(&second);
    assert_eq!((&second["same"], &second["pin"], &second["local"]), (&json!(true), &first["pin"], &json!("removed")));
    assert_ne!(second["manifest"], first["manifest"]);
    assert!(!loser.path().exists());
    assert_eq!((pin(&pins), text(&store)), (first["manifest"].clone(), "winner".into()));
    let here = new_store(&fixture, "here");
    json_of(&mut with_pins(pull(&here, &repository, &["gcc"]), &pins));
    assert_eq!(text(&here), "winner");

    // A pin without its manifest makes no push succeed.
    fs::write(pins.join("gcc"), format!("sha256:{}\n", "0".repeat(64))).unwrap();
    let third = gcc(&fixture, "three", "loser");
    assert!(ends(&mut into(push(&[&third], &repository)), 1).1.contains("is not in"));
    assert!(third.path().exists());
}

#[test]
fn a_pushed_layer_is_moved_unless_others_get_another_one() {
    private_mounts().unwrap();
    let (fixture, registry) = (Fixture::new(), DockerRegistry::start());
    let store = new_store(&fixture, "final");
    let repository = registry.repository("farm");
    let into = |layer: &Layer, store: &Path| {
        let mut command = push(&[layer], &repository);
        command.arg("--into").arg(store);
        command
    };
    // The stores are checked before anything is pushed.
    let disk = fixture.path().join("disk");
    Disk::format(&fixture.path().join("image"), 1 << 20, "");
    let disk = Disk::mount(&fixture.path().join("image"), disk);
    let layer = gcc(&fixture, "one", "a");
    assert!(ends(&mut into(&layer, disk.path()), 1).1.contains("different mounts"));
    assert!(ends(&mut into(&layer, &fixture.path().join("none")), 1).1.contains("does not exist"));
    let mounts = ["mount-1", "mount-2"].map(|name| new_store(&fixture, name));
    for mount in &mounts {
        run_tool("mount", &["--bind", fixture.path().to_str().unwrap(), mount.to_str().unwrap()]);
    }
    let layer_there = Layer::at(mounts[0].join("one/gcc"));
    assert!(ends(&mut into(&layer_there, &mounts[1].join("final")), 1).1.contains("different mounts"));
    for mount in &mounts {
        run_tool("umount", &["--lazy", mount.to_str().unwrap()]);
    }
    assert!(ends(&mut pull(&store, &repository, &["gcc"]), 1).1.contains("is not in"));
    drop(disk);

    assert!(ends(&mut into(&layer, &store), 0).0.ends_with(", moved to the store\n"));
    let moved = store.join("gcc");
    assert_eq!((text(&store), layer.path().exists()), ("a".into(), false));
    // A layer of the store itself stays there.
    assert_eq!(only(&json_of(&mut into(&Layer::at(&moved), &store)))["local"], "kept");
    assert_eq!(only(&json_of(&mut into(&Layer::at(&moved), &store.join("../final"))))["local"], "kept");
    for (number, content) in ["a", "b"].into_iter().enumerate() {
        let layer = gcc(&fixture, &format!("later-{number}"), content);
        let pushed = json_of(&mut into(&layer, &store));
        assert_eq!(only(&pushed)["local"], "removed", "{content}");
        assert!(!layer.path().exists());
    }
    assert_eq!((text(&store), names(&store)), ("a".into(), vec!["gcc".to_string()]));
    // The next pull of the store needs no registry.
    drop(registry);
    json_of(&mut pull(&store, &repository, &["gcc"]));
}

#[test]
fn of_several_pushes_of_one_layer_into_one_store_all_succeed() {
    let (fixture, registry) = (Fixture::new(), DockerRegistry::start());
    let store = new_store(&fixture, "final");
    let repository = registry.repository("farm");
    let layer = gcc(&fixture, "one", "a");
    let into = || {
        let mut command = push(&[&layer], &repository);
        command.arg("--into").arg(&store);
        command
    };
    let hold = Hold::of([layer.path()]).unwrap();
    assert_eq!(only(&json_of(&mut into()))["local"], "in_use");
    assert!(layer.fs().exists() && names(&store).is_empty());
    hold.release().unwrap();

    let mut pushes: Vec<_> = (0..4).map(|_| into()).collect();
    let results: Vec<Value> = std::thread::scope(|scope| {
        let threads: Vec<_> = pushes.iter_mut().map(|push| scope.spawn(|| json_of(push))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let locals: BTreeSet<&str> = results.iter().map(|result| only(result)["local"].as_str().unwrap()).collect();
    assert!(locals.contains("moved") && locals.is_subset(&["moved", "in_use"].into()), "{locals:?}");
    assert_eq!((text(&store), names(&store), layer.path().exists()), ("a".into(), vec!["gcc".to_string()], false));
    // A later push of the path finds the layer in the store.
    assert_eq!(only(&json_of(&mut into()))["local"], "moved");
}
