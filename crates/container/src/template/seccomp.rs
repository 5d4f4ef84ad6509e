//! The seccomp profile of a container. `profile` has Docker's default, `sync` the rules that make
//! `fsync` fast, `owners` those that fake changes of owners, and `bpf` compiles a profile.

mod architectures;
mod bpf;
mod owners;
mod profile;
mod rule;
mod sync;

use std::env::consts::ARCH;

use base64::prelude::{BASE64_STANDARD, Engine};
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction};
use serde::Deserialize;
use serde_json::Value;

use super::capability::Capability;
use super::choices::{Fsync, Owners, Seccomp};
use super::error::TemplateError;
use architectures::{architectures, set_architectures};
pub(super) use owners::fakes_users;

/// Returns `linux.seccomp` for a container that has `capabilities`.
pub(super) fn filter(
    seccomp: &Seccomp,
    fsync: Fsync,
    owners: Owners,
    capabilities: &[Capability],
) -> Result<Option<LinuxSeccomp>, TemplateError> {
    let profile = match seccomp {
        Seccomp::Default => Some(profile::default(ARCH, capabilities)),
        Seccomp::Native => {
            let mut profile = profile::default(ARCH, capabilities);
            // The first is the machine's own ABI.
            set_architectures(&mut profile, architectures(ARCH).iter().copied().take(1).collect());
            Some(profile)
        }
        Seccomp::Unconfined => None,
        Seccomp::Custom(profile) => {
            refuse_conditions(profile)?;
            Some(LinuxSeccomp::deserialize(profile).map_err(|source| TemplateError::Seccomp { source })?)
        }
    };
    let changes = [
        (fsync == Fsync::Ignored).then_some(sync::ignore_sync as fn(&mut LinuxSeccomp)),
        (owners == Owners::Fake).then_some(owners::fake_owners as fn(&mut LinuxSeccomp)),
    ];
    Ok(changes.into_iter().flatten().fold(profile, |profile, change| {
        let mut profile = profile.unwrap_or_else(allow_all);
        change(&mut profile);
        Some(profile)
    }))
}

/// Refuses the conditions of Docker's own format, which the specification does not have: a rule
/// would lose its condition.
fn refuse_conditions(profile: &Value) -> Result<(), TemplateError> {
    let is_set = |value: &Value| match value {
        Value::Object(conditions) => !conditions.is_empty(),
        value => !value.is_null(),
    };
    for (rule, value) in profile["syscalls"].as_array().into_iter().flatten().enumerate() {
        if let Some(key) = ["includes", "excludes"].into_iter().find(|key| is_set(&value[*key])) {
            return Err(TemplateError::SeccompCondition { rule, key });
        }
    }
    Ok(())
}

/// Returns the profile as a BPF program in Base64, the form that crun accepts. Returns `None` if
/// the runtime has to compile it.
pub(super) fn compiled(profile: &LinuxSeccomp) -> Option<String> {
    bpf::compile(profile).map(|program| BASE64_STANDARD.encode(program))
}

/// Returns a profile that allows every call, to which rules for a few calls can be added.
fn allow_all() -> LinuxSeccomp {
    let mut profile = LinuxSeccomp::default();
    profile.set_default_action(LinuxSeccompAction::ScmpActAllow);
    set_architectures(&mut profile, architectures(ARCH).to_vec());
    profile
}
