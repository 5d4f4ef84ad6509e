use std::fmt;

use rustix::rand::{GetRandomFlags, getrandom};

use crate::error::{Error, Result};

/// The name of one run: of its container, its cgroups and, where a caller likes, its files.
///
/// 64 random bits keep runs apart: asking the runtime to delete a container of the same name first would end another's run.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ContainerId(String);

impl ContainerId {
    /// `<prefix>-<16 hexadecimal digits>`, the digits from the kernel's random numbers.
    ///
    /// # Errors
    /// [`Error::Io`] if the kernel has none to give.
    ///
    /// # Panics
    /// If `prefix` has other characters than ASCII letters, digits, `_`, `-` and `.`: runtimes refuse these.
    pub fn random(prefix: &str) -> Result<Self> {
        assert!(prefix.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte)), "{prefix:?}");
        let mut bits = [0; 8];
        // Up to 256 bytes come whole.
        getrandom(&mut bits, GetRandomFlags::empty()).map_err(Error::io("get random bits from", "the kernel"))?;
        Ok(Self(format!("{prefix}-{:016x}", u64::from_ne_bytes(bits))))
    }

    /// The name of a run that there has been already; `None` if runtimes would refuse it.
    pub(crate) fn of_earlier_run(name: String) -> Option<Self> {
        let fits = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
        (fits && !name.is_empty()).then_some(Self(name))
    }

    /// The name.
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
    fn ids_differ_and_have_one_shape() {
        let (one, two) = (ContainerId::random("x").unwrap(), ContainerId::random("x").unwrap());
        assert_ne!(one, two);
        assert_eq!(one.as_str().len(), "x-0123456789abcdef".len());
        assert_eq!(ContainerId::of_earlier_run(one.to_string()), Some(one));
        assert_eq!(ContainerId::of_earlier_run("../x".into()), None);
    }
}
