use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::CommandFactory;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};
use layer::display::quoted;

/// Print the manual page, or write it and one of each subcommand into a directory.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  layered man | man -l -\n  layered man /usr/local/share/man/man1")]
pub(crate) struct Args {
    /// The directory, which is there: `layered.1`, `layered-run.1` and so on are written into it.
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
    /// With the section: `layered-run.1`.
    name: String,
    text: Vec<u8>,
}

/// The command's own page first.
fn pages(command: clap::Command) -> io::Result<Vec<Page>> {
    let mut command = command.disable_help_subcommand(true);
    // Gives every subcommand its full name.
    command.build();
    let subcommands: Vec<_> = command.get_subcommands().filter(|command| !command.is_hide_set()).cloned().collect();
    [command].into_iter().chain(subcommands).map(page).collect()
}

fn page(command: clap::Command) -> io::Result<Page> {
    let extra = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    // What the generator would do with it is to fill it: examples would run into each other.
    let man = Man::new(command.after_help(None)).source(concat!("layered ", env!("CARGO_PKG_VERSION")));
    let mut text = Vec::new();
    man.render(&mut text)?;
    sections(&extra).to_writer(&mut text)?;
    Ok(Page { name: man.get_filename(), text })
}

/// The text below a help as sections: paragraphs as they come, and what follows `Examples:` to the letter.
fn sections(extra: &str) -> Roff {
    let mut roff = Roff::new();
    let paragraphs: Vec<_> = extra.split("\n\n").filter(|paragraph| !paragraph.is_empty()).collect();
    let example = |paragraph: &&&str| paragraph.starts_with("Example");
    if !paragraphs.iter().all(|paragraph| example(&paragraph)) {
        roff.control("SH", ["NOTES"]);
    }
    for paragraph in paragraphs.iter().filter(|paragraph| !example(paragraph)) {
        roff.control("PP", []).text([roman(*paragraph)]);
    }
    for paragraph in paragraphs.iter().filter(example) {
        roff.control("SH", ["EXAMPLES"]).control("nf", []);
        for line in paragraph.lines().skip(1) {
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
    fn every_command_has_its_page() {
        let pages = pages(crate::Cli::command()).unwrap();
        assert_eq!(pages[0].name, "layered.1");
        let names: Vec<_> = pages[1..].iter().map(|page| page.name.as_str()).collect();
        let commands = crate::Cli::command();
        let expected: Vec<_> =
            commands.get_subcommands().map(|command| format!("layered-{}.1", command.get_name())).collect();
        assert_eq!(names, expected);
    }

    #[test]
    fn examples_are_kept_to_the_letter() {
        let extra = "Exit status: 0\nor 1.\n\nExamples:\n  layered ls a \\\n      b\n  layered ls -- c\n\nMore.";
        assert_eq!(
            sections(extra).to_roff(),
            ".SH NOTES\n.PP\nExit status: 0\nor 1.\n.PP\nMore.\n.SH EXAMPLES\n.nf\nlayered ls a \\\\\n    b\nlayered ls \\-\\- c\n.fi\n"
        );
    }
}
