//! Tables.

/// A table with a heading; the first row is the head.
pub(crate) fn table(heading: &str, rows: &[Vec<String>]) -> String {
    explained_table(heading, "", rows)
}

/// The same, with paragraphs between the heading and the table.
pub(crate) fn explained_table(heading: &str, explanation: &str, rows: &[Vec<String>]) -> String {
    let mut text = format!("## {heading}\n\n{explanation}");
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
