//! Limits of an ordinary user to whom a control group has been delegated, as `systemd-run --user
//! --scope -p Delegate=yes` does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use integration_tests::user::{ALL_IDS, UserFixture, around, failure, quietly};
use integration_tests::{RUNTIMES, find};
use serde_json::{Value, json};

/// A controller that version 2 has on machines with both versions, too.
const CONTROLLER: &str = "hugetlb";

/// A group of version 2 that belongs to the user. Dropping it removes it.
struct Delegated {
    /// A mount of version 2 that only this test uses.
    mount: tempfile::TempDir,
    group: PathBuf,
    was_passed_on: bool,
}

impl Delegated {
    fn new(fixture: &UserFixture) -> Self {
        let mount = tempfile::tempdir().unwrap();
        quietly(Command::new("mount").args(["-t", "cgroup2", "none"]).arg(mount.path()));
        let control = mount.path().join("cgroup.subtree_control");
        let was_passed_on = fs::read_to_string(&control).unwrap().contains(CONTROLLER);
        fs::write(&control, format!("+{CONTROLLER}")).unwrap();
        let group = mount.path().join(format!("layered-delegated-{}", std::process::id()));
        fs::create_dir(&group).unwrap();
        for file in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
            std::os::unix::fs::chown(group.join(file), Some(fixture.owner().0), Some(fixture.owner().1)).unwrap();
        }
        Self { mount, group, was_passed_on }
    }

    /// Returns a command that runs in `group`, a group below the mount, and sees version 2 alone.
    fn command(&self, group: &Path, command: &Command) -> Command {
        let script = "umount -R /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && \
                      echo $$ > /sys/fs/cgroup/\"$0\"/cgroup.procs && exec \"$@\"";
        let mut inside = Command::new(find("unshare"));
        inside.args(["--mount", "sh", "-c", script]).arg(group.strip_prefix(self.mount.path()).unwrap());
        around(inside, command)
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        let _ = fs::remove_dir(self.group.join("layered.self"));
        let removed = fs::remove_dir(&self.group);
        if !self.was_passed_on {
            let _ = fs::write(self.mount.path().join("cgroup.subtree_control"), format!("-{CONTROLLER}"));
        }
        let unmounted = Command::new("umount").arg(self.mount.path()).status();
        if !std::thread::panicking() {
            removed.expect("the groups of the runs are gone");
            assert!(unmounted.unwrap().success());
        }
    }
}

/// Writes a configuration with a limit of the controller, and returns its path.
fn configuration(fixture: &UserFixture) -> PathBuf {
    let namespaces = ["pid", "ipc", "uts", "mount", "network"].map(|kind| json!({"type": kind}));
    let mount = |at: &str, kind: &str| json!({"destination": at, "type": kind, "source": kind});
    let value: Value = json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["true"], "env": ["PATH=/bin"]},
        "mounts": [mount("/proc", "proc"), mount("/dev", "tmpfs")],
        "linux": {
            "namespaces": namespaces,
            "resources": {"hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}]},
        },
    });
    let path = fixture.path().join("config.json");
    fs::write(&path, value.to_string()).unwrap();
    path
}

#[test]
fn a_delegated_group_has_limits_and_nothing_is_left_in_it() {
    for ids in ALL_IDS {
        let fixture = UserFixture::new(ids);
        let configuration = configuration(&fixture);
        let delegated = Delegated::new(&fixture);
        for (number, runtime) in RUNTIMES.into_iter().enumerate() {
            // The first run moves itself into the leaf, where the second one starts.
            let start = if number == 0 { delegated.group.clone() } else { delegated.group.join("layered.self") };
            let options = ["--runtime", runtime, "--spec", configuration.to_str().unwrap(), "--json", "r.json"];
            let script = "while read -r line; do case $line in 0::*) echo $line ;; esac; done < /proc/self/cgroup";
            let printed = quietly(&mut delegated.command(&start, &fixture.run(&options, &[], script)));
            let name = delegated.group.file_name().unwrap().to_str().unwrap();
            assert!(printed.starts_with(&format!("0::/{name}/layered-")), "{ids} {runtime}: {printed}");
            let left: Vec<_> = fs::read_dir(&delegated.group).unwrap().map(|entry| entry.unwrap().path()).collect();
            let groups: Vec<_> = left.iter().filter(|path| path.is_dir()).collect();
            assert_eq!(groups, [&delegated.group.join("layered.self")], "{ids} {runtime}");
        }

        // A shell beside layered keeps the kernel from passing on the controller.
        fs::write(delegated.group.join("cgroup.subtree_control"), format!("-{CONTROLLER}")).unwrap();
        let run = fixture.run(&["--spec", configuration.to_str().unwrap()], &[], "true");
        let mut beside = Command::new("sh");
        beside.args(["-c", "\"$@\"; exit $?", "sh"]);
        let error = failure(125, &mut delegated.command(&delegated.group, &around(beside, &run)));
        assert!(error.contains("other processes are in ") && error.contains("Delegate=yes"), "{error}");
        // A group to which the one above passes nothing on, as systemd passes on only some
        // controllers.
        let inner = delegated.group.join("inner");
        fs::create_dir(&inner).unwrap();
        for file in ["", "cgroup.procs", "cgroup.subtree_control"] {
            std::os::unix::fs::chown(inner.join(file), Some(fixture.owner().0), Some(fixture.owner().1)).unwrap();
        }
        let error = failure(125, &mut delegated.command(&inner, &run));
        let parts = ["inputs: ", CONTROLLER, "/inner does not have", "Delegate=cpu cpuset io memory pids"];
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        fs::remove_dir(&inner).unwrap();
        // A group of somebody else is refused, whatever it passes on.
        let error = failure(125, &mut delegated.command(delegated.mount.path(), &run));
        assert!(error.contains(CONTROLLER) && error.contains("Permission denied"), "{error}");
    }
}
