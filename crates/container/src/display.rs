//! Messages of the kernel and of runtimes, which quote names as they are, made safe to print. Paths are left to `os_display`.

use std::fmt::{self, Display, Formatter, Write};

/// Displays a text without its control characters: each is written as an escape (`\n`, `\u{1b}`), so that the text stays on
/// its line and no terminal takes it for a command.
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

/// Control characters, the two separators of lines, and what changes the direction of text (`Bidi_Control` of Unicode).
fn is_unprintable(character: char) -> bool {
    let turns =
        matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    turns || character.is_control() || matches!(character, '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_on_its_line() {
        let text = "exec: \"é\n\x1b[2J\": no\u{9b}\u{202e}";
        assert_eq!(escaped(text).to_string(), r#"exec: "é\n\u{1b}[2J": no\u{9b}\u{202e}"#);
    }
}
