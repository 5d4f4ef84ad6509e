//! A resource limit of the command's processes. `rlimit_spec` reads one from text, and
//! `caller_limits` compares it with the limits of the calling process.

use std::fmt;

use oci_spec::runtime::PosixRlimitType;
use rustix::process::Resource;

/// A limit of [`setrlimit(2)`], in the unit that the kernel uses for it.
///
/// ```
/// use container::{Rlimit, Template};
///
/// let limit: Rlimit = "nofile=4096:65536".parse()?;
/// let template = Template::builder(["true"]).rlimit(limit.kind, limit.soft, limit.hard).build()?;
/// # Ok::<(), container::TemplateError>(())
/// ```
///
/// [`setrlimit(2)`]: https://man7.org/linux/man-pages/man2/getrlimit.2.html
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rlimit {
    /// The limited resource.
    pub kind: RlimitKind,
    /// The limit that the kernel enforces.
    pub soft: u64,
    /// The value up to which a process may raise the soft limit.
    pub hard: u64,
}

/// The resource that an [`Rlimit`] limits. Displayed as in `config.json`: `RLIMIT_NOFILE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RlimitKind {
    /// The address space, in bytes.
    As,
    /// A core file, in bytes.
    Core,
    /// Processor time, in seconds.
    Cpu,
    /// The data segment, in bytes.
    Data,
    /// A file that the process writes, in bytes.
    Fsize,
    /// File locks and leases. Linux does not enforce this limit since 2.4.25.
    Locks,
    /// Locked memory, in bytes.
    Memlock,
    /// POSIX message queues of the user, in bytes.
    Msgqueue,
    /// The ceiling of the nice value: 20 minus this limit.
    Nice,
    /// Open files: one more than the highest descriptor.
    Nofile,
    /// Processes and threads of the user.
    Nproc,
    /// Resident memory, in bytes. Linux does not enforce this limit since 2.4.30.
    Rss,
    /// The ceiling of the real-time priority.
    Rtprio,
    /// Processor time of a real-time process between blocking calls, in microseconds.
    Rttime,
    /// Queued signals of the user.
    Sigpending,
    /// The stack, in bytes.
    Stack,
}

/// One row per kind, in the order of the enum: the name in Docker's `--ulimit` (which does not have
/// `as`), the type in the specification, and the kernel's resource.
const KINDS: [(RlimitKind, &str, PosixRlimitType, Resource); 16] = [
    (RlimitKind::As, "as", PosixRlimitType::RlimitAs, Resource::As),
    (RlimitKind::Core, "core", PosixRlimitType::RlimitCore, Resource::Core),
    (RlimitKind::Cpu, "cpu", PosixRlimitType::RlimitCpu, Resource::Cpu),
    (RlimitKind::Data, "data", PosixRlimitType::RlimitData, Resource::Data),
    (RlimitKind::Fsize, "fsize", PosixRlimitType::RlimitFsize, Resource::Fsize),
    (RlimitKind::Locks, "locks", PosixRlimitType::RlimitLocks, Resource::Locks),
    (RlimitKind::Memlock, "memlock", PosixRlimitType::RlimitMemlock, Resource::Memlock),
    (RlimitKind::Msgqueue, "msgqueue", PosixRlimitType::RlimitMsgqueue, Resource::Msgqueue),
    (RlimitKind::Nice, "nice", PosixRlimitType::RlimitNice, Resource::Nice),
    (RlimitKind::Nofile, "nofile", PosixRlimitType::RlimitNofile, Resource::Nofile),
    (RlimitKind::Nproc, "nproc", PosixRlimitType::RlimitNproc, Resource::Nproc),
    (RlimitKind::Rss, "rss", PosixRlimitType::RlimitRss, Resource::Rss),
    (RlimitKind::Rtprio, "rtprio", PosixRlimitType::RlimitRtprio, Resource::Rtprio),
    (RlimitKind::Rttime, "rttime", PosixRlimitType::RlimitRttime, Resource::Rttime),
    (RlimitKind::Sigpending, "sigpending", PosixRlimitType::RlimitSigpending, Resource::Sigpending),
    (RlimitKind::Stack, "stack", PosixRlimitType::RlimitStack, Resource::Stack),
];

impl Rlimit {
    /// No limit: `RLIM_INFINITY`.
    pub const UNLIMITED: u64 = u64::MAX;
}

impl RlimitKind {
    /// Returns the kind that `--ulimit` calls `name`.
    pub(super) fn named(name: &str) -> Option<Self> {
        KINDS.into_iter().find(|(_, known, ..)| *known == name).map(|(kind, ..)| kind)
    }

    /// Returns the names that [`named`](Self::named) knows.
    pub(super) fn names() -> [&'static str; KINDS.len()] {
        KINDS.map(|(_, name, ..)| name)
    }

    pub(super) fn of_spec(of_spec: PosixRlimitType) -> Self {
        let row = KINDS.into_iter().find(|(.., known, _)| *known == of_spec);
        row.map(|(kind, ..)| kind).expect("every type of the specification has a row")
    }

    pub(super) fn to_spec(self) -> PosixRlimitType {
        KINDS[self as usize].2
    }

    pub(super) fn resource(self) -> Resource {
        KINDS[self as usize].3
    }
}

impl fmt::Display for RlimitKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "RLIMIT_{}", KINDS[*self as usize].1.to_ascii_uppercase())
    }
}

/// Displays a limit, or `unlimited`.
pub(super) struct Shown(pub(super) u64);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Rlimit::UNLIMITED => f.write_str("unlimited"),
            limit => limit.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_own_row() {
        for (index, (kind, _, of_spec, _)) in KINDS.into_iter().enumerate() {
            assert_eq!((kind as usize, RlimitKind::of_spec(of_spec)), (index, kind));
            assert_eq!(kind.to_string(), of_spec.to_string());
        }
    }
}
