//! Overlays without a run: `container` on its own.

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

fn options_of(mount_point: &Path) -> String {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.contains(&format!(" {} ", mount_point.display())));
    line.unwrap_or_default().into()
}

#[test]
fn each_api_with_each_kind_of_names() {
    let fixture = Fixture::new();
    let dirs = Dirs::new(&fixture);
    in_private_mount_namespace(|| {
        for api in [MountApi::Fsconfig, MountApi::Mount2] {
            for names in [LowerNames::Paths, LowerNames::Short] {
                // A volatile work directory serves once.
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

/// Not even for a moment, of threads that were started where it is mounted; and not afterwards, whatever comes of it.
#[test]
fn nobodys_working_directory_changes() {
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
            assert!(!other.join().unwrap(), "another thread has been elsewhere");
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
fn a_busy_mount_is_told_and_stays() {
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
        // For a moment, a process that another test starts may have the file open, too.
        nix::mount::umount2(&dirs.merged, nix::mount::MntFlags::MNT_DETACH).unwrap();
        assert!(dirs.upper.join("open").exists());
    })
    .unwrap();
}

#[test]
fn a_mount_that_is_busy_for_a_while_goes() {
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
fn a_private_mount_is_seen_by_nobody_else() {
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
fn what_the_kernel_refuses_is_told_in_its_words() {
    let fixture = Fixture::new();
    let dirs = Dirs::new(&fixture);
    let missing = fixture.path().join("missing");
    in_private_mount_namespace(|| {
        for api in [MountApi::Fsconfig, MountApi::Mount2] {
            let refused = |overlay: Overlay, target: &Path| {
                // What failed may have left its mark in the work directory.
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
            // mount(2) has no words of its own.
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

/// On a thread without a mount namespace of its own, and by a path that is relative, as in the README.
#[test]
fn a_container_over_a_directory_of_ones_own() {
    for runtime in ["runc", "crun"] {
        let fixture = Fixture::new();
        let template = shell("echo $HOME > /made").build().unwrap();
        let up = "../".repeat(std::env::current_dir().unwrap().components().count() - 1);
        let dir = PathBuf::from(up).join(fixture.scratch().strip_prefix("/").unwrap());
        assert!(dir.is_relative());
        let bundle = Bundle::create(&dir, &template.instantiate(&fixture.base().fs()).unwrap()).unwrap();
        let id = ContainerId::random("layered-test").unwrap();
        fixture.add_run(id.as_str());
        let supervision = Supervision::new().stderr(Output::Inherit);
        let finished = Runtime::new(runtime).run(&bundle, &id, None, supervision).unwrap();
        assert!(finished.status.success(), "{runtime}: {finished:?}");
        assert_eq!(fs::read(fixture.base().fs().join("made")).unwrap(), b"/\n", "{runtime}");
        for file in ["config.json", "runtime.log", "pid"] {
            fs::remove_file(fixture.scratch().join(file)).unwrap();
        }
        // What the runtime knew of the container is gone. Some runtimes leave files of their own there.
        assert!(!fixture.scratch().join("state").join(id.as_str()).exists(), "{runtime}");
        fs::remove_dir_all(fixture.scratch().join("state")).unwrap();
    }
}
