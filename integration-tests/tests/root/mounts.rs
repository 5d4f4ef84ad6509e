//! Overlays without a run: the crate `container` on its own. `ladder` compares what the mounts
//! show.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use container::{
    Bundle, Cancel, CaptureLimit, ContainerId, DeviceNodes, Error, LowerNames, Mount, MountApi, Output, Overlay,
    Runtime, Status, Supervision, Template, in_private_mount_namespace, run_in,
};
use integration_tests::tree::Snapshot;
use integration_tests::{Done, Fixture, shell, until_it_waits};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

struct Dirs {
    lowers: Vec<PathBuf>,
    upper: PathBuf,
    work: PathBuf,
    merged: PathBuf,
}

impl Dirs {
    fn new(fixture: &Fixture) -> Self {
        let dir = |name: &str| {
            let path = fixture.path().join(name);
            fs::create_dir(&path).unwrap();
            path
        };
        let lowers = ["one", "two"].map(dir).to_vec();
        for (lower, name) in lowers.iter().zip(["1", "2"]) {
            fs::write(lower.join(name), "").unwrap();
        }
        Self { lowers, upper: dir("upper"), work: dir("work"), merged: dir("merged") }
    }

    fn overlay(&self) -> Overlay {
        Overlay::new(&self.lowers).writable(&self.upper, &self.work)
    }
}

/// Returns the line of a mount point in the mount table, or an empty string.
fn options_of(mount_point: &Path) -> String {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.contains(&format!(" {} ", mount_point.display())));
    line.unwrap_or_default().into()
}

#[test]
fn every_api_mounts_with_every_kind_of_names() {
    let fixture = Fixture::new();
    let dirs = Dirs::new(&fixture);
    in_private_mount_namespace(|| {
        for api in [MountApi::Fsconfig, MountApi::Mount2] {
            for names in [LowerNames::Paths, LowerNames::Short] {
                // A volatile work directory can be used once.
                fs::remove_dir_all(&dirs.work).unwrap();
                fs::create_dir(&dirs.work).unwrap();
                let mounted = dirs.overlay().api(api).names(names).mount(&dirs.merged).unwrap();
                assert!(dirs.merged.join("1").exists() && dirs.merged.join("2").exists());
                let options = options_of(&dirs.merged);
                assert!(options.contains("redirect_dir=nofollow") && options.contains("volatile"), "{options}");
                assert_eq!(options.contains("/one"), names == LowerNames::Paths, "{options}");
                assert_eq!((mounted.api(), mounted.names(), mounted.path()), (api, names, &*dirs.merged));
                mounted.unmount().unwrap();
                assert_eq!(options_of(&dirs.merged), "");
            }
        }
    })
    .unwrap();
}

/// No thread sees another working directory during a mount, and the caller's is the same
/// afterwards, even after a failure.
#[test]
fn a_mount_changes_no_working_directory() {
    let fixture = Fixture::new();
    let dirs = Dirs::new(&fixture);
    let overlay = Overlay::new(&dirs.lowers).names(LowerNames::Short);
    let here = std::env::current_dir().unwrap();
    in_private_mount_namespace(|| {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                let elsewhere = || std::env::current_dir().unwrap() != here;
                (0..).take_while(|_| !over.load(Ordering::Relaxed)).any(|_| elsewhere())
            });
            let done = Done(&over);
            for _ in 0..200 {
                overlay.mount(&dirs.merged).unwrap().unmount().unwrap();
                assert_eq!(std::env::current_dir().unwrap(), here);
            }
            fs::remove_dir_all(&dirs.lowers[1]).unwrap();
            overlay.mount(&dirs.merged).unwrap_err();
            assert_eq!(std::env::current_dir().unwrap(), here);
            drop(done);
            assert!(!other.join().unwrap(), "another thread saw another working directory");
        });
    })
    .unwrap();
}

#[test]
fn a_dropped_guard_unmounts() {
    let fixture = Fixture::new();
    let dirs = Dirs::new(&fixture);
    in_private_mount_namespace(|| {
        drop(dirs.overlay().mount(&dirs.merged).unwrap());
        assert_eq!(options_of(&dirs.merged), "");
    })
    .unwrap();
}

#[test]
fn a_busy_mount_is_reported_and_stays() {
    let fixture = Fixture::new();
    let dirs = Dirs::new(&fixture);
    in_private_mount_namespace(|| {
        let mounted = dirs.overlay().mount(&dirs.merged).unwrap();
        let file = fs::File::create(dirs.merged.join("open")).unwrap();
        match mounted.unmount().unwrap_err() {
            Error::Unmount { target, source } => {
                assert_eq!((target, source.raw_os_error()), (dirs.merged.clone(), Some(nix::libc::EBUSY)));
            }
            other => panic!("{other:?}"),
        }
        assert!(dirs.merged.join("1").exists());
        drop(file);
        // A process that another test starts may briefly have the file open, too.
        nix::mount::umount2(&dirs.merged, nix::mount::MntFlags::MNT_DETACH).unwrap();
        assert!(dirs.upper.join("open").exists());
    })
    .unwrap();
}

#[test]
fn a_mount_that_is_briefly_busy_is_unmounted() {
    let fixture = Fixture::new();
    let dirs = Dirs::new(&fixture);
    in_private_mount_namespace(|| {
        let mounted = dirs.overlay().mount(&dirs.merged).unwrap();
        let file = fs::File::create(dirs.merged.join("open")).unwrap();
        let unmounting = rustix::thread::gettid();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                until_it_waits(unmounting);
                drop(file);
            });
            mounted.unmount().unwrap();
        });
        assert_eq!(options_of(&dirs.merged), "");
    })
    .unwrap();
}

#[test]
fn a_private_mount_is_invisible_to_other_processes() {
    let fixture = Fixture::new();
    let dirs = Dirs::new(&fixture);
    in_private_mount_namespace(|| {
        let mounted = dirs.overlay().mount(&dirs.merged).unwrap();
        let host = fs::read_to_string("/proc/1/mountinfo").unwrap();
        assert!(!host.contains(dirs.merged.to_str().unwrap()));
        mounted.unmount().unwrap();
    })
    .unwrap();
}

#[test]
fn a_refused_mount_is_reported_in_the_kernels_words() {
    let fixture = Fixture::new();
    let dirs = Dirs::new(&fixture);
    let missing = fixture.path().join("missing");
    in_private_mount_namespace(|| {
        for api in [MountApi::Fsconfig, MountApi::Mount2] {
            let refused = |overlay: Overlay, target: &Path| {
                // A failed mount may have left a mark in the work directory.
                fs::remove_dir_all(&dirs.work).unwrap();
                fs::create_dir(&dirs.work).unwrap();
                overlay.api(api).mount(target).unwrap_err().to_string()
            };
            let twice = Overlay::new([&dirs.lowers[0], &dirs.lowers[0]]).writable(&dirs.upper, &dirs.work);
            let message = refused(twice, &dirs.merged);
            assert!(message.contains("given twice"), "{message}");
            let message = refused(dirs.overlay(), &missing);
            assert!(message.contains("missing"), "{message}");
            let file = dirs.lowers[0].join("1");
            let message = refused(Overlay::new([&file, &dirs.lowers[0]]).names(LowerNames::Paths), &dirs.merged);
            // mount(2) returns no message.
            assert!(api == MountApi::Mount2 || message.contains("kernel: "), "{message}");
            fs::create_dir_all(dirs.upper.join("work")).unwrap();
            let nested = Overlay::new(&dirs.lowers).writable(&dirs.upper, dirs.upper.join("work"));
            assert!(refused(nested, &dirs.merged).contains("dmesg"), "{api:?}");
        }
    })
    .unwrap();
    assert_eq!(options_of(&dirs.merged), "");
}

#[test]
fn inert_device_nodes_cannot_be_opened() {
    let fixture = Fixture::new();
    let dirs = Dirs::new(&fixture);
    mknod(&dirs.lowers[0].join("null"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 3)).unwrap();
    in_private_mount_namespace(|| {
        let mounted = dirs.overlay().mount(&dirs.merged).unwrap();
        fs::File::open(dirs.merged.join("null")).unwrap();
        mounted.unmount().unwrap();
        fs::remove_dir_all(&dirs.work).unwrap();
        fs::create_dir(&dirs.work).unwrap();
        let mounted = dirs.overlay().devices(DeviceNodes::Inert).mount(&dirs.merged).unwrap();
        let error = fs::File::open(dirs.merged.join("null")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::libc::EACCES));
        mounted.unmount().unwrap();
    })
    .unwrap();
}

/// The caller has no private mount namespace and uses a relative path, as in the README.
#[test]
fn a_container_runs_over_a_plain_directory() {
    for runtime in ["runc", "crun"] {
        let fixture = Fixture::new();
        let template = shell("echo $HOME > /made").build().unwrap();
        let up = "../".repeat(std::env::current_dir().unwrap().components().count() - 1);
        let dir = PathBuf::from(up).join(fixture.scratch().strip_prefix("/").unwrap());
        assert!(dir.is_relative());
        let bundle = Bundle::create(&dir, template.instantiate(&fixture.base().fs()).unwrap()).unwrap();
        let id = ContainerId::random("layered-test").unwrap();
        fixture.add_run(id.as_str());
        let supervision = Supervision::new().stderr(Output::Inherit);
        let finished = Runtime::new(runtime).run(&bundle, &id, None, supervision).unwrap();
        assert!(finished.status.success(), "{runtime}: {finished:?}");
        assert_eq!(fs::read(fixture.base().fs().join("made")).unwrap(), b"/\n", "{runtime}");
        for file in ["config.json", "runtime.log", "pid"] {
            fs::remove_file(fixture.scratch().join(file)).unwrap();
        }
        // The runtime has removed the container's state. Some runtimes keep their own files there.
        assert!(!fixture.scratch().join("state").join(id.as_str()).exists(), "{runtime}");
        fs::remove_dir_all(fixture.scratch().join("state")).unwrap();
    }
}

/// Returns the bundle of the `run_in` whose thread this is.
fn bundle_of_this_thread() -> PathBuf {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let mut mount_points = table.lines().map(|line| Path::new(line.split(' ').nth(4).unwrap()));
    let is_bundle =
        |path: &&Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("container-"));
    mount_points.find(is_bundle).unwrap().into()
}

/// Checks that the bundle is gone. The fixture checks the control group of the same name.
fn assert_removed(fixture: &Fixture, bundle: &Path) {
    assert!(!bundle.exists());
    fixture.add_run(bundle.file_name().unwrap().to_str().unwrap());
    fixture.assert_clean();
}

#[test]
fn one_call_runs_a_command_in_a_root_and_leaves_only_what_it_wrote() {
    let fixture = Fixture::new();
    let dirs = Dirs::new(&fixture);
    let base = fixture.base().fs();
    let source = fixture.path().join("source");
    fs::write(&source, "bound").unwrap();
    let template = shell("cat /bound/file /proc/1/comm; echo made > made; pwd");
    let template = template.cwd("/job/here").mount(Mount::bind(&source, "/bound/file")).memory_limit_bytes(64 << 20);
    let template = template.build().unwrap();
    for runtime in ["runc", "crun"] {
        let check = |root: &Path| {
            let mut bundle = PathBuf::new();
            let noted = Output::callback(|_| bundle = bundle_of_this_thread());
            let stdout = Output::tee([Output::Capture(CaptureLimit::default()), noted]);
            let streams = Supervision::new().stdout(stdout).stderr(Output::Inherit);
            let finished = run_in(root, &template, &Runtime::new(runtime), streams).unwrap();
            assert_removed(&fixture, &bundle);
            let text = finished.stdout.unwrap().to_string();
            assert_eq!((finished.status, &*text), (Status::Exited(0), "boundlayered-init\n/job/here\n"), "{runtime}");
            assert!(finished.usage.peak_memory_bytes.is_some() && finished.usage.cpu_time.is_some());
        };
        // A plain directory.
        let before = Snapshot::of_path(&base).unwrap();
        check(&base);
        assert_eq!(fs::read(base.join("job/here/made")).unwrap(), b"made\n");
        let times = fs::metadata(&base).unwrap();
        fs::remove_dir_all(base.join("job")).unwrap();
        fs::File::open(&base).unwrap().set_modified(times.modified().unwrap()).unwrap();
        assert_eq!(before.diff(&Snapshot::of_path(&base).unwrap()), "", "{runtime}");
        // An overlay in a namespace of the caller's.
        for dir in [&dirs.upper, &dirs.work] {
            fs::remove_dir_all(dir).unwrap();
            fs::create_dir(dir).unwrap();
        }
        in_private_mount_namespace(|| {
            let overlay = Overlay::new(dirs.lowers.iter().chain([&base])).writable(&dirs.upper, &dirs.work);
            let mounted = overlay.mount(&dirs.merged).unwrap();
            check(mounted.path());
            mounted.unmount().unwrap();
        })
        .unwrap();
        let names: Vec<_> = fs::read_dir(&dirs.upper).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["job"], "{runtime}");
    }
}

#[test]
fn one_call_that_fails_leaves_nothing() {
    let fixture = Fixture::new();
    let base = fixture.base().fs();
    let before = Snapshot::of_path(&base).unwrap();
    let run = |root: &Path, template: &Template, supervision| {
        let work = || run_in(root, template, &Runtime::default(), supervision);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        assert_eq!(before.diff(&Snapshot::of_path(&base).unwrap()), "");
        result
    };
    let built = |template: container::TemplateBuilder| template.build().unwrap();
    let missing = built(Template::builder(["/no/such/command"]));
    let result = run(&base, &missing, Supervision::new()).unwrap();
    assert!(matches!(result, Err(Error::CommandNotFound { .. })), "{result:?}");
    let unbound = built(shell("true").mount(Mount::bind(fixture.path().join("missing"), "/mnt")));
    assert!(matches!(run(&base, &unbound, Supervision::new()).unwrap(), Err(Error::Io { .. })));
    let result = run(&fixture.path().join("missing"), &missing, Supervision::new()).unwrap();
    assert!(matches!(result, Err(Error::Io { operation: "find", .. })), "{result:?}");
    let mut bundle = PathBuf::new();
    let panics = Output::callback(|_| {
        bundle = bundle_of_this_thread();
        panic!("seen enough");
    });
    assert!(run(&base, &built(shell("echo; sleep 1000")), Supervision::new().stdout(panics)).is_err());
    let cancel = Cancel::new().unwrap();
    cancel.cancel();
    let result = run(&base, &missing, Supervision::new().cancel(cancel)).unwrap().unwrap();
    assert_eq!(result.status, Status::Cancelled);
    assert_removed(&fixture, &bundle);
}

/// Removing a directory unmounts what other mount namespaces have mounted on it.
#[test]
fn one_call_takes_no_mount_point_from_another_in_the_same_root() {
    let fixture = Fixture::new();
    let base = fixture.base().fs();
    fs::create_dir(base.join("meet")).unwrap();
    let run = |script: &str| {
        let streams = Supervision::new().stdout(Output::Capture(CaptureLimit::default())).stderr(Output::Inherit);
        let template = shell(script).build().unwrap();
        run_in(&base, &template, &Runtime::default(), streams).unwrap().stdout.unwrap().to_string()
    };
    std::thread::scope(|scope| {
        // The first one creates the mount points, and ends while the second one uses them.
        let wait_for = |name: &str| format!("until [ -e /meet/{name} ]; do sleep 0.01; done");
        let first = format!("> /meet/first; {}", wait_for("second"));
        let first = scope.spawn(move || run(&first));
        while !base.join("meet/first").exists() && !first.is_finished() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let second = format!("> /meet/second; {}; cat /proc/1/comm", wait_for("ended"));
        let second = scope.spawn(move || run(&second));
        let first = first.join();
        fs::write(base.join("meet/ended"), "").unwrap();
        first.unwrap();
        assert_eq!(second.join().unwrap(), "layered-init\n");
    });
    assert!(base.join("proc").exists());
}
