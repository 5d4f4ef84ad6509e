//! The ABIs of an architecture, as a profile names them.

use oci_spec::runtime::{Arch, LinuxSeccomp};

/// Returns the ABIs that a program for a machine of `arch` may use: the machine's own and those
/// that the kernel runs beside it (Docker's list). libseccomp kills a process that makes a call
/// through an ABI that the filter does not name.
pub(super) fn architectures(arch: &str) -> &'static [Arch] {
    match arch {
        "x86_64" => &[Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32],
        "aarch64" => &[Arch::ScmpArchAarch64, Arch::ScmpArchArm],
        "s390x" => &[Arch::ScmpArchS390x, Arch::ScmpArchS390],
        _ => &[],
    }
}

pub(super) fn set_architectures(profile: &mut LinuxSeccomp, architectures: Vec<Arch>) {
    // Without the field, the filter covers only the machine's own ABI.
    profile.set_architectures((!architectures.is_empty()).then_some(architectures));
}
