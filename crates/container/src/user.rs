//! The user that a command runs as: the caller's specification and the resolved IDs. `accounts`
//! parses the lines of the account files. `rootfs::users` locates those files.

pub(crate) mod accounts;

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use crate::template::error::TemplateError;

/// The UID or GID of nobody. A `config.json` holds it while only the name of a user or group is
/// known. A program that runs such a configuration without looking up the name does not grant any
/// privileges.
pub(crate) const NOBODY: u32 = 65534;

/// A user and an optional group, by number or by name: `UID[:GID]`, `NAME[:GROUP]`, `NAME:GID` or
/// `UID:GROUP`.
///
/// Digits are always a number, never a name. A number needs no line in `/etc/passwd` or
/// `/etc/group`.
///
/// | Text | User | Group | Supplementary groups |
/// |---|---|---|---|
/// | `1000` | 1000 | 1000 | none |
/// | `1000:5` | 1000 | 5 | none |
/// | `opam` | opam's in `/etc/passwd` | opam's in `/etc/passwd` | every group in `/etc/group` that lists opam |
/// | `opam:staff` | opam's in `/etc/passwd` | staff's in `/etc/group` | none |
///
/// [`Rootfs::find_user`](crate::Rootfs::find_user) looks the names up.
///
/// ```
/// use container::UserSpec;
///
/// let spec: UserSpec = "1000".parse()?;
/// assert_eq!(spec.ids(), Some((1000, 1000)));
/// let spec: UserSpec = "opam:staff".parse()?;
/// assert_eq!(spec.ids(), None);
/// # Ok::<(), container::TemplateError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserSpec {
    pub(crate) user: Account,
    /// `None` stands for the group that `/etc/passwd` gives a named user.
    pub(crate) group: Option<Account>,
}

/// A user or a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Account {
    Id(u32),
    Name(String),
}

impl UserSpec {
    /// Creates a specification from numbers.
    pub fn of_ids(uid: u32, gid: u32) -> Self {
        Self { user: Account::Id(uid), group: Some(Account::Id(gid)) }
    }

    /// Returns the numbers of the user and the group, if both are given as numbers.
    pub fn ids(&self) -> Option<(u32, u32)> {
        match (&self.user, &self.group) {
            (Account::Id(uid), Some(Account::Id(gid))) => Some((*uid, *gid)),
            _ => None,
        }
    }
}

impl FromStr for UserSpec {
    type Err = TemplateError;

    /// Parses one of the forms in the table.
    ///
    /// # Errors
    /// [`TemplateError::User`] if `text` does not have one of these forms or a number is
    /// too large.
    fn from_str(text: &str) -> Result<Self, TemplateError> {
        let refused = |problem| TemplateError::User { spec: text.to_owned(), problem };
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let user = Account::of(user).map_err(refused)?;
        let group = group.map(Account::of).transpose().map_err(refused)?;
        let group = match (&user, group) {
            (Account::Id(uid), None) => Some(Account::Id(*uid)),
            (_, group) => group,
        };
        Ok(Self { user, group })
    }
}

impl Account {
    fn of(text: &str) -> Result<Self, &'static str> {
        if text.is_empty() || text.contains(|c: char| c == ':' || c.is_control()) {
            return Err("is not a user: write NAME, UID, NAME:GROUP or UID:GID");
        }
        if !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Ok(Account::Name(text.to_owned()));
        }
        // -1 means "leave unchanged" to setuid(2) and setgid(2).
        let id = text.parse().ok().filter(|id| *id != u32::MAX);
        id.map(Account::Id).ok_or("has an id that is too large: give one below 4294967295")
    }
}

impl fmt::Display for UserSpec {
    /// Formats the specification so that it can be parsed again: `1000:1000`, `opam`, `opam:staff`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.group {
            Some(group) => write!(formatter, "{}:{group}", self.user),
            None => self.user.fmt(formatter),
        }
    }
}

impl fmt::Display for Account {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Account::Id(id) => id.fmt(formatter),
            Account::Name(name) => name.fmt(formatter),
        }
    }
}

/// The IDs and the home directory of a container's user, as returned by
/// [`Rootfs::find_user`](crate::Rootfs::find_user).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) additional_gids: Vec<u32>,
    /// A path in the container. It is a string, because JSON and the environment hold only UTF-8.
    pub(crate) home: String,
}

impl User {
    /// Returns the user ID.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Returns the ID of the primary group.
    pub fn gid(&self) -> u32 {
        self.gid
    }

    /// Returns the IDs of the supplementary groups without duplicates, the template's own first.
    pub fn additional_gids(&self) -> &[u32] {
        &self.additional_gids
    }

    /// Returns the command's `HOME`.
    pub fn home(&self) -> &Path {
        Path::new(&self.home)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mutated;

    fn name(name: &str) -> Account {
        Account::Name(name.to_owned())
    }

    #[test]
    fn users_and_groups_are_parsed_by_number_and_by_name() {
        let table = [
            ("0", Account::Id(0), Some(Account::Id(0)), "0:0"),
            ("1000", Account::Id(1000), Some(Account::Id(1000)), "1000:1000"),
            ("1000:5", Account::Id(1000), Some(Account::Id(5)), "1000:5"),
            ("0010:0x5", Account::Id(10), Some(name("0x5")), "10:0x5"),
            ("4294967294", Account::Id(u32::MAX - 1), Some(Account::Id(u32::MAX - 1)), "4294967294:4294967294"),
            ("opam", name("opam"), None, "opam"),
            ("opam:staff", name("opam"), Some(name("staff")), "opam:staff"),
            ("opam:50", name("opam"), Some(Account::Id(50)), "opam:50"),
            ("1000:staff", Account::Id(1000), Some(name("staff")), "1000:staff"),
            ("-1", name("-1"), None, "-1"),
            ("Jürgen Ä", name("Jürgen Ä"), None, "Jürgen Ä"),
        ];
        for (text, user, group, shown) in table {
            let spec: UserSpec = text.parse().unwrap();
            assert_eq!((&spec.user, &spec.group), (&user, &group), "{text}");
            assert_eq!(spec.to_string(), shown);
        }
    }

    #[test]
    fn an_invalid_user_is_refused_in_one_line() {
        for text in ["", ":", ":5", "1000:", "opam:", "a:b:c", "1:2:3", "a\nb", "a\0", "a:\u{1b}[2J"] {
            let message = text.parse::<UserSpec>().unwrap_err().to_string();
            let expected = format!("the user {text:?} is not a user: write NAME, UID, NAME:GROUP or UID:GID");
            assert_eq!(message, expected);
        }
        for text in ["4294967295", "99999999999999999999", "opam:4294967295"] {
            let message = text.parse::<UserSpec>().unwrap_err().to_string();
            assert_eq!(message, format!("the user {text:?} has an id that is too large: give one below 4294967295"));
        }
    }

    proptest! {
        #![proptest_config(mutated::config())]

        #[test]
        fn a_user_of_any_text_is_refused_or_read_back(text in mutated::text(["1000", "1000:5", "opam:staff", "4294967295"])) {
            match text.parse::<UserSpec>() {
                Ok(spec) => prop_assert_eq!(spec.to_string().parse::<UserSpec>().unwrap(), spec),
                Err(error) => prop_assert!(error.to_string().chars().all(|c| !c.is_control()), "{}", error),
            }
        }
    }
}
