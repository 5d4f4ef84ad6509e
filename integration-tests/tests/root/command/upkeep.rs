//! Looking after a store: `layered rm`, `ls --tree` and `ls --kept`.

use std::fs;
use std::time::SystemTime;

use integration_tests::{Fixture, layered};
use layer::{Layer, Meta};
use serde_json::{Value, json};

use super::{run, script};

fn finished(fixture: &Fixture, name: &str, parents: &[&str]) -> Layer {
    let layer = Layer::at(fixture.store().join(name));
    fs::create_dir_all(layer.fs()).unwrap();
    let parent_hashes = parents.iter().map(ToString::to_string).collect();
    layer.write_meta(&Meta { parent_hashes, ..Meta::new("base", SystemTime::now()) }).unwrap();
    layer
}

#[test]
fn rm_removes_what_it_can_and_names_what_needs_the_rest() {
    let fixture = Fixture::new();
    let store = fixture.store();
    for name in ["free", "used", "other"] {
        finished(&fixture, name, &[]);
    }
    finished(&fixture, "base", &[]);
    fs::create_dir_all(store.join("half/fs")).unwrap();
    let (_, _, stderr) =
        script(&fixture, &["--keep-failed", "--layer", store.join("used").to_str().unwrap()], "exit 3");
    let [kept] = &fixture.left()[..] else { panic!("{stderr}") };

    let mut rm = layered();
    rm.args(["rm", "--json", "used", "base", "half", "nosuch", "free"]).arg(store.join("other/"));
    let (status, stdout, stderr) = run(rm.current_dir(fixture.scratch()).env("LAYERED_STORE", &store));
    let outcomes: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let removed: Vec<_> = outcomes.iter().map(|outcome| outcome["removed"].as_bool().unwrap()).collect();
    assert_eq!((status, removed), (1, vec![false, false, false, false, true, true]));
    let lines: Vec<_> = stderr.lines().collect();
    for (outcome, (line, message)) in outcomes.iter().zip(lines.iter().zip([
        format!("the kept run {0} needs it; end that with `layered commit` or `layered discard {0}`", kept.display()),
        "it is the base of ".into(),
        "half has no layer.json: it is a base, or its build is still running or was killed".into(),
        "nosuch does not exist; pass the path of a layer".into(),
    ])) {
        assert!(line.contains(&message), "{line}");
        assert_eq!(format!("layered: {}", outcome["error"].as_str().unwrap()), *line);
    }
    assert_eq!(lines.len(), 4, "{stderr}");
    assert_eq!(outcomes[4], json!({"layer": store.join("free"), "removed": true, "error": null}));

    for (dir, message) in [(&store, "is a store of layers; pass the layers to remove"), (kept, "is not a layer")] {
        let (status, _, stderr) = run(layered().arg("rm").arg(dir));
        assert!(status == 1 && stderr.contains(message), "{stderr}");
    }

    assert_eq!(run(layered().arg("discard").arg(kept)).0, 0);
    let (status, stdout, stderr) = run(layered().args(["rm", "--base"]).args([store.join("base"), store.join("used")]));
    assert_eq!((status, &*stdout, &*stderr), (0, "", ""));
    let mut left: Vec<_> = fs::read_dir(&store).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, [".layered", "half"]);
}

#[test]
fn ls_draws_layers_below_their_parents() {
    let fixture = Fixture::new();
    for (name, parents) in [
        ("libc", &[][..]),
        ("zlib", &["libc"]),
        ("gcc", &["libc"]),
        ("python", &["zlib", "gcc", "libc"]),
        ("pip", &["python"]),
    ] {
        finished(&fixture, name, parents);
    }
    let (status, stdout, _) = run(layered().args(["ls", "--tree"]).arg(fixture.store()));
    let drawn: Vec<_> = stdout.lines().skip(1).map(|line| line.split("  ok").next().unwrap().trim_end()).collect();
    let expected = ["libc", "├── gcc", "│   └── python", "│       └── pip", "└── zlib", "    └── python (*)"];
    assert_eq!((status, &drawn[..]), (0, &expected[..]), "{stdout}");
    let json = |options: &[&str]| run(layered().args(["ls", "--json"]).args(options).arg(fixture.store())).1;
    assert_eq!(json(&[]), json(&["--tree"]));
    let python: Value = json(&[]).lines().map(|line| serde_json::from_str(line).unwrap()).nth(3).unwrap();
    assert_eq!((&python["parent_hashes"], &python["base_hash"]), (&json!(["zlib", "gcc", "libc"]), &json!("base")));
}

#[test]
fn ls_lists_kept_runs_by_the_names_that_other_commands_take() {
    let fixture = Fixture::new();
    let list = |options: &[&str]| {
        run(layered().args(["ls", "--kept"]).args(options).env("LAYERED_SCRATCH", fixture.scratch()))
    };
    let (status, stdout, stderr) = list(&["--json"]);
    assert!(status == 0 && stdout.is_empty() && stderr.contains("there are no kept runs in"), "{stderr}");

    script(&fixture, &["--keep-failed"], "echo 'two words' >/new; exit 3");
    let (_, stdout, _) = list(&["--json", "--size"]);
    let run_of: Value = serde_json::from_str(stdout.trim()).unwrap();
    let name = run_of["name"].as_str().unwrap();
    assert_eq!(run_of["path"], json!(fixture.scratch().join(name)));
    assert_eq!((&run_of["status"], &run_of["argv"][1]), (&json!({"exited": 3}), &json!("-c")));
    assert!(run_of["size"].as_u64().unwrap() > 0 && run_of["kept_at"].is_string(), "{stdout}");

    let (_, stdout, _) = list(&["--size"]);
    let lines: Vec<_> = stdout.lines().collect();
    assert!(lines[0].starts_with("RUN") && lines[0].ends_with("COMMAND") && lines.len() == 2, "{stdout}");
    assert!(lines[1].starts_with(name) && lines[1].contains("exit 3"), "{stdout}");
    assert!(lines[1].ends_with(r"sh -c 'echo '\''two words'\'' >/new; exit 3'"), "{stdout}");
    // With the directory given, a row has a path that works anywhere.
    let (_, stdout, _) = run(layered().args(["ls", "--kept", "--scratch"]).arg(fixture.scratch()));
    let path = fixture.scratch().join(name);
    assert!(stdout.lines().nth(1).unwrap().starts_with(path.to_str().unwrap()), "{stdout}");

    // Without a scratch directory, there are two places, which can be missing or the same.
    std::os::unix::fs::symlink(fixture.scratch(), fixture.path().join("link")).unwrap();
    for (store, temporary, expected, count) in [
        ("missing", "scratch", 0, 1),
        ("link", "scratch", 0, 1),
        ("missing", "missing", 125, 0),
        ("file", "scratch", 125, 1),
    ] {
        fs::write(fixture.path().join("file"), "").unwrap();
        let mut list = layered();
        list.args(["ls", "--kept", "--json"]).env_remove("LAYERED_SCRATCH").env("TMPDIR", temporary);
        let (status, stdout, stderr) = run(list.env("LAYERED_STORE", store).current_dir(fixture.path()));
        assert_eq!((status, stdout.lines().count()), (expected, count), "{store} {temporary}: {stderr}");
        assert_eq!(stderr.contains(&format!("cannot read {store}")), store != "link", "{stderr}");
    }

    let discard = |name: &str| run(layered().args(["discard", name]).env("LAYERED_SCRATCH", fixture.scratch()));
    assert_eq!(discard(name).0, 0);
    let (status, _, stderr) = discard(name);
    assert!(status == 125 && stderr.contains("is not a kept run; `layered ls --kept` lists"), "{stderr}");
    for options in [&["--kept", "store"][..], &["--kept", "--tree"], &["--size"], &["--scratch", "."]] {
        assert_eq!(run(layered().arg("ls").args(options)).0, 125, "{options:?}");
    }
}
