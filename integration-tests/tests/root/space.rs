//! Runs that run out of something, in every phase: bytes, inodes, descriptors.
//!
//! The small file system is a tmpfs: it is made and gone in a moment, counts to the page and to the inode, and its numbers
//! afterwards say whether anything is left, unlinked files that somebody holds included.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use container::{Status, Template, in_private_mount_namespace};
use integration_tests::{FOR_EVER, Fixture, KnownRun, Told, find, layered, shell, stdout};
use layer::Layer;
use nix::mount::{MsFlags, mount};
use runner::{Cause, Error, Options, Phase, Report};
use rustix::fs::statvfs;

/// Calls `work` with the directory of a new tmpfs, and sees that it is as empty afterwards.
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
        // For a moment, a process that another test starts has the descriptors of this one, of unlinked files, too.
        let deadline = Instant::now() + FOR_EVER;
        while free() != before {
            assert!(Instant::now() < deadline, "of {options}, free bytes and inodes: {:?}, before {before:?}", free());
            std::thread::yield_now();
        }
        assert_eq!(fs::read_dir(&small).unwrap().count(), 0);
        result
    })
    .unwrap()
}

/// What a run does that needs room: it exits with 9 if there was none for it.
fn writer() -> Template {
    shell("cat /top && echo new > /deps/new && rm /top || exit 9").build().unwrap()
}

fn is_whole(report: &Report) -> bool {
    let upper = report.upper.path();
    stdout(report) == "0\n" && fs::read(upper.join("deps/new")).is_ok_and(|new| new == b"new\n")
}

/// Whether it is said that there is no room; a runtime may say something else.
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

/// Runs with the room that `options` make of 1, 2, … until one succeeds, and returns what failed on the way.
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
                    failed.insert(error.phase());
                    false
                }
            }
        });
        fixture.assert_clean();
        if whole {
            return failed;
        }
    }
    panic!("it never succeeds");
}

#[test]
fn inodes() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(6);
    let failed = with_more_and_more_room(&fixture, &layers, 4, |room| format!("nr_inodes={room}"));
    assert_eq!(
        Vec::from_iter(failed),
        [Phase::Scratch, Phase::Merge, Phase::OverlayMount, Phase::Config, Phase::RuncRun]
    );
}

#[test]
fn bytes() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(6);
    let failed = with_more_and_more_room(&fixture, &layers, 4, |room| format!("size={}k", 4 * room));
    assert_eq!(Vec::from_iter(failed), [Phase::Merge, Phase::Config, Phase::RuncRun]);
}

/// Fills a file until nothing more goes in.
fn fill(path: &Path) -> std::io::Result<u64> {
    let mut file = fs::File::create(path)?;
    match std::io::copy(&mut std::io::repeat(b'x'), &mut file) {
        Err(error) if error.kind() == std::io::ErrorKind::StorageFull => Ok(file.metadata()?.len()),
        other => other,
    }
}

#[test]
fn all_taken_by_prep_upper() {
    let fixture = Fixture::new();
    let layers = fixture.numbered_layers(2);
    on_tmpfs(&fixture, "size=1m", |small| {
        let options: Options<'_> = fixture.options().scratch(small).prep_upper(|upper, _| {
            assert!(fill(&upper.join("full"))? > 0);
            Ok(())
        });
        let error = runner::run(&fixture.base(), &layers, &writer(), options).unwrap_err();
        assert!(says_no_room(&error), "{error}");
        assert_eq!((error.phase(), error.left()), (Phase::Config, None), "{error}");
    });
}

#[test]
fn all_taken_by_the_command() {
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
fn descriptors() {
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
        // From where the program is loaded to where runc starts, which takes some twenty. Then runc has its own ways to fail, one of
        // which is to hang.
        for limit in (4..18).skip_while(|limit| !loads(limit)) {
            let output = limited(limit, run.command());
            assert_eq!(output.status.code(), Some(125), "with {limit} descriptors: {output:?}");
            assert_eq!(run.wrong(&output, Told::Always), [""; 0], "with {limit} descriptors");
        }
        // What the container is given itself.
        let output = limited(1024, run.command());
        assert!(output.status.success(), "{output:?}");
        assert_eq!(run.wrong(&output, Told::Always), [""; 0]);
    }
}
