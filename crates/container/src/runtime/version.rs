use std::fmt;
use std::process::{Command, Stdio};

use super::{Flaw, Runtime, flaws};
use crate::display::escaped;
use crate::{Error, Result};

/// What a runtime says of itself when it is asked for its version.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RuntimeVersion {
    /// Its own name, whatever the file is called: `runc`, `crun`, `youki`.
    pub name: String,
    /// The version as it writes it, a distribution's additions included: `1.1.5+ds1`.
    pub text: String,
    /// Major, minor and patch.
    pub number: (u32, u32, u32),
}

impl RuntimeVersion {
    /// What is known to be wrong with this version for what this crate does with it, as its makers published it.
    ///
    /// A distribution may have mended its own build without counting the version up.
    pub fn flaws(&self) -> impl Iterator<Item = &'static Flaw> {
        flaws::FLAWS.iter().filter(|flaw| flaw.concerns(&self.name, self.number))
    }
}

impl fmt::Display for RuntimeVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", escaped(&self.name), escaped(&self.text))
    }
}

impl Runtime {
    /// Starts the runtime with `--version` and reads what it says; `None` if that is nothing like a version.
    ///
    /// # Errors
    /// [`Error::RuntimeStart`] if it cannot be started, [`Error::Runtime`] if it fails.
    pub fn version(&self) -> Result<Option<RuntimeVersion>> {
        let output = Command::new(&self.program)
            .arg("--version")
            .stdin(Stdio::null())
            .output()
            .map_err(|source| Error::RuntimeStart { program: self.program.clone(), source })?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr).trim().to_string();
            return Err(Error::Runtime { program: self.program.clone(), ended: output.status, message });
        }
        Ok(parse(&String::from_utf8_lossy(&output.stdout)))
    }
}

/// `<name> version <text>` on the first line; what follows are commits and features.
fn parse(output: &str) -> Option<RuntimeVersion> {
    let [name, "version", text] = output.lines().next()?.split_whitespace().collect::<Vec<_>>()[..] else {
        return None;
    };
    let digits = |part: &str| part.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok();
    let mut parts = text.trim_start_matches('v').splitn(3, '.').map(digits);
    let (major, minor) = (parts.next()??, parts.next()??);
    // crun counts 1.27, 1.27.1.
    let patch = parts.next().flatten().unwrap_or(0);
    Some(RuntimeVersion { name: name.into(), text: text.into(), number: (major, minor, patch) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_runtimes_write_them() {
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
}
