use std::path::Path;

use walkdir::WalkDir;

use crate::{Error, Result};

/// How large a tree is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TreeSize {
    /// Bytes of all files: apparent sizes, every name of a hard link counted, a symbolic link with its target's length.
    pub bytes: u64,
    /// Files, directories, whiteouts and all else in it, without the root.
    pub entries: u64,
}

impl TreeSize {
    /// Walks the directory `tree`, which nobody should be changing, and follows no symbolic link.
    ///
    /// # Errors
    /// [`Error::Io`] if a part of it cannot be read.
    pub fn of(tree: impl AsRef<Path>) -> Result<Self> {
        let tree = tree.as_ref();
        let bytes = fs_extra::dir::get_size(tree).map_err(|error| match error.kind {
            fs_extra::error::ErrorKind::Io(source) => Error::io("measure", tree)(source),
            _ => Error::io("measure", tree)(std::io::Error::other(error)),
        })?;
        let mut entries = 0;
        for entry in WalkDir::new(tree).min_depth(1) {
            entry.map_err(|error| Error::walk(tree, error))?;
            entries += 1;
        }
        Ok(Self { bytes, entries })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn files_add_up_and_everything_counts() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(TreeSize::of(dir.path()).unwrap(), TreeSize::default());
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/one"), [0; 1000]).unwrap();
        fs::write(dir.path().join("a/b/two"), [0; 234]).unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("a/link")).unwrap();
        assert_eq!(TreeSize::of(dir.path()).unwrap(), TreeSize { bytes: 1235, entries: 5 });
        assert!(matches!(TreeSize::of(dir.path().join("missing")), Err(Error::Io { .. })));
    }
}
