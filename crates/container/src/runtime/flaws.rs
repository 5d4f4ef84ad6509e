//! What is known to be wrong with versions of runtimes, as data. Only what a run can meet, and only what the makers have
//! published or what was measured. What follows links of a layer in `/dev` (CVE-2026-41579, CVE-2026-47766) is not among it:
//! [`Rootfs::refuse_links`](crate::Rootfs::refuse_links) keeps runs from it.

/// Something that is wrong with some versions of a runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Flaw {
    /// The runtime's own name.
    pub name: &'static str,
    /// Half-open ranges of versions that have it: the first that does, the first that does not.
    affected: &'static [(Number, Number)],
    /// What it means for a run.
    pub effect: &'static str,
    /// What helps: as a rule the first version of each line that is without it.
    pub remedy: &'static str,
    /// Where it is told of.
    pub source: &'static str,
}

type Number = (u32, u32, u32);

impl Flaw {
    pub(super) fn concerns(&self, name: &str, number: Number) -> bool {
        self.name == name && self.affected.iter().any(|(first, mended)| (*first..*mended).contains(&number))
    }
}

const ANY: Number = (0, 0, 0);

pub(super) const FLAWS: &[Flaw] = &[
    Flaw {
        name: "runc",
        affected: &[(ANY, (1, 1, 12))],
        effect: "a hostile working directory reaches the host's files through a leaked descriptor (CVE-2024-21626)",
        remedy: "take runc 1.1.12 or later",
        source: "https://github.com/opencontainers/runc/security/advisories/GHSA-xr7r-f8xq-vfvv",
    },
    Flaw {
        name: "runc",
        affected: &[(ANY, (1, 2, 8)), ((1, 3, 0), (1, 3, 3))],
        effect: "hostile processes that write to a container's mounts while it starts can get out of one (CVE-2025-31133, -52565, -52881)",
        remedy: "take runc 1.2.8, 1.3.3, 1.4.0 or later",
        source: "https://github.com/opencontainers/runc/security/advisories/GHSA-9493-h29p-rfm2",
    },
    Flaw {
        name: "runc",
        affected: &[((1, 3, 0), (1, 3, 6)), ((1, 4, 0), (1, 4, 2))],
        effect: "a run whose command ends quickly may hang",
        remedy: "take runc 1.3.6, 1.4.2 or later, or give runs a timeout",
        source: "https://github.com/opencontainers/runc/pull/5208",
    },
    Flaw {
        name: "runc",
        affected: &[(ANY, (1, 1, 8))],
        effect: "/tmp and other tmpfs get the mode of the directory that they cover, not their own",
        remedy: "take runc 1.1.9 or later",
        source: "https://github.com/opencontainers/runc/pull/3916",
    },
    Flaw {
        name: "runc",
        affected: &[((1, 1, 8), (1, 1, 9))],
        effect: "/tmp loses its sticky bit: users of one container can delete each other's files",
        remedy: "take runc 1.1.9 or later",
        source: "https://github.com/opencontainers/runc/pull/3952",
    },
    Flaw {
        name: "runc",
        affected: &[((1, 2, 8), (1, 2, 9)), ((1, 3, 3), (1, 3, 4))],
        effect: "the mode of a tmpfs is wrong where the layers have no directory for it",
        remedy: "take runc 1.2.9, 1.3.4, 1.4.0 or later",
        source: "https://github.com/opencontainers/runc/pull/4971",
    },
    Flaw {
        name: "runc",
        affected: &[((1, 1, 0), (1, 2, 0))],
        // Measured with 1.1.5 (none of 1.2 was): 34 of 150 runs under constant renames.
        effect: "a run fails (\"possibly malicious path\") if the source of a bind mount is replaced by a rename meanwhile",
        remedy: "bind copies of files that others replace",
        source: "https://github.com/opencontainers/runc/blob/v1.1.5/libcontainer/utils/utils_unix.go",
    },
    Flaw {
        name: "crun",
        affected: &[(ANY, (1, 14, 4))],
        // Measured with 1.8.1: "open mount target: Not a directory".
        effect: "a run fails if it binds a single file read-only",
        remedy: "take crun 1.14.4 or later, or bind the directory that the file is in",
        source: "https://github.com/containers/crun/blob/main/NEWS",
    },
    Flaw {
        name: "crun",
        affected: &[((1, 18, 0), (1, 18, 1))],
        effect: "the device rules are not set up on cgroup v1",
        remedy: "take crun 1.18.1 or later",
        source: "https://github.com/containers/crun/blob/main/NEWS",
    },
    Flaw {
        name: "crun",
        affected: &[((1, 11, 1), (1, 11, 2))],
        effect: "crashes on cgroup v1 when a run has no processor limit",
        remedy: "take crun 1.11.2 or later",
        source: "https://github.com/containers/crun/blob/main/NEWS",
    },
    Flaw {
        name: "youki",
        affected: &[(ANY, (0, 5, 7))],
        effect: "hostile processes that write to a container's mounts while it starts can get out of one (CVE-2025-62161, -62596)",
        remedy: "take youki 0.5.7 or later",
        source: "https://github.com/youki-dev/youki/security/advisories/GHSA-4g74-7cff-xcv8",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of pull requests and advisories that concern a version.
    fn sources(name: &str, number: Number) -> Vec<&'static str> {
        let concerning = FLAWS.iter().filter(|flaw| flaw.concerns(name, number));
        concerning.map(|flaw| flaw.source.rsplit('/').next().unwrap()).collect()
    }

    #[test]
    fn a_version_has_the_flaws_of_its_line() {
        const ESCAPES: &str = "GHSA-9493-h29p-rfm2";
        let table: [(&str, Number, &[&str]); 11] = [
            ("runc", (1, 1, 5), &["GHSA-xr7r-f8xq-vfvv", ESCAPES, "3916", "utils_unix.go"]),
            ("runc", (1, 1, 8), &["GHSA-xr7r-f8xq-vfvv", ESCAPES, "3952", "utils_unix.go"]),
            ("runc", (1, 1, 15), &[ESCAPES, "utils_unix.go"]),
            ("runc", (1, 2, 8), &["4971"]),
            ("runc", (1, 3, 0), &[ESCAPES, "5208"]),
            ("runc", (1, 3, 6), &[]),
            ("runc", (1, 4, 1), &["5208"]),
            ("runc", (1, 5, 0), &[]),
            ("crun", (1, 8, 1), &["NEWS"]),
            ("crun", (1, 14, 4), &[]),
            ("youki", (0, 5, 6), &["GHSA-4g74-7cff-xcv8"]),
        ];
        for (name, number, expected) in table {
            assert_eq!(sources(name, number), expected, "{name} {number:?}");
        }
    }

    #[test]
    fn every_range_has_something_in_it() {
        for flaw in FLAWS {
            assert!(flaw.affected.iter().all(|(first, mended)| first < mended), "{flaw:?}");
        }
    }
}
