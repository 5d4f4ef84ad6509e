//! `layered doctor` passes this machine, which runs the other tests, and rejects machines with a
//! defect. Also tests the manual pages and completions, which are generated from the command's
//! definition.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use container::{Overlay, in_private_mount_namespace};
use integration_tests::user::powerless;
use integration_tests::{Fixture, layered, write_script};
use serde_json::Value;

fn doctor(scratch: &Path) -> Command {
    let mut command = layered();
    command.args(["doctor", "--scratch"]).arg(scratch);
    command
}

fn run(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// Returns the names of the checks with a verdict, from the JSON report.
fn names(json: &str, verdict: &str) -> Vec<String> {
    let report: Value = serde_json::from_str(json).unwrap();
    let checks = report["checks"].as_array().unwrap().iter().filter(|check| check["verdict"] == verdict);
    checks.map(|check| check["name"].as_str().unwrap().into()).collect()
}

/// Returns the line of the only failed check, and the conclusion.
fn failure(stdout: &str) -> (&str, &str) {
    let failed: Vec<_> = stdout.lines().filter(|line| line.starts_with("failed")).collect();
    let [line] = failed[..] else { panic!("{stdout}") };
    (line, stdout.lines().last().unwrap())
}

#[test]
fn this_machine_passes_and_is_not_changed() {
    let fixture = Fixture::new();
    for runtime in ["runc", "crun"] {
        let (status, stdout, stderr) = run(doctor(&fixture.scratch()).args(["--runtime", runtime, "--json"]));
        assert_eq!((status, &*stderr), (0, ""), "{stdout}");
        assert!(names(&stdout, "failed").is_empty() && names(&stdout, "skipped").is_empty(), "{stdout}");
        let ok = names(&stdout, "ok");
        for name in
            ["lowerdir+", "mount-paths", "mount-names", "deletions", "private mounts", "runtime", "links", "a run"]
        {
            assert!(ok.iter().any(|ok| ok == name), "{name}: {stdout}");
        }
        fixture.assert_clean();
    }
    let (status, stdout, _) = run(&mut doctor(&fixture.scratch()));
    assert_eq!(status, 0);
    assert!(stdout.lines().last().unwrap().starts_with("Runs work on this machine"), "{stdout}");
}

/// doctor knows which flaws a distribution's package has fixed, and warns about directories that
/// others can enter.
#[test]
fn fixed_packages_pass_and_open_directories_are_reported() {
    let fixture = Fixture::new();
    let dir = fixture.path();
    let fake = |name: &str, output: &str| {
        let path = dir.join(name);
        write_script(&path, &format!("#!/bin/sh\ncat <<'END'\n{output}\nEND\n"));
        path
    };
    let stock = fake("stock", "runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1+deb12u1\nspec: 1.0.2-dev");
    let plain = fake("plain", "runc version 1.1.5\ncommit: v1.1.5-0-gf19387a6\nspec: 1.0.2-dev");
    for (runtime, has_it) in [(stock, false), (plain, true)] {
        let (_, stdout, _) = run(doctor(&fixture.scratch()).arg("--runtime").arg(runtime));
        assert_eq!(stdout.contains("CVE-2024-21626"), has_it, "{stdout}");
        assert!(stdout.contains("CVE-2024-45310"), "{stdout}");
    }

    let layer = fixture.layer("layer", |_| {});
    let warnings = || {
        let (status, stdout, _) = run(doctor(&fixture.scratch()).arg("--store").arg(fixture.store()).arg("--json"));
        assert_eq!(status, 0, "{stdout}");
        let mut names = names(&stdout, "warning");
        names.retain(|name| name == "store" || name == "scratch access");
        names
    };
    let close = |dir: &Path, mode: u32| fs::set_permissions(dir, fs::Permissions::from_mode(mode)).unwrap();
    assert_eq!(warnings(), ["scratch access", "store"]);
    close(layer.path(), 0o700);
    assert_eq!(warnings(), ["scratch access"]);
    close(layer.path(), 0o755);
    close(&fixture.store(), 0o700);
    close(&fixture.scratch(), 0o700);
    assert!(warnings().is_empty());
}

#[test]
fn a_runtime_that_is_missing_or_starts_nothing_fails() {
    let fixture = Fixture::new();
    let (status, stdout, _) = run(doctor(&fixture.scratch()).args(["--runtime", "no-such-runtime"]));
    let (line, conclusion) = failure(&stdout);
    assert_eq!((status, conclusion), (1, "No run can work on this machine: runtime failed."));
    assert!(line.contains("cannot start the runtime no-such-runtime") && line.contains("--runtime runc"), "{line}");
    assert!(stdout.contains("skipped  a run"), "{stdout}");

    // /bin/true succeeds but starts no container.
    let (status, stdout, _) = run(doctor(&fixture.scratch()).args(["--runtime", "/bin/true"]));
    let (line, conclusion) = failure(&stdout);
    assert_eq!((status, conclusion), (1, "No run can work on this machine: a run failed."));
    assert!(line.contains("it started no container"), "{line}");
}

#[test]
fn a_scratch_directory_on_overlayfs_fails() {
    let fixture = Fixture::new();
    let dirs = ["lower", "upper", "work", "merged"].map(|name| fixture.path().join(name));
    dirs.iter().for_each(|dir| fs::create_dir(dir).unwrap());
    let [lower, upper, work, merged] = dirs;
    let seen = in_private_mount_namespace(|| {
        let mounted = Overlay::new([lower]).writable(&upper, work).mount(merged).unwrap();
        // doctor is started in this mount namespace, so it sees the mount.
        let seen = run(&mut doctor(mounted.path()));
        mounted.unmount().unwrap();
        seen
    });
    let (status, stdout, _) = seen.unwrap();
    let (line, conclusion) = failure(&stdout);
    assert_eq!((status, conclusion), (1, "No run can work on this machine: scratch failed."));
    assert!(line.contains("cannot be on overlayfs") && line.contains("on another file system"), "{line}");
    assert_eq!(fs::read_dir(&upper).unwrap().count(), 0);
}

#[test]
fn a_scratch_directory_that_is_missing_or_read_only_fails() {
    let fixture = Fixture::new();
    let missing = fixture.path().join("missing");
    for (scratch, text) in [(&*missing, "No such file or directory"), (Path::new("/proc"), "cannot make the directory")]
    {
        let (status, stdout, _) = run(&mut doctor(scratch));
        let (line, conclusion) = failure(&stdout);
        assert_eq!((status, conclusion), (1, "No run can work on this machine: scratch failed."));
        assert!(line.contains(text) && line.contains("--scratch"), "{line}");
    }
}

#[test]
fn doctor_fails_without_root_and_user_namespaces() {
    let fixture = Fixture::new();
    let mut without = powerless(layered().get_program());
    let (status, stdout, stderr) = run(without.args(["doctor", "--json", "--scratch"]).arg(fixture.path()));
    assert_eq!((status, &*stderr), (1, ""));
    assert_eq!(names(&stdout, "failed"), ["privilege"]);
    assert_eq!(names(&stdout, "skipped"), ["overlays", "a run"]);
    assert!(stdout.contains("run layered as root"), "{stdout}");
}

#[test]
fn man_writes_a_page_for_every_command() {
    let fixture = Fixture::new();
    let (status, stdout, _) = run(layered().arg("man"));
    assert_eq!(status, 0);
    assert!(stdout.contains(".TH layered 1") && stdout.contains("layered\\-doctor(1)"), "{stdout}");
    assert_eq!(run(layered().arg("man").arg(fixture.path())).0, 0);
    let page = fs::read_to_string(fixture.path().join("layered-run.1")).unwrap();
    assert!(page.contains(".SH EXAMPLES\n.nf\nlayered run "), "{page}");
    let (status, _, stderr) = run(layered().args(["man", "/no/such/dir"]));
    assert_eq!((status, stderr.lines().count()), (125, 1), "{stderr}");
    assert!(stderr.contains("cannot write /no/such/dir/layered.1"), "{stderr}");
}

#[test]
fn completions_complete() {
    let _fixture = Fixture::new();
    for shell in ["bash", "zsh", "fish"] {
        let (status, stdout, _) = run(layered().args(["completions", shell]));
        assert_eq!(status, 0);
        assert!(stdout.contains("layers-from"), "{shell}");
    }
    let script = "source <(\"$0\" completions bash)
        COMP_WORDS=(layered run --lay) COMP_CWORD=2
        _layered layered --lay run
        printf '%s\\n' \"${COMPREPLY[@]}\"";
    let mut bash = Command::new("bash");
    let bash = bash.args(["-c", script]).arg(layered().get_program()).stdin(Stdio::null());
    assert_eq!(run(bash), (0, "--layer\n--layers-from\n".into(), String::new()));
}

#[test]
fn help_contains_an_example() {
    for command in ["doctor", "completions", "man"] {
        let (status, stdout, _) = run(layered().args([command, "--help"]));
        assert_eq!(status, 0);
        assert!(stdout.contains(&format!("layered {command} ")) && stdout.contains("Example"), "{stdout}");
    }
}
