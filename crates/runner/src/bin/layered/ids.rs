//! `--ids`: decides whether and with which IDs a subcommand enters a user namespace.
//! `container::UserNamespace` enters it.

use anyhow::bail;
use clap::ValueEnum;
use container::{Ids, UserNamespace};

use crate::defaults;

/// The value of `--ids`, if it is not given.
const IDS: &str = "LAYERED_IDS";

/// The option of every subcommand.
#[derive(Debug, clap::Args)]
pub(crate) struct IdsArgs {
    /// Users and groups without root: single, ranges or auto [default: $LAYERED_IDS or auto].
    ///
    /// Without root, layered works in a user namespace, in which you are root. With `ranges`, the
    /// namespace also has your subordinate IDs (/etc/subuid and /etc/subgid). With `single`, it has
    /// no other users and groups. `auto` takes the ranges if you have some. Root needs no
    /// namespace.
    #[arg(long, global = true, value_enum, value_name = "IDS", hide_possible_values = true, help_heading = "Global")]
    ids: Option<Kind>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Auto,
    Ranges,
    Single,
}

/// How much a subcommand needs the rights of root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// It mounts.
    Must,
    /// It writes or removes files, some of which may have other owners.
    Helps,
    /// It reads files, some of which may have other owners.
    Reads,
    /// It needs no rights.
    None,
}

impl IdsArgs {
    /// Enters a user namespace, if `need` says so and this process is not privileged. The process
    /// must still have only one thread.
    ///
    /// If the namespace cannot be created, and the subcommand may do without, returns the reason. A
    /// failure in a new namespace is always an error: until the IDs are set, every owner in it is
    /// nobody.
    pub(crate) fn enter(&self, need: Need) -> anyhow::Result<Option<anyhow::Error>> {
        let ids = self.chosen()?;
        if need == Need::None {
            return Ok(None);
        }
        let Err(error) = UserNamespace::enter(ids) else { return Ok(None) };
        let error = anyhow::Error::from(error);
        match need {
            _ if UserNamespace::entered().is_some() => return Err(error),
            Need::Must => return Err(error),
            Need::Helps => log::warn!("continuing without the rights of root: {error:#}"),
            Need::Reads | Need::None => log::debug!("continuing without the rights of root: {error:#}"),
        }
        Ok(Some(error))
    }

    /// Returns the IDs that the caller has chosen.
    pub(crate) fn chosen(&self) -> anyhow::Result<Ids> {
        let of_environment = defaults::path(IDS);
        let kind = match (self.ids, of_environment) {
            (Some(kind), _) => kind,
            (None, None) => Kind::Auto,
            (None, Some(value)) => match Kind::from_str(&value.to_string_lossy(), false) {
                Ok(kind) => kind,
                Err(_) => bail!("{IDS} is {:?}; set it to auto, ranges or single", value.to_string_lossy()),
            },
        };
        Ok(match kind {
            Kind::Auto => Ids::Auto,
            Kind::Ranges => Ids::Ranges,
            Kind::Single => Ids::Single,
        })
    }
}
