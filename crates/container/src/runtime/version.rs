//! Asks a runtime for its version. `flaws` lists the known flaws of each version.

use std::fmt;
use std::process::{Command, Stdio};

use super::Runtime;
use super::flaws::{self, Flaw};
use crate::display::escaped;
use crate::error::{Error, Result};
use crate::supervise::close_descriptors;

/// The version that a runtime reports.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RuntimeVersion {
    /// The name that the runtime reports, independent of the file's name: `runc`, `crun`, `youki`.
    pub name: String,
    /// The version in the report, including a distribution's additions: `1.1.5+ds1`.
    pub text: String,
    /// The major, minor and patch numbers.
    pub number: (u32, u32, u32),
    /// The number of a release candidate: 2 in `1.2.0-rc.2`.
    pub candidate: Option<u32>,
    /// The commit of the build, or the version of a distribution's package: `1.1.5+ds1-1+deb12u1`.
    pub build: Option<String>,
}

impl RuntimeVersion {
    /// Returns the known flaws of this version that can affect a run, as the runtime's authors
    /// published them.
    ///
    /// Distributions fix their builds without increasing the version. This crate knows the
    /// published fixes of Debian and Ubuntu, but not those of others.
    pub fn flaws(&self) -> impl Iterator<Item = &'static Flaw> {
        let (major, minor, patch) = self.number;
        let number = (major, minor, patch, self.candidate.unwrap_or(flaws::RELEASE));
        // Ubuntu puts the package version into the version itself.
        let builds = [&*self.text, self.build.as_deref().unwrap_or_default()];
        flaws::FLAWS.iter().filter(move |flaw| flaw.concerns(&self.name, number, &builds))
    }
}

impl fmt::Display for RuntimeVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", escaped(&self.name), escaped(&self.text))
    }
}

impl Runtime {
    /// Runs the runtime with `--version` and parses the output. Returns `None` if the output has no
    /// version.
    ///
    /// # Errors
    /// [`Error::RuntimeStart`] if it cannot be started, [`Error::Runtime`] if it fails.
    pub fn version(&self) -> Result<Option<RuntimeVersion>> {
        let output = close_descriptors(Command::new(&self.program).arg("--version").stdin(Stdio::null()))
            .output()
            .map_err(|source| Error::RuntimeStart { program: self.program.clone(), source })?;
        if !output.status.success() {
            let message = match String::from_utf8_lossy(&output.stderr).trim() {
                "" => "it did not say why".into(),
                message => message.to_string(),
            };
            return Err(Error::Runtime { program: self.program.clone(), ended: output.status, message, logged: false });
        }
        Ok(parse(&String::from_utf8_lossy(&output.stdout)))
    }
}

/// Parses `<name> version <text>` on the first line, and `commit: <build>` on a later one.
fn parse(output: &str) -> Option<RuntimeVersion> {
    let mut lines = output.lines();
    let [name, "version", text] = lines.next()?.split_whitespace().collect::<Vec<_>>()[..] else {
        return None;
    };
    let mut parts = text.trim_start_matches('v').splitn(3, '.').map(leading_number);
    let (major, minor) = (parts.next()??, parts.next()??);
    // crun releases 1.27 and then 1.27.1.
    let patch = parts.next().flatten().unwrap_or(0);
    let build = lines.find_map(|line| line.strip_prefix("commit:")).map(str::trim).filter(|build| !build.is_empty());
    Some(RuntimeVersion {
        name: name.into(),
        text: text.into(),
        number: (major, minor, patch),
        candidate: candidate(text),
        build: build.map(Into::into),
    })
}

fn leading_number(text: &str) -> Option<u32> {
    text.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok()
}

/// Returns the number of a release candidate. runc writes `1.2.0-rc.2` since 1.2, and `1.0.0-rc93`
/// before. Debian writes `1.0.0~rc93+ds1`.
fn candidate(text: &str) -> Option<u32> {
    let (_, rest) = text.split_once("-rc").or_else(|| text.split_once("~rc"))?;
    leading_number(rest.trim_start_matches('.'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mutated;

    proptest! {
        #![proptest_config(mutated::config())]

        #[test]
        fn a_version_of_any_text_is_printable(text in mutated::text(["runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1+deb12u1\nspec: 1.0.2-dev\n", "crun version 1.8.1\n"])) {
            if let Some(version) = parse(&text) {
                prop_assert!(version.to_string().chars().all(|character| !character.is_control()), "{version:?}");
                let _ = version.flaws().count();
            }
        }
    }

    #[test]
    fn versions_of_all_runtimes_are_read() {
        let table = [
            ("runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1+deb12u1\nspec: 1.0.2-dev\n", Some(("runc", (1, 1, 5)))),
            ("runc version 1.4.0-rc.3\n", Some(("runc", (1, 4, 0)))),
            ("crun version 1.8.1\ncommit: f8a096be\nrundir: /run/crun\n", Some(("crun", (1, 8, 1)))),
            ("crun version 1.27\n", Some(("crun", (1, 27, 0)))),
            ("crun version 1.19.1.0.0.0.3-f6a1\n", Some(("crun", (1, 19, 1)))),
            ("youki version 0.5.7\ncommit: 0.5.7-0-abc\n", Some(("youki", (0, 5, 7)))),
            ("runsc version v20250101.0\n", Some(("runsc", (20_250_101, 0, 0)))),
            ("runsc version release-1\n", None),
            ("true (GNU coreutils) 9.1\n", None),
            ("", None),
        ];
        for (output, expected) in table {
            let seen = parse(output);
            assert_eq!(seen.as_ref().map(|version| (&*version.name, version.number)), expected, "{output}");
        }
        let debian = parse("runc version 1.1.5+ds1\n").unwrap();
        assert_eq!((debian.to_string(), &*debian.text), ("runc 1.1.5+ds1".into(), "1.1.5+ds1"));
    }

    #[test]
    fn release_candidates_and_builds_are_read() {
        let table = [
            (
                "runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1+deb12u1\nspec: 1.0.2-dev\n",
                None,
                Some("1.1.5+ds1-1+deb12u1"),
            ),
            ("runc version 1.2.0-rc.2\ncommit: v1.2.0-rc.2-0-gf2d2ee5e\n", Some(2), Some("v1.2.0-rc.2-0-gf2d2ee5e")),
            ("runc version 1.0.0~rc93+ds1\ncommit:\n", Some(93), None),
            ("runc version 1.0.0-rc10\nspec: 1.0.1-dev\n", Some(10), None),
            ("crun version 1.8.1\ncommit: f8a096be\n", None, Some("f8a096be")),
        ];
        for (output, candidate, build) in table {
            let version = parse(output).unwrap();
            assert_eq!((version.candidate, version.build.as_deref()), (candidate, build), "{output}");
        }
    }

    #[test]
    fn a_fix_of_a_distribution_is_found_in_the_version_or_the_build() {
        let table = [
            ("runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1+deb12u1\n", false),
            ("runc version 1.1.7-0ubuntu1~22.04.2\nspec: 1.0.2-dev\n", false),
            ("runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1\n", true),
            ("runc version 1.1.5\ncommit: v1.1.5-0-gf19387a6\n", true),
            ("runc version 1.1.5\n", true),
        ];
        for (output, has_it) in table {
            let version = parse(output).unwrap();
            assert_eq!(version.flaws().any(|flaw| flaw.effect.contains("CVE-2024-21626")), has_it, "{output}");
        }
    }
}
