use std::io::{self, Write};
use std::time::{Duration, SystemTime};

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows =
            [["NAME", "SIZE", ""], ["a", "5", "x"], ["größe", "500", ""]].map(|row| row.map(String::from).to_vec());
        let mut out = Vec::new();
        print(&mut out, &rows, &[1]).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "NAME   SIZE\na         5  x\ngröße   500\n");
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
