//! Checks whether other users of the machine can reach the trees of layers.
//!
//! For them, a set-user-ID program that a command has created runs with the rights of its owner,
//! and a device node opens the device of the host. [`scratch`](super::scratch) checks the file
//! system.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use os_display::Quotable;
use rustix::fs::Dir;

use super::check::Check;

const MEANS: &str = "every user can run their set-user-ID programs with the rights of the owners, and open the host's devices through their device nodes";

/// Checks the layers in the directory `store`.
pub(super) fn store(store: &Path) -> Check {
    let shown = store.maybe_quote();
    let (is_open, layers) = match is_open(store).and_then(|is_open| Ok((is_open, layers(store)?))) {
        Ok(found) => found,
        Err(error) => {
            return Check::warning("store", format!("cannot read {shown}: {error}"))
                .means("other users may be able to reach the layers in it")
                .advice("pass the directory that contains the layers as --store");
        }
    };
    let all = layers.len();
    let open: Vec<_> = layers.iter().filter(|layer| is_open && layer.is_open).collect();
    match &open[..] {
        [] => Check::ok("store", format!("other users can enter none of the {all} layers in {shown}")),
        [first, ..] => {
            let name = first.path.file_name().unwrap_or_default().maybe_quote();
            let found = format!("other users can enter {} of the {all} layers in {shown}, e.g. {name}", open.len());
            Check::warning("store", found)
                .means(MEANS)
                .advice(format!("run chmod 700 {shown}, or do so for each layer"))
        }
    }
}

/// Checks the scratch directory. Returns `None` if it is closed to other users, and for a shared
/// directory with the sticky bit, such as /tmp: the directories that a run creates there are
/// closed.
pub(super) fn scratch(scratch: &Path) -> Option<Check> {
    let is_shared = fs::metadata(scratch).is_ok_and(|metadata| metadata.mode() & STICKY != 0);
    if is_shared || !is_open(scratch).unwrap_or_default() {
        return None;
    }
    let shown = scratch.maybe_quote();
    let warning = Check::warning("scratch access", format!("other users can enter {shown}"))
        .means("the directory of a run in it is closed, but an upper or a merged directory placed there may not be")
        .advice(format!("run chmod 700 {shown}"));
    Some(warning)
}

const STICKY: u32 = 0o1000;
const SEARCH_BY_OTHERS: u32 = 0o001;

/// The directory of a layer.
pub(super) struct LayerDir {
    pub(super) path: PathBuf,
    is_open: bool,
}

/// Returns the layers in `store`: the directories with an `fs` directory.
pub(super) fn layers(store: &Path) -> io::Result<Vec<LayerDir>> {
    let mut layers = Vec::new();
    for entry in Dir::new(File::open(store)?)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        let path = store.join(name);
        let found = [path.symlink_metadata(), path.join("fs").symlink_metadata()];
        if let ([Ok(layer), Ok(tree)], false) = (&found, name == "." || name == "..") {
            if layer.is_dir() && tree.is_dir() {
                let is_open = [layer, tree].iter().all(|dir| dir.mode() & SEARCH_BY_OTHERS != 0);
                layers.push(LayerDir { path, is_open });
            }
        }
    }
    layers.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(layers)
}

/// Returns whether every user can enter `dir` and all directories above it.
fn is_open(dir: &Path) -> io::Result<bool> {
    for above in fs::canonicalize(dir)?.ancestors() {
        if above.metadata()?.mode() & SEARCH_BY_OTHERS == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::doctor::check::Verdict;

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn text(check: &Check) -> String {
        serde_json::to_string(check).unwrap()
    }

    #[test]
    fn a_store_is_closed_by_its_own_mode_one_above_or_those_of_its_layers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        for layer in ["a", "b\x1b[2J", "c"] {
            fs::create_dir_all(path.join(layer).join("fs")).unwrap();
        }
        fs::create_dir(path.join("no-layer")).unwrap();
        let [a, b, c] = ["a", "b\x1b[2J", "c"].map(|layer| path.join(layer));
        let set = |modes: [(&Path, u32); 6]| modes.into_iter().for_each(|(path, bits)| mode(path, bits));
        let tree = a.join("fs");
        // (modes: above, the store, a, the tree of a, b, c; number of open layers)
        let table = [
            (0o755, 0o755, 0o755, 0o755, 0o700, 0o750, 1),
            (0o711, 0o711, 0o711, 0o711, 0o711, 0o701, 3),
            (0o755, 0o755, 0o755, 0o700, 0o755, 0o700, 1),
            (0o755, 0o755, 0o700, 0o755, 0o750, 0o700, 0),
            (0o755, 0o700, 0o755, 0o755, 0o755, 0o755, 0),
            (0o750, 0o755, 0o755, 0o755, 0o755, 0o755, 0),
        ];
        for row in table {
            let (above, own, first, inner, second, third, open) = row;
            set([(&tree, inner), (&a, first), (&b, second), (&c, third), (&path, own), (dir.path(), above)]);
            let check = store(&path);
            let expected = if open == 0 { Verdict::Ok } else { Verdict::Warning };
            assert_eq!(check.verdict, expected, "{row:?}: {}", text(&check));
            let found = format!("other users can enter {open} of the 3 layers in ");
            assert!(open == 0 || text(&check).contains(&found), "{}", text(&check));
        }
        set([(&tree, 0o755), (&a, 0o700), (&b, 0o755), (&c, 0o700), (&path, 0o755), (dir.path(), 0o755)]);
        let check = text(&store(&path));
        assert!(check.contains("chmod 700 ") && !check.contains('\x1b') && !check.contains("\\u001b"), "{check}");
        assert_eq!(store(&dir.path().join("missing")).verdict, Verdict::Warning);
    }

    #[test]
    fn only_an_open_private_scratch_directory_is_a_warning() {
        let dir = tempfile::tempdir().unwrap();
        mode(dir.path(), 0o755);
        let path = dir.path().join("scratch");
        fs::create_dir(&path).unwrap();
        for (bits, is_warning) in
            [(0o755, true), (0o711, true), (0o700, false), (0o750, false), (0o1777, false), (0o777, true)]
        {
            mode(&path, bits);
            assert_eq!(scratch(&path).is_some(), is_warning, "{bits:o}");
        }
        mode(dir.path(), 0o700);
        assert_eq!(scratch(&path), None);
    }
}
