use std::io::{self, IsTerminal, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Prints rows as columns, two spaces between them. The first row is the heading; columns in `right` are set to the right.
pub(crate) fn print(out: &mut impl Write, rows: &[Vec<String>], right: &[usize]) -> io::Result<()> {
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = width(column).unwrap_or_default();
            match right.contains(&column) {
                true => line.push_str(&format!("{cell:>width$}  ")),
                false => line.push_str(&format!("{cell:<width$}  ")),
            }
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// The same, with the widest columns to the left shortened where standard output is a terminal that is too narrow.
pub(crate) fn print_to_fit(out: &mut impl Write, mut rows: Vec<Vec<String>>, right: &[usize]) -> io::Result<()> {
    if io::stdout().is_terminal() {
        if let Ok(size) = rustix::termios::tcgetwinsize(io::stdout()) {
            fit(&mut rows, right, size.ws_col.into());
        }
    }
    print(out, &rows, right)
}

/// No column is made narrower than this.
const NARROW: usize = 8;

/// Shortens cells, the widest column first, until rows are at most `most` wide, if that is possible.
fn fit(rows: &mut [Vec<String>], right: &[usize], most: usize) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let mut widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    while widths.iter().sum::<usize>() + 2 * columns.saturating_sub(1) > most {
        let widest = (0..columns).filter(|column| !right.contains(column)).max_by_key(|column| widths[*column]);
        match widest {
            Some(column) if widths[column] > NARROW => widths[column] -= 1,
            _ => break,
        }
    }
    for row in rows {
        for (cell, width) in row.iter_mut().zip(&widths) {
            if cell.chars().count() > *width {
                *cell = cell.chars().take(width - 1).chain(['…']).collect();
            }
        }
    }
}

/// `1.5 MiB`.
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

/// `12.3 ms`.
pub(crate) fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        _ if seconds >= 1.0 => format!("{seconds:.2} s "),
        _ if seconds >= 0.001 => format!("{:.2} ms", seconds * 1e3),
        _ => format!("{:.0} µs", seconds * 1e6),
    }
}

/// `3h 2m ago`: the two largest units.
pub(crate) fn ago(time: SystemTime) -> String {
    let Ok(age) = SystemTime::now().duration_since(time) else { return "in the future".into() };
    let text = humantime::format_duration(Duration::from_secs(age.as_secs())).to_string();
    let short: Vec<_> = text.split(' ').take(2).collect();
    format!("{} ago", short.join(" "))
}

/// The first second that has no four-digit year any more.
const YEAR_10000: Duration = Duration::from_secs(253_402_300_800);

/// `2026-11-24T12:00:00Z`. A file can have any time: what is before 1970, or after 9999, counts as the nearest that can be written.
pub(crate) fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default().min(YEAR_10000 - Duration::from_secs(1));
    humantime::format_rfc3339_seconds(UNIX_EPOCH + since).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_time_can_be_written() {
        let table = [
            (UNIX_EPOCH - Duration::from_secs(1 << 40), "1970-01-01T00:00:00Z"),
            (UNIX_EPOCH + Duration::from_secs(86_400), "1970-01-02T00:00:00Z"),
            (UNIX_EPOCH + Duration::from_secs(1 << 40), "9999-12-31T23:59:59Z"),
        ];
        for (time, text) in table {
            assert_eq!(timestamp(time), text);
        }
    }

    #[test]
    fn columns_line_up() {
        let rows =
            [["NAME", "SIZE", ""], ["a", "5", "x"], ["größe", "500", ""]].map(|row| row.map(String::from).to_vec());
        let mut out = Vec::new();
        print(&mut out, &rows, &[1]).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "NAME   SIZE\na         5  x\ngröße   500\n");
    }

    #[test]
    fn the_widest_columns_give_way() {
        let table = [
            (40, ["0123456789abcdef", "a-long-status", "5 B"]),
            (30, ["0123456789…", "a-long-sta…", "5 B"]),
            (5, ["0123456…", "a-long-…", "5 B"]),
        ];
        for (most, expected) in table {
            let mut rows = [["NAME", "STATUS", "SIZE"], table[0].1].map(|row| row.map(String::from).to_vec());
            fit(&mut rows, &[2], most);
            assert_eq!(rows[1], expected, "{most}");
        }
    }

    #[test]
    fn sizes_and_times() {
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
