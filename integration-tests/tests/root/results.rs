//! How a command ends, what a report contains, and where the output goes. `streams` has the details
//! of the three streams, `init` those of the start.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use container::{Cancel, CaptureLimit, Error as ContainerError, Input, Output, Runtime, Status, Template, Terminal};
use integration_tests::{FOR_EVER, Fixture, find, shell, stderr, stdout, write_script};
use layer::Layer;
use runner::{Cause, Event, Phase, Report};

#[test]
fn a_failing_command_is_a_result_with_its_upper() {
    let fixture = Fixture::new();
    let report = fixture.run(&[], "echo half > /half; exit 7");
    assert_eq!(report.status, Status::Exited(7));
    assert_eq!(fs::read(report.upper.path().join("half")).unwrap(), b"half\n");
}

#[test]
fn a_command_killed_by_a_signal_is_a_result() {
    let fixture = Fixture::new();
    for (script, signal) in [("kill -KILL $$", 9), ("kill -TERM $$", 15), ("ulimit -t 1; while :; do :; done", 9)] {
        assert_eq!(fixture.run(&[], script).status, Status::Signaled(signal), "{script}");
    }
}

#[test]
fn a_missing_or_not_executable_command_is_an_error() {
    let fixture = Fixture::new();
    let layers = [fixture.layer("scripts", |fs| fs::write(fs.join("plain"), "not a program").unwrap())];
    for runtime in ["runc", "crun"] {
        for (command, found) in [("/no/such/command", false), ("no-such-command", false), ("/plain", true)] {
            let template = Template::builder([command]).build().unwrap();
            let options = fixture.options().runtime(Runtime::new(find(runtime)));
            let error = runner::run(&fixture.base(), &layers, &template, options).unwrap_err();
            assert_eq!((error.phase(), error.left()), (Some(Phase::RuncRun), None), "{error}");
            match (error.cause(), found) {
                (Cause::Container(ContainerError::CommandNotFound { .. }), false) => {}
                (Cause::Container(ContainerError::CommandNotExecutable { .. }), true) => {}
                _ => panic!("{runtime}, {command}: {error:?}"),
            }
            fixture.assert_clean();
        }
    }
}

#[test]
fn a_failure_of_the_runtime_is_reported_with_its_message() {
    let fixture = Fixture::new();
    // A path below a file cannot be a mount point.
    let template = shell("true").mount(container::Mount::bind("/etc/hostname", "/gone/below")).build().unwrap();
    let layer = fixture.layer("covering", |fs| fs::write(fs.join("gone"), "a file").unwrap());
    let error = runner::run(&fixture.base(), &[layer], &template, fixture.options()).unwrap_err();
    assert_eq!(error.phase(), Some(Phase::Config), "{error}");

    let mut value = serde_json::to_value(shell("true").build().unwrap()).unwrap();
    value["mounts"]
        .as_array_mut()
        .unwrap()
        .push(serde_json::json!({"destination": "/x", "type": "nosuchfs", "source": "x"}));
    let template = Template::from_value(value).unwrap();
    let error = runner::run(&fixture.base(), &[], &template, fixture.options()).unwrap_err();
    match error.cause() {
        Cause::Container(ContainerError::Runtime { message, .. }) => {
            assert!(message.contains("no such device"), "{message}")
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(error.left(), None);
}

#[test]
fn every_failure_of_a_runtime_is_an_error() {
    let fixture = Fixture::new();
    let script = |name: &str, text: &str| {
        let path = fixture.path().join(name);
        write_script(&path, text);
        path
    };
    // The first process of a PID namespace is safe from its own signals, but not from a limit on
    // processor time.
    let killed = script("killed", "#!/bin/sh\nulimit -t 1; while :; do :; done\n");
    let garbage = script(
        "garbage",
        "#!/bin/sh\nwhile [ $# -gt 1 ]; do [ \"$1\" = --log ] && echo '}{ oops' > \"$2\"; shift; done; exit 3\n",
    );
    let plain = fixture.path().join("plain");
    fs::write(&plain, "").unwrap();
    for (program, expected) in [
        (killed, "it was killed"),
        (garbage, "}{ oops"),
        (plain, "cannot start the runtime"),
        ("no-such-runtime".into(), "cannot start the runtime"),
    ] {
        let template = shell("true").build().unwrap();
        let options = fixture.options().runtime(Runtime::new(&program));
        let error = runner::run(&fixture.base(), &[], &template, options).unwrap_err();
        assert!(error.to_string().contains(expected), "{}: {error}", program.display());
        assert_eq!((error.phase(), error.left()), (Some(Phase::RuncRun), None));
        fixture.assert_clean();
    }
}

#[test]
fn a_hanging_runtime_is_ended_by_the_timeout() {
    let fixture = Fixture::new();
    let hanging = fixture.path().join("hanging");
    // The runtime ignores SIGTERM and has a child.
    write_script(&hanging, "#!/bin/sh\ntrap '' TERM\nsleep 1000 & sleep 1000\n");
    let options = fixture.options().runtime(Runtime::new(&hanging));
    let options = options.timeout(Duration::from_millis(100)).grace(Duration::from_millis(10));
    let report = fixture.run_with(&[], "true", options);
    assert_eq!(report.status, Status::TimedOut);
}

#[test]
fn the_upper_outlives_its_run() {
    let fixture = Fixture::new();
    let report = fixture.run(&[], "mkdir -p /made/here; echo new > /made/file; rm /bin/wc");
    let layer = fixture.store().join("new");
    fs::create_dir(&layer).unwrap();
    report.upper.persist(layer.join("fs")).unwrap();
    fixture.assert_clean();

    // The upper serves as the next layer.
    let report = fixture.run(&[Layer::open(&layer).unwrap()], "cat /made/file; ls /bin/wc 2>/dev/null || echo gone");
    assert_eq!(stdout(&report), "new\ngone\n");
    let path = report.upper.keep();
    assert!(path.is_dir());
    fs::remove_dir_all(path.parent().unwrap()).unwrap();
}

#[test]
fn an_upper_that_cannot_be_moved_is_not_lost() {
    let fixture = Fixture::new();
    let report = fixture.run(&[], "echo new > /file");
    let destination = Path::new("/dev/shm").join(fixture.path().file_name().unwrap());
    let error = report.upper.persist(&destination).unwrap_err();
    assert!(error.to_string().contains("another file system"), "{error}");
    assert!(!destination.exists());
    assert_eq!(fs::read(error.upper.path().join("file")).unwrap(), b"new\n");
}

#[test]
fn phases_are_timed_in_order() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(4);
    let report = fixture.run_with(&layers, "true", fixture.options().max_lowers(3).prep_upper(|_, _| Ok(())));
    let names: Vec<_> = report.timings.iter().map(|(name, _)| name).collect();
    assert_eq!(
        names.join(" "),
        "touch plan merge prep_upper overlay_mount config runc_run overlay_umount cleanup total"
    );
    assert!(report.timings.iter().all(|(_, time)| !time.is_zero()), "{:?}", report.timings);
    let sum: Duration = report.timings.iter().take(9).map(|(_, time)| time).sum();
    assert!(sum <= report.timings.total());
}

#[test]
fn streams_are_kept_apart_and_bounded() {
    let fixture = Fixture::new();
    let report = fixture.run(&[], "echo out; echo err >&2");
    assert_eq!((stdout(&report), stderr(&report)), ("out\n".into(), "err\n".into()));

    let limit = CaptureLimit { head_bytes: 4, tail_bytes: 6 };
    let report = fixture.run_with(&[], "seq 1 100000", fixture.options().stdout(Output::Capture(limit)));
    let excerpt = report.stdout.as_ref().unwrap();
    assert_eq!(excerpt.to_bytes(), b"1\n2\n00000\n");
    assert_eq!(excerpt.total_bytes(), 588_895);

    // The output is larger than any pipe or page cache could hold back, on both streams at the same
    // time.
    let limit = CaptureLimit { head_bytes: 32 << 10, tail_bytes: 32 << 10 };
    let options = fixture.options().stdout(Output::Capture(limit)).stderr(Output::Capture(limit));
    let report = fixture.run_with(&[], "head -c 300m /dev/zero & head -c 300m /dev/zero >&2; wait; echo end", options);
    for (excerpt, end) in [(report.stdout.unwrap(), "end\n"), (report.stderr.unwrap(), "")] {
        assert_eq!(excerpt.total_bytes(), (300 << 20) + end.len() as u64);
        let kept = excerpt.to_bytes();
        assert_eq!(kept.len(), 64 << 10);
        assert!(kept.ends_with(end.as_bytes()));
    }
}

#[test]
fn a_slow_callback_slows_the_command_and_loses_nothing() {
    let fixture = Fixture::new();
    let pieces = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&pieces);
    // The sleep waits for no event. It makes the callback slow.
    let slow = Output::Callback(Box::new(move |piece| {
        std::thread::sleep(Duration::from_millis(1));
        sink.lock().unwrap().extend_from_slice(piece);
    }));
    let report = fixture.run_with(&[], "seq 1 100000", fixture.options().stdout(slow));
    assert!(report.status.success());
    let expected: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
    assert!(*pieces.lock().unwrap() == expected.as_bytes());
}

#[test]
fn output_goes_to_a_file_a_callback_or_nowhere() {
    let fixture = Fixture::new();
    let path = fixture.path().join("log");
    let pieces = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&pieces);
    let options = fixture
        .options()
        .stdout(Output::File(fs::File::create(&path).unwrap()))
        .stderr(Output::Callback(Box::new(move |piece| sink.lock().unwrap().extend_from_slice(piece))));
    let report = fixture.run_with(&[], "seq 1 3; seq 1 20000 >&2", options);
    assert!(report.stdout.is_none() && report.stderr.is_none());
    assert_eq!(fs::read(&path).unwrap(), b"1\n2\n3\n");
    let expected: String = (1..=20000).map(|n| format!("{n}\n")).collect();
    assert_eq!(*pieces.lock().unwrap(), expected.as_bytes());

    let report = fixture.run_with(&[], "echo nothing", fixture.options().stdout(Output::Null));
    assert!(report.status.success() && report.stdout.is_none());
}

#[test]
fn input_comes_from_a_file_or_memory_or_is_empty() {
    let fixture = Fixture::new();
    let path = fixture.path().join("input");
    fs::write(&path, "a line\n").unwrap();
    let options = fixture.options().stdin(Input::File(fs::File::open(&path).unwrap()));
    assert_eq!(stdout(&fixture.run_with(&[], "cat", options)), "a line\n");
    for bytes in ["", "a line\nand more"] {
        let options = fixture.options().stdin(Input::Bytes(bytes.into()));
        assert_eq!(stdout(&fixture.run_with(&[], "cat; echo end", options)), format!("{bytes}end\n"));
    }
    let template = shell("read line; echo \"got $line\"").terminal(Terminal::Attached).build().unwrap();
    let options = fixture.options().stdin(Input::Bytes("a line\n".into()));
    let seen = stdout(&runner::run(&fixture.base(), &[], &template, options).unwrap());
    assert!(seen.ends_with("got a line\r\n"), "{seen:?}");
    // A command that reads nothing does not wait for its input to be read.
    let options = fixture.options().stdin(Input::Bytes(vec![0; 1 << 20]));
    assert!(fixture.run_with(&[], "true", options).status.success());
    assert_eq!(stdout(&fixture.run(&[], "cat; echo end")), "end\n");
}

#[test]
fn the_deadline_ends_the_whole_container() {
    let fixture = Fixture::new();
    // This command ignores SIGTERM, so the run kills it.
    let deaf = "trap '' TERM; echo begun > /begun; sleep 1000 & sleep 1000";
    let report = timed_out(&fixture, deaf, Duration::from_millis(50));
    drop(report);
    fixture.assert_clean();

    // This command handles SIGTERM and has a minute to clean up, of which it needs little.
    let polite = "trap 'echo tidied > /tidied; exit 0' TERM; echo begun > /begun; while :; do sleep 0.01; done";
    let report = timed_out(&fixture, polite, Duration::from_secs(60));
    assert_eq!(fs::read(report.upper.path().join("tidied")).unwrap(), b"tidied\n");
}

/// Runs a script that never ends, with increasing timeouts, until it has written `/begun` before
/// the timeout.
fn timed_out(fixture: &Fixture, script: &str, grace: Duration) -> Report {
    let mut timeout = Duration::from_millis(500);
    loop {
        let report = fixture.run_with(&[], script, fixture.options().timeout(timeout).grace(grace));
        assert_eq!(report.status, Status::TimedOut);
        if fs::read(report.upper.path().join("begun")).is_ok_and(|text| text == b"begun\n") {
            return report;
        }
        assert!(timeout < FOR_EVER, "the command never begins");
        timeout *= 4;
    }
}

#[test]
fn another_thread_can_cancel_a_run() {
    let fixture = Fixture::new();
    let cancel = Cancel::new().unwrap();
    let (begun, has_begun) = std::sync::mpsc::channel();
    let options = fixture
        .options()
        .grace(Duration::from_millis(50))
        .cancel(cancel.clone())
        .stdout(Output::Callback(Box::new(move |_| begun.send(()).unwrap())));
    std::thread::scope(|scope| {
        scope.spawn(move || {
            has_begun.recv().unwrap();
            cancel.cancel();
        });
        let report = fixture.run_with(&[], "echo begun; sleep 1000", options);
        assert_eq!(report.status, Status::Cancelled);
    });
}

/// The second cancel ends the grace period of the first one.
#[test]
fn a_cancel_that_kills_waits_for_no_grace() {
    let fixture = Fixture::new();
    let cancel = Cancel::new().unwrap();
    let (said, has_said) = std::sync::mpsc::channel();
    let options = fixture
        .options()
        .grace(Duration::from_secs(3600))
        .cancel(cancel.clone())
        .stdout(Output::Callback(Box::new(move |_| said.send(()).unwrap())));
    std::thread::scope(|scope| {
        scope.spawn(move || {
            has_said.recv().unwrap();
            cancel.cancel();
            // The command got SIGTERM and continues.
            has_said.recv().unwrap();
            cancel.kill();
        });
        let stubborn = "trap 'echo no' TERM; echo begun; while :; do sleep 0.01; done";
        let report = fixture.run_with(&[], stubborn, options);
        assert_eq!(report.status, Status::Cancelled);
    });
    fixture.assert_clean();
}

#[test]
fn a_cancel_before_the_command_begins_is_a_result() {
    let fixture = Fixture::new();
    let cancel = Cancel::new().unwrap();
    cancel.cancel();
    let layers = fixture.numbered_layers(6);
    for options in [fixture.options(), fixture.options().max_lowers(3)] {
        let report = fixture.run_with(&layers, "echo begun", options.cancel(cancel.clone()));
        assert_eq!((report.status, report.stdout, report.merged), (Status::Cancelled, None, None));
        assert_eq!(fs::read_dir(report.upper.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_reopened_upper_survives_a_failed_run() {
    let fixture = Fixture::new();
    let upper = fixture.run(&[], "echo first > /first").upper;
    let missing = Layer::at(fixture.store().join("missing"));
    let template = shell("true").build().unwrap();
    let error = runner::run(&fixture.base(), &[missing], &template, fixture.options().over(upper)).unwrap_err();
    assert_eq!(error.phase(), Some(Phase::Inputs));
    let kept: Vec<_> = fs::read_dir(fixture.scratch()).unwrap().map(|entry| entry.unwrap().path()).collect();
    let [kept] = &kept[..] else { panic!("{kept:?}") };
    let options = fixture.options().over(runner::Upper::reopen(kept).unwrap());
    assert_eq!(stdout(&fixture.run_with(&[], "cat /first", options)), "first\n");
    runner::Upper::discard(kept).unwrap();
}

#[test]
fn too_much_output_ends_the_command() {
    let fixture = Fixture::new();
    let path = fixture.path().join("log");
    let limited = |limit: u64| fixture.options().output_limit_bytes(limit).grace(Duration::from_millis(50));
    let endless = "echo begun > /begun; while :; do echo 0123456789; echo abcde >&2; done";
    let log = fs::File::create(&path).unwrap();
    let report = fixture.run_with(&[], endless, limited(100_000).stdout(Output::File(log)));
    assert_eq!(report.status, Status::OutputLimit);
    assert_eq!(fs::metadata(&path).unwrap().len() + report.stderr.unwrap().total_bytes(), 100_000);
    assert_eq!(fs::read(report.upper.path().join("begun")).unwrap(), b"begun\n");

    // Output of exactly the limit is allowed. A command that exceeds the limit counts as ended by
    // it, even if it ends on its own.
    for (limit, status) in [(588_895, Status::Exited(0)), (588_894, Status::OutputLimit)] {
        let report = fixture.run_with(&[], "seq 1 100000", limited(limit));
        assert_eq!((report.status, report.stdout.unwrap().total_bytes()), (status, limit));
    }
}

#[test]
fn an_out_of_memory_kill_is_distinguished_from_other_kills() {
    let fixture = Fixture::new();
    let crun = || Runtime::new(find("crun"));
    for runtime in [Runtime::default(), crun()] {
        let run = |script: &str| {
            let template = integration_tests::shell(script).memory_limit_bytes(32 << 20).build().unwrap();
            runner::run(&fixture.base(), &[], &template, fixture.options().runtime(runtime.clone())).unwrap()
        };
        let eat = "echo begun > /begun; exec dd if=/dev/zero of=/dev/null bs=100M count=1";
        let report = run(eat);
        assert_eq!((report.status, report.usage.out_of_memory), (Status::OutOfMemory, true), "{runtime:?}");
        assert_eq!(fs::read(report.upper.path().join("begun")).unwrap(), b"begun\n");
        // The kernel counts a little of its own memory above the limit.
        assert!(report.usage.peak_memory_bytes.is_some_and(|bytes| bytes <= 40 << 20), "{:?}", report.usage);

        let report = run("dd if=/dev/zero of=/dev/null bs=100M count=1; exit 3");
        assert_eq!((report.status, report.usage.out_of_memory), (Status::Exited(3), true), "{runtime:?}");
        let report = run("sleep 1000 & kill -9 $!; wait $!; exit 137");
        assert_eq!((report.status, report.usage.out_of_memory), (Status::Exited(137), false), "{runtime:?}");
        let report = run("kill -9 $$");
        assert_eq!((report.status, report.usage.out_of_memory), (Status::Signaled(9), false), "{runtime:?}");
    }
}

#[test]
fn a_callback_that_panics_leaves_nothing() {
    let fixture = Fixture::new();
    let at = |last: Event| {
        fixture.options().watch(move |event| {
            if *event == last {
                panic!("seen enough")
            }
        })
    };
    let callbacks = [
        fixture.options().stdout(Output::Callback(Box::new(|_| panic!("seen enough")))),
        at(Event::CommandStarted),
        at(Event::Began(Phase::Config)),
        at(Event::Began(Phase::OverlayUmount)),
    ];
    for (n, options) in callbacks.into_iter().enumerate() {
        let script = if n == 3 { "true" } else { "echo; sleep 1000" };
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            drop(fixture.run_with(&[], script, options));
        }));
        assert!(panic.is_err(), "{n}");
        fixture.assert_clean();
    }
}

#[test]
fn a_watcher_sees_the_command_start_in_its_phase() {
    let fixture = Fixture::new();
    for runtime in ["runc", "crun"] {
        let mut events = Vec::new();
        let options = fixture.options().runtime(Runtime::new(find(runtime)));
        drop(fixture.run_with(&[], "true", options.watch(|event| events.push(*event))));
        let started = events.iter().position(|event| *event == Event::CommandStarted).unwrap();
        let around = [events[started - 1], events[started + 1]];
        assert!(
            matches!(around, [Event::Began(Phase::RuncRun), Event::Ended(Phase::RuncRun, _)]),
            "{runtime}: {events:?}"
        );
    }
    // A runtime that starts nothing.
    let (mut started, watched) = (false, fixture.options().runtime(Runtime::new("/bin/true")));
    let options = watched.watch(|event| started |= *event == Event::CommandStarted);
    runner::run(&fixture.base(), &[], &shell("true").build().unwrap(), options).unwrap_err();
    assert!(!started);
}

#[test]
fn the_report_contains_the_usage() {
    let fixture = Fixture::new();
    let report = fixture.run(&[], "dd if=/dev/zero of=/tmp/x bs=1M count=20 2>/dev/null");
    assert!(report.usage.peak_memory_bytes.is_some_and(|bytes| bytes > 20 << 20), "{:?}", report.usage);
    assert!(report.usage.cpu_time.is_some_and(|time| !time.is_zero()), "{:?}", report.usage);
}

#[test]
fn crun_gives_the_same_result() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(3);
    let options = fixture.options().runtime(Runtime::new(find("crun")));
    let report = fixture.run_with(&layers, "cat /top; echo new > /new; exit 3", options);
    assert_eq!((report.status, stdout(&report)), (Status::Exited(3), "0\n".into()));
    assert_eq!(fs::read(report.upper.path().join("new")).unwrap(), b"new\n");
}

#[test]
fn concurrent_runs_have_separate_uppers() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(10);
    std::thread::scope(|scope| {
        let one = |n: usize| {
            let (fixture, layers) = (&fixture, &layers);
            move || {
                let report = fixture.run(layers, &format!("echo {n} > /n; cat /n"));
                assert_eq!(stdout(&report), format!("{n}\n"));
                let mut written = String::new();
                fs::File::open(report.upper.path().join("n")).unwrap().read_to_string(&mut written).unwrap();
                assert_eq!(written, format!("{n}\n"));
            }
        };
        for n in 0..16 {
            scope.spawn(one(n));
        }
    });
}
