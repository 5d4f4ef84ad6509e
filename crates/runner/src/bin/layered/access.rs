//! `--mode` and `--group`: which users may enter the directory that a subcommand creates for a
//! tree. [`stack`](crate::stack) has the arguments that name the layers.

use anyhow::Context;
use container::{IdMap, UserNamespace};
use layer::Access;
use nix::unistd::Group;

/// The mode and the group of the new directory.
#[derive(Debug, clap::Args)]
pub(crate) struct AccessArgs {
    /// Mode of the new directory, e.g. 0750.
    ///
    /// The new directory is the upper of `run`, the layer of `commit` or the target of `merge`. By
    /// default the directory is closed to other users of the host (0700), because a tree can
    /// contain set-user-ID programs. An upper or a merged directory in a place that other users
    /// cannot reach anyway has the mode of its tree.
    #[arg(long, value_name = "MODE")]
    mode: Option<Access>,
    /// Group of the new directory, by name or number.
    ///
    /// With GROUP, the default mode is 0750. Without root, it must be your own group or one of your
    /// subordinate groups.
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
}

impl AccessArgs {
    /// Returns the mode and group that the caller asked for, or `None` if the caller did not ask.
    pub(crate) fn get(&self) -> anyhow::Result<Option<Access>> {
        let Some(group) = &self.group else { return Ok(self.mode) };
        let number = match group.parse() {
            Ok(number) => number,
            Err(_) => {
                Group::from_name(group)?.with_context(|| format!("cannot find the group {group:?}"))?.gid.as_raw()
            }
        };
        // A namespace that existed before has numbers of its own, and GROUP is one of them.
        let number = match UserNamespace::entered() {
            Some(namespace) => number_in(namespace.gids(), number)?,
            None => number,
        };
        Ok(Some(self.mode.unwrap_or(Access::mode(0o750)).group(number)))
    }
}

/// Returns the number that the group `host` of the host has in a namespace with the groups `gids`.
fn number_in(gids: &IdMap, host: u32) -> anyhow::Result<u32> {
    gids.inside(host).with_context(|| {
        format!(
            "cannot give a directory to the group {host}: without root, layered has only your own group and your \
             subordinate groups ({gids}); name one of these, or run `chgrp {host} DIR` afterwards"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_found_by_name_or_number_and_sets_the_default_mode() {
        let args = |mode, group: Option<&str>| AccessArgs { mode, group: group.map(Into::into) }.get();
        let wide = Access::mode(0o755);
        assert_eq!(args(None, None).unwrap(), None);
        assert_eq!(args(Some(wide), None).unwrap(), Some(wide));
        assert_eq!(args(None, Some("12")).unwrap(), Some(Access::mode(0o750).group(12)));
        assert_eq!(args(Some(wide), Some("root")).unwrap(), Some(wide.group(0)));
        assert!(args(None, Some("missing group")).unwrap_err().to_string().contains("cannot find the group"));
    }
}
