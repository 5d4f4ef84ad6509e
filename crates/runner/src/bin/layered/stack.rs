use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use layer::display::quoted;
use layer::{Base, Layer, Rung};
use runner::Options;

/// Which layers, over which base, in which scratch directory.
#[derive(Debug, clap::Args)]
pub(crate) struct StackArgs {
    /// The base at the bottom: a directory whose `fs/` is a root file system.
    #[arg(long, value_name = "DIR")]
    base: PathBuf,
    #[command(flatten)]
    layers: LayerArgs,
    /// Where the run's own directory is made: best on the file system of the layers [default: the system's temporary directory].
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Mount on this rung of the ladder, not on the best one: lowerdir+, mount-paths or mount-names.
    #[arg(long, value_name = "RUNG")]
    rung: Option<Rung>,
}

/// Which layers, topmost first.
#[derive(Debug, clap::Args)]
pub(crate) struct LayerArgs {
    /// A layer; may be repeated, the topmost first.
    #[arg(long = "layer", value_name = "DIR")]
    layers: Vec<PathBuf>,
    /// A file with a layer's directory on each line, the topmost first, below those of --layer.
    #[arg(long, value_name = "FILE")]
    layers_from: Option<PathBuf>,
}

impl LayerArgs {
    pub(crate) fn open(&self) -> anyhow::Result<Vec<Layer>> {
        let mut paths = self.layers.clone();
        if let Some(list) = &self.layers_from {
            paths.extend(lines(&read_given(list)?));
        }
        Ok(paths.into_iter().map(Layer::open).collect::<layer::Result<_>>()?)
    }
}

impl StackArgs {
    pub(crate) fn base(&self) -> anyhow::Result<Base> {
        Ok(Base::open(&self.base)?)
    }

    pub(crate) fn layers(&self) -> anyhow::Result<Vec<Layer>> {
        self.layers.open()
    }

    /// Sees that an upper can be moved to `destination` when it is there: at best before anything runs.
    pub(crate) fn check_destination(&self, destination: &Path) -> anyhow::Result<()> {
        let (shown, dir) = (quoted(destination), parent(destination));
        if destination.symlink_metadata().is_ok() {
            bail!("{shown} exists: --upper needs a name that is free");
        }
        let device =
            |path: &Path| std::fs::metadata(path).ok().filter(|metadata| metadata.is_dir()).map(|dir| dir.dev());
        let there = match std::fs::metadata(dir) {
            Ok(metadata) if metadata.is_dir() => metadata.dev(),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot look at {}", quoted(dir)));
            }
            _ => bail!("{} is not a directory: --upper needs one to be made in", quoted(dir)),
        };
        match self.scratch.as_deref() {
            Some(scratch) if device(scratch).is_some_and(|here| here != there) => bail!(
                "{} and {shown} are on different file systems: an upper is moved by a rename, so choose another --scratch",
                quoted(scratch)
            ),
            _ => Ok(()),
        }
    }

    /// The options that these arguments are. `beside` is where the scratch goes if nothing else was said.
    pub(crate) fn options(&self, beside: Option<&Path>) -> Options<'static> {
        let options = Options::new().rung(self.rung);
        match self.scratch.as_deref().or(beside) {
            Some(scratch) => options.scratch(scratch),
            None => options,
        }
    }
}

/// The most that is read of a file that the caller has named.
const MAX_BYTES: u64 = 64 << 20;

/// Reads a file that the caller has named, which may be a pipe.
pub(crate) fn read_given(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut content))
        .with_context(|| format!("cannot read {}", quoted(path)))?;
    ensure!(content.len() as u64 <= MAX_BYTES, "{} has more than {MAX_BYTES} bytes: give another file", quoted(path));
    Ok(content)
}

/// One path a line, any bytes but the newline.
fn lines(text: &[u8]) -> impl Iterator<Item = PathBuf> + '_ {
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| OsString::from_vec(line.to_vec()).into())
}

/// The directory that holds `path`.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().as_bytes().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mutated;

    proptest! {
        #![proptest_config(mutated::config())]

        #[test]
        fn lists_of_any_content(text in mutated::bytes(["/a b\n\n/c\nlast"])) {
            let paths: Vec<PathBuf> = lines(&text).collect();
            prop_assert!(paths.iter().all(|path| !path.as_os_str().is_empty()));
            let joined: Vec<_> = paths.iter().map(|path| path.as_os_str().as_bytes()).collect();
            let again = joined.join(&b'\n');
            prop_assert_eq!(lines(&again).collect::<Vec<_>>(), paths);
        }
    }

    #[test]
    fn a_list_has_a_path_a_line() {
        let paths: Vec<_> = lines(b"/a b\n\n/c:\xff\n/last").collect();
        assert_eq!(
            paths.iter().map(|path| path.as_os_str().as_bytes()).collect::<Vec<_>>(),
            [&b"/a b"[..], b"/c:\xff", b"/last"]
        );
    }

    #[test]
    fn a_bare_name_stands_in_the_working_directory() {
        assert_eq!((parent(Path::new("new")), parent(Path::new("a/new"))), (Path::new("."), Path::new("a")));
    }
}
