//! What a container finds besides its layers: files in `/etc`, binds, users, limits, namespaces.
//! Attempts to escape from it are in module `breakout`.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use container::{Mount, Network, Output, Runtime, Template, in_private_mount_namespace};
use integration_tests::{FOR_EVER, Fixture, RUNTIMES, WHO, find, shell, stderr, stdout, write_script};
use layer::Layer;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use runner::{Cause, EtcFiles, Report};
use walkdir::WalkDir;

/// Returns the paths that the run created in the upper.
fn made(report: &Report) -> Vec<PathBuf> {
    report.made.iter().map(|made| made.path().to_path_buf()).collect()
}

fn run(fixture: &Fixture, layers: &[Layer], template: container::TemplateBuilder) -> Report {
    runner::run(&fixture.base(), layers, &template.build().unwrap(), fixture.options()).unwrap()
}

#[test]
fn hosts_and_resolv_conf_are_written_into_the_upper() {
    let fixture = Fixture::new();
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let etc = fixture.base().fs().join("etc");
    // Distributions have this link.
    symlink("../run/systemd/resolve/stub-resolv.conf", etc.join("resolv.conf")).unwrap();
    fs::File::open(&etc).unwrap().set_modified(long_ago).unwrap();

    // Without its own host name, the container shows the host's.
    let report = run(&fixture, &[], shell("cat /etc/hosts; echo; hostname"));
    let (hosts, hostname) =
        stdout(&report).split_once("\n\n").map(|(hosts, name)| (hosts.to_string(), name.to_string())).unwrap();
    assert!(hosts.ends_with(&format!("\t{}", hostname.trim())), "{hosts}");

    let report = run(&fixture, &[], shell("cat /etc/hosts; stat -c %Y /etc").hostname("box"));
    let expected = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.0.1\tbox\n1000000000\n";
    assert_eq!(stdout(&report), expected);
    assert_eq!(made(&report), ["/etc/hosts", "/proc", "/dev", "/sys"].map(PathBuf::from));
    assert!(fs::symlink_metadata(report.upper.path().join("etc/resolv.conf")).is_err());

    // Other programs may change the host's files at any time, so the run sees stand-ins in their
    // place.
    let host = ["/etc/hosts", "/etc/resolv.conf"].map(|path| {
        let stand_in = fixture.path().join(path.trim_start_matches("/etc/"));
        // The file contains the host's name, so the run adds nothing to it.
        fs::write(&stand_in, format!("# {path} of the host\n127.0.0.1\t{hostname}")).unwrap();
        (stand_in, path)
    });
    let report = in_private_mount_namespace(|| {
        for (stand_in, path) in &host {
            mount(Some(stand_in), *path, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        }
        run(&fixture, &[], shell("cat /etc/hosts /etc/resolv.conf").network(Network::Host))
    });
    let report = report.unwrap();
    assert_eq!(stdout(&report), host.map(|(stand_in, _)| fs::read_to_string(stand_in).unwrap()).concat());
    assert_eq!(made(&report), ["/etc/hosts", "/etc/resolv.conf", "/proc", "/dev", "/sys"].map(PathBuf::from));
    // The run does not change the layer's link.
    assert!(fs::symlink_metadata(etc.join("resolv.conf")).unwrap().is_symlink());
}

#[test]
fn etc_files_of_the_caller_or_of_the_layers_are_kept() {
    let fixture = Fixture::new();
    fs::write(fixture.base().fs().join("etc/hosts"), "base\n").unwrap();
    let options = || fixture.options().stdout(Output::Capture(Default::default()));
    let callers = options().prep_upper(|upper, _| {
        fs::create_dir(upper.join("etc"))?;
        Ok(fs::write(upper.join("etc/hosts"), "caller\n")?)
    });
    assert_eq!(stdout(&fixture.run_with(&[], "cat /etc/hosts", callers)), "caller\n");
    let layers = options().etc_files(EtcFiles::FromLayers);
    let report = fixture.run_with(&[], "cat /etc/hosts", layers);
    assert_eq!(
        (stdout(&report), &*made(&report)),
        ("base\n".into(), &["/proc", "/dev", "/sys"].map(PathBuf::from)[..])
    );
}

#[test]
fn files_and_directories_are_bind_mounted() {
    let fixture = Fixture::new();
    let sources = fixture.path().join("sources");
    fs::create_dir(&sources).unwrap();
    fs::write(sources.join("file"), "bound\n").unwrap();
    let template = shell("cat /src/file /conf/one /tmp/two; echo more >> /src/file; echo no > /conf/one")
        .mount(Mount::bind(&sources, "/src"))
        .mount(Mount::bind(sources.join("file"), "/conf/one").read_only())
        // The target is below one of the template's own mounts.
        .mount(Mount::bind(sources.join("file"), "/tmp/two"));
    let report = run(&fixture, &[], template);
    assert_eq!(stdout(&report), "bound\n".repeat(3));
    assert!(stderr(&report).contains("Read-only file system"), "{}", stderr(&report));
    assert_eq!(fs::read(sources.join("file")).unwrap(), b"bound\nmore\n");
    assert_eq!(made(&report), ["/etc/hosts", "/proc", "/dev", "/sys", "/src", "/conf", "/conf/one"].map(PathBuf::from));
    assert_eq!(fs::metadata(report.upper.path().join("conf/one")).unwrap().len(), 0);
}

#[test]
fn a_bind_onto_a_dangling_link_works() {
    let fixture = Fixture::new();
    // Distributions have this link.
    let link = fixture.base().fs().join("etc/resolv.conf");
    symlink("../run/systemd/resolve/stub-resolv.conf", &link).unwrap();
    let source = fixture.path().join("resolv.conf");
    fs::write(&source, "nameserver ::1\n").unwrap();
    let template = shell("cat /etc/resolv.conf").mount(Mount::bind(&source, "/etc/resolv.conf"));
    assert_eq!(stdout(&run(&fixture, &[], template)), "nameserver ::1\n");
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
}

#[test]
fn user_working_directory_and_environment_are_set() {
    let fixture = Fixture::new();
    let template =
        shell("id -u; id -g; pwd; echo $GREETING; hostname; touch /tmp/mine && echo may || echo may not; touch /x")
            .user(1000, 100)
            .cwd("/tmp")
            .env("GREETING", "good day")
            .hostname("box");
    let report = run(&fixture, &[], template);
    assert_eq!(stdout(&report), "1000\n100\n/tmp\ngood day\nbox\nmay\n");
    assert!(!report.status.success());
}

#[test]
fn users_groups_and_home_come_from_the_stack() {
    let fixture = Fixture::new();
    let layers = [fixture.layer_with_users()];
    for runtime in RUNTIMES {
        let says = |layers: &[Layer], template: &Template| {
            let options = fixture.options().runtime(Runtime::new(runtime));
            let report = runner::run(&fixture.base(), layers, template, options).unwrap();
            let meta = report.meta();
            (stdout(&report), (meta.uid, meta.gid))
        };
        let table = [
            ("0", "0 0 /root\n", (0, 0)),
            ("1000", "1000 1000 /home/opam\n", (1000, 1000)),
            ("4242:5", "4242 5 /\n", (4242, 5)),
            ("opam", "1000 1001 10 50 /home/opam\n", (1000, 1001)),
            ("opam:staff", "1000 50 /home/opam\n", (1000, 50)),
            ("opam:7", "1000 7 /home/opam\n", (1000, 7)),
            ("4242:wheel", "4242 10 /\n", (4242, 10)),
        ];
        for (user, expected, numbers) in table {
            let template = shell(WHO).user_spec(user.parse().unwrap()).build().unwrap();
            assert_eq!(says(&layers, &template), (expected.into(), numbers), "{runtime} {user}");
            // The same holds for a template from a file, and for one without an environment except
            // for what a shell needs.
            let mut value = serde_json::to_value(&template).unwrap();
            let saved = Template::from_value(value.clone()).unwrap();
            assert_eq!(says(&layers, &saved), (expected.into(), numbers), "{runtime} {user}");
            value["process"].as_object_mut().unwrap().remove("env");
            value["process"]["args"] = serde_json::json!(["/bin/busybox", "env"]);
            let home = expected.trim_end().rsplit(' ').next().unwrap();
            let (seen, _) = says(&layers, &Template::from_value(value).unwrap());
            assert!(seen.lines().any(|line| line == format!("HOME={home}")), "{runtime} {user}: {seen}");
        }
        // The caller's `HOME` is kept. A base without users has no home directories, so `HOME` is
        // `/`.
        let own = shell(WHO).user_spec("opam".parse().unwrap()).env("HOME", "/build").build().unwrap();
        assert_eq!(says(&layers, &own).0, "1000 1001 10 50 /build\n", "{runtime}");
        assert_eq!(says(&[], &shell(WHO).user(1000, 1000).build().unwrap()).0, "1000 1000 /\n", "{runtime}");
    }
    let template = shell("true").user_spec("opem".parse().unwrap()).build().unwrap();
    let error = runner::run(&fixture.base(), &layers, &template, fixture.options()).unwrap_err();
    let Cause::Container(container::Error::UnknownUser { kind, name, file }) = error.cause() else {
        panic!("{error:?}")
    };
    assert_eq!((*kind, &**name, &**file), ("user", "opem", Path::new("/etc/passwd")));
}

#[test]
fn a_created_working_directory_belongs_to_the_user() {
    let fixture = Fixture::new();
    let layers = [
        fixture.layer_with_users(),
        fixture.layer("srv", |fs| {
            fs::create_dir(fs.join("srv")).unwrap();
            fs::set_permissions(fs.join("srv"), fs::Permissions::from_mode(0o755)).unwrap();
        }),
    ];
    let sources = fixture.path().join("sources");
    fs::create_dir(&sources).unwrap();
    for runtime in RUNTIMES {
        let run = |script: &str, user: &str, cwd: &str| {
            let template = shell(script).user_spec(user.parse().unwrap()).cwd(cwd);
            let template = template.mount(Mount::bind(&sources, "/srv/build/src")).build().unwrap();
            let options = fixture.options().runtime(Runtime::new(runtime));
            runner::run(&fixture.base(), &layers, &template, options).unwrap()
        };
        let owners = "stat -c '%u:%g %a %n' . .. ../..; pwd; touch mine";
        let table = [
            ("opam", "/srv/new/deep", "1000:1001 755 .\n1000:1001 755 ..\n0:0 755 ../..\n/srv/new/deep\n"),
            ("4242:5", "/srv/new/deep", "4242:5 755 .\n4242:5 755 ..\n0:0 755 ../..\n/srv/new/deep\n"),
            ("0:5", "/srv/new/deep", "0:5 755 .\n0:5 755 ..\n0:0 755 ../..\n/srv/new/deep\n"),
            ("0", "/srv/new/deep", "0:0 755 .\n0:0 755 ..\n0:0 755 ../..\n/srv/new/deep\n"),
            // The bind's mount point is inside this working directory.
            ("opam", "/srv/build", "1000:1001 755 .\n0:0 755 ..\n0:0 755 ../..\n/srv/build\n"),
        ];
        for (user, cwd, expected) in table {
            let report = run(owners, user, cwd);
            assert_eq!((stdout(&report), report.status.success()), (expected.into(), true), "{runtime} {user} {cwd}");
            assert!(report.upper.path().join(cwd.trim_start_matches('/')).join("mine").exists());
        }
        // An existing directory keeps its owner.
        let report = run(owners, "opam", "/srv");
        assert_eq!(
            (stdout(&report), report.status.success()),
            ("0:0 755 .\n0:0 755 ..\n0:0 755 ../..\n/srv\n".into(), false)
        );

        // A directory that the command did not change is not part of the layer.
        for (script, left) in
            [("true", &[][..]), ("touch mine", &["srv", "srv/new", "srv/new/deep", "srv/new/deep/mine"])]
        {
            let report = run(script, "opam", "/srv/new/deep");
            assert!(made(&report).contains(&PathBuf::from("/srv/new/deep")), "{:?}", made(&report));
            let (capture, meta) = (report.capture(), report.meta());
            let layer = Layer::at(fixture.store().join(format!("{runtime}-{}", left.len())));
            report.upper.capture(&capture, &layer, meta).unwrap();
            let names: Vec<_> = WalkDir::new(layer.fs()).min_depth(1).sort_by_file_name().into_iter().collect();
            let names: Vec<_> = names.into_iter().map(|entry| entry.unwrap().into_path()).collect();
            assert_eq!(names, left.iter().map(|name| layer.fs().join(name)).collect::<Vec<_>>(), "{runtime}");
        }
    }
}

#[test]
fn a_file_of_another_user_keeps_its_owner() {
    let fixture = Fixture::new();
    let root = fixture.base().fs().join("root");
    std::os::unix::fs::chown(&root, Some(12), Some(34)).unwrap();
    let report = run(&fixture, &[], shell("echo x > /root/x"));
    let metadata = fs::metadata(report.upper.path().join("root")).unwrap();
    assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (12, 34, 0o700));
}

#[test]
fn a_container_has_only_a_loopback_network() {
    let fixture = Fixture::new();
    assert_eq!(stdout(&run(&fixture, &[], shell("ls /sys/class/net"))), "lo\n");
    // Two processes share a network namespace if this file has the same inode number
    // (namespaces(7)). The host's list of devices may change at any time.
    let script = "stat -L -c %i /proc/self/ns/net";
    let host = format!("{}\n", fs::metadata("/proc/thread-self/ns/net").unwrap().ino());
    assert_ne!(stdout(&run(&fixture, &[], shell(script))), host);
    assert_eq!(stdout(&run(&fixture, &[], shell(script).network(Network::Host))), host);
}

#[test]
fn limits_of_processes_memory_and_processors_hold() {
    let fixture = Fixture::new();
    let template = |script: &str| shell(script).pids_limit(10).memory_limit_bytes(64 << 20).cpus("0").mems("0");
    // The script starts more processes than the limit allows. The shell reports the fork that fails
    // and exits.
    let report = run(&fixture, &[], template("for n in $(seq 20); do sleep 1000 & done"));
    assert!(stderr(&report).contains("can't fork"), "{}", stderr(&report));
    let report = run(&fixture, &[], template("grep _allowed_list /proc/self/status"));
    assert_eq!(stdout(&report), "Cpus_allowed_list:\t0\nMems_allowed_list:\t0\n");
    // The quota is a twentieth of a processor. The script is busy until the kernel has throttled it
    // once, which may take a while on a busy machine.
    let quota = Duration::from_millis(5);
    let script = "until grep -q 'nr_throttled [1-9]' /sys/fs/cgroup/cpu*/cpu.stat /sys/fs/cgroup/cpu.stat; do :; done";
    let template = shell(script).cpu_quota(quota, quota * 20).build().unwrap();
    let options = fixture.options().timeout(FOR_EVER);
    let report = runner::run(&fixture.base(), &[], &template, options).unwrap();
    assert!(report.status.success(), "{report:?}");
}

/// crun 1.22 and later give the command all processors.
#[test]
fn the_processors_of_the_caller_are_kept() {
    let fixture = Fixture::new();
    // The last processor that this process may use.
    let mine = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap();
    let last = (0..nix::sched::CpuSet::count()).rev().find(|processor| mine.is_set(*processor).unwrap()).unwrap();
    for runtime in RUNTIMES {
        for init in [&[][..], &["--no-init"]] {
            let run = fixture.layered_run();
            let mut pinned = Command::new(find("taskset"));
            pinned.args(["-c", &last.to_string()]).arg(run.get_program()).args(run.get_args());
            pinned.args(["--runtime", runtime]).args(init).args([
                "--",
                "grep",
                "Cpus_allowed_list",
                "/proc/self/status",
            ]);
            let output = pinned.stdin(Stdio::null()).output().unwrap();
            let stdout = String::from_utf8_lossy(&output.stdout);
            assert_eq!(stdout, format!("Cpus_allowed_list:\t{last}\n"), "{runtime} {init:?}");
        }
    }
}

/// Runs `layered run` with `options` from a shell that has executed the script `before`.
fn run_after(fixture: &Fixture, before: &str, options: &[&str], script: &str) -> (i32, String, String) {
    let run = fixture.layered_run();
    // Without CAP_SYS_RESOURCE, no process of the run can raise a hard limit.
    let mut command = Command::new(find("setpriv"));
    command.args(["--bounding-set=-sys_resource", "sh", "-c", &format!("{before}\nexec \"$@\""), "sh"]);
    command.arg(run.get_program()).args(run.get_args()).args(options).args(["--", "sh", "-c", script]);
    let output = command.env("RUST_LOG", "container=debug").stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_command_can_raise_its_limit_of_open_files() {
    let fixture = Fixture::new();
    let script = "ulimit -Sn; ulimit -Hn; ulimit -Sn $(ulimit -Hn) && ulimit -Sn";
    for runtime in ["runc", "crun"] {
        let options = ["--runtime", runtime];
        let (_, seen, stderr) = run_after(&fixture, "ulimit -n 4096", &options, script);
        assert_eq!(seen, "1024\n4096\n4096\n", "{runtime}: {stderr}");
        assert!(stderr.contains("1024 files open, and raise that to 4096, the caller's own hard limit"), "{stderr}");
        let (_, seen, stderr) = run_after(&fixture, "ulimit -n 256", &options, script);
        assert_eq!(seen, "256\n256\n256\n", "{runtime}: {stderr}");
    }
    // This process has the full limit or may raise it.
    let own = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let seen = stdout(&run(&fixture, &[], shell("ulimit -Sn; ulimit -Hn")));
    assert_eq!(seen, format!("1024\n{}\n", own.min(524_288)));
}

#[test]
fn ulimits_of_the_caller_are_set_or_refused() {
    let fixture = Fixture::new();
    let script = "ulimit -Sn; ulimit -Hn; ulimit -Sc; ulimit -Hc; ulimit -St; ulimit -Ht";
    for runtime in ["runc", "crun"] {
        let options = ["--runtime", runtime, "--ulimit", "nofile=64:128", "--ulimit", "core=0", "--ulimit", "cpu=-1"];
        let (_, seen, stderr) = run_after(&fixture, "", &options, script);
        assert_eq!(seen, "64\n128\n0\n0\nunlimited\nunlimited\n", "{runtime}: {stderr}");
    }
    let message = |limit: &str, highest: u64| {
        format!(
            "layered: runc_run: the runtime configuration cannot be used: the limit {limit} is above \
             {highest}, the most that this process may give: ask for at most that, raise the caller's own hard limit, or give it \
             CAP_SYS_RESOURCE\n"
        )
    };
    for (before, limit, expected) in [
        ("ulimit -n 256", "nofile=64:257", message("RLIMIT_NOFILE of 257", 256)),
        ("ulimit -n 256", "nofile=unlimited", message("RLIMIT_NOFILE of unlimited", 256)),
        ("ulimit -c 0", "core=1", message("RLIMIT_CORE of 1", 0)),
    ] {
        let (status, _, stderr) = run_after(&fixture, before, &["--ulimit", limit], "true");
        assert_eq!((status, stderr.lines().last().map(|line| format!("{line}\n"))), (125, Some(expected)), "{limit}");
    }
    let (status, _, stderr) = run_after(&fixture, "", &["--ulimit", "files=1"], "true");
    assert!(status == 125 && stderr.contains("the limit \"files=1\" has an unknown name \"files\""), "{stderr}");
}

#[test]
fn every_user_may_serve_any_port_of_a_private_network() {
    let fixture = Fixture::new();
    for runtime in ["runc", "crun"] {
        let options = ["--runtime", runtime, "--user", "1000"];
        let (status, _, stderr) = run_after(&fixture, "", &options, "busybox httpd -p 80 -h /tmp");
        assert_eq!(status, 0, "{runtime}: {stderr}");
    }
    // The host's network keeps its own rules.
    const START: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    let seen = stdout(&run(&fixture, &[], shell(&format!("cat {START}")).network(Network::Host)));
    assert_eq!(seen, fs::read_to_string(START).unwrap());
}

#[test]
fn files_links_sockets_and_fifos_are_bound_read_only() {
    let fixture = Fixture::new();
    let source = |name: &str| fixture.path().join(name);
    fs::write(source("file"), "content\n").unwrap();
    symlink("file", source("link")).unwrap();
    let _socket = UnixListener::bind(source("socket")).unwrap();
    mkfifo(&source("fifo"), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    for runtime in ["runc", "crun"] {
        let bind = |name: &str| Mount::bind(source(name), format!("/{name}")).read_only();
        let template = shell(
            "cat /file /link; touch /file || echo refused
            for name in file link socket fifo; do
                stat -c '%n: %F' /$name
                grep -q \" /$name ro,\" /proc/self/mountinfo || echo writable
            done",
        )
        .mount(bind("file"))
        .mount(bind("link"))
        .mount(bind("socket"))
        .mount(bind("fifo"));
        let template = template.build().unwrap();
        // A template from a file has the same support.
        for template in [Template::from_value(serde_json::to_value(&template).unwrap()).unwrap(), template] {
            let options = fixture.options().runtime(Runtime::new(find(runtime)));
            let report = runner::run(&fixture.base(), &[], &template, options).unwrap();
            let expected =
                "content\ncontent\nrefused\n/file: regular file\n/link: regular file\n/socket: socket\n/fifo: fifo\n";
            assert_eq!(stdout(&report), expected, "{runtime}: {}", stderr(&report));
        }
    }
}

/// Makes a directory that has the contents of the machine's root but is not a mount point.
fn plain_root(dir: &Path) -> PathBuf {
    let root = dir.join("plain-root");
    fs::create_dir(&root).unwrap();
    for entry in fs::read_dir("/").unwrap().map(Result::unwrap) {
        let (kind, target) = (entry.file_type().unwrap(), root.join(entry.file_name()));
        if kind.is_symlink() {
            symlink(fs::read_link(entry.path()).unwrap(), target).unwrap();
        } else if kind.is_dir() {
            fs::create_dir(&target).unwrap();
            bind_recursively(&entry.path(), &target);
        }
    }
    root
}

fn bind_recursively(source: &Path, target: &Path) {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>).unwrap();
}

#[test]
fn a_chroot_needs_a_root_that_is_a_mount_point() {
    let fixture = Fixture::new();
    let (plain, bound) = in_private_mount_namespace(|| {
        let root = plain_root(fixture.path());
        let run = || {
            let run = fixture.layered_run();
            let mut command = Command::new(find("chroot"));
            command.arg(&root).arg(run.get_program()).args(run.get_args()).args(["--", "echo", "here"]);
            command.stdin(Stdio::null()).output().unwrap()
        };
        let plain = run();
        // This is the remedy that the message names.
        bind_recursively(&root, &root);
        (plain, run())
    })
    .unwrap();
    let stderr = String::from_utf8(plain.stderr).unwrap();
    let expected = "layered: overlay_mount: cannot create a private mount namespace: / is not a mount point, as in a plain \
                    chroot; run `mount --rbind DIR DIR` before `chroot DIR`: Invalid argument (os error 22)\n";
    assert_eq!((plain.status.code(), &*stderr), (Some(125), expected));
    assert_eq!(String::from_utf8(bound.stdout).unwrap(), "here\n", "{}", String::from_utf8_lossy(&bound.stderr));
    fs::remove_dir_all(fixture.path().join("plain-root")).unwrap();
}

/// Runs `layered run` from a caller whose descriptors 3, 9 and 900 are inherited by every program
/// that it starts. Returns the exit status and standard output.
fn with_open_descriptors(fixture: &Fixture, around: &[&str], runtime: &Path, command: &[&str]) -> (i32, String) {
    let run = fixture.layered_run();
    let mut bash = Command::new(find("bash"));
    bash.args(["-c", "exec 3<\"$0\" 9<\"$0\" 900</dev/null; exec \"$@\""]).arg(fixture.path()).args(around);
    bash.arg(run.get_program()).args(run.get_args()).arg("--runtime").arg(runtime).arg("--").args(command);
    let output = bash.stdin(Stdio::null()).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn no_descriptor_of_the_caller_is_inherited() {
    let fixture = Fixture::new();
    // Descriptors 0, 1 and 2, and the directory that `ls` reads.
    const NONE: &str = "0\n1\n2\n3\n";
    for runtime in ["runc", "crun"] {
        let seen = with_open_descriptors(&fixture, &[], Path::new(runtime), &["ls", "/proc/self/fd"]);
        assert_eq!(seen, (0, NONE.into()), "{runtime}");
    }
    // The runtime inherits nothing either, but has two descriptors for the container. This runtime
    // is a script that only lists its descriptors. The second run injects ENOSYS into
    // close_range(2), for kernels without that call.
    let two_more = || (125, format!("{NONE}4\n5\n"));
    let fake = fixture.path().join("fake-runtime");
    write_script(&fake, "#!/bin/sh\nls /proc/self/fd\n");
    assert_eq!(with_open_descriptors(&fixture, &[], &fake, &["true"]), two_more());
    let log = fixture.path().join("strace");
    let strace = ["strace", "-f", "-qq", "-e", "trace=close_range", "-e", "inject=close_range:error=ENOSYS", "-o"];
    let around = [&strace[..], &[log.to_str().unwrap()]].concat();
    assert_eq!(with_open_descriptors(&fixture, &around, &fake, &["true"]), two_more());
    assert!(fs::read_to_string(log).unwrap().contains("= -1 ENOSYS"));
}

#[test]
fn a_configuration_from_a_file_is_run() {
    let fixture = Fixture::new();
    let path = fixture.path().join("config.json");
    let mut value = serde_json::to_value(shell("echo $FROM").env("FROM", "a file").build().unwrap()).unwrap();
    value["x-unknown"] = true.into();
    value["linux"]["cgroupsPath"] = "/layered-test-of-its-own".into();
    fs::write(&path, value.to_string()).unwrap();
    let template = Template::from_file(&path).unwrap();
    let report = runner::run(&fixture.base(), &[], &template, fixture.options()).unwrap();
    assert_eq!(stdout(&report), "a file\n");
}

#[test]
fn a_cgroup_named_by_a_configuration_is_removed_even_after_a_kill() {
    let fixture = Fixture::new();
    let name = container::ContainerId::random("layered-test").unwrap();
    fixture.add_run(name.as_str());
    let stubborn = shell("trap '' TERM; while :; do :; done").cgroups_path(format!("/{name}")).build().unwrap();
    for runtime in RUNTIMES {
        let options = fixture.options().runtime(Runtime::new(find(runtime)));
        let options = options.timeout(Duration::from_millis(500)).grace(Duration::from_millis(10));
        let report = runner::run(&fixture.base(), &[], &stubborn, options).unwrap();
        assert_eq!(report.status, container::Status::TimedOut, "{runtime}");
        drop(report);
        fixture.assert_clean();
    }
}
