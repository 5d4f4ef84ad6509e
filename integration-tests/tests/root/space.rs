//! Runs that run out of bytes, inodes or descriptors in every phase. Full disks under a collector
//! are tested in module `collector`.
//!
//! The small file system is a tmpfs. It is created and removed quickly, and accounts for every page
//! and inode. So its numbers afterwards show whether anything is left, including unlinked files
//! that a process still has open.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use container::{Status, Template, in_private_mount_namespace};
use integration_tests::{FOR_EVER, Fixture, KnownRun, Reported, find, layered, shell, stdout};
use layer::Layer;
use nix::mount::{MsFlags, mount};
use runner::{Cause, Error, Options, Phase, Report};
use rustix::fs::statvfs;

/// Calls `work` with the directory of a new tmpfs, and checks that the tmpfs is empty again
/// afterwards.
fn on_tmpfs<T: Send>(fixture: &Fixture, options: &str, work: impl FnOnce(&Path) -> T + Send) -> T {
    let small = fixture.path().join("small");
    fs::create_dir_all(&small).unwrap();
    in_private_mount_namespace(|| {
        mount(Some("tmpfs"), &small, Some("tmpfs"), MsFlags::empty(), Some(options)).unwrap();
        fixture.watch(&small);
        let free = || {
            let numbers = statvfs(&small).unwrap();
            (numbers.f_bfree, numbers.f_ffree)
        };
        let before = free();
        let result = work(&small);
        // A process that another test starts briefly has this process's descriptors, including
        // those of unlinked files.
        let deadline = Instant::now() + FOR_EVER;
        while free() != before {
            assert!(Instant::now() < deadline, "{options}: free bytes and inodes: {:?}, before {before:?}", free());
            std::thread::yield_now();
        }
        assert_eq!(fs::read_dir(&small).unwrap().count(), 0);
        result
    })
    .unwrap()
}

/// A command that needs room. It exits with 9 if the room is missing.
fn writer() -> Template {
    shell("cat /top && echo new > /deps/new && rm /top || exit 9").build().unwrap()
}

fn is_whole(report: &Report) -> bool {
    let upper = report.upper.path();
    stdout(report) == "0\n" && fs::read(upper.join("deps/new")).is_ok_and(|new| new == b"new\n")
}

/// Whether an error reports that no room is left. A runtime may report something else.
fn says_no_room(error: &Error) -> bool {
    if matches!(error.cause(), Cause::Container(container::Error::Runtime { .. })) {
        return true;
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text += &error.to_string();
        source = error.source();
    }
    let text = text.to_lowercase();
    text.contains("no space left") || text.contains("out of space or out of inodes")
}

/// Repeats a run with the options for 1, 2, … units of room until it succeeds. Returns the phases
/// that failed.
fn with_more_and_more_room(
    fixture: &Fixture,
    layers: &[Layer],
    lowers: usize,
    options: fn(u32) -> String,
) -> BTreeSet<Phase> {
    let mut failed = BTreeSet::new();
    for room in 1..1000 {
        let whole = on_tmpfs(fixture, &options(room), |small| {
            let options = fixture.options().scratch(small).max_lowers(lowers);
            match runner::run(&fixture.base(), layers, &writer(), options) {
                Ok(report) if report.status == Status::Exited(9) => {
                    failed.insert(Phase::RuncRun);
                    false
                }
                Ok(report) => {
                    assert_eq!(report.status, Status::Exited(0), "{room}: {:?}", report.stderr);
                    is_whole(&report)
                }
                Err(error) => {
                    assert!(says_no_room(&error) && error.left().is_none(), "{room}: {error}: {error:?}");
                    failed.insert(error.phase().unwrap());
                    false
                }
            }
        });
        fixture.assert_clean();
        if whole {
            return failed;
        }
    }
    panic!("the run never succeeds");
}

#[test]
fn a_run_reports_missing_inodes_in_every_phase() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(6);
    let failed = with_more_and_more_room(&fixture, &layers, 4, |room| format!("nr_inodes={room}"));
    assert_eq!(
        Vec::from_iter(failed),
        [Phase::Scratch, Phase::Merge, Phase::OverlayMount, Phase::Config, Phase::RuncRun]
    );
}

#[test]
fn a_run_reports_missing_bytes_in_every_phase() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(6);
    let failed = with_more_and_more_room(&fixture, &layers, 4, |room| format!("size={}k", 4 * room));
    assert_eq!(Vec::from_iter(failed), [Phase::Merge, Phase::Config, Phase::RuncRun]);
}

/// Fills a file until no room is left.
fn fill(path: &Path) -> std::io::Result<u64> {
    let mut file = fs::File::create(path)?;
    match std::io::copy(&mut std::io::repeat(b'x'), &mut file) {
        Err(error) if error.kind() == std::io::ErrorKind::StorageFull => Ok(file.metadata()?.len()),
        other => other,
    }
}

#[test]
fn a_disk_filled_by_prep_upper_fails_the_run() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(2);
    on_tmpfs(&fixture, "size=1m", |small| {
        let options: Options<'_> = fixture.options().scratch(small).prep_upper(|upper, _| {
            assert!(fill(&upper.join("full"))? > 0);
            Ok(())
        });
        let error = runner::run(&fixture.base(), &layers, &writer(), options).unwrap_err();
        assert!(says_no_room(&error), "{error}");
        assert_eq!((error.phase(), error.left()), (Some(Phase::Config), None), "{error}");
    });
}

#[test]
fn a_disk_filled_by_the_command_is_a_result() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(2);
    on_tmpfs(&fixture, "size=1m", |small| {
        let options = fixture.options().scratch(small);
        let report = fixture.run_with(&layers, "dd if=/dev/zero of=/full bs=4k 2>/dev/null || exit 9", options);
        assert_eq!(report.status, Status::Exited(9));
        assert!(fs::metadata(report.upper.path().join("full")).unwrap().len() > 0);
    });
}

#[test]
fn a_run_reports_missing_descriptors() {
    for run in [KnownRun::stacking as fn() -> KnownRun, KnownRun::merging] {
        let run = run();
        let limited = |limit: u32, known: Command| {
            let mut command = Command::new(find("prlimit"));
            command.arg(format!("--nofile={limit}")).arg(known.get_program()).args(known.get_args());
            command.stdin(Stdio::null()).output().unwrap()
        };
        let loads = |limit: &u32| {
            let mut version = layered();
            version.arg("--version");
            limited(*limit, version).status.success()
        };
        // The limits range from the first with which the program loads to the last with which runc
        // does not start. Starting runc takes about twenty descriptors. With slightly higher
        // limits, runc fails in its own ways, and one of them is to hang.
        for limit in (4..18).skip_while(|limit| !loads(limit)) {
            let output = limited(limit, run.command());
            assert_eq!(output.status.code(), Some(125), "with {limit} descriptors: {output:?}");
            assert_eq!(run.wrong(&output, Reported::Always), [""; 0], "with {limit} descriptors");
        }
        // This is the limit that a container gets.
        let output = limited(1024, run.command());
        assert!(output.status.success(), "{output:?}");
        assert_eq!(run.wrong(&output, Reported::Always), [""; 0]);
    }
}
