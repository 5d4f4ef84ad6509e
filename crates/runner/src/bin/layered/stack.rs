//! The arguments that name a stack: its base, its layers, the scratch directory and the rung.
//!
//! [`access`](crate::access) has those for the mode of a new directory, and [`kept`](crate::kept)
//! those that name a kept run.

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

/// The layers, their base, the scratch directory and the rung.
#[derive(Debug, clap::Args)]
pub(crate) struct StackArgs {
    /// Base directory, with a root file system in `fs/`.
    #[arg(long, value_name = "DIR")]
    base: PathBuf,
    #[command(flatten)]
    layers: LayerArgs,
    /// Directory for temporary files [default: $TMPDIR or /tmp].
    ///
    /// Each run creates its own directory in it. If it is on the file system of the layers, a merge
    /// links files instead of copying them. It cannot be on overlayfs.
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Mount by lowerdir+, mount-paths or mount-names [default: best].
    ///
    /// Each rung is a way to pass the lower directories to the kernel, and has separate limits. The
    /// best is the first rung that works and that leaves the fewest layers to merge.
    #[arg(long, value_name = "RUNG")]
    rung: Option<Rung>,
}

/// The layers, topmost first.
#[derive(Debug, clap::Args)]
pub(crate) struct LayerArgs {
    /// Directory of a layer; may be repeated, topmost first.
    #[arg(long = "layer", value_name = "DIR")]
    layers: Vec<PathBuf>,
    /// File with the directory of one layer per line, topmost first.
    ///
    /// The layers of FILE are below those of --layer. FILE can be a pipe.
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

    /// Checks that an upper can be moved to `destination`. Called before the run, so that a mistake
    /// costs no result.
    pub(crate) fn check_destination(&self, destination: &Path) -> anyhow::Result<()> {
        let (shown, dir) = (quoted(destination), parent(destination));
        if destination.symlink_metadata().is_ok() {
            bail!("cannot keep the upper as {shown}: it exists; choose another --upper");
        }
        let device =
            |path: &Path| std::fs::metadata(path).ok().filter(|metadata| metadata.is_dir()).map(|dir| dir.dev());
        let there = match std::fs::metadata(dir) {
            Ok(metadata) if metadata.is_dir() => metadata.dev(),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot examine {}", quoted(dir)));
            }
            _ => bail!("cannot keep the upper as {shown}: {} is not a directory; create it first", quoted(dir)),
        };
        match self.scratch.as_deref() {
            Some(scratch) if device(scratch).is_some_and(|here| here != there) => bail!(
                "cannot move an upper from {} to {shown}: they are on different file systems; choose another --scratch",
                quoted(scratch)
            ),
            _ => Ok(()),
        }
    }

    /// Returns the options of a run. Without `--scratch`, `beside` is the scratch directory.
    pub(crate) fn options(&self, beside: Option<&Path>) -> Options<'static> {
        let options = Options::new().rung(self.rung);
        match self.scratch.as_deref().or(beside) {
            Some(scratch) => options.scratch(scratch),
            None => options,
        }
    }
}

/// The size of the largest file that [`read_given`] reads.
const MAX_BYTES: u64 = 64 << 20;

/// Reads a file that the caller has named. It can be a pipe.
pub(crate) fn read_given(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut content))
        .with_context(|| format!("cannot read {}", quoted(path)))?;
    ensure!(
        content.len() as u64 <= MAX_BYTES,
        "cannot read {}: it has more than {MAX_BYTES} bytes; choose another file",
        quoted(path)
    );
    Ok(content)
}

/// Splits `text` into paths, one per line. A path can contain any byte but a newline.
fn lines(text: &[u8]) -> impl Iterator<Item = PathBuf> + '_ {
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| OsString::from_vec(line.to_vec()).into())
}

/// Returns the directory that contains `path`.
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
        fn a_list_of_any_bytes_has_one_path_per_line(text in mutated::bytes(["/a b\n\n/c\nlast"])) {
            let paths: Vec<PathBuf> = lines(&text).collect();
            prop_assert!(paths.iter().all(|path| !path.as_os_str().is_empty()));
            let joined: Vec<_> = paths.iter().map(|path| path.as_os_str().as_bytes()).collect();
            let again = joined.join(&b'\n');
            prop_assert_eq!(lines(&again).collect::<Vec<_>>(), paths);
        }
    }

    #[test]
    fn a_list_has_one_path_per_line() {
        let paths: Vec<_> = lines(b"/a b\n\n/c:\xff\n/last").collect();
        assert_eq!(
            paths.iter().map(|path| path.as_os_str().as_bytes()).collect::<Vec<_>>(),
            [&b"/a b"[..], b"/c:\xff", b"/last"]
        );
    }

    #[test]
    fn the_parent_of_a_bare_name_is_the_working_directory() {
        assert_eq!((parent(Path::new("new")), parent(Path::new("a/new"))), (Path::new("."), Path::new("a")));
    }
}
