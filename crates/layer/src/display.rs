//! Makes names and texts that other programs chose safe to print. `json_path.rs` writes such names
//! into JSON.
//!
//! A file name may hold every byte but `/` and NUL. Printed as it is, a name can drive the
//! terminal, forge the next line of a table, or reverse the direction of the text around it. The
//! same is true of strings in `layer.json` and of messages that quote a name.

use std::ffi::OsStr;
use std::fmt::{self, Display, Formatter, Write};
use std::os::unix::ffi::OsStrExt;

use os_display::Quotable;

/// Displays a path or a name in the form that a shell accepts. A name is displayed unchanged if
/// possible, and in quotes if it has spaces or other characters with a meaning to a shell. It is
/// displayed with escapes (`$'a\nb'`) if it has control characters, line separators, characters
/// that change the direction of text, or bytes that are not UTF-8.
///
/// ```
/// assert_eq!(layer::display::quoted("usr/lib").to_string(), "usr/lib");
/// assert_eq!(layer::display::quoted("a b").to_string(), "'a b'");
/// assert_eq!(layer::display::quoted("\x1b[2J").to_string(), r"$'\x1B[2J'");
/// ```
pub fn quoted<N: AsRef<OsStr> + ?Sized>(name: &N) -> Quoted<'_> {
    Quoted(name.as_ref())
}

/// Displays a text with each control character written as an escape (`\n`, `\u{1b}`), so that the
/// text stays on its line. Line separators and characters that change the direction of text are
/// escaped, too.
///
/// ```
/// assert_eq!(layer::display::escaped("größe: \x1b[2J\n").to_string(), r"größe: \u{1b}[2J\n");
/// ```
pub fn escaped<T: Display>(text: T) -> Escaped<T> {
    Escaped(text)
}

/// Displays JSON with each control character written as an escape (`\u001b`), so that it is still
/// the same JSON. Escapes the same characters as [`escaped`], but keeps line feeds between values.
/// Takes a [`serde_json::Value`] or a text that is JSON; `{:#}` displays a value on several lines.
///
/// ```
/// let value = serde_json::json!(["\u{9b}2J"]);
/// assert_eq!(layer::display::escaped_json(&value).to_string(), r#"["\u009b2J"]"#);
/// ```
pub fn escaped_json<T: Display>(json: T) -> EscapedJson<T> {
    EscapedJson(json)
}

/// The result of [`quoted`].
#[derive(Debug, Clone, Copy)]
pub struct Quoted<'a>(&'a OsStr);

/// The result of [`escaped`].
#[derive(Debug, Clone, Copy)]
pub struct Escaped<T>(T);

/// The result of [`escaped_json`].
#[derive(Debug, Clone, Copy)]
pub struct EscapedJson<T>(T);

impl Display for Quoted<'_> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        // os_display does not escape pairs of overrides that close each other, nor single direction
        // marks.
        match self.0.as_bytes().utf8_chunks().any(|chunk| chunk.valid().contains(is_bidi_control)) {
            true => write_in_escapes(self.0, formatter),
            false => self.0.maybe_quote().fmt(formatter),
        }
    }
}

/// Writes a name in the form that os_display uses for a name with control characters. Also escapes
/// every character that changes the direction of text.
fn write_in_escapes(name: &OsStr, formatter: &mut Formatter<'_>) -> fmt::Result {
    formatter.write_str("$'")?;
    let mut after_escape = false;
    for chunk in name.as_bytes().utf8_chunks() {
        for character in chunk.valid().chars() {
            let escape = match character {
                '\n' => "\\n",
                '\r' => "\\r",
                '\t' => "\\t",
                '\\' => "\\\\",
                '\'' => "\\'",
                character if is_unprintable(character) => {
                    after_escape = true;
                    write_bytes(character.encode_utf8(&mut [0; 4]).as_bytes(), formatter)?;
                    continue;
                }
                character => {
                    // Some shells read more than two digits after `\x`.
                    if after_escape && character.is_ascii_hexdigit() {
                        formatter.write_str("'$'")?;
                    }
                    after_escape = false;
                    formatter.write_char(character)?;
                    continue;
                }
            };
            after_escape = false;
            formatter.write_str(escape)?;
        }
        after_escape |= !chunk.invalid().is_empty();
        write_bytes(chunk.invalid(), formatter)?;
    }
    formatter.write_char('\'')
}

fn write_bytes(bytes: &[u8], formatter: &mut Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(formatter, "\\x{byte:02X}"))
}

impl<T: Display> Display for Escaped<T> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        write!(Escaping { formatter, escape: |character: char| character.escape_default().to_string() }, "{}", self.0)
    }
}

impl<T: Display> Display for EscapedJson<T> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let alternate = formatter.alternate();
        let escape = |character| match character {
            // A line feed between two values: inside a string, JSON has escaped it already.
            '\n' => "\n".into(),
            character => format!("\\u{:04x}", u32::from(character)),
        };
        let mut out = Escaping { formatter, escape };
        if alternate { write!(out, "{:#}", self.0) } else { write!(out, "{}", self.0) }
    }
}

/// A writer that replaces the unprintable characters of a text.
struct Escaping<'a, 'f, E> {
    formatter: &'a mut Formatter<'f>,
    escape: E,
}

impl<E: Fn(char) -> String> Write for Escaping<'_, '_, E> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some((at, character)) = rest.char_indices().find(|(_, character)| is_unprintable(*character)) {
            self.formatter.write_str(&rest[..at])?;
            self.formatter.write_str(&(self.escape)(character))?;
            rest = &rest[at + character.len_utf8()..];
        }
        self.formatter.write_str(rest)
    }
}

/// Returns whether a terminal may interpret the character instead of printing it. This applies to
/// control characters (C0, DEL, C1), to the line and paragraph separators, and to characters that
/// change the direction of text.
fn is_unprintable(character: char) -> bool {
    character.is_control() || matches!(character, '\u{2028}' | '\u{2029}') || is_bidi_control(character)
}

/// Returns whether the character has Unicode's property `Bidi_Control` (PropList.txt).
fn is_bidi_control(character: char) -> bool {
    matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn names_are_quoted_only_where_necessary() {
        let table: [(&[u8], &str); 14] = [
            (b"/var/cache/5f2e", "/var/cache/5f2e"),
            ("größe/日本語".as_bytes(), "größe/日本語"),
            (b"a b", "'a b'"),
            (b"it's", "\"it's\""),
            (b"", "''"),
            (b"a\nb\t\r", r"$'a\nb\t\r'"),
            (b"\x1b]0;x\x07", r"$'\x1B]0;x\x07'"),
            (b"\x7f", r"$'\x7F'"),
            ("\u{9b}2J".as_bytes(), r"$'\xC2\x9B'$'2J'"),
            (b"\xff", r"$'\xFF'"),
            ("a\u{202e}b".as_bytes(), r"$'a\xE2\x80\xAE'$'b'"),
            ("\u{202e}txt\u{202c}'\\".as_bytes(), r"$'\xE2\x80\xAEtxt\xE2\x80\xAC\'\\'"),
            ("\u{200f}\u{61c}g\n\r\t".as_bytes(), r"$'\xE2\x80\x8F\xD8\x9Cg\n\r\t'"),
            (b"\xe2\x80\x8e\xffa", r"$'\xE2\x80\x8E\xFF'$'a'"),
        ];
        for (name, shown) in table {
            assert_eq!(quoted(OsStr::from_bytes(name)).to_string(), shown);
        }
        assert_eq!(quoted(Path::new("/a b")).to_string(), quoted("/a b").to_string());
    }

    struct InEscapes<'a>(&'a OsStr);

    impl Display for InEscapes<'_> {
        fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
            write_in_escapes(self.0, formatter)
        }
    }

    /// Compares `write_in_escapes` with os_display, for names that os_display escapes, too.
    #[test]
    fn names_in_escapes_are_those_of_os_display() {
        for name in [&b"\x01a\x02g\\'\n\r\t"[..], b"\xff\xfe1\xffz", b"\xe2\x80", "\u{85}\u{2028}e".as_bytes()] {
            let name = OsStr::from_bytes(name);
            assert_eq!(InEscapes(name).to_string(), name.maybe_quote().to_string());
        }
    }

    #[test]
    fn text_stays_on_its_line() {
        let text = "a b\u{e9}\n\r\t\x1b[31m\x7f\u{9b}\u{2028}\u{202e}\u{2066}'\"\\";
        let shown = r#"a bé\n\r\t\u{1b}[31m\u{7f}\u{9b}\u{2028}\u{202e}\u{2066}'"\"#;
        assert_eq!(escaped(text).to_string(), shown);
        assert_eq!(escaped(format_args!("{}{}", "\n", 1)).to_string(), r"\n1");
    }

    #[test]
    fn escaped_json_has_the_same_value() {
        let value = json!({"a\u{9b}": ["\x1b\x7f\n", "\u{202e}é日", 1]});
        for text in [escaped_json(&value).to_string(), format!("{:#}", escaped_json(&value))] {
            assert!(text.chars().all(|character| character == '\n' || !is_unprintable(character)), "{text}");
            assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
        }
        assert_eq!(format!("{:#}", escaped_json(&json!([1]))), "[\n  1\n]");
    }
}
