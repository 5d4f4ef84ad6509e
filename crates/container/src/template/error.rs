use std::path::PathBuf;
use std::time::Duration;

use super::defaults::ROOTFS_PLACEHOLDER;
use super::rlimit::{RlimitKind, Shown};

/// The reason why a template cannot be used: the field, its value, and what to do about it.
///
/// The check touches nothing on disk. Every function of this crate that does returns [`Error`](crate::Error), into which
/// `?` converts this one. The message never repeats its [source](std::error::Error::source): print the chain to see the
/// reason below it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// There is no command to run.
    #[error("process.args is empty: give the command to run")]
    NoCommand,
    /// The command's first word is the empty string.
    #[error("process.args[0] is empty: give the name or the path of a program")]
    EmptyProgram,
    /// A string that has to pass through the kernel, which ends strings at the first NUL.
    #[error("{field} is {value:?}, with a NUL byte: the kernel would cut it short there, so take it out")]
    Nul {
        /// The field of `config.json`, with its index: `process.env[2]`.
        field: String,
        /// The string with the NUL.
        value: String,
    },
    /// A path that JSON cannot carry.
    #[error("{field} {path:?} is not UTF-8, and config.json is JSON: {remedy}")]
    NotUtf8 {
        /// The field of `config.json` that the path is for.
        field: &'static str,
        /// The path.
        path: PathBuf,
        /// What to do instead.
        remedy: &'static str,
    },
    /// The name of an environment variable that no program could look up.
    #[error("the environment variable {key:?} cannot be set: a name has at least one character and no `=`")]
    EnvironmentKey {
        /// The name that was given.
        key: String,
    },
    /// An entry of a file's environment that is no assignment.
    #[error("process.env holds {entry:?}: write it as KEY=VALUE")]
    EnvironmentEntry {
        /// The entry.
        entry: String,
    },
    /// A working directory that is relative to nothing.
    #[error("process.cwd {cwd:?} is relative: give the absolute path that it has inside the container")]
    RelativeCwd {
        /// The path that was given.
        cwd: PathBuf,
    },
    /// A user or group id that means "leave unchanged" to the kernel.
    #[error("{field} is {id}, which setuid(2) and setgid(2) take for -1: give an id below it")]
    Id {
        /// The field of `config.json`.
        field: &'static str,
        /// The id.
        id: u32,
    },
    /// A user written as text that cannot be read.
    #[error("the user {spec:?} {problem}")]
    User {
        /// The whole text.
        spec: String,
        /// What is wrong with it, and the rule.
        problem: &'static str,
    },
    /// A name that the kernel or `/etc/hosts` cannot hold.
    #[error("the hostname {hostname:?} {problem}")]
    Hostname {
        /// The name that was given.
        hostname: String,
        /// What is wrong with it, and the rule.
        problem: &'static str,
    },
    /// A mount over something that cannot be mounted over.
    #[error("the mount destination {destination:?} {problem}")]
    MountDestination {
        /// Where the mount was to appear in the container.
        destination: PathBuf,
        /// What is wrong with it, and the rule.
        problem: &'static str,
    },
    /// A bind mount of nothing, or of a path that is relative to nothing.
    #[error("the bind mount at {destination:?} {problem}: give the absolute path of a file or directory of the host")]
    MountSource {
        /// Where the mount was to appear in the container.
        destination: PathBuf,
        /// What is wrong with its source.
        problem: &'static str,
    },
    /// A setting that this kind of mount does not have, or a value it cannot take.
    #[error("the mount at {destination:?} cannot have {setting}: {remedy}")]
    MountSetting {
        /// Where the mount was to appear in the container.
        destination: PathBuf,
        /// The setting, with its value.
        setting: String,
        /// What to do instead.
        remedy: &'static str,
    },
    /// A mount written as text that cannot be read.
    #[error("the mount {spec:?} {problem}")]
    MountSpec {
        /// The whole text.
        spec: String,
        /// What is wrong with it, and the rule.
        problem: String,
    },
    /// A path that has to be absolute, or stay below where it starts.
    #[error("{field} is {path:?}: {remedy}")]
    Path {
        /// The field of `config.json`.
        field: &'static str,
        /// The path.
        path: PathBuf,
        /// What to do instead.
        remedy: &'static str,
    },
    /// A list of processors or memory nodes that is none.
    #[error("{field} is {list:?}: write numbers and ranges, separated by commas, as in 0-3,5")]
    CpuList {
        /// The field of `config.json`.
        field: &'static str,
        /// The list that was given.
        list: String,
    },
    /// A share of processor time that the kernel refuses.
    #[error(
        "the processor quota {quota:?} in every {period:?}: the period lies between 1ms and 1s, the quota is 1ms or more"
    )]
    CpuQuota {
        /// Processor time in each period.
        quota: Duration,
        /// The period.
        period: Duration,
    },
    /// A limit that is no limit.
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
        /// Which limit.
        kind: RlimitKind,
        /// What the process may use.
        soft: u64,
        /// What it may raise the soft limit to.
        hard: u64,
        /// What is wrong, and the rule.
        problem: &'static str,
    },
    /// A resource limit that the process which runs the container may not give to it.
    #[error("the limit {kind} of {} is above {highest}, the most that this process may give: {remedy}", Shown(*hard))]
    RlimitBeyondCaller {
        /// Which limit.
        kind: RlimitKind,
        /// The hard limit that was asked for.
        hard: u64,
        /// The highest one that is possible.
        highest: u64,
        /// What to do instead.
        remedy: &'static str,
    },
    /// A resource limit written as text that cannot be read.
    #[error("the limit {spec:?} {problem}")]
    RlimitSpec {
        /// The whole text.
        spec: String,
        /// What is wrong with it, and the rule.
        problem: String,
    },
    /// A configuration without a root file system to fill in.
    #[error("root.path is absent: write {:?} there, the place of the root file system", ROOTFS_PLACEHOLDER)]
    RootAbsent,
    /// A configuration whose root file system is fixed already.
    #[error(
        "root.path is {found:?} and would be overwritten: write {:?} there, the place of the root file system",
        ROOTFS_PLACEHOLDER
    )]
    RootFilled {
        /// What stands there.
        found: String,
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
