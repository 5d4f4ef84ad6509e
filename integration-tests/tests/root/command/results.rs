//! `layered run`: its messages, its JSON report and the upper.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use integration_tests::{Fixture, layered};
use serde_json::{Value, json};
use walkdir::WalkDir;

use super::{run, script};

#[test]
fn a_failure_is_one_line_that_names_the_path() {
    let fixture = Fixture::new();
    let (status, stdout, stderr) = script(&fixture, &["--layer", "/no/such/layer"], "true");
    assert_eq!((status, &*stdout), (125, ""));
    assert_eq!(stderr, "layered: /no/such/layer does not exist; pass the path of a layer\n");

    // The runtime's own message is printed once.
    let spec = fixture.path().join("config.json");
    let mut value = serde_json::to_value(integration_tests::shell("true").build().unwrap()).unwrap();
    let mount = json!({"destination": "/x", "type": "nosuchfs", "source": "x"});
    value["mounts"].as_array_mut().unwrap().push(mount);
    fs::write(&spec, value.to_string()).unwrap();
    for runtime in ["runc", "crun"] {
        let mut command = fixture.layered_run();
        let (status, stdout, stderr) = run(command.args(["--runtime", runtime, "--spec"]).arg(&spec));
        let words = stderr.to_lowercase().matches("no such device").count();
        assert_eq!((status, &*stdout, words), (125, "", 1), "{stderr}");
        let last = format!("\nlayered: the runtime {runtime} failed (exit status: 1); its message is above\n");
        assert!(stderr.ends_with(&last), "{stderr}");
    }
    // A runtime that logs nothing has written no message that could be above.
    let line = "layered: the runtime /bin/false failed (exit status: 1) and logged no reason; \
        check it with `layered doctor --runtime /bin/false`\n";
    assert_eq!(script(&fixture, &["--runtime", "/bin/false"], "true"), (125, String::new(), line.into()));

    // A file that cannot be written is an error before the command runs.
    for option in ["--json", "--output", "--upper"] {
        let (status, stdout, stderr) = script(&fixture, &[option, "/no/such/dir/file"], "echo ran");
        assert_eq!((status, &*stdout, stderr.lines().count()), (125, "", 1), "{stderr}");
        assert!(stderr.contains("/no/such/dir"), "{stderr}");
    }
}

#[test]
fn output_passes_through_and_streams_stay_apart() {
    let fixture = Fixture::new();
    let (status, stdout, stderr) = script(&fixture, &[], "echo out; echo err >&2");
    assert_eq!((status, &*stdout, &*stderr), (0, "out\n", "err\n"));
    let log = fixture.path().join("log");
    let (_, stdout, stderr) =
        script(&fixture, &["--output", log.to_str().unwrap()], "echo out; echo err >&2; echo out");
    assert_eq!((&*stdout, &*stderr), ("", ""));
    assert_eq!(fs::read_to_string(&log).unwrap(), "out\nerr\nout\n");
}

#[test]
fn the_report_is_written_as_json() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(3);
    let (file, upper) = (fixture.path().join("report.json"), fixture.path().join("upper"));
    let mut command = fixture.layered_run();
    for layer in &layers {
        command.arg("--layer").arg(layer.path());
    }
    let (status, ..) = run(command.arg("--json").arg(&file).arg("--upper").arg(&upper).args([
        "--",
        "sh",
        "-c",
        "echo x > /x; exit 3",
    ]));
    assert_eq!(status, 3);
    let report: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(report["status"], json!({"exited": 3}));
    assert_eq!(report["upper"], upper.to_str().unwrap());
    assert_eq!(report["plan"], json!({"rung": "lowerdir+", "separate": 3, "merged": 0, "skeleton": null}));
    assert_eq!(report["made"], json!(["/etc/hosts", "/proc", "/dev", "/sys"]));
    let names: Vec<_> = report["timings"].as_object().unwrap().keys().map(String::as_str).collect();
    let expected = "touch plan merge prep_upper overlay_mount config runc_run overlay_umount cleanup total";
    assert_eq!(names.join(" "), expected);
    assert!(report["usage"]["peak_memory_bytes"].is_u64());
    assert_eq!((&report["usage"]["out_of_memory"], &report["merge"]), (&json!(false), &Value::Null));
    let entries = WalkDir::new(&upper).min_depth(1).into_iter().count();
    assert_eq!(report["usage"]["upper_entries"], entries);
    assert_eq!(fs::read(upper.join("x")).unwrap(), b"x\n");

    // A run that failed.
    let (status, ..) = run(fixture.layered_run().arg("--json").arg(&file).args(["--", "/no/such/command"]));
    assert_eq!(status, 127);
    let report: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(report["status"]["failed"]["phase"], "runc_run");
    assert_eq!((&report["status"]["failed"]["left"], &report["upper"]), (&Value::Null, &Value::Null));
}

#[test]
fn an_upper_that_cannot_be_moved_is_kept_and_reported() {
    let fixture = Fixture::new();
    let (upper, json) = (fixture.path().join("upper"), fixture.path().join("json"));
    // The path is free when the run begins, and taken when the run ends.
    let mount = format!("type=bind,source={},target=/outside", fixture.path().display());
    let options = ["--upper", upper.to_str().unwrap(), "--json", json.to_str().unwrap(), "--mount", &mount];
    let (status, _, stderr) = script(&fixture, &options, "echo hours > /x; mkdir -p /outside/upper/taken");
    assert_eq!(status, 125);
    assert!(stderr.contains("it is kept at"), "{stderr}");
    let report: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    assert_eq!(report["status"], json!({"exited": 0}));
    let kept = Path::new(report["upper"].as_str().unwrap());
    assert!(kept.starts_with(fixture.scratch()));
    assert_eq!(fs::read(kept.join("x")).unwrap(), b"hours\n");
    fs::remove_dir_all(kept.parent().unwrap()).unwrap();

    // A different file system is an error before the command runs.
    let other = tempfile::tempdir_in("/dev/shm").unwrap();
    let elsewhere = other.path().join("upper");
    let (status, stdout, stderr) = script(&fixture, &["--upper", elsewhere.to_str().unwrap()], "echo ran");
    assert_eq!((status, &*stdout), (125, ""));
    assert!(stderr.contains("different file systems"), "{stderr}");
}

#[test]
fn a_full_standard_error_does_not_change_the_result() {
    let fixture = Fixture::new();
    let upper = fixture.path().join("upper");
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = fixture.layered_run();
    command.args(["--timings", "--upper"]).arg(&upper).args(["--", "sh", "-c", "echo x > /x; exit 7"]);
    assert_eq!(command.stdin(Stdio::null()).stderr(full).status().unwrap().code(), Some(7));
    assert!(upper.join("x").exists());

    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let status = layered().args(["run", "--base", "/nope", "--", "true"]).stderr(full).status().unwrap();
    assert_eq!(status.code(), Some(125));
}

#[test]
fn an_existing_upper_is_not_replaced() {
    let fixture = Fixture::new();
    let upper = fixture.path().join("upper");
    fs::create_dir(&upper).unwrap();
    let (status, _, stderr) = script(&fixture, &["--upper", upper.to_str().unwrap()], "echo ran");
    assert_eq!(status, 125);
    assert!(stderr.contains("it exists; choose another --upper"), "{stderr}");
    assert_eq!(fs::read_dir(&upper).unwrap().count(), 0);
}

#[test]
fn the_scratch_directory_is_beside_the_upper() {
    let fixture = Fixture::new();
    let beside = fixture.path().join("beside");
    fs::create_dir(&beside).unwrap();
    fixture.watch(&beside);
    let mut command = layered();
    command.args(["run", "--base"]).arg(fixture.base().path()).arg("--upper").arg(beside.join("new"));
    let (status, stdout, _) = run(command.args(["--", "sh", "-c", "touch /x; cat /proc/self/mountinfo"]));
    assert_eq!(status, 0);
    assert!(stdout.contains(&format!("upperdir={}/layered-", beside.display())), "{stdout}");
    let left: Vec<_> = fs::read_dir(&beside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["new"]);
}

#[test]
fn phases_are_printed_as_a_table() {
    let fixture = Fixture::new();
    let (_, _, stderr) = script(&fixture, &["--timings"], "true");
    let lines: Vec<_> = stderr.lines().collect();
    assert_eq!(lines.len(), 11, "{stderr}");
    assert!(lines[0].starts_with("PHASE") && lines[7].starts_with("runc_run"), "{stderr}");
    // The slowest phase depends on the machine. One of nine phases takes at least a ninth.
    assert!(lines[1..10].iter().any(|line| line.contains('█')), "{stderr}");
    assert!(lines[10].starts_with("total") && lines[10].contains("100.0 %"), "{stderr}");
}
