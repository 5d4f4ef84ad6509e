//! Runs of an ordinary user over layers and bases of root, which the user can only read.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use integration_tests::RUNTIMES;
use integration_tests::processes::Running;
use integration_tests::user::{ALL_IDS, UserFixture, quietly};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{everywhere, json, kills, of_root};
use crate::kills::SPAN;

/// A base of root's, with a directory that only root may enter.
pub(super) fn base_of_root(fixture: &UserFixture) -> PathBuf {
    let base = fixture.path().join("base");
    for path in ["usr/local/bin", "usr/local/share/doc", "var/lib/x"] {
        fs::create_dir_all(base.join("fs").join(path)).unwrap();
    }
    for file in ["usr/local/bin/tool", "usr/local/bin/other", "usr/local/share/doc/a", "root/secret"] {
        fs::write(base.join("fs").join(file), "of root\n").unwrap();
    }
    for entry in walkdir::WalkDir::new(&base) {
        std::os::unix::fs::lchown(entry.unwrap().path(), Some(0), Some(0)).unwrap();
    }
    base
}

/// A layer of root's with these files.
pub(super) fn layer_of_root(fixture: &UserFixture, name: &str, files: &[&str]) -> PathBuf {
    let layer = fixture.path().join("of-root").join(name);
    for file in files {
        let file = layer.join("fs").join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, format!("{name}\n")).unwrap();
    }
    layer::Layer::at(&layer).write_meta(&layer::Meta::new("base", std::time::SystemTime::UNIX_EPOCH)).unwrap();
    layer
}

pub(super) fn skeletons(fixture: &UserFixture) -> Vec<PathBuf> {
    let is_skeleton = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("skeleton-");
    let mut left = fixture.of_root().left();
    left.sort();
    assert!(left.iter().all(is_skeleton), "{left:?}");
    left
}

pub(super) fn sweep(fixture: &UserFixture) {
    let printed = quietly(fixture.layered(&["sweep"]).arg(fixture.of_root().scratch()));
    assert!(printed.ends_with("dead runs removed: 0, live runs: 0\n"), "{printed}");
    assert_eq!(fixture.of_root().left(), Vec::<PathBuf>::new());
}

/// Returns the paths below `dir`, each with its type, mode and content.
pub(super) fn entries(dir: &Path) -> Vec<String> {
    let entries = walkdir::WalkDir::new(dir).min_depth(1).sort_by_file_name();
    let describe = |entry: walkdir::DirEntry| {
        let (metadata, path) = (entry.metadata().unwrap(), entry.path());
        let content = if metadata.is_file() { fs::read_to_string(path).unwrap() } else { String::new() };
        let path = path.strip_prefix(dir).unwrap().display();
        format!("{path} {:o} {}", metadata.mode(), content.trim_end())
    };
    entries.into_iter().map(|entry| describe(entry.unwrap())).collect()
}

/// What `make install` does: it makes directories and files, and removes and replaces files.
const INSTALL: &str = "set -e; echo new > /usr/local/bin/new; mkdir -p /usr/local/lib/a; rm /usr/local/bin/other; \
                       echo mine > /usr/local/bin/.t; mv /usr/local/bin/.t /usr/local/bin/tool; \
                       rm -r /usr/local/share/doc; mkdir /usr/local/share/doc; echo b > /usr/local/share/doc/b; \
                       mkdir -m 750 /root/.cache; echo c > /root/.cache/c";

#[test]
fn a_user_installs_over_a_base_of_root_and_the_layer_is_right() {
    everywhere(|fixture, runtime| {
        let base = base_of_root(fixture);
        let (upper, report) = (fixture.path().join(format!("up-{runtime}")), fixture.path().join("r.json"));
        let options = ["--runtime", runtime, "--upper", upper.to_str().unwrap(), "--json", report.to_str().unwrap()];
        quietly(&mut fixture.run(&options, &[], INSTALL));
        let skeleton = skeletons(fixture);
        assert_eq!(skeleton.len(), 1);
        assert_eq!(json(&report)["plan"]["separate"], 0);
        assert_eq!(json(&report)["plan"]["skeleton"], skeleton[0].join("tree").to_str().unwrap());
        let lowers = json(&report)["capture"]["lowers"].to_string();
        assert!(!lowers.contains("skeleton"), "{lowers}");
        // The layer needs no skeleton, not even while it is captured.
        sweep(fixture);
        let layer = fixture.store().join(format!("installed-{runtime}"));
        quietly(fixture.layered(&["commit"]).arg(&upper).arg(&layer).arg("--run").arg(&report));
        let expected = [
            "root 40700 ",
            "root/.cache 40750 ",
            "root/.cache/c 100644 c",
            "usr 40755 ",
            "usr/local 40755 ",
            "usr/local/bin 40755 ",
            "usr/local/bin/new 100644 new",
            "usr/local/bin/other 20000 ",
            "usr/local/bin/tool 100644 mine",
            "usr/local/lib 40755 ",
            "usr/local/lib/a 40755 ",
            "usr/local/share 40755 ",
            "usr/local/share/doc 40755 ",
            "usr/local/share/doc/a 20000 ",
            "usr/local/share/doc/b 100644 b",
        ];
        assert_eq!(entries(&layer.join("fs")), expected, "{runtime}");

        let show =
            "cat /usr/local/bin/tool /usr/local/bin/new; ls /usr/local/bin /usr/local/share/doc; cat /root/.cache/c";
        let shown = "mine\nnew\n/usr/local/bin:\nnew\ntool\n\n/usr/local/share/doc:\nb\nc\n";
        assert_eq!(quietly(&mut fixture.run(&["--runtime", runtime], std::slice::from_ref(&layer), show)), shown);
        // For root, the base's own files are there, too.
        let mut by_root = of_root(fixture, &["run", "--runtime", runtime, "--base"]);
        by_root.arg(&base).arg("--layer").arg(&layer).args(["--", "sh", "-c"]);
        assert_eq!(quietly(by_root.arg(format!("{show}; cat /root/secret"))), format!("{shown}of root\n"));
        sweep(fixture);
    });
}

#[test]
fn a_command_that_writes_nothing_leaves_an_empty_layer_over_a_base_of_root() {
    for ids in ALL_IDS {
        let fixture = UserFixture::new(ids);
        base_of_root(&fixture);
        fs::create_dir_all(fixture.path().join("mine")).unwrap();
        fixture.give(&fixture.path().join("mine"));
        let mount = format!("{}:/root/work", fixture.path().join("mine").display());
        let layer = fixture.store().join("nothing");
        let options = ["-v", &mount, "--commit", layer.to_str().unwrap()];
        quietly(&mut fixture.run(&options, &[], "true"));
        assert_eq!(entries(&layer.join("fs")), Vec::<String>::new(), "{ids}");
        sweep(&fixture);
    }
}

#[test]
fn what_the_kernel_refuses_over_a_base_of_root_fails_in_the_command() {
    everywhere(|fixture, runtime| {
        base_of_root(fixture);
        for (script, message) in [
            ("echo more >> /usr/local/bin/tool", "Permission denied"),
            ("chmod 700 /usr/local/bin/tool", "Operation not permitted"),
            ("ln /usr/local/bin/tool /usr/local/bin/link", "Operation not permitted"),
        ] {
            let output = fixture.run(&["--runtime", runtime], &[], script).output().unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success() && stderr.contains(message), "{runtime} {script}: {stderr}");
        }
        sweep(fixture);
    });
}

#[test]
fn layers_of_root_and_of_the_user_are_stacked_and_merged_in_any_order() {
    for ids in ALL_IDS {
        let fixture = UserFixture::new(ids);
        base_of_root(&fixture);
        let theirs = layer_of_root(&fixture, "theirs", &["opt/theirs/file", "opt/both"]);
        fs::set_permissions(theirs.join("fs/opt/theirs"), Permissions::from_mode(0o755)).unwrap();
        let closed = layer_of_root(&fixture, "closed", &["opt/closed/file"]);
        fs::set_permissions(closed.join("fs/opt/closed"), Permissions::from_mode(0o700)).unwrap();
        let mine = |name: &str, file: &str| {
            let layer = fixture.store().join(name);
            fs::create_dir_all(layer.join("fs").join(file).parent().unwrap()).unwrap();
            fs::write(layer.join("fs").join(file), format!("{name}\n")).unwrap();
            fixture.give(&layer);
            layer
        };
        let many = fixture.numbered_layers(500);
        let (top, below) = (mine("top", "opt/both"), mine("below", "root/.mine"));
        let hidden = mine("hidden", "opt/closed/mine");
        let script = "cat /opt/both; ls /opt/theirs; ls -A /root; ls /opt/closed; \
                      touch /opt/theirs/new /opt/new /root/new /opt/closed/new; rm /opt/theirs/file; ls /opt/theirs";
        let stacks = [
            vec![&top, &theirs, &below, &closed],
            vec![&theirs, &top, &closed, &below],
            vec![&below, &hidden, &closed, &theirs, &top],
        ];
        for (number, stack) in stacks.iter().enumerate() {
            let stack: Vec<_> = stack.iter().map(|path| (*path).clone()).collect();
            let both = if number == 0 { "top" } else { "theirs" };
            // The directory below a closed one of root's is hidden, as the kernel cannot show it.
            let closed = if number == 2 { "mine\n" } else { "" };
            let expected = format!("{both}\nfile\n.mine\n{closed}new\n");
            // With more layers, the kernel cannot stack them all.
            for (above, merged) in [(0, 0), (500, 2 + stack.len())] {
                let above = &many[..above];
                let report = fixture.path().join("r.json");
                let options = ["--json", report.to_str().unwrap()];
                let output = fixture.run(&options, &[above, &stack].concat(), script).output().unwrap();
                let [stdout, stderr] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
                assert_eq!(stdout, expected, "{ids} {number} {merged}: {stderr}");
                // The layers of root cannot be stamped, and their files not be linked.
                let is_stamp = |line: &str| line.contains("2 layers will look unused");
                let is_copy = |line: &str| merged > 0 && line.contains(" files copied, ");
                let lines: Vec<_> = stderr.lines().filter(|line| !is_copy(line)).collect();
                assert!(lines.len() == 1 && is_stamp(lines[0]), "{ids} {number} {merged}: {stderr}");
                let plan = &json(&report)["plan"];
                assert_eq!(plan["merged"], merged, "{ids} {number}: {plan}");
                assert_eq!(plan["separate"], above.len() + stack.len() - merged, "{ids} {number}: {plan}");
            }
        }
        sweep(&fixture);
    }
}

#[test]
fn a_skeleton_serves_later_runs_until_a_directory_changes() {
    let fixture = UserFixture::new("single");
    let base = base_of_root(&fixture);
    let run = || quietly(&mut fixture.run(&[], &[], "touch /var/lib/x/new && ls /var/lib"));
    run();
    let [skeleton] = &skeletons(&fixture)[..] else { panic!("not one") };
    let inode = || fs::metadata(skeleton.join("tree")).unwrap().ino();
    let before = inode();
    assert_eq!(run(), "x\n");
    // Another layer of the user's changes nothing below it.
    let own = fixture.numbered_layers(2);
    quietly(&mut fixture.run(&[], &own, "touch /deps/new /var/lib/x/new"));
    assert_eq!((inode(), skeletons(&fixture).len()), (before, 1));
    // Root replaces a directory by a file.
    fs::remove_dir(base.join("fs/var/lib/x")).unwrap();
    fs::write(base.join("fs/var/lib/x"), "").unwrap();
    let printed = quietly(&mut fixture.run(&[], &[], "test -f /var/lib/x && touch /var/lib/new && echo file"));
    assert_eq!(printed, "file\n");
    assert_ne!(inode(), before);
    assert_eq!(skeletons(&fixture).len(), 1);
    sweep(&fixture);
}

#[test]
fn a_skeleton_in_use_is_neither_swept_nor_replaced() {
    let fixture = UserFixture::new("single");
    let base = base_of_root(&fixture);
    let script = "touch /var/lib/before; echo begun; read go; touch /var/lib/after; ls /var/lib";
    let mut first = fixture.run(&[], &[], script);
    let mut first = Running::start(first.stdin(Stdio::piped()).stdout(Stdio::piped()));
    assert_eq!(first.line(), "begun");
    quietly(fixture.layered(&["sweep"]).arg(fixture.of_root().scratch()));
    fs::create_dir(base.join("fs/var/lib/later")).unwrap();
    // This run cannot replace the skeleton, and makes one of its own.
    assert_eq!(quietly(&mut fixture.run(&[], &[], "touch /var/lib/later/new; ls /var/lib")), "later\nx\n");
    first.input().write_all(b"\n").unwrap();
    let (status, shown) = first.result();
    assert!(status == 0 && ["after", "before"].iter().all(|name| shown.lines().any(|line| line == *name)), "{shown}");
    sweep(&fixture);
}

#[test]
fn a_directory_of_another_user_is_not_taken_for_a_skeleton() {
    let fixture = UserFixture::new("single");
    base_of_root(&fixture);
    let run = || quietly(&mut fixture.run(&[], &[], "touch /usr/evil /usr/new; ls /usr"));
    run();
    let [skeleton] = &skeletons(&fixture)[..] else { panic!("not one") };
    fs::create_dir(skeleton.join("tree/usr/evil")).unwrap();
    chown(skeleton, Some(4_000_000), Some(4_000_000)).unwrap();
    // In a directory such as /tmp, the user could not remove it either.
    fs::set_permissions(fixture.of_root().scratch(), Permissions::from_mode(0o1777)).unwrap();
    chown(fixture.of_root().scratch(), Some(0), Some(0)).unwrap();
    assert_eq!(run(), "evil\nlocal\nnew\n");
    assert!(skeleton.join("tree/usr/evil").is_dir());
    fs::remove_dir_all(skeleton).unwrap();
    assert_eq!(skeletons(&fixture), Vec::<PathBuf>::new());
}

#[test]
fn no_other_user_can_make_files_in_a_skeleton() {
    let fixture = UserFixture::new("single");
    let base = base_of_root(&fixture);
    fs::create_dir(base.join("fs/var/spool")).unwrap();
    fs::set_permissions(base.join("fs/var/spool"), Permissions::from_mode(0o1777)).unwrap();
    // Others reach everything in a directory such as /tmp.
    for dir in fixture.of_root().scratch().ancestors().take_while(|dir| dir.starts_with(fixture.path())) {
        let mode = fs::metadata(dir).unwrap().mode() | 0o055;
        fs::set_permissions(dir, Permissions::from_mode(mode)).unwrap();
    }
    let run = || quietly(&mut fixture.run(&[], &[], "ls /var/spool; touch /var/spool/new"));
    assert_eq!(run(), "");
    let [skeleton] = &skeletons(&fixture)[..] else { panic!("not one") };
    let plant = || {
        let mut touch = Command::new("touch");
        touch.arg(skeleton.join("tree/var/spool/planted")).uid(4_000_000).gid(4_000_000).stderr(Stdio::null());
        touch.status().unwrap().success()
    };
    assert_eq!(fs::metadata(skeleton).unwrap().mode() & 0o7777, 0o700);
    assert!(!plant());
    // One that was open is not used again.
    for mode in [0o755, 0o710] {
        fs::set_permissions(skeleton, Permissions::from_mode(0o755)).unwrap();
        assert!(plant());
        fs::set_permissions(skeleton, Permissions::from_mode(mode)).unwrap();
        assert_eq!(run(), "", "{mode:o}");
        assert_eq!(fs::metadata(skeleton).unwrap().mode() & 0o7777, 0o700);
        assert!(!skeleton.join("tree/var/spool/planted").exists());
    }
    sweep(&fixture);
}

#[test]
fn a_run_over_layers_of_root_is_planned_kept_compared_and_committed() {
    everywhere(|fixture, runtime| {
        base_of_root(fixture);
        let theirs = layer_of_root(fixture, &format!("theirs-{runtime}"), &["opt/file"]);
        let mut plan = fixture.layered(&["plan", "--base", "base", "--json", "--layer"]);
        let plan: Value = serde_json::from_str(&quietly(plan.arg(&theirs))).unwrap();
        assert_eq!(
            (&plan["separate"], &plan["merged"]),
            (&serde_json::json!([theirs.join("fs")]), &serde_json::json!([]))
        );
        let rungs = plan["rungs"].as_array().unwrap();
        assert!(rungs.iter().all(|rung| (&rung["separate"], &rung["merged"]) == (&1.into(), &0.into())), "{plan}");

        let script = "rm -r /root; mkdir /root; rm /opt/file; echo made > /etc/made; exit 3";
        let run = || fixture.run(&["--runtime", runtime, "--keep-failed"], std::slice::from_ref(&theirs), script);
        let output = run().output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{stderr}");
        assert!(stderr.contains("a collector may remove ") && stderr.contains("will look unused"), "{stderr}");
        assert_eq!(stderr.lines().count(), 3, "{stderr}");
        let left = fixture.of_root().left();
        let kept = left.iter().find(|path| path.to_str().unwrap().contains("/kept-")).unwrap();
        // Its skeleton can go in the meantime.
        quietly(fixture.layered(&["sweep"]).arg(fixture.of_root().scratch()));
        let mut shell = fixture.layered(&["shell", "--runtime", runtime]);
        let shell =
            shell.arg(kept).args(["--", "sh", "-c", "ls -A /root /opt; rm -r /usr/local/share"]).output().unwrap();
        assert_eq!(shell.stdout, b"/opt:\n\n/root:\n", "{}", String::from_utf8_lossy(&shell.stderr));
        let diff = quietly(fixture.layered(&["diff"]).arg(kept));
        let lines: Vec<_> = diff.lines().map(|line| (&line[..1], line.rsplit(' ').next().unwrap())).collect();
        for expected in [("A", "/etc/made"), ("D", "/opt/file"), ("D", "/usr/local/share/")] {
            assert!(lines.contains(&expected), "{diff}");
        }
        let layer = fixture.store().join(format!("kept-{runtime}"));
        quietly(fixture.layered(&["commit"]).arg(kept).arg(&layer));
        let entries = entries(&layer.join("fs"));
        for entry in ["etc/made 100644 made", "opt/file 20000 ", "root 40755 ", "usr/local/share 20000 "] {
            assert!(entries.iter().any(|found| found == entry), "{entry}: {entries:?}");
        }
        sweep(fixture);
    });
}

#[test]
fn a_commit_that_cannot_read_what_the_command_deleted_fails() {
    let fixture = UserFixture::new("single");
    let deleted = fixture.path().join("base/fs/deleted");
    fs::create_dir(&deleted).unwrap();
    fs::write(deleted.join("file"), "").unwrap();
    fs::set_permissions(&deleted, Permissions::from_mode(0o700)).unwrap();
    let (uid, gid) = fixture.owner();
    chown(&deleted, Some(uid), Some(gid)).unwrap();
    let (upper, report) = (fixture.path().join("up"), fixture.path().join("r.json"));
    let options = ["--upper", upper.to_str().unwrap(), "--json", report.to_str().unwrap()];
    quietly(&mut fixture.run(&options, &[], "rm -r /deleted && mkdir /deleted"));
    assert!(json(&report)["plan"]["skeleton"].is_null());
    chown(&deleted, Some(0), Some(0)).unwrap();
    let layer = fixture.store().join("made");
    let commit = || {
        let mut commit = fixture.layered(&["commit"]);
        commit.arg(&upper).arg(&layer).arg("--run").arg(&report);
        commit
    };
    let output = commit().output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && stderr.contains("base/fs/deleted: "), "{stderr}");
    assert!(!layer.join("layer.json").exists() && upper.join("deleted").is_dir());
    chown(&deleted, Some(uid), Some(gid)).unwrap();
    quietly(&mut commit());
    assert_eq!(entries(&layer.join("fs")), ["deleted 40755 ", "deleted/file 20000 "]);
}

#[test]
fn doctor_says_what_layers_of_root_mean() {
    let fixture = UserFixture::new("single");
    base_of_root(&fixture);
    layer_of_root(&fixture, "one", &["file"]);
    let doctor = |options: &[&str], base: &str| {
        let mut doctor = fixture.layered(&["doctor", "--json"]);
        let printed = quietly(doctor.args(options).env("LAYERED_BASE", base));
        let report: Value = serde_json::from_str(&printed).unwrap();
        let checks = report["checks"].as_array().unwrap().clone();
        checks.into_iter().find(|check| check["name"] == "owners")
    };
    assert_eq!(doctor(&["--store", "store"], ""), None);
    for (options, base, found) in [
        (&["--store", "of-root"][..], "", "of-root/one/fs belongs to another user"),
        (&["--store", "of-root"], "base", "2 trees belong to other users, e.g. of-root/one/fs"),
        (&[], "base", "base/fs belongs to another user"),
    ] {
        let check = doctor(options, base).unwrap();
        assert_eq!((&check["verdict"], &check["found"]), (&"warning".into(), &found.into()));
        assert!(check["means"].as_str().unwrap().contains("cannot write into one of their files"), "{check}");
    }
}

#[test]
fn a_killed_run_over_a_base_of_root_leaves_nothing_that_a_sweep_does_not_remove() {
    for ids in ALL_IDS {
        let fixture = UserFixture::new(ids);
        let base = base_of_root(&fixture);
        // Making the skeleton takes a while.
        (0..2000).for_each(|n| fs::create_dir_all(base.join(format!("fs/srv/{}/{n}", n % 40))).unwrap());
        let layers = fixture.numbered_layers(3);
        let script = "mkdir -m 0 /closed; (setsid sleep 1000 &); rm -r /usr; echo begun; sleep 1000";
        for n in 0..kills() {
            let runtime = RUNTIMES[n as usize % 2];
            let mut command = fixture.run(&["--runtime", runtime], &layers, script);
            let mut run = Running::start(command.stdout(Stdio::piped()).stderr(Stdio::null()));
            if n % 3 == 0 {
                run.line();
            } else {
                // It enters its namespaces, makes or checks the skeleton, or starts the container.
                std::thread::sleep(2 * SPAN * n / kills());
            }
            run.send(Signal::SIGKILL);
            run.end();
            fixture.of_root().assert_nothing_lives();
            if n % 2 == 0 {
                let left = fixture.of_root().left();
                let kept = left.iter().filter(|path| path.to_str().unwrap().contains("/skeleton-"));
                kept.for_each(|path| fs::remove_dir_all(path).unwrap());
            }
        }
        assert_eq!(quietly(&mut fixture.run(&[], &layers, "touch /srv/1/new; ls /srv/1 | wc -l")), "51\n", "{ids}");
        quietly(fixture.layered(&["sweep"]).arg(fixture.of_root().scratch()));
        assert_eq!(fixture.of_root().left(), Vec::<PathBuf>::new(), "{ids}");
    }
}

#[test]
fn a_collector_of_root_spares_the_layers_of_a_users_run() {
    for ids in ALL_IDS {
        let fixture = UserFixture::new(ids);
        base_of_root(&fixture);
        let layers = ["one", "two"].map(|name| layer_of_root(&fixture, name, &["file"]));
        let mut run = fixture.run(&[], &layers[..1], "echo begun; read go; cat /file");
        let said = fs::File::create(fixture.path().join("stderr")).unwrap();
        let mut run = Running::start(run.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(said));
        assert_eq!(run.line(), "begun", "{ids}");
        let gc = |option: &[&str]| {
            let printed = quietly(of_root(&fixture, &["gc", "of-root", "--max-bytes", "0", "--json"]).args(option));
            let collected: Value = serde_json::from_str(&printed).unwrap();
            (collected["layers"].as_array().unwrap().len(), collected["held"].clone())
        };
        assert_eq!(gc(&["--dry-run"]), (1, serde_json::json!(["one"])), "{ids}");
        assert_eq!(gc(&[]), (1, serde_json::json!(["one"])), "{ids}");
        let error = of_root(&fixture, &["rm", "of-root/one"]).output().unwrap();
        let stderr = String::from_utf8_lossy(&error.stderr);
        assert!(stderr.contains("such as a run of another user, has locked it"), "{stderr}");
        run.input().write_all(b"\n").unwrap();
        assert_eq!(run.result(), (0, "one\n".into()), "{ids}");
        let stderr = fs::read_to_string(fixture.path().join("stderr")).unwrap();
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert_eq!(gc(&[]), (1, serde_json::json!([])), "{ids}");
        sweep(&fixture);
    }
}

#[test]
fn a_copy_has_no_capability_and_no_entry_of_users_without_a_number() {
    for ids in ALL_IDS {
        let fixture = UserFixture::new(ids);
        let layer = layer_of_root(&fixture, "theirs", &["bin/ping", "dir/file"]);
        // cap_net_raw=ep, in the form of version 2.
        let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(layer.join("fs/bin/ping"), "security.capability", &capability, flags).unwrap();
        let entry = |tag: u16, bits: u16, id: u32| {
            [tag.to_le_bytes().to_vec(), bits.to_le_bytes().to_vec(), id.to_le_bytes().to_vec()].concat()
        };
        let none = u32::MAX;
        let acl = [
            2_u32.to_le_bytes().to_vec(),
            entry(1, 7, none),
            entry(2, 7, 4_000_000),
            entry(4, 5, none),
            entry(16, 5, none),
            entry(32, 5, none),
        ];
        rustix::fs::setxattr(layer.join("fs/dir"), "system.posix_acl_access", &acl.concat(), flags).unwrap();
        let merged = fixture.path().join("merged");
        let output = fixture.layered(&["merge"]).arg(&merged).arg(&layer).output().unwrap();
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(printed.contains("0 files linked, 2 copied"), "{ids}: {}", String::from_utf8_lossy(&output.stderr));
        let mut buffer = [0; 100];
        let capability = rustix::fs::getxattr(merged.join("bin/ping"), "security.capability", &mut buffer);
        assert_eq!(capability, Err(rustix::io::Errno::NODATA), "{ids}");
        let length = rustix::fs::getxattr(merged.join("dir"), "system.posix_acl_access", &mut buffer).unwrap();
        assert_eq!(buffer[..length], [acl[..2].concat(), acl[3..].concat()].concat(), "{ids}");

        // The skeleton has the same copy of the directory.
        base_of_root(&fixture);
        let output = fixture.run(&[], &[layer], "touch /dir/new && echo made").output().unwrap();
        assert_eq!(output.stdout, b"made\n", "{ids}: {}", String::from_utf8_lossy(&output.stderr));
        sweep(&fixture);
    }
}

#[test]
fn nobody_of_a_range_is_a_known_owner() {
    let fixture = UserFixture::new("ranges");
    let script = "umask 022; mkdir -p dir/fs && echo x > dir/fs/file && chown -R 65534:65534 dir && id -u";
    quietly(fixture.layered(&["unshare", "--", "sh", "-c", script]).current_dir(fixture.path()));
    let layer = fixture.path().join("dir");
    let nobody = fs::metadata(layer.join("fs/file")).unwrap();
    assert_ne!((nobody.uid(), nobody.gid()), (65534, 65534));
    // Immutable or not, a copy to another file system is a copy.
    let target = tempfile::tempdir_in("/dev/shm").unwrap();
    chown(target.path(), Some(fixture.owner().0), Some(fixture.owner().1)).unwrap();
    let merged = target.path().join("merged");
    let output = fixture.layered(&["merge"]).arg(&merged).arg(&layer).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for path in ["", "file"] {
        let copy = fs::metadata(merged.join(path)).unwrap();
        assert_eq!((copy.uid(), copy.gid()), (nobody.uid(), nobody.gid()), "{path:?}");
    }
    let theirs = layer_of_root(&fixture, "theirs", &["file"]);
    let merged = target.path().join("theirs");
    let output = fixture.layered(&["merge"]).arg(&merged).arg(&theirs).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::metadata(merged.join("file")).unwrap().uid(), fixture.owner().0);
    // The user may use a store directory of the store's owner, nobody.
    let store = fixture.path().join("nobodys");
    fs::create_dir_all(store.join(".layered")).unwrap();
    fs::rename(&layer, store.join("layer")).unwrap();
    for path in [&store, &store.join(".layered")] {
        chown(path, Some(nobody.uid()), Some(nobody.gid())).unwrap();
    }
    quietly(&mut fixture.run(&[], &[store.join("layer")], "cat /file"));
    quietly(fixture.layered(&["unshare", "--", "rm", "-r"]).arg(&store));
    quietly(fixture.layered(&["unshare", "--", "sh", "-c", "rm -r \"$0\"/*"]).arg(target.path()));
}

#[test]
fn supplementary_groups_are_kept_with_single_and_by_crun() {
    for ids in ALL_IDS {
        let fixture = UserFixture::new(ids);
        let shared = fixture.path().join("shared");
        fs::create_dir(&shared).unwrap();
        fs::write(shared.join("file"), "of the project\n").unwrap();
        chown(&shared, Some(0), Some(4_000_000)).unwrap();
        fs::set_permissions(&shared, Permissions::from_mode(0o750)).unwrap();
        let mount = format!("{}:/mnt", shared.display());
        for runtime in RUNTIMES {
            let (uid, gid) = fixture.owner();
            let mut member = Command::new("setpriv");
            member.args([format!("--reuid={uid}"), format!("--regid={gid}")]);
            member.args(["--groups=4000000", "--inh-caps=-all"]).arg(fixture.program());
            member.args(["run", "--base", "base", "--runtime", runtime, "-v", &mount, "--", "cat", "/mnt/file"]);
            member.env("LAYERED_IDS", ids).env("LAYERED_SCRATCH", fixture.of_root().scratch());
            let output = member.current_dir(fixture.path()).stdin(Stdio::null()).output().unwrap();
            let kept = ids == "single" || runtime == "crun";
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.stdout == b"of the project\n", kept, "{ids} {runtime}: {stderr}");
            assert_eq!(output.status.success(), kept, "{ids} {runtime}: {stderr}");
        }
    }
}
