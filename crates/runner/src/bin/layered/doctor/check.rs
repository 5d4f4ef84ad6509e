//! Decides how a check and its verdict are printed. [`doctor`](super) decides which checks there
//! are, and [`table`] prints the tables of other subcommands.

use std::io::{self, Write};

use anstyle::Style;
use layer::display::escaped;
use serde::Serialize;
use unicode_width::UnicodeWidthStr;

use crate::table;

/// The result of one check: the finding, its meaning for a run, and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    pub(crate) name: &'static str,
    pub(crate) verdict: Verdict,
    found: String,
    means: Option<String>,
    advice: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    Ok,
    /// Runs work, but with a restriction.
    Warning,
    /// No run can work.
    Failed,
    /// A check that this one depends on has failed.
    Skipped,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Failed => "failed",
            Verdict::Skipped => "skipped",
        }
    }

    fn style(self) -> Style {
        match self {
            Verdict::Ok => table::GOOD,
            Verdict::Warning => table::ATTENTION,
            Verdict::Failed => table::BAD,
            Verdict::Skipped => Style::new(),
        }
    }
}

impl Check {
    fn new(name: &'static str, verdict: Verdict, found: impl Into<String>) -> Self {
        Self { name, verdict, found: one_line(found.into()), means: None, advice: None }
    }

    pub(crate) fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self::new(name, Verdict::Ok, found)
    }

    pub(crate) fn warning(name: &'static str, found: impl Into<String>) -> Self {
        Self::new(name, Verdict::Warning, found)
    }

    pub(crate) fn failed(name: &'static str, found: impl Into<String>) -> Self {
        Self::new(name, Verdict::Failed, found)
    }

    pub(crate) fn skipped(name: &'static str, found: impl Into<String>) -> Self {
        Self::new(name, Verdict::Skipped, found)
    }

    pub(crate) fn means(mut self, means: impl Into<String>) -> Self {
        self.means = Some(one_line(means.into()));
        self
    }

    pub(crate) fn advice(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(one_line(advice.into()));
        self
    }

    fn text(&self) -> String {
        let parts = [Some(&self.found), self.means.as_ref(), self.advice.as_ref()];
        parts.into_iter().flatten().map(String::as_str).collect::<Vec<_>>().join("; ")
    }
}

/// Joins the lines of a text and escapes its control characters: messages of the runtime and of the
/// kernel can have several lines.
fn one_line(text: String) -> String {
    escaped(text.split_whitespace().collect::<Vec<_>>().join(" ")).to_string()
}

/// Prints one line per check, and wraps it at `width`.
pub(crate) fn print(out: &mut impl Write, checks: &[Check], width: Option<usize>) -> io::Result<()> {
    let names = checks.iter().map(|check| check.name.len()).max().unwrap_or_default();
    let indent = "warning  ".len() + names + 2;
    for check in checks {
        // On a very narrow terminal the lines are longer than the terminal, not one word each.
        let room = width.map_or(usize::MAX, |width| width.saturating_sub(indent).max(20));
        let style = check.verdict.style();
        let mut head = format!("{style}{:<7}{style:#}  {:<names$}  ", check.verdict.word(), check.name);
        for line in wrapped(&check.text(), room) {
            writeln!(out, "{head}{line}")?;
            head = " ".repeat(indent);
        }
    }
    Ok(())
}

fn wrapped(text: &str, room: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.width() + 1 + word.width() <= room => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.into()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(width: Option<usize>) -> String {
        let checks = [
            Check::ok("scratch", "/tmp: ext4"),
            Check::warning("room", "5 MiB\nare free").means("a run fills them").advice("choose another --scratch"),
        ];
        let mut out = Vec::new();
        print(&mut out, &checks, width).unwrap();
        anstream::adapter::strip_str(&String::from_utf8(out).unwrap()).to_string()
    }

    #[test]
    fn a_verdict_is_coloured_and_nothing_else() {
        let mut out = Vec::new();
        print(&mut out, &[Check::failed("runtime", "none")], None).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "\u{1b}[31mfailed \u{1b}[0m  runtime  none\n");
    }

    #[test]
    fn a_check_is_printed_on_one_line() {
        assert_eq!(
            shown(None),
            "\
ok       scratch  /tmp: ext4
warning  room     5 MiB are free; a run fills them; choose another --scratch
"
        );
    }

    #[test]
    fn a_line_is_wrapped_at_the_width_of_the_terminal() {
        assert_eq!(
            shown(Some(45)),
            "\
ok       scratch  /tmp: ext4
warning  room     5 MiB are free; a run fills
                  them; choose another
                  --scratch
"
        );
        assert_eq!(shown(Some(1)), shown(Some(38)));
    }

    #[test]
    fn a_check_as_json_has_every_key() {
        let check = Check::failed("runtime", "none").advice("install one");
        let expected = r#"{"name":"runtime","verdict":"failed","found":"none","means":null,"advice":"install one"}"#;
        assert_eq!(serde_json::to_string(&check).unwrap(), expected);
    }
}
