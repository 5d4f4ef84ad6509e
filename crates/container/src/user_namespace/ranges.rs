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

/// Returns the ranges of `owner`, or `None` if it has none.
///
/// The ranges are in `/etc/subuid` and `/etc/subgid`, unless nsswitch.conf(5) names another source.
/// Then getsubids(1) returns them. Ranges that exist and cannot be used are an error: without them,
/// the files of this run would have other owners than those of the run before.
pub(super) fn of(owner: &Owner) -> Result<Option<Ranges>, UserNamespaceError> {
    let (uids, gids) = match names_other_source(&read_or_empty("/etc/nsswitch.conf")?) {
        true => (ask(owner, &[])?, ask(owner, &["-g"])?),
        false => (read_list("/etc/subuid", owner)?, read_list("/etc/subgid", owner)?),
    };
    both(uids, gids, owner)
}

/// Returns the ranges of users and groups, or `None` if both lists are empty. It is an error if
/// only one of them is empty.
fn both(uids: Vec<Range>, gids: Vec<Range>, owner: &Owner) -> Result<Option<Ranges>, UserNamespaceError> {
    let half = |has, lacks| UserNamespaceError::HalfRanges { user: owner.shown(), has, lacks };
    match (uids.is_empty(), gids.is_empty()) {
        (true, true) => Ok(None),
        (false, false) => Ok(Some(Ranges { uids, gids })),
        (false, true) => Err(half("users", "groups")),
        (true, false) => Err(half("groups", "users")),
    }
}

fn read_list(path: &'static str, owner: &Owner) -> Result<Vec<Range>, UserNamespaceError> {
    let malformed = |line: &str| UserNamespaceError::MalformedRange { path, line: line.into() };
    listed(&read_or_empty(path)?, owner).map_err(malformed)
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
/// owner is a name or a number. Returns a line of the owner's as the error if it is not in this
/// format.
fn listed<'t>(text: &'t str, owner: &Owner) -> Result<Vec<Range>, &'t str> {
    let is_owner = |named: &str| owner.name.as_deref() == Some(named) || named.parse() == Ok(owner.uid);
    let lines = text.lines().map(str::trim).filter(|line| line.split(':').next().is_some_and(is_owner));
    let range = |line: &str| {
        let mut numbers = line.split(':').skip(1).map(|number| number.parse().ok());
        Range::new(numbers.next()??, numbers.next()??).filter(|_| numbers.next().is_none())
    };
    lines.map(|line| range(line).ok_or(line)).collect()
}

/// Asks getsubids(1) for the ranges of `owner`. It exits with 1 if the user has no ranges, and also
/// if the source of the ranges does not answer.
fn ask(owner: &Owner, options: &[&str]) -> Result<Vec<Range>, UserNamespaceError> {
    const PROGRAM: &str = "getsubids";
    let failed = |message: String| UserNamespaceError::SourceFailed { message };
    let output = Command::new(PROGRAM).args(options).arg(owner.shown()).stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            printed(&text).map_err(|line| failed(format!("it printed {line:?}")))
        }
        Ok(output) => {
            let message = String::from_utf8_lossy(&output.stderr);
            Err(failed(if message.trim().is_empty() { output.status.to_string() } else { message.into_owned() }))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(UserNamespaceError::NoHelper { program: PROGRAM }),
        Err(source) => Err(UserNamespaceError::Io { operation: "start", path: PROGRAM, source }),
    }
}

/// Returns the ranges in the output of getsubids(1): lines of the form `INDEX: OWNER FIRST COUNT`.
/// Returns a line in another form as the error.
fn printed(text: &str) -> Result<Vec<Range>, &str> {
    let range = |line: &str| {
        let mut fields = line.split_whitespace().skip(2).map(|number| number.parse().ok());
        Range::new(fields.next()??, fields.next()??)
    };
    text.lines().map(|line| range(line).ok_or(line)).collect()
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
        let table: [(&str, &[(u32, u32)]); 6] = [
            ("ann:100000:65536\n", &[(100_000, 65536)]),
            (" 1000:100000:65536 ", &[(100_000, 65536)]),
            ("bob:1:2\nann:3:4\n1000:5:6\n", &[(3, 4), (5, 6)]),
            ("annette:1:2\n10001:3:4\n# ann\nbob:x\n:1:2\n", &[]),
            ("ann:4294967294:1\n", &[(4_294_967_294, 1)]),
            ("", &[]),
        ];
        for (text, expected) in table {
            assert_eq!(listed(text, &ann()), Ok(ranges(expected)), "{text}");
        }
        let nameless = Owner { uid: 1000, name: None };
        assert_eq!(listed("ann:x:2\n:3:4\n1000:5:6\n", &nameless), Ok(ranges(&[(5, 6)])));
    }

    #[test]
    fn a_line_of_the_user_that_cannot_be_used_is_an_error() {
        let lines = [
            "ann",
            "ann:1",
            "ann:1:",
            "ann:x:1",
            "ann:100000:-1",
            "ann:100000:0",
            "ann:1:2:3",
            "1000:1,2",
            "ann:4294967295:1",
            "ann:4294967294:2",
        ];
        for line in lines {
            assert_eq!(listed(&format!("bob:1:2\nann:3:4\n{line}\n"), &ann()), Err(line));
        }
    }

    #[test]
    fn ranges_of_one_kind_only_are_an_error() {
        let some = || ranges(&[(100, 10)]);
        assert_eq!(both(vec![], vec![], &ann()).unwrap(), None);
        assert_eq!(both(some(), some(), &ann()).unwrap(), Some(Ranges { uids: some(), gids: some() }));
        for (uids, gids, option) in [(some(), vec![], "--add-subgids"), (vec![], some(), "--add-subuids")] {
            let error = both(uids, gids, &ann()).unwrap_err().to_string();
            assert!(error.contains(&format!("usermod {option} FIRST-LAST ann")), "{error}");
            assert!(error.contains("--ids single"), "{error}");
        }
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
        let text = "0: ann 100000 65536\n1: ann 300000 1000\n";
        assert_eq!(printed(text), Ok(ranges(&[(100_000, 65536), (300_000, 1000)])));
        assert_eq!(printed("0: ann 100000 65536\nnone\n"), Err("none"));
        assert_eq!(printed(""), Ok(Vec::new()));
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
            for found in [listed(&text, &ann()), printed(&text)].into_iter().flatten() {
                prop_assert!(found.iter().all(|range| range.count > 0 && range.first.checked_add(range.count - 1).is_some()));
                prop_assert!(arguments(1, 2, &found).len() <= 1 + 3 * MAX_EXTENTS);
            }
        }
    }
}
