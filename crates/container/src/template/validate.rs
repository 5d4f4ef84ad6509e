//! Checks a template before anything is mounted. The runtime checks everything that only a run can
//! find out: whether the program exists, and whether the machine has these processors.

use std::path::{Component, Path};

use oci_spec::runtime::{self as oci, Spec};
use serde::Deserialize;
use serde_json::Value;

use super::choices::Network;
use super::defaults::{ROOTFS_OF_RUNTIMES, ROOTFS_PLACEHOLDER};
use super::error::TemplateError;
use super::fields::{CpuQuota, Fields};
use super::mount::Mount;
use super::rlimit::RlimitKind;
use crate::user::{NOBODY, UserSpec};

/// The longest name that sethostname(2) accepts, in bytes: `HOST_NAME_MAX` in gethostname(2).
const HOST_NAME_MAX: usize = 64;

/// Checks the properties of the fields that a configuration cannot express or no longer shows.
pub(super) fn fields(fields: &Fields) -> Result<(), TemplateError> {
    fields.env.iter().try_for_each(|(key, _)| environment_key(key))?;
    utf8("process.cwd", &fields.cwd)?;
    fields.mounts.iter().try_for_each(mount)?;
    if let Network::Joined(path) = &fields.network {
        utf8("linux.namespaces[].path", path)?;
    }
    if let Some(path) = &fields.cgroups_path {
        utf8("linux.cgroupsPath", path)?;
    }
    fits_signed("linux.resources.memory.limit", fields.memory_limit_bytes)?;
    fits_signed("linux.resources.pids.limit", fields.pids_limit)?;
    if let Some(CpuQuota { quota, period }) = fields.cpu_quota {
        // kernel/sched/core.c, tg_set_cfs_bandwidth: min_cfs_quota_period and max_cfs_quota_period.
        let (quota_us, period_us) = (quota.as_micros(), period.as_micros());
        if quota_us < 1_000 || !(1_000..=1_000_000).contains(&period_us) {
            return Err(TemplateError::CpuQuota { quota, period });
        }
    }
    if let Some(limit) = fields.rlimits.iter().find(|limit| limit.kind == RlimitKind::Nofile) {
        if limit.soft == 0 {
            return Err(TemplateError::Limit {
                field: "process.rlimits[RLIMIT_NOFILE]",
                value: 0,
                remedy: "no program could start; give the number of files that each process may have open",
            });
        }
    }
    Ok(())
}

/// Checks the name of an environment variable.
pub(super) fn environment_key(key: &str) -> Result<(), TemplateError> {
    match key.is_empty() || key.contains('=') {
        true => Err(TemplateError::EnvironmentKey { key: key.to_owned() }),
        false => Ok(()),
    }
}

/// Checks the properties of a mount that its JSON cannot express or no longer shows.
pub(super) fn mount(mount: &Mount) -> Result<(), TemplateError> {
    mount.validate()?;
    utf8("mounts[].destination", mount.destination())?;
    mount.source().map_or(Ok(()), |path| utf8("mounts[].source", path))
}

/// Checks a whole configuration from a file.
pub(super) fn value(value: &Value) -> Result<(), TemplateError> {
    let spec = Spec::deserialize(value).map_err(|source| TemplateError::NotASpec { source })?;
    configuration(value, &spec)
}

/// Checks a whole configuration, whose JSON is `value`.
pub(super) fn configuration(value: &Value, spec: &Spec) -> Result<(), TemplateError> {
    match value.pointer("/root/path").and_then(Value::as_str) {
        Some(ROOTFS_PLACEHOLDER | ROOTFS_OF_RUNTIMES) => {}
        None | Some("") => return Err(TemplateError::RootAbsent),
        Some(found) => return Err(TemplateError::RootFilled { found: found.to_owned() }),
    }
    // Annotations are not passed to any system call and may contain anything.
    for field in ["process", "hostname", "domainname", "mounts", "linux"] {
        no_nul(field, &value[field])?;
    }

    let Some(process) = spec.process() else { return Err(TemplateError::NoCommand) };
    args(process.args().as_deref().unwrap_or_default())?;
    environment(process.env().as_deref().unwrap_or_default())?;
    if !process.cwd().is_absolute() {
        return Err(TemplateError::RelativeCwd { cwd: process.cwd().clone() });
    }
    user(process.user())?;
    rlimits(process.rlimits().as_deref().unwrap_or_default())?;
    if let Some(name) = spec.hostname() {
        hostname(name)?;
    }
    spec.mounts().iter().flatten().try_for_each(mount_entry)?;
    if let Some(linux) = spec.linux() {
        self::linux(linux)?;
    }
    Ok(())
}

/// Checks that there is a command.
pub(super) fn args(argv: &[String]) -> Result<(), TemplateError> {
    match argv.first() {
        None => Err(TemplateError::NoCommand),
        Some(program) if program.is_empty() => Err(TemplateError::EmptyProgram),
        Some(_) => Ok(()),
    }
}

/// Checks that no string in `value`, the content of `field`, contains a NUL.
pub(super) fn no_nul(field: &str, value: &Value) -> Result<(), TemplateError> {
    match nul_in(value) {
        Some((place, text)) => Err(TemplateError::Nul { field: format!("{field}{place}"), value: text.to_owned() }),
        None => Ok(()),
    }
}

/// Returns the first string in `value` that contains a NUL, after its place: `.args[1]`. Builds the
/// place only for that string, because a seccomp profile has a thousand others.
fn nul_in(value: &Value) -> Option<(String, &str)> {
    match value {
        Value::String(text) => text.contains('\0').then_some((String::new(), text)),
        Value::Array(items) => items.iter().enumerate().find_map(|(index, item)| {
            let (place, text) = nul_in(item)?;
            Some((format!("[{index}]{place}"), text))
        }),
        Value::Object(entries) => entries.iter().find_map(|(key, item)| {
            let (place, text) = nul_in(item)?;
            Some((format!(".{key}{place}"), text))
        }),
        _ => None,
    }
}

fn utf8(field: &'static str, path: &Path) -> Result<(), TemplateError> {
    match path.to_str() {
        Some(_) => Ok(()),
        None => Err(TemplateError::NotUtf8 { field, path: path.to_owned(), remedy: "name it by a path that is" }),
    }
}

fn fits_signed(field: &'static str, limit: Option<u64>) -> Result<(), TemplateError> {
    match limit {
        Some(value) if i64::try_from(value).is_err() => {
            Err(TemplateError::Limit { field, value, remedy: "that needs more than 63 bits; omit it for no limit" })
        }
        _ => Ok(()),
    }
}

fn environment(entries: &[String]) -> Result<(), TemplateError> {
    match entries.iter().find(|entry| matches!(entry.find('='), None | Some(0))) {
        Some(entry) => Err(TemplateError::EnvironmentEntry { entry: entry.clone() }),
        None => Ok(()),
    }
}

/// Checks the user of a configuration.
pub(super) fn user(user: &oci::User) -> Result<(), TemplateError> {
    let additional = user.additional_gids().iter().flatten().map(|gid| ("process.user.additionalGids", *gid));
    let ids = [("process.user.uid", user.uid()), ("process.user.gid", user.gid())];
    if let Some((field, id)) = ids.into_iter().chain(additional).find(|(_, id)| *id == u32::MAX) {
        return Err(TemplateError::Id { field, id });
    }
    match user.username().as_deref() {
        // Programs written in Go write an absent string as an empty one.
        None | Some("") => Ok(()),
        Some(_) if (user.uid(), user.gid()) != (NOBODY, NOBODY) => Ok(()),
        Some(name) => name.parse::<UserSpec>().map(drop),
    }
}

fn rlimits(limits: &[oci::PosixRlimit]) -> Result<(), TemplateError> {
    for (index, limit) in limits.iter().enumerate() {
        let (kind, soft, hard) = (limit.typ(), limit.soft(), limit.hard());
        let problem = if soft > hard {
            "is refused by the kernel: the soft limit must not exceed the hard limit"
        } else if limits[..index].iter().any(|earlier| earlier.typ() == kind) {
            // config.md, "POSIX process", requires runtimes to generate an error.
            "is given twice: keep one of them"
        } else {
            continue;
        };
        return Err(TemplateError::Rlimit { kind: RlimitKind::of_spec(kind), soft, hard, problem });
    }
    Ok(())
}

fn hostname(hostname: &str) -> Result<(), TemplateError> {
    let problem = if hostname.is_empty() {
        "is empty: omit it to use the host's"
    } else if hostname.len() > HOST_NAME_MAX {
        "is too long: the kernel takes at most 64 bytes"
    } else if hostname.chars().any(|c| c.is_whitespace() || c.is_control() || c == '#') {
        // hosts(5): white space ends a field, and `#` starts a comment.
        "cannot be written to /etc/hosts: it contains white space, a control character or `#`"
    } else {
        return Ok(());
    };
    Err(TemplateError::Hostname { hostname: hostname.to_owned(), problem })
}

/// Checks a mount of a configuration.
pub(super) fn mount_entry(mount: &oci::Mount) -> Result<(), TemplateError> {
    destination(mount.destination())?;
    source(mount)
}

fn destination(destination: &Path) -> Result<(), TemplateError> {
    let problem = if !destination.is_absolute() {
        "is relative: give the absolute path that it has inside the container"
    } else if destination.components().any(|part| part == Component::ParentDir) {
        "contains `..`: write the path that it leads to"
    } else if destination.components().all(|part| part == Component::RootDir) {
        "is the root file system itself: mount on a directory in it"
    } else {
        return Ok(());
    };
    Err(TemplateError::MountDestination { destination: destination.to_owned(), problem })
}

fn source(mount: &oci::Mount) -> Result<(), TemplateError> {
    let has_bind_option = mount.options().iter().flatten().any(|option| option == "bind" || option == "rbind");
    if !has_bind_option && mount.typ().as_deref() != Some("bind") {
        return Ok(());
    }
    let problem = match mount.source() {
        None => "has no source",
        Some(source) if source.as_os_str().is_empty() => "has no source",
        // By the specification, it would be relative to the bundle, which is a scratch directory
        // here.
        Some(source) if !source.is_absolute() => "has a relative source",
        Some(_) => return Ok(()),
    };
    Err(TemplateError::MountSource { destination: mount.destination().clone(), problem })
}

fn linux(linux: &oci::Linux) -> Result<(), TemplateError> {
    if let Some(path) = linux.cgroups_path() {
        if path.components().any(|part| part == Component::ParentDir) {
            let remedy = "write it without `..`, which could lead out of the group that limits it";
            return Err(TemplateError::Path { field: "linux.cgroupsPath", path: path.clone(), remedy });
        }
    }
    for path in linux.namespaces().iter().flatten().filter_map(|namespace| namespace.path().as_ref()) {
        if !path.is_absolute() && !path.as_os_str().is_empty() {
            let remedy = "give the absolute path of the namespace's file";
            return Err(TemplateError::Path { field: "linux.namespaces[].path", path: path.clone(), remedy });
        }
    }
    let Some(resources) = linux.resources() else { return Ok(()) };
    // runc treats a limit of 0 as no limit, and the kernel as one that no process can live under.
    let zeros = [
        ("linux.resources.memory.limit", resources.memory().and_then(|memory| memory.limit())),
        ("linux.resources.pids.limit", resources.pids().map(|pids| pids.limit())),
    ];
    if let Some((field, _)) = zeros.into_iter().find(|(_, limit)| *limit == Some(0)) {
        return Err(TemplateError::Limit {
            field,
            value: 0,
            remedy: "omit it for no limit, or give a positive number",
        });
    }
    if let Some(cpu) = resources.cpu() {
        cpu_list("linux.resources.cpu.cpus", cpu.cpus().as_deref())?;
        cpu_list("linux.resources.cpu.mems", cpu.mems().as_deref())?;
    }
    Ok(())
}

/// Checks a list against cpuset(7), "List Format".
fn cpu_list(field: &'static str, list: Option<&str>) -> Result<(), TemplateError> {
    let number =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u32>().ok()).flatten();
    let part = |part: &str| match part.split_once('-') {
        None => number(part).is_some(),
        Some((first, last)) => matches!((number(first), number(last)), (Some(first), Some(last)) if first <= last),
    };
    match list {
        Some(list) if !list.split(',').all(part) => Err(TemplateError::CpuList { field, list: list.to_owned() }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
