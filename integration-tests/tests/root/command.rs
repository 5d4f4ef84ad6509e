//! The `layered` command as scripts use it. This file has the tests that concern several commands;
//! the submodules have those of one.

mod commit;
mod diff;
mod ends;
mod habits;
mod layers;
mod output;
mod results;
mod run;
mod upkeep;

use std::fs;
use std::process::{Command, Output, Stdio};

use integration_tests::user::powerless;
use integration_tests::{Fixture, layered};
use layer::Layer;
use serde_json::{Value, json};

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn run(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap();
    (status.code().unwrap(), text(&stdout), text(&stderr))
}

fn script(fixture: &Fixture, options: &[&str], script: &str) -> (i32, String, String) {
    run(fixture.layered_run().args(options).args(["--", "sh", "-c", script]))
}

#[test]
fn a_missing_privilege_is_reported() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(2);
    for command in ["run", "plan"] {
        let mut without = powerless(layered().get_program());
        without.args([command, "--base"]).arg(fixture.base().path());
        for layer in &layers {
            without.arg("--layer").arg(layer.path());
        }
        if command == "run" {
            without.args(["--", "true"]);
        }
        let (status, stdout, stderr) = run(&mut without);
        assert_eq!((status, &*stdout, stderr.lines().count()), (125, "", 1), "{stderr}");
        assert!(stderr.contains("cannot enter a user namespace: no further user namespace is allowed"), "{stderr}");
    }
    assert_eq!(layers[0].last_used().unwrap(), None);
}

#[test]
fn json_is_one_line_per_command() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(2);
    let json = |command: &mut Command| -> Value {
        let (status, stdout, stderr) = run(command.arg("--json"));
        assert_eq!((status, &*stderr, stdout.lines().count()), (0, "", 1), "{stdout}");
        serde_json::from_str(&stdout).unwrap()
    };
    let trees: Vec<_> = layers.iter().map(Layer::fs).collect();
    let mut command = layered();
    command.args(["plan", "--base"]).arg(fixture.base().path());
    for layer in &layers {
        command.arg("--layer").arg(layer.path());
    }
    let plan = json(&mut command);
    assert_eq!((&plan["rung"], &plan["separate"], &plan["merged"]), (&json!("lowerdir+"), &json!(trees), &json!([])));

    let merged = json(layered().arg("merge").arg(fixture.path().join("merged")).args(layers.iter().map(Layer::path)));
    assert_eq!(merged, json!({"linked": 3, "copied": 0, "directories": 2, "whiteouts": 0, "opaques": 0}));

    let dead = fixture.scratch().join("layered-0123456789abcdef");
    fs::create_dir(&dead).unwrap();
    let swept = json(layered().arg("sweep").arg(fixture.scratch()));
    assert_eq!(swept, json!({"removed": [dead], "skeletons": [], "live": 0, "failed": []}));
}

#[test]
fn help_contains_an_example() {
    for command in ["run", "plan", "merge", "ls", "diff", "show", "gc"] {
        let (status, stdout, stderr) = run(layered().args([command, "--help"]));
        assert_eq!((status, &*stderr), (0, ""));
        assert!(stdout.contains(&format!("layered {command} ")) && stdout.contains("Example"), "{stdout}");
        assert!(!stdout.contains('\u{1b}'), "the help is coloured without a terminal");
    }
}
