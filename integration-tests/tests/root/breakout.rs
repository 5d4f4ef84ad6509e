//! Attempts to break out of a container. A program inside really makes each attempt. Where a
//! protection can be turned off without harm, the test makes the attempt again without it and
//! expects success, because an attempt that can never succeed proves nothing. Modules `filter` and
//! `contents` test the seccomp filter and hostile names.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use container::{
    Capability, DeviceNodes, Error as ContainerError, Mount, Network, NoNewPrivileges, Overlay, RootAccess, Runtime,
    Seccomp, Template, TemplateBuilder, in_private_mount_namespace,
};
use integration_tests::{Fixture, RUNTIMES, find, shell, stderr, stdout};
use layer::Layer;
use nix::libc;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use runner::{Cause, Report};

fn run(fixture: &Fixture, runtime: &str, layers: &[Layer], template: &Template) -> Result<Report, runner::Error> {
    runner::run(&fixture.base(), layers, template, fixture.options().runtime(Runtime::new(find(runtime))))
}

/// Returns what the template's command prints.
fn printed(fixture: &Fixture, runtime: &str, template: TemplateBuilder) -> String {
    let report = run(fixture, runtime, &[], &template.build().unwrap()).unwrap();
    format!("{}{}", stdout(&report), stderr(&report))
}

/// Returns the template with a change that only a `config.json` can express.
fn changed(template: TemplateBuilder, change: impl FnOnce(&mut serde_json::Value)) -> Template {
    let mut value = serde_json::to_value(template.build().unwrap()).unwrap();
    change(&mut value);
    Template::from_value(value).unwrap()
}

/// Parses a device as the scripts name it: `b:8:0`.
fn device(text: &str) -> (SFlag, u64) {
    let [kind, major, minor] = text.split(':').collect::<Vec<_>>()[..] else { panic!("{text}") };
    let kind = if kind == "b" { SFlag::S_IFBLK } else { SFlag::S_IFCHR };
    (kind, makedev(major.parse().unwrap(), minor.parse().unwrap()))
}

/// The layer and the command both make nodes of all devices, on every kind of mount.
#[test]
fn a_container_opens_only_the_devices_that_the_runtime_makes() {
    let fixture = Fixture::new();
    // Another program may remove a disk, such as a loop device, while this reads the list.
    let numbers = |entry: std::io::Result<fs::DirEntry>| {
        let numbers = fs::read_to_string(entry.unwrap().path().join("dev")).ok()?;
        Some(format!("b:{}", numbers.trim()))
    };
    // The machine's disks, the number of the first SCSI disk even if it does not exist, and mem,
    // port, kmsg, fuse, loop-control, kvm, a terminal and the console.
    let disks = fs::read_dir("/sys/block").unwrap().filter_map(numbers);
    let others =
        ["b:8:0", "c:1:1", "c:1:4", "c:1:11", "c:10:229", "c:10:237", "c:10:232", "c:4:0", "c:5:1"].map(String::from);
    let denied: Vec<_> = disks.chain(others).collect();
    // null, zero, full, random, urandom
    let allowed = ["c:1:3", "c:1:5", "c:1:7", "c:1:8", "c:1:9"];
    let bound = fixture.path().join("bound");
    fs::create_dir(&bound).unwrap();
    let nodes = |name: &str, spared: &str| {
        fixture.layer(name, |tree| {
            let all = denied.iter().map(String::as_str).chain(allowed);
            for name in all.filter(|name| *name != spared) {
                let (kind, number) = device(name);
                mknod(&tree.join(name), kind, Mode::from_bits_truncate(0o666), number).unwrap();
            }
        })
    };
    // crun always allows the console. So under crun, the protection is that no command can make a
    // node of it.
    let layers = [nodes("nodes", ""), nodes("nodes-without-the-console", "c:5:1")];
    let script = |devices: &str| {
        format!(
            "for device in {devices}; do
                numbers=${{device#*:}}
                for dir in / /dev/ /tmp/ /dev/shm/ /bound/; do
                    mknod ${{dir}}node ${{device%%:*}} ${{numbers%:*}} ${{numbers#*:}} 2>/dev/null && echo made
                    [ -e ${{dir}}node ] && head -c 0 ${{dir}}node 2>/dev/null && echo opened in $dir
                    rm -f ${{dir}}node
                done
                head -c 0 /$device 2>/dev/null && echo opened in the layer
            done; for device in null zero full random urandom; do head -c 0 /dev/$device || echo not opened; done
            mknod /bound/whiteout c 0 0 && rm /bound/whiteout && mknod /fifo p && echo made"
        )
    };
    for (runtime, layer) in RUNTIMES.into_iter().zip(&layers) {
        for seccomp in [Seccomp::Default, Seccomp::Native, Seccomp::Unconfined] {
            let run = |devices: &str, seccomp: &Seccomp| {
                let template = shell(&script(devices)).seccomp(seccomp.clone()).mount(Mount::bind(&bound, "/bound"));
                stdout(&run(&fixture, runtime, std::slice::from_ref(layer), &template.build().unwrap()).unwrap())
            };
            let made = |times: usize| "made\n".repeat(if runtime == "runc" { times } else { 0 });
            let expected = format!("{}made\n", made(5 * denied.len()));
            assert_eq!(run(&denied.join(" "), &seccomp), expected, "{runtime} {seccomp:?}");
            let opened = match runtime {
                "runc" => "made\nopened in /\nmade\nopened in /dev/\nmade\nmade\nmade\nopened in the layer\n",
                _ => "opened in the layer\n",
            };
            let expected = format!("{}made\n", opened.repeat(allowed.len()));
            assert_eq!(run(&allowed.join(" "), &seccomp), expected, "{runtime} {seccomp:?}");
        }
        // A read-only root stays read-only.
        let template = shell(
            "touch /new 2>/dev/null && echo written; head -c 0 /b:8:0 2>/dev/null && echo opened; echo done >/dev/null && echo done",
        );
        let template = template.root_access(RootAccess::ReadOnly).build().unwrap();
        let report = run(&fixture, runtime, std::slice::from_ref(layer), &template).unwrap();
        assert_eq!(stdout(&report), "done\n", "{runtime}");
        // A configuration can allow devices by its own rules, unless the caller asks for inert
        // nodes.
        let own = changed(shell("mknod /node c 1 5 && head -c 0 /node && echo opened"), |value| {
            let null = serde_json::json!({"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"});
            value["linux"]["resources"]["devices"].as_array_mut().unwrap().push(null);
        });
        assert_eq!(stdout(&run(&fixture, runtime, &[], &own).unwrap()), "opened\n", "{runtime}");
        if runtime == "runc" {
            let options = fixture.options().devices(DeviceNodes::Inert);
            let report = runner::run(&fixture.base(), &[], &own, options).unwrap();
            assert_eq!((stdout(&report), report.status.success()), (String::new(), false));
        }
    }
}

#[test]
fn a_container_changes_no_mount_without_the_capability() {
    let fixture = Fixture::new();
    let script = "table=$(cat /proc/self/mountinfo)
        for options in '-t tmpfs x /root' '-t proc x /root' '-o bind / /root' '-o remount,rw /sys' '-o remount,bind,rw /proc/sys'; do
            mount $options 2>/dev/null && echo mounted $options
        done
        for path in /proc /proc/interrupts /sys/firmware /dev /tmp; do umount $path 2>/dev/null && echo unmounted $path; done
        [ \"$table\" = \"$(cat /proc/self/mountinfo)\" ] && echo the same";
    for runtime in RUNTIMES {
        for user in [0, 1000] {
            assert_eq!(printed(&fixture, runtime, shell(script).user(user, user)), "the same\n", "{runtime}");
        }
        let able = shell("mount -t tmpfs x /root && echo mounted").capabilities([Capability::SysAdmin]);
        assert_eq!(printed(&fixture, runtime, able), "mounted\n", "{runtime}");
    }
}

#[test]
fn a_container_changes_no_setting_of_the_hosts_kernel() {
    let fixture = Fixture::new();
    // The script writes back the content that it reads, or `h` (help), so that nothing happens if a
    // protection fails.
    let script = "rewrite() { [ -e $1 ] && content=$(cat $1 2>/dev/null) && echo \"${content:-h}\" > $1 && echo written $1; }
        for file in /proc/sysrq-trigger /proc/sys/kernel/core_pattern /proc/sys/kernel/hostname /proc/irq/default_smp_affinity \\
            /sys/kernel/uevent_helper /sys/fs/cgroup/release_agent /sys/fs/cgroup/*/release_agent; do
            rewrite $file
        done 2>/dev/null
        for file in /proc/kcore /proc/keys /proc/timer_list /proc/interrupts; do
            [ ! -e $file ] || head -c 1 $file
        done
        for dir in /sys/firmware /sys/devices/virtual/powercap; do
            [ ! -e $dir ] || ls $dir
        done
        mkdir /sys/fs/cgroup/new /sys/fs/cgroup/*/new 2>/dev/null && echo made
        echo done";
    for runtime in RUNTIMES {
        let seen = printed(&fixture, runtime, shell(script));
        assert_eq!(seen, "done\n", "{runtime}");

        // Without protection, the script changes only the container's own host name, which is
        // harmless.
        let open = changed(
            shell("echo x > /proc/sys/kernel/hostname && hostname; head -c 1 /proc/interrupts | wc -c"),
            |value| {
                value["linux"]["maskedPaths"] = serde_json::json!([]);
                value["linux"]["readonlyPaths"] = serde_json::json!([]);
            },
        );
        assert_eq!(stdout(&run(&fixture, runtime, &[], &open).unwrap()), "x\n1\n", "{runtime}");
    }
}

/// System calls with their numbers, with arguments that are harmless if the call gets through, and
/// with the profile's error.
const CALLS: &[(&str, libc::c_long, &str, i32)] = &[
    // the keyring of the process, for which the kernel has no namespaces
    ("add_key", libc::SYS_add_key, "user probe x 1 -2", libc::ENOSYS),
    ("request_key", libc::SYS_request_key, "user probe 0 -2", libc::ENOSYS),
    ("keyctl", libc::SYS_keyctl, "0 -2 1", libc::ENOSYS),
    // CLONE_NEWUSER, CLONE_NEWNS, CLONE_NEWUSER with SIGCHLD
    ("unshare", libc::SYS_unshare, "268435456", libc::EPERM),
    ("unshare", libc::SYS_unshare, "131072", libc::EPERM),
    ("clone", libc::SYS_clone, "268435473", libc::ENOSYS),
    ("clone3", libc::SYS_clone3, "0 0", libc::ENOSYS),
    ("setns", libc::SYS_setns, "-1 0", libc::EPERM),
    ("mount", libc::SYS_mount, "0 0 0 0 0", libc::EPERM),
    ("umount2", libc::SYS_umount2, "0 0", libc::EPERM),
    ("pivot_root", libc::SYS_pivot_root, "0 0", libc::ENOSYS),
    ("fsopen", libc::SYS_fsopen, "0 0", libc::EPERM),
    ("open_tree", libc::SYS_open_tree, "-1 0 0", libc::EPERM),
    ("move_mount", libc::SYS_move_mount, "-1 0 -1 0 0", libc::EPERM),
    ("open_by_handle_at", libc::SYS_open_by_handle_at, "-1 0 0", libc::EPERM),
    ("bpf", libc::SYS_bpf, "9999 0 0", libc::EPERM),
    ("perf_event_open", libc::SYS_perf_event_open, "0 0 0 0 0", libc::EPERM),
    ("init_module", libc::SYS_init_module, "0 0 0", libc::EPERM),
    ("pidfd_getfd", libc::SYS_pidfd_getfd, "-1 0 0", libc::EPERM),
    ("syslog", libc::SYS_syslog, "3 0 0", libc::EPERM),
    ("clock_settime", libc::SYS_clock_settime, "99 0", libc::EPERM),
    ("swapon", libc::SYS_swapon, "0 0", libc::ENOSYS),
    ("userfaultfd", libc::SYS_userfaultfd, "65535", libc::ENOSYS),
    ("io_uring_setup", libc::SYS_io_uring_setup, "0 0", libc::ENOSYS),
    ("get_mempolicy", libc::SYS_get_mempolicy, "0 0 0 0 0", libc::EPERM),
    // ADDR_NO_RANDOMIZE
    ("personality", libc::SYS_personality, "262144", libc::ENOSYS),
    // AF_VSOCK, AF_ALG
    ("socket", libc::SYS_socket, "40 1 0", libc::ENOSYS),
    ("socket", libc::SYS_socket, "38 5 0", libc::ENOSYS),
];

fn errors_of_calls(fixture: &Fixture, runtime: &str, template: impl Fn(&str) -> TemplateBuilder) -> Vec<i32> {
    let lines: Vec<_> =
        CALLS.iter().map(|(_, number, arguments, _)| format!("probe {number} {arguments}; echo $?")).collect();
    let seen = printed(fixture, runtime, template(&lines.join("\n")));
    seen.lines().map(|line| line.parse().unwrap_or_else(|_| panic!("{seen}"))).collect()
}

#[test]
fn the_profile_blocks_dangerous_system_calls() {
    let fixture = Fixture::new();
    fixture.add_probe();
    let expected: Vec<_> = CALLS.iter().map(|(.., error)| *error).collect();
    let able = [
        Capability::BlockSuspend,
        Capability::DacReadSearch,
        Capability::SysAdmin,
        Capability::SysModule,
        Capability::SysPtrace,
        Capability::SysTime,
        Capability::Syslog,
    ];
    for runtime in RUNTIMES {
        assert_eq!(errors_of_calls(&fixture, runtime, shell), expected, "{runtime}");
        assert_eq!(errors_of_calls(&fixture, runtime, |script| shell(script).user(1000, 1000)), expected, "{runtime}");
        let unconfined = |script: &str| shell(script).seccomp(Seccomp::Unconfined).capabilities(able);
        let reached = errors_of_calls(&fixture, runtime, unconfined);
        for ((name, _, arguments, error), reached) in CALLS.iter().zip(reached) {
            assert_ne!(reached, *error, "{runtime}: {name} {arguments} shows no difference without a profile");
        }
    }
}

/// A process outside the container, which ends with the test.
struct Outside(Child);

impl Drop for Outside {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn processes_outside_can_be_neither_seen_nor_reached() {
    let fixture = Fixture::new();
    fixture.add_probe();
    let outside = std::iter::repeat_with(|| Outside(Command::new("sleep").arg("1000").spawn().unwrap()));
    // A PID above 100 does not exist in the container's own PID namespace.
    let outside = outside.into_iter().find(|outside| outside.0.id() > 100).unwrap();
    let pid = outside.0.id();
    // PTRACE_ATTACH, and other calls that take a PID.
    let calls = |pid: &str| {
        let calls = [
            format!("{} 16 {pid} 0 0", libc::SYS_ptrace),
            format!("{} {pid} 0 0 0", libc::SYS_prlimit64),
            format!("{} {pid} 0", libc::SYS_pidfd_open),
            format!("{} {pid} 0", libc::SYS_kill),
        ];
        calls.map(|call| format!("probe {call}; echo $?")).join("\n")
    };
    for runtime in RUNTIMES {
        let seen = printed(&fixture, runtime, shell(&calls(&pid.to_string())));
        assert_eq!(seen, format!("{}\n", libc::ESRCH).repeat(4), "{runtime}");
        // This process waits for a writer that never comes. It first reports that it executes no
        // other program: if a traced process executes a program and its tracer then ends, the
        // kernel kills it.
        let own = format!(
            "mknod /says p; mknod /waits p
            sh -c 'echo > /says; read line < /waits' & read line < /says
            {}",
            calls("$!")
        );
        assert_eq!(printed(&fixture, runtime, shell(&own)), "0\n".repeat(4), "{runtime}");

        // /proc lists only the init and the shell. The shell starts no other program for this.
        let seen = printed(
            &fixture,
            runtime,
            shell("set -- /proc/[0-9]*; [ \"$*\" = \"/proc/1 /proc/$$\" ] && echo alone || echo $*"),
        );
        assert_eq!(seen, "alone\n", "{runtime}");
    }
}

#[test]
fn no_new_privileges_disarms_set_user_id_programs() {
    let fixture = Fixture::new();
    fixture.add_probe();
    fs::set_permissions(fixture.base().fs().join("bin/probe"), fs::Permissions::from_mode(0o4755)).unwrap();
    let script = format!("probe {} 0; echo $?", libc::SYS_setuid);
    for runtime in RUNTIMES {
        for (choice, error) in [(NoNewPrivileges::Off, 0), (NoNewPrivileges::On, libc::EPERM)] {
            let template = shell(&script).user(1000, 1000).no_new_privileges(choice);
            assert_eq!(printed(&fixture, runtime, template), format!("{error}\n"), "{runtime} {choice:?}");
        }
    }
}

/// Returns every path below `dir`, with metadata that any write would change.
fn state(dir: &Path, depth: usize) -> Vec<(PathBuf, u64, u32, i64, i64)> {
    let entries = walkdir::WalkDir::new(dir).max_depth(depth).sort_by_file_name().into_iter();
    let seen = entries.map(|entry| {
        let (path, metadata) = entry.map(|entry| (entry.path().to_owned(), entry.metadata().unwrap())).unwrap();
        (path, metadata.ino(), metadata.mode(), metadata.mtime(), metadata.mtime_nsec())
    });
    seen.collect()
}

/// In the layers, a link replaces a directory that the runner writes into or the runtime mounts on.
#[test]
fn links_in_place_of_mount_points_lead_nowhere() {
    let fixture = Fixture::new();
    // Overlays over the directories that the links lead to, as the runs see them. Other programs
    // write to the machine's own directories.
    let written = HOSTS.map(|dir| fixture.path().join(dir.trim_start_matches('/')).join("upper"));
    in_private_mount_namespace(|| {
        let mounts = HOSTS.iter().zip(&written).map(|(dir, upper)| {
            let work = upper.with_file_name("work");
            [upper, &work].iter().for_each(|dir| fs::create_dir_all(dir).unwrap());
            Overlay::new([dir]).writable(upper, work).mount(*dir).unwrap()
        });
        let mounts: Vec<_> = mounts.collect();
        check_links_in_place_of_mount_points(&fixture, &written);
        mounts.into_iter().for_each(|mount| mount.unmount().unwrap());
    })
    .unwrap();
}

const HOSTS: [&str; 3] = ["/root", "/etc", "/usr"];

fn check_links_in_place_of_mount_points(fixture: &Fixture, written: &[PathBuf]) {
    let outside = fixture.path().join("outside");
    fs::create_dir_all(outside.join("sub")).unwrap();
    fs::write(outside.join("hosts"), "precious").unwrap();
    let above = format!("{}{}", "../".repeat(40), outside.strip_prefix("/").unwrap().display());
    let host = || {
        let written: Vec<_> = written.iter().flat_map(|upper| state(upper, 9)).collect();
        (state(&outside, 9), written, Path::new("/written").exists())
    };
    let before = host();
    assert_eq!(before.1.len(), written.len(), "only the directories themselves exist");
    for runtime in RUNTIMES {
        for name in ["etc", "proc", "dev", "sys", "tmp"] {
            for target in ["/", "..", "../../../..", "/root", "/etc", "/usr", outside.to_str().unwrap(), &above] {
                let hostile = fixture.layer(format!("{runtime}-{name}"), |tree| {
                    let link = tree.join(name);
                    let _ = fs::remove_file(&link);
                    symlink(target, link).unwrap();
                });
                let script = format!("[ -e {} ] && echo out; echo x > /{name}/written; echo ran", outside.display());
                let result = run(fixture, runtime, &[hostile], &shell(&script).build().unwrap());
                let case = format!("{runtime}: {name} -> {target}");
                match result {
                    Ok(report) => assert_eq!(stdout(&report), "ran\n", "{case}"),
                    Err(error) => match error.cause() {
                        Cause::Container(ContainerError::LinkedMountPoint { path }) => assert!(path.ends_with(name)),
                        // The link leads nowhere or to itself inside the container, or the runtime
                        // refuses the mount.
                        Cause::Container(ContainerError::Io { .. }) if name == "etc" || name == "tmp" => {}
                        Cause::Container(ContainerError::Runtime { .. }) if name == "tmp" => {}
                        other => panic!("{case}: {other:?}"),
                    },
                }
                assert_eq!(host(), before, "{case}");
            }
        }
    }
}

/// In the layers, links replace the files that the runner writes into the upper, and the target of
/// a mount.
#[test]
fn links_in_place_of_files_lead_nowhere() {
    let fixture = Fixture::new();
    let outside = fixture.path().join("outside");
    fs::create_dir(&outside).unwrap();
    for name in ["hosts", "resolv.conf", "target"] {
        fs::write(outside.join(name), "precious").unwrap();
    }
    let hostile = [fixture.layer("hostile", |tree| {
        fs::create_dir(tree.join("etc")).unwrap();
        for (link, name) in
            [("etc/hosts", "hosts"), ("etc/resolv.conf", "resolv.conf"), ("target", "target"), ("dir", "")]
        {
            symlink(outside.join(name), tree.join(link)).unwrap();
        }
    })];
    let source = fixture.path().join("source");
    fs::write(&source, "source").unwrap();
    let before = state(&outside, 9);
    for runtime in RUNTIMES {
        let script =
            "cat /target; for file in /etc/hosts /etc/resolv.conf /target; do [ -f $file ] && echo x > $file; done";
        let template = shell(script).network(Network::Host).mount(Mount::bind(&source, "/target"));
        let report = run(&fixture, runtime, &hostile, &template.build().unwrap()).unwrap();
        assert!(stdout(&report).starts_with("source"), "{runtime}: {}{}", stdout(&report), stderr(&report));
        let upper = report.upper.path();
        for name in ["etc/hosts", "etc/resolv.conf", "target"] {
            assert!(fs::symlink_metadata(upper.join(name)).unwrap().is_file(), "{runtime}: {name}");
        }
        fs::write(&source, "source").unwrap();

        let below = shell("true").mount(Mount::bind(&source, "/dir/new")).build().unwrap();
        assert!(run(&fixture, runtime, &hostile, &below).is_err(), "{runtime}");
        assert_eq!(state(&outside, 9), before, "{runtime}");
    }
}

/// The caller passes an open directory of the host to every program that it starts, and the working
/// directory leads there.
#[test]
fn working_directories_that_lead_out_are_refused() {
    let fixture = Fixture::new();
    let outside = fixture.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    let bound = fixture.path().join("bound");
    fs::create_dir(&bound).unwrap();
    symlink("/proc/self/cwd/../..", bound.join("link")).unwrap();
    let hostile = fixture.layer("hostile", |tree| {
        let links = [
            ("build", "/proc/self/fd/9"),
            ("chain", "build"),
            ("self", "proc/self"),
            ("fd", "dev/fd/9"),
            ("fine", "/root/../new/dir"),
            ("bound-link", "bound/link"),
        ];
        links.iter().for_each(|(link, target)| symlink(target, tree.join(link)).unwrap());
    });
    let out = [
        ("/build", "/proc/self/fd/9"),
        ("/build/..", "/proc/self/fd/9/.."),
        ("/chain", "/proc/self/fd/9"),
        ("/self/root", "/proc/self/root"),
        ("/fd", "/proc/self/fd/9"),
        ("/dev/fd/9", "/proc/self/fd/9"),
        ("/proc/self/fd/9", "/proc/self/fd/9"),
        ("/proc/1/root", "/proc/1/root"),
        ("/bound/link", "/proc/self/cwd/../.."),
        ("/bound-link", "/proc/self/cwd/../.."),
    ];
    let fine =
        [("/fine", "/new/dir"), ("/root", "/root"), ("/bound", "/bound"), ("/tmp/new", "/tmp/new"), ("/proc", "/proc")];
    let before = state(&outside, 9);
    for runtime in RUNTIMES {
        let run = |cwd: &str| {
            let layered = fixture.layered_run();
            let mut bash = Command::new(find("bash"));
            bash.args(["-c", "exec 9<\"$0\"; exec \"$@\""]).arg(&outside);
            bash.arg(layered.get_program()).args(layered.get_args()).arg("--layer").arg(hostile.path());
            bash.args(["--runtime", runtime, "--cwd", cwd, "--mount"]);
            bash.arg(format!("type=bind,source={},target=/bound", bound.display()));
            bash.args(["--", "sh", "-c", "pwd; cat secret; echo x > written"]);
            bash.stdin(std::process::Stdio::null()).output().unwrap()
        };
        for (cwd, target) in out {
            let output = run(cwd);
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(
                (output.status.code(), &*output.stdout, stderr.lines().count()),
                (Some(125), &b""[..], 1),
                "{stderr}"
            );
            let expected = format!("the working directory {cwd} leads to {target}, in /proc, ");
            assert!(stderr.contains(&expected), "{runtime} {cwd}: {stderr}");
            fixture.assert_clean();
        }
        for (cwd, expected) in fine {
            let output = run(cwd);
            assert_eq!(output.stdout, format!("{expected}\n").into_bytes(), "{runtime} {cwd}: {output:?}");
        }
        assert_eq!(state(&outside, 9), before, "{runtime}");
    }
    // A configuration from a file gets the same check.
    let value = serde_json::to_value(shell("pwd").cwd("/build").build().unwrap()).unwrap();
    let error = run(&fixture, "crun", &[hostile], &Template::from_value(value).unwrap()).unwrap_err();
    assert!(matches!(error.cause(), Cause::Container(ContainerError::StrayWorkingDirectory { .. })), "{error:?}");
}

/// The container finds the paths of the run's directories in its mount table.
#[test]
fn a_container_cannot_reach_the_scratch_directory() {
    let fixture = Fixture::new();
    let script = "dir=$(sed -n 's/.*upperdir=\\([^,]*\\)\\/upper.*/\\1/p' /proc/self/mountinfo | head -n 1); echo \"$dir\"
        for from in '' /../../../.. /proc/1/root /proc/1/cwd/../../.. /proc/self/root/../..; do ls -d \"$from$dir\" 2>/dev/null; done";
    let mut names = Vec::new();
    for runtime in RUNTIMES {
        let report = run(&fixture, runtime, &[], &shell(script).build().unwrap()).unwrap();
        let dir = report.upper.path().parent().unwrap().to_owned();
        assert_eq!(stdout(&report), format!("{}\n", dir.display()), "{runtime}");
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o7777, 0o700);
        names.push(dir.file_name().unwrap().to_str().unwrap().to_owned());
    }
    assert_ne!(names[0], names[1]);
    assert!(names.iter().all(|name| name.len() == "layered-0123456789abcdef".len()), "{names:?}");
}

/// The scratch directory is writable by others, and another user makes a directory with the name of
/// a run.
#[test]
fn a_sweep_ignores_directories_of_other_users() {
    let fixture = Fixture::new();
    let planted = fixture.scratch().join("layered-0123456789abcdef");
    fs::create_dir(&planted).unwrap();
    std::os::unix::fs::chown(&planted, Some(1000), Some(1000)).unwrap();
    let swept = runner::sweep(fixture.scratch()).unwrap();
    assert_eq!((swept.removed.len(), swept.live, swept.failed.len()), (0, 0, 0));
    std::os::unix::fs::chown(&planted, Some(0), Some(0)).unwrap();
    assert_eq!(runner::sweep(fixture.scratch()).unwrap().removed, [planted]);
}
