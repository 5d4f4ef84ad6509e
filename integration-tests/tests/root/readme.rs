//! Runs the session and the programs of the README as they stand there. The programs are the
//! examples of the crates. Also runs a script from the help.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use integration_tests::{Fixture, layered};
use layer::{Layer, Meta};

const README: &str = include_str!("../../../README.md");

/// Runs a command that must succeed. Returns its standard output.
fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Lists the commands of a section's `console` blocks, each with its expected output.
fn session(title: &str) -> Vec<(String, String)> {
    let section = README.split("\n## ").find_map(|section| section.strip_prefix(title)).unwrap();
    let blocks = section.split("```console\n").skip(1).map(|block| block.split("```").next().unwrap());
    let mut commands: Vec<(String, String)> = Vec::new();
    for line in blocks.flat_map(str::lines) {
        match line.strip_prefix("# ") {
            Some(command) => commands.push((command.into(), String::new())),
            None => commands.last_mut().unwrap().1.push_str(&format!("{line}\n")),
        }
    }
    commands
}

#[test]
fn the_session_and_the_programs_of_the_readme_work_as_they_stand() {
    let fixture = Fixture::new();
    let dir = fixture.path().join("session");
    fs::create_dir(&dir).unwrap();
    let layered = layered();
    let layered = Path::new(layered.get_program());
    let path = format!("{}:{}", layered.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let at = |program: &str| {
        let mut command = Command::new(program);
        command.current_dir(&dir).env("PATH", &path).env("TMPDIR", fixture.scratch());
        command
    };
    for (command, expected) in session("A first session") {
        if command.contains("mmdebstrap") {
            symlink(fixture.base().path(), dir.join("base")).unwrap();
            continue;
        }
        let seen = output(at("sh").args(["-ec", &command]));
        // The README does not show what depends on the base.
        assert!(expected.is_empty() || seen == expected, "{command}: {seen}");
    }

    let build = output(&mut at(env!("CARGO_BIN_EXE_build-and-capture")));
    assert_eq!(build, "");
    assert_eq!(fs::read_to_string(dir.join("layers/farewell/fs/farewell")).unwrap(), "goodbye\n");
    assert_eq!(fs::read_to_string(dir.join("layers/farewell/fs/seed")).unwrap(), "from the caller");
    let mut list: Vec<_> = output(&mut at(env!("CARGO_BIN_EXE_list-store"))).lines().map(String::from).collect();
    list.sort();
    let expected = [
        "/greeting is in layers/greeting/fs",
        "layers/farewell: exit status 0, sidecars [\"package\", \"run\"]",
        "layers/greeting: exit status 0, sidecars [\"run\"]",
    ];
    assert_eq!(list, expected);
    assert_eq!(fs::read_to_string(dir.join("merged/greeting")).unwrap(), "hello\n");
    assert_eq!(output(&mut at(env!("CARGO_BIN_EXE_own-rootfs"))), "hello\nExited(0)\n");
}

#[test]
fn the_programs_of_the_readme_are_the_examples() {
    for example in [
        include_str!("../../../crates/runner/examples/build_and_capture.rs"),
        include_str!("../../../crates/layer/examples/list_store.rs"),
        include_str!("../../../crates/container/examples/own_rootfs.rs"),
    ] {
        let is_header = |line: &&str| line.is_empty() || line.starts_with("//") || line.starts_with("#![");
        let program: Vec<_> = example.lines().skip_while(is_header).collect();
        let block = format!("```rust,no_run\n{}\n```\n", program.join("\n"));
        assert!(README.contains(&block), "README.md does not have this program:\n{block}");
    }
}

#[test]
fn the_script_in_the_help_of_rm_removes_failed_layers_of_any_name() {
    let fixture = Fixture::new();
    let store = fixture.path().join("failed");
    let layered = layered();
    let layered = Path::new(layered.get_program());
    let help = output(Command::new(layered).args(["rm", "--help"]));
    let script = &help[help.find("  layered ls --json").unwrap()..];
    let script = script.replace("/var/cache/layers", store.to_str().unwrap());
    let path = format!("{}:{}", layered.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let names = || {
        let layers = layer::scan(&store).unwrap().map(Result::unwrap);
        layers.map(|layer| layer.name().to_owned()).collect::<Vec<_>>()
    };
    for (name, exit_status) in [("good", 0), ("-x", 1), ("two words", 1), ("a\nb", 2), ("it's $(id)", 1)] {
        let layer = Layer::at(store.join(name));
        fs::create_dir_all(layer.fs()).unwrap();
        layer.write_meta(&Meta { exit_status, ..Meta::new("base", SystemTime::now()) }).unwrap();
        // A directory of the same name is not the layer.
        fs::create_dir(fixture.path().join(name)).unwrap();
    }
    // The second time, there is no failed layer.
    for _ in 0..2 {
        output(Command::new("sh").args(["-c", &script]).current_dir(fixture.path()).env("PATH", &path));
        assert_eq!(names(), ["good"]);
    }
}
