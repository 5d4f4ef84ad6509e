//! The filter of a container: which profile, and the rules that make `fsync` free.

mod architectures;
mod profile;
mod program;
mod rule;
mod sync;

use std::env::consts::ARCH;

use base64::prelude::{BASE64_STANDARD, Engine};
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction};
use serde::Deserialize;

use super::capability::Capability;
use super::choices::{Fsync, Seccomp};
use super::error::TemplateError;
use architectures::{architectures, set_architectures};

/// What `linux.seccomp` is for a container that has `capabilities`.
pub(super) fn filter(
    seccomp: &Seccomp,
    fsync: Fsync,
    capabilities: &[Capability],
) -> Result<Option<LinuxSeccomp>, TemplateError> {
    let profile = match seccomp {
        Seccomp::Default => Some(profile::default(ARCH, capabilities)),
        Seccomp::Native => {
            let mut profile = profile::default(ARCH, capabilities);
            // The first is the machine's own.
            set_architectures(&mut profile, architectures(ARCH).iter().copied().take(1).collect());
            Some(profile)
        }
        Seccomp::Unconfined => None,
        Seccomp::Custom(profile) => {
            Some(LinuxSeccomp::deserialize(profile).map_err(|source| TemplateError::Seccomp { source })?)
        }
    };
    Ok(match fsync {
        Fsync::Real => profile,
        Fsync::Ignored => {
            let mut profile = profile.unwrap_or_else(allow_all);
            sync::ignore_sync(&mut profile);
            Some(profile)
        }
    })
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
