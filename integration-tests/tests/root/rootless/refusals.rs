//! What an ordinary user cannot do, and what layered says then: one line with the remedy.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;

use integration_tests::user::{ALL_IDS, UserFixture, around, failure, powerless, quietly};
use integration_tests::{RUNTIMES, copy_program, find};

#[test]
fn limits_are_refused_before_anything_runs() {
    let fixture = UserFixture::new("single");
    for runtime in RUNTIMES {
        for (option, value, controller) in
            [("--memory", "64m", "memory"), ("--pids", "50", "pids"), ("--cpus", "0.5", "cpu")]
        {
            let options = ["--runtime", runtime, option, value, "--upper", "up"];
            let error = failure(125, &mut fixture.run(&options, &[], "echo ran > /ran"));
            let parts = ["inputs: ", controller, "systemd-run --user --scope -p Delegate=yes"];
            assert!(parts.iter().all(|part| error.contains(part)), "{option}: {error}");
            assert!(!fixture.path().join("up").exists());
        }
    }
}

#[test]
fn ranges_without_their_programs_are_an_error_and_single_works() {
    let fixture = UserFixture::new("ranges");
    let programs = fixture.path().join("programs");
    fs::create_dir(&programs).unwrap();
    for program in ["runc", "sh"] {
        symlink(find(program), programs.join(program)).unwrap();
    }
    let error = failure(125, fixture.run(&[], &[], "true").env("PATH", &programs));
    let parts = ["cannot enter a user namespace", "newuidmap is not installed", "uidmap", "--ids single"];
    assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    quietly(fixture.run(&["--ids", "single"], &[], "true").env("PATH", &programs));
}

/// Returns `layered` as a command that newuidmap(1) cannot help.
fn without_privileges(fixture: &UserFixture, arguments: &[&str]) -> Command {
    let mut command = fixture.command_with(&["--no-new-privs"], fixture.program());
    command.args(arguments);
    command
}

#[test]
fn a_program_without_privilege_is_named_with_the_reason() {
    let fixture = UserFixture::new("ranges");
    // Without a set-user-ID bit, the program may not set the map.
    let no_new_privs = |ids: &str| without_privileges(&fixture, &["run", "--ids", ids, "--base", "base", "--", "true"]);
    for ids in ["auto", "ranges"] {
        let error = failure(125, &mut no_new_privs(ids));
        let parts = ["newuidmap gets no privilege", "no_new_privs", "--ids single"];
        assert!(parts.iter().all(|part| error.contains(part)) && !error.contains("/etc/subuid"), "{error}");
    }
    quietly(&mut no_new_privs("single"));
}

#[test]
fn no_command_continues_in_a_namespace_without_ids() {
    let fixture = UserFixture::new("ranges");
    let layers = fixture.numbered_layers(1);
    let layer = layers[0].to_str().unwrap();
    for arguments in [&["merge", "merged", layer][..], &["rm", layer], &["sweep"], &["diff", layer], &["doctor"]] {
        let error = failure(125, &mut without_privileges(&fixture, arguments));
        assert!(error.contains("newuidmap gets no privilege") && error.lines().count() == 1, "{arguments:?}: {error}");
    }
    assert!(layers[0].exists() && !fixture.path().join("merged").exists());
    // A command that needs no rights does not enter.
    quietly(&mut without_privileges(&fixture, &["completions", "bash"]));
}

#[test]
fn a_user_without_ranges_gets_a_single_id_unless_ranges_are_asked_for() {
    let fixture = UserFixture::new("auto");
    // The user `nobody` has no entry in /etc/subuid.
    let as_nobody = |ids: &str| {
        let mut command = Command::new(find("setpriv"));
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]).arg(fixture.program());
        command.args(["unshare", "--ids", ids, "--", "cat", "/proc/self/uid_map"]);
        command
    };
    let map = quietly(&mut as_nobody("auto"));
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "65534", "1"]);
    let error = failure(125, &mut as_nobody("ranges"));
    assert!(error.contains("nobody has no subordinate IDs") && error.contains("usermod --add-subuids"), "{error}");
}

#[test]
fn a_program_that_cannot_enter_is_told_both_ways_and_runs_by_unshare() {
    for ids in ALL_IDS {
        let fixture = UserFixture::new(ids);
        let layer = fixture.path().join("layers/greeting");
        fs::create_dir_all(layer.join("fs")).unwrap();
        fs::write(layer.join("fs/greeting"), "hello\n").unwrap();
        fixture.give(&fixture.path().join("layers"));
        // It calls `runner::run` without entering a namespace first.
        let program = fixture.path().join("build-and-capture");
        copy_program(env!("CARGO_BIN_EXE_build-and-capture").as_ref(), &program);
        let error = failure(1, &mut fixture.command(&program));
        let ways = ["UserNamespace::enter first in main", "`layered unshare -- PROGRAM`"];
        assert!(ways.iter().all(|way| error.contains(way)), "{error}");
        quietly(fixture.layered(&["unshare", "--"]).arg(&program));
        let made = quietly(fixture.layered(&["unshare", "--", "cat"]).arg("layers/farewell/fs/farewell"));
        assert_eq!(made, "goodbye\n", "{ids}");
    }
}

#[test]
fn exhausted_namespaces_are_named() {
    let fixture = UserFixture::new("single");
    let without = powerless(fixture.program());
    let command = |arguments: &[&str]| {
        let mut command = fixture.command(without.get_program());
        command.args(without.get_args()).args(arguments);
        command
    };
    let error = failure(125, &mut command(&["run", "--base", "base", "--", "true"]));
    let parts = ["no further user namespace is allowed", "user.max_user_namespaces"];
    assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    // A command that can do without the namespace says so and continues.
    let output = command(&["sweep"]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.contains("continuing without the rights of root"), "{stderr}");
}

#[test]
fn a_program_in_the_namespace_has_no_children_of_layered() {
    for ids in ALL_IDS {
        let fixture = UserFixture::new(ids);
        let children = ["unshare", "--", "cat", "/proc/thread-self/children"];
        assert_eq!(quietly(&mut fixture.layered(&children)), "", "{ids}");
    }
}

#[test]
fn a_program_that_cannot_be_executed_is_named() {
    let fixture = UserFixture::new("ranges");
    let programs = fixture.path().join("programs");
    fs::create_dir(&programs).unwrap();
    fs::write(programs.join("newuidmap"), "").unwrap();
    symlink(find("newgidmap"), programs.join("newgidmap")).unwrap();
    let error = failure(125, fixture.layered(&["unshare", "--", "true"]).env("PATH", &programs));
    assert!(error.contains("newuidmap failed (it cannot be executed)"), "{error}");
}

#[test]
fn a_namespace_in_which_nothing_can_be_mounted_is_named() {
    let fixture = UserFixture::new("single");
    // Some security policies let a user create the namespace, and refuse the first mount.
    let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}]}"#;
    fs::write(fixture.path().join("profile.json"), profile).unwrap();
    for (runtime, command) in RUNTIMES.into_iter().flat_map(|runtime| ["run", "unshare"].map(|it| (runtime, it))) {
        let mut around = super::of_root(&fixture, &["run", "--runtime", runtime, "--seccomp", "profile.json"]);
        around.args(["-v", "/usr:/usr:ro", "-v", "/lib:/lib:ro", "-v", "layered:/layered:ro", "-v", "base:/base:ro"]);
        if fs::symlink_metadata("/lib64").is_ok() {
            around.args(["-v", "/lib64:/lib64:ro"]);
        }
        let (uid, gid) = fixture.owner();
        around.arg("--user").arg(format!("{uid}:{gid}")).args(["base", "/layered", "--ids", "single", command]);
        around.args(if command == "run" { &["--base", "/base", "--", "true"][..] } else { &["--", "true"] });
        let error = failure(125, &mut around);
        let parts =
            ["cannot enter a user namespace", "mounts in it are forbidden", "the seccomp filter of a container"];
        assert!(parts.iter().all(|part| error.contains(part)) && error.lines().count() == 1, "{runtime}: {error}");
    }
}

#[test]
fn a_masked_proc_is_named() {
    let fixture = UserFixture::new("single");
    for runtime in RUNTIMES {
        let run = fixture.run(&["--runtime", runtime], &[], "true");
        // Containers of other runtimes hide parts of /proc in this way.
        let mut masked = Command::new("unshare");
        masked.args(["--mount", "sh", "-c", "mount -t tmpfs none /proc/bus && exec \"$@\"", "sh"]);
        let error = failure(125, &mut around(masked, &run));
        assert!(error.contains("the kernel refuses a new /proc") && error.contains("procMount: Unmasked"), "{error}");
    }
}

#[test]
fn an_unknown_value_of_the_environment_is_refused() {
    let fixture = UserFixture::new("both");
    let error = failure(125, &mut fixture.run(&[], &[], "true"));
    assert!(error.contains("LAYERED_IDS is \"both\"; set it to auto, ranges or single"), "{error}");
}

#[test]
fn a_group_is_one_of_the_host_that_the_user_can_give_files_to() {
    for ids in ALL_IDS {
        let fixture = UserFixture::new(ids);
        let (_, own) = fixture.owner();
        let map = quietly(&mut fixture.layered(&["unshare", "--", "cat", "/proc/self/gid_map"]));
        let first: Option<u32> =
            map.lines().nth(1).map(|line| line.split_whitespace().nth(1).unwrap().parse().unwrap());
        assert_eq!(first.is_some(), ids == "ranges", "{map}");
        for group in [Some(own), first.map(|first| first + 9)].into_iter().flatten() {
            let upper = fixture.path().join(format!("up-{group}"));
            let options = ["--upper", upper.to_str().unwrap(), "--group", &group.to_string()];
            quietly(&mut fixture.run(&options, &[], "true"));
            let metadata = fs::metadata(&upper).unwrap();
            assert_eq!((metadata.gid(), metadata.mode() & 0o7777), (group, 0o750), "{ids} {group}");
        }
        // A group with a low number on the host, which is another group in the namespace.
        let error = failure(125, &mut fixture.run(&["--upper", "up", "--group", "daemon"], &[], "true"));
        let parts = ["cannot give a directory to the group 1: ", "subordinate groups (0=", "chgrp 1 DIR"];
        assert!(parts.iter().all(|part| error.contains(part)), "{ids}: {error}");
        assert!(!fixture.path().join("up").exists(), "{ids}");
    }
}

#[test]
fn ranges_that_cannot_be_used_are_never_a_single_map() {
    let fixture = UserFixture::new("auto");
    let name = "layered-test";
    let getsubids = fixture.path().join("getsubids");
    fs::write(&getsubids, "#!/bin/sh\necho the directory does not answer >&2\nexit 1\n").unwrap();
    fs::set_permissions(&getsubids, fs::Permissions::from_mode(0o755)).unwrap();
    let usable = format!("{name}:100000:65536\n");
    let table = [
        (["", &usable, ""], &["no subordinate groups", "usermod --add-subgids FIRST-LAST layered-test"][..]),
        (["", "", &usable], &["no subordinate users", "usermod --add-subuids FIRST-LAST layered-test"]),
        (["", &usable, &format!("{name}:100000\n")], &["/etc/subgid has a line", "layered-test:100000"]),
        (["subid: sss\n", &usable, &usable], &["getsubids failed (the directory does not answer)", "nsswitch.conf"]),
    ];
    for (files, parts) in table {
        let enter = fixture.layered(&["unshare", "--", "true"]);
        // Only this command sees the files.
        let script = "for file in nsswitch.conf subuid subgid; do printf %s \"$1\" > $file.of-test; \
                      mount --bind $file.of-test /etc/$file || exit; shift; done; \
                      mount --bind getsubids /usr/bin/getsubids; exec \"$@\"";
        let mut inside = Command::new(find("unshare"));
        inside.args(["--mount", "sh", "-c", script, "sh"]).args(files);
        let error = failure(125, &mut around(inside, &enter));
        let is_told = parts.iter().chain(&["--ids single"]).all(|part| error.contains(part));
        assert!(is_told && error.lines().count() == 1, "{files:?}: {error}");
    }
}
