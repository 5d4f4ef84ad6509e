//! `layered run`: exit statuses, users, and the options that describe the container.

use std::fs;

use integration_tests::{Fixture, WHO, layered};
use serde_json::{Value, json};

use super::{run, script};

#[test]
fn exit_statuses_are_those_of_the_command_or_layereds_own() {
    let fixture = Fixture::new();
    for (options, text, status) in [
        (&[][..], "true", 0),
        (&[], "exit 7", 7),
        (&[], "ulimit -t 1; while :; do :; done", 137),
        (&["--timeout", "200ms", "--grace", "10ms"], "sleep 1000", 124),
        (&["--layer", "/no/such/layer"], "true", 125),
        (&["--runtime", "no-such-runtime"], "true", 125),
        (&["--no-such-option"], "true", 125),
    ] {
        let (seen, _, stderr) = script(&fixture, options, text);
        assert_eq!(seen, status, "{options:?} {text}: {stderr}");
    }
    assert_eq!(run(fixture.layered_run().args(["--", "/etc"])).0, 126);
    assert_eq!(run(fixture.layered_run().args(["--", "no-such-command"])).0, 127);
}

/// The system call is `getpid`, number 20 for 32-bit programs. Without 32-bit programs the kernel
/// kills the caller with SIGSYS.
#[cfg(target_arch = "x86_64")]
#[test]
fn system_calls_of_32_bit_programs_depend_on_the_profile() {
    let fixture = Fixture::new();
    fixture.add_probe();
    for runtime in ["runc", "crun"] {
        for (seccomp, status) in [("default", 0), ("native", 128 + nix::libc::SIGSYS), ("unconfined", 0)] {
            let options = ["--runtime", runtime, "--seccomp", seccomp];
            assert_eq!(script(&fixture, &options, "exec probe i20").0, status, "{options:?}");
        }
    }
}

#[test]
fn fsync_waits_for_the_disk_only_if_asked() {
    let fixture = Fixture::new();
    fixture.add_probe();
    // No file has this descriptor, and only the kernel checks that.
    let text = format!("exec probe {} 99", nix::libc::SYS_sync_file_range);
    for (options, status) in [(&[][..], 0), (&["--sync", "fake"], 0), (&["--sync", "real"], nix::libc::EBADF)] {
        assert_eq!(script(&fixture, options, &text).0, status, "{options:?}");
    }
    for option in [["--sync", "real"], ["--ulimit", "core=0"]] {
        let (status, _, stderr) = script(&fixture, &["--spec", "config.json", option[0], option[1]], "true");
        assert!(status == 125 && stderr.contains("cannot be used with"), "{option:?}: {stderr}");
    }
}

#[test]
fn the_runs_hosts_file_or_that_of_the_stack_is_found() {
    let fixture = Fixture::new();
    let layer = fixture.layer("hosts", |fs| {
        fs::create_dir(fs.join("etc")).unwrap();
        fs::write(fs.join("etc/hosts"), "10.1.1.1 box\n").unwrap();
    });
    let layer = ["--layer", layer.path().to_str().unwrap(), "--hostname", "box"];
    let own = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.0.1\tbox\n";
    for (etc, expected) in [(&[][..], own), (&["--etc", "run"], own), (&["--etc", "stack"], "10.1.1.1 box\n")] {
        assert_eq!(
            script(&fixture, &[&layer[..], etc].concat(), "cat /etc/hosts"),
            (0, expected.into(), String::new())
        );
    }
}

#[test]
fn privileges_and_the_profile_are_set() {
    let fixture = Fixture::new();
    for (options, seen) in [
        (&[][..], "0\nno namespace\n"),
        (&["--no-new-privileges"], "1\nno namespace\n"),
        (&["--seccomp", "native"], "0\nno namespace\n"),
        (&["--seccomp", "unconfined"], "0\na namespace\n"),
    ] {
        let text = "sed -n 's/NoNewPrivs:.//p' /proc/self/status
            busybox unshare -U true 2>/dev/null && echo a namespace || echo no namespace";
        assert_eq!(script(&fixture, options, text).1, seen, "{options:?}");
    }
}

#[test]
fn users_are_given_by_name_or_number() {
    let fixture = Fixture::new();
    let users = fixture.layer_with_users();
    let layer = ["--layer", users.path().to_str().unwrap()];
    for runtime in ["runc", "crun"] {
        let run = |user| script(&fixture, &[&layer[..], &["--runtime", runtime, "--user", user]].concat(), WHO);
        for (user, expected) in [
            ("1000", "1000 1000 /home/opam\n"),
            ("opam", "1000 1001 10 50 /home/opam\n"),
            ("opam:staff", "1000 50 /home/opam\n"),
            ("7:staff", "7 50 /\n"),
        ] {
            assert_eq!(run(user), (0, expected.into(), String::new()), "{runtime}");
        }
        for (user, kind, name, file) in
            [("opem", "user", "opem", "/etc/passwd"), ("opam:stuff", "group", "stuff", "/etc/group")]
        {
            let (status, stdout, stderr) = run(user);
            let expected = format!(
                "layered: config: the {kind} '{name}' is not in the container's {file}: add a layer that has it, or give its number\n"
            );
            assert_eq!((status, &*stdout, &*stderr), (125, "", &*expected));
        }
    }
    for user in ["", "opam:", "4294967295", "a:b:c"] {
        let (status, _, stderr) = script(&fixture, &["--user", user], "true");
        assert!(status == 125 && stderr.contains(&format!("the user {user:?} ")), "{stderr}");
    }

    // A kept run has the user's name, and a specification may have one.
    let keep = [&layer[..], &["--keep-failed", "--user", "opam", "--cwd", "/home/opam"]].concat();
    assert_eq!(script(&fixture, &keep, "exit 3").0, 3);
    let kept = fixture.left().pop().unwrap();
    let description: Value = serde_json::from_slice(&fs::read(kept.join("run.json")).unwrap()).unwrap();
    assert_eq!(description["config"]["process"]["user"]["username"], "opam");
    assert_eq!(
        (&description["capture"]["meta"]["uid"], &description["capture"]["meta"]["gid"]),
        (&json!(1000), &json!(1001))
    );
    for runtime in ["runc", "crun"] {
        let mut visit = layered();
        visit.arg("shell").arg(&kept).args(["--runtime", runtime, "--", "sh", "-c", WHO]);
        assert_eq!(run(&mut visit), (0, "1000 1001 10 50 /home/opam\n".into(), String::new()), "{runtime}");
    }
    let spec = fixture.path().join("config.json");
    fs::write(&spec, description["config"].to_string()).unwrap();
    let options = [&layer[..], &["--spec", spec.to_str().unwrap()]].concat();
    assert_eq!(script(&fixture, &options, WHO), (0, "1000 1001 10 50 /home/opam\n".into(), String::new()));
    assert!(layered().arg("discard").arg(&kept).status().unwrap().success());
}

#[test]
fn a_scratch_directory_behind_a_link_works() {
    let fixture = Fixture::new();
    let link = fixture.path().join("link");
    std::os::unix::fs::symlink(fixture.scratch(), &link).unwrap();
    let mut command = layered();
    command.args(["run", "--base"]).arg(fixture.base().path()).arg("--scratch").arg(&link);
    assert_eq!(run(command.args(["--", "echo", "ran"])), (0, "ran\n".into(), String::new()));
}

#[test]
fn variables_of_a_service_manager_are_not_inherited() {
    let fixture = Fixture::new();
    // A missing socket would keep runc from starting. An existing one would keep it waiting.
    let socket = fixture.path().join("notify");
    let _listening = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
    let mut command = fixture.layered_run();
    command.env("NOTIFY_SOCKET", &socket).env("LISTEN_FDS", "1").args(["--", "env"]);
    let (status, stdout, stderr) = run(&mut command);
    assert_eq!((status, &*stderr), (0, ""));
    assert!(!stdout.contains("NOTIFY") && !stdout.contains("LISTEN"), "{stdout}");
}

#[test]
fn options_reach_the_container() {
    let fixture = Fixture::new();
    fs::write(fixture.path().join("bound"), "bound\n").unwrap();
    let mount = "type=bind,source=bound,target=/bound,readonly";
    let options = [
        "--env",
        "A=b=c",
        "--cwd",
        "/tmp",
        "--user",
        "12:34",
        "--hostname",
        "box",
        "--mount",
        mount,
        "--memory",
        "64m",
        "--pids",
        "50",
        "--cpuset-cpus",
        "0",
    ];
    let text = "echo $A; pwd; id -u; id -g; hostname; cat /bound; grep Cpus_allowed_list /proc/self/status";
    let mut command = fixture.layered_run();
    // A relative source starts at the working directory.
    command.current_dir(fixture.path()).args(options).args(["--", "sh", "-c", text]);
    let (status, stdout, stderr) = run(&mut command);
    assert_eq!((status, &*stderr), (0, ""));
    assert_eq!(stdout, "b=c\n/tmp\n12\n34\nbox\nbound\nCpus_allowed_list:\t0\n");
}

#[test]
fn layers_come_from_options_and_a_file() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(3);
    let list = fixture.path().join("list");
    fs::write(&list, layers[1..].iter().map(|layer| format!("{}\n", layer.path().display())).collect::<String>())
        .unwrap();
    let first = layers[0].path().to_str().unwrap();
    let (_, stdout, _) =
        script(&fixture, &["--layer", first, "--layers-from", list.to_str().unwrap()], "cat /top; ls /deps");
    assert_eq!(stdout, "0\n0\n1\n2\n");
}

#[test]
fn a_configuration_from_a_file_is_used() {
    let fixture = Fixture::new();
    let path = fixture.path().join("config.json");
    let template = integration_tests::shell("echo from the file").build().unwrap();
    fs::write(&path, serde_json::to_vec(&template).unwrap()).unwrap();
    let spec = path.to_str().unwrap();
    assert_eq!(run(fixture.layered_run().args(["--spec", spec])).1, "from the file\n");
    assert_eq!(run(fixture.layered_run().args(["--spec", spec, "--", "echo", "another"])).1, "another\n");
    let (status, _, stderr) = run(fixture.layered_run().args(["--spec", spec, "--env", "A=b"]));
    assert_eq!(status, 125);
    assert!(stderr.contains("--spec"), "{stderr}");
}

#[test]
fn tty_needs_a_terminal() {
    let fixture = Fixture::new();
    for option in ["--tty", "-t"] {
        let (status, _, stderr) = script(&fixture, &[option], "true");
        assert_eq!(status, 125);
        assert!(stderr.contains("terminal"), "{stderr}");
    }
}
