//! Directories of root in a stack of an ordinary user that the user may not list, search or lock.

use std::fs::{self, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Stdio};

use integration_tests::processes::Running;
use integration_tests::user::{ALL_IDS, UserFixture, around, failure, quietly};
use integration_tests::{RUNTIMES, find};
use rustix::fs::{Gid, Uid};

use super::others::{base_of_root, entries, layer_of_root, skeletons, sweep};
use super::{everywhere, json, of_root};

#[test]
fn files_are_used_by_name_in_a_directory_that_can_be_searched_but_not_listed() {
    everywhere(|fixture, runtime| {
        let base = base_of_root(fixture);
        for file in ["opt/file", "opt/both/below", "opt/only/one", "srv/shown"] {
            let file = base.join("fs").join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "of root\n").unwrap();
        }
        let layer = layer_of_root(fixture, &format!("theirs-{runtime}"), &["opt/both/above", "srv/hidden"]);
        // The kernel reads the attributes of `srv` before it goes on to the base, and may not.
        for dir in [base.join("fs/opt"), layer.join("fs/srv")] {
            fs::set_permissions(dir, Permissions::from_mode(0o711)).unwrap();
        }
        let layers = [layer];
        let run = |script: &str, options: &[&str]| {
            let output = fixture.run(&[&["--runtime", runtime], options].concat(), &layers, script).output().unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{runtime} {script}: {stderr}");
            String::from_utf8(output.stdout).unwrap()
        };
        let script =
            "cat /opt/file /opt/only/one; ls /opt/both; ls -A /opt /srv; touch /opt/only/new || echo unwritable";
        let shown = "of root\nof root\nabove\nbelow\n/opt:\n\n/srv:\nunwritable\n";
        assert_eq!(run(script, &[]), shown, "{runtime}");
        let upper = fixture.path().join(format!("up-{runtime}"));
        let report = fixture.path().join("r.json");
        let options = ["--upper", upper.to_str().unwrap(), "--json", report.to_str().unwrap()];
        run("rm /opt/file; echo new > /opt/new; mkdir /opt/dir; touch /opt/both/new /opt/dir/new", &options);
        let committed = fixture.store().join(format!("made-{runtime}"));
        quietly(fixture.layered(&["commit"]).arg(&upper).arg(&committed).arg("--run").arg(&report));
        let expected = [
            "opt 40755 ",
            "opt/both 40755 ",
            "opt/both/new 100644 ",
            "opt/dir 40755 ",
            "opt/dir/new 100644 ",
            "opt/file 20000 ",
            "opt/new 100644 new",
        ];
        assert_eq!(entries(&committed.join("fs")), expected, "{runtime}");
        sweep(fixture);
    });
}

#[test]
fn a_tree_of_another_user_that_cannot_be_listed_is_refused() {
    for ids in ALL_IDS {
        let fixture = UserFixture::new(ids);
        let layer = layer_of_root(&fixture, "theirs", &["file"]);
        for mode in [0o700, 0o711, 0o744] {
            fs::set_permissions(layer.join("fs"), Permissions::from_mode(mode)).unwrap();
            let error = failure(125, &mut fixture.run(&[], std::slice::from_ref(&layer), "true"));
            let parts =
                ["inputs: cannot list and enter ", "of-root/theirs/fs, which belongs to another user", "chmod a+rx"];
            assert!(parts.iter().all(|part| error.contains(part)), "{ids} {mode:o}: {error}");
        }
        fixture.of_root().assert_clean();
    }
}

#[test]
fn a_directory_that_can_be_listed_but_not_searched_is_found() {
    let fixture = UserFixture::new("single");
    let trees = ["top", "base"].map(|name| fixture.path().join(name));
    for tree in &trees {
        fs::create_dir_all(tree.join("dir/below")).unwrap();
        fs::set_permissions(tree.join("dir"), Permissions::from_mode(0o744)).unwrap();
    }
    let (uid, gid) = fixture.owner();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
            // This changes the user of this thread alone.
            rustix::thread::set_thread_res_gid(group, group, group).unwrap();
            rustix::thread::set_thread_res_uid(user, user, user).unwrap();
            let stack = layer::Stack::new(&trees, layer::XattrNamespace::User).unwrap();
            assert_eq!(stack.resolve("dir").unwrap().layer, 0);
            let below = stack.resolve("dir/below");
            let is_denied = |source: &std::io::Error| source.kind() == ErrorKind::PermissionDenied;
            assert!(matches!(&below, Err(layer::Error::Io { source, .. }) if is_denied(source)), "{below:?}");
        });
    });
}

#[test]
fn another_group_of_the_user_replaces_a_skeleton() {
    let fixture = UserFixture::new("single");
    let base = base_of_root(&fixture);
    let shared = base.join("fs/srv");
    fs::create_dir_all(shared.join("project")).unwrap();
    chown(&shared, Some(0), Some(4_000_000)).unwrap();
    fs::set_permissions(&shared, Permissions::from_mode(0o750)).unwrap();
    let (uid, gid) = fixture.owner();
    // Inside, both groups have no number.
    for (group, shown) in [(4_000_001, ""), (4_000_000, "project\n"), (4_000_001, "")] {
        let mut member = Command::new(find("setpriv"));
        member.args([format!("--reuid={uid}"), format!("--regid={gid}"), format!("--groups={group}")]);
        member.arg("--inh-caps=-all").arg(fixture.program());
        member.args(["run", "--base", "base", "--", "ls", "/srv"]);
        member.env("LAYERED_IDS", "single").env("LAYERED_SCRATCH", fixture.of_root().scratch());
        assert_eq!(quietly(member.current_dir(fixture.path()).stdin(Stdio::null())), shown, "{group}");
        assert_eq!(skeletons(&fixture).len(), 1);
    }
    sweep(&fixture);
}

#[test]
fn the_record_of_a_run_names_its_skeleton_before_the_command_ends() {
    let fixture = UserFixture::new("single");
    base_of_root(&fixture);
    for (base, expected) in [("base", true), ("own", false)] {
        if base == "own" {
            quietly(Command::new("cp").args(["-r", "base", "own"]).current_dir(fixture.path()));
            fixture.give(&fixture.path().join("own"));
        }
        let mut run =
            fixture.layered(&["run", "--base", base, "--keep-failed", "--", "sh", "-c", "echo begun; read go"]);
        let mut run = Running::start(run.stdin(Stdio::piped()).stdout(Stdio::piped()));
        assert_eq!(run.line(), "begun");
        let left = fixture.of_root().left();
        let record = left.iter().map(|dir| dir.join("run.json")).find(|record| record.exists()).unwrap();
        assert_eq!(json(&record)["capture"]["skeleton"] == true, expected, "{base}");
        run.input().write_all(b"\n").unwrap();
        assert!(run.end().success());
    }
    sweep(&fixture);
}

/// Returns a command that executes its arguments where `dir` is mounted read-only.
fn with_read_only(dir: &Path) -> Command {
    let mut mounted = Command::new(find("unshare"));
    let script = "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\" && exec \"$@\"";
    mounted.args(["--mount", "sh", "-c", script]).arg(dir);
    mounted
}

#[test]
fn a_run_warns_of_layers_that_a_read_only_mount_of_the_store_does_not_let_it_hold() {
    let fixture = UserFixture::new("single");
    base_of_root(&fixture);
    let layer = layer_of_root(&fixture, "one", &["file"]);
    let store = layer.parent().unwrap();
    let stderr = |options: &[&str], script: &str| {
        let run = fixture.run(options, std::slice::from_ref(&layer), script);
        let output = around(with_read_only(store), &run).output().unwrap();
        assert_eq!(output.stdout, b"one\n", "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stderr).unwrap()
    };
    // The lock on the layer ends with the process.
    let held = stderr(&[], "cat /file");
    assert!(!held.contains("are not held") && !held.contains("a collector may remove "), "{held}");
    let kept = stderr(&["--keep-failed"], "cat /file; exit 3");
    assert!(!kept.contains("are not held") && kept.contains("a collector may remove "), "{kept}");
    let left = fixture.of_root().left();
    let left = left.iter().find(|path| path.to_str().unwrap().contains("/kept-")).unwrap();
    quietly(fixture.layered(&["discard"]).arg(left));
    fs::set_permissions(&layer, Permissions::from_mode(0o711)).unwrap();
    let unheld = stderr(&[], "cat /file");
    assert_eq!(unheld.matches("are not held").count(), 1, "{unheld}");
    sweep(&fixture);
}

#[test]
fn a_collector_spares_the_layers_of_a_run_over_a_read_only_mount_of_the_store() {
    for ids in ALL_IDS {
        let fixture = UserFixture::new(ids);
        base_of_root(&fixture);
        let layers = ["one", "two"].map(|name| layer_of_root(&fixture, name, &["file"]));
        // A store of root's, and one of the user's.
        for owner in [0, fixture.owner().0] {
            let store = layers[0].parent().unwrap();
            for entry in walkdir::WalkDir::new(store) {
                std::os::unix::fs::lchown(entry.unwrap().path(), Some(owner), Some(owner)).unwrap();
            }
            let run = fixture.run(&["--runtime", RUNTIMES[0]], &layers[..1], "echo begun; read go; cat /file");
            let mut run = around(with_read_only(store), &run);
            let mut run = Running::start(run.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()));
            assert_eq!(run.line(), "begun", "{ids} {owner}");
            let gc = ["gc", "of-root", "--max-bytes", "0", "--json", "--dry-run"];
            let mut gc = if owner == 0 { of_root(&fixture, &gc) } else { fixture.layered(&gc) };
            let collected: serde_json::Value = serde_json::from_str(&quietly(&mut gc)).unwrap();
            assert_eq!(collected["held"], serde_json::json!(["one"]), "{ids} {owner}");
            run.input().write_all(b"\n").unwrap();
            assert_eq!(run.result(), (0, "one\n".into()), "{ids} {owner}");
        }
        sweep(&fixture);
    }
}
