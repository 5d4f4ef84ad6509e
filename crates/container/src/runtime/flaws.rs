//! Known flaws of runtimes, as data. `version` finds those of the installed runtime.
//!
//! The table has only flaws that can affect a run and that the runtime's authors have published or
//! that were measured. It omits flaws in how runtimes follow a layer's links in `/dev`
//! (CVE-2026-41579, CVE-2026-47766), because [`Rootfs::refuse_links`](crate::Rootfs::refuse_links)
//! prevents them.

/// A flaw of some versions of a runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Flaw {
    /// The runtime's name.
    pub name: &'static str,
    /// The affected versions as half-open ranges: the first affected one, and the first one that is
    /// not.
    affected: &'static [(Number, Number)],
    /// Distributions' builds of these versions that contain the fix.
    fixed_builds: &'static [Build],
    /// The effect on a run.
    pub effect: &'static str,
    /// The remedy, usually the first fixed version of each release series.
    pub remedy: &'static str,
    /// The address of the publication.
    pub source: &'static str,
}

/// Major, minor, patch, and the number of a release candidate. A release has [`RELEASE`] there,
/// because it is later than its candidates.
pub(super) type Number = (u32, u32, u32, u32);

pub(super) const RELEASE: u32 = u32::MAX;

/// The versions of a package that begin with `prefix` and end with a number of at least `first`:
/// `1.1.5+ds1-1+deb12u` and 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Build {
    prefix: &'static str,
    first: u32,
}

impl Flaw {
    /// Returns whether a version has the flaw. `builds` are the package versions that the runtime
    /// reports.
    pub(super) fn concerns(&self, name: &str, number: Number, builds: &[&str]) -> bool {
        let is_affected = self.affected.iter().any(|(first, fixed)| (*first..*fixed).contains(&number));
        let is_fixed = self.fixed_builds.iter().any(|fixed| builds.iter().any(|build| fixed.includes(build)));
        self.name == name && is_affected && !is_fixed
    }
}

impl Build {
    fn includes(self, build: &str) -> bool {
        let rest = build.strip_prefix(self.prefix).unwrap_or_default();
        let digits = rest.find(|c: char| !c.is_ascii_digit()).map_or(rest, |end| &rest[..end]);
        digits.parse::<u32>().is_ok_and(|number| number >= self.first)
    }
}

const ANY: Number = (0, 0, 0, 0);

const fn version(major: u32, minor: u32, patch: u32) -> Number {
    (major, minor, patch, RELEASE)
}

const fn candidate(major: u32, minor: u32, patch: u32, number: u32) -> Number {
    (major, minor, patch, number)
}

/// Returns the beginning of a release series, before its first candidate.
const fn series(major: u32, minor: u32) -> Number {
    (major, minor, 0, 0)
}

pub(super) const FLAWS: &[Flaw] = &[
    Flaw {
        name: "runc",
        affected: &[(candidate(1, 0, 0, 93), version(1, 1, 12))],
        // The changelog of Debian's package, and Ubuntu's notice USN-6619-1.
        fixed_builds: &[
            Build { prefix: "1.1.5+ds1-1+deb12u", first: 1 },
            Build { prefix: "1.1.7-0ubuntu1~22.04.", first: 2 },
            Build { prefix: "1.1.7-0ubuntu1~20.04.", first: 2 },
            Build { prefix: "1.1.4-0ubuntu1~18.04.2+esm", first: 1 },
        ],
        effect: "a hostile working directory reaches the host's files through a leaked descriptor (CVE-2024-21626)",
        remedy: "use runc 1.1.12 or later",
        source: "https://github.com/opencontainers/runc/security/advisories/GHSA-xr7r-f8xq-vfvv",
    },
    Flaw {
        name: "runc",
        affected: &[(ANY, version(1, 2, 8)), (series(1, 3), version(1, 3, 3)), (series(1, 4), candidate(1, 4, 0, 3))],
        fixed_builds: &[],
        effect: "hostile processes that write to a container's mounts while it starts can escape from it (CVE-2025-31133, -52565, -52881)",
        remedy: "use runc 1.2.8, 1.3.3, 1.4.0 or later",
        source: "https://github.com/opencontainers/runc/security/advisories/GHSA-9493-h29p-rfm2",
    },
    Flaw {
        name: "runc",
        affected: &[(ANY, version(1, 1, 14)), (series(1, 2), candidate(1, 2, 0, 3))],
        fixed_builds: &[],
        effect: "hostile processes that share a bind mount with a container that starts can make empty files and directories on the host (CVE-2024-45310)",
        remedy: "use runc 1.1.14, 1.2.0 or later",
        source: "https://github.com/opencontainers/runc/security/advisories/GHSA-jfvp-7x6p-h2pv",
    },
    Flaw {
        name: "runc",
        affected: &[(series(1, 3), version(1, 3, 6)), (series(1, 4), version(1, 4, 2))],
        fixed_builds: &[],
        effect: "a run whose command ends quickly may hang",
        remedy: "use runc 1.3.6, 1.4.2 or later, or give runs a timeout",
        source: "https://github.com/opencontainers/runc/pull/5208",
    },
    Flaw {
        name: "runc",
        affected: &[(ANY, version(1, 1, 8))],
        fixed_builds: &[],
        effect: "/tmp and other tmpfs get the mode of the directory that they cover, not their own",
        remedy: "use runc 1.1.9 or later",
        source: "https://github.com/opencontainers/runc/pull/3916",
    },
    Flaw {
        name: "runc",
        affected: &[(version(1, 1, 8), version(1, 1, 9))],
        fixed_builds: &[],
        effect: "/tmp loses its sticky bit: users of one container can delete each other's files",
        remedy: "use runc 1.1.9 or later",
        source: "https://github.com/opencontainers/runc/pull/3952",
    },
    Flaw {
        name: "runc",
        affected: &[(version(1, 2, 8), version(1, 2, 9)), (version(1, 3, 3), version(1, 3, 4))],
        fixed_builds: &[],
        effect: "the mode of a tmpfs is wrong where the layers have no directory for it",
        remedy: "use runc 1.2.9, 1.3.4, 1.4.0 or later",
        source: "https://github.com/opencontainers/runc/pull/4971",
    },
    Flaw {
        name: "runc",
        affected: &[(series(1, 1), series(1, 2))],
        fixed_builds: &[],
        // Measured with 1.1.5: 34 of 150 runs failed under constant renames. With 1.2, none failed.
        effect: "a run fails (\"possibly malicious path\") if another process replaces the source of a bind mount by a rename during the start",
        remedy: "bind-mount copies of files that other processes replace",
        source: "https://github.com/opencontainers/runc/blob/v1.1.5/libcontainer/utils/utils_unix.go",
    },
    Flaw {
        name: "crun",
        affected: &[(version(1, 8, 7), series(1, 21))],
        fixed_builds: &[],
        effect: "a run without a terminal ends with status 0 when crun gets SIGWINCH, as when the caller's terminal is resized",
        remedy: "use crun 1.21 or later",
        source: "https://github.com/containers/crun/pull/1683",
    },
    Flaw {
        name: "crun",
        affected: &[(version(1, 18, 0), version(1, 18, 1))],
        fixed_builds: &[],
        effect: "the device rules are not set up on cgroup v1",
        remedy: "use crun 1.18.1 or later",
        source: "https://github.com/containers/crun/blob/main/NEWS",
    },
    Flaw {
        name: "crun",
        affected: &[(version(1, 11, 1), version(1, 11, 2))],
        fixed_builds: &[],
        effect: "crashes on cgroup v1 when a run has no processor limit",
        remedy: "use crun 1.11.2 or later",
        source: "https://github.com/containers/crun/blob/main/NEWS",
    },
    Flaw {
        name: "youki",
        affected: &[(ANY, version(0, 5, 7))],
        fixed_builds: &[],
        effect: "hostile processes that write to a container's mounts while it starts can escape from it (CVE-2025-62161, -62596)",
        remedy: "use youki 0.5.7 or later",
        source: "https://github.com/youki-dev/youki/security/advisories/GHSA-4g74-7cff-xcv8",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the pull requests, advisories and files that describe the flaws of a version.
    fn sources(name: &str, number: Number) -> Vec<&'static str> {
        let concerning = FLAWS.iter().filter(|flaw| flaw.concerns(name, number, &[]));
        concerning.map(|flaw| flaw.source.rsplit('/').next().unwrap()).collect()
    }

    #[test]
    fn a_version_has_the_flaws_of_its_series() {
        const CWD: &str = "GHSA-xr7r-f8xq-vfvv";
        const ESCAPES: &str = "GHSA-9493-h29p-rfm2";
        const MKDIR: &str = "GHSA-jfvp-7x6p-h2pv";
        let table: [(&str, Number, &[&str]); 23] = [
            ("runc", version(1, 1, 5), &[CWD, ESCAPES, MKDIR, "3916", "utils_unix.go"]),
            ("runc", version(1, 1, 8), &[CWD, ESCAPES, MKDIR, "3952", "utils_unix.go"]),
            ("runc", candidate(1, 0, 0, 92), &[ESCAPES, MKDIR, "3916"]),
            ("runc", candidate(1, 0, 0, 93), &[CWD, ESCAPES, MKDIR, "3916"]),
            ("runc", version(1, 1, 12), &[ESCAPES, MKDIR, "utils_unix.go"]),
            ("runc", version(1, 1, 13), &[ESCAPES, MKDIR, "utils_unix.go"]),
            ("runc", version(1, 1, 14), &[ESCAPES, "utils_unix.go"]),
            ("runc", candidate(1, 2, 0, 2), &[ESCAPES, MKDIR]),
            ("runc", candidate(1, 2, 0, 3), &[ESCAPES]),
            ("runc", version(1, 2, 0), &[ESCAPES]),
            ("runc", version(1, 2, 8), &["4971"]),
            ("runc", version(1, 3, 0), &[ESCAPES, "5208"]),
            ("runc", version(1, 3, 6), &[]),
            ("runc", candidate(1, 4, 0, 2), &[ESCAPES, "5208"]),
            ("runc", version(1, 4, 1), &["5208"]),
            ("runc", version(1, 5, 0), &[]),
            ("crun", version(1, 8, 1), &[]),
            ("crun", version(1, 8, 7), &["1683"]),
            ("crun", version(1, 11, 1), &["1683", "NEWS"]),
            ("crun", version(1, 18, 0), &["1683", "NEWS"]),
            ("crun", version(1, 20, 0), &["1683"]),
            ("crun", version(1, 21, 0), &[]),
            ("youki", version(0, 5, 6), &["GHSA-4g74-7cff-xcv8"]),
        ];
        for (name, number, expected) in table {
            assert_eq!(sources(name, number), expected, "{name} {number:?}");
        }
    }

    #[test]
    fn no_range_of_versions_is_empty() {
        for flaw in FLAWS {
            assert!(flaw.affected.iter().all(|(first, fixed)| first < fixed), "{flaw:?}");
        }
    }

    #[test]
    fn builds_of_distributions_have_their_own_fixes() {
        let table = [
            ("1.1.5+ds1-1+deb12u1", true),
            ("1.1.5+ds1-1+deb12u1+b2", true),
            ("1.1.5+ds1-1+deb12u10", true),
            ("1.1.7-0ubuntu1~22.04.2", true),
            ("1.1.7-0ubuntu1~20.04.4", true),
            ("1.1.4-0ubuntu1~18.04.2+esm1", true),
            ("1.1.5+ds1-1+deb12u0", false),
            ("1.1.5+ds1-1", false),
            ("1.1.5+ds1-1+deb12u", false),
            ("1.1.7-0ubuntu1~22.04.1", false),
            ("1.1.4-0ubuntu1~18.04.2", false),
            ("v1.1.5-0-gf19387a6", false),
            ("", false),
        ];
        for (build, is_fixed) in table {
            let concerns = |source: &str| {
                let flaw = FLAWS.iter().find(|flaw| flaw.source.ends_with(source)).unwrap();
                flaw.concerns("runc", version(1, 1, 5), &["1.1.5", build])
            };
            assert_eq!(concerns("GHSA-xr7r-f8xq-vfvv"), !is_fixed, "{build}");
            assert!(concerns("GHSA-9493-h29p-rfm2") && concerns("GHSA-jfvp-7x6p-h2pv"), "{build}");
        }
    }
}
