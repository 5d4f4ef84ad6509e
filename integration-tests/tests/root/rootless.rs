//! Runs of an ordinary user, in both maps of IDs and with both runtimes. The tests start the real
//! command as that user. `refusals` has what such a user cannot do, and what layered says then;
//! `stores` has stores that root and a user share, `others` runs over layers of root; `delegation`
//! has limits, and `owners` faked owners.

mod closed;
mod delegation;
mod others;
mod owners;
mod refusals;
mod stores;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use integration_tests::processes::{Running, descendants};
use integration_tests::terminal::Terminal;
use integration_tests::user::{ALL_IDS, UserFixture, failure, quietly};
use integration_tests::{RUNTIMES, WHO};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::kills::SPAN;

/// Calls `test` with each map of IDs and each runtime.
fn everywhere(test: impl Fn(&UserFixture, &str)) {
    for ids in ALL_IDS {
        let fixture = UserFixture::new(ids);
        for runtime in RUNTIMES {
            test(&fixture, runtime);
        }
        fixture.of_root().assert_clean();
    }
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Returns the only kept run in the scratch directory.
fn kept_run(fixture: &UserFixture) -> PathBuf {
    let [kept] = &fixture.of_root().left()[..] else { panic!("{:?}", fixture.of_root().left()) };
    assert!(kept.file_name().unwrap().to_str().unwrap().starts_with("kept-"), "{kept:?}");
    kept.clone()
}

#[test]
fn a_user_runs_a_command_over_any_number_of_layers() {
    for ids in ALL_IDS {
        let fixture = UserFixture::new(ids);
        let layers = fixture.numbered_layers(600);
        // (layers, merged): with the base and the merged directory, 500 are mounted.
        for (count, merged) in [(0, 0), (1, 0), (30, 0), (499, 0), (600, 102)] {
            let report = fixture.path().join("report.json");
            let script = "cat /top; ls /deps | wc -l; rm -r /deps; mkdir /deps; echo $(id -u) > /deps/new; ls /deps";
            let script = if count == 0 { "id -u" } else { script };
            let options = ["--runtime", RUNTIMES[count % 2], "--json", report.to_str().unwrap()];
            let printed = quietly(&mut fixture.run(&options, &layers[..count], script));
            let expected = if count == 0 { "0\n".to_owned() } else { format!("0\n{count}\nnew\n") };
            assert_eq!(printed, expected, "{ids} {count}");
            let report = json(&report);
            assert_eq!(report["plan"]["merged"], merged, "{ids} {count}");
            if merged > 0 {
                assert_eq!((&report["merge"]["linked"], &report["merge"]["copied"]), (&103.into(), &0.into()), "{ids}");
            }
        }
    }
}

#[test]
fn a_user_has_either_network_and_the_container_its_usual_mounts() {
    everywhere(|fixture, runtime| {
        let script = "grep -c : /proc/net/dev; test -d /sys/class && echo sys; ls /sys/fs/cgroup | wc -l; \
                      test -c /dev/null -a -d /dev/pts && echo dev; touch /tmp/x /new && echo written";
        for network in ["none", "host"] {
            let interfaces = match network {
                "none" => 1,
                _ => fs::read_to_string("/proc/net/dev").unwrap().lines().filter(|line| line.contains(':')).count(),
            };
            let printed = quietly(&mut fixture.run(&["--runtime", runtime, "--network", network], &[], script));
            assert_eq!(printed, format!("{interfaces}\nsys\n0\ndev\nwritten\n"), "{runtime} {network}");
        }
    });
}

#[test]
fn a_command_of_a_user_has_a_terminal() {
    everywhere(|fixture, runtime| {
        let mut terminal = Terminal::new();
        let script = "stty size; echo it is $(test -t 0 && echo a terminal)";
        let mut running = terminal.start(&fixture.run(&["--runtime", runtime, "--tty"], &[], script));
        terminal.until("24 80");
        terminal.until("it is a terminal");
        assert!(running.end().success(), "{runtime}");
    });
}

#[test]
fn other_users_exist_with_ranges_only() {
    let fixture = UserFixture::new("ranges");
    let layer = fixture.store().join("users");
    fs::create_dir_all(layer.join("fs/etc")).unwrap();
    fs::write(layer.join("fs/etc/passwd"), "opam:x:1000:1001::/home/opam:/bin/sh\n").unwrap();
    fs::write(layer.join("fs/etc/group"), "staff:x:50:opam\n").unwrap();
    fixture.give(&layer);
    let layers = [layer];
    for runtime in RUNTIMES {
        for (user, printed) in [("1000:7", "1000 7"), ("opam", "1000 1001 50"), ("65536", "65536 65536")] {
            let who = quietly(&mut fixture.run(&["--runtime", runtime, "--user", user], &layers, WHO));
            assert!(who.starts_with(printed), "{runtime} {user}: {who}");
        }
        // A command that is root can give files away, and other users can own them.
        let upper = fixture.path().join(format!("upper-{runtime}"));
        let options = ["--runtime", runtime, "--upper", upper.to_str().unwrap()];
        quietly(&mut fixture.run(
            &options,
            &layers,
            "mkdir -m 700 /home; touch /home/x; chmod 0 /home/x; chown -R 1000:50 /home",
        ));
        assert_ne!(fs::metadata(upper.join("home")).unwrap().uid(), fixture.owner().0);
        quietly(fixture.layered(&["unshare", "--", "rm", "-r"]).arg(&upper));
    }

    let fixture = UserFixture::new("single");
    for (option, id) in [("1000", "no user 1000"), ("0:5", "no group 5")] {
        let error = failure(125, &mut fixture.run(&["--user", option], &[], "true"));
        assert!(error.contains("inputs: ") && error.contains(id) && error.contains("--ids ranges"), "{error}");
    }
}

#[test]
fn a_kept_run_of_a_user_becomes_a_layer() {
    everywhere(|fixture, runtime| {
        let layers = fixture.numbered_layers(3);
        let script = "rm -r /deps/1; rm -r /etc; mkdir /etc; mkdir -m 0 /closed; echo made > /new; exit 3";
        failure(3, &mut fixture.run(&["--runtime", runtime, "--keep-failed"], &layers, script));
        let kept = kept_run(fixture);
        let mut shell = fixture.layered(&["shell", "--runtime", runtime]);
        let shell = shell.arg(&kept).args(["--", "sh", "-c", "cat /new; echo later > /later; ls /deps"]);
        assert_eq!(quietly(shell), "made\n0\n2\n", "{runtime}");

        let layer = fixture.store().join(format!("kept-{runtime}"));
        quietly(fixture.layered(&["commit"]).arg(&kept).arg(&layer));
        let mut stack = vec![layer.clone()];
        stack.extend(layers);
        let script = "ls /deps; cat /new /later; ls -d /closed; ls /etc";
        let printed = quietly(&mut fixture.run(&["--runtime", runtime], &stack, script));
        assert_eq!(printed, "0\n2\nmade\nlater\n/closed\nhosts\n", "{runtime}");
        // Each layer is right alone: a whiteout in a directory that no other layer has is not
        // listed.
        assert_eq!(quietly(&mut fixture.run(&[], &stack[..1], "ls /deps")), "");

        failure(1, &mut fixture.run(&["--runtime", runtime, "--keep-failed"], &[], "mkdir -m 0 /closed; exit 1"));
        quietly(fixture.layered(&["discard"]).arg(kept_run(fixture)));
        assert_eq!(fixture.of_root().left(), Vec::<PathBuf>::new());
    });
}

#[test]
fn a_user_merges_shows_plans_and_collects_layers() {
    for ids in ALL_IDS {
        let fixture = UserFixture::new(ids);
        let layers = fixture.numbered_layers(3);
        let upper = fixture.path().join("upper");
        let script = "rm -r /deps; mkdir /deps; touch /deps/only; mkdir -m 0 /closed";
        quietly(&mut fixture.run(&["--upper", upper.to_str().unwrap()], &layers, script));
        let made = fixture.store().join("made");
        let mut commit = fixture.layered(&["commit"]);
        commit.arg(&upper).arg(&made).args(["--base", "base"]);
        for layer in &layers {
            commit.arg("--layer").arg(layer);
        }
        quietly(&mut commit);

        let merged = fixture.path().join("merged");
        let printed = quietly(fixture.layered(&["merge"]).arg(&merged).arg(&made).args(&layers));
        assert!(printed.starts_with("4 layers merged: 2 files linked, 0 copied"), "{ids}: {printed}");
        let rootfs = ["run", "--rootfs", merged.to_str().unwrap()];
        assert_eq!(failure(127, fixture.layered(&rootfs).args(["--", "true"])).lines().count(), 1);

        let mut show = fixture.layered(&["show", "--json", "--file", "/deps/1", "--base", "base"]);
        for layer in [&made].into_iter().chain(&layers) {
            show.arg("--layer").arg(layer);
        }
        // No layer supplies the path.
        let output = show.output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let origin: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(origin["origins"][0]["has"], "whiteout", "{ids}: {origin}");
        let plan = quietly(fixture.layered(&["plan", "--base", "base", "--layer"]).arg(&made));
        assert!(plan.starts_with("1 layer over ") && plan.contains(", mounted by "), "{ids}: {plan}");
        assert!(quietly(fixture.layered(&["ls"]).arg(fixture.store())).contains("made"), "{ids}");
        quietly(fixture.layered(&["gc", "--max-bytes", "0"]).arg(fixture.store()));
        assert!(!made.exists(), "{ids}");
        quietly(fixture.layered(&["unshare", "--", "rm", "-r"]).arg(&merged));
    }
}

#[test]
fn the_processor_time_of_a_user_is_known_without_a_control_group() {
    everywhere(|fixture, runtime| {
        let report = fixture.path().join("report.json");
        let options = ["--runtime", runtime, "--json", report.to_str().unwrap()];
        quietly(&mut fixture.run(&options, &[], "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"));
        let usage = &json(&report)["usage"];
        assert!(usage["cpu_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{usage}");
        assert_eq!((&usage["peak_memory_bytes"], &usage["out_of_memory"]), (&Value::Null, &false.into()), "{usage}");

        // The kernel discards the processor time of processes that it kills with their namespace.
        let busy = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; ";
        let table = [
            (vec![], "(sleep 1000 > /dev/null 2>&1 &); exit 0", 0),
            // A command that SIGTERM ends may still be waited for.
            (vec!["--timeout", "1s", "--grace", "0s"], "trap '' TERM; while :; do :; done", 124),
            (vec!["--no-init"], "exit 0", 0),
        ];
        for (further, end, status) in table {
            let options = [&options[..], &further].concat();
            let ended = fixture.run(&options, &[], &format!("{busy}{end}")).status().unwrap();
            assert_eq!(ended.code(), Some(status), "{runtime} {end}");
            assert_eq!(json(&report)["usage"]["cpu_seconds"], Value::Null, "{runtime} {end}");
        }
        // The init waits for a command that a signal kills.
        let killed = fixture.run(&options, &[], &format!("{busy}kill -9 $$")).status().unwrap();
        assert_eq!(killed.code(), Some(137), "{runtime}");
        let usage = &json(&report)["usage"];
        assert!(usage["cpu_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{usage}");
    });
}

#[test]
fn unshare_runs_a_program_as_root_of_the_namespace() {
    for ids in ALL_IDS {
        let fixture = UserFixture::new(ids);
        let (uid, _) = fixture.owner();
        let printed = quietly(fixture.layered(&["unshare", "--", "sh", "-c"]).arg("id -u; cat /proc/self/uid_map"));
        let lines: Vec<Vec<&str>> = printed.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[..2], [vec!["0"], vec!["0", &uid.to_string(), "1"]], "{ids}: {printed}");
        assert_eq!(lines.len(), if ids == "ranges" { 3 } else { 2 }, "{ids}: {printed}");
        // A namespace inside of another one, with a mount namespace of the outer one.
        let run = format!("exec {} run --base base -- id -u", fixture.program().display());
        assert_eq!(quietly(fixture.layered(&["unshare", "--", "sh", "-c"]).arg(&run)), "0\n");
        let mut by_others = fixture.command("unshare");
        assert_eq!(quietly(by_others.args(["--user", "--map-root-user", "sh", "-c", &run])), "0\n");

        assert_eq!(fixture.layered(&["unshare", "--", "sh", "-c", "exit 7"]).status().unwrap().code(), Some(7));
        for (program, status) in [("/no/such/program", 127), ("/etc", 126)] {
            let error = failure(status, &mut fixture.layered(&["unshare", "--", program]));
            assert!(error.starts_with(&format!("layered: cannot execute {program}: ")), "{error}");
        }
    }
}

#[test]
fn doctor_finds_that_runs_of_a_user_work() {
    everywhere(|fixture, runtime| {
        let printed = quietly(&mut fixture.layered(&["doctor", "--json", "--runtime", runtime]));
        let report: Value = serde_json::from_str(&printed).unwrap();
        assert_eq!(report["works"], true, "{printed}");
        let verdict = |name: &str| {
            let checks = report["checks"].as_array().unwrap();
            let check = checks.iter().find(|check| check["name"] == name);
            check.unwrap_or_else(|| panic!("no check {name}: {printed}"))["verdict"].as_str().unwrap().to_owned()
        };
        let is_single = fixture.ids() == "single";
        assert_eq!(printed.contains("has no other user than root"), is_single, "{printed}");
        let found = ["privilege", "ids", "deletions", "links", "a run"].map(verdict);
        assert_eq!(found, ["ok", if is_single { "warning" } else { "ok" }, "ok", "ok", "ok"], "{printed}");
        // The user has subordinate IDs, so more of them are no remedy.
        assert!(!printed.contains("usermod"), "{printed}");
        verdict("delegation");
    });
}

/// The number of kills in each map: a quarter of `LAYERED_KILLS`, by default 10.
fn kills() -> u32 {
    (crate::kills::count() / 4).max(1)
}

#[test]
fn a_killed_run_of_a_user_leaves_nothing_that_a_sweep_does_not_remove() {
    for ids in ALL_IDS {
        let fixture = UserFixture::new(ids);
        let layers = fixture.numbered_layers(30);
        let give_away = if ids == "ranges" { "chown 7:7 /closed;" } else { "" };
        let script =
            format!("mkdir -m 0 /closed; {give_away} (setsid sleep 1000 &); rm -r /etc; echo begun; sleep 1000");
        for n in 0..kills() {
            let runtime = RUNTIMES[n as usize % 2];
            let mut command = fixture.run(&["--runtime", runtime], &layers, &script);
            let mut run = Running::start(command.stdout(Stdio::piped()).stderr(Stdio::null()));
            match n % 3 {
                0 => drop(run.line()),
                // A program is about to set the IDs, or the container is starting.
                kind => {
                    while descendants(run.pid()).is_empty() {
                        assert!(run.lives(), "the run ended without a keeper");
                        std::thread::yield_now();
                    }
                    std::thread::sleep(if kind == 1 { Duration::ZERO } else { SPAN * n / kills() });
                }
            }
            run.send(Signal::SIGKILL);
            run.end();
            fixture.of_root().assert_nothing_lives();
        }
        quietly(fixture.layered(&["sweep"]).arg(fixture.of_root().scratch()));
        assert_eq!(fixture.of_root().left(), Vec::<PathBuf>::new(), "{ids}");
    }
}

/// Returns a command of root's over the user's directories.
fn of_root(fixture: &UserFixture, arguments: &[&str]) -> Command {
    let mut command = Command::new(fixture.program());
    command.args(arguments).env("LAYERED_SCRATCH", fixture.of_root().scratch()).current_dir(fixture.path());
    command
}
