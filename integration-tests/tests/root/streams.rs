//! The three streams of a command. The caller's files stay the caller's. Output keeps its order,
//! and lost output is reported. No process waits for a peer that takes or gives nothing. Terminals
//! of the container are tested in module `terminal`.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use container::{CaptureLimit, Input, Output, Runtime, Status, in_private_mount_namespace};
use integration_tests::disk::Disk;
use integration_tests::processes::{Running, descendants};
use integration_tests::terminal::Terminal;
use integration_tests::{Fixture, RUNTIMES, find, shell, stdout};
use rustix::fs::{Stat, fstat};
use rustix::pipe::{PipeFlags, pipe_with};
use serde_json::{Value, json};

fn fifo(fixture: &Fixture) -> PathBuf {
    let path = fixture.path().join("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    path
}

/// Returns the metadata that a container must not change.
fn owner(file: impl AsFd) -> (u32, u32, u32) {
    let Stat { st_uid, st_gid, st_mode, .. } = fstat(file).unwrap();
    (st_uid, st_gid, st_mode)
}

#[test]
fn the_callers_files_can_be_neither_reopened_nor_chowned() {
    let fixture = Fixture::new();
    let [input, output] = ["in", "out"].map(|name| fixture.path().join(name));
    let fifo = fifo(&fixture);
    // A command with the file itself could overwrite it, empty it, or read what others have written
    // to it.
    let attempts = "stolen=$(busybox timeout 0.1 cat < /proc/self/fd/1); [ \"$stolen\" ] && echo stolen
        read line; echo $line
        for n in 0 1 2; do chown 7:7 /proc/self/fd/$n; chmod 777 /proc/self/fd/$n; done
        echo changed > /proc/self/fd/0
        for n in 1 2; do echo more > /proc/self/fd/$n; done
        for n in 0 1 2; do [ -t $n ] && echo a terminal; done";
    for runtime in RUNTIMES {
        for user in ["0", "1000"] {
            fs::write(&input, "original\n").unwrap();
            fs::write(&output, "before\n").unwrap();
            let options = ["--runtime", runtime, "--user", user];
            let terminal = Terminal::new();
            // Each pair is standard input and standard output. The FIFO has both ends open, so that
            // no open waits.
            let kinds: [(OwnedFd, OwnedFd); 3] = [
                (File::open(&input).unwrap().into(), OpenOptions::new().append(true).open(&output).unwrap().into()),
                (terminal.side_of_programs(), terminal.side_of_programs()),
                (
                    File::open(&input).unwrap().into(),
                    OpenOptions::new().read(true).write(true).open(&fifo).unwrap().into(),
                ),
            ];
            for (n, (stdin, stdout)) in kinds.into_iter().enumerate() {
                let before = (owner(&stdin), owner(&stdout));
                let mut command = fixture.layered_script(&options, attempts);
                command.stdin(stdin.try_clone().unwrap()).stdout(stdout.try_clone().unwrap());
                let mut run = Running::start(command.stderr(stdout.try_clone().unwrap()));
                if n == 1 {
                    (&File::from(terminal.as_fd().try_clone_to_owned().unwrap())).write_all(b"typed\n").unwrap();
                }
                let status = run.end();
                assert_eq!((owner(&stdin), owner(&stdout)), before, "{runtime} {user} {n}: {status}");
            }
            assert_eq!(fs::read_to_string(&input).unwrap(), "original\n", "{runtime} {user}");
            let written = fs::read_to_string(&output).unwrap();
            assert!(written.starts_with("before\n") && written.contains("\noriginal\n"), "{runtime} {user}: {written}");
            assert!(!["a terminal", "stolen"].iter().any(|word| written.contains(word)), "{runtime} {user}: {written}");
        }
    }
}

#[test]
fn a_command_cannot_read_from_its_output_fifo() {
    let fixture = Fixture::new();
    let fifo = fifo(&fixture);
    for runtime in RUNTIMES {
        // Another process has written this into the FIFO before the command begins.
        let mut both = OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
        both.write_all(b"secret\n").unwrap();
        let script = "busybox timeout 0.1 cat < /proc/self/fd/1 > /stolen; cat /stolen >&2; echo written";
        let mut command = fixture.layered_script(&["--runtime", runtime], script);
        let output = command.stdin(Stdio::null()).stdout(both.try_clone().unwrap()).output().unwrap();
        assert!(!String::from_utf8_lossy(&output.stderr).contains("secret"), "{runtime}: {output:?}");
        let mut seen = [0; 15];
        both.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"secret\nwritten\n", "{runtime}");
    }
}

#[test]
fn the_hosts_null_device_keeps_its_owner() {
    let fixture = Fixture::new();
    let null = File::open("/dev/null").unwrap();
    let before = owner(&null);
    for runtime in RUNTIMES {
        let script = "chown 7:7 /proc/self/fd/0; chmod 600 /proc/self/fd/1; cat; echo end";
        let mut command = fixture.layered_script(&["--runtime", runtime, "--user", "1000"], script);
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert_eq!((&*output.stdout, owner(&null)), (&b"end\n"[..], before), "{runtime}");
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        assert!(status.success() && owner(&null) == before, "{runtime}");
        // The library opens the null device itself here.
        let options = fixture.options().runtime(Runtime::new(runtime)).stdout(Output::Null).stderr(Output::Null);
        let template = shell(script).user(1000, 1000).build().unwrap();
        let report = runner::run(&fixture.base(), &[], &template, options).unwrap();
        assert!(report.status.success() && owner(&null) == before, "{runtime}");
    }
}

/// Prints numbers in lines, alternately to both outputs.
const IN_TURN: &str = "i=0; while [ $i -lt 400 ]; do echo $i; echo $((i + 1)) >&2; i=$((i + 2)); done";

#[test]
fn both_outputs_to_one_file_keep_their_order() {
    let fixture = Fixture::new();
    let log = fixture.path().join("log");
    let expected: String = (0..400).map(|n| format!("{n}\n")).collect();
    for runtime in RUNTIMES {
        let run = |options: &[&str]| {
            let mut command = fixture.layered_script(&[&["--runtime", runtime], options].concat(), IN_TURN);
            command.stdin(Stdio::null());
            command
        };
        let status = run(&["--output", log.to_str().unwrap()]).status().unwrap();
        assert!(status.success());
        assert_eq!(fs::read_to_string(&log).unwrap(), expected, "{runtime}");

        // These are `>log 2>&1` and `>>log 2>>log`.
        let file = File::create(&log).unwrap();
        let status = run(&[]).stdout(file.try_clone().unwrap()).stderr(file).status().unwrap();
        assert!(status.success());
        let append = || OpenOptions::new().append(true).open(&log).unwrap();
        assert!(run(&[]).stdout(append()).stderr(append()).status().unwrap().success());
        assert_eq!(fs::read_to_string(&log).unwrap(), expected.repeat(2), "{runtime}");

        // The outputs are a pipe, a socket and a terminal.
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let mut piped = Running::start(run(&[]).stdout(writer.try_clone().unwrap()).stderr(writer));
        assert_eq!(
            (std::io::read_to_string(File::from(reader)).unwrap(), piped.end().code()),
            (expected.clone(), Some(0))
        );
        let (mut reader, writer) = std::os::unix::net::UnixStream::pair().unwrap();
        let [out, err] = [writer.try_clone().unwrap(), writer].map(OwnedFd::from);
        let mut socket = Running::start(run(&[]).stdout(out).stderr(err));
        let mut seen = String::new();
        reader.read_to_string(&mut seen).unwrap();
        assert_eq!((seen, socket.end().code()), (expected.clone(), Some(0)), "{runtime}");
        let mut terminal = Terminal::new();
        let mut on_terminal = terminal.start(&run(&[]));
        assert_eq!((terminal.rest(), on_terminal.end().code()), (expected.clone(), Some(0)), "{runtime}");
    }
}

/// Runs a script with `--output log`. Returns the exit status, standard error and the JSON report.
fn with_output(fixture: &Fixture, runtime: &str, log: &Path, script: &str) -> (i32, String, Value) {
    let (upper, json) = (fixture.path().join("upper"), fixture.path().join("json"));
    let mut command = fixture.layered_run();
    command.args(["--runtime", runtime, "--output"]).arg(log).arg("--upper").arg(&upper).arg("--json").arg(&json);
    let output = command.args(["--", "sh", "-c", script]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(fs::read_to_string(upper.join("result")).unwrap(), "result\n");
    fs::remove_dir_all(&upper).unwrap();
    let report = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap(), report)
}

#[test]
fn a_full_disk_under_the_log_does_not_stop_the_command() {
    let fixture = Fixture::new();
    let no_space = "No space left on device (os error 28)";
    // The output is larger than any pipe, and the command must not wait.
    let script = "seq 300000; echo result > /result; exit 7";
    let check = |runtime: &str, log: &Path| {
        let (status, stderr, report) = with_output(&fixture, runtime, log, script);
        assert_eq!(
            (status, &*stderr),
            (7, &*format!("layered: cannot write all of the command's output: {no_space}\n"))
        );
        assert_eq!(
            (&report["status"], &report["output_error"]),
            (&json!({"exited": 7}), &json!(no_space)),
            "{runtime}"
        );
    };
    let image = fixture.path().join("image");
    Disk::format(&image, 1 << 20, "-O ^has_journal");
    in_private_mount_namespace(|| {
        let disk = Disk::mount(&image, fixture.path().join("disk"));
        for runtime in RUNTIMES {
            check(runtime, Path::new("/dev/full"));
            let log = disk.path().join("log");
            check(runtime, &log);
            // The log contains as much as fitted on the disk.
            let kept = fs::read_to_string(&log).unwrap();
            assert!(kept.starts_with("1\n2\n3\n") && kept.len() > 100_000 && kept.len() < 1 << 20, "{}", kept.len());
            fs::remove_file(&log).unwrap();
        }
    })
    .unwrap();
    // A command that writes nothing loses nothing, and its report says so.
    let (_, stderr, report) = with_output(&fixture, "runc", Path::new("/dev/full"), "echo result > /result");
    assert_eq!((&*stderr, &report["output_error"]), ("", &Value::Null));
}

#[test]
fn a_background_job_continues_and_reads_nothing() {
    let fixture = Fixture::new();
    let go = fixture.path().join("go");
    fs::create_dir(&go).unwrap();
    let mount = format!("type=bind,source={},target=/go", go.display());
    for runtime in RUNTIMES {
        let run = fixture.layered_script(
            &["--runtime", runtime, "--mount", &mount],
            "echo begun; until [ -e /go/on ]; do sleep 0.01; done; read line; echo \"job: $line\"; exit 7",
        );
        // This interactive shell has job control, so the job has its own process group and is in
        // the background.
        let session = "set -m; \"$@\" & job=$!; echo ready; read line; echo \"shell: $line\"; echo >$0/on
            read line; echo \"shell: $line\"; fg >/dev/null; echo status $?";
        let mut shell = Command::new(find("bash"));
        shell.args(["-c", session]).arg(&go).arg(run.get_program()).args(run.get_args());
        let mut terminal = Terminal::new();
        let mut shell = terminal.start(&shell);
        terminal.until("begun");
        for line in ["one", "two"] {
            terminal.press(&format!("{line}\n"));
            terminal.until(&format!("shell: {line}"));
        }
        // In the foreground, the job reads.
        terminal.press("three\n");
        terminal.until("job: three");
        assert_eq!((terminal.rest().trim(), shell.end().code()), ("status 7", Some(0)), "{runtime}");
        fs::remove_file(go.join("on")).unwrap();
    }
}

#[test]
fn a_command_notices_that_its_reader_left() {
    let fixture = Fixture::new();
    let fifo = fifo(&fixture);
    for runtime in RUNTIMES {
        let endless = fixture.layered_script(&["--runtime", runtime], "exec busybox yes");
        let mut command = Command::new(endless.get_program());
        command.args(endless.get_args()).stdin(Stdio::null());
        let mut piped = Running::start(command.stdout(Stdio::piped()).stderr(Stdio::null()));
        assert_eq!(piped.line(), "y");
        piped.close_output();
        assert_eq!(piped.end().code(), Some(141), "{runtime}: a pipe");

        // layered copies output to a FIFO, and output with a limit.
        for options in [&[][..], &["--output-limit", "1t", "--output"]] {
            let mut command = fixture.layered_run();
            command.args(["--runtime", runtime]).args(options);
            if !options.is_empty() {
                command.arg(&fifo);
            }
            command.args(["--", "busybox", "yes"]).stdin(Stdio::null()).stderr(Stdio::null());
            let both = OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
            if options.is_empty() {
                command.stdout(OpenOptions::new().write(true).open(&fifo).unwrap());
            }
            let mut reader = File::open(&fifo).unwrap();
            let mut run = Running::start(&mut command);
            drop(command);
            reader.read_exact(&mut [0; 2]).unwrap();
            drop((both, reader));
            assert_eq!(run.end().code(), Some(141), "{runtime}: a FIFO with {options:?}");
        }
    }
}

#[test]
fn a_process_that_keeps_a_pipe_delays_nothing() {
    let fixture = Fixture::new();
    for runtime in RUNTIMES {
        let script = "(setsid sleep 1000 &); (trap '' TERM HUP; sleep 1000 &); echo done";
        let mut command = fixture.layered_script(&["--runtime", runtime], script);
        let output = command.stdin(Stdio::piped()).output().unwrap();
        assert_eq!((output.status.code(), &*output.stdout), (Some(0), &b"done\n"[..]), "{runtime}");
        let report = fixture.run_with(&[], script, fixture.options().runtime(Runtime::new(runtime)));
        assert_eq!(stdout(&report), "done\n", "{runtime}");
    }
}

#[test]
fn the_offset_of_an_input_file_is_where_the_command_stopped() {
    let fixture = Fixture::new();
    let path = fixture.path().join("file");
    let size = 3 << 20;
    fs::write(&path, (0..size).map(|n: u32| n as u8).collect::<Vec<_>>()).unwrap();
    let size = u64::from(size);
    // (the offset before, the script, the offset afterwards)
    let table = [
        (0, "true", 0),
        (0, "dd bs=1 count=3", 3),
        (10, "dd bs=1 count=3", 13),
        (0, "exec <&-; sleep 0.01", 0),
        (0, "dd bs=100k count=1 iflag=fullblock", 102_400),
        (1, "dd bs=1000k count=1 iflag=fullblock", 1_024_001),
        (0, "cat", size),
        (5, "cat", size),
        (size - 2, "dd bs=1 count=1", size - 1),
        (size, "cat", size),
        (size + 10, "cat", size + 10),
        // The command is killed.
        (0, "dd bs=1 count=7; kill -9 $$", 7),
    ];
    for runtime in RUNTIMES {
        for user in ["0", "1000"] {
            for (from, script, to) in table {
                let mut file = File::open(&path).unwrap();
                file.seek(std::io::SeekFrom::Start(from)).unwrap();
                let script = format!("{script} >/dev/null 2>&1");
                let mut command = fixture.layered_script(&["--runtime", runtime, "--user", user], &script);
                let output = command.stdin(file.try_clone().unwrap()).output().unwrap();
                assert_eq!(file.stream_position().unwrap(), to, "{runtime} {user} {script}: {output:?}");
            }
        }
        // A later command of the caller's script continues at the offset. A command that did not
        // begin has read nothing.
        let mut file = File::open(&path).unwrap();
        for command in ["/no/such", "/etc"] {
            let mut layered = fixture.layered_run();
            layered.args(["--runtime", runtime, "--", command]).stdin(file.try_clone().unwrap());
            assert!(!layered.output().unwrap().status.success());
            assert_eq!(file.stream_position().unwrap(), 0, "{runtime}");
        }
    }
}

/// Returns a mebibyte that shows the position of almost every byte.
fn pattern() -> Vec<u8> {
    (0..1_u32 << 18).flat_map(u32::to_le_bytes).collect()
}

#[test]
fn large_input_and_output_arrive_completely() {
    let fixture = Fixture::new();
    let [input, output] = ["in", "out"].map(|name| fixture.path().join(name));
    let mebibytes = 100;
    {
        let mut file = File::create(&input).unwrap();
        for _ in 0..mebibytes {
            file.write_all(&pattern()).unwrap();
        }
    }
    let same = |name: &str| {
        let compared = Command::new("cmp").arg(&input).arg(&output).output().unwrap();
        assert!(compared.status.success(), "{name}: {compared:?}");
    };
    for runtime in RUNTIMES {
        let run = |stdin: Stdio| {
            let mut command = fixture.layered_script(&["--runtime", runtime], "cat");
            command.stdin(stdin).stdout(File::create(&output).unwrap());
            Running::start(&mut command)
        };
        assert_eq!(run(File::open(&input).unwrap().into()).end().code(), Some(0));
        same("a file");
        let mut piped = run(Stdio::piped());
        std::io::copy(&mut File::open(&input).unwrap(), &mut piped.input()).unwrap();
        assert_eq!(piped.end().code(), Some(0));
        same("a pipe");
        let options =
            fixture.options().runtime(Runtime::new(find(runtime))).stdin(Input::Bytes(fs::read(&input).unwrap()));
        let options = options.stdout(Output::File(File::create(&output).unwrap()));
        assert!(fixture.run_with(&[], "cat", options).status.success());
        same("bytes");
    }
}

#[test]
fn a_slow_reader_loses_nothing() {
    let fixture = Fixture::new();
    let fifo = fifo(&fixture);
    let expected: String = (1..=200_000).map(|n| format!("{n}\n")).collect();
    for runtime in RUNTIMES {
        let both = OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
        let mut reader = File::open(&fifo).unwrap();
        let mut command = fixture.layered_script(&["--runtime", runtime], "seq 200000");
        command.stdin(Stdio::null()).stdout(OpenOptions::new().write(true).open(&fifo).unwrap());
        let mut run = Running::start(&mut command);
        drop((both, command));
        // The command ends long before its output is read.
        let mut seen = Vec::new();
        let mut piece = [0; 1000];
        loop {
            match reader.read(&mut piece).unwrap() {
                0 => break,
                length => seen.extend_from_slice(&piece[..length]),
            }
            std::thread::yield_now();
        }
        assert!(seen == expected.as_bytes(), "{runtime}: {} bytes", seen.len());
        assert_eq!(run.end().code(), Some(0), "{runtime}");
    }
}

#[test]
fn a_terminal_that_takes_no_output_stops_no_run() {
    let fixture = Fixture::new();
    let fifo = fifo(&fixture);
    let upper = fixture.path().join("upper");
    for runtime in RUNTIMES {
        let run = |timeout: &str, script: &str| {
            // No process reads from this terminal.
            let terminal = Terminal::new();
            let options = ["--runtime", runtime, "--timeout", timeout, "--grace", "10ms"];
            let options = [&options[..], &["--upper", upper.to_str().unwrap()]].concat();
            let mut run = terminal.start(&fixture.layered_script(&options, script));
            let status = run.end().code();
            fs::remove_dir_all(&upper).unwrap();
            status
        };
        // The command continues to write.
        assert_eq!(run("500ms", "exec busybox yes"), Some(124), "{runtime}");
        // The command ends, but its last output is not taken. The timeouts increase until the
        // command ends before one.
        let timeouts = ["500ms", "5s", "50s", "500s"];
        let statuses = timeouts.iter().map(|timeout| run(timeout, "seq 10000; exit 7"));
        let statuses: Vec<_> = statuses.skip_while(|status| *status == Some(124)).take(1).collect();
        assert_eq!(statuses, [Some(7)], "{runtime}");
        // A signal also ends the wait.
        let terminal = Terminal::new();
        let json = fixture.path().join("json");
        let options = ["--runtime", runtime, "--grace", "10ms", "--json", json.to_str().unwrap()];
        let mount = format!("type=bind,source={},target=/fifo", fifo.display());
        let options = [&options[..], &["--mount", &mount]].concat();
        let mut run = terminal.start(&fixture.layered_script(&options, "seq 10000; echo > /fifo; exit 7"));
        std::io::read_to_string(File::open(&fifo).unwrap()).unwrap();
        // The command has written all its output and ends now.
        while !descendants(run.pid()).is_empty() {
            std::thread::yield_now();
        }
        run.send(nix::sys::signal::Signal::SIGTERM);
        assert_eq!(run.end().code(), Some(7), "{runtime}");
        let report: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
        assert_eq!(report["output_error"], json!("nobody takes it"), "{runtime}");
    }
}

#[test]
fn closed_empty_and_endless_streams_work() {
    let fixture = Fixture::new();
    for runtime in RUNTIMES {
        let run = |redirection: &str, script: &str| {
            let run = fixture.layered_script(&["--runtime", runtime], script);
            let mut shell = Command::new(find("sh"));
            shell.args(["-c", &format!("exec \"$@\" {redirection}"), "sh"]).arg(run.get_program()).args(run.get_args());
            let output = shell.stdin(Stdio::null()).output().unwrap();
            (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
        };
        for redirection in ["<&-", "</dev/null", "</", "0>/dev/null"] {
            assert_eq!(run(redirection, "cat; echo end"), (0, "end\n".into()), "{runtime} {redirection}");
        }
        // This input never ends.
        assert_eq!(run("</dev/zero", "head -c 1000000 | wc -c"), (0, "1000000\n".into()), "{runtime}");
        // These outputs are closed.
        for redirection in [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"] {
            assert_eq!(run(redirection, "echo out; echo err >&2; exit 7").0, 7, "{runtime} {redirection}");
        }
    }
}

#[test]
fn a_hung_up_terminal_is_at_its_end() {
    let fixture = Fixture::new();
    for runtime in RUNTIMES {
        // This is the situation under nohup. A plain program reads the end of the file there.
        let run = fixture.layered_script(&["--runtime", runtime], "echo begun; cat; echo end; exit 7");
        let mut shell = Command::new(find("sh"));
        shell.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]).arg(run.get_program()).args(run.get_args());
        let terminal = Terminal::new();
        let mut run = Running::start(terminal.leader(&shell).stdout(Stdio::piped()).stderr(Stdio::null()));
        assert_eq!(run.line(), "begun");
        drop(terminal);
        assert_eq!(run.result(), (7, "end\n".into()), "{runtime}");
    }
}

#[test]
fn output_goes_to_several_places() {
    let fixture = Fixture::new();
    let log = fixture.path().join("log");
    let expected: String = (1..=50_000).map(|n| format!("{n}\n")).collect();
    let script = "seq 50000; printf last; echo err >&2";
    for runtime in RUNTIMES {
        let (mut lines, mut bytes, mut errors) = (Vec::new(), Vec::new(), Vec::new());
        let whole = CaptureLimit { head_bytes: 1 << 20, tail_bytes: 0 };
        let tee = Output::tee([
            Output::File(File::create(&log).unwrap()),
            Output::lines(|line| lines.push(line.to_vec())),
            Output::callback(|piece| bytes.extend_from_slice(piece)),
            Output::Capture(whole),
            // Of several captures, the first one is kept.
            Output::Capture(CaptureLimit { head_bytes: 1, tail_bytes: 1 }),
            Output::Null,
        ]);
        let stderr = Output::tee([Output::lines(|line| errors.push(line.to_vec())), Output::Capture(whole)]);
        let options = fixture.options().runtime(Runtime::new(runtime)).stdout(tee).stderr(stderr);
        let report = fixture.run_with(&[], script, options);
        assert_eq!((report.status, report.output_error.is_none()), (Status::Exited(0), true), "{runtime}");
        let all = format!("{expected}last");
        assert_eq!(fs::read_to_string(&log).unwrap(), all, "{runtime}");
        assert_eq!((stdout(&report), integration_tests::stderr(&report)), (all.clone(), "err\n".into()), "{runtime}");
        drop(report);
        assert_eq!((bytes, errors), (all.clone().into_bytes(), vec![b"err\n".to_vec()]), "{runtime}");
        assert_eq!(lines.len(), 50_001);
        assert!(lines.concat() == all.as_bytes() && lines[..50_000].iter().all(|line| line.ends_with(b"\n")));
    }
}

#[test]
fn a_full_disk_stops_only_one_of_several_places() {
    let fixture = Fixture::new();
    for runtime in RUNTIMES {
        let mut seen = 0;
        let full = || Output::File(OpenOptions::new().write(true).open("/dev/full").unwrap());
        let tee = Output::tee([
            full(),
            Output::Capture(CaptureLimit::default()),
            Output::callback(|piece| seen += piece.len()),
        ]);
        let options = fixture.options().runtime(Runtime::new(runtime)).stdout(tee).stderr(full());
        let report = fixture.run_with(&[], "seq 100000; exit 7", options);
        assert_eq!(
            (report.status, report.stdout.as_ref().unwrap().total_bytes()),
            (Status::Exited(7), 588_895),
            "{runtime}"
        );
        assert_eq!(report.output_error.as_ref().unwrap().kind(), std::io::ErrorKind::StorageFull, "{runtime}");
        drop(report);
        assert_eq!(seen, 588_895);
    }
}

/// Opening the other side of a pseudoterminal again would make another pseudoterminal.
#[test]
fn a_pseudoterminal_master_is_not_reopened() {
    let fixture = Fixture::new();
    for runtime in RUNTIMES {
        let terminal = Terminal::new();
        let program = terminal.side_of_programs();
        let keyboard = File::from(terminal.as_fd().try_clone_to_owned().unwrap());
        let options = fixture.options().runtime(Runtime::new(runtime)).stdout(Output::File(keyboard));
        assert!(fixture.run_with(&[], "echo typed", options).status.success());
        let mut line = [0; 6];
        File::from(program).read_exact(&mut line).unwrap();
        assert_eq!(&line, b"typed\n", "{runtime}");
    }
}

/// The command can write to its own standard input, because that is a pipe.
#[test]
fn a_command_does_not_move_the_callers_offset_backwards() {
    let fixture = Fixture::new();
    let path = fixture.path().join("input");
    fs::write(&path, [b'x'; 4000]).unwrap();
    for runtime in RUNTIMES {
        // One write is smaller than the part of the file before the caller's offset, the other one
        // is larger.
        for bytes in ["1500", "60000"] {
            let mut input = File::open(&path).unwrap();
            input.seek(std::io::SeekFrom::Start(2000)).unwrap();
            let script = format!("dd if=/dev/zero of=/proc/self/fd/0 bs={bytes} count=1 2>/dev/null");
            let mut command = fixture.layered_script(&["--runtime", runtime], &script);
            assert!(command.stdin(input.try_clone().unwrap()).status().unwrap().success());
            assert_eq!(input.stream_position().unwrap(), 2000, "{runtime} {bytes}");
        }
    }
}

/// If layered opened the FIFO again, it could not see that the earlier writers have gone.
#[test]
fn a_fifo_without_writers_is_at_its_end() {
    let fixture = Fixture::new();
    let fifo = fifo(&fixture);
    for runtime in RUNTIMES {
        let mut both = OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
        let reader = File::open(&fifo).unwrap();
        both.write_all(b"line\n").unwrap();
        drop(both);
        let mut command = fixture.layered_script(&["--runtime", runtime], "cat; echo end");
        let output = command.stdin(reader).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "line\nend\n", "{runtime}");
    }
}

/// The kernel reaps the children of a process that ignores SIGCHLD.
#[test]
fn a_caller_that_ignores_sigchld_gets_the_result() {
    let fixture = Fixture::new();
    let upper = fixture.path().join("upper");
    for runtime in RUNTIMES {
        let run =
            fixture.layered_script(&["--runtime", runtime, "--upper", upper.to_str().unwrap()], "echo > /made; exit 5");
        // busybox sh would not pass on an ignored SIGCHLD.
        let mut command = Command::new(find("env"));
        command.arg("--ignore-signal=CHLD").arg(run.get_program()).args(run.get_args());
        assert_eq!(command.stdin(Stdio::null()).status().unwrap().code(), Some(5), "{runtime}");
        assert!(upper.join("made").exists(), "{runtime}");
        fs::remove_dir_all(&upper).unwrap();
    }
}
