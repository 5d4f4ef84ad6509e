//! The subordinate IDs of a user: which ones the system grants, and the arguments of newuidmap(1).

use std::fs;
use std::io;
use std::process::{Command, Stdio};

use super::error::UserNamespaceError;

/// The subordinate user and group IDs of a user. Both lists have at least one range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ranges {
    pub(super) uids: Vec<Range>,
    pub(super) gids: Vec<Range>,
}

/// Consecutive IDs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    first: u32,
    count: u32,
}

/// A user as the lists of subordinate IDs name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) uid: u32,
    /// `None` if the system knows no name for the number.
    pub(super) name: Option<String>,
}

impl Owner {
    /// Returns the name, or the number of a nameless user.
    pub(super) fn shown(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.uid.to_string())
    }
}

/// Returns the ranges of `owner`, or `None` if it does not have both user and group IDs.
///
/// The ranges are in `/etc/subuid` and `/etc/subgid`, unless nsswitch.conf(5) names another source.
/// Then getsubids(1) returns them.
pub(super) fn of(owner: &Owner) -> Result<Option<Ranges>, UserNamespaceError> {
    let (uids, gids) = match names_other_source(&read_or_empty("/etc/nsswitch.conf")?) {
        true => (ask(owner, &[])?, ask(owner, &["-g"])?),
        false => (listed(&read_or_empty("/etc/subuid")?, owner), listed(&read_or_empty("/etc/subgid")?, owner)),
    };
    Ok((!uids.is_empty() && !gids.is_empty()).then_some(Ranges { uids, gids }))
}

fn read_or_empty(path: &'static str) -> Result<String, UserNamespaceError> {
    match fs::read(path) {
        Ok(text) => Ok(String::from_utf8_lossy(&text).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(UserNamespaceError::Io { operation: "read", path, source }),
    }
}

/// Returns whether nsswitch.conf(5) names a source of subordinate IDs other than the files.
fn names_other_source(nsswitch: &str) -> bool {
    let line = nsswitch.lines().find_map(|line| line.trim_start().strip_prefix("subid:"));
    let source = line.and_then(|sources| sources.split_whitespace().next());
    source.is_some_and(|source| source != "files" && !source.starts_with('#'))
}

/// Returns the ranges of `owner` in a file in the format of subuid(5): `OWNER:FIRST:COUNT`. The
/// owner is a name or a number. Skips lines that are not in this format.
fn listed(text: &str, owner: &Owner) -> Vec<Range> {
    let range = |line: &str| {
        let mut fields = line.trim().split(':');
        let (named, first, count) = (fields.next()?, fields.next()?, fields.next()?);
        let is_owner = owner.name.as_deref() == Some(named) || named.parse() == Ok(owner.uid);
        Range::new(first.parse().ok()?, count.parse().ok()?).filter(|_| is_owner)
    };
    text.lines().filter_map(range).collect()
}

/// Asks getsubids(1) for the ranges of `owner`. It exits with 1 if the user has no ranges.
fn ask(owner: &Owner, options: &[&str]) -> Result<Vec<Range>, UserNamespaceError> {
    const PROGRAM: &str = "getsubids";
    let output = Command::new(PROGRAM).args(options).arg(owner.shown()).stdin(Stdio::null()).output();
    match output {
        Ok(output) => Ok(printed(&String::from_utf8_lossy(&output.stdout))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(UserNamespaceError::NoHelper { program: PROGRAM }),
        Err(source) => Err(UserNamespaceError::Io { operation: "start", path: PROGRAM, source }),
    }
}

/// Returns the ranges in the output of getsubids(1): lines of the form `INDEX: OWNER FIRST COUNT`.
fn printed(text: &str) -> Vec<Range> {
    let range = |line: &str| {
        let mut fields = line.split_whitespace().skip(2).map(|number| number.parse().ok());
        Range::new(fields.next()??, fields.next()??)
    };
    text.lines().filter_map(range).collect()
}

impl Range {
    /// Returns `None` if the range is empty or exceeds the IDs that exist.
    fn new(first: u32, count: u32) -> Option<Self> {
        (count > 0 && first.checked_add(count - 1)? < u32::MAX).then_some(Self { first, count })
    }
}

/// The kernel accepts this many extents in one map (`UID_GID_MAP_MAX_EXTENTS`).
const MAX_EXTENTS: usize = 340;

/// Returns the arguments of newuidmap(1) or newgidmap(1) for the process `pid`. In the namespace, 0
/// is `own`, and the IDs from 1 on are those of the ranges, in their order.
pub(super) fn arguments(pid: u32, own: u32, ranges: &[Range]) -> Vec<String> {
    let mut numbers = vec![pid, 0, own, 1];
    let mut inside: u32 = 1;
    for range in ranges.iter().take(MAX_EXTENTS - 1) {
        let count = range.count.min(u32::MAX - inside);
        if count == 0 {
            break;
        }
        numbers.extend([inside, range.first, count]);
        inside += count;
    }
    numbers.iter().map(u32::to_string).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mutated;

    fn ann() -> Owner {
        Owner { uid: 1000, name: Some("ann".into()) }
    }

    fn ranges(numbers: &[(u32, u32)]) -> Vec<Range> {
        numbers.iter().map(|(first, count)| Range { first: *first, count: *count }).collect()
    }

    #[test]
    fn ranges_are_listed_by_name_or_by_number() {
        let table: [(&str, &[(u32, u32)]); 7] = [
            ("ann:100000:65536\n", &[(100_000, 65536)]),
            ("1000:100000:65536", &[(100_000, 65536)]),
            ("bob:1:2\nann:3:4\n1000:5:6\n", &[(3, 4), (5, 6)]),
            ("annette:1:2\n10001:3:4\n", &[]),
            ("ann:100000:0\nann:x:1\nann:1\n:1:2\n", &[]),
            ("ann:4294967295:1\nann:4294967294:2\nann:4294967294:1\n", &[(4_294_967_294, 1)]),
            ("", &[]),
        ];
        for (text, expected) in table {
            assert_eq!(listed(text, &ann()), ranges(expected), "{text}");
        }
        let nameless = Owner { uid: 1000, name: None };
        assert_eq!(listed("ann:1:2\n:3:4\n1000:5:6\n", &nameless), ranges(&[(5, 6)]));
    }

    #[test]
    fn nsswitch_decides_whom_to_ask() {
        let table = [
            ("", false),
            ("passwd: files sss\n", false),
            ("passwd: files\nsubid: files\n", false),
            ("subid:   sss\n", true),
            ("  subid: sss # from the directory\n", true),
            ("# subid: sss\n", false),
            ("subid: # none\n", false),
            ("subid:\n", false),
        ];
        for (text, expected) in table {
            assert_eq!(names_other_source(text), expected, "{text}");
        }
    }

    #[test]
    fn the_output_of_getsubids_is_read() {
        let text = "0: ann 100000 65536\n1: ann 300000 1000\nnone\n";
        assert_eq!(printed(text), ranges(&[(100_000, 65536), (300_000, 1000)]));
        assert_eq!(printed("Error fetching ranges\n"), []);
    }

    #[test]
    fn the_ranges_follow_each_other_in_the_namespace() {
        let words = |numbers: &[(u32, u32)]| arguments(7, 1000, &ranges(numbers)).join(" ");
        assert_eq!(words(&[(100_000, 65536)]), "7 0 1000 1 1 100000 65536");
        assert_eq!(words(&[(100, 10), (300, 20)]), "7 0 1000 1 1 100 10 11 300 20");
        assert_eq!(words(&[(1, u32::MAX - 2), (5, 9)]), "7 0 1000 1 1 1 4294967293 4294967294 5 1");
        assert_eq!(arguments(7, 1000, &ranges(&[(1, 1); 400])).len(), 1 + 3 * MAX_EXTENTS);
    }

    proptest! {
        #![proptest_config(mutated::config())]

        #[test]
        fn lists_of_any_content_are_read_without_a_panic(text in mutated::text(["bob:1:2\nann:100000:65536\n1000:4294967294:9\n0: ann 100000 65536\n"])) {
            for found in [listed(&text, &ann()), printed(&text)] {
                prop_assert!(found.iter().all(|range| range.count > 0 && range.first.checked_add(range.count - 1).is_some()));
                prop_assert!(arguments(1, 2, &found).len() <= 1 + 3 * MAX_EXTENTS);
            }
        }
    }
}
