//! `layered man`: decides how the help of a subcommand becomes a manual page.
//! [`completions`](crate::completions) makes completion scripts from the same definition.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::CommandFactory;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};
use layer::display::quoted;

/// Print the manual page of layered, or write all manual pages.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  layered man | man -l -\n  layered man /usr/local/share/man/man1")]
pub(crate) struct Args {
    /// Existing directory for the pages layered.1, layered-run.1 and so on.
    dir: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let pages = pages(crate::Cli::command())?;
    match &args.dir {
        None => io::stdout().lock().write_all(&pages[0].text)?,
        Some(dir) => write(dir, &pages)?,
    }
    Ok(ExitCode::SUCCESS)
}

struct Page {
    /// The file name, with the section: `layered-run.1`.
    name: String,
    text: Vec<u8>,
}

/// Returns the page of layered and then those of its subcommands.
fn pages(command: clap::Command) -> io::Result<Vec<Page>> {
    let mut command = command.disable_help_subcommand(true);
    // This gives every subcommand its full name.
    command.build();
    let subcommands: Vec<_> = command.get_subcommands().filter(|command| !command.is_hide_set()).cloned().collect();
    [command].into_iter().chain(subcommands).map(page).collect()
}

fn page(command: clap::Command) -> io::Result<Page> {
    let extra = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    // The generator would fill this text, and so join the lines of the examples.
    let man = Man::new(command.after_help(None)).source(concat!("layered ", env!("CARGO_PKG_VERSION")));
    let mut text = Vec::new();
    man.render(&mut text)?;
    sections(&extra).to_writer(&mut text)?;
    Ok(Page { name: man.get_filename(), text })
}

/// Returns the text below a help as sections. A paragraph that starts with a line like `Examples:`
/// becomes a section with its lines as they are. The other paragraphs become the notes.
fn sections(extra: &str) -> Roff {
    let mut roff = Roff::new();
    let (lists, notes): (Vec<_>, Vec<_>) = extra
        .split("\n\n")
        .filter(|paragraph| !paragraph.is_empty())
        .partition(|paragraph| paragraph.contains(":\n  "));
    if !notes.is_empty() {
        roff.control("SH", ["NOTES"]);
    }
    for note in notes {
        roff.control("PP", []).text([roman(note)]);
    }
    for (heading, lines) in lists.iter().filter_map(|list| list.split_once(":\n")) {
        roff.control("SH", [&*heading.to_uppercase()]).control("nf", []);
        for line in lines.lines() {
            roff.text([roman(line.strip_prefix("  ").unwrap_or(line))]);
        }
        roff.control("fi", []);
    }
    roff
}

fn write(dir: &Path, pages: &[Page]) -> anyhow::Result<()> {
    for page in pages {
        let path = dir.join(&page.name);
        fs::write(&path, &page.text).with_context(|| format!("cannot write {}", quoted(&path)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subcommand_has_a_page() {
        let pages = pages(crate::Cli::command()).unwrap();
        assert_eq!(pages[0].name, "layered.1");
        let names: Vec<_> = pages[1..].iter().map(|page| page.name.as_str()).collect();
        let commands = crate::Cli::command();
        let expected: Vec<_> =
            commands.get_subcommands().map(|command| format!("layered-{}.1", command.get_name())).collect();
        assert_eq!(names, expected);
    }

    #[test]
    fn lists_keep_their_lines_and_other_paragraphs_become_notes() {
        let extra = "Notes\nhere.\n\nExit status:\n  0  ok\n\nExamples:\n  layered ls a \\\n      b\n  layered ls -- c\n\nMore.";
        assert_eq!(
            sections(extra).to_roff(),
            ".SH NOTES\n.PP\nNotes\nhere.\n.PP\nMore.\n.SH \"EXIT STATUS\"\n.nf\n0  ok\n.fi\n.SH EXAMPLES\n.nf\nlayered ls a \\\\\n    b\nlayered ls \\-\\- c\n.fi\n"
        );
    }
}
