//! Escapes any text for HTML, and any bytes of a path for URLs.

use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

/// Escapes text for the content of an element or for a quoted attribute. Characters that are
/// invisible or change the direction of text become visible escapes, so that no name can look like
/// another.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' => escaped.push('\n'),
            '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}' => {
                escaped.extend(character.escape_unicode());
            }
            character if character.is_control() => escaped.extend(character.escape_unicode()),
            character => escaped.push(character),
        }
    }
    escaped
}

/// Encodes bytes as one segment of a URL's path: all but the unreserved characters of RFC 3986 as
/// `%XX`.
pub(crate) fn percent_encode(bytes: &[u8]) -> String {
    let mut encoded = String::new();
    for byte in bytes {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(*byte)),
            byte => write!(encoded, "%{byte:02X}").expect("a string takes all"),
        }
    }
    encoded
}

/// Returns the URL of the directory `to` for a page in the directory `from`. Both paths must be
/// absolute and without symbolic links.
pub(crate) fn relative_url(from: &Path, to: &Path) -> String {
    let common = from.components().zip(to.components()).take_while(|(from, to)| from == to).count();
    let up = from.components().skip(common).map(|_| "..".to_string());
    let down = to.components().skip(common).filter_map(|component| match component {
        Component::Normal(name) => Some(percent_encode(name.as_bytes())),
        _ => None,
    });
    // The first `.` keeps the URL from being empty, and from beginning like a scheme or a host.
    [".".to_string()].into_iter().chain(up).chain(down).collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_text_contains_no_markup() {
        let table = [
            ("plain, größe", "plain, größe"),
            ("<a href=\"x\">&'</a>", "&lt;a href=&quot;x&quot;&gt;&amp;&#39;&lt;/a&gt;"),
            ("a\nb\tc\0", "a\nb\\u{9}c\\u{0}"),
            ("safe\u{202e}gnp.exe", "safe\\u{202e}gnp.exe"),
        ];
        for (text, escaped) in table {
            assert_eq!(escape(text), escaped);
        }
    }

    #[test]
    fn urls_lead_from_the_page_to_the_store() {
        let table = [
            ("/a/b", "/a/b", "."),
            ("/a", "/a/b/c", "./b/c"),
            ("/a/b/c", "/a/d", "./../../d"),
            ("/", "/a:b/ü", "./a%3Ab/%C3%BC"),
        ];
        for (from, to, url) in table {
            assert_eq!(relative_url(Path::new(from), Path::new(to)), url, "{from} {to}");
        }
        assert_eq!(percent_encode(b"a/b \xff\"'?#"), "a%2Fb%20%FF%22%27%3F%23");
    }
}
