//! Decides how tables, sizes and times are printed for people. [`doctor::check`](crate::doctor)
//! prints the lines of `layered doctor`.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use layer::display::escaped;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Prints rows as columns with two spaces between them. The first row is the heading. The columns
/// in `right` are aligned to the right.
pub(crate) fn print(out: &mut impl Write, rows: &[Vec<String>], right: &[usize]) -> io::Result<()> {
    print_printable(out, &printable(rows), right)
}

/// Prints rows as [`print()`] does. If standard output is a terminal that is too narrow, shortens
/// the widest columns that are aligned to the left.
pub(crate) fn print_to_fit(out: &mut impl Write, rows: &[Vec<String>], right: &[usize]) -> io::Result<()> {
    let mut rows = printable(rows);
    if io::stdout().is_terminal() {
        if let Ok(size) = rustix::termios::tcgetwinsize(io::stdout()) {
            fit(&mut rows, right, size.ws_col.into());
        }
    }
    print_printable(out, &rows, right)
}

/// The greatest width of a column. A wider cell sticks out to the right, and the other rows are not
/// padded to its width: a string of a `layer.json` can have millions of characters.
const WIDEST: usize = 256;

/// The width below which a column is not shortened.
const NARROW: usize = 8;

/// A cell with its width on a terminal.
struct Cell {
    text: String,
    width: usize,
}

impl Cell {
    fn new(text: String) -> Self {
        let width = text.width();
        Self { text, width }
    }

    /// Shortens the text to `width`, and ends it with `…` if it was longer.
    fn shorten(&mut self, width: usize) {
        if self.width <= width {
            return;
        }
        let room = width.saturating_sub(1);
        let mut used = 0;
        let mut text: String = self
            .text
            .chars()
            .take_while(|character| {
                used += character.width().unwrap_or(0);
                used <= room
            })
            .collect();
        // Some characters make the character before them wider.
        while text.width() > room {
            text.pop();
        }
        text.push('…');
        *self = Self::new(text);
    }
}

/// Escapes the control characters in cells, so that a cell is one line and cannot control the
/// terminal.
fn printable(rows: &[Vec<String>]) -> Vec<Vec<Cell>> {
    rows.iter().map(|row| row.iter().map(|cell| Cell::new(escaped(cell).to_string())).collect()).collect()
}

fn print_printable(out: &mut impl Write, rows: &[Vec<Cell>], right: &[usize]) -> io::Result<()> {
    let widths: Vec<usize> = widths(rows).into_iter().map(|width| width.min(WIDEST)).collect();
    for row in rows {
        // Spaces are written only before another cell.
        let mut owed = 0;
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let padding = width.saturating_sub(cell.width);
            let (before, after) = if right.contains(&column) { (padding, 0) } else { (0, padding) };
            if !cell.text.is_empty() {
                write!(out, "{}{}", " ".repeat(owed + before), cell.text)?;
                owed = after + 2;
            } else {
                owed += padding + 2;
            }
        }
        writeln!(out)?;
    }
    Ok(())
}

/// Returns the width of each column.
fn widths(rows: &[Vec<Cell>]) -> Vec<usize> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let mut widths = vec![0; columns];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.width.max(*width);
        }
    }
    widths
}

/// Shortens cells, the widest column first, until rows are at most `most` cells wide or every
/// column has the width [`NARROW`].
fn fit(rows: &mut [Vec<Cell>], right: &[usize], most: usize) {
    let mut widths = widths(rows);
    // A column that is wider than the terminal starts at the width of the terminal.
    for (column, width) in widths.iter_mut().enumerate() {
        if !right.contains(&column) {
            *width = (*width).min(most.max(NARROW));
        }
    }
    while widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1) > most {
        let widest = (0..widths.len()).filter(|column| !right.contains(column)).max_by_key(|column| widths[*column]);
        match widest {
            Some(column) if widths[column] > NARROW => widths[column] -= 1,
            _ => break,
        }
    }
    for row in rows {
        for (column, (cell, width)) in row.iter_mut().zip(&widths).enumerate() {
            if !right.contains(&column) {
                cell.shorten(*width);
            }
        }
    }
}

/// Joins items to lines of at most [`LINE`] cells. A line has at least one item, even a longer one.
pub(crate) fn wrapped(items: impl IntoIterator<Item = String>, separator: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut used = 0;
    for item in items {
        let width = item.width();
        match lines.last_mut() {
            Some(line) if used + separator.width() + width <= LINE => {
                line.push_str(separator);
                line.push_str(&item);
                used += separator.width() + width;
            }
            _ => {
                if let Some(line) = lines.last_mut() {
                    line.push_str(separator.trim_end());
                }
                lines.push(item);
                used = width;
            }
        }
    }
    lines
}

/// The width at which items are wrapped.
const LINE: usize = 80;

/// Formats a number of files and directories: `1 entry`, `2 entries`.
pub(crate) fn entries(count: u64) -> String {
    format!("{count} {}", if count == 1 { "entry" } else { "entries" })
}

/// Formats a size: `1.5 MiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

/// Formats a duration: `12.30 ms`.
pub(crate) fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        _ if seconds >= 1.0 => format!("{seconds:.2} s "),
        _ if seconds >= 0.001 => format!("{:.2} ms", seconds * 1e3),
        _ => format!("{:.0} µs", seconds * 1e6),
    }
}

/// Formats the time since `time` with its two largest units: `3h 2m ago`.
pub(crate) fn ago(time: SystemTime) -> String {
    let Ok(age) = SystemTime::now().duration_since(time) else { return "in the future".into() };
    let text = humantime::format_duration(Duration::from_secs(age.as_secs())).to_string();
    let short: Vec<_> = text.split(' ').take(2).collect();
    format!("{} ago", short.join(" "))
}

/// The first second of the year 10000.
const YEAR_10000: Duration = Duration::from_secs(253_402_300_800);

/// Formats a time: `2026-11-24T12:00:00Z`. The time of a file can be before 1970 or after 9999.
/// Then this is the nearest time between the two.
pub(crate) fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default().min(YEAR_10000 - Duration::from_secs(1));
    humantime::format_rfc3339_seconds(UNIX_EPOCH + since).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_before_1970_or_after_9999_is_clamped() {
        let table = [
            (UNIX_EPOCH - Duration::from_secs(1 << 40), "1970-01-01T00:00:00Z"),
            (UNIX_EPOCH + Duration::from_secs(86_400), "1970-01-02T00:00:00Z"),
            (UNIX_EPOCH + Duration::from_secs(1 << 40), "9999-12-31T23:59:59Z"),
        ];
        for (time, text) in table {
            assert_eq!(timestamp(time), text);
        }
    }

    fn printed(rows: &[&[&str]], right: &[usize]) -> String {
        let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(ToString::to_string).collect()).collect();
        let mut out = Vec::new();
        print(&mut out, &rows, right).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn columns_are_aligned_and_lines_have_no_trailing_spaces() {
        let rows: [&[&str]; 3] = [&["NAME", "SIZE", ""], &["a", "5", "x"], &["größe", "500", ""]];
        assert_eq!(printed(&rows, &[1]), "NAME   SIZE\na         5  x\ngröße   500\n");
        let rows: [&[&str]; 3] = [&["", "A", "B"], &["x", "", "y"], &["", "", ""]];
        assert_eq!(printed(&rows, &[]), "   A  B\nx     y\n\n");
    }

    #[test]
    fn columns_are_measured_in_terminal_cells() {
        // Wide characters, combining characters, one of no width, an emoji of several code points.
        let rows: [&[&str]; 6] = [
            &["NAME", "X"],
            &["日本語", "1"],
            &["e\u{301}e\u{301}", "2"],
            &["a\u{200b}b", "3"],
            &["👩\u{200d}👩\u{200d}👧", "4"],
            &["ﾊﾝ", "5"],
        ];
        let expected = "\
NAME    X
日本語  1
e\u{301}e\u{301}      2
a\u{200b}b      3
👩\u{200d}👩\u{200d}👧      4
ﾊﾝ      5
";
        assert_eq!(printed(&rows, &[]), expected);
    }

    #[test]
    fn a_cell_is_one_line_and_cannot_control_the_terminal() {
        let rows: [&[&str]; 2] = [&["NAME", "X"], &["a\nok  \u{1b}[2J\u{9b}\u{202e}", "1"]];
        let shown = r"a\nok  \u{1b}[2J\u{9b}\u{202e}";
        assert_eq!(printed(&rows, &[]), format!("NAME{}  X\n{shown}  1\n", " ".repeat(shown.len() - 4)));
    }

    #[test]
    fn a_long_cell_is_printed_whole_and_the_other_rows_are_not_padded_to_it() {
        let long = "x".repeat(70_000);
        let out = printed(&[&["NAME", "SIZE", "X"], &[&long, "1", "y"], &["z", &long, "y"]], &[1]);
        let lines: Vec<_> = out.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].len() <= 2 * WIDEST + 5, "{}", lines[0].len());
        assert_eq!(lines[1].trim_start_matches('x').split_whitespace().collect::<Vec<_>>(), ["1", "y"]);
        assert!(lines[1].starts_with(&long) && lines[2].contains(&long));
    }

    fn fitted(rows: &[&[&str]], right: &[usize], most: usize) -> Vec<Vec<String>> {
        let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(ToString::to_string).collect()).collect();
        let mut rows = printable(&rows);
        fit(&mut rows, right, most);
        rows.into_iter().map(|row| row.into_iter().map(|cell| cell.text).collect()).collect()
    }

    #[test]
    fn the_widest_columns_are_shortened_first() {
        let row: &[&str] = &["0123456789abcdef", "a-long-status", "5 B"];
        let table = [
            (40, ["0123456789abcdef", "a-long-status", "5 B"]),
            (30, ["0123456789…", "a-long-sta…", "5 B"]),
            (5, ["0123456…", "a-long-…", "5 B"]),
            (0, ["0123456…", "a-long-…", "5 B"]),
        ];
        for (most, expected) in table {
            assert_eq!(fitted(&[&["NAME", "STATUS", "SIZE"], row], &[2], most)[1], expected, "{most}");
        }
    }

    #[test]
    fn a_shortened_cell_uses_the_width_and_splits_no_character() {
        let table = [
            // Half a wide character fits: it is left out.
            ("日本語日本語", 8, "日本語…"),
            ("日本語日本語", 9, "日本語日…"),
            // Combining characters stay with their character.
            (
                "e\u{301}e\u{301}e\u{301}e\u{301}e\u{301}e\u{301}e\u{301}e\u{301}e\u{301}",
                8,
                "e\u{301}e\u{301}e\u{301}e\u{301}e\u{301}e\u{301}e\u{301}…",
            ),
            // The selector makes the heart wider.
            ("abcdef\u{2764}\u{fe0f}gh", 8, "abcdef\u{2764}…"),
        ];
        for (text, most, expected) in table {
            let shown = &fitted(&[&[text]], &[], most)[0][0];
            assert_eq!(shown, expected);
            assert!(shown.width() <= most);
        }
        let long = "x".repeat(1 << 20);
        assert_eq!(fitted(&[&[&long, &long]], &[], 42)[0], vec![format!("{}…", "x".repeat(19)); 2]);
    }

    #[test]
    fn every_item_is_on_a_wrapped_line() {
        let items = |number: usize, length: usize| (0..number).map(move |n| format!("{n:0length$}"));
        assert_eq!(wrapped(items(0, 1), " "), Vec::<String>::new());
        assert_eq!(wrapped(items(3, 1), ", "), ["0, 1, 2"]);
        assert_eq!(wrapped(items(2, 64), " "), [format!("{:064}", 0), format!("{:064}", 1)]);
        let lines = wrapped(items(1_100, 12), ", ");
        assert!(lines.iter().all(|line| line.len() <= LINE), "{lines:?}");
        assert_eq!(lines.join(" ").split(", ").count(), 1_100);
        assert_eq!(wrapped(["x".repeat(70_000), "y".into()], ", "), [format!("{},", "x".repeat(70_000)), "y".into()]);
    }

    #[test]
    fn sizes_and_times_have_a_unit() {
        let table =
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB"), (u64::MAX, "16777216.0 TiB")];
        for (size, text) in table {
            assert_eq!(bytes(size), text);
        }
        let table = [(7, "7 µs"), (1_500, "1.50 ms"), (2_345_678, "2.35 s ")];
        for (micros, text) in table {
            assert_eq!(duration(Duration::from_micros(micros)), text);
        }
        assert_eq!(ago(SystemTime::now() - Duration::from_secs(7384)), "2h 3m ago");
    }
}
