//! The arguments that name a stack: its base, its layers, the scratch directory and the rung.
//!
//! [`defaults`] has what the environment replaces them by, [`access`](crate::access) the arguments
//! for the mode of a new directory, and [`kept`](crate::kept) those that name a kept run.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail, ensure};
use layer::display::quoted;
use layer::{Base, Layer, Rung};
use runner::Options;
use rustix::fd::AsFd;
use rustix::fs::{AtFlags, CWD, FileType, StatxFlags, statx};
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use crate::defaults::{self, BASE, STORE};

/// The group of these options in the help.
const STACK: &str = "Stack";

/// The layers, their base, the scratch directory and the rung.
#[derive(Debug, clap::Args)]
pub(crate) struct StackArgs {
    #[command(flatten)]
    base: BaseArgs,
    #[command(flatten)]
    layers: LayerArgs,
    /// Directory for temporary files [default: $LAYERED_SCRATCH, $TMPDIR or /tmp].
    ///
    /// Each run creates its own directory in it. If it is on the file system of the layers, a merge
    /// links files instead of copying them. It cannot be on overlayfs.
    #[arg(long, value_name = "DIR", help_heading = STACK)]
    scratch: Option<PathBuf>,
    /// Mount by lowerdir+, mount-paths or mount-names [default: best].
    ///
    /// Each rung is a way to pass the lower directories to the kernel, and has separate limits. The
    /// best is the rung that leaves the fewest layers to merge, and of equal ones the first.
    #[arg(long, value_name = "RUNG", help_heading = STACK)]
    rung: Option<Rung>,
}

/// The bottom of the stack.
#[derive(Debug, clap::Args)]
pub(crate) struct BaseArgs {
    /// Base directory, with a root file system in `fs/`.
    ///
    /// The default of `run`, `plan` and `show --file` is LAYERED_BASE in the environment.
    #[arg(long, value_name = "DIR", help_heading = STACK)]
    base: Option<PathBuf>,
    /// Root file system that is not in a directory `fs`, in place of a base.
    #[arg(long, value_name = "DIR", conflicts_with = "base", help_heading = STACK)]
    rootfs: Option<PathBuf>,
}

/// The layers, topmost first.
#[derive(Debug, clap::Args)]
pub(crate) struct LayerArgs {
    /// Directory of a layer; may be repeated, topmost first.
    ///
    /// A name without a slash that is not in the working directory is looked up in the directory
    /// LAYERED_STORE.
    #[arg(long = "layer", value_name = "DIR", help_heading = STACK)]
    layers: Vec<PathBuf>,
    /// File with the directory of one layer per line, topmost first.
    ///
    /// The layers of FILE are below those of --layer. A relative path starts at the directory of
    /// FILE. A line that starts with `#` is a comment. FILE can be a pipe, and `-` is standard
    /// input: then a relative path starts at the working directory.
    #[arg(long, value_name = "FILE", help_heading = STACK)]
    layers_from: Option<PathBuf>,
}

impl BaseArgs {
    /// Returns whether an option names the base.
    pub(crate) fn is_given(&self) -> bool {
        self.base.is_some() || self.rootfs.is_some()
    }

    /// Opens the base that an option names.
    pub(crate) fn open(&self) -> anyhow::Result<Option<Base>> {
        match (&self.base, &self.rootfs) {
            (_, Some(rootfs)) => Ok(Some(Base::of_tree(rootfs)?)),
            (Some(base), None) => open_base(base).map(Some),
            (None, None) => Ok(None),
        }
    }
}

impl LayerArgs {
    /// Returns whether an option names layers.
    pub(crate) fn are_given(&self) -> bool {
        !self.layers.is_empty() || self.layers_from.is_some()
    }

    pub(crate) fn open(&self) -> anyhow::Result<Vec<Layer>> {
        let here = Path::new("");
        let mut layers = self.layers.iter().map(|path| open_layer(here, path)).collect::<anyhow::Result<Vec<_>>>()?;
        let Some(list) = &self.layers_from else { return Ok(layers) };
        let (text, is_pipe) = read(list)?;
        if text.starts_with(b"{") && serde_json::from_slice::<IgnoredAny>(&text).is_ok() {
            bail!("{} is JSON; pass a file with the directory of one layer per line", quoted(list));
        }
        // The path of a pipe has nothing to do with the paths in it.
        let dir = list.parent().filter(|_| !is_pipe).unwrap_or(Path::new(""));
        for (number, path) in lines(&text) {
            layers.push(open_layer(dir, &path).with_context(|| format!("{}:{number}", quoted(list)))?);
        }
        Ok(layers)
    }
}

/// Returns whether a path is only a name.
pub(crate) fn is_bare(path: &Path) -> bool {
    path.file_name() == Some(path.as_os_str())
}

/// Returns the path of a layer that is relative to `dir`, or that is in the store of the
/// environment: a bare name that is not in `dir`.
pub(crate) fn find_layer(dir: &Path, path: &Path) -> PathBuf {
    let here = dir.join(path);
    let is_missing_name = is_bare(path) && here.symlink_metadata().is_err();
    defaults::path(STORE).filter(|_| is_missing_name).map_or(here, |store| store.join(path))
}

/// Opens the layer that [`find_layer`] finds.
pub(crate) fn open_layer(dir: &Path, path: &Path) -> anyhow::Result<Layer> {
    match Layer::open(find_layer(dir, path)) {
        Err(error @ layer::Error::NotADirectory { .. }) if is_bare(path) && defaults::path(STORE).is_none() => {
            Err(anyhow!("{error}, or set {STORE} to the store that has it"))
        }
        Err(layer::Error::NoTree { layer }) => Err(without_tree(&layer, "the tree of a layer is in `fs`")),
        layer => Ok(layer?),
    }
}

/// Opens a base.
pub(crate) fn open_base(path: &Path) -> anyhow::Result<Base> {
    match Base::open(path) {
        Err(layer::Error::NoTree { layer }) => {
            Err(without_tree(&layer, "if it is a root file system itself, pass it as --rootfs"))
        }
        base => Ok(base?),
    }
}

/// Opens the base that the environment names, if it names one.
pub(crate) fn default_base() -> anyhow::Result<Option<Base>> {
    defaults::path(BASE).map(|default| open_base(&default).with_context(|| BASE.to_string())).transpose()
}

/// Returns the error about a directory without `fs`, with what the caller probably meant.
fn without_tree(dir: &Path, advice: &str) -> anyhow::Error {
    let shown = quoted(dir);
    match dir.parent().filter(|_| dir.file_name().is_some_and(|name| name == "fs")) {
        Some(above) => {
            anyhow!("{shown} has no directory `fs`; pass the directory {} that it is in", quoted(or_here(above)))
        }
        None if is_store(dir) => anyhow!("{shown} is a store of layers; list it with `layered ls {shown}`"),
        None => anyhow!("{shown} has no directory `fs`; {advice}"),
    }
}

/// Returns whether a directory has a layer with a `layer.json`.
pub(crate) fn is_store(dir: &Path) -> bool {
    layer::scan(dir).is_ok_and(|mut layers| layers.any(|layer| layer.is_ok()))
}

impl StackArgs {
    /// Returns whether an option names the base.
    pub(crate) fn names_base(&self) -> bool {
        self.base.is_given()
    }

    /// Opens the base: the one that an option names, or else `word` of the command line, or else
    /// that of the environment.
    pub(crate) fn base(&self, word: Option<&Path>) -> anyhow::Result<Base> {
        if let Some(base) = self.base.open()? {
            return Ok(base);
        }
        match word {
            Some(word) => match open_base(word) {
                Err(error) if error.downcast_ref::<layer::Error>().is_some() => {
                    Err(anyhow!("{error:#}; without --base, the first word is the base"))
                }
                base => base,
            },
            None => {
                let default = default_base()?;
                default.with_context(|| format!("there is no base; pass --base or --rootfs, or set {BASE}"))
            }
        }
    }

    pub(crate) fn layers(&self) -> anyhow::Result<Vec<Layer>> {
        self.layers.open()
    }

    /// Checks that `destination` is free in a directory that exists. Called before the run, so that
    /// a mistake costs no result.
    pub(crate) fn check_destination(&self, destination: &Path) -> anyhow::Result<()> {
        let (shown, dir) = (quoted(destination), parent(destination));
        if destination.symlink_metadata().is_ok() {
            bail!("cannot keep the upper as {shown}: it exists; choose another --upper");
        }
        match std::fs::metadata(dir) {
            Ok(metadata) if metadata.is_dir() => {}
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot examine {}", quoted(dir)));
            }
            _ => bail!("cannot keep the upper as {shown}: {} is not a directory; create it first", quoted(dir)),
        }
        Ok(())
    }

    /// Checks that an upper can be moved from the scratch directory of the run to `destination`.
    /// Called before the run.
    pub(crate) fn check_scratch(&self, destination: &Path) -> anyhow::Result<()> {
        check_same_mount(self.scratch.as_deref(), parent(destination), destination)
    }

    /// Checks that an upper can be moved into `store` as the tree of `layer`, and returns the
    /// scratch directory of the run: without another choice, the store. Called before the run.
    pub(crate) fn scratch_for(&self, store: &Path, layer: &Path) -> anyhow::Result<PathBuf> {
        let chosen = defaults::chosen_scratch(self.scratch.as_deref());
        check_same_mount(chosen.as_deref(), store, layer)?;
        Ok(chosen.unwrap_or_else(|| store.into()))
    }

    /// Returns the scratch directory. Without `--scratch`, it is `beside`, or else that of the
    /// environment.
    pub(crate) fn scratch(&self, beside: Option<&Path>) -> PathBuf {
        match (&self.scratch, beside) {
            (None, Some(beside)) => beside.into(),
            (scratch, _) => defaults::scratch(scratch.as_deref()),
        }
    }

    /// Returns the options of a run in the scratch directory `scratch`.
    pub(crate) fn options(&self, scratch: PathBuf) -> Options<'static> {
        // The upper of a run may be anywhere. Skeletons stay in one place.
        Options::new().rung(self.rung).scratch(scratch).skeletons(defaults::scratch(self.scratch.as_deref()))
    }
}

/// Checks that `scratch`, if it is given and exists, is on the same mount as `dir`, so that an
/// upper can be moved there as `destination`. The kernel renames nothing from one mount to another,
/// even on one file system.
fn check_same_mount(scratch: Option<&Path>, dir: &Path, destination: &Path) -> anyhow::Result<()> {
    let Some((scratch, here)) = scratch.and_then(|scratch| Some((scratch, location(scratch)?))) else { return Ok(()) };
    let there = location(dir);
    if there == Some(here) {
        return Ok(());
    }
    let what = match there.is_some_and(|there| there.device == here.device) {
        true => "on different mounts of one file system",
        false => "on different file systems",
    };
    bail!(
        "cannot move an upper from {} to {}: they are {what}; choose another --scratch",
        quoted(scratch),
        quoted(destination)
    );
}

/// The file system and the mount of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Location {
    device: (u32, u32),
    /// `None` if the kernel does not report mounts (before Linux 5.8).
    mount: Option<u64>,
}

/// Returns the location of a directory, or `None` if `path` is not one or does not exist.
fn location(path: &Path) -> Option<Location> {
    let stat = statx(CWD, path, AtFlags::empty(), StatxFlags::TYPE | StatxFlags::MNT_ID).ok()?;
    let is_dir = FileType::from_raw_mode(stat.stx_mode.into()).is_dir();
    let has_mount = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::MNT_ID);
    let mount = has_mount.then_some(stat.stx_mnt_id);
    is_dir.then_some(Location { device: (stat.stx_dev_major, stat.stx_dev_minor), mount })
}

/// The size of the largest file that [`read_given`] reads.
const MAX_BYTES: u64 = 64 << 20;

/// Reads a file that the caller has named. It can be a pipe, and `-` is standard input.
pub(crate) fn read_given(path: &Path) -> anyhow::Result<Vec<u8>> {
    Ok(read(path)?.0)
}

/// Reads a JSON object from a file that the caller has named, as [`read_given`] does.
pub(crate) fn read_object(path: &Path) -> anyhow::Result<Map<String, Value>> {
    serde_json::from_slice(&read_given(path)?).with_context(|| format!("{} is not a JSON object", quoted(path)))
}

/// Returns the content of a file as [`read_given`], and whether its path says nothing about the
/// paths in it, like that of a pipe or a descriptor.
fn read(path: &Path) -> anyhow::Result<(Vec<u8>, bool)> {
    let mut content = Vec::new();
    let mut read = || {
        let fd = if is_standard(path) { io::stdin().as_fd().try_clone_to_owned()? } else { File::open(path)?.into() };
        let file = File::from(fd);
        let is_descriptor = ["/dev", "/proc"].iter().any(|dir| path.starts_with(dir));
        let is_pipe = is_standard(path) || is_descriptor || !file.metadata()?.is_file();
        file.take(MAX_BYTES + 1).read_to_end(&mut content)?;
        io::Result::Ok(is_pipe)
    };
    let is_pipe = read().with_context(|| format!("cannot read {}", quoted(path)))?;
    ensure!(
        content.len() as u64 <= MAX_BYTES,
        "cannot read {}: it has more than {MAX_BYTES} bytes; choose another file",
        quoted(path)
    );
    Ok((content, is_pipe))
}

/// Returns whether a path stands for standard input or output.
pub(crate) fn is_standard(path: &Path) -> bool {
    path == Path::new("-")
}

/// Splits `text` into paths, one per line, with the numbers of the lines. A path can contain any
/// byte but a newline. A line can end with a carriage return. Blank lines and lines that start with
/// `#` have no path.
fn lines(text: &[u8]) -> impl Iterator<Item = (usize, PathBuf)> + '_ {
    let lines = text.split(|byte| *byte == b'\n').zip(1..);
    lines.filter_map(|(line, number)| match line.trim_ascii_start() {
        [] | [b'#', ..] => None,
        _ => Some((number, OsString::from_vec(line.strip_suffix(b"\r").unwrap_or(line).to_vec()).into())),
    })
}

/// Returns the directory that contains `path`.
pub(crate) fn parent(path: &Path) -> &Path {
    or_here(path.parent().unwrap_or(Path::new("")))
}

/// Returns a directory, or `.` if its path is empty.
fn or_here(dir: &Path) -> &Path {
    if dir.as_os_str().is_empty() { Path::new(".") } else { dir }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::ffi::OsStrExt;

    use proptest::prelude::*;

    use super::*;
    use crate::mutated;

    proptest! {
        #![proptest_config(mutated::config())]

        #[test]
        fn a_list_of_any_bytes_has_at_most_one_path_per_line(text in mutated::bytes(["/a b\r\n\n# c\nlast"])) {
            let all: Vec<_> = text.split(|byte| *byte == b'\n').collect();
            let mut before = 0;
            for (number, path) in lines(&text) {
                let line = all[number - 1];
                prop_assert!(number > before && line.starts_with(path.as_os_str().as_bytes()));
                prop_assert!(line.len() - path.as_os_str().len() <= 1);
                before = number;
            }
        }
    }

    #[test]
    fn a_list_has_comments_and_one_path_per_line() {
        let paths: Vec<_> = lines(b"# c\n/a b\r\n\r\n/c:#\xff\n  # d\n/last").collect();
        assert_eq!(
            paths.iter().map(|(number, path)| (*number, path.as_os_str().as_bytes())).collect::<Vec<_>>(),
            [(2, &b"/a b"[..]), (4, b"/c:#\xff"), (6, b"/last")]
        );
    }

    #[test]
    fn a_list_is_relative_to_its_directory_and_its_errors_name_the_line() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a/fs", "b/fs", "bare"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        let list = dir.path().join("list");
        let open = |text: &str| {
            fs::write(&list, text).unwrap();
            LayerArgs { layers: Vec::new(), layers_from: Some(list.clone()) }.open()
        };
        let layers = open("# two\r\n./a\r\nb\r\n").unwrap();
        assert_eq!(layers.iter().map(Layer::path).collect::<Vec<_>>(), [dir.path().join("./a"), dir.path().join("b")]);
        let error = |text: &str| format!("{:#}", open(text).unwrap_err());
        let (shown, here) = (list.display(), dir.path().display());
        assert_eq!(error("a\n\n./c\n"), format!("{shown}:3: {here}/./c does not exist; pass the path of a layer"));
        assert!(
            error("a\nmissing\n")
                .starts_with(&format!("{shown}:2: {here}/missing does not exist; pass the path of a layer"))
        );
        assert_eq!(
            error("bare"),
            format!("{shown}:1: {here}/bare has no directory `fs`; the tree of a layer is in `fs`")
        );
        assert_eq!(
            error("{\"a\": 1}"),
            format!("{shown} is JSON; pass a file with the directory of one layer per line")
        );
    }

    #[test]
    fn an_error_about_a_base_says_what_was_probably_meant() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["base/fs/bin", "store/layer/fs"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("store/layer/layer.json"), "{}").unwrap();
        let path = |name: &str| dir.path().join(name);
        let error = |name: &str| format!("{:#}", open_base(&path(name)).unwrap_err());
        let shown = |name: &str| path(name).display().to_string();
        assert_eq!(
            error("base/fs"),
            format!("{} has no directory `fs`; pass the directory {} that it is in", shown("base/fs"), shown("base"))
        );
        assert_eq!(error("store"), format!("{0} is a store of layers; list it with `layered ls {0}`", shown("store")));
        assert_eq!(
            error("base/fs/bin"),
            format!(
                "{} has no directory `fs`; if it is a root file system itself, pass it as --rootfs",
                shown("base/fs/bin")
            )
        );
    }

    #[test]
    fn the_parent_of_a_bare_name_is_the_working_directory() {
        assert_eq!((parent(Path::new("new")), parent(Path::new("a/new"))), (Path::new("."), Path::new("a")));
    }
}
