//! Nearly valid input for the parsers of all crates. A parser gets further with it than with noise.
//!
//! The unit tests of each crate include this file, because the parsers are private.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Value, json};

/// The configuration of the tests. `PROPTEST_CASES` sets the number of cases, 256 by default. A
/// failing case is printed and not written into the source tree.
pub(crate) fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
}

/// Text that is difficult for parsers.
const PARTS: [&[u8]; 32] = [
    b"",
    b"\0",
    b"\n",
    b" ",
    b"\t",
    b"\x1b[2J",
    b"\xff",
    b"\xc3",
    b"\xf0\x9f\x91\xa9",
    b"\xe2\x80\xae",
    b"\"",
    b"\\",
    b"\\ud800",
    b"\\u0000",
    b"'",
    b",",
    b":",
    b"=",
    b"/",
    b"..",
    b"-",
    b"+",
    b"-1",
    b"0",
    b"08",
    b"1e400",
    b"18446744073709551615",
    b"340282366920938463463374607431768211456",
    b"null",
    b"[]",
    b"{}",
    b"{\"a\":1,\"a\":2}",
];

#[derive(Debug, Clone)]
enum Change {
    Byte(Index, u8),
    Insert(Index, &'static [u8]),
    Remove(Index, Index),
    /// Inserts a copy of a part elsewhere.
    Copy(Index, Index, Index),
    /// Repeats a part many times.
    Repeat(Index, Index, u16),
    Nest(Index, u16),
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<Index>;
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        (at(), select(&PARTS[..])).prop_map(|(at, part)| Change::Insert(at, part)),
        (at(), at()).prop_map(|(from, to)| Change::Remove(from, to)),
        (at(), at(), at()).prop_map(|(from, to, at)| Change::Copy(from, to, at)),
        (at(), at(), 0..300_u16).prop_map(|(from, to, times)| Change::Repeat(from, to, times)),
        (at(), 0..1000_u16).prop_map(|(at, depth)| Change::Nest(at, depth)),
    ]
}

impl Change {
    fn apply(&self, text: &mut Vec<u8>) {
        let length = text.len();
        let at = |index: &Index| index.index(length + 1);
        let range = |from: &Index, to: &Index| at(from).min(at(to))..at(from).max(at(to));
        match self {
            Change::Byte(index, byte) => {
                let at = at(index);
                text.splice(at..(at + 1).min(length), [*byte]);
            }
            Change::Insert(index, part) => {
                let at = at(index);
                text.splice(at..at, part.iter().copied());
            }
            Change::Remove(from, to) => drop(text.drain(range(from, to))),
            Change::Copy(from, to, index) => {
                let (part, at) = (text[range(from, to)].to_vec(), at(index));
                text.splice(at..at, part);
            }
            Change::Repeat(from, to, times) => {
                let range = range(from, to);
                let part: Vec<_> = text[range.clone()].iter().copied().take(100).collect();
                text.splice(range.end..range.end, part.repeat(usize::from(*times)));
            }
            Change::Nest(index, depth) => {
                let at = at(index);
                text.splice(at..at, std::iter::repeat_n(b'[', usize::from(*depth)));
            }
        }
    }
}

/// Returns one of the `valid` texts with up to four changes.
pub(crate) fn bytes<T: AsRef<[u8]>>(valid: impl IntoIterator<Item = T>) -> impl Strategy<Value = Vec<u8>> {
    let valid: Vec<Vec<u8>> = valid.into_iter().map(|text| text.as_ref().to_vec()).collect();
    (select(valid), vec(change(), 0..5)).prop_map(|(mut text, changes)| {
        changes.iter().for_each(|change| change.apply(&mut text));
        text
    })
}

/// As [`bytes`], with invalid UTF-8 replaced.
#[allow(dead_code, reason = "not every crate has a parser of text")]
pub(crate) fn text<T: AsRef<[u8]>>(valid: impl IntoIterator<Item = T>) -> impl Strategy<Value = String> {
    bytes(valid).prop_map(|text| String::from_utf8_lossy(&text).into_owned())
}

/// Returns the `valid` value with up to four of its values replaced or removed. The result is still
/// JSON, but of another shape.
pub(crate) fn value(valid: Value) -> impl Strategy<Value = Value> {
    let others = vec![
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(1e300),
        json!(-0.5),
        json!(""),
        json!("\u{0}\u{1b}[2J\n\u{202e}"),
        json!("/../x"),
        json!("x".repeat(5000)),
        json!([]),
        json!([null, 1, "a", {}]),
        json!({}),
        json!({"": {"": [[[]]]}}),
        (0..100).fold(json!(1), |value, _| json!([value])),
    ];
    let change = (any::<Index>(), proptest::option::weighted(0.8, select(others)));
    vec(change, 0..5).prop_map(move |changes| {
        let mut value = valid.clone();
        for (index, other) in changes {
            let mut at = index.index(count(&value));
            replace(&mut value, &mut at, &other);
        }
        value
    })
}

/// Counts the values in `value`, including itself.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(items) => items.values().map(count).sum(),
        _ => 0_usize,
    }
}

/// Replaces or removes the value that follows `at` others. Returns whether it was found.
fn replace(value: &mut Value, at: &mut usize, other: &Option<Value>) -> bool {
    if *at == 0 {
        *value = other.clone().unwrap_or_default();
        return true;
    }
    *at -= 1;
    match value {
        Value::Array(items) => {
            for index in 0..items.len() {
                if *at == 0 && other.is_none() {
                    items.remove(index);
                    return true;
                }
                if replace(&mut items[index], at, other) {
                    return true;
                }
            }
        }
        Value::Object(items) => {
            for key in items.keys().cloned().collect::<Vec<_>>() {
                if *at == 0 && other.is_none() {
                    items.shift_remove(&key);
                    return true;
                }
                if replace(&mut items[&key], at, other) {
                    return true;
                }
            }
        }
        _ => {}
    }
    false
}
