//! Many runs at a time, in one process and in several, over the same layers and in the same scratch
//! directory. `many-runs` is the program that performs them.

use std::collections::HashSet;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use integration_tests::tree::Snapshot;
use integration_tests::{Done, Fixture, stdout};
use layer::Layer;

/// Returns the number of runs in one process: `LAYERED_RUNS`, by default 128.
fn count() -> usize {
    std::env::var("LAYERED_RUNS").map_or(128, |count| count.parse().expect("LAYERED_RUNS is a number"))
}

fn start(fixture: &Fixture, runs: usize, in_flight: usize) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_many-runs"));
    command.arg(fixture.base().path()).arg(fixture.store()).arg(fixture.scratch());
    command.arg(runs.to_string()).arg(in_flight.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits for the process. Returns the names of the runs.
fn finish(process: Child) -> Vec<String> {
    let output = process.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(String::from).collect()
}

#[test]
fn many_concurrent_runs_in_one_process_succeed() {
    let fixture = Fixture::new();
    fixture.numbered_layers(6);
    let names = finish(start(&fixture, count(), 64));
    // The program performs one more run at its start.
    assert_eq!(names.len(), count() + 1);
    assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len(), "two runs had one name");
}

#[test]
fn many_concurrent_runs_in_four_processes_succeed() {
    let fixture = Fixture::new();
    fixture.numbered_layers(6);
    let processes: Vec<_> = (0..4).map(|_| start(&fixture, count() / 4, 16)).collect();
    let names: Vec<_> = processes.into_iter().flat_map(finish).collect();
    assert_eq!(names.len(), 4 * (count() / 4 + 1));
    assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len(), "two runs had one name");
}

#[test]
fn concurrent_merges_and_runs_see_whole_layers() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(6);
    let trees: Vec<_> = layers.iter().map(Layer::fs).collect();
    let merged = fixture.path().join("merged");
    layer::merge(&trees, &merged).unwrap();
    let expected = Snapshot::of_path(&merged).unwrap();
    std::fs::remove_dir_all(&merged).unwrap();

    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                layers.iter().for_each(|layer| layer.touch().unwrap());
            }
        });
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                layer::merge(&trees, &merged).unwrap();
                assert_eq!(expected.diff(&Snapshot::of_path(&merged).unwrap()), "");
                layer::remove_tree(&merged).unwrap();
            }
        });
        let _done = Done(&over);
        std::thread::scope(|scope| {
            // One thread's runs stack all layers, the other's merge most of them.
            for lowers in [500, 3] {
                let (fixture, layers) = (&fixture, &layers);
                scope.spawn(move || {
                    for _ in 0..10 {
                        let options = fixture.options().max_lowers(lowers);
                        let report = fixture.run_with(layers, "cat /top /deps/*; rm /top; echo x > /deps/0", options);
                        assert_eq!(stdout(&report), "0\n0\n1\n2\n3\n4\n5\n");
                    }
                });
            }
        });
    });
}
