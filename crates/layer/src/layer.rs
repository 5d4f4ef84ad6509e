//! One layer's directory and the paths in it. The modules below define the content of the files;
//! `store` handles a directory of many layers.

pub(crate) mod access;
pub(crate) mod disk_usage;
pub(crate) mod json;
mod last_used;
pub(crate) mod layer_hash;
pub(crate) mod meta;
mod sidecar;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::tree::size::TreeSize;

/// One layer's directory and the paths in it.
///
/// ```text
/// <layer>/layer.json   metadata that every layer has, see [`Meta`](crate::Meta);
///                      written last, so its presence marks the layer as complete
/// <layer>/fs/          the tree: an overlay upper that was captured
/// <layer>/layer.log    output of the build
/// <layer>/last_used    a sentinel; its modification time is the time of last use
/// <layer>/<name>.json  sidecars, one JSON value each
///
/// <layer>/.capturing   the future `layer.json` of a capture that has not moved its tree;
///                      a tree that exists at `fs` belongs to the caller
/// <layer>/.captured    the future `layer.json` of a capture that is moving its tree;
///                      if `fs` exists beside it, only the rename to `layer.json` is missing
/// <layer>/.json.*      a JSON file that is being written;
///                      locked with flock(2) unless its writer was killed
/// ```
///
/// A [capture](crate::Capture) locks the layer's directory with flock(2). A directory that the
/// capture made has the sticky bit until the capture has written `.capturing`. After a capture was
/// killed, the next capture of the layer or the next [`Collector`](crate::Collector) completes the
/// layer or removes the marks. Neither removes a tree.
///
/// Other files and directories beside these are allowed and are left alone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Layer {
    dir: PathBuf,
}

impl Layer {
    /// Returns the layer that is, or will be, at `dir`. Does not look at the disk.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Returns the layer at `dir`, like [`at`](Self::at), and checks that it has a tree to stack.
    ///
    /// # Errors
    /// [`Error::NotADirectory`] if `dir` is not a directory. [`Error::NoTree`] if it has no
    /// directory `fs`; a symbolic link is not one, since a layer's tree is its own.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self> {
        let layer = Self::at(dir);
        check(&layer.dir, "a layer")?;
        Ok(layer)
    }

    /// Returns the layer's directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Returns the name of the layer's directory, which identifies the layer in its store.
    pub fn name(&self) -> &OsStr {
        self.dir.file_name().unwrap_or(self.dir.as_os_str())
    }

    /// Returns `<layer>/fs`, the tree.
    pub fn fs(&self) -> PathBuf {
        self.dir.join("fs")
    }

    /// Returns `<layer>/layer.json`.
    pub fn meta_path(&self) -> PathBuf {
        self.dir.join("layer.json")
    }

    /// Returns `<layer>/layer.log`.
    pub fn log_path(&self) -> PathBuf {
        self.dir.join("layer.log")
    }

    /// Returns `<layer>/last_used`.
    pub fn last_used_path(&self) -> PathBuf {
        self.dir.join("last_used")
    }

    /// Measures the tree, as [`TreeSize::of`] does.
    ///
    /// [`Meta::disk_usage`](crate::Meta::disk_usage) is what the capture of the layer measured.
    ///
    /// # Errors
    /// As [`TreeSize::of`].
    pub fn measure(&self) -> Result<TreeSize> {
        TreeSize::of(self.fs())
    }
}

/// The tree at the bottom of every stack: a root file system made from an image, with no layer
/// below it.
///
/// A base has the shape of a layer (`<dir>/fs/` is its tree), or is a root file system that is not
/// in a directory `fs` ([`of_tree`](Self::of_tree)). It has no `last_used`: it is needed as long as
/// any layer above it exists.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Base {
    dir: PathBuf,
    tree: PathBuf,
    hash: String,
    image: String,
}

impl Base {
    /// Returns the base that is, or will be, at `dir`. Does not look at the disk.
    ///
    /// Its hash is the name of its directory, in the form of [`Layer::hash`], until
    /// [`with_hash`](Self::with_hash) sets another. Its image is empty until
    /// [`with_image`](Self::with_image) sets it.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        let dir = dir.into();
        let hash = layer_hash::text(dir.file_name().unwrap_or_default());
        Self { tree: dir.join("fs"), dir, hash, image: String::new() }
    }

    /// Returns the base at `dir`, like [`at`](Self::at), and checks that it has a tree to stack.
    ///
    /// # Errors
    /// [`Error::NotADirectory`] if `dir` is not a directory. [`Error::NoTree`] if it has no
    /// directory `fs`; a symbolic link is not one.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self> {
        let base = Self::at(dir);
        base.check()?;
        Ok(base)
    }

    /// Returns the base whose tree is `dir` itself: a root file system that is not in a directory
    /// `fs`. Symbolic links in `dir` are resolved. No collector removes such a base, so no run
    /// holds it. If `dir` is named `fs`, it may be the tree of a layer. The result is then the base
    /// that contains it, as [`open`](Self::open) returns it, and runs hold it.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let rootfs = dir.path().canonicalize()?;
    /// let base = layer::Base::of_tree(&rootfs)?;
    /// assert_eq!((base.path(), base.fs()), (&*rootfs, rootfs.clone()));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NotADirectory`] if `dir` is not a directory, [`Error::Io`] if it cannot be looked
    /// at.
    pub fn of_tree(dir: impl Into<PathBuf>) -> Result<Self> {
        let dir = dir.into();
        let real = fs::canonicalize(&dir).map_err(|source| missing(&dir, ROOT, source))?;
        let base = match (real.file_name(), real.parent()) {
            (Some(name), Some(parent)) if name == "fs" => Self::at(parent),
            // Layers name their base by its hash, which must not be empty.
            (None, _) => Self { tree: real.clone(), hash: "root".into(), ..Self::at(real) },
            _ => Self { tree: real.clone(), ..Self::at(real) },
        };
        base.check()?;
        Ok(base)
    }

    /// Looks at the base again.
    ///
    /// # Errors
    /// As [`open`](Self::open) and [`of_tree`](Self::of_tree).
    pub fn check(&self) -> Result<()> {
        match self.is_tree() {
            false => check(&self.dir, "a base"),
            true => match fs::symlink_metadata(&self.tree) {
                Ok(metadata) if metadata.is_dir() => Ok(()),
                Ok(_) => Err(Error::not_a_directory(&self.tree, ROOT)),
                Err(source) => Err(missing(&self.tree, ROOT, source)),
            },
        }
    }

    /// Returns whether the tree is the base's directory itself.
    pub fn is_tree(&self) -> bool {
        self.tree == self.dir
    }

    /// Sets the hash: the `base_hash` in the `layer.json` of every layer above.
    pub fn with_hash(mut self, hash: impl Into<String>) -> Self {
        self.hash = hash.into();
        self
    }

    /// Sets the image that the base was made from (`debian:12`).
    pub fn with_image(mut self, image: impl Into<String>) -> Self {
        self.image = image.into();
        self
    }

    /// Returns the base's directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Returns the root file system: `<base>/fs`, or the base's directory if that [is the
    /// tree](Self::is_tree).
    pub fn fs(&self) -> PathBuf {
        self.tree.clone()
    }

    /// Returns the hash by which the layers above name this base.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Returns the image that the base was made from.
    pub fn image(&self) -> &str {
        &self.image
    }
}

/// Checks that `dir` has the shape that layers and bases share.
fn check(dir: &Path, expected: &'static str) -> Result<()> {
    let tree = dir.join("fs");
    match fs::symlink_metadata(&tree) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(Error::NoTree { layer: dir.into() }),
        Err(source) => match fs::metadata(dir) {
            Ok(metadata) if metadata.is_dir() && source.kind() == std::io::ErrorKind::NotFound => {
                Err(Error::NoTree { layer: dir.into() })
            }
            Ok(metadata) if metadata.is_dir() => Err(Error::Io { operation: "look at", path: tree, source }),
            Ok(_) => Err(Error::not_a_directory(dir, expected)),
            Err(source) => Err(missing(dir, expected, source)),
        },
    }
}

/// What a root file system that is not in a directory `fs` is called in messages.
const ROOT: &str = "a root file system";

/// Returns the error about `dir`, which cannot be looked at.
fn missing(dir: &Path, expected: &'static str, source: std::io::Error) -> Error {
    match source.kind() {
        std::io::ErrorKind::NotFound => Error::not_a_directory(dir, expected),
        _ => Error::Io { operation: "look at", path: dir.into(), source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_of_open_names_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        assert!(matches!(Layer::open(&missing), Err(Error::NotADirectory { path, .. }) if path == missing));

        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(Layer::open(&file), Err(Error::NotADirectory { path, .. }) if path == file));

        let dangling = dir.path().join("dangling");
        std::os::unix::fs::symlink("missing", &dangling).unwrap();
        for (path, problem) in [
            (&missing, "does not exist"),
            (&file, "is not a directory"),
            (&dangling, "is a symbolic link to a path that does not exist"),
        ] {
            let shown = path.display();
            let message = |expected: &str| format!("{shown} {problem}; pass the path of {expected}");
            assert_eq!(Layer::open(path).unwrap_err().to_string(), message("a layer"));
            assert_eq!(Base::of_tree(path).unwrap_err().to_string(), message("a root file system"));
        }

        let bare = dir.path().join("bare");
        fs::create_dir(&bare).unwrap();
        assert!(matches!(Layer::open(&bare), Err(Error::NoTree { layer }) if layer == bare));

        let linked = dir.path().join("linked");
        fs::create_dir(&linked).unwrap();
        std::os::unix::fs::symlink("/", linked.join("fs")).unwrap();
        assert!(matches!(Base::open(&linked), Err(Error::NoTree { layer }) if layer == linked));

        let whole = dir.path().join("whole");
        fs::create_dir_all(whole.join("fs")).unwrap();
        let layer = Layer::open(&whole).unwrap();
        assert_eq!((layer.fs(), layer.name()), (whole.join("fs"), OsStr::new("whole")));
        let base = Base::open(&whole).unwrap().with_image("debian:12");
        assert_eq!((base.hash(), base.image()), ("whole", "debian:12"));

        assert_eq!(Base::of_tree(whole.join("fs")).unwrap(), Base::open(fs::canonicalize(&whole).unwrap()).unwrap());
        assert_eq!(Base::of_tree("/").unwrap().hash(), "root");

        let (link, tree) = (dir.path().join("link"), dir.path().join("tree"));
        fs::create_dir(&tree).unwrap();
        std::os::unix::fs::symlink("tree", &link).unwrap();
        let base = Base::of_tree(&link).unwrap();
        let real = fs::canonicalize(&link).unwrap();
        assert_eq!((base.path(), base.fs(), base.hash()), (&*real, real.clone(), "tree"));
        assert!(base.is_tree() && !Base::at(&whole).is_tree());
        fs::remove_dir(&real).unwrap();
        assert!(matches!(base.check(), Err(Error::NotADirectory { path, .. }) if path == real));

        let odd = dir.path().join(<OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"\xffodd"));
        fs::create_dir_all(odd.join("fs")).unwrap();
        let (base, layer) = (Base::open(&odd).unwrap(), Layer::open(&odd).unwrap());
        assert_eq!((base.hash(), layer.hash()), ("/ffodd", "/ffodd".into()));
    }
}
