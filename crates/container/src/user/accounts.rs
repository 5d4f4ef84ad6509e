//! Parses the lines of `/etc/passwd` and `/etc/group`: passwd(5), group(5). The files are not
//! trusted: lines without the required fields are ignored. `rootfs::users` finds the files.

use std::collections::HashSet;

/// A line of `/etc/passwd`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) home: String,
}

/// The home directory of a user without a usable one.
pub(crate) const NO_HOME: &str = "/";

/// Returns the first line of a passwd file with the user `name`.
pub(crate) fn user_named(passwd: &[u8], name: &str) -> Option<Entry> {
    users(passwd).find_map(|(found, entry)| (found == name.as_bytes()).then_some(entry))
}

/// Returns the first line of a passwd file with the user number `uid`.
pub(crate) fn user_numbered(passwd: &[u8], uid: u32) -> Option<Entry> {
    users(passwd).find_map(|(_, entry)| (entry.uid == uid).then_some(entry))
}

/// Returns the number of the group `name` in a group file.
pub(crate) fn group_named(group: &[u8], name: &str) -> Option<u32> {
    groups(group).find_map(|(found, gid, _)| (found == name.as_bytes()).then_some(gid))
}

/// Returns the numbers of all groups in a group file that list the user `name`, in the order of the
/// file and without duplicates.
pub(crate) fn groups_listing(group: &[u8], name: &str) -> Vec<u32> {
    let mut seen = HashSet::new();
    let lists = |members: &[u8]| members.split(|byte| *byte == b',').any(|member| member == name.as_bytes());
    let listing = groups(group).filter(|(_, _, members)| lists(members));
    listing.map(|(_, gid, _)| gid).filter(|gid| seen.insert(*gid)).collect()
}

fn users(passwd: &[u8]) -> impl Iterator<Item = (&[u8], Entry)> {
    lines(passwd).filter_map(|mut fields| {
        let name = fields.next().filter(|name| !name.is_empty())?;
        let _password = fields.next()?;
        let (uid, gid) = (number(fields.next()?)?, number(fields.next()?)?);
        let _comment = fields.next();
        Some((name, Entry { uid, gid, home: home(fields.next().unwrap_or_default()) }))
    })
}

fn groups(group: &[u8]) -> impl Iterator<Item = (&[u8], u32, &[u8])> {
    lines(group).filter_map(|mut fields| {
        let name = fields.next().filter(|name| !name.is_empty())?;
        let _password = fields.next()?;
        Some((name, number(fields.next()?)?, fields.next().unwrap_or_default()))
    })
}

fn lines(text: &[u8]) -> impl Iterator<Item = impl Iterator<Item = &[u8]>> {
    let lines = text.split(|byte| *byte == b'\n');
    lines.map(|line| line.trim_ascii().split(|byte| *byte == b':'))
}

fn number(field: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(field).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    // setuid(2) treats the largest number as -1.
    digits.parse().ok().filter(|id| *id != u32::MAX)
}

/// Returns the home directory if programs can use it as `HOME` and JSON and an environment can hold
/// it.
fn home(field: &[u8]) -> String {
    let usable = std::str::from_utf8(field).ok().filter(|home| home.starts_with('/') && !home.contains('\0'));
    usable.unwrap_or(NO_HOME).to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mutated;

    const PASSWD: &str = "\
root:x:0:0:root:/root:/bin/sh
# a comment: 1
opam:x:1000:1001:Opam,,,:/home/opam:/bin/bash
again:x:1000:7::/home/again:

opam:x:5:5::/second:
";

    const GROUP: &str = "root:x:0:\nstaff:x:50:opam,root\nwheel:x:10:root,opam\nstaff:x:51:\ncopy:x:50:opam\n";

    fn entry(uid: u32, gid: u32, home: &str) -> Option<Entry> {
        Some(Entry { uid, gid, home: home.into() })
    }

    #[test]
    fn the_first_line_of_a_user_is_found() {
        let table = [("root", entry(0, 0, "/root")), ("opam", entry(1000, 1001, "/home/opam")), ("opa", None)];
        for (name, expected) in table {
            assert_eq!(user_named(PASSWD.as_bytes(), name), expected, "{name}");
        }
        let table = [(0, entry(0, 0, "/root")), (1000, entry(1000, 1001, "/home/opam")), (1001, None)];
        for (uid, expected) in table {
            assert_eq!(user_numbered(PASSWD.as_bytes(), uid), expected, "{uid}");
        }
    }

    #[test]
    fn groups_are_found_by_name_and_by_member() {
        for (name, gid) in [("root", Some(0)), ("staff", Some(50)), ("opam", None), ("x", None)] {
            assert_eq!(group_named(GROUP.as_bytes(), name), gid, "{name}");
        }
        for (name, gids) in [("opam", &[50, 10][..]), ("root", &[50, 10]), ("opa", &[]), ("opam,root", &[])] {
            assert_eq!(groups_listing(GROUP.as_bytes(), name), gids, "{name}");
        }
    }

    #[test]
    fn invalid_lines_are_ignored() {
        let lines: [(&[u8], Option<Entry>); 18] = [
            (b"a:x:1:2:c:/h:/s", entry(1, 2, "/h")),
            (b"a:x:1:2:c:/h", entry(1, 2, "/h")),
            (b"  a:x:1:2:c:/h\r", entry(1, 2, "/h")),
            (b"a::1:2::/h:", entry(1, 2, "/h")),
            // Lines without a usable home directory.
            (b"a:x:1:2", entry(1, 2, "/")),
            (b"a:x:1:2::", entry(1, 2, "/")),
            (b"a:x:1:2::home:", entry(1, 2, "/")),
            (b"a:x:1:2::/h\xff:", entry(1, 2, "/")),
            (b"a:x:1:2::/h\0:", entry(1, 2, "/")),
            // An invalid number is never read as 0.
            (b"a:x:1", None),
            (b"a:x::2::/h:", None),
            (b"a:x:one:2::/h:", None),
            (b"a:x:-1:2::/h:", None),
            (b"a:x:+1:2::/h:", None),
            (b"a:x:4294967295:2::/h:", None),
            (b"a:x:1:4294967296::/h:", None),
            (b"a", None),
            (b"", None),
        ];
        for (line, expected) in lines {
            assert_eq!(user_named(line, "a"), expected, "{}", line.escape_ascii());
            // A later line is used.
            let two = [line, b"\na:x:3:4::/later:"].concat();
            assert_eq!(user_named(&two, "a"), expected.or(entry(3, 4, "/later")), "{}", line.escape_ascii());
        }
        for line in [&b"g:x"[..], b"g:x:", b"g:x:one:a", b"g:x:4294967295:a", b":x:1:a"] {
            let found = (group_named(line, "g"), groups_listing(line, "a"));
            assert_eq!(found, (None, vec![]), "{}", line.escape_ascii());
        }
    }

    proptest! {
        #![proptest_config(mutated::config())]

        #[test]
        fn a_file_of_any_content_has_only_valid_accounts(text in mutated::bytes([PASSWD, GROUP])) {
            for found in [user_named(&text, "opam"), user_numbered(&text, 1000)].into_iter().flatten() {
                prop_assert!(found.uid != u32::MAX && found.gid != u32::MAX);
                prop_assert!(found.home.starts_with('/') && !found.home.contains(['\0', '\n', ':']));
            }
            prop_assert!(group_named(&text, "staff") != Some(u32::MAX));
            let gids = groups_listing(&text, "opam");
            prop_assert_eq!(gids.iter().collect::<HashSet<_>>().len(), gids.len());
        }
    }
}
