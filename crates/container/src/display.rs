//! Makes messages of the kernel and of runtimes safe to print: they quote names unchanged.
//! `os_display` does the same for paths.

use std::fmt::{self, Display, Formatter, Write};

/// Displays a text with each control character escaped (`\n`, `\u{1b}`). The text stays on one
/// line, and a terminal does not interpret it as a command.
pub(crate) fn escaped(text: &str) -> Escaped<'_> {
    Escaped(text)
}

#[derive(Debug)]
pub(crate) struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|character| match is_unprintable(character) {
            true => write!(formatter, "{}", character.escape_default()),
            false => formatter.write_char(character),
        })
    }
}

/// Returns whether the character is a control character, one of the two line separators, or changes
/// the direction of text (`Bidi_Control` in Unicode).
fn is_unprintable(character: char) -> bool {
    let changes_direction =
        matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    changes_direction || character.is_control() || matches!(character, '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_text_stays_on_one_line() {
        let text = "exec: \"é\n\x1b[2J\": no\u{9b}\u{202e}";
        assert_eq!(escaped(text).to_string(), r#"exec: "é\n\u{1b}[2J": no\u{9b}\u{202e}"#);
    }
}
