//! The reasons why a template cannot be used. `validate` finds most of them.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::defaults::ROOTFS_PLACEHOLDER;
use super::rlimit::{RlimitKind, Shown};
use crate::chain::chain;

/// The reason why a template cannot be used: the field, its value, and what to do about it.
///
/// The check does not touch the disk. Every function of this crate that touches the disk returns
/// [`Error`](crate::Error), and `?` converts this error into that. The message never repeats its
/// [source](std::error::Error::source): print the chain to see the reason below it.
///
/// `Debug` prints that chain, because a `main` that returns an error prints its `Debug`.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The command is missing.
    #[error("process.args is empty: give the command to run")]
    NoCommand,
    /// The command's first word is the empty string.
    #[error("process.args[0] is empty: give the name or the path of a program")]
    EmptyProgram,
    /// A string with a NUL byte. The kernel ends strings at the first NUL.
    #[error("{field} is {value:?}, which contains a NUL byte: the kernel would truncate it there, so remove the byte")]
    Nul {
        /// The field of `config.json`, with its index: `process.env[2]`.
        field: String,
        /// The string with the NUL.
        value: String,
    },
    /// A path that is not UTF-8, which JSON requires.
    #[error("{field} {path:?} is not UTF-8, and config.json is JSON: {remedy}")]
    NotUtf8 {
        /// The field of `config.json` that the path is for.
        field: &'static str,
        /// The path.
        path: PathBuf,
        /// What to do instead.
        remedy: &'static str,
    },
    /// An invalid name of an environment variable.
    #[error("the environment variable {key:?} cannot be set: a name has at least one character and no `=`")]
    EnvironmentKey {
        /// The name that was given.
        key: String,
    },
    /// An entry in a file's `process.env` that is not an assignment.
    #[error("process.env holds {entry:?}: write it as KEY=VALUE")]
    EnvironmentEntry {
        /// The entry.
        entry: String,
    },
    /// A relative working directory.
    #[error("process.cwd {cwd:?} is relative: give the absolute path that it has inside the container")]
    RelativeCwd {
        /// The path that was given.
        cwd: PathBuf,
    },
    /// A user or group id that means "leave unchanged" to the kernel.
    #[error("{field} is {id}, which setuid(2) and setgid(2) treat as -1: give a lower id")]
    Id {
        /// The field of `config.json`.
        field: &'static str,
        /// The id.
        id: u32,
    },
    /// The text of a user that cannot be parsed.
    #[error("the user {spec:?} {problem}")]
    User {
        /// The whole text.
        spec: String,
        /// The problem and the rule.
        problem: &'static str,
    },
    /// A name that the kernel or `/etc/hosts` cannot hold.
    #[error("the hostname {hostname:?} {problem}")]
    Hostname {
        /// The name that was given.
        hostname: String,
        /// The problem and the rule.
        problem: &'static str,
    },
    /// A mount destination that is not possible.
    #[error("the mount destination {destination:?} {problem}")]
    MountDestination {
        /// The path in the container.
        destination: PathBuf,
        /// The problem and the rule.
        problem: &'static str,
    },
    /// A bind mount without a source, or with a relative one.
    #[error("the bind mount at {destination:?} {problem}: give the absolute path of a file or directory of the host")]
    MountSource {
        /// The path in the container.
        destination: PathBuf,
        /// The problem with its source.
        problem: &'static str,
    },
    /// A setting that this kind of mount does not have, or an invalid value.
    #[error("the mount at {destination:?} cannot have {setting}: {remedy}")]
    MountSetting {
        /// The path in the container.
        destination: PathBuf,
        /// The setting, with its value.
        setting: String,
        /// What to do instead.
        remedy: &'static str,
    },
    /// The text of a mount that cannot be parsed.
    #[error("the mount {spec:?} {problem}")]
    MountSpec {
        /// The whole text.
        spec: String,
        /// The problem and the rule.
        problem: String,
    },
    /// A relative path, or one with `..`, where the configuration does not allow it.
    #[error("{field} is {path:?}: {remedy}")]
    Path {
        /// The field of `config.json`.
        field: &'static str,
        /// The path.
        path: PathBuf,
        /// What to do instead.
        remedy: &'static str,
    },
    /// An invalid list of processors or memory nodes.
    #[error("{field} is {list:?}: write numbers and ranges, separated by commas, as in 0-3,5")]
    CpuList {
        /// The field of `config.json`.
        field: &'static str,
        /// The list that was given.
        list: String,
    },
    /// A quota of processor time that the kernel refuses.
    #[error(
        "the processor quota {quota:?} per {period:?} is not possible: give a period of 1ms to 1s and a quota of at least 1ms"
    )]
    CpuQuota {
        /// The processor time in each period.
        quota: Duration,
        /// The period.
        period: Duration,
    },
    /// A limit with an invalid value.
    #[error("{field} is {value}: {remedy}")]
    Limit {
        /// The field of `config.json`.
        field: &'static str,
        /// The limit that was given.
        value: u64,
        /// What to do instead.
        remedy: &'static str,
    },
    /// A resource limit of the process that the kernel refuses.
    #[error("the limit {kind} of {} (soft) and {} (hard) {problem}", Shown(*soft), Shown(*hard))]
    Rlimit {
        /// The limited resource.
        kind: RlimitKind,
        /// The soft limit.
        soft: u64,
        /// The hard limit.
        hard: u64,
        /// The problem and the rule.
        problem: &'static str,
    },
    /// A resource limit that the calling process may not give to a container.
    #[error("the limit {kind} of {} is above {highest}, the most that this process may give: {remedy}", Shown(*hard))]
    RlimitBeyondCaller {
        /// The limited resource.
        kind: RlimitKind,
        /// The requested hard limit.
        hard: u64,
        /// The highest possible hard limit.
        highest: u64,
        /// What to do instead.
        remedy: &'static str,
    },
    /// The text of a resource limit that cannot be parsed.
    #[error("the limit {spec:?} {problem}")]
    RlimitSpec {
        /// The whole text.
        spec: String,
        /// The problem and the rule.
        problem: String,
    },
    /// A configuration without the placeholder for the root file system.
    #[error("root.path is missing: write {:?} there, the placeholder for the root file system", ROOTFS_PLACEHOLDER)]
    RootAbsent,
    /// A configuration that already has a root file system.
    #[error(
        "root.path is {found:?} and would be overwritten: write {:?} there, the placeholder for the root file system",
        ROOTFS_PLACEHOLDER
    )]
    RootFilled {
        /// The path in the configuration.
        found: String,
    },
    /// The text of a capability that does not exist.
    #[error("the capability {name:?} is unknown: the names are those of capabilities(7), as in net_admin")]
    Capability {
        /// The whole text.
        name: String,
    },
    /// A seccomp profile with a condition of Docker's own format. Without the condition, the rule
    /// would apply to every container.
    #[error(
        "the seccomp profile has {key:?} in its rule {rule}, which only Docker understands: write the rules that apply as a linux.seccomp of the OCI runtime specification"
    )]
    SeccompCondition {
        /// The index of the rule in `syscalls`.
        rule: usize,
        /// The key: `includes` or `excludes`.
        key: &'static str,
    },
    /// A seccomp profile that is not one of the OCI runtime specification.
    #[error("the seccomp profile is not a linux.seccomp of the OCI runtime specification")]
    Seccomp {
        /// The reason.
        source: serde_json::Error,
    },
    /// JSON that is not a configuration of the OCI runtime specification.
    #[error("not a config.json of the OCI runtime specification")]
    NotASpec {
        /// Line, column and reason.
        source: serde_json::Error,
    },
    /// A value that cannot be written as JSON.
    #[error("cannot write the configuration as JSON")]
    Serialize {
        /// The reason.
        source: serde_json::Error,
    },
}

impl fmt::Debug for TemplateError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&chain(self))
    }
}
