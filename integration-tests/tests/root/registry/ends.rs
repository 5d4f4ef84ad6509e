//! Pushes and pulls that are killed, and registries that die: nothing looks whole that is not.

use std::sync::{Arc, Mutex};

use integration_tests::registry::{DockerRegistry, Relay};
use rustix::process::{Pid, Signal, kill_process};

use super::*;

/// The number of kills per test.
fn kills() -> u64 {
    std::env::var("LAYERED_KILLS").map_or(12, |kills| kills.parse().unwrap())
}

/// The layers of each test: small and large, so that kills hit all kinds of requests.
fn layers(store: &Path) -> Vec<Layer> {
    vec![
        make(store, "one", &unusual()),
        make_large(store, "two", 300_000),
        make(store, "three", &Dir::new().file("a", "b")),
    ]
}

const NAMES: [&str; 3] = ["one", "two", "three"];

/// Runs a command through a relay that kills it after `limit` bytes. Returns whether it was killed.
fn killed_at(registry: &DockerRegistry, limit: u64, command: impl FnOnce(&str) -> Command) -> bool {
    let victim: Arc<Mutex<Option<Pid>>> = Arc::default();
    let target = Arc::clone(&victim);
    // The lock is held until the process is known.
    let mut known = victim.lock().unwrap();
    let relay = Relay::start(registry.address(), limit, move || {
        let victim = target.lock().unwrap().unwrap();
        // It may have ended.
        let _ = kill_process(victim, Signal::KILL);
    });
    let mut child = command(&relay.repository("farm")).args(["--jobs", "2"]).stdout(Stdio::null()).spawn().unwrap();
    *known = Some(Pid::from_child(&child));
    drop(known);
    !child.wait().unwrap().success()
}

/// Returns how many bytes pass without a kill.
fn bytes_of(registry: &DockerRegistry, command: impl FnOnce(&str) -> Command) -> u64 {
    let relay = Relay::start(registry.address(), u64::MAX, || {});
    ends(&mut command(&relay.repository("farm")), 0);
    relay.passed()
}

#[test]
fn a_killed_push_leaves_no_layer_that_looks_whole() {
    let fixture = Fixture::new();
    let there = new_store(&fixture, "there");
    let layers = layers(&there);
    let all: Vec<_> = layers.iter().collect();
    let forget = || layers.iter().for_each(|layer| drop(fs::remove_file(layer.path().join("oci.json"))));
    let total = bytes_of(&DockerRegistry::start(), |repository| push(&all, repository));
    let mut killed = 0;
    for number in 0..kills() {
        forget();
        let registry = DockerRegistry::start();
        let limit = 1 + total * number / kills();
        killed += u64::from(killed_at(&registry, limit, |repository| push(&all, repository)));
        // Every name that is there is whole.
        let here = new_store(&fixture, &format!("here-{number}"));
        let output = run(pull(&here, &registry.repository("farm"), &NAMES).arg("--json"));
        let output: Value = serde_json::from_slice(&output.stdout).unwrap();
        for failed in output["failed"].as_array().unwrap() {
            assert!(failed["error"].as_str().unwrap().contains("is not in"), "{limit}: {failed}");
        }
        for name in names(&here) {
            assert!(is_intact(&here.join(&name)), "{limit}: {name}");
        }
        // The next push adds what is missing.
        ends(&mut push(&all, &registry.repository("farm")), 0);
        ends(&mut pull(&here, &registry.repository("farm"), &NAMES), 0);
        assert!(NAMES.iter().all(|name| is_intact(&here.join(name))), "{limit}");
        // The packed blobs have no names that could stay.
        assert_eq!(names(&there), ["one", "three", "two"]);
    }
    assert!(killed > kills() / 2, "only {killed} were killed");
}

#[test]
fn a_killed_pull_leaves_no_layer_that_looks_whole() {
    let (fixture, registry) = (Fixture::new(), DockerRegistry::start());
    let layers = layers(&new_store(&fixture, "there"));
    ends(&mut push(&layers.iter().collect::<Vec<_>>(), &registry.repository("farm")), 0);
    let probe = new_store(&fixture, "probe");
    let total = bytes_of(&registry, |repository| pull(&probe, repository, &NAMES));
    let mut killed = 0;
    for number in 0..kills() {
        let here = new_store(&fixture, &format!("here-{number}"));
        let limit = 1 + total * number / kills();
        killed += u64::from(killed_at(&registry, limit, |repository| pull(&here, repository, &NAMES)));
        for name in names(&here).iter().filter(|name| !name.starts_with("new/")) {
            assert!(is_intact(&here.join(name)), "{limit}: {name}");
        }
        ends(&mut pull(&here, &registry.repository("farm"), &NAMES), 0);
        assert!(NAMES.iter().all(|name| is_intact(&here.join(name))), "{limit}");
        // A collector removes what the killed one has left.
        ends(layered().arg("gc").arg(&here).args(["--max-bytes", "1t"]), 0);
        assert_eq!(names(&here), ["one", "three", "two"]);
    }
    assert!(killed > kills() / 2, "only {killed} were killed");
}

#[test]
fn a_broken_connection_is_made_again() {
    let (fixture, registry) = (Fixture::new(), DockerRegistry::start());
    let layers = layers(&new_store(&fixture, "there"));
    let all: Vec<_> = layers.iter().collect();
    for (number, limit) in [1, 2_000, 50_000, 150_000, 290_000].into_iter().enumerate() {
        let relay = Relay::start(registry.address(), limit, || {});
        layers.iter().for_each(|layer| drop(fs::remove_file(layer.path().join("oci.json"))));
        let repository = relay.repository(&format!("farm-{number}"));
        ends(&mut push(&all, &repository), 0);
        let relay = Relay::start(registry.address(), limit, || {});
        let here = new_store(&fixture, &format!("here-{number}"));
        ends(&mut pull(&here, &relay.repository(&format!("farm-{number}")), &NAMES), 0);
        assert!(NAMES.iter().all(|name| is_intact(&here.join(name))), "{limit}");
        assert!(relay.passed() > limit);
    }
}

#[test]
fn a_registry_that_dies_is_temporary_and_leaves_nothing() {
    let (fixture, registry) = (Fixture::new(), DockerRegistry::start());
    let layers = layers(&new_store(&fixture, "there"));
    let all: Vec<_> = layers.iter().collect();
    let repository = registry.repository("farm");
    ends(&mut push(&all, &repository), 0);
    let address = registry.address();
    let registry = Arc::new(Mutex::new(Some(registry)));
    let victim = Arc::clone(&registry);
    let relay = Relay::start(address, 100_000, move || victim.lock().unwrap().as_mut().unwrap().stop());
    let here = new_store(&fixture, "here");
    let mut command = pull(&here, &relay.repository("farm"), &["two"]);
    ends(command.args(["--retries", "1"]), 75);
    assert_eq!(names(&here), [""; 0]);
    // The relay keeps the other reference for ever.
    let mut registry = registry.lock().unwrap().take().unwrap();
    registry.restart();
    ends(&mut pull(&here, &repository, &NAMES), 0);
    assert!(NAMES.iter().all(|name| is_intact(&here.join(name))));
}
