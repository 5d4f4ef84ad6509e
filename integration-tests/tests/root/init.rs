//! Process 1 of a container: how it starts and ends the command, reaps orphans and passes signals
//! on. Also commands that cannot be executed and runtimes that start nothing. Signals have more
//! tests in module `signals`.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use container::{Init, Runtime, Status, Template};
use integration_tests::processes::{Running, descendants, name, state, times_run};
use integration_tests::{Fixture, RUNTIMES, find, layered, shell, stdout, write_script};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use runner::{Cause, Phase};
use serde_json::{Value, json};

/// Runs a command. Returns its exit status, standard output and standard error.
fn run(command: &mut Command) -> (i32, String, String) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// Starts a command with its standard output in a pipe.
fn start(command: &mut Command) -> Running {
    Running::start(command.stdin(Stdio::null()).stdout(Stdio::piped()))
}

#[test]
fn an_exit_status_is_distinguished_from_a_signal() {
    let fixture = Fixture::new();
    let report = fixture.path().join("report.json");
    for runtime in RUNTIMES {
        for (script, status, expected) in [
            ("exit 137", 137, json!({"exited": 137})),
            ("kill -KILL $$; exit 3", 137, json!({"signaled": 9})),
            ("kill -TERM $$; exit 3", 143, json!({"signaled": 15})),
            ("kill -SEGV $$; exit 3", 139, json!({"signaled": 11})),
            ("kill -ABRT $$; exit 3", 134, json!({"signaled": 6})),
            ("kill -INT $$; exit 3", 130, json!({"signaled": 2})),
            ("exit 255", 255, json!({"exited": 255})),
            // A process other than process 1 is killed here.
            ("sleep 1000 & kill -9 $!; wait $! 2>/dev/null", 137, json!({"exited": 137})),
        ] {
            let options = ["--runtime", runtime, "--json", report.to_str().unwrap()];
            assert_eq!(run(&mut fixture.layered_script(&options, script)).0, status, "{runtime}: {script}");
            let report: Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
            assert_eq!(report["status"], expected, "{runtime}: {script}");
        }
    }
}

/// Fills a layer with files that the kernel does not execute, each for another reason.
fn fill_with_not_executable_files(fs: &Path) {
    let file = |name: &str, mode: u32, content: &[u8]| {
        fs::write(fs.join(name), content).unwrap();
        fs::set_permissions(fs.join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    for dir in ["bin", "srv", "srv/dir"] {
        fs::create_dir(fs.join(dir)).unwrap();
    }
    file("bin/denied", 0o644, b"#!/bin/sh\n");
    file("bin/orphaned", 0o755, b"#! /no/sh -e\n");
    file("no-interpreter", 0o755, b"#!/no/sh\n");
    file("dos", 0o755, b"#!/bin/sh\r\necho\r\n");
    file("text", 0o755, b"echo text\n");
    file("empty", 0o755, b"");
    file("damaged", 0o755, b"\x7fELF\x02\x01\x01");
    file("srv/tool", 0o755, b"echo tool\n");
    file("srv/no-such", 0o755, b"#!/no/sh\n");
    file("root-only", 0o700, b"#!/bin/sh\n");
    file("interpreted-by-a-directory", 0o755, b"#!/srv\n");
    symlink("loop", fs.join("loop")).unwrap();
    symlink("/nowhere", fs.join("dangling")).unwrap();
    // A program of the host, whose dynamic loader the base does not have.
    fs::copy(find("setsid"), fs.join("dynamic")).unwrap();
}

#[test]
fn a_command_that_cannot_be_executed_is_reported_with_the_reason() {
    let fixture = Fixture::new();
    let layer = fixture.layer("programs", fill_with_not_executable_files);
    let long = "x".repeat(5000);
    let far = format!("/{}", "x/".repeat(2000));
    // (further options, the command, the exit status, the message)
    let table: [(&[&str], &str, i32, &str); 24] = [
        (&[], "/no/such", 127, "does not exist in the container: /no/such (No such file"),
        (&[], "no-such", 127, "does not exist in the container: no-such (No such file"),
        (&["--cwd", "/srv"], "./nothing", 127, "does not exist in the container: ./nothing (No such file"),
        // The working directory is not searched.
        (&["--cwd", "/srv"], "no-such", 127, "does not exist in the container: no-such (No such file"),
        (&["--cwd", "/srv"], "tool", 127, "does not exist in the container: tool (No such file"),
        (&[], "/text/below", 127, "does not exist in the container: /text/below (Not a directory"),
        (&[], "/dangling", 127, "does not exist in the container: /dangling (No such file"),
        (&["--env", "PATH=/srv"], "sh", 127, "does not exist in the container: sh (No such file"),
        (&["--env", "PATH=/bin:/srv"], "dir", 126, "cannot be executed in the container: /srv/dir: it must be a file"),
        (
            &[],
            "denied",
            126,
            "cannot be executed in the container: /bin/denied: it, or its interpreter \"/bin/sh\", must",
        ),
        (&[], "/bin/denied", 126, "cannot be executed in the container: /bin/denied: it, or its"),
        (&["--user", "7"], "/root-only", 126, "cannot be executed in the container: /root-only: it must be a file"),
        (&[], "/etc", 126, "cannot be executed in the container: /etc: it must be a file with permission"),
        (&[], "/interpreted-by-a-directory", 126, "its interpreter \"/srv\", must be a file with permission"),
        (&[], "orphaned", 126, "in the container: /bin/orphaned: its interpreter \"/no/sh\" does not exist"),
        (&[], "/no-interpreter", 126, "in the container: /no-interpreter: its interpreter \"/no/sh\" does not exist"),
        (
            &[],
            "/dos",
            126,
            "in the container: /dos: its first line names the interpreter \"/bin/sh\\r\": end its lines",
        ),
        (&[], "/dynamic", 126, "in the container: /dynamic: its dynamic loader \"/lib"),
        (&[], "/text", 126, "in the container: /text: it is neither a program of this machine nor a script"),
        (&["--cwd", "/srv"], "./tool", 126, "in the container: ./tool: it is neither a program"),
        (&[], "/empty", 126, "in the container: /empty: it is empty"),
        (&[], "/damaged", 126, "in the container: /damaged: it is a program for another machine, or damaged"),
        (&[], "/loop", 126, "cannot be executed in the container: /loop (Too many levels of symbolic links"),
        (&[], &long, 126, "(File name too long"),
    ];
    let table = table.into_iter().chain([(&[][..], &*far, 127, "does not exist in the container: /x/x/")]);
    for (options, command, status, message) in table {
        for runtime in RUNTIMES {
            for init in [&[][..], &["--no-init"]] {
                let mut layered = fixture.layered_run();
                layered.arg("--layer").arg(layer.path()).args(["--runtime", runtime]).args(init).args(options);
                let (seen, stdout, stderr) = run(layered.arg("--").arg(command));
                let case =
                    format!("{runtime} {init:?} {options:?} {}: {seen} {stderr}", &command[..command.len().min(30)]);
                assert_eq!((seen, &*stdout, stderr.lines().count()), (status, "", 1), "{case}");
                assert!(stderr.starts_with("layered: the command ") && stderr.contains(message), "{case}");
            }
        }
    }
}

#[test]
fn a_command_that_cannot_be_executed_has_its_own_error() {
    let fixture = Fixture::new();
    let layers = [fixture.layer("programs", fill_with_not_executable_files)];
    let error = |command: &str| {
        let template = Template::builder([command]).build().unwrap();
        let error = runner::run(&fixture.base(), &layers, &template, fixture.options()).unwrap_err();
        assert_eq!((error.phase(), error.left()), (Some(Phase::RuncRun), None), "{error}");
        error
    };
    match error("no-such").cause() {
        Cause::Container(container::Error::CommandNotFound { path, source }) => {
            assert_eq!((path.to_str(), source.raw_os_error()), (Some("no-such"), Some(nix::libc::ENOENT)));
        }
        other => panic!("{other:?}"),
    }
    match error("orphaned").cause() {
        Cause::Container(container::Error::CommandNotExecutable { path, reason, source }) => {
            assert_eq!((path.to_str(), source.raw_os_error()), (Some("/bin/orphaned"), Some(nix::libc::ENOENT)));
            assert_eq!(reason, "its interpreter \"/no/sh\" does not exist: add the layer that has it");
        }
        other => panic!("{other:?}"),
    }
}

/// Makes a runtime that executes `script` instead of starting a container. `$pid` is the file for
/// the container's PID.
fn runtime_that(fixture: &Fixture, name: &str, script: &str) -> PathBuf {
    let path = fixture.path().join(name);
    let find_file = "for word in \"$@\"; do [ \"$last\" = --pid-file ] && pid=$word; last=$word; done";
    write_script(&path, &format!("#!/bin/sh\n{find_file}\n{script}\n"));
    path
}

#[test]
fn a_runtime_that_starts_nothing_is_an_error() {
    let fixture = Fixture::new();
    let none = "it started no container; is it an OCI runtime, as runc and crun are?";
    let table = [
        (find("true"), none),
        (find("false"), "exit status: 1"),
        (runtime_that(&fixture, "empty", ":> $pid"), none),
        (runtime_that(&fixture, "garbage", "echo garbage > $pid"), none),
        (runtime_that(&fixture, "of-nobody", "echo 4000000 > $pid"), none),
        (runtime_that(&fixture, "too-large", "echo 99999999999999999999 > $pid"), none),
        (runtime_that(&fixture, "of-the-keeper", "echo 1 > $pid"), none),
        (runtime_that(&fixture, "its-own", "echo $$ > $pid"), none),
        // The PID is that of a process that ends, while another process stays.
        (runtime_that(&fixture, "another", "sleep 1000 & sleep 0.01 & echo $! > $pid"), "its container ended before"),
        (runtime_that(&fixture, "negative", "echo -5 > $pid"), none),
        (runtime_that(&fixture, "a-directory", "mkdir $pid"), none),
        (runtime_that(&fixture, "failing", "echo 2 > $pid; exit 3"), "exit status: 3"),
    ];
    let (upper, json) = (fixture.path().join("upper"), fixture.path().join("json"));
    for (runtime, message) in table {
        for init in [&[][..], &["--no-init"]] {
            let mut layered = fixture.layered_run();
            layered.arg("--runtime").arg(&runtime).args(init).arg("--keep-failed").arg("--upper").arg(&upper);
            let (status, stdout, stderr) = run(layered.arg("--json").arg(&json).args(["--", "true"]));
            let case = format!("{} {init:?}: {stderr}", runtime.display());
            assert_eq!((status, &*stdout, stderr.lines().count()), (125, "", 1), "{case}");
            assert!(stderr.contains(message), "{case}");
            assert!(!upper.exists(), "{case}");
            let report: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
            assert_eq!((&report["status"]["failed"]["phase"], &report["upper"]), (&json!("runc_run"), &Value::Null));
            fixture.assert_clean();
        }
    }
}

/// Starts an orphan and prints a line when it is gone.
const ORPHAN: &str =
    "pid=$(sh -c 'sleep 0.01 >/dev/null & echo $!'); while [ -e /proc/$pid ]; do sleep 0.01; done; echo reaped";

#[test]
fn the_init_reaps_orphans() {
    let fixture = Fixture::new();
    for runtime in RUNTIMES {
        let run = |script: &str| {
            let template = shell(script).pids_limit(20).build().unwrap();
            let options = fixture.options().runtime(Runtime::new(runtime));
            stdout(&runner::run(&fixture.base(), &[], &template, options).unwrap())
        };
        assert_eq!(run(ORPHAN), "reaped\n", "{runtime}");
        // The script starts more processes in all than may exist at a time.
        let many = format!("for n in $(seq 100); do sh -c 'true & true' || exit; done; {ORPHAN}; echo /proc/[0-9]*");
        let seen = run(&many);
        let processes = seen.lines().last().unwrap().split(' ').count();
        assert!(seen.starts_with("reaped\n") && processes == 2, "{runtime}: {seen}");
    }
}

#[test]
fn sigterm_ends_a_command_without_a_handler() {
    let fixture = Fixture::new();
    for runtime in RUNTIMES {
        // The command has an hour of grace and needs none of it.
        let options = ["--runtime", runtime, "--grace", "1h"];
        let mut run = start(&mut fixture.layered_script(&options, "echo begun; exec sleep 1000"));
        assert_eq!(run.line(), "begun");
        run.send(Signal::SIGTERM);
        assert_eq!(run.result(), (143, String::new()), "{runtime}");

        let options = fixture.options().runtime(Runtime::new(runtime));
        let options = options.timeout(Duration::from_millis(1)).grace(Duration::from_secs(3600));
        assert_eq!(fixture.run_with(&[], "sleep 1000", options).status, Status::TimedOut, "{runtime}");
    }
}

#[test]
fn a_stopped_command_uses_no_processor_time() {
    let fixture = Fixture::new();
    for runtime in RUNTIMES {
        for input in [Stdio::null(), Stdio::piped()] {
            let mut command = fixture.layered_script(&["--runtime", runtime], "kill -STOP $$; exit 7");
            let mut run = Running::start(command.stdin(input));
            let is_command = |pid: &u32| name(*pid) == "sh" && state(*pid) == Some('T');
            let stopped = loop {
                if let Some(stopped) = descendants(run.pid()).into_iter().find(is_command) {
                    break stopped;
                }
                assert!(run.lives(), "{runtime}");
                std::thread::yield_now();
            };
            let ours = |pid: &u32| name(*pid).starts_with("layered");
            let processes: Vec<_> = [run.pid()].into_iter().chain(descendants(run.pid())).filter(ours).collect();
            let times = || processes.iter().map(|pid| times_run(*pid)).collect::<Vec<_>>();
            // The processes may have something left to do, but not for long.
            let mut rest = 0;
            let mut before = times();
            for _ in 0..1000 {
                std::thread::sleep(Duration::from_millis(20));
                let now = times();
                rest = if now == before { rest + 1 } else { 0 };
                if rest == 10 {
                    break;
                }
                before = now;
            }
            assert_eq!((processes.len(), rest), (3, 10), "{runtime}: {processes:?} do not rest");
            kill(Pid::from_raw(stopped as i32), Signal::SIGCONT).unwrap();
            assert_eq!(run.end().code(), Some(7), "{runtime}");
        }
    }
}

/// The command makes process 1 its tracer and stops at the next signal. The kernel notifies a
/// tracer of a stop in the same way as of an end.
#[test]
fn a_traced_command_does_not_count_as_ended() {
    use nix::libc::{SIGUSR1, SYS_kill, SYS_ptrace};
    let fixture = Fixture::new();
    fixture.add_probe();
    let call = format!("exec probe {SYS_ptrace} 0 , {SYS_kill} 0 {SIGUSR1}");
    for runtime in RUNTIMES {
        // Without an init, the command goes on if its parent was the runtime, which has ended by
        // then.
        for (init, statuses) in [(&[][..], &[124][..]), (&["--no-init"], &[124, 0])] {
            let options = [&["--runtime", runtime, "--timeout", "1s", "--grace", "10ms"], init].concat();
            let (status, ..) = run(&mut fixture.layered_script(&options, &call));
            assert!(statuses.contains(&status), "{runtime} {init:?}: {status}");
        }
    }
}

#[test]
fn without_an_init_the_command_is_process_1() {
    let fixture = Fixture::new();
    for runtime in RUNTIMES {
        let run = |script: &str| run(&mut fixture.layered_script(&["--runtime", runtime, "--no-init"], script));
        // The kernel protects process 1 from signals of its own container.
        assert_eq!(run("echo $$ /proc/[0-9]*; kill -TERM $$; exit 7"), (7, "1 /proc/1\n".into(), String::new()));
        assert_eq!(run("exit 137"), (137, String::new(), String::new()), "{runtime}");
        let options = fixture.options().runtime(Runtime::new(runtime)).init(Init::None);
        let report = fixture.run_with(&[], "ulimit -t 1; while :; do :; done", options);
        assert_eq!(report.status, Status::Signaled(9), "{runtime}");

        // A signal from outside reaches process 1 if it has a handler.
        let options = ["--runtime", runtime, "--no-init", "--grace", "1h"];
        let script = "trap 'echo heard; exit 5' TERM; echo begun; sleep 1000 & while :; do wait; done";
        let mut run = start(&mut fixture.layered_script(&options, script));
        assert_eq!(run.line(), "begun");
        run.send(Signal::SIGTERM);
        assert_eq!(run.result(), (5, "heard\n".into()), "{runtime}");
    }
}

#[test]
fn the_command_leads_its_session_and_is_a_child_of_the_init() {
    let fixture = Fixture::new();
    for runtime in RUNTIMES {
        let run = |script: &str| run(&mut fixture.layered_script(&["--runtime", runtime], script));
        let expected = |text: &str| (0, text.to_string(), String::new());
        // A command that searches for itself by name or arguments does not find the init.
        assert_eq!(
            run("cat /proc/1/comm; tr '\\0' ' ' < /proc/1/cmdline | sed 's/ *$//'"),
            expected("layered-init\nlayered-init")
        );
        // The command leads a process group and a session without a terminal.
        let leader = "read pid name state parent group session terminal rest < /proc/$$/stat
            echo $((pid - group)) $((pid - session)) $terminal";
        assert_eq!(run(leader), expected("0 0 0\n"), "{runtime}");
        // A signal to the command's own group reaches it once and does not reach the init.
        let group = "n=0; trap 'n=$((n + 1))' USR1; trap 'echo $n; exit 0' TERM
            kill -USR1 0; kill -TERM 1; sleep 1000 & while :; do wait; done";
        assert_eq!(run(group), expected("1\n"), "{runtime}");
        // The command is a child of the init.
        assert_eq!(run("grep PPid /proc/$$/status"), expected("PPid:\t1\n"));
    }
}

#[test]
fn a_forged_report_does_not_hide_the_real_end() {
    let fixture = Fixture::new();
    for runtime in RUNTIMES {
        // A false report of an end, and more bytes than anyone reads. Neither keeps the run from
        // reporting the real end.
        let forged = "printf '\\7\\0\\0\\0\\0\\0\\0\\0' > /proc/1/fd/3; exit 3";
        let (status, _, stderr) = run(&mut fixture.layered_script(&["--runtime", runtime], forged));
        assert_eq!((status, &*stderr), (3, ""), "{runtime}");
        let flood = "echo begun > /begun; cat /dev/zero > /proc/1/fd/3";
        let options = ["--runtime", runtime, "--timeout", "2s", "--grace", "10ms"];
        assert_eq!(run(&mut fixture.layered_script(&options, flood)).0, 124, "{runtime}");
    }
}

#[test]
fn the_command_keeps_the_callers_processors() {
    let fixture = Fixture::new();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:\t")).unwrap();
    let last = allowed.rsplit([',', '-']).next().unwrap();
    for runtime in RUNTIMES {
        for init in [&[][..], &["--no-init"]] {
            let mut taskset = Command::new(find("taskset"));
            let run_command = fixture
                .layered_script(&[&["--runtime", runtime], init].concat(), "grep _allowed_list /proc/self/status");
            taskset.args(["--cpu-list", last]).arg(layered().get_program()).args(run_command.get_args());
            let (status, stdout, stderr) = run(&mut taskset);
            assert_eq!((status, stdout.lines().next()), (0, Some(&*format!("Cpus_allowed_list:\t{last}"))), "{stderr}");
        }
    }
}
