//! Resource limits of the command's processes: the text that a command line has for one, and what the caller may give.

use std::fmt;
use std::fs;
use std::str::FromStr;

use oci_spec::runtime::PosixRlimitType;
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};

use super::defaults::OPEN_FILES;
use super::error::TemplateError;

/// A limit of [`setrlimit(2)`], in the unit that it has there.
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
    /// What it limits.
    pub kind: PosixRlimitType,
    /// What a process may use.
    pub soft: u64,
    /// What a process may raise the soft limit to.
    pub hard: u64,
}

/// The names that Docker's `--ulimit` has, and `as`.
const NAMES: [(&str, PosixRlimitType, Resource); 16] = [
    ("as", PosixRlimitType::RlimitAs, Resource::As),
    ("core", PosixRlimitType::RlimitCore, Resource::Core),
    ("cpu", PosixRlimitType::RlimitCpu, Resource::Cpu),
    ("data", PosixRlimitType::RlimitData, Resource::Data),
    ("fsize", PosixRlimitType::RlimitFsize, Resource::Fsize),
    ("locks", PosixRlimitType::RlimitLocks, Resource::Locks),
    ("memlock", PosixRlimitType::RlimitMemlock, Resource::Memlock),
    ("msgqueue", PosixRlimitType::RlimitMsgqueue, Resource::Msgqueue),
    ("nice", PosixRlimitType::RlimitNice, Resource::Nice),
    ("nofile", PosixRlimitType::RlimitNofile, Resource::Nofile),
    ("nproc", PosixRlimitType::RlimitNproc, Resource::Nproc),
    ("rss", PosixRlimitType::RlimitRss, Resource::Rss),
    ("rtprio", PosixRlimitType::RlimitRtprio, Resource::Rtprio),
    ("rttime", PosixRlimitType::RlimitRttime, Resource::Rttime),
    ("sigpending", PosixRlimitType::RlimitSigpending, Resource::Sigpending),
    ("stack", PosixRlimitType::RlimitStack, Resource::Stack),
];

impl Rlimit {
    /// No limit: `RLIM_INFINITY`.
    pub const UNLIMITED: u64 = u64::MAX;
}

/// Reads what the `--ulimit` of Docker takes: `NAME=SOFT[:HARD]`.
///
/// ```text
/// nofile=4096:65536
/// core=0
/// memlock=unlimited
/// ```
///
/// The names are `as`, `core`, `cpu`, `data`, `fsize`, `locks`, `memlock`, `msgqueue`, `nice`, `nofile`, `nproc`, `rss`, `rtprio`,
/// `rttime`, `sigpending` and `stack`. A limit is a number, or `unlimited` or `-1`. Without a hard limit the soft one is both.
impl FromStr for Rlimit {
    type Err = TemplateError;

    fn from_str(spec: &str) -> Result<Rlimit, TemplateError> {
        parse(spec).map_err(|problem| TemplateError::RlimitSpec { spec: spec.to_owned(), problem })
    }
}

fn parse(spec: &str) -> Result<Rlimit, String> {
    let Some((name, limits)) = spec.split_once('=') else {
        return Err("has no value: write NAME=SOFT or NAME=SOFT:HARD, as in nofile=1024:4096".to_owned());
    };
    let Some((_, kind, _)) = NAMES.iter().find(|(known, ..)| *known == name) else {
        return Err(format!("has an unknown name {name:?}: it can be {}", NAMES.map(|(known, ..)| known).join(", ")));
    };
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let (soft, hard) = (number(soft)?, number(hard)?);
    if soft > hard {
        return Err("has a soft limit above the hard one: the soft limit comes first".to_owned());
    }
    Ok(Rlimit { kind: *kind, soft, hard })
}

fn number(text: &str) -> Result<u64, String> {
    match text {
        "unlimited" | "-1" => Ok(Rlimit::UNLIMITED),
        // `parse` takes a sign.
        _ if text.starts_with('+') => Err(text),
        _ => text.parse().map_err(|_| text),
    }
    .map_err(|text| format!("has the limit {text:?}: write a number, or unlimited"))
}

/// A limit as people read it.
pub(super) struct Shown(pub(super) u64);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Rlimit::UNLIMITED => f.write_str("unlimited"),
            limit => limit.fmt(f),
        }
    }
}

/// The hard limit of the calling process.
pub(super) fn of_caller(resource: Resource) -> u64 {
    getrlimit(resource).maximum.unwrap_or(Rlimit::UNLIMITED)
}

/// The default limit of open files where the caller's own hard limit is lower.
pub(super) fn lowered_open_files(of_caller: u64) -> Option<Rlimit> {
    let lowered = Rlimit { soft: OPEN_FILES.soft.min(of_caller), hard: of_caller, ..OPEN_FILES };
    (of_caller < OPEN_FILES.hard).then_some(lowered)
}

/// Refuses a limit that the calling process may not give to a container: without CAP_SYS_RESOURCE one above its own hard limit,
/// and in any case more open files than the kernel has for one process.
pub(super) fn check_for_caller(limit: &Rlimit) -> Result<(), TemplateError> {
    let is_privileged = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_RESOURCE));
    let resource = NAMES.iter().find(|(_, kind, _)| *kind == limit.kind).map(|(.., resource)| *resource);
    let own = resource.filter(|_| !is_privileged).map_or(Rlimit::UNLIMITED, of_caller);
    let open_files = match limit.kind {
        PosixRlimitType::RlimitNofile => fs::read_to_string("/proc/sys/fs/nr_open").ok(),
        _ => None,
    };
    let kernels = open_files.and_then(|text| text.trim().parse().ok()).unwrap_or(Rlimit::UNLIMITED);
    check(limit, own, kernels)
}

fn check(limit: &Rlimit, of_caller: u64, of_kernel: u64) -> Result<(), TemplateError> {
    let (highest, remedy) = match of_caller <= of_kernel {
        true => (of_caller, "ask for at most that, raise the caller's own hard limit, or give it CAP_SYS_RESOURCE"),
        false => (of_kernel, "ask for at most that, or raise the sysctl fs.nr_open"),
    };
    match limit.hard > highest {
        true => Err(TemplateError::RlimitBeyondCaller { kind: limit.kind, hard: limit.hard, highest, remedy }),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_docker_takes() {
        use PosixRlimitType::{RlimitAs, RlimitCore, RlimitMemlock, RlimitNofile, RlimitStack};
        let table = [
            ("nofile=1024:524288", RlimitNofile, 1024, 524_288),
            ("nofile=64", RlimitNofile, 64, 64),
            ("core=0", RlimitCore, 0, 0),
            ("memlock=-1", RlimitMemlock, Rlimit::UNLIMITED, Rlimit::UNLIMITED),
            ("stack=8388608:unlimited", RlimitStack, 8_388_608, Rlimit::UNLIMITED),
            ("as=18446744073709551615", RlimitAs, Rlimit::UNLIMITED, Rlimit::UNLIMITED),
        ];
        for (spec, kind, soft, hard) in table {
            assert_eq!(spec.parse::<Rlimit>().unwrap(), Rlimit { kind, soft, hard }, "{spec}");
        }
        let names =
            "as core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack";
        for name in names.split(' ') {
            let limit = format!("{name}=1:2").parse::<Rlimit>().unwrap();
            assert_eq!(limit.kind.to_string(), format!("RLIMIT_{}", name.to_uppercase()));
        }
    }

    #[test]
    fn refuses_the_rest_by_name() {
        let no_value = "has no value: write NAME=SOFT or NAME=SOFT:HARD, as in nofile=1024:4096";
        let limit = |text: &str| format!("has the limit {text:?}: write a number, or unlimited");
        let unknown = |name: &str| {
            format!(
                "has an unknown name {name:?}: it can be as, core, cpu, data, fsize, locks, memlock, msgqueue, nice, nofile, \
                 nproc, rss, rtprio, rttime, sigpending, stack"
            )
        };
        let order = "has a soft limit above the hard one: the soft limit comes first";
        let table = [
            ("", no_value.into()),
            ("nofile", no_value.into()),
            ("nofile:1", no_value.into()),
            ("=1", unknown("")),
            ("NOFILE=1", unknown("NOFILE")),
            ("files=1", unknown("files")),
            ("nofile=", limit("")),
            ("nofile=1:", limit("")),
            ("nofile=:1", limit("")),
            ("nofile=1:2:3", limit("2:3")),
            ("nofile=+1", limit("+1")),
            ("nofile=-2", limit("-2")),
            ("nofile= 1", limit(" 1")),
            ("nofile=1k", limit("1k")),
            ("nofile=18446744073709551616", limit("18446744073709551616")),
            ("nofile=2:1", order.into()),
            ("core=unlimited:0", order.into()),
        ];
        for (spec, problem) in table {
            let error = spec.parse::<Rlimit>().unwrap_err();
            assert_eq!(error.to_string(), format!("the limit {spec:?} {problem}"));
        }
    }

    #[test]
    fn the_default_limit_of_open_files_is_lowered_to_the_callers() {
        let table = [
            (Rlimit::UNLIMITED, None),
            (524_288, None),
            (524_287, Some((1024, 524_287))),
            (1024, Some((1024, 1024))),
            (256, Some((256, 256))),
        ];
        for (of_caller, expected) in table {
            let lowered = lowered_open_files(of_caller).map(|limit| (limit.soft, limit.hard));
            assert_eq!(lowered, expected, "{of_caller}");
        }
    }

    #[test]
    fn a_limit_beyond_the_callers_is_refused() {
        let limit = |hard| Rlimit { kind: PosixRlimitType::RlimitNofile, soft: 1, hard };
        let refused = |hard, of_caller, of_kernel| check(&limit(hard), of_caller, of_kernel).map_err(|e| e.to_string());
        let no_limit = Rlimit::UNLIMITED;
        assert_eq!(refused(4096, 4096, no_limit), Ok(()));
        assert_eq!(refused(no_limit, no_limit, no_limit), Ok(()));
        assert_eq!(
            refused(4097, 4096, 1 << 20),
            Err("the limit RLIMIT_NOFILE of 4097 is above 4096, the most that this process may give: ask for at most that, raise the caller's own hard limit, or give it CAP_SYS_RESOURCE".into())
        );
        assert_eq!(
            refused(no_limit, no_limit, 1 << 20),
            Err("the limit RLIMIT_NOFILE of unlimited is above 1048576, the most that this process may give: ask for at most that, or raise the sysctl fs.nr_open".into())
        );
    }
}
