//! `layered diff`: decides how the changes of a layer or an upper are shown.
//! `layer::Stack::changes` finds them, [`subject`] where they are and what was below, and [`du`]
//! the directories that explain their size.

use std::collections::HashSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anstyle::Style;
use layer::display::quoted;
use layer::{Change, Changes, Effect, EntryKind, Stack};

use crate::du::{self, DirectorySizes};
use crate::stack::{BaseArgs, LayerArgs};
use crate::{complain, table};

mod subject;

use subject::{Below, Subject};

/// List what a layer or an upper adds, changes and deletes.
///
/// Each line has a letter, the allocated size and the path, which ends with a slash if it is a
/// directory. The list leaves out the files that
/// the run itself has put into an upper.
///
/// diff compares with the stack below. A layer records that stack in its layer.json, as hashes.
/// diff looks for layers and a base with these hashes in the directory that contains the layer and
/// in LAYERED_STORE. LAYERED_BASE can also be the base. A kept run records its own stack. For any
/// other upper, pass --run, or pass --base and --layer.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// Directory of a layer, an upper or a kept run.
    ///
    /// A name without a slash that is not in the working directory is looked up: a kept run in
    /// --scratch, and a layer in LAYERED_STORE.
    #[arg(value_name = "LAYER|UPPER|RUN")]
    subject: PathBuf,
    /// Show the directories that take up most of the space.
    ///
    /// This works even if the stack below is not known. Each byte is counted once, in the innermost
    /// listed directory that contains it. The size of a listed directory therefore includes its
    /// unlisted subdirectories, but not its listed ones.
    #[arg(long)]
    du: bool,
    /// Number of directories that --du shows.
    #[arg(long, value_name = "N", default_value_t = 10, requires = "du", value_parser = most)]
    top: usize,
    /// Report of the run that wrote the upper, from its --json.
    ///
    /// The directory is then taken for an upper, whatever it contains.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["base", "rootfs", "layers", "layers_from"])]
    run: Option<PathBuf>,
    #[command(flatten)]
    base: BaseArgs,
    #[command(flatten)]
    layers: LayerArgs,
    /// Directory in which to look up the name of a kept run.
    ///
    /// The default is $LAYERED_SCRATCH. If that is not set, diff looks in $LAYERED_STORE and then
    /// in $TMPDIR or /tmp.
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Print one JSON object per line.
    ///
    /// The keys are `path`, `change`, `has` and `bytes`; with --du, they are `path`, `bytes` and
    /// `entries`.
    #[arg(long)]
    json: bool,
}

const AFTER_HELP: &str = "\
Letters:
  A  added: the stack below has nothing at the path
  C  changed: the stack below has a different entry at the path
  D  deleted: the entry in the stack below and everything in it are hidden
  R  replaced: an opaque directory, which hides everything in the directory of the stack below
  W  written: added or changed; without the stack below, diff cannot tell which

Examples:
  layered diff /var/cache/layers/5f2e
  layered diff --du /var/cache/layers/5f2e
  layered diff upper --run report.json
  layered diff scratch/kept-0123456789abcdef
  layered diff --json hello | jq -r 'select(.change == \"deleted\") | .path'";

fn most(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("it must be at least 1".into()),
        number => number.map_err(|error: std::num::ParseIntError| error.to_string()),
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let subject = Subject::find(&args.subject, args.scratch.as_deref(), args.run.as_deref())?;
    let made = subject.made()?;
    let mut out = table::stdout();
    let mut list = List { args, out: &mut out, sizes: DirectorySizes::default(), failed: 0 };
    if args.du {
        list.all(&made, Changes::of(&subject.tree, subject.xattrs)?)?;
    } else {
        match subject.below(&args.base, &args.layers)? {
            Below::Known(trees) => {
                // Over layers of others, the command was shown nothing of what it could not read.
                let stack = Stack::new(&trees, subject.xattrs)?.hide_unreadable();
                list.all(&made, stack.changes(&subject.tree)?)?;
            }
            Below::Unknown(why) => {
                complain(format_args!("cannot distinguish added from changed entries: {why}"));
                list.all(&made, Changes::of(&subject.tree, subject.xattrs)?)?;
            }
        }
    }
    list.end()
}

/// The output so far.
struct List<'a, W> {
    args: &'a Args,
    out: &'a mut W,
    sizes: DirectorySizes,
    failed: usize,
}

impl<W: Write> List<'_, W> {
    /// Shows all changes, except to the files that the run has made.
    fn all(
        &mut self,
        made: &HashSet<PathBuf>,
        changes: impl Iterator<Item = layer::Result<Change>>,
    ) -> anyhow::Result<()> {
        for change in changes {
            match change {
                Ok(change) if made.contains(&change.path) => {}
                Ok(change) if self.args.du => self.sizes.add(&change),
                Ok(change) if self.args.json => table::print_json(self.out, &change)?,
                Ok(change) => print(self.out, &change)?,
                // Reports an entry that cannot be looked at, and lists the others.
                Err(error) => {
                    self.failed += 1;
                    complain(format_args!("{:#}", anyhow::Error::from(error)));
                }
            }
        }
        Ok(())
    }

    fn end(self) -> anyhow::Result<ExitCode> {
        if self.args.du {
            let largest = self.sizes.largest(self.args.top);
            match self.args.json {
                true => largest.iter().try_for_each(|directory| table::print_json(self.out, directory))?,
                false => du::print(self.out, &largest)?,
            }
        }
        Ok(if self.failed == 0 { ExitCode::SUCCESS } else { crate::FAILURE.into() })
    }
}

fn print(out: &mut impl Write, change: &Change) -> io::Result<()> {
    let (letter, style) = letter(change.effect);
    let mut path = Path::new("/").join(&change.path);
    if change.kind == EntryKind::Directory {
        path.push("");
    }
    let size = if change.effect == Effect::Deleted { String::new() } else { table::bytes(change.bytes) };
    writeln!(out, "{style}{letter}{style:#}  {size:>10}  {}", quoted(&path))
}

fn letter(effect: Effect) -> (char, Style) {
    match effect {
        Effect::Added => ('A', table::GOOD),
        Effect::Changed => ('C', table::ATTENTION),
        Effect::Deleted => ('D', table::BAD),
        Effect::Opaque => ('R', table::BAD),
        _ => ('W', Style::new()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use layer::XattrNamespace;

    use super::*;

    #[test]
    fn a_change_is_one_line_with_a_letter_a_size_and_a_path() {
        let dir = tempfile::tempdir().unwrap();
        let [base, upper] = ["base", "upper"].map(|name| dir.path().join(name));
        fs::create_dir_all(upper.join("new dir")).unwrap();
        fs::create_dir(&base).unwrap();
        fs::write(base.join("file"), "").unwrap();
        for name in ["file", "a\nb"] {
            fs::write(upper.join(name), "").unwrap();
        }
        let shown = |changes: &mut dyn Iterator<Item = layer::Result<Change>>| {
            let mut out = Vec::new();
            for change in changes {
                let change = change.unwrap();
                // The size of a directory depends on the file system.
                if change.kind != EntryKind::Directory {
                    print(&mut out, &change).unwrap();
                }
            }
            anstream::adapter::strip_str(&String::from_utf8(out).unwrap()).to_string()
        };
        let stack = Stack::new(&[&base], XattrNamespace::User).unwrap();
        assert_eq!(shown(&mut stack.changes(&upper).unwrap()), "A         0 B  $'/a\\nb'\nC         0 B  /file\n");
        let alone = shown(&mut Changes::of(&upper, XattrNamespace::User).unwrap());
        assert_eq!(alone, "W         0 B  $'/a\\nb'\nW         0 B  /file\n");
        let change = stack.changes(&upper).unwrap().last().unwrap().unwrap();
        let mut out = Vec::new();
        print(&mut out, &change).unwrap();
        assert!(String::from_utf8(out).unwrap().ends_with("B  '/new dir/'\n"));
    }

    #[test]
    fn each_effect_has_a_letter() {
        let effects = [Effect::Added, Effect::Changed, Effect::Deleted, Effect::Opaque, Effect::AddedOrChanged];
        assert_eq!(effects.map(|effect| letter(effect).0), ['A', 'C', 'D', 'R', 'W']);
    }

    #[test]
    fn at_least_one_directory_is_shown() {
        assert_eq!(most("3"), Ok(3));
        assert!(["0", "", "-1", "x"].iter().all(|text| most(text).is_err()));
    }
}
