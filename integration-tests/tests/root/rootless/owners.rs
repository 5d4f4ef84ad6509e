//! Owners in a user namespace with a single user: real ones, which cannot be changed, and faked
//! ones.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use integration_tests::RUNTIMES;
use integration_tests::user::{UserFixture, failure, quietly};

use super::of_root;

/// A package with files of another user and of another group.
const PACKAGE: &str = "mkdir -p p/DEBIAN p/usr/bin p/var/lib/own && cd p && \
    printf 'Package: own\\nVersion: 1\\nArchitecture: all\\nMaintainer: x <x@example.org>\\nDescription: x\\n' > DEBIAN/control && \
    printf '#!/bin/sh\\nset -e\\nchown 33:33 /var/lib/own\\nchmod 2755 /usr/bin/own\\n' > DEBIAN/postinst && chmod 755 DEBIAN/postinst && \
    echo own > usr/bin/own && chown 7:42 usr/bin/own && cd .. && dpkg-deb --build p own.deb";

/// Needs Debian or Ubuntu, with the packages in apt's cache or on a reachable mirror.
#[test]
fn dpkg_installs_a_package_with_faked_owners() {
    let fixture = UserFixture::new("single");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/debian-layers");
    let debian = fixture.path().join("debian");
    let made =
        Command::new(script).arg(&debian).args(["dpkg", "dash", "coreutils", "libc-bin", "tar"]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    quietly(Command::new("sh").args(["-c", PACKAGE]).current_dir(fixture.path()).stdout(std::process::Stdio::null()));
    fixture.give(fixture.path());
    // The packages of the layers are not configured, so dpkg knows none of them. It finds no
    // `diff`.
    let script = "mkdir -p /var/lib/dpkg/updates /var/lib/dpkg/info && touch /var/lib/dpkg/status && \
                  dpkg --force-bad-path --install /own.deb 2>&1";
    let command = |runtime: &str, options: &[&str]| {
        let mut command = fixture.layered(&["run", "--runtime", runtime, "--base", "debian/base"]);
        command.args(["--layers-from", "debian/layers", "-v", "own.deb:/own.deb:ro"]).args(options);
        command.args(["--", "sh", "-c", script]);
        command
    };
    for runtime in RUNTIMES {
        let upper = format!("upper-{runtime}");
        quietly(&mut command(runtime, &["--owners", "fake", "--upper", &upper]));
        let installed = fs::metadata(fixture.path().join(&upper).join("usr/bin/own")).unwrap();
        assert_eq!((installed.uid(), installed.gid(), installed.mode() & 0o7777), {
            let (uid, gid) = fixture.owner();
            (uid, gid, 0o2755)
        });
        // Without that, the kernel refuses the owner.
        let output = command(runtime, &[]).output().unwrap();
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success() && printed.contains("error setting ownership of"), "{runtime}: {output:?}");
    }
}

#[test]
fn faked_calls_succeed_and_change_nothing() {
    use nix::libc::{SYS_chown, SYS_fchown, SYS_fchownat, SYS_lchown};
    use nix::libc::{SYS_setfsgid, SYS_setfsuid, SYS_setgid, SYS_setgroups, SYS_setregid, SYS_setresgid};
    use nix::libc::{SYS_setresuid, SYS_setreuid, SYS_setuid};
    let fixture = UserFixture::new("single");
    fixture.of_root().add_probe();
    fixture.give(&fixture.path().join("base"));
    let calls = [SYS_chown, SYS_fchown, SYS_fchownat, SYS_lchown].into_iter().chain([
        SYS_setfsgid,
        SYS_setfsuid,
        SYS_setgid,
        SYS_setgroups,
        SYS_setregid,
        SYS_setresgid,
        SYS_setresuid,
        SYS_setreuid,
        SYS_setuid,
    ]);
    let calls: String = calls.map(|call| format!("probe {call} 7 7 7 || echo {call} failed\n")).collect();
    let script = format!(
        "{calls}touch /x; busybox chown 7:7 /x && stat -c '%u %g' /x; busybox su -s /bin/sh nobody -c 'echo $(id -u) $(id -g)'"
    );
    let profile = fixture.path().join("profile.json");
    fs::write(&profile, r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#).unwrap();
    let layer = fixture.store().join("users");
    fs::create_dir_all(layer.join("fs/etc")).unwrap();
    fs::write(layer.join("fs/etc/passwd"), "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n").unwrap();
    fs::write(layer.join("fs/etc/group"), "root:x:0:\nnobody:x:65534:\n").unwrap();
    fixture.give(&layer);
    let layers = [layer];
    for runtime in RUNTIMES {
        for seccomp in ["default", "native", "unconfined", profile.to_str().unwrap()] {
            let options = ["--runtime", runtime, "--seccomp", seccomp, "--owners", "fake"];
            let printed = quietly(&mut fixture.run(&options, &layers, &script));
            assert_eq!(printed, "0 0\n0 0\n", "{runtime} {seccomp}");
        }
        let printed = fixture.run(&["--runtime", runtime], &layers, &script).output().unwrap();
        assert_ne!(printed.status.code(), Some(0), "{runtime}: {printed:?}");
    }
}

#[test]
fn owners_are_not_faked_where_other_users_exist() {
    let fixture = UserFixture::new("ranges");
    let words = ["run", "--owners", "fake", "--base", "base", "--upper", "up", "--", "true"];
    for mut command in [fixture.layered(&words), of_root(&fixture, &words)] {
        let error = failure(125, &mut command);
        let parts = ["inputs: ", "only pretends to change owners and users", "omit --owners fake", "--ids single"];
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        assert!(!fixture.path().join("up").exists());
    }
}
