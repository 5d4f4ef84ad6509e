//! `--mode` and `--group`: who may enter a directory that holds a tree.

use anyhow::Context;
use layer::Access;
use nix::unistd::Group;

/// Who may enter the directory that is made.
#[derive(Debug, clap::Args)]
pub(crate) struct AccessArgs {
    /// The mode of the directory that is made. A tree can hold set-user-ID programs, so by default other users of the host
    /// cannot get to it: 0700 [example: 0750].
    #[arg(long, value_name = "MODE")]
    mode: Option<Access>,
    /// The group of that directory, by name or number; with it the mode is 0750 by default.
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
}

impl AccessArgs {
    /// What was asked for, if anything was.
    pub(crate) fn get(&self) -> anyhow::Result<Option<Access>> {
        let Some(group) = &self.group else { return Ok(self.mode) };
        let number = match group.parse() {
            Ok(number) => number,
            Err(_) => Group::from_name(group)?.with_context(|| format!("there is no group {group:?}"))?.gid.as_raw(),
        };
        Ok(Some(self.mode.unwrap_or(Access::mode(0o750)).group(number)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_can_have_a_name() {
        let args = |mode, group: Option<&str>| AccessArgs { mode, group: group.map(Into::into) }.get();
        let wide = Access::mode(0o755);
        assert_eq!(args(None, None).unwrap(), None);
        assert_eq!(args(Some(wide), None).unwrap(), Some(wide));
        assert_eq!(args(None, Some("12")).unwrap(), Some(Access::mode(0o750).group(12)));
        assert_eq!(args(Some(wide), Some("root")).unwrap(), Some(wide.group(0)));
        assert!(args(None, Some("there is none")).unwrap_err().to_string().contains("there is no group"));
    }
}
