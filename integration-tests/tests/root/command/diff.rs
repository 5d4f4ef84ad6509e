//! `layered diff` of uppers, layers and kept runs, and `layered show --du`.

use std::fs;
use std::path::Path;
use std::process::Command;

use integration_tests::{Fixture, layered};
use serde_json::{Value, json};

use super::{run, script};

/// A command that changes a base with the files of [`add_files`] in every way.
const CHANGES: &str = "echo new > /etc/motd; mkdir /new; echo 1 > /new/file; ln -s file /new/link; \
                       rm /etc/gone; rm -r /opt/old; mkdir /opt/old; echo 2 > /opt/old/other";

/// Adds the files that [`CHANGES`] finds.
fn add_files(base: &Path) {
    fs::create_dir_all(base.join("opt/old")).unwrap();
    for file in ["etc/motd", "etc/gone", "opt/old/file"] {
        fs::write(base.join(file), "old").unwrap();
    }
}

/// Runs `layered diff`. Returns the exit status, the letters with the paths, and standard error.
fn diff(command: &mut Command) -> (i32, Vec<String>, String) {
    let (status, stdout, stderr) = run(command);
    let line = |line: &str| format!("{} {}", &line[..1], line[15..].trim());
    (status, stdout.lines().map(line).collect(), stderr)
}

#[test]
fn an_upper_and_its_layer_show_what_the_command_changed() {
    let fixture = Fixture::new();
    let base = fixture.base();
    add_files(&base.fs());
    let path = |name: &str| fixture.store().join(name).to_str().unwrap().to_string();
    let (upper, report, layer) = (path("upper"), path("report.json"), path("layer"));
    let (status, _, stderr) = script(&fixture, &["--upper", &upper, "--json", &report], CHANGES);
    assert_eq!((status, &*stderr), (0, ""));

    // Nothing of what the run itself made is listed: /dev, /proc, /sys and files in /etc.
    let known = [
        "D /etc/gone",
        "C /etc/motd",
        "A /new/",
        "A /new/file",
        "A /new/link",
        "R /opt/old/",
        "D /opt/old/file",
        "A /opt/old/other",
    ];
    let expected = |lines: &[&str]| (0, lines.iter().map(ToString::to_string).collect::<Vec<_>>(), String::new());
    assert_eq!(diff(layered().args(["diff", &upper, "--run", &report])), expected(&known));
    assert_eq!(diff(layered().args(["diff", &upper, "--base"]).arg(base.path())), expected(&known));
    let (status, lines, stderr) = diff(layered().args(["diff", &upper]));
    let unknown = [
        "W /etc/",
        "D /etc/gone",
        "W /etc/motd",
        "W /new/",
        "W /new/file",
        "W /new/link",
        "W /opt/",
        "R /opt/old/",
        "W /opt/old/other",
    ];
    assert_eq!((status, lines), (0, unknown.map(String::from).to_vec()));
    assert!(stderr.contains("the stack below is not known; pass --run"), "{stderr}");

    let (status, ..) = run(layered().args(["commit", &upper, &layer, "--run", &report]));
    assert_eq!(status, 0);
    // The capture has made a whiteout of what the directory hid.
    let captured =
        ["D /etc/gone", "C /etc/motd", "A /new/", "A /new/file", "A /new/link", "D /opt/old/file", "A /opt/old/other"];
    let mut command = layered();
    command.args(["diff", "layer"]).env("LAYERED_STORE", fixture.store()).env("LAYERED_BASE", base.path());
    assert_eq!(diff(&mut command), expected(&captured));
    let (status, lines, stderr) = diff(layered().args(["diff", &layer]).env_remove("LAYERED_BASE"));
    assert!(status == 0 && lines.contains(&"W /etc/motd".into()), "{lines:?}");
    assert!(stderr.contains("its base base is not in") && stderr.contains("set LAYERED_BASE"), "{stderr}");

    let (_, stdout, _) = run(layered().args(["diff", "--json", &layer, "--base"]).arg(base.path()));
    let changes: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let gone = json!({"path": "/etc/gone", "change": "deleted", "has": "file", "bytes": 0});
    assert_eq!((changes.len(), &changes[0]), (captured.len(), &gone));
    assert_eq!((&changes[1]["change"], &changes[1]["has"]), (&json!("changed"), &json!("file")));
}

#[test]
fn an_upper_is_known_by_its_run_and_not_by_its_content() {
    let fixture = Fixture::new();
    let [upper, copy, report] = ["upper", "copy", "report.json"].map(|name| fixture.path().join(name));
    let text = |path: &Path| path.to_str().unwrap().to_string();
    let command = "mkdir /app; echo '{}' > /app/layer.json; mkdir /fs; echo > /fs/y";
    let (status, ..) = script(&fixture, &["--upper", &text(&upper), "--json", &text(&report)], command);
    assert_eq!(status, 0);
    let expected = ["A /app/", "A /app/layer.json", "A /fs/", "A /fs/y"].map(String::from).to_vec();
    let expected = (0, expected, String::new());
    assert_eq!(diff(layered().arg("diff").arg(&upper).arg("--base").arg(fixture.base().path())), expected);
    // A copy has no record, and then the report decides.
    for name in ["app", "fs"] {
        fs::create_dir_all(copy.join(name)).unwrap();
    }
    for name in ["app/layer.json", "fs/y"] {
        fs::copy(upper.join(name), copy.join(name)).unwrap();
    }
    assert_eq!(diff(layered().arg("diff").arg(&copy).arg("--run").arg(&report)), expected);
}

#[test]
fn a_layer_over_another_is_compared_with_its_recorded_stack() {
    let fixture = Fixture::new();
    add_files(&fixture.base().fs());
    let path = |name: &str| fixture.store().join(name).to_str().unwrap().to_string();
    let (report, below, above) = (path("report.json"), path("below"), path("above"));
    for (layer, options, command) in [
        (&below, &[][..], CHANGES),
        (&above, &["--layer", &below], "echo 3 >> /new/file; echo > /new/more; rm /etc/motd"),
    ] {
        let upper = path("upper");
        let options = [options, &["--upper", &upper, "--json", &report]].concat();
        assert_eq!(script(&fixture, &options, command).0, 0);
        assert_eq!(run(layered().args(["commit", &upper, layer, "--run", &report])).0, 0);
    }
    let expected = ["D /etc/motd", "C /new/file", "A /new/more"].map(String::from).to_vec();
    let found = diff(layered().args(["diff", &above]).env("LAYERED_BASE", fixture.base().path()));
    assert_eq!(found, (0, expected, String::new()));
}

#[test]
fn a_kept_run_shows_what_the_failed_command_changed() {
    let fixture = Fixture::new();
    add_files(&fixture.base().fs());
    assert_eq!(script(&fixture, &["--keep-failed"], "rm /etc/gone; echo > /log; exit 3").0, 3);
    let kept = fixture.left().pop().unwrap();
    let expected = (0, ["D /etc/gone", "A /log"].map(String::from).to_vec(), String::new());
    assert_eq!(diff(layered().arg("diff").arg(&kept)), expected);
    let mut by_name = layered();
    by_name.arg("diff").arg(kept.file_name().unwrap()).env("LAYERED_SCRATCH", fixture.scratch());
    assert_eq!(diff(&mut by_name), expected);
    // Without its description, it is an upper whose stack is not known.
    fs::remove_file(kept.join("run.json")).unwrap();
    assert_eq!(diff(layered().arg("diff").arg(&kept).arg("--base").arg(fixture.base().path())), expected);
    let (status, lines, stderr) = diff(layered().arg("diff").arg(&kept));
    assert_eq!((status, lines), (0, ["W /etc/", "D /etc/gone", "W /log"].map(String::from).to_vec()));
    assert!(stderr.contains("has no run.json") && stderr.contains("pass --base"), "{stderr}");
    let (status, stdout, stderr) = run(layered().args(["diff", "--du"]).arg(&kept));
    assert!(status == 0 && stderr.is_empty() && stdout.ends_with("in 3 entries\n"), "{stdout}{stderr}");
    assert_eq!(run(layered().arg("discard").arg(&kept)).0, 0);
}

#[test]
fn du_names_the_directories_that_explain_the_size() {
    let fixture = Fixture::new();
    let layer = fixture.layer("layer", |fs| {
        for (file, bytes) in
            [("var/lib/apt/lists/a", 3 << 20), ("var/lib/apt/lists/b", 1 << 20), ("usr/lib/c", 1 << 20)]
        {
            fs::create_dir_all(fs.join(file).parent().unwrap()).unwrap();
            fs::write(fs.join(file), vec![1; bytes]).unwrap();
        }
    });
    layer.write_meta(&layer::Meta::new("base", std::time::SystemTime::UNIX_EPOCH)).unwrap();
    let json = |arguments: &[&str]| -> Vec<Value> {
        let (status, stdout, stderr) = run(layered().args(arguments).arg("--json").arg(layer.path()));
        assert_eq!((status, &*stderr), (0, ""));
        stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let paths =
        |found: &[Value]| found.iter().map(|found| found["path"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    let found = json(&["diff", "--du"]);
    assert_eq!(paths(&found), ["/var/lib/apt/lists", "/usr/lib", "/"]);
    assert_eq!((&found[0]["entries"], &found[2]["entries"]), (&json!(3), &json!(4)));
    let sum: u64 = found.iter().map(|found| found["bytes"].as_u64().unwrap()).sum();
    // The root of the tree is not among the entries.
    let root = fs::symlink_metadata(layer.fs()).unwrap();
    assert_eq!(sum + std::os::unix::fs::MetadataExt::blocks(&root) * 512, layer.measure().unwrap().bytes);
    assert_eq!(paths(&json(&["diff", "--du", "--top", "2"])), ["/var/lib/apt/lists", "/"]);
    assert_eq!(json(&["show", "--du"])[0]["largest"], json!(found));
    assert_eq!(json(&["show"])[0].get("largest"), None);

    let (_, stdout, _) = run(layered().args(["diff", "--du"]).arg(layer.path()));
    let lines: Vec<_> = stdout.lines().collect();
    assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>(), ["SIZE", "SHARE", "ENTRIES", "DIRECTORY"]);
    assert!(lines[1].ends_with(" 79 %        3  /var/lib/apt/lists"), "{stdout}");
    assert!(lines[4].ends_with(" in 9 entries"), "{stdout}");
    let (status, stdout, _) = run(layered().args(["show", "--du"]).arg(layer.path()));
    assert!(status == 0 && stdout.contains("/var/lib/apt/lists\n"), "{stdout}");
    let (status, _, stderr) = run(layered().args(["diff", "--du", "--top", "0"]).arg(layer.path()));
    assert!(status == 125 && stderr.contains("at least 1"), "{stderr}");
}
