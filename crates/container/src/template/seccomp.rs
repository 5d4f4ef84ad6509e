//! The filter of a container: which profile, and the rules that make `fsync` free.

mod profile;
mod program;
mod rule;
mod sync;

use std::env::consts::ARCH;

use base64::prelude::{BASE64_STANDARD, Engine};
use oci_spec::runtime::{Arch, Capability, LinuxSeccomp, LinuxSeccompAction};

use super::choices::{Fsync, Seccomp};

/// The call conventions that a program for a machine of `arch` may use: its own and those that the kernel runs beside it
/// (Docker's list). libseccomp kills a process that makes a call by one that the filter does not name.
fn architectures(arch: &str) -> &'static [Arch] {
    match arch {
        "x86_64" => &[Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32],
        "aarch64" => &[Arch::ScmpArchAarch64, Arch::ScmpArchArm],
        "s390x" => &[Arch::ScmpArchS390x, Arch::ScmpArchS390],
        _ => &[],
    }
}

/// What `linux.seccomp` is for a container that has `capabilities`.
pub(super) fn filter(seccomp: &Seccomp, fsync: Fsync, capabilities: &[Capability]) -> Option<LinuxSeccomp> {
    let profile = match seccomp {
        Seccomp::Default => Some(profile::default(ARCH, capabilities)),
        Seccomp::Native => {
            let mut profile = profile::default(ARCH, capabilities);
            // The first is the machine's own.
            set_architectures(&mut profile, architectures(ARCH).iter().copied().take(1).collect());
            Some(profile)
        }
        Seccomp::Unconfined => None,
        Seccomp::Custom(profile) => Some(profile.clone()),
    };
    match fsync {
        Fsync::Real => profile,
        Fsync::Ignored => {
            let mut profile = profile.unwrap_or_else(allow_all);
            sync::ignore_sync(&mut profile);
            Some(profile)
        }
    }
}

/// The program of a filter as crun takes it: in Base64. `None` if it is for the runtime to make.
pub(super) fn compiled(filter: &LinuxSeccomp) -> Option<String> {
    program::compile(filter).map(|program| BASE64_STANDARD.encode(program))
}

/// A profile that lets every call through: the ground for rules that change a few.
fn allow_all() -> LinuxSeccomp {
    let mut profile = LinuxSeccomp::default();
    profile.set_default_action(LinuxSeccompAction::ScmpActAllow);
    set_architectures(&mut profile, architectures(ARCH).to_vec());
    profile
}

fn set_architectures(profile: &mut LinuxSeccomp, architectures: Vec<Arch>) {
    // Without the field the filter is for the native convention alone.
    profile.set_architectures((!architectures.is_empty()).then_some(architectures));
}
