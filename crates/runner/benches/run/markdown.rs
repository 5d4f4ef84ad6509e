//! Formats the tables of the results. [`chart`](crate::chart) draws the phases.

/// Returns a table with a heading. The first row is the head of the table.
pub(crate) fn table(heading: &str, rows: &[Vec<String>]) -> String {
    explained_table(heading, "", rows)
}

/// Returns a table with paragraphs between the heading and the table.
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
