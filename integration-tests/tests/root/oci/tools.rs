//! Images between layered, Podman and Buildah: they run and change what layered exports, and
//! layered imports what they make.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use integration_tests::stack::{Dir, set_xattr};
use integration_tests::tree::Snapshot;
use integration_tests::{FOR_EVER, Fixture, find, layered};
use layer::Layer;

use super::{done, program, shown};

/// Podman or Buildah, with a storage of its own in a directory, to which the paths of images are
/// relative: no name of an image has upper-case letters, as those of temporary directories do.
struct Tool<'a> {
    name: &'static str,
    dir: &'a Path,
}

impl Tool<'_> {
    fn command(&self) -> Command {
        let mut command = Command::new(find(self.name));
        command.current_dir(self.dir);
        for (option, place) in [("--root", "storage"), ("--runroot", "storage-run")] {
            command.arg(option).arg(self.dir.join(place));
        }
        // This driver needs nothing of the kernel: each layer is a copy.
        command.args(["--storage-driver", "vfs"]);
        if self.name == "podman" {
            command.args(["--cgroup-manager", "cgroupfs", "--events-backend", "none", "--runtime"]).arg(find("runc"));
        }
        command
    }

    fn done(&self, arguments: &[&str]) -> String {
        done(self.command().args(arguments)).trim_end().into()
    }
}

/// The parent of the control groups of Podman's containers. Podman does not remove it. The
/// group of a container's monitor can be removed only after the monitor has ended.
struct CgroupParent(String);

impl CgroupParent {
    fn remove(&self) -> std::io::Result<()> {
        let hierarchies = fs::read_dir("/sys/fs/cgroup")?.map(|entry| entry.map(|entry| entry.path()));
        for hierarchy in hierarchies.chain([Ok(PathBuf::from("/sys/fs/cgroup"))]) {
            let group = hierarchy?.join(&self.0[1..]);
            // A group has directories for the groups in it, and files that cannot be removed.
            for entry in fs::read_dir(&group).into_iter().flatten() {
                if entry.as_ref().is_ok_and(|entry| entry.path().is_dir()) {
                    fs::remove_dir(entry?.path())?;
                }
            }
            if group.exists() {
                fs::remove_dir(group)?;
            }
        }
        Ok(())
    }
}

impl Drop for CgroupParent {
    fn drop(&mut self) {
        let deadline = Instant::now() + FOR_EVER;
        while let Err(error) = self.remove() {
            let is_late = Instant::now() >= deadline;
            if is_late && std::thread::panicking() {
                return;
            }
            assert!(!is_late, "{}: {error}", self.0);
            std::thread::yield_now();
        }
    }
}

/// Compares trees, except for the time of the root, which an archive without an entry for it lacks.
fn assert_same(expected: &Snapshot, found: Snapshot, what: &str) {
    let mut found = found;
    found.entries.get_mut(Path::new("")).unwrap().modified = expected.entries[Path::new("")].modified;
    assert_eq!(expected.diff(&found), "", "{what}");
}

#[test]
fn podman_pulls_and_runs_an_export() {
    let fixture = Fixture::new();
    let below =
        Dir::new().with("d", Dir::new().file("gone", "x").file("kept", "x")).with("o", Dir::new().file("f", "x"));
    let above = Dir::new().with("d", Dir::new().whiteout("gone").file("new", "y")).with("o", Dir::new().opaque());
    let [below, above] = [("below", below), ("above", above)].map(|(name, dir)| {
        fixture.layer(name, |tree| {
            fs::remove_dir(tree).unwrap();
            dir.make(tree).unwrap();
            // The kernel looks for whiteouts in a directory with this mark.
            set_xattr(&tree.join("d"), "trusted.overlay.origin", b"").unwrap();
        })
    });
    let hello = Layer::at(fixture.store().join("hello"));
    let script = "echo $GREETING from $PWD, $0; ls /d; test ! -e /o || rm -r /o";
    let mut run = fixture.layered_run();
    for layer in [&above, &below] {
        run.arg("--layer").arg(layer.path());
    }
    run.args(["--env", "GREETING=hello", "--record-env", "values", "--cwd", "/tmp", "--commit"]).arg(hello.path());
    let expected = "hello from /tmp, name\nkept\nnew\n";
    assert_eq!(done(run.args(["--", "sh", "-c", script, "name"])), expected);

    let stack = [hello, above, below, Layer::at(fixture.base().path())];
    let snapshot = shown(&stack);
    let place = fixture.path().join("place");
    fs::create_dir(&place).unwrap();
    let podman = Tool { name: "podman", dir: &place };
    let group = CgroupParent(format!("/layered-podman-{}", std::process::id()));
    for (image, zip) in [("oci:image:tag", "gzip"), ("oci-archive:file:tag", "zstd")] {
        let mut export = layered();
        export.current_dir(&place).args(["export", image, "--zip", zip, "--base"]).arg(fixture.base().path());
        for layer in &stack[..3] {
            export.arg("--layer").arg(layer.path());
        }
        done(&mut export);
        let id = podman.done(&["pull", "--quiet", image]);
        let mounted = podman.done(&["image", "mount", &id]);
        assert_same(&snapshot, Snapshot::of_path(Path::new(&mounted)).unwrap(), image);
        podman.done(&["image", "unmount", &id]);
        // A limit above the caller's own needs a capability.
        let options = [
            "--network",
            "none",
            "--log-driver",
            "none",
            "--ulimit",
            "nofile=1024:1024",
            "--ulimit",
            "nproc=1000:1000",
        ];
        let output = podman.done(&[&["run", "--rm", "--cgroup-parent", &group.0], &options[..], &[&id]].concat());
        assert_eq!(output, expected.trim_end(), "{image}");
        podman.done(&["image", "rm", &id]);
    }
}

/// Needs Debian or Ubuntu, as `debian` does.
#[test]
fn an_image_that_buildah_made_of_debian_packages_is_imported_exactly() {
    let fixture = Fixture::new();
    let dest = fixture.path().join("debian");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/debian-layers");
    done(Command::new(script).arg(&dest).args(["dash", "make"]));
    let list = fs::read_to_string(dest.join("layers")).unwrap();
    let packages: Vec<_> = list.lines().map(|dir| Path::new(dir).join("fs").display().to_string()).collect();

    let buildah = Tool { name: "buildah", dir: &dest };
    // Each step is a layer of the image.
    let step = |from: &str, to: &str, change: &dyn Fn(&str)| {
        let container = buildah.done(&["from", from]);
        change(&buildah.done(&["mount", &container]));
        buildah.done(&["commit", "--quiet", "--rm", &container, to]);
    };
    let copy = |tree: &str, root: &str| drop(program("cp", &["-a", &format!("{tree}/."), root]));
    step("scratch", "oci:image:base", &|root| copy(&dest.join("base/fs").display().to_string(), root));
    step("oci:image:base", "oci:image:packages", &|root| packages.iter().rev().for_each(|tree| copy(tree, root)));
    step("oci:image:packages", "oci:image:changed", &|root| {
        let path = |name: &str| Path::new(root).join(name);
        // A directory that was removed and made again, one with another mode, and deletions.
        fs::remove_dir_all(path("usr/share/doc")).unwrap();
        fs::create_dir(path("usr/share/doc")).unwrap();
        fs::write(path("usr/share/doc/new"), "new").unwrap();
        fs::set_permissions(path("usr/include"), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        fs::remove_file(path("usr/bin/make-first-existing-target")).unwrap();
        fs::hard_link(path("usr/bin/make"), path("usr/bin/linked")).unwrap();
        // A capability whose bits are the byte 0x0a.
        let capability = [1, 0, 0, 2, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        set_xattr(&path("usr/bin/dash"), "security.capability", &capability).unwrap();
    });

    done(Command::new(find("umoci")).current_dir(&dest).args(["unpack", "--image", "image:changed", "unpacked"]));
    let mut expected = Snapshot::of_path(&dest.join("unpacked/rootfs")).unwrap();
    assert!(expected.entries.contains_key(Path::new("usr/share/doc/new")) && expected.entries.len() > 500);
    let layered_here = || {
        let mut layered = layered();
        layered.current_dir(&dest);
        layered
    };
    let base = dest.join("flat");
    done(layered_here().args(["import", "oci:image:changed"]).arg(&base));
    assert_same(&expected, Snapshot::of_path(&base.join("fs")).unwrap(), "as one tree");

    let imported = dest.join("imported");
    fs::create_dir(&imported).unwrap();
    let list = done(layered_here().args(["import", "oci:image:changed", "--layers"]).arg(&imported));
    let paths = list.lines().map(|line| line.strip_prefix("# --base ").unwrap_or(line));
    let mut layers: Vec<_> = paths.map(Layer::at).collect();
    layers.rotate_left(1);
    assert_eq!(layers.len(), 3, "{list}");
    let mut stack = shown(&layers);
    // A file with names in two layers is two files.
    for snapshot in [&mut stack, &mut expected] {
        snapshot.entries.values_mut().for_each(|entry| entry.group = None);
    }
    assert_same(&expected, stack, "as layers");
    let verified = done(layered().arg("verify").arg(&imported));
    assert_eq!(verified.lines().filter(|line| line.contains(": intact")).count(), 3, "{verified}");

    // Buildah takes back what layered makes of it.
    done(layered_here().args(["export", "oci:image:again", "--base"]).arg(&base));
    let container = buildah.done(&["from", "oci:image:again"]);
    let mounted = buildah.done(&["mount", &container]);
    assert_eq!(fs::read_to_string(Path::new(&mounted).join("usr/share/doc/new")).unwrap(), "new");
    buildah.done(&["rm", &container]);
}
