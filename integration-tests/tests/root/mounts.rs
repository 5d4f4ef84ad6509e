//! Overlays without a run: the crate `container` on its own. `ladder` compares what the mounts
//! show.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use container::{
    Bundle, ContainerId, DeviceNodes, Error, LowerNames, MountApi, Output, Overlay, Runtime, Supervision,
    in_private_mount_namespace,
};
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
