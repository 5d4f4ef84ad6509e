//! `layered plan`, `merge`, `ls` and `show`. More of `show` is in module `lookup`.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use integration_tests::{Fixture, layered};
use layer::{Layer, Meta};
use serde_json::{Value, json};

use super::run;

#[test]
fn plan_prints_the_plan_and_changes_nothing() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(200);
    let mut command = layered();
    command.args(["plan", "--base"]).arg(fixture.base().path());
    for layer in &layers {
        command.arg("--layer").arg(layer.path());
    }
    let (status, stdout, stderr) = run(command.args(["--rung", "mount-paths"]));
    assert_eq!((status, &*stderr), (0, ""));
    assert!(stdout.contains("200 layers over") && stdout.contains("merged into one directory first"), "{stdout}");
    assert!(layers.iter().all(|layer| layer.last_used().unwrap().is_none()));
}

#[test]
fn merge_makes_the_directory_of_a_run() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(3);
    let target = fixture.path().join("merged");
    let mut command = layered();
    let (status, stdout, _) = run(command.arg("merge").arg(&target).args(layers.iter().map(Layer::path)));
    assert_eq!(status, 0);
    assert_eq!(stdout, "3 layers merged: 4 files linked, 0 copied, 2 directories, 0 whiteouts\n");
    assert_eq!(fs::read(target.join("top")).unwrap(), b"0\n");
    assert_eq!(fs::read_dir(target.join("deps")).unwrap().count(), 3);
}

/// Makes a layer with a `layer.json` and a sidecar.
fn finished_layer(fixture: &Fixture, name: &str, exit_status: i64) -> Layer {
    let layer = fixture.layer(name, |_| {});
    let meta = Meta { exit_status, disk_usage: 3 << 20, ..Meta::new("base", SystemTime::now()) };
    layer.write_sidecar("package", &json!({"name": name})).unwrap();
    layer.write_meta(&meta).unwrap();
    layer
}

#[test]
fn ls_and_show_print_layers() {
    let fixture = Fixture::new();
    let layer = finished_layer(&fixture, "good", 0);
    finished_layer(&fixture, "bad", 2);
    fixture.layer("half-made", |_| {});
    layer.touch().unwrap();

    let (status, stdout, _) = run(layered().arg("ls").arg(fixture.store()));
    let lines: Vec<Vec<_>> =
        stdout.lines().map(|line| line.split("  ").filter(|cell| !cell.is_empty()).map(str::trim).collect()).collect();
    assert_eq!(status, 0);
    assert_eq!(lines.len(), 3, "{stdout}");
    assert_eq!(lines[1][..4], ["bad", "exit 2", "3.0 MiB", "never"]);
    assert_eq!(lines[2][..3], ["good", "ok", "3.0 MiB"]);

    let (_, stdout, _) = run(layered().args(["ls", "--json"]).arg(fixture.store()));
    let rows: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        (&rows[0]["name"], &rows[0]["exit_status"], &rows[0]["last_used"]),
        (&json!("bad"), &json!(2), &Value::Null)
    );

    let (_, stdout, _) = run(layered().arg("show").arg(layer.path()));
    assert!(
        stdout.contains("exit status  0") && stdout.contains("package.json") && stdout.contains("\"name\": \"good\""),
        "{stdout}"
    );
    let (_, stdout, _) = run(layered().args(["show", "--json"]).arg(layer.path()));
    let shown: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(shown["sidecars"]["package"]["name"], "good");
    assert_eq!(shown["meta"]["base_hash"], "base");

    let (status, _, stderr) = run(layered().arg("show").arg(fixture.store().join("half-made")));
    assert_eq!(status, 125);
    assert!(stderr.contains("has no layer.json"), "{stderr}");
    let (status, _, stderr) = run(layered().arg("show").arg(fixture.store()));
    assert!(status == 125 && stderr.contains("is a store of layers; list it with `layered ls "), "{stderr}");
    let mut command = layered();
    let (_, stdout, _) = run(command.args(["show", "good"]).env("LAYERED_STORE", fixture.store()));
    assert!(stdout.contains("exit status  0"), "{stdout}");
    let (status, stdout, _) = run(layered().arg("ls").env("LAYERED_STORE", fixture.store()));
    assert_eq!((status, stdout.lines().count()), (0, 3), "{stdout}");
    for arguments in [&["ls"][..], &["gc", "--max-bytes", "0"]] {
        let (status, _, stderr) = run(layered().args(arguments).arg(fixture.base().path()));
        let expected = format!("layered: there are no layers in {}\n", fixture.base().path().display());
        assert_eq!((status, stderr), (0, expected));
        let (status, _, stderr) = run(layered().args(arguments).env_remove("LAYERED_STORE"));
        assert!(status == 125 && stderr.contains("set LAYERED_STORE"), "{stderr}");
    }
    let (status, _, stderr) = run(layered().arg("ls").arg(Path::new("/no/such/store")));
    assert_eq!(status, 125);
    assert!(stderr.contains("/no/such/store does not exist"), "{stderr}");
}

#[test]
fn show_prints_every_key_of_a_run_json() {
    let fixture = Fixture::new();
    let layer = finished_layer(&fixture, "layer", 0);
    for (sidecar, has_json) in
        [(json!({"argv": ["make"], "user": "0:0"}), false), (json!({"argv": ["make"], "mine": "kept"}), true)]
    {
        layer.write_sidecar("run", &sidecar).unwrap();
        let (status, stdout, _) = run(layered().arg("show").arg(layer.path()));
        assert!(status == 0 && stdout.contains("command      make\n"), "{stdout}");
        assert_eq!(
            (stdout.contains("run.json"), stdout.contains("\"mine\": \"kept\"")),
            (has_json, has_json),
            "{stdout}"
        );
    }
}
