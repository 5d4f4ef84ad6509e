//! `layered commit`: the metadata of the layer, and its use in another stack. Module `commit` of
//! the suite kills it.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use integration_tests::{Fixture, layered};
use layer::Layer;
use serde_json::{Value, json};
use walkdir::WalkDir;

use super::{run, script};

/// Runs `layered commit` with these arguments. Also returns the content of the layer's
/// `layer.json`.
fn commit(arguments: &[&str], layer: &Path) -> (i32, String, String, Option<Value>) {
    let (status, stdout, stderr) = run(layered().arg("commit").args(arguments).env_remove("SOURCE_DATE_EPOCH"));
    let json = fs::read(layer.join("layer.json")).ok().map(|text| serde_json::from_slice(&text).unwrap());
    (status, stdout, stderr, json)
}

#[test]
fn an_upper_becomes_a_layer() {
    let fixture = Fixture::new();
    fixture.numbered_layers(2);
    let path = |name: &str| fixture.store().join(name).to_str().unwrap().to_string();
    let (upper, layer, report, meta) = (path("upper"), path("layer"), path("report.json"), path("meta.json"));
    let layers = ["--layer", &path("numbered-0000"), "--layer", &path("numbered-0001")];
    let keep = ["--upper", &upper, "--json", &report];
    let make = "rm -r /deps; mkdir /deps; echo new > /deps/new; exit 3";
    let write = |user: &str| script(&fixture, &[&layers[..], &keep, &["--user", user]].concat(), make);
    assert_eq!(write("0:8").0, 3);

    fs::write(&meta, r#"{"uid": 1000, "timing": {"build": 2}, "colour": "blue"}"#).unwrap();
    let run_and_meta = ["--run", &report, "--meta", &meta];
    let arguments = [&[&*upper, &layer], &run_and_meta[..], &["--source-date-epoch=1000000000"]].concat();
    let (status, stdout, stderr, json) = commit(&arguments, Path::new(&layer));
    assert_eq!((status, &*stderr), (0, ""));
    // The number of blocks depends on the file system.
    let size = stdout.strip_prefix(&format!("{layer}: ")).unwrap();
    assert!(size.ends_with(" KiB in 4 entries; removed 4 that the run itself had created\n"), "{stdout}");
    let json = json.unwrap();
    assert_eq!(json["disk_usage"], json!(Layer::at(&layer).measure().unwrap().bytes));
    let keys: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
    let known = "exit_status parent_hashes uid gid base_hash disk_usage timing created_at failed_dep colour";
    assert_eq!(keys.join(" "), known);
    assert_eq!(json["exit_status"], 3);
    assert_eq!(json["parent_hashes"], json!(["numbered-0000", "numbered-0001"]));
    assert_eq!((&json["uid"], &json["gid"], &json["base_hash"]), (&json!(1000), &json!(8), &json!("base")));
    assert_eq!(json["timing"], json!({"build": 2.0}));
    for entry in WalkDir::new(Layer::at(&layer).fs()) {
        assert!(
            entry.unwrap().metadata().unwrap().modified().unwrap()
                <= SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)
        );
    }

    // In another stack, the layer shows its own files and those of a sibling.
    let third = fixture.layer("third", |fs| {
        fs::create_dir(fs.join("deps")).and_then(|()| fs::write(fs.join("deps/third"), "")).unwrap()
    });
    let stack =
        ["--layer", &layer, "--layer", third.path().to_str().unwrap(), layers[0], layers[1], layers[2], layers[3]];
    assert_eq!(script(&fixture, &stack, "ls /deps"), (0, "new\nthird\n".into(), String::new()));

    // A second commit changes nothing and prints one line.
    assert_eq!(write("0:0").0, 3);
    let (status, _, stderr, _) = commit(&[&upper, &layer, "--run", &report], Path::new(&layer));
    assert_eq!(status, 125);
    assert_eq!(
        stderr,
        format!(
            "layered: cannot capture into {layer}: it is a layer already, or is becoming one; use it, or choose another layer\n"
        )
    );
    assert!(Path::new(&upper).is_dir());

    // A tree is committed in place, without a report.
    let other = path("other");
    fs::create_dir(&other).unwrap();
    fs::rename(&upper, format!("{other}/fs")).unwrap();
    let base = fixture.base();
    let at = format!("{other}/fs");
    let arguments = [&[&*at, &other, "--base", base.path().to_str().unwrap()], &layers[..]].concat();
    let (status, stdout, stderr, json) = commit(&arguments, Path::new(&other));
    assert_eq!((status, &*stderr), (0, ""), "{stdout}");
    let json = json.unwrap();
    assert_eq!((&json["exit_status"], &json["parent_hashes"][1]), (&json!(0), &json!("numbered-0001")));

    for (arguments, words) in [
        (&["--run", &meta][..], "is not the report of a run with a result"),
        (&["--run", "/no/such/report"], "cannot read /no/such/report"),
        (&["--base", "/no/such/base"], "/no/such/base does not exist"),
        (&["--run", &report, "--source-date-epoch"], "needs SOURCE_DATE_EPOCH in the environment"),
        (&[], "--run"),
    ] {
        let (status, stdout, stderr, _) = commit(&[&[&*upper, "/no/layer"], arguments].concat(), Path::new(&layer));
        assert_eq!((status, &*stdout), (125, ""));
        assert!(stderr.contains(words), "{arguments:?}: {stderr}");
    }
}
