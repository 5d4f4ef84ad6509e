use std::io::{self, Write};

use layer::display::escaped;
use rustix::termios::tcgetwinsize;
use serde::Serialize;
use unicode_width::UnicodeWidthStr;

/// What was looked at, what was found, what that means for a run and what to do about it.
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
    /// Runs work, but not as they could.
    Warning,
    /// No run can work.
    Failed,
    /// It rests on something that failed.
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

/// Messages of others, a runtime's or the kernel's, may have several lines.
fn one_line(text: String) -> String {
    escaped(text.split_whitespace().collect::<Vec<_>>().join(" ")).to_string()
}

/// How wide the terminal is that standard output goes to, if it is one.
pub(crate) fn terminal_width() -> Option<usize> {
    let columns = usize::from(tcgetwinsize(io::stdout()).ok()?.ws_col);
    (columns > 0).then_some(columns)
}

/// A line a check; on a terminal it goes on below itself where it is longer than that is wide.
pub(crate) fn print(out: &mut impl Write, checks: &[Check], width: Option<usize>) -> io::Result<()> {
    let names = checks.iter().map(|check| check.name.len()).max().unwrap_or_default();
    let indent = "warning  ".len() + names + 2;
    for check in checks {
        // Narrower than that and the words would stand one below another.
        let room = width.map_or(usize::MAX, |width| width.saturating_sub(indent).max(20));
        let mut head = format!("{:<7}  {:<names$}  ", check.verdict.word(), check.name);
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
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_check_is_a_line() {
        assert_eq!(
            shown(None),
            "\
ok       scratch  /tmp: ext4
warning  room     5 MiB are free; a run fills them; choose another --scratch
"
        );
    }

    #[test]
    fn on_a_terminal_no_line_is_longer_than_it_is_wide() {
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
    fn a_check_as_json() {
        let check = Check::failed("runtime", "none").advice("install one");
        let expected = r#"{"name":"runtime","verdict":"failed","found":"none","means":null,"advice":"install one"}"#;
        assert_eq!(serde_json::to_string(&check).unwrap(), expected);
    }
}
