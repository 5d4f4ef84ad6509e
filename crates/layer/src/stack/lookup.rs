//! Finds which layer of a stack a path is from, and what hides it in the others. `view.rs` lists
//! whole directories.

mod layer_path;

use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use self::layer_path::{PathEntry, layer_path};
use crate::error::{Error, Result};
use crate::json_path;
use crate::stack::overlayfs::{EntryKind, XattrNamespace};

/// The entry that a stack shows at a path, the layer that it is from, and the other layers that
/// have an entry there.
///
/// The rules are the kernel's. A whiteout, an opaque directory or a file hides everything of its
/// name in the layers below. Directories of one name are shown as one directory, with the
/// attributes of the topmost.
///
/// The JSON of this type and of [`Origin`] and [`Obstacle`] is that of `layered show --file`, but
/// `layer` and `by` are positions in the stack in place of paths. The `layer` of the lookup itself
/// is the position of the [supplier](Self::supplier), or null.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lookup {
    /// The path below the root, without `.`, `..` and redundant slashes. It is empty for the root
    /// itself.
    pub path: PathBuf,
    /// The entries that the layers have at the path, topmost first.
    pub origins: Vec<Origin>,
    /// The obstacle on the way, if the path leads through something that is not a directory.
    pub obstacle: Option<Obstacle>,
}

/// The entry that one layer has at the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Origin {
    /// The position of the layer in the given stack: 0 is the topmost.
    pub layer: usize,
    /// The kind of the entry; `has` in JSON.
    #[serde(rename = "has")]
    pub kind: EntryKind,
    /// Whether the stack shows the entry; `role` and `by` in JSON.
    #[serde(flatten)]
    pub role: Role,
}

/// Whether a stack shows the entry of one of its layers. In JSON it is an object. Its `role` is the
/// name of the variant in lower case, and its `by` is null for all variants but `Hidden`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// The stack shows the entry. A directory is shown with these attributes.
    Supplies,
    /// The entry is a directory whose entries are shown with those of the directories above.
    Joins,
    /// The entry is a whiteout: it hides everything of its name below, and is not shown itself.
    Deletes,
    /// The stack does not show the entry.
    Hidden {
        /// The layer that hides the entry. It has a file, a whiteout or an opaque directory at the
        /// path, or in the place of a directory on the way. A directory at the path also hides a
        /// file below it.
        by: usize,
    },
}

/// An entry that is not a directory, on the way to the path. A lookup follows no symbolic link,
/// because a command resolves a link in the whole stack, through other layers than the link's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Obstacle {
    /// The layer that has the entry.
    pub layer: usize,
    /// The path of the entry below the root.
    #[serde(serialize_with = "json_path::serialize_absolute")]
    pub path: PathBuf,
    /// The kind of the entry; `has` in JSON.
    #[serde(rename = "has")]
    pub kind: EntryKind,
    /// The target, if the entry is a symbolic link.
    #[serde(serialize_with = "json_path::serialize_option")]
    pub target: Option<PathBuf>,
}

impl Lookup {
    /// Returns the entry that the stack shows; `None` if it shows nothing at the path.
    pub fn supplier(&self) -> Option<&Origin> {
        self.origins.iter().find(|origin| origin.role == Role::Supplies)
    }
}

impl Serialize for Lookup {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_struct("Lookup", 4)?;
        object.serialize_field("path", &json_path::to_value(Path::new("/").join(&self.path)))?;
        object.serialize_field("layer", &self.supplier().map(|origin| origin.layer))?;
        object.serialize_field("origins", &self.origins)?;
        object.serialize_field("obstacle", &self.obstacle)?;
        object.end()
    }
}

impl Serialize for Role {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (role, by) = match self {
            Role::Supplies => ("supplies", None),
            Role::Joins => ("joins", None),
            Role::Deletes => ("deletes", None),
            Role::Hidden { by } => ("hidden", Some(by)),
        };
        let mut object = serializer.serialize_struct("Role", 2)?;
        object.serialize_field("role", role)?;
        object.serialize_field("by", &by)?;
        object.end()
    }
}

/// Looks up `path` in a stack of `trees`, **topmost first**, without a mount. The trees are those
/// of the layers (`<layer>/fs`) and of the base. A leading slash is the root of the stack. A path
/// that ends with a slash means only a directory: a file there is an [`Obstacle`], and no layer has
/// an [`Origin`] that is a file.
///
/// A `..` removes the name before it, even if the stack has nothing or a link there.
/// [`Stack::trace`](crate::Stack::trace) follows links, and `..` as the kernel does.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # for name in ["gcc", "clang"] {
/// #     std::fs::create_dir_all(dir.path().join(name).join("fs/usr/bin"))?;
/// #     std::fs::write(dir.path().join(name).join("fs/usr/bin/cc"), name)?;
/// # }
/// let stack = [dir.path().join("gcc/fs"), dir.path().join("clang/fs")];
/// let found = layer::lookup(&stack, "/usr/bin/cc", layer::XattrNamespace::Trusted)?;
/// assert_eq!(found.supplier().map(|origin| origin.layer), Some(0));
/// assert_eq!(found.origins[1].role, layer::Role::Hidden { by: 0 });
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// - [`Error::NotADirectory`] if a tree is not a directory.
/// - [`Error::Unmergeable`] if a directory on the way has the attribute `redirect`, or the file
///   `metacopy`. Then the layers alone do not determine what the stack shows.
/// - [`Error::MountInside`] if something is mounted on the way. An overlay would not show that
///   mount.
/// - [`Error::Io`] names an entry that cannot be looked at.
pub fn lookup(trees: &[impl AsRef<Path>], path: impl AsRef<Path>, xattrs: XattrNamespace) -> Result<Lookup> {
    let needs_directory = needs_directory(path.as_ref());
    let path = normal(path.as_ref());
    let layer_paths = trees.iter().map(|tree| layer_path(tree.as_ref(), &path, xattrs)).collect::<Result<Vec<_>>>()?;
    let names = path.components().count();
    let (mut origins, mut in_the_way) = resolve(&layer_paths, names);
    if needs_directory {
        let is_no_directory = |origin: &Origin| !matches!(origin.kind, EntryKind::Directory | EntryKind::Whiteout);
        let file = origins.iter().find(|origin| origin.role == Role::Supplies && is_no_directory(origin));
        in_the_way = in_the_way.or(file.map(|origin| (origin.layer, names)));
        origins.retain(|origin| !is_no_directory(origin));
    }
    let obstacle = in_the_way.map(|(layer, names)| {
        let way: PathBuf = path.components().take(names).collect();
        let kind = layer_paths[layer][names - 1].kind;
        let place = trees[layer].as_ref().join(&way);
        let target = (kind == EntryKind::Symlink).then(|| std::fs::read_link(&place)).transpose();
        Ok(Obstacle { layer, path: way, kind, target: target.map_err(Error::io("read the link", place))? })
    });
    Ok(Lookup { path, origins, obstacle: obstacle.transpose()? })
}

/// Returns whether the path can only lead to a directory: it ends with a slash or a dot.
fn needs_directory(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    bytes.ends_with(b"/") || bytes.ends_with(b"/.") || bytes == b"."
}

/// Returns the path without `.`, `..` and extra slashes. Since no link is followed, `..` removes
/// the name before it.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => normal.push(name),
            Component::ParentDir => {
                normal.pop();
            }
            _ => {}
        }
    }
    normal
}

/// Decides the role of each layer's entry at a path of `names` names. Also returns the obstacle, if
/// any: its layer, and the number of names up to it.
fn resolve(layer_paths: &[Vec<PathEntry>], names: usize) -> (Vec<Origin>, Option<(usize, usize)>) {
    let mut hidden_by: Vec<Option<usize>> = vec![None; layer_paths.len()];
    let mut obstacle = None;
    // All layers share the root. The opaque attribute has no meaning on a layer's root.
    let mut topmost = (!layer_paths.is_empty()).then_some(0);
    for name in 0..names {
        // Nothing of the name is shown below this layer.
        let mut cut = None;
        topmost = None;
        for (layer, entries) in layer_paths.iter().enumerate() {
            let Some(entry) = entries.get(name) else { continue };
            hidden_by[layer] = hidden_by[layer].or(cut);
            if hidden_by[layer].is_some() {
                continue;
            }
            match (entry.kind, topmost) {
                (EntryKind::Directory, _) => {
                    topmost = topmost.or(Some(layer));
                    cut = entry.is_opaque.then_some(layer);
                }
                (EntryKind::Whiteout, _) => cut = Some(layer),
                // A file below directories ends their union.
                (_, Some(above)) => (hidden_by[layer], cut) = (Some(above), Some(layer)),
                (_, None) => {
                    (topmost, cut) = (Some(layer), Some(layer));
                    if name + 1 < names {
                        obstacle = Some((layer, name + 1));
                    }
                }
            }
        }
    }
    let whole = layer_paths.iter().enumerate().filter(|(_, entries)| entries.len() == names);
    let origins = whole.map(|(layer, entries)| {
        let kind = entries.last().map_or(EntryKind::Directory, |entry| entry.kind);
        let role = match (hidden_by[layer], kind) {
            (Some(by), _) => Role::Hidden { by },
            (None, EntryKind::Whiteout) => Role::Deletes,
            (None, _) if topmost == Some(layer) => Role::Supplies,
            (None, _) => Role::Joins,
        };
        Origin { layer, kind, role }
    });
    (origins.collect(), obstacle)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the entries of a layer, written as one letter per name: `d` is a directory, `o` an
    /// opaque one, `f` a file, `l` a link, `w` a whiteout.
    fn layer_path(letters: &str) -> Vec<PathEntry> {
        let entry = |letter| {
            let kind = match letter {
                'd' | 'o' => EntryKind::Directory,
                'f' => EntryKind::File,
                'l' => EntryKind::Symlink,
                'w' => EntryKind::Whiteout,
                _ => panic!("{letter}"),
            };
            PathEntry { kind, is_opaque: letter == 'o' }
        };
        letters.chars().map(entry).collect()
    }

    /// Returns the role of each layer as one character: `S`, `J`, `D`, the number of the layer that
    /// hides the entry, or `-` where the layer has nothing. Also returns the obstacle.
    fn roles(layer_paths: &[&str], names: usize) -> (String, Option<(usize, usize)>) {
        let layer_paths: Vec<_> = layer_paths.iter().map(|letters| layer_path(letters)).collect();
        let (origins, obstacle) = resolve(&layer_paths, names);
        let role = |layer| match origins.iter().find(|origin| origin.layer == layer).map(|origin| origin.role) {
            Some(Role::Supplies) => "S".into(),
            Some(Role::Joins) => "J".into(),
            Some(Role::Deletes) => "D".into(),
            Some(Role::Hidden { by }) => by.to_string(),
            None => "-".into(),
        };
        ((0..layer_paths.len()).map(role).collect(), obstacle)
    }

    /// The entries of each layer, the number of names in the path, the roles, and the obstacle.
    type Case = (&'static [&'static str], usize, &'static str, Option<(usize, usize)>);

    #[test]
    fn roles_follow_the_kernels_rules() {
        let table: [Case; 18] = [
            (&[], 0, "", None),
            (&["", ""], 0, "SJ", None),
            (&["", ""], 1, "--", None),
            (&["f", "f", ""], 1, "S0-", None),
            (&["", "d", "d"], 1, "-SJ", None),
            (&["d", "o", "d"], 1, "SJ1", None),
            // A directory over a file, and another directory below the file.
            (&["d", "f", "d"], 1, "S01", None),
            (&["f", "d", "w"], 1, "S00", None),
            (&["w", "f", "f"], 1, "D00", None),
            (&["d", "w", "d"], 1, "SD1", None),
            // Paths of two names.
            (&["dd", "d", "df"], 2, "S-0", None),
            (&["o", "df"], 2, "-0", None),
            (&["w", "df"], 2, "-0", None),
            (&["dw", "o", "df"], 2, "D-1", None),
            (&["d", "df", "o", "df"], 2, "-S-2", None),
            // Obstacles.
            (&["l", "df"], 2, "-0", Some((0, 1))),
            (&["d", "df", "f", "df"], 2, "-S-2", None),
            (&["df", "ddf"], 3, "-0", Some((0, 2))),
        ];
        for (layer_paths, names, expected, obstacle) in table {
            assert_eq!(roles(layer_paths, names), (expected.to_string(), obstacle), "{layer_paths:?}");
        }
    }

    #[test]
    fn a_lookup_as_json_has_the_form_of_show() {
        let origin = |layer, kind, role| Origin { layer, kind, role };
        let target = Some("usr/lib".into());
        let found = Lookup {
            path: "lib/x".into(),
            origins: vec![
                origin(0, EntryKind::Whiteout, Role::Deletes),
                origin(2, EntryKind::File, Role::Hidden { by: 0 }),
            ],
            obstacle: Some(Obstacle { layer: 1, path: "lib".into(), kind: EntryKind::Symlink, target }),
        };
        let expected = r#"{"path":"/lib/x","layer":null,"origins":[{"layer":0,"has":"whiteout","role":"deletes","by":null},{"layer":2,"has":"file","role":"hidden","by":0}],"obstacle":{"layer":1,"path":"/lib","has":"symlink","target":"usr/lib"}}"#;
        assert_eq!(serde_json::to_string(&found).unwrap(), expected);
        let found = Lookup {
            path: "usr".into(),
            origins: vec![
                origin(3, EntryKind::Directory, Role::Supplies),
                origin(4, EntryKind::Directory, Role::Joins),
            ],
            obstacle: None,
        };
        let expected = r#"{"path":"/usr","layer":3,"origins":[{"layer":3,"has":"directory","role":"supplies","by":null},{"layer":4,"has":"directory","role":"joins","by":null}],"obstacle":null}"#;
        assert_eq!(serde_json::to_string(&found).unwrap(), expected);
    }

    #[test]
    fn a_path_with_a_slash_at_its_end_is_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let [upper, lower] = ["upper", "lower"].map(|name| dir.path().join(name));
        std::fs::create_dir_all(upper.join("dir")).unwrap();
        std::fs::create_dir_all(lower.join("file")).unwrap();
        std::fs::create_dir_all(lower.join("dir")).unwrap();
        std::fs::write(upper.join("file"), "").unwrap();
        let found = |path: &str| {
            let found = lookup(&[&upper, &lower], path, XattrNamespace::User).unwrap();
            let obstacle = found.obstacle.map(|obstacle| (obstacle.layer, obstacle.path, obstacle.kind));
            (found.origins.iter().map(|origin| (origin.layer, origin.role)).collect::<Vec<_>>(), obstacle)
        };
        let hidden = (1, Role::Hidden { by: 0 });
        assert_eq!(found("file"), (vec![(0, Role::Supplies), hidden], None));
        for path in ["file/", "/file//", "file/.", "dir/../file/"] {
            assert_eq!(found(path), (vec![hidden], Some((0, "file".into(), EntryKind::File))), "{path}");
        }
        for path in ["dir", "dir/", "dir/./"] {
            assert_eq!(found(path), (vec![(0, Role::Supplies), (1, Role::Joins)], None), "{path}");
        }
    }

    #[test]
    fn a_path_has_no_dots_and_no_extra_slashes() {
        for (path, expected) in
            [("/usr//bin/./cc", "usr/bin/cc"), ("usr/lib/../bin/cc/", "usr/bin/cc"), ("../..", ""), ("/", ""), ("", "")]
        {
            assert_eq!(normal(Path::new(path)), Path::new(expected), "{path}");
        }
    }
}
