//! Decides how tables, sizes and times are printed for people, and in which colours.
//! [`doctor::check`](crate::doctor) prints the lines of `layered doctor`.

use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anstyle::{AnsiColor, Style};
use layer::display::{escaped, escaped_json};
use serde::{Serialize, Serializer};
use unicode_width::UnicodeWidthStr;

/// The colours of what is good, needs attention, or has failed.
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
pub(crate) const ATTENTION: Style = AnsiColor::Yellow.on_default();
pub(crate) const BAD: Style = AnsiColor::Red.on_default();

/// Returns standard output. It leaves out colours unless `--color` or the terminal wants them.
pub(crate) fn stdout() -> anstream::AutoStream<io::StdoutLock<'static>> {
    anstream::AutoStream::auto(io::stdout()).lock()
}

/// Returns the width of standard output, if that is a terminal.
pub(crate) fn terminal_width() -> Option<usize> {
    let columns = usize::from(rustix::termios::tcgetwinsize(io::stdout()).ok()?.ws_col);
    (columns > 0).then_some(columns)
}

/// Prints a value as JSON on one line.
pub(crate) fn print_json(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_string(value)?;
    writeln!(out, "{}", escaped_json(text))
}

/// Prints rows as columns with two spaces between them. The first row is the heading. The columns
/// in `right` are aligned to the right.
pub(crate) fn print<C: Clone + Into<Cell>>(out: &mut impl Write, rows: &[Vec<C>], right: &[usize]) -> io::Result<()> {
    print_columns(out, &cells(rows), right, &[])
}

/// Prints rows as [`print()`] does. If standard output is a terminal that is too narrow, leaves out
/// the columns in `spare`, the first one first.
pub(crate) fn print_to_fit<C: Clone + Into<Cell>>(
    out: &mut impl Write,
    rows: &[Vec<C>],
    right: &[usize],
    spare: &[usize],
) -> io::Result<()> {
    let rows = cells(rows);
    let hidden = terminal_width().map_or(&[][..], |width| too_many(&widths(&rows), spare, width));
    print_columns(out, &rows, right, hidden)
}

/// The greatest width of a column. A wider cell sticks out to the right, and the other rows are not
/// padded to its width: a string of a `layer.json` can have millions of characters.
const WIDEST: usize = 256;

/// A cell: one line, without control characters, with its width on a terminal and its colour.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    text: String,
    width: usize,
    style: Style,
}

impl Cell {
    /// Shows the cell in a colour.
    pub(crate) fn styled(self, style: Style) -> Self {
        Self { style, ..self }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        let text = escaped(text).to_string();
        Self { width: text.width(), text, style: Style::new() }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        text.to_string().into()
    }
}

fn cells<C: Clone + Into<Cell>>(rows: &[Vec<C>]) -> Vec<Vec<Cell>> {
    rows.iter().map(|row| row.iter().cloned().map(Into::into).collect()).collect()
}

/// Returns how many of the columns in `spare` must be left out, so that a row is at most `most`
/// cells wide.
fn too_many<'a>(widths: &[usize], spare: &'a [usize], most: usize) -> &'a [usize] {
    let width = |hidden: &[usize]| {
        let shown = (0..widths.len()).filter(|column| !hidden.contains(column));
        shown.map(|column| widths[column] + 2).sum::<usize>().saturating_sub(2)
    };
    let fits = (0..spare.len()).find(|&count| width(&spare[..count]) <= most);
    &spare[..fits.unwrap_or(spare.len())]
}

fn print_columns(out: &mut impl Write, rows: &[Vec<Cell>], right: &[usize], hidden: &[usize]) -> io::Result<()> {
    let widths: Vec<usize> = widths(rows).into_iter().map(|width| width.min(WIDEST)).collect();
    for row in rows {
        // Spaces are written only before another cell.
        let mut owed = 0;
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            if hidden.contains(&column) {
                continue;
            }
            let padding = width.saturating_sub(cell.width);
            let (before, after) = if right.contains(&column) { (padding, 0) } else { (0, padding) };
            if !cell.text.is_empty() {
                let style = cell.style;
                write!(out, "{}{style}{}{style:#}", " ".repeat(owed + before), cell.text)?;
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

/// The units of [`ago`], with their seconds.
const UNITS: [(u64, &str); 6] =
    [(31_557_600, "year"), (2_630_016, "month"), (86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second")];

/// Formats the time since `time` in its largest unit: `3 hours ago`.
pub(crate) fn ago(time: SystemTime) -> String {
    match SystemTime::now().duration_since(time) {
        Ok(age) => format!("{} ago", in_one_unit(age)),
        Err(_) => "in the future".into(),
    }
}

fn in_one_unit(time: Duration) -> String {
    let seconds = time.as_secs();
    let (unit, name) = UNITS.into_iter().find(|(unit, _)| seconds >= *unit).unwrap_or((1, "second"));
    count(seconds / unit, name)
}

/// Formats a number of things: `1 layer`, `2 layers`.
pub(crate) fn count(number: u64, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// The first second of the year 10000.
const YEAR_10000: Duration = Duration::from_secs(253_402_300_800);

/// Formats a time: `2026-11-24T12:00:00Z`. The time of a file can be before 1970 or after 9999.
/// Then this is the nearest time between the two.
pub(crate) fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default().min(YEAR_10000 - Duration::from_secs(1));
    humantime::format_rfc3339_seconds(UNIX_EPOCH + since).to_string()
}

/// Writes a time in JSON as [`timestamp`] formats it.
pub(crate) fn serialize_time<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&timestamp(*time))
}

/// Writes a time in JSON, or null.
pub(crate) fn serialize_time_or_null<S: Serializer>(
    time: &Option<SystemTime>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    time.map(timestamp).serialize(serializer)
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

    #[test]
    fn spare_columns_are_left_out_in_their_order_and_names_never() {
        let widths = [12, 4, 9, 14, 14];
        for (most, expected) in [(80, &[][..]), (61, &[]), (60, &[4]), (45, &[4]), (44, &[4, 3]), (1, &[4, 3])] {
            assert_eq!(too_many(&widths, &[4, 3], most), expected, "{most}");
        }
        let rows = [["NAME", "SIZE", "CREATED"], ["a", "5", "now"]].map(|row| row.map(String::from).to_vec());
        let mut out = Vec::new();
        print_columns(&mut out, &cells(&rows), &[1], &[2]).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "NAME  SIZE\na        5\n");
    }

    #[test]
    fn a_colour_does_not_change_the_columns() {
        let rows = [vec![Cell::from("STATUS"), "X".into()], vec![Cell::from("ok").styled(GOOD), "1".into()]];
        let mut out = Vec::new();
        print(&mut out, &rows, &[]).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "STATUS  X\n\u{1b}[32mok\u{1b}[0m      1\n");
        assert_eq!(anstream::adapter::strip_str(&text).to_string(), "STATUS  X\nok      1\n");
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
        let table = [(0, "0 seconds"), (1, "1 second"), (7384, "2 hours"), (86_400, "1 day"), (86_700_000, "2 years")];
        for (seconds, text) in table {
            assert_eq!(in_one_unit(Duration::from_secs(seconds)), text);
        }
        assert_eq!([0, 1, 2].map(|number| count(number, "layer")), ["0 layers", "1 layer", "2 layers"]);
    }
}
