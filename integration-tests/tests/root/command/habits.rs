//! What users of other tools type first: their options, a base as the first word, a root file
//! system as it is, defaults from the environment, and `-` for standard input and output.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use integration_tests::{Fixture, RUNTIMES, layered};
use serde_json::Value;

use super::{run, script, text};

#[test]
fn options_of_other_tools_reach_the_container() {
    let fixture = Fixture::new();
    fs::write(fixture.path().join("bound"), "bound\n").unwrap();
    let options = "-e A=b=c -e CALLERS -e UNSET -w /work -u 12:34 -v bound:/bound:ro --tmpfs /mem:size=1m -m 64m
        --pids-limit 50 --cpuset-cpus 0 --timeout 600 --grace 5";
    let text =
        "echo $A $CALLERS ${UNSET-unset}; pwd; id -u; id -g; cat /bound; echo 2>/dev/null >/bound || echo read-only
        sed -n 's/^tmpfs .mem tmpfs .*size=/size=/p' /proc/mounts; grep Cpus_allowed_list /proc/self/status";
    for runtime in RUNTIMES {
        let mut command = fixture.layered_run();
        command.current_dir(fixture.path()).env("CALLERS", "d e").env_remove("UNSET");
        let options = options.split_whitespace();
        command.args(["--runtime", runtime]).args(options).args(["--", "sh", "-c", text]);
        let (status, stdout, stderr) = run(&mut command);
        assert_eq!((status, &*stderr), (0, ""), "{runtime}");
        let expected = "b=c d e unset\n/work\n12\n34\nbound\nread-only\n";
        assert!(stdout.starts_with(expected) && stdout.contains("size=1024k"), "{runtime}: {stdout}");
        assert!(stdout.ends_with("Cpus_allowed_list:\t0\n"), "{runtime}: {stdout}");
    }
}

#[test]
fn processor_time_is_limited_by_a_number_and_processors_by_a_list() {
    let fixture = Fixture::new();
    let quota = "cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null; true";
    for runtime in RUNTIMES {
        let (status, stdout, stderr) = script(&fixture, &["--runtime", runtime, "--cpus", "0.5"], quota);
        assert!(status == 0 && stdout.starts_with("50000"), "{runtime}: {stdout}{stderr}");
        let list =
            script(&fixture, &["--runtime", runtime, "--cpus", "0-0"], "grep Cpus_allowed_list /proc/self/status");
        assert_eq!(list, (0, "Cpus_allowed_list:\t0\n".into(), String::new()), "{runtime}");
    }
    for (options, words) in [
        (["--cpus", "0"], "--cpuset-cpus 0 is a list of processors"),
        (["--cpuset-cpus", "4000"], "cannot use the processors 4000: this machine has 0"),
        (["--memory", "10"], "write a unit, as in 512m"),
    ] {
        let (status, _, stderr) = script(&fixture, &options, "true");
        assert!(status == 125 && stderr.contains(words), "{options:?}: {stderr}");
    }
}

#[test]
fn a_read_only_root_has_writable_mounts() {
    let fixture = Fixture::new();
    for runtime in RUNTIMES {
        let options = ["--runtime", runtime, "--read-only", "--tmpfs", "/mem"];
        let (status, _, stderr) = script(&fixture, &options, "touch /mem/a /tmp/a && touch /a");
        assert!(status == 1 && stderr.contains("Read-only file system"), "{runtime}: {stderr}");
    }
}

#[test]
fn capabilities_are_added_and_dropped() {
    let fixture = Fixture::new();
    for runtime in RUNTIMES {
        for (options, set) in [
            (&["--cap-drop", "ALL"][..], 0),
            (&["--cap-drop", "all", "--cap-add", "CHOWN", "--cap-add", "cap_kill"], 1 | 1 << 5),
            (&["--cap-add", "SYS_PTRACE", "--cap-drop", "ALL"], 1 << 19),
        ] {
            let options = [&["--runtime", runtime], options].concat();
            let (status, stdout, stderr) = script(&fixture, &options, "sed -n 's/^CapBnd:.//p' /proc/self/status");
            assert_eq!((status, stdout, &*stderr), (0, format!("{set:016x}\n"), ""), "{options:?}");
        }
        // The machine of the test may have less than all.
        let all = ["--runtime", runtime, "--cap-add", "ALL"];
        let (status, stdout, stderr) = script(&fixture, &all, "sed -n 's/^CapBnd:.//p' /proc/self/status");
        let set = u64::from_str_radix(stdout.trim(), 16).unwrap();
        assert!(status == 0 && set >> 21 & 1 == 1, "CAP_SYS_ADMIN is missing: {stdout}{stderr}");
    }
}

#[test]
fn a_seccomp_profile_comes_from_a_file() {
    let fixture = Fixture::new();
    let path = fixture.path().join("profile.json");
    let profile = path.to_str().unwrap();
    let rule = r#"{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28"#;
    fs::write(&path, format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{rule}}}]}}"#)).unwrap();
    for runtime in RUNTIMES {
        let options = ["--runtime", runtime, "--seccomp", profile];
        let (status, _, stderr) = script(&fixture, &options, "mkdir /made");
        assert!(status == 1 && stderr.contains("No space left on device"), "{runtime}: {stderr}");
    }
    // Without its condition, Docker's rule would apply to this container.
    let conditional = format!(
        r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{rule}, "excludes": {{"caps": ["CAP_CHOWN"]}}}}]}}"#
    );
    fs::write(&path, conditional).unwrap();
    let (status, _, stderr) = script(&fixture, &["--seccomp", profile], "true");
    assert!(status == 125 && stderr.contains("which only Docker understands"), "{stderr}");
    let (status, _, stderr) = script(&fixture, &["--seccomp", "/no/such/profile"], "true");
    assert!(status == 125 && stderr.contains("--seccomp is default, native, unconfined or a file"), "{stderr}");
}

#[test]
fn the_first_word_is_the_base() {
    let fixture = Fixture::new();
    let base = fixture.base();
    let base = base.path().to_str().unwrap();
    let words = |words: &[&str]| run(layered().args(["run", "--scratch"]).arg(fixture.scratch()).args(words));
    let ran = (0, "ran\n".into(), String::new());
    assert_eq!(words(&[base, "echo", "ran"]), ran);
    assert_eq!(words(&[base, "--", "echo", "ran"]), ran);
    assert_eq!(words(&["--base", base, "echo", "ran"]), ran);
    assert_eq!(words(&["--base", base, "--", "echo", "ran"]), ran);
    assert_eq!(words(&[base, "sh", "-c", "echo $0", "--"]), (0, "--\n".into(), String::new()));
    for (arguments, expected) in [
        (&[base][..], "there is no command; write it after the base "),
        (&[base, "--tty", "sh"], "the command --tty looks like an option; options go before the base "),
        (
            &["/no/base", "true"],
            "/no/base does not exist; pass the path of a base; without --base, the first word is the base",
        ),
    ] {
        let (status, stdout, stderr) = words(arguments);
        assert!((status, &*stdout) == (125, "") && stderr.contains(expected), "{arguments:?}: {stderr}");
    }
    let (status, _, stderr) = words(&[base, "echo ran"]);
    assert!(status == 127 && stderr.contains("its name has a space: write each word on its own"), "{stderr}");
}

#[test]
fn defaults_come_from_the_environment() {
    let fixture = Fixture::new();
    fixture.layer("named", |fs| fs::write(fs.join("file"), "named\n").unwrap());
    let base = fixture.base();
    let with = |arguments: &[&str]| {
        let mut command = layered();
        command.env("LAYERED_BASE", base.path()).env("LAYERED_STORE", fixture.store());
        command.env("LAYERED_SCRATCH", fixture.scratch()).env("LAYERED_RUNTIME", "crun").args(arguments);
        run(&mut command)
    };
    assert_eq!(with(&["run", "--layer", "named", "cat", "/file"]), (0, "named\n".into(), String::new()));
    let (status, stdout, stderr) = with(&["plan", "--layer", "named"]);
    assert!(status == 0 && stdout.starts_with("1 layer over "), "{stdout}{stderr}");
    let (status, _, stderr) = with(&["run", "--layer", "missing", "true"]);
    let missing = fixture.store().join("missing");
    assert_eq!(
        (status, stderr),
        (125, format!("layered: {} does not exist; pass the path of a layer\n", missing.display()))
    );

    // The scratch directory is that of the environment, and an option counts more.
    assert_eq!(with(&["run", "--keep-failed", "--", "false"]).0, 1);
    let kept = fixture.left().pop().unwrap();
    assert!(
        kept.starts_with(fs::canonicalize(fixture.scratch()).unwrap()) || kept.starts_with(fixture.scratch()),
        "{kept:?}"
    );
    let name = kept.file_name().unwrap().to_str().unwrap();
    assert_eq!(with(&["shell", name, "--", "echo", "visit"]).1, "visit\n");
    assert_eq!(with(&["discard", name]), (0, String::new(), String::new()));
    let (status, _, stderr) = with(&["run", "--runtime", "no-such-runtime", "true"]);
    assert!(status == 125 && stderr.contains("no-such-runtime"), "{stderr}");

    let mut command = layered();
    let (status, _, stderr) = run(command
        .env_remove("LAYERED_STORE")
        .args(["run", "--base"])
        .arg(base.path())
        .args(["--layer", "named", "true"]));
    assert!(status == 125 && stderr.contains("or set LAYERED_STORE to the store that has it"), "{stderr}");
}

#[test]
fn a_root_file_system_needs_no_directory_fs() {
    let fixture = Fixture::new();
    let rootfs = fixture.base().fs();
    let upper = fixture.path().join("upper");
    let report = fixture.path().join("report.json");
    let over = |options: &[&str], script: &str| {
        let mut command = layered();
        command.args(["run", "--scratch"]).arg(fixture.scratch()).arg("--rootfs").arg(&rootfs).args(options);
        run(command.args(["--", "sh", "-c", script]))
    };
    let keep = ["--upper", upper.to_str().unwrap(), "--json", report.to_str().unwrap()];
    assert_eq!(over(&keep, "rm /bin/wc; echo new >/new"), (0, String::new(), String::new()));
    assert!(fixture.base().fs().join("bin/wc").symlink_metadata().is_ok(), "the root file system has changed");
    let layer = fixture.store().join("new");
    assert_eq!(run(layered().arg("commit").arg(&upper).arg(&layer).arg("--run").arg(&report)).0, 0);
    let layer = layer.to_str().unwrap();
    assert_eq!(over(&["--layer", layer], "cat /new; ls /bin | grep -c wc").1, "new\n0\n");

    // Without a report, an option names the root file system that was below the upper.
    assert_eq!(over(&keep[..2], "echo more >/more").0, 0);
    let mut commit = layered();
    commit.arg("commit").arg(&upper).arg(fixture.store().join("more")).arg("--rootfs").arg(&rootfs);
    assert_eq!(run(&mut commit).0, 0);

    assert_eq!(over(&["--keep-failed"], "echo kept >/kept; false").0, 1);
    let kept = fixture.left().pop().unwrap();
    assert_eq!(run(layered().arg("shell").arg(&kept).args(["--", "cat", "/kept"])).1, "kept\n");
    assert!(layered().arg("discard").arg(&kept).status().unwrap().success());

    let refused = |option: &str, path: &std::path::Path| {
        let (status, _, stderr) = run(layered().args(["run", option]).arg(path).args(["--", "true"]));
        assert_eq!(status, 125);
        stderr
    };
    assert!(refused("--base", &rootfs).contains(&format!("pass the directory {}", fixture.base().path().display())));
    assert!(refused("--base", fixture.scratch().as_path()).contains("pass it as --rootfs"));
    assert!(
        refused("--rootfs", "/no/root".as_ref())
            .contains("/no/root does not exist; pass the path of a root file system")
    );
}

/// Runs a command with `input` as its standard input.
fn with_input(command: &mut Command, input: &str) -> (i32, String, String) {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_dash_is_standard_input_or_output() {
    let fixture = Fixture::new();
    fixture.numbered_layers(2);
    let mut command = fixture.layered_run();
    command.current_dir(fixture.path()).args(["--layers-from", "-", "--", "sh", "-c", "ls /deps; cat"]);
    let list = "store/numbered-0000\n# the other\nstore/numbered-0001\n";
    assert_eq!(with_input(&mut command, list), (0, "0\n1\n".into(), String::new()));

    let mut command = fixture.layered_run();
    command.current_dir(fixture.path()).args([
        "--output",
        "-",
        "--json",
        "-",
        "--",
        "sh",
        "-c",
        "echo out; echo err >&2",
    ]);
    let (status, stdout, stderr) = run(&mut command);
    assert_eq!((status, &*stderr), (0, ""));
    let (lines, report) = stdout.trim_end().rsplit_once('\n').unwrap();
    assert_eq!(lines, "out\nerr");
    assert_eq!(serde_json::from_str::<Value>(report).unwrap()["status"]["exited"], 0);
    assert!(!fixture.path().join("-").exists());
}

#[test]
fn paths_in_a_list_are_relative_to_the_list() {
    let fixture = Fixture::new();
    fixture.numbered_layers(2);
    let list = fixture.path().join("list");
    let with = |text: &str| {
        fs::write(&list, text).unwrap();
        script(&fixture, &["--layers-from", list.to_str().unwrap()], "ls /deps")
    };
    assert_eq!(
        with("# two\r\nstore/numbered-0000\r\n\r\n./store/numbered-0001\r\n"),
        (0, "0\n1\n".into(), String::new())
    );
    let (status, _, stderr) = with("store/numbered-0000\nstore/gone\n");
    let (shown, gone) = (list.display(), fixture.store().join("gone"));
    let expected = format!("layered: {shown}:2: {} does not exist; pass the path of a layer\n", gone.display());
    assert_eq!((status, stderr), (125, expected));
    let (status, _, stderr) = with("{\"status\": 1}");
    assert!(
        status == 125 && stderr.contains("is JSON; pass a file with the directory of one layer per line"),
        "{stderr}"
    );
}

#[test]
fn a_habit_that_cannot_be_served_is_told_what_to_use() {
    for (line, words) in [
        ("images", "`layered ls STORE` lists layers"),
        ("run --rm base true", "a run leaves nothing to remove"),
        ("run -it base sh", "-t gives it a terminal"),
        ("gc store --max-age 5", "it has no unit; write 5d for days"),
    ] {
        let (status, stdout, stderr) = run(layered().args(line.split(' ')));
        assert!((status, &*stdout) == (125, "") && stderr.contains(words), "{line}: {stderr}");
        assert!(!stderr.contains("as a value"), "{stderr}");
    }
}

#[test]
fn a_name_that_cannot_be_resolved_is_a_hint_at_the_network() {
    let fixture = Fixture::new();
    let output = fixture.path().join("output");
    let hint =
        "layered: the command has no network, and could not resolve a name; pass --network private or --network host\n";
    let failing = "echo 'ping: example.org: Temporary failure in name resolution' >&2; exit 2";
    let to_file = ["--output", output.to_str().unwrap()];
    assert_eq!(script(&fixture, &to_file, failing), (2, String::new(), hint.into()));
    let host = [&to_file[..], &["--network", "host"]].concat();
    assert_eq!(script(&fixture, &host, failing), (2, String::new(), String::new()));
    assert_eq!(
        script(&fixture, &to_file, "echo Temporary failure in name resolution"),
        (0, String::new(), String::new())
    );
}
