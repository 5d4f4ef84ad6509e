//! `layered page`: the file that it makes of a store, without a browser. `scripts/check-page` opens
//! such files in one.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use integration_tests::{Fixture, layered};
use layer::{Hold, Layer, Meta};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// Makes a layer with this `layer.json` and an empty tree.
fn make(store: &Path, name: &str, meta: Meta) -> Layer {
    let layer = Layer::at(store.join(name));
    fs::create_dir_all(layer.fs()).unwrap();
    layer.write_meta(&meta).unwrap();
    layer
}

fn page(store: &Path, options: &[&str]) -> String {
    let output = layered().arg("page").arg(store).args(options).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the data that a page embeds.
fn data(page: &str) -> Value {
    let (_, rest) = page.split_once("<script id=\"store\" type=\"application/json\">").unwrap();
    serde_json::from_str(rest.split_once("</script>").unwrap().0).unwrap()
}

fn layers(store: &Path, options: &[&str]) -> Value {
    data(&page(store, options))["layers"].take()
}

#[test]
fn a_page_has_what_the_files_of_each_layer_record() {
    let store = tempfile::tempdir().unwrap();
    let store = store.path();
    let meta = || Meta { disk_usage: 4096, ..Meta::new("debian", at(1_000_000)) };
    let below = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    make(store, "libc", meta()).touch().unwrap();
    fs::File::options().write(true).open(store.join("libc/last_used")).unwrap().set_modified(at(2_000_000)).unwrap();
    let timing = [("merge", 0.25), ("runc_run", 1.5), ("cleanup", 0.0), ("total", 2.0)].into_iter().collect();
    let gcc = make(store, "gcc", Meta { timing, parent_hashes: below(&["libc", "gone"]), ..meta() });
    gcc.write_sidecar("run", &json!({"argv": ["make", "a b", [99, 255]], "host": "n2", "unknown": null})).unwrap();
    // It ran at the same time as gcc, and libc is below it only through gcc.
    let timing = [("runc_run", 1.0)].into_iter().collect();
    let hello = Meta { timing, exit_status: 2, parent_hashes: below(&["gcc", "libc"]), ..meta() };
    let hello = make(store, "hello", hello);
    // Another program's sidecar of the same name.
    hello.write_sidecar("run", &json!(["argv"])).unwrap();
    make(store, "skipped", Meta { failed_dep: Some("hello".into()), exit_status: 1, disk_usage: 0, ..meta() });
    let hold = Hold::of([hello.path()]).unwrap();

    let data = data(&page(store, &[]));
    hold.release().unwrap();
    let run = |start: u64, lane: u64, phases: Value| json!({"start": start, "end": 1_000_000_000_u64, "lane": lane, "phases": phases});
    let expected = json!([
        {"name": "gcc", "exit": 0, "made": 1_000_000, "bytes": 4096, "base": 0, "below": 2, "missing": 1, "parents": [2],
            "command": r"make 'a b' $'c\xFF'", "host": 0, "run": run(999_998_000, 1, json!([[0, 250_000], [1, 1_500_000]]))},
        {"name": "hello", "exit": 2, "made": 1_000_000, "held": true, "bytes": 4096, "base": 0, "below": 2, "parents": [0],
            "run": run(999_999_000, 0, json!([[1, 1_000_000]]))},
        {"name": "libc", "exit": 0, "made": 1_000_000, "used": 2_000_000, "bytes": 4096, "base": 0, "below": 0, "parents": []},
        {"name": "skipped", "exit": 1, "failed_by": "hello", "made": 1_000_000, "base": 0, "below": 0, "parents": []},
    ]);
    assert_eq!(data["layers"], expected, "{:#}", data["layers"]);
    assert_eq!(data["hosts"], json!(["n2"]));
    assert_eq!((&data["bases"], &data["phases"]), (&json!(["debian"]), &json!(["merge", "runc_run"])));
    let batch = json!([{"start": 999_998_000, "end": 1_000_000_000, "runs": 2, "lanes": 2}]);
    assert_eq!(data["batches"], batch);
}

#[test]
fn a_captured_run_is_on_the_timeline() {
    let fixture = Fixture::new();
    let path = |name: &str| fixture.path().join(name);
    let mut run = fixture.layered_run();
    run.arg("--upper").arg(path("upper")).arg("--json").arg(path("report.json"));
    assert!(run.args(["--", "sh", "-c", "echo hello >/greeting"]).status().unwrap().success());
    let mut commit = layered();
    commit.arg("commit").arg(path("upper")).arg(fixture.store().join("greeting")).arg("--run").arg(path("report.json"));
    assert!(commit.output().unwrap().status.success());

    let data = data(&page(&fixture.store(), &[]));
    let layer = &data["layers"][0];
    let number = |key: &str| layer["run"][key].as_u64().unwrap();
    assert_eq!(number("end"), layer["made"].as_u64().unwrap() * 1000);
    assert!(number("start") < number("end"), "{layer}");
    assert!(data["phases"].as_array().unwrap().contains(&json!("runc_run")), "{data}");
    assert!(layer["bytes"].as_u64().unwrap() > 0, "{layer}");
}

#[test]
fn no_text_of_a_layer_is_markup() {
    let store = tempfile::tempdir().unwrap();
    let attack = "</script><script>alert(1)</script><!--<img src=x onerror='alert(1)'>\"&amp;\u{2028}\u{202e}\0";
    let meta = Meta {
        failed_dep: Some(attack.into()),
        exit_status: 1,
        parent_hashes: vec![attack.into()],
        timing: [(attack, 1.0)].into_iter().collect(),
        ..Meta::new(attack, at(1_000_000))
    };
    let dir = store.path().join("<img>&\"\u{202e}");
    let layer = make(&dir, "<script>alert(1)<\u{2028}", meta);
    layer.write_sidecar("run", &json!({"argv": [attack], "host": attack})).unwrap();
    let broken = make(&dir, "<b>", Meta::new("base", at(0)));
    fs::write(broken.meta_path(), json!({"exit_status": attack}).to_string()).unwrap();

    let page = page(&dir, &[]);
    for (text, count) in
        [("<script", 2), ("</script", 2), ("<img", 0), ("<b>", 0), ("<!--", 0), ("\u{2028}", 0), ("\u{202e}", 0)]
    {
        assert_eq!(page.matches(text).count(), count, "{text:?}");
    }
    // The texts are all there, and the characters that cannot be seen are escapes.
    let data = data(&page);
    let shown = "</script><script>alert(1)</script><!--<img src=x onerror='alert(1)'>\"&amp;\\u{2028}\\u{202e}\\u{0}";
    for texts in ["bases", "hosts", "phases"] {
        assert_eq!(data[texts], json!([shown]), "{texts}");
    }
    assert_eq!(data["layers"][1]["failed_by"], shown);
    assert!(data["layers"][1]["command"].as_str().unwrap().contains("</script>"), "{data}");
    assert!(data["layers"][0]["error"].as_str().unwrap().contains("</script>"), "{data}");
    assert!(page.contains("default-src 'none'"));
}

#[test]
fn a_layer_that_cannot_be_read_is_a_row_with_the_reason() {
    let store = tempfile::tempdir().unwrap();
    let good = || Meta { disk_usage: 4096, ..Meta::new("base", at(1_000_000)) };
    make(store.path(), "a", good());
    for (name, text) in [("empty", ""), ("invalid", "{"), ("wrong", r#"{"exit_status": "0"}"#)] {
        fs::write(make(store.path(), name, good()).meta_path(), text).unwrap();
    }
    let loops = make(store.path(), "loops", good());
    fs::remove_file(loops.meta_path()).unwrap();
    symlink("layer.json", loops.meta_path()).unwrap();
    // A parent that cannot be read is in the store all the same.
    make(store.path(), "z", Meta { parent_hashes: vec!["invalid".into()], ..good() });

    let layers = layers(store.path(), &[]);
    let rows = layers.as_array().unwrap();
    let names: Vec<_> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["a", "empty", "invalid", "loops", "wrong", "z"]);
    for row in rows {
        let error = row.get("error").map(|error| error.as_str().unwrap());
        let is_good = ["a", "z"].contains(&row["name"].as_str().unwrap());
        assert_eq!((error.is_none(), row.get("exit").is_some()), (is_good, is_good), "{row}");
        assert!(error.is_none_or(|error| error.contains("layer.json")), "{row}");
    }
    assert_eq!(rows[5]["parents"], json!([2]));
}

#[test]
fn sizes_are_measured_on_request_only() {
    let store = tempfile::tempdir().unwrap();
    for (name, disk_usage) in [("recorded", 4096), ("impossible", u64::MAX), ("unknown", 0)] {
        let layer = make(store.path(), name, Meta { disk_usage, ..Meta::new("base", at(1_000_000)) });
        fs::write(layer.fs().join("file"), vec![1; 100_000]).unwrap();
    }
    let measured = layer::TreeSize::of(store.path().join("unknown")).unwrap().bytes;
    let sizes = |options: &[&str]| -> Vec<Option<u64>> {
        layers(store.path(), options)
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row.get("bytes").and_then(Value::as_u64))
            .collect()
    };
    // In the order of the names: impossible, recorded, unknown.
    assert_eq!(sizes(&[]), [None, Some(4096), None]);
    assert_eq!(sizes(&["--du"]), [Some(measured), Some(4096), Some(measured)]);
}

#[test]
fn times_that_cannot_be_true_are_not_on_the_timeline() {
    let store = tempfile::tempdir().unwrap();
    for (name, timing) in [
        ("century", vec![("total", 3e9)]),
        ("endless", vec![("runc_run", 1e308), ("merge", 1e308)]),
        ("negative", vec![("total", -1.0)]),
        ("none", vec![]),
        ("part", vec![("total", 2.0), ("runc_run", 1e300), ("merge", -5.0)]),
    ] {
        make(store.path(), name, Meta { timing: timing.into_iter().collect(), ..Meta::new("base", at(1_000_000)) });
    }
    let layers = layers(store.path(), &[]);
    let runs: Vec<_> = layers.as_array().unwrap().iter().filter(|row| row.get("run").is_some()).collect();
    assert_eq!(runs.len(), 1, "{layers}");
    assert_eq!(runs[0]["run"]["start"], 999_998_000, "{}", runs[0]);
}

#[test]
fn long_texts_are_shortened() {
    let store = tempfile::tempdir().unwrap();
    let long = "ü".repeat(1 << 20);
    let meta = Meta { failed_dep: Some(long.clone()), ..Meta::new(long.as_str(), at(1_000_000)) };
    let layer = make(store.path(), "a", meta);
    layer.write_sidecar("run", &json!({"argv": vec![long.as_str(); 3]})).unwrap();
    let data = data(&page(store.path(), &[]));
    for text in [&data["bases"][0], &data["layers"][0]["failed_by"], &data["layers"][0]["command"]] {
        let text = text.as_str().unwrap();
        assert!(text.ends_with("ü…") && text.chars().count() == 601, "{}", text.chars().count());
    }
}

#[test]
fn a_file_is_replaced_as_a_whole_or_not_at_all() {
    let fixture = Fixture::new();
    let (store, file) = (fixture.store(), fixture.path().join("store.html"));
    make(&store, "a", Meta::new("base", at(1_000_000)));
    assert_eq!(data(&page(&store, &["--output", "-"]))["layers"][0]["name"], "a");
    fs::write(&file, "former").unwrap();
    let page = |store: &Path, file: &Path| {
        let mut command = Command::new("sh");
        command.args(["-c", "umask 027; exec \"$@\"", "sh"]).arg(layered().get_program()).arg("page");
        let output = command.arg(store).arg("-o").arg(file).output().unwrap();
        (output.status.code(), output.stdout.is_empty(), String::from_utf8(output.stderr).unwrap())
    };
    let (status, _, message) = page(&fixture.path().join("missing"), &file);
    assert_eq!((status, message.lines().count()), (Some(125), 1), "{message}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "former");

    assert_eq!(page(&store, &file), (Some(0), true, String::new()));
    assert_eq!(data(&fs::read_to_string(&file).unwrap())["layers"][0]["name"], "a");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);

    let (status, _, message) = page(&store, &fixture.path().join("missing/store.html"));
    assert_eq!(status, Some(125));
    assert!(message.contains("cannot write") && message.contains("missing/store.html"), "{message}");
}

#[test]
fn a_link_and_a_file_that_is_not_regular_are_written_to() {
    let fixture = Fixture::new();
    let [store, link, fifo] = ["store", "link", "fifo"].map(|name| fixture.path().join(name));
    make(&store, "a", Meta::new("base", at(1_000_000)));
    symlink("page.html", &link).unwrap();
    mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    for _ in 0..2 {
        assert_eq!(page(&store, &["-o", link.to_str().unwrap()]), "");
        let text = fs::read_to_string(fixture.path().join("page.html")).unwrap();
        assert!(data(&text)["layers"][0]["name"] == "a" && link.is_symlink());
        let reader = std::thread::spawn({
            let fifo = fifo.clone();
            move || fs::read_to_string(fifo).unwrap()
        });
        assert_eq!(page(&store, &["-o", fifo.to_str().unwrap()]), "");
        assert_eq!(data(&reader.join().unwrap())["layers"][0]["name"], "a");
    }
    assert!(fs::symlink_metadata(&fifo).unwrap().file_type().is_fifo());
}
