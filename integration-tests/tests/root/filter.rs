//! Compares the precompiled seccomp filter that crun gets with the one that libseccomp makes of the
//! same profile. Also tests every filter's answers to the calls that wait for a disk. Attempts to
//! make blocked calls are in module `breakout`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use container::{Capability, Fsync, Input, Output, Runtime, Seccomp, Template};
use integration_tests::filter::{Call, Filter};
use integration_tests::{Fixture, find, shell, stdout};
use rustix::pipe::{PipeFlags, pipe_with};
use serde_json::{Value, json};

/// `AUDIT_ARCH_X86_64`, `AUDIT_ARCH_I386`, `AUDIT_ARCH_AARCH64` in linux/audit.h.
const ABIS: [u32; 3] = [0xc000_003e, 0x4000_0003, 0xc000_00b7];

/// `SECCOMP_RET_ERRNO` of linux/seccomp.h with `ENOSYS`.
const NO_SUCH_CALL: u32 = 0x0005_0000 | 38;
const NOT_PERMITTED: u32 = 0x0005_0000 | 1;
const ALLOW: u32 = 0x7fff_0000;
const KILL_THREAD: u32 = 0;

/// Calls of the profile that libseccomp 2.5.4 (Debian 12) does not know and therefore answers with
/// ENOSYS: `cachestat`, `fchmodat2`, `map_shadow_stack`, `futex_wake`, `futex_wait`,
/// `futex_requeue`, `statmount`, `listmount`, `mseal`, the four whose names end with `xattrat`; and
/// with a capability `lsm_get_self_attr`, `lsm_set_self_attr` and `lsm_list_modules`. On x86_64
/// also `uretprobe`.
const NEWER: [std::ops::RangeInclusive<u32>; 3] = [451..=458, 462..=466, 459..=461];
const URETPROBE: u32 = 335;

/// Returns the filter that crun has written down for the container's first process to load.
fn loaded(fixture: &Fixture, template: &Template) -> Filter {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let (sender, receiver) = mpsc::channel();
    let scratch = fixture.scratch();
    // The command waits until its filter has been read. The runner calls callbacks in the run's
    // mount namespace.
    let mut waiting = Some(writer);
    let ready = move |_: &[u8]| {
        // The writer is closed at the end of this block. The command then ends, and crun removes
        // the file.
        if let Some(_writer) = waiting.take() {
            sender.send(fs::read(find_program(&scratch)).unwrap()).unwrap();
        }
    };
    let options = fixture
        .options()
        .runtime(Runtime::new(find("crun")))
        .stdin(Input::File(File::from(reader)))
        .stdout(Output::Callback(Box::new(ready)));
    let report = runner::run(&fixture.base(), &[], template, options).unwrap();
    assert!(report.status.success(), "{:?}", report.status);
    Filter::from_bytes(&receiver.try_recv().unwrap())
}

fn find_program(scratch: &Path) -> PathBuf {
    let run = fs::read_dir(scratch).unwrap().next().unwrap().unwrap();
    // The container has the run's name. Later versions of crun have a cache beside the container's
    // directory.
    run.path().join("bundle/state").join(run.file_name()).join("seccomp.bpf")
}

/// Calls whose first argument matters, on x86_64 and i386: socket, clone and personality; fsync,
/// fdatasync, syncfs, sync_file_range and msync.
const BY_ARGUMENT: [[u32; 8]; 2] = [[41, 56, 135, 74, 75, 306, 277, 26], [359, 120, 136, 118, 148, 344, 314, 144]];
/// msync, whose third argument matters as well.
const MSYNC: [u32; 2] = [26, 144];

/// Returns every call of the two ABIs, some x32 calls and some unknown numbers. Calls whose
/// arguments matter come with many arguments.
fn calls() -> Vec<Call> {
    let bits = (0..64).map(|bit| 1 << bit);
    let many: Vec<u64> = (0..64).chain(bits.clone()).chain(bits.map(|bit: u64| bit | 8 | 0x11)).collect();
    let special = [0x2_0008, 0xffff_ffff, u64::MAX, 0x7e02_0000, 0x3d_0f00, 0x0120_0011, 0xffff_ff9c, 0x7fff_f000];
    let edges = [0x3fff_ffff, 0x7fff_ffff, 0x8000_0000, 0xffff_fffe, 0xffff_ffff];
    let mut calls = Vec::new();
    for (index, abi) in ABIS.into_iter().enumerate() {
        let is_in = |number: u32, numbers: Option<&[u32]>| numbers.is_some_and(|numbers| numbers.contains(&number));
        for number in (0..1_100).chain(0x4000_0000..0x4000_0400).chain(edges) {
            let first: Vec<u64> = match is_in(number, BY_ARGUMENT.get(index).map(|numbers| &numbers[..])) {
                true => many.iter().chain(&special).copied().collect(),
                false => vec![0, 1, u64::MAX],
            };
            let third: &[u64] = match is_in(number, MSYNC.get(index..=index)) {
                true => &[0, 1, 2, 3, 4, 5, 6, 7, 12, 0x8000_0004, 1 << 32, 1 << 32 | 4, 4 << 32, u64::MAX],
                false => &[7],
            };
            // The kernel extends the 32 bits of an i386 register with zeros.
            let width = if index == 1 { u64::from(u32::MAX) } else { u64::MAX };
            calls.extend(
                first.iter().flat_map(|first| third.iter().map(move |third| [*first, *third])).map(|[first, third]| {
                    Call { abi, number, arguments: [first & width, 0, third & width, 0, width, 1] }
                }),
            );
        }
    }
    calls
}

#[test]
fn the_precompiled_filter_answers_as_libseccomps_does() {
    let fixture = Fixture::new();
    let calls = calls();
    let script = "echo ready; read line; true";
    let some = vec![Capability::Chown, Capability::SysChroot, Capability::SysPtrace, Capability::SysNice];
    let rows = [
        (vec![], Fsync::Ignored, Seccomp::Default),
        (vec![Capability::SysAdmin], Fsync::Real, Seccomp::Default),
        (some.clone(), Fsync::Ignored, Seccomp::Default),
        (some, Fsync::Ignored, Seccomp::Native),
    ];
    for (capabilities, fsync, seccomp) in rows {
        let template = shell(script).capabilities(capabilities.clone()).fsync(fsync).seccomp(seccomp.clone());
        let template = template.build().unwrap();
        // The same profile, but without the information that it is the default one.
        let unknown = Template::from_value(serde_json::to_value(&template).unwrap()).unwrap();
        let (ours, theirs) = (loaded(&fixture, &template), loaded(&fixture, &unknown));
        assert_ne!(ours.length(), theirs.length(), "libseccomp made both filters");
        let mut allowed = 0;
        for call in &calls {
            let (ours, theirs) = (ours.answer(call), theirs.answer(call));
            let unknown = NEWER.iter().any(|numbers| numbers.contains(&call.number))
                || (call.abi, call.number) == (ABIS[0], URETPROBE);
            let newer = theirs == NO_SUCH_CALL && unknown && [ALLOW, NOT_PERMITTED].contains(&ours);
            assert!(ours == theirs || newer, "{capabilities:?} {call:x?}: {ours:x}, libseccomp: {theirs:x}");
            allowed += usize::from(ours == ALLOW);
            let foreign = call.abi == ABIS[2] || seccomp == Seccomp::Native && call.abi == ABIS[1];
            assert!(!foreign || ours == KILL_THREAD, "{call:x?}");
        }
        assert!((500..calls.len() / 2).contains(&allowed), "{allowed} of {}", calls.len());
    }
}

/// Compares the errors that `probe` gets from the calls that wait for a disk; 0 means success.
#[test]
fn fsync_succeeds_only_where_the_real_call_could() {
    use nix::libc::{SYS_fdatasync, SYS_fsync, SYS_msync, SYS_sync, SYS_sync_file_range, SYS_syncfs};
    const BAD_DESCRIPTOR: i32 = 9;
    const NO_MEMORY: i32 = 12;
    const INVALID: i32 = 22;
    let fixture = Fixture::new();
    fixture.add_probe();
    let page = rustix::param::page_size();
    // (the call, its error with the filter, its error without). Descriptor 99 is not open. Nothing
    // is mapped at the second page.
    let mut table = vec![
        (format!("{SYS_sync}"), 0, 0),
        (format!("{SYS_fsync} 99"), BAD_DESCRIPTOR, BAD_DESCRIPTOR),
        (format!("{SYS_fsync} -1"), BAD_DESCRIPTOR, BAD_DESCRIPTOR),
        (format!("{SYS_fdatasync} 99"), BAD_DESCRIPTOR, BAD_DESCRIPTOR),
        (format!("{SYS_fdatasync} -100"), BAD_DESCRIPTOR, BAD_DESCRIPTOR),
        (format!("{SYS_syncfs} 99"), BAD_DESCRIPTOR, BAD_DESCRIPTOR),
        (format!("{SYS_syncfs} {}", 1_u64 << 31), BAD_DESCRIPTOR, BAD_DESCRIPTOR),
        (format!("{SYS_sync_file_range} 99 0 0 0"), 0, BAD_DESCRIPTOR),
        (format!("{SYS_sync_file_range} -1 0 0 0"), BAD_DESCRIPTOR, BAD_DESCRIPTOR),
        (format!("{SYS_msync} {page} {page} 4"), 0, NO_MEMORY),
        (format!("{SYS_msync} {page} {page} 1"), NO_MEMORY, NO_MEMORY),
        (format!("{SYS_msync} {page} {page} 5"), INVALID, INVALID),
        (format!("{SYS_msync} {page} {page} 12"), INVALID, INVALID),
        (format!("{SYS_msync} {} {page} 4", page + 1), INVALID, INVALID),
        (format!("{SYS_msync} {} {page} 4", page + page / 2), INVALID, INVALID),
    ];
    if cfg!(target_arch = "x86_64") {
        // sync_file_range of a 32-bit program. `Native` kills the program.
        table.extend([("i314 99".into(), 0, BAD_DESCRIPTOR), ("i314 -1".into(), BAD_DESCRIPTOR, BAD_DESCRIPTOR)]);
    }
    let dockers = serde_json::to_value(shell("").fsync(Fsync::Real).build().unwrap()).unwrap();
    let custom = |profile: &Value| Seccomp::Custom(profile.clone());
    let profiles = [
        (Seccomp::Default, Fsync::Ignored),
        (Seccomp::Default, Fsync::Real),
        (Seccomp::Native, Fsync::Ignored),
        (Seccomp::Unconfined, Fsync::Ignored),
        (Seccomp::Unconfined, Fsync::Real),
        (custom(&dockers["linux"]["seccomp"]), Fsync::Ignored),
        (custom(&json!({"defaultAction": "SCMP_ACT_LOG"})), Fsync::Ignored),
    ];
    for (runtime, (seccomp, fsync)) in
        ["runc", "crun"].into_iter().flat_map(|name| profiles.clone().map(|row| (name, row)))
    {
        // A profile without a list of ABIs applies to the machine's own only.
        let has_i386 = !matches!(&seccomp, Seccomp::Native)
            && !matches!(&seccomp, Seccomp::Custom(profile) if profile.get("architectures").is_none());
        let rows: Vec<_> = table.iter().filter(|(call, ..)| has_i386 || !call.starts_with('i')).collect();
        let script: String = rows.iter().map(|(call, ..)| format!("probe {call}; echo \"{call}: $?\"\n")).collect();
        let expected: String = rows
            .iter()
            .map(|(call, ignored, real)| format!("{call}: {}\n", if fsync == Fsync::Real { real } else { ignored }))
            .collect();
        let template = shell(&script).seccomp(seccomp.clone()).fsync(fsync).build().unwrap();
        let options = fixture.options().runtime(Runtime::new(find(runtime)));
        let report = runner::run(&fixture.base(), &[], &template, options).unwrap();
        assert_eq!(stdout(&report), expected, "{runtime} {seccomp:?} {fsync:?}");
    }
}
