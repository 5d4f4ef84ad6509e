//! The seccomp filter that crun is given ready made, against the one that it has libseccomp make of the same profile.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use container::oci_spec::runtime::Capability;
use container::{Fsync, Input, Output, Runtime, Seccomp, Template};
use integration_tests::filter::{Call, Filter};
use integration_tests::{Fixture, find, shell};
use rustix::pipe::{PipeFlags, pipe_with};

/// `AUDIT_ARCH_X86_64`, `AUDIT_ARCH_I386`, `AUDIT_ARCH_AARCH64` in linux/audit.h.
const CONVENTIONS: [u32; 3] = [0xc000_003e, 0x4000_0003, 0xc000_00b7];

/// What `ENOSYS` is answered with: `SECCOMP_RET_ERRNO`, linux/seccomp.h.
const NO_SUCH_CALL: u32 = 0x0005_0000 | 38;
const NOT_PERMITTED: u32 = 0x0005_0000 | 1;
const ALLOW: u32 = 0x7fff_0000;
const KILL_THREAD: u32 = 0;

/// Calls of the profile that libseccomp 2.5.4 does not know, Debian 12's, to which they are none: `cachestat`, `fchmodat2`,
/// `map_shadow_stack`, `futex_wake`, `futex_wait`, `futex_requeue`, `statmount`, `listmount`, `mseal`, the four that end with
/// `xattrat`; with a capability, `lsm_get_self_attr`, `lsm_set_self_attr` and `lsm_list_modules`. On x86_64 `uretprobe` is one.
const NEWER: [std::ops::RangeInclusive<u32>; 3] = [451..=458, 462..=466, 459..=461];
const URETPROBE: u32 = 335;

/// What crun has written down for the container's first process to load.
fn loaded(fixture: &Fixture, template: &Template) -> Filter {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let (sender, receiver) = mpsc::channel();
    let scratch = fixture.scratch();
    // The command waits until its file was read, where the run's own mounts are seen: callbacks are called there.
    let mut waiting = Some(writer);
    let ready = move |_: &[u8]| {
        // Until the end of this block: then the command ends, and crun removes the file.
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
    // The container has the run's name. Later versions of crun have a cache beside its directory.
    run.path().join("bundle/state").join(run.file_name()).join("seccomp.bpf")
}

/// Every call of the two conventions, some of x32 and some that are none; those whose arguments count with many.
fn calls() -> Vec<Call> {
    // socket, clone and personality, on x86_64 and i386.
    let by_argument = [(0, [41, 56, 135]), (1, [359, 120, 136])];
    let bits = (0..64).map(|bit| 1 << bit);
    let many: Vec<u64> = (0..64).chain(bits.clone()).chain(bits.map(|bit: u64| bit | 8 | 0x11)).collect();
    let special = [0x2_0008, 0xffff_ffff, u64::MAX, 0x7e02_0000, 0x3d_0f00, 0x0120_0011];
    let edges = [0x3fff_ffff, 0x7fff_ffff, 0x8000_0000, 0xffff_fffe, 0xffff_ffff];
    let mut calls = Vec::new();
    for (index, convention) in CONVENTIONS.into_iter().enumerate() {
        for number in (0..1_100).chain(0x4000_0000..0x4000_0400).chain(edges) {
            let counts = by_argument.iter().any(|(of, numbers)| *of == index && numbers.contains(&number));
            let first: Vec<u64> =
                if counts { many.iter().chain(&special).copied().collect() } else { vec![0, 1, u64::MAX] };
            calls.extend(first.into_iter().map(|first| Call {
                convention,
                number,
                arguments: [first, 0, 7, 0, u64::MAX, 1],
            }));
        }
    }
    calls
}

#[test]
fn it_answers_every_call_as_libseccomp_has_it() {
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
        // The same profile, of which nothing else is known.
        let unknown = Template::from_value(serde_json::to_value(&template).unwrap()).unwrap();
        let (ours, theirs) = (loaded(&fixture, &template), loaded(&fixture, &unknown));
        assert_ne!(ours.length(), theirs.length(), "both are libseccomp's");
        let mut allowed = 0;
        for call in &calls {
            let (ours, theirs) = (ours.answer(call), theirs.answer(call));
            let unknown = NEWER.iter().any(|numbers| numbers.contains(&call.number))
                || (call.convention, call.number) == (CONVENTIONS[0], URETPROBE);
            let newer = theirs == NO_SUCH_CALL && unknown && [ALLOW, NOT_PERMITTED].contains(&ours);
            assert!(ours == theirs || newer, "{capabilities:?} {call:x?}: {ours:x}, libseccomp: {theirs:x}");
            allowed += usize::from(ours == ALLOW);
            let foreign =
                call.convention == CONVENTIONS[2] || seccomp == Seccomp::Native && call.convention == CONVENTIONS[1];
            assert!(!foreign || ours == KILL_THREAD, "{call:x?}");
        }
        assert!((500..calls.len() / 2).contains(&allowed), "{allowed} of {}", calls.len());
    }
}
