//! Checks the pax records of an entry. `tar-core` reads them, but skips a value that it cannot
//! parse; here such a value is an error, and a time keeps its sign and its nanoseconds.

use rustix::fs::Timespec;
use tar_core::PaxExtensions;

use super::error::Problem;

/// The values that `tar-core` does not return.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Pax {
    /// The time of the last modification.
    pub(crate) mtime: Option<Timespec>,
    /// Whether GNU tar has written an ACL as a text (`SCHILY.acl.*`). Images write ACLs as extended
    /// attributes.
    pub(crate) has_acl_text: bool,
}

impl Pax {
    /// Checks the records of one entry.
    pub(crate) fn check(records: &[u8]) -> Result<Self, Problem> {
        let mut pax = Self::default();
        let mut length = 0;
        for record in PaxExtensions::new(records) {
            let record = record.map_err(|_| Problem::PaxMalformed)?;
            let (key, value) = (record.key_bytes(), record.value_bytes());
            length += record_length(key.len() + value.len());
            let refuse = || Problem::PaxValue { key: lossy(key), value: lossy(value) };
            match key {
                b"uid" | b"gid" | b"size" | b"GNU.sparse.realsize" | b"GNU.sparse.size" => {
                    let is_number = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
                    let fits = lossy(value).parse::<u64>().is_ok();
                    if !is_number || !fits {
                        return Err(refuse());
                    }
                }
                b"mtime" => pax.mtime = Some(parse_time(value).ok_or_else(refuse)?),
                b"path" | b"linkpath" | b"GNU.sparse.name" if value.contains(&0) => return Err(Problem::NulInName),
                _ => pax.has_acl_text |= key.starts_with(b"SCHILY.acl."),
            }
        }
        // `tar-core` ends at a length that is not a number, and ignores the rest.
        if length == records.len() { Ok(pax) } else { Err(Problem::PaxMalformed) }
    }

    /// Refuses a global header that would change later entries. `tar-core` applies none, and other
    /// programs do.
    pub(crate) fn check_global(records: &[u8]) -> Result<(), Problem> {
        for record in PaxExtensions::new(records) {
            let record = record.map_err(|_| Problem::PaxMalformed)?;
            let key = record.key_bytes();
            let changes =
                matches!(
                    key,
                    b"path" | b"linkpath" | b"size" | b"uid" | b"gid" | b"uname" | b"gname" | b"mtime" | b"atime"
                ) || [&b"SCHILY."[..], b"GNU.sparse.", b"LIBARCHIVE."].iter().any(|prefix| key.starts_with(prefix));
            if changes {
                return Err(Problem::GlobalHeader { key: lossy(key) });
            }
        }
        Ok(())
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Returns the length of a record whose key and value have `content` bytes: `LENGTH KEY=VALUE\n`,
/// where LENGTH counts its own digits.
fn record_length(content: usize) -> usize {
    let rest = content + 3;
    let digits = |number: usize| number.to_string().len();
    // One more digit can make the number one digit longer, but not two.
    let length = rest + digits(rest);
    rest + digits(length)
}

/// Parses a time in seconds since 1970, such as `-1.5`. Digits beyond nanoseconds are cut off.
pub(crate) fn parse_time(text: &[u8]) -> Option<Timespec> {
    let text = std::str::from_utf8(text).ok()?;
    let (is_negative, unsigned) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !is_digits(whole) || !is_digits(fraction) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let nanoseconds: i64 = format!("{:0<9.9}", fraction).parse().ok()?;
    let (tv_sec, tv_nsec) = match (is_negative, nanoseconds) {
        (false, nanoseconds) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, nanoseconds) => ((-seconds).checked_sub(1)?, 1_000_000_000 - nanoseconds),
    };
    Some(Timespec { tv_sec, tv_nsec })
}

/// Writes a time as [`parse_time`] reads it, with as few digits as it needs.
pub(crate) fn format_time(time: Timespec) -> String {
    // The kernel counts the nanoseconds upwards, also before 1970.
    let (sign, seconds, nanoseconds) = match (time.tv_sec, time.tv_nsec) {
        (seconds, 0) if seconds < 0 => ("-", seconds.unsigned_abs(), 0),
        (seconds, nanoseconds) if seconds < 0 => ("-", (seconds + 1).unsigned_abs(), 1_000_000_000 - nanoseconds),
        (seconds, nanoseconds) => ("", seconds.unsigned_abs(), nanoseconds),
    };
    match nanoseconds {
        0 => format!("{sign}{seconds}"),
        nanoseconds => format!("{sign}{seconds}.{nanoseconds:09}").trim_end_matches('0').into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn time(tv_sec: i64, tv_nsec: i64) -> Timespec {
        Timespec { tv_sec, tv_nsec }
    }

    #[test]
    fn times_keep_their_sign_and_their_nanoseconds() {
        for (text, expected) in [
            ("0", time(0, 0)),
            ("1234567890", time(1_234_567_890, 0)),
            ("1.5", time(1, 500_000_000)),
            ("1.000000001", time(1, 1)),
            ("-1", time(-1, 0)),
            ("-1.5", time(-2, 500_000_000)),
            ("-0.25", time(-1, 750_000_000)),
            ("-0.000000001", time(-1, 999_999_999)),
        ] {
            assert_eq!(parse_time(text.as_bytes()), Some(expected), "{text}");
            assert_eq!(format_time(expected), text);
        }
        assert_eq!(parse_time(b"1.9999999999"), Some(time(1, 999_999_999)));
        assert_eq!(parse_time(b"7."), Some(time(7, 0)));
        for text in ["", "-", ".5", "+1", "1e3", " 1", "1.5.5", "1.-5", "--1", "99999999999999999999", "é"] {
            assert_eq!(parse_time(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn records_that_other_programs_read_differently_are_refused() {
        let acl = Pax { mtime: None, has_acl_text: true };
        for (records, expected) in [
            (&b""[..], Some(Pax::default())),
            (b"12 uid=1000\n", Some(Pax::default())),
            (b"14 mtime=-1.5\n", Some(Pax { mtime: Some(time(-2, 500_000_000)), ..Pax::default() })),
            (b"24 SCHILY.xattr.user.a=\n", Some(Pax::default())),
            (b"26 SCHILY.xattr.user.a=a\n\n", Some(Pax::default())),
            (b"26 SCHILY.acl.access=u::r\n", Some(acl)),
            (b"10 uid=-1\n", None),
            (b"10 gid=+1\n", None),
            (b"8 uid=a\n", None),
            (b"7 size=\n", None),
            (b"29 size=99999999999999999999\n", None),
            (b"10 mtime=x\n", None),
            (b"11 path=a\0b\n", None),
            (b"x uid=1000\n", None),
            (b"12 uid=1000\nrest", None),
            (b"013 uid=1000\n", None),
            (b"99 uid=1000\n", None),
            (b"12 uid=1000x", None),
        ] {
            let shown = records.escape_ascii();
            assert_eq!(Pax::check(records).ok(), expected, "{shown}");
        }
    }

    #[test]
    fn a_global_header_may_only_comment() {
        assert!(Pax::check_global(b"15 comment=abc\n").is_ok());
        for records in [&b"13 path=../a\n"[..], b"25 SCHILY.xattr.user.a=b\n", b"12 uid=1000\n"] {
            assert!(matches!(Pax::check_global(records), Err(Problem::GlobalHeader { .. })));
        }
    }

    #[test]
    fn the_length_of_a_record_counts_its_own_digits() {
        for content in (0..2000).chain([9_990, 99_990, 999_985]) {
            let mut builder = tar_core::PaxBuilder::new();
            builder.add("", vec![b'x'; content]);
            assert_eq!(record_length(content), builder.finish().len(), "{content}");
        }
    }
}
