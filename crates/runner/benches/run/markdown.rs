//! Tables.

/// A table with a heading; the first row is the head.
pub(crate) fn table(heading: &str, rows: &[Vec<String>]) -> String {
    let mut text = format!("## {heading}\n\n");
    for (index, row) in rows.iter().enumerate() {
        text.push_str(&format!("| {} |\n", row.join(" | ")));
        if index == 0 {
            text.push_str(&format!("|{}\n", "---|".repeat(row.len())));
        }
    }
    text
}

pub(crate) fn cells<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(String::from).to_vec()
}
