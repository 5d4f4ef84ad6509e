//! The names of containers.

use std::fmt;

use rustix::rand::{GetRandomFlags, getrandom};

use crate::error::{Error, Result};

/// The name of one run's container and control group. A caller may use it for files too.
///
/// 64 random bits distinguish runs. Without them, a run would have to delete a container of the
/// same name first, and that could belong to another run.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ContainerId(String);

impl ContainerId {
    /// Returns `<prefix>-<16 hexadecimal digits>` with random digits from the kernel.
    ///
    /// # Errors
    /// [`Error::Io`] if the kernel returns no random bits.
    ///
    /// # Panics
    /// If `prefix` contains other characters than ASCII letters, digits, `_`, `-` and `.`. Runtimes
    /// refuse others.
    pub fn random(prefix: &str) -> Result<Self> {
        assert!(prefix.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte)), "{prefix:?}");
        let mut bits = [0; 8];
        // getrandom(2) returns up to 256 bytes completely.
        getrandom(&mut bits, GetRandomFlags::empty()).map_err(Error::io("get random bits from", "the kernel"))?;
        Ok(Self(format!("{prefix}-{:016x}", u64::from_ne_bytes(bits))))
    }

    /// Returns the name of an earlier run, or `None` if runtimes would refuse it.
    pub(crate) fn of_earlier_run(name: String) -> Option<Self> {
        let fits = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
        (fits && !name.is_empty()).then_some(Self(name))
    }

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ_and_have_the_same_form() {
        let (one, two) = (ContainerId::random("x").unwrap(), ContainerId::random("x").unwrap());
        assert_ne!(one, two);
        assert_eq!(one.as_str().len(), "x-0123456789abcdef".len());
        assert_eq!(ContainerId::of_earlier_run(one.to_string()), Some(one));
        assert_eq!(ContainerId::of_earlier_run("../x".into()), None);
    }
}
