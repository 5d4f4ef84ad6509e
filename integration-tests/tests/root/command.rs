//! The `layered` command, from outside: what scripts rely on.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, SystemTime};

use integration_tests::{Fixture, WHO, copy_program, find, layered};
use layer::{Layer, Meta};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use walkdir::WalkDir;

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn run(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap();
    (status.code().unwrap(), text(&stdout), text(&stderr))
}

/// `layered run` over the fixture's base.
fn layered_run(fixture: &Fixture) -> Command {
    fixture.layered_run()
}

fn script(fixture: &Fixture, options: &[&str], script: &str) -> (i32, String, String) {
    run(layered_run(fixture).args(options).args(["--", "sh", "-c", script]))
}

#[test]
fn exit_statuses() {
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
    assert_eq!(run(layered_run(&fixture).args(["--", "/etc"])).0, 126);
    assert_eq!(run(layered_run(&fixture).args(["--", "no-such-command"])).0, 127);
}

/// `getpid`, which is number 20 there. Without 32-bit programs it is the end: SIGSYS.
#[cfg(target_arch = "x86_64")]
#[test]
fn system_calls_of_32_bit_programs() {
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
fn fsync_waits_for_the_disk_only_if_told_so() {
    let fixture = Fixture::new();
    fixture.add_probe();
    // No file has this descriptor: only the kernel finds out.
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
fn system_calls_and_privileges() {
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
fn users_by_name() {
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

    // A kept run has the name, and a specification may have one.
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
fn a_failure_is_one_line_that_names_the_path() {
    let fixture = Fixture::new();
    let (status, stdout, stderr) = script(&fixture, &["--layer", "/no/such/layer"], "true");
    assert_eq!((status, &*stdout), (125, ""));
    assert_eq!(stderr, "layered: /no/such/layer is not a directory; pass the path of a layer\n");

    // The runtime's own words are not told twice.
    let spec = fixture.path().join("config.json");
    let mut value = serde_json::to_value(integration_tests::shell("true").build().unwrap()).unwrap();
    let mount = json!({"destination": "/x", "type": "nosuchfs", "source": "x"});
    value["mounts"].as_array_mut().unwrap().push(mount);
    fs::write(&spec, value.to_string()).unwrap();
    for runtime in ["runc", "crun"] {
        let mut command = layered_run(&fixture);
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

    // What cannot be written is found out before the command runs.
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
fn the_report_as_json() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(3);
    let (file, upper) = (fixture.path().join("report.json"), fixture.path().join("upper"));
    let mut command = layered_run(&fixture);
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
    assert_eq!(report["plan"], json!({"rung": "lowerdir+", "separate": 3, "merged": 0}));
    assert_eq!(report["made"], json!(["/etc/hosts", "/proc", "/dev", "/sys"]));
    let names: Vec<_> = report["timings"].as_object().unwrap().keys().map(String::as_str).collect();
    let expected = "touch plan merge prep_upper overlay_mount config runc_run overlay_umount cleanup total";
    assert_eq!(names.join(" "), expected);
    assert!(report["usage"]["peak_memory_bytes"].is_u64());
    assert_eq!((&report["usage"]["out_of_memory"], &report["merge"]), (&json!(false), &Value::Null));
    let entries = WalkDir::new(&upper).min_depth(1).into_iter().count();
    assert_eq!(report["usage"]["upper_entries"], entries);
    assert_eq!(fs::read(upper.join("x")).unwrap(), b"x\n");

    // One that came to nothing.
    let (status, ..) = run(layered_run(&fixture).arg("--json").arg(&file).args(["--", "/no/such/command"]));
    assert_eq!(status, 127);
    let report: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(report["status"]["failed"]["phase"], "runc_run");
    assert_eq!((&report["status"]["failed"]["left"], &report["upper"]), (&Value::Null, &Value::Null));
}

#[test]
fn an_upper_that_cannot_be_moved_is_kept_and_told() {
    let fixture = Fixture::new();
    let (upper, json) = (fixture.path().join("upper"), fixture.path().join("json"));
    // It is free when the run begins, and taken when the run ends.
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

    // What can be known before is told before.
    let other = tempfile::tempdir_in("/dev/shm").unwrap();
    let elsewhere = other.path().join("upper");
    let (status, stdout, stderr) = script(&fixture, &["--upper", elsewhere.to_str().unwrap()], "echo ran");
    assert_eq!((status, &*stdout), (125, ""));
    assert!(stderr.contains("different file systems"), "{stderr}");
}

#[test]
fn the_result_does_not_depend_on_who_reads_what_is_told() {
    let fixture = Fixture::new();
    let upper = fixture.path().join("upper");
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = layered_run(&fixture);
    command.args(["--timings", "--upper"]).arg(&upper).args(["--", "sh", "-c", "echo x > /x; exit 7"]);
    assert_eq!(command.stdin(Stdio::null()).stderr(full).status().unwrap().code(), Some(7));
    assert!(upper.join("x").exists());

    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let status = layered().args(["run", "--base", "/nope", "--", "true"]).stderr(full).status().unwrap();
    assert_eq!(status.code(), Some(125));
}

#[test]
fn a_scratch_directory_behind_a_link() {
    let fixture = Fixture::new();
    let link = fixture.path().join("link");
    std::os::unix::fs::symlink(fixture.scratch(), &link).unwrap();
    let mut command = layered();
    command.args(["run", "--base"]).arg(fixture.base().path()).arg("--scratch").arg(&link);
    assert_eq!(run(command.args(["--", "echo", "ran"])), (0, "ran\n".into(), String::new()));
}

#[test]
fn nothing_of_a_service_manager_is_handed_on() {
    let fixture = Fixture::new();
    // A socket that is not there would keep runc from starting, one that is would keep it waiting.
    let socket = fixture.path().join("notify");
    let _listening = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
    let mut command = layered_run(&fixture);
    command.env("NOTIFY_SOCKET", &socket).env("LISTEN_FDS", "1").args(["--", "env"]);
    let (status, stdout, stderr) = run(&mut command);
    assert_eq!((status, &*stderr), (0, ""));
    assert!(!stdout.contains("NOTIFY") && !stdout.contains("LISTEN"), "{stdout}");
}

#[test]
fn an_upper_that_is_there_already_is_not_replaced() {
    let fixture = Fixture::new();
    let upper = fixture.path().join("upper");
    fs::create_dir(&upper).unwrap();
    let (status, _, stderr) = script(&fixture, &["--upper", upper.to_str().unwrap()], "echo ran");
    assert_eq!(status, 125);
    assert!(stderr.contains("it exists; choose another --upper"), "{stderr}");
    assert_eq!(fs::read_dir(&upper).unwrap().count(), 0);
}

#[test]
fn the_scratch_is_made_beside_the_upper() {
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
    // Which one takes how long depends on the machine. One of nine takes at least a ninth.
    assert!(lines[1..10].iter().any(|line| line.contains('█')), "{stderr}");
    assert!(lines[10].starts_with("total") && lines[10].contains("100.0 %"), "{stderr}");
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
        "--cpus",
        "0",
    ];
    let text = "echo $A; pwd; id -u; id -g; hostname; cat /bound; grep Cpus_allowed_list /proc/self/status";
    let mut command = layered_run(&fixture);
    // A relative source is one in the working directory.
    command.current_dir(fixture.path()).args(options).args(["--", "sh", "-c", text]);
    let (status, stdout, stderr) = run(&mut command);
    assert_eq!((status, &*stderr), (0, ""));
    assert_eq!(stdout, "b=c\n/tmp\n12\n34\nbox\nbound\nCpus_allowed_list:\t0\n");
}

#[test]
fn layers_from_a_file() {
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
fn a_configuration_from_a_file() {
    let fixture = Fixture::new();
    let path = fixture.path().join("config.json");
    let template = integration_tests::shell("echo from the file").build().unwrap();
    fs::write(&path, serde_json::to_vec(&template).unwrap()).unwrap();
    let spec = path.to_str().unwrap();
    assert_eq!(run(layered_run(&fixture).args(["--spec", spec])).1, "from the file\n");
    assert_eq!(run(layered_run(&fixture).args(["--spec", spec, "--", "echo", "another"])).1, "another\n");
    let (status, _, stderr) = run(layered_run(&fixture).args(["--spec", spec, "--env", "A=b"]));
    assert_eq!(status, 125);
    assert!(stderr.contains("--spec"), "{stderr}");
}

#[test]
fn a_signal_ends_the_command_and_leaves_nothing() {
    let fixture = Fixture::new();
    for (signal, status) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130), (Signal::SIGHUP, 129)] {
        let mut child = layered_run(&fixture)
            .args(["--grace", "10ms", "--", "sh", "-c", "echo begun; sleep 1000"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(status));
        fixture.assert_clean();
    }
}

#[test]
fn a_second_signal_kills_at_once() {
    let fixture = Fixture::new();
    let stubborn = "trap 'echo no' TERM; echo begun; while :; do sleep 0.01; done";
    let mut child = layered_run(&fixture)
        .args(["--grace", "1h", "--", "sh", "-c", stubborn])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
    for (line, signal) in [("begun", Signal::SIGTERM), ("no", Signal::SIGINT)] {
        assert_eq!(said.next().unwrap().unwrap(), line);
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
    }
    assert_eq!(child.wait().unwrap().code(), Some(143));
    fixture.assert_clean();
}

#[test]
fn what_ended_the_command_is_told() {
    let fixture = Fixture::new();
    let (log, json) = (fixture.path().join("log"), fixture.path().join("report.json"));
    let paths = ["--output", log.to_str().unwrap(), "--json", json.to_str().unwrap()];
    for (options, command, expected, ending, said) in [
        (["--memory", "32m"], "exec dd if=/dev/zero of=/dev/null bs=100M count=1", 137, "out_of_memory", "--memory"),
        (["--output-limit", "64k"], "while :; do echo 0123456789; done", 143, "output_limit", "--output-limit"),
    ] {
        let options = [&paths[..], &["--grace", "50ms"], &options].concat();
        let (status, _, stderr) = script(&fixture, &options, command);
        assert_eq!((status, stderr.lines().count()), (expected, 1), "{stderr}");
        assert!(stderr.contains(said), "{stderr}");
        let report: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
        assert_eq!(report["status"], ending);
    }
    // More and more time, until the command has begun before it is over.
    let upper = fixture.path().join("upper");
    let paths = [&paths[..], &["--upper", upper.to_str().unwrap(), "--grace", "50ms"]].concat();
    for timeout in ["500ms", "5s", "50s", "500s"] {
        let options = [&paths[..], &["--timeout", timeout]].concat();
        let (status, _, stderr) = script(&fixture, &options, "echo > /begun; sleep 1000");
        assert_eq!((status, &*stderr), (124, ""));
        let report: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
        assert_eq!(report["status"], "timed_out");
        if upper.join("begun").exists() {
            assert_eq!(fs::metadata(&log).unwrap().len(), 0);
            return;
        }
        fs::remove_dir_all(&upper).unwrap();
    }
    panic!("it never begins");
}

/// Under script(1), which has a terminal for it.
#[test]
fn a_terminal_is_the_commands_and_is_put_back_afterwards() {
    let fixture = Fixture::new();
    find("script");
    let run = format!(
        "{} run --base {} --scratch {}",
        layered().get_program().to_str().unwrap(),
        fixture.base().path().display(),
        fixture.scratch().display()
    );
    let fifo = fixture.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let fifo = fifo.display();
    let session = format!(
        "exec 3<&0; stty rows 40 cols 101; before=$(stty -g)
         {run} --tty -- sh -c 'stty size; [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo $TERM; exit 5'; echo status $?
         [ \"$before\" = \"$(stty -g)\" ] && echo as before
         # Killed, the runtime cannot tidy up.
         {run} --tty --grace 10ms --mount type=bind,source={fifo},target=/fifo -- \\
             sh -c 'echo begun > /fifo; sleep 1000' <&3 &
         read begun <{fifo}; kill -TERM $!; wait $!; echo status $?
         [ \"$before\" = \"$(stty -g)\" ] && echo as before"
    );
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &session, "/dev/null"]);
    let mut script = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // Nobody types, and nobody says that they will not: script would type an end of file.
    let _keyboard = script.stdin.take();
    let output = script.wait_with_output().unwrap();
    let stdout = text(&output.stdout);
    assert!(output.status.success(), "{stdout}");
    let lines: Vec<_> = stdout.lines().map(str::trim_end).collect();
    assert_eq!(lines, ["40 101", "xterm", "status 5", "as before", "status 143", "as before"], "{stdout}");
}

#[test]
fn without_root_it_says_so() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(2);
    // A copy that anybody can reach.
    let copy = fixture.path().join("layered");
    copy_program(Path::new(layered().get_program()), &copy);
    for command in ["run", "plan"] {
        let mut nobody = Command::new(&copy);
        nobody.uid(65534).gid(65534).args([command, "--base"]).arg(fixture.base().path());
        for layer in &layers {
            nobody.arg("--layer").arg(layer.path());
        }
        if command == "run" {
            nobody.args(["--", "true"]);
        }
        let (status, stdout, stderr) = run(&mut nobody);
        assert_eq!((status, &*stdout, stderr.lines().count()), (125, "", 1), "{stderr}");
        assert!(stderr.contains("this needs root"), "{stderr}");
    }
    assert_eq!(layers[0].last_used().unwrap(), None);
}

#[test]
fn a_terminal_needs_one() {
    let fixture = Fixture::new();
    let (status, _, stderr) = script(&fixture, &["--tty"], "true");
    assert_eq!(status, 125);
    assert!(stderr.contains("terminal"), "{stderr}");
}

#[test]
fn plan_tells_what_would_be_done_and_does_nothing() {
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
fn merge_makes_what_a_run_would() {
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

#[test]
fn what_a_program_reads_is_json() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(2);
    let json = |command: &mut Command| -> Value {
        let (status, stdout, stderr) = run(command.arg("--json"));
        assert_eq!((status, &*stderr, stdout.lines().count()), (0, "", 1), "{stdout}");
        serde_json::from_str(&stdout).unwrap()
    };
    let trees: Vec<_> = layers.iter().map(Layer::fs).collect();
    let mut command = layered();
    command.args(["plan", "--base"]).arg(fixture.base().path());
    for layer in &layers {
        command.arg("--layer").arg(layer.path());
    }
    let plan = json(&mut command);
    assert_eq!((&plan["rung"], &plan["separate"], &plan["merged"]), (&json!("lowerdir+"), &json!(trees), &json!([])));

    let merged = json(layered().arg("merge").arg(fixture.path().join("merged")).args(layers.iter().map(Layer::path)));
    assert_eq!(merged, json!({"linked": 3, "copied": 0, "directories": 2, "whiteouts": 0, "opaques": 0}));

    let dead = fixture.scratch().join("layered-0123456789abcdef");
    fs::create_dir(&dead).unwrap();
    let swept = json(layered().arg("sweep").arg(fixture.scratch()));
    assert_eq!(swept, json!({"removed": [dead], "live": 0, "failed": []}));
}

/// A layer with a `layer.json` and a sidecar.
fn finished_layer(fixture: &Fixture, name: &str, exit_status: i64) -> Layer {
    let layer = fixture.layer(name, |_| {});
    let meta = Meta { exit_status, disk_usage: 3 << 20, ..Meta::new("base", SystemTime::now()) };
    layer.write_sidecar("package", &json!({"name": name})).unwrap();
    layer.write_meta(&meta).unwrap();
    layer
}

#[test]
fn ls_and_show_tell_what_is_there() {
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
    let (status, _, stderr) = run(layered().arg("ls").arg(Path::new("/no/such/store")));
    assert_eq!(status, 125);
    assert!(stderr.contains("/no/such/store is not a directory"), "{stderr}");
}

#[test]
fn help_teaches_by_example() {
    for command in ["run", "plan", "merge", "ls", "show", "gc"] {
        let (status, stdout, stderr) = run(layered().args([command, "--help"]));
        assert_eq!((status, &*stderr), (0, ""));
        assert!(stdout.contains(&format!("layered {command} ")) && stdout.contains("Example"), "{stdout}");
        assert!(!stdout.contains('\u{1b}'), "colour without a terminal");
    }
}

/// `layered commit` with these arguments, and the layer's `layer.json` after it.
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
    // The number of blocks is the file system's.
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

    // In a stack it was not made over: its own, and what a sibling has.
    let third = fixture.layer("third", |fs| {
        fs::create_dir(fs.join("deps")).and_then(|()| fs::write(fs.join("deps/third"), "")).unwrap()
    });
    let stack =
        ["--layer", &layer, "--layer", third.path().to_str().unwrap(), layers[0], layers[1], layers[2], layers[3]];
    assert_eq!(script(&fixture, &stack, "ls /deps"), (0, "new\nthird\n".into(), String::new()));

    // The second time nothing is done, and what is wrong is one line.
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

    // Where it stands, without a report.
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
        (&["--base", "/no/such/base"], "/no/such/base is not a directory"),
        (&["--run", &report, "--source-date-epoch"], "needs SOURCE_DATE_EPOCH in the environment"),
        (&[], "--run"),
    ] {
        let (status, stdout, stderr, _) = commit(&[&[&*upper, "/no/layer"], arguments].concat(), Path::new(&layer));
        assert_eq!((status, &*stdout), (125, ""));
        assert!(stderr.contains(words), "{arguments:?}: {stderr}");
    }
}
