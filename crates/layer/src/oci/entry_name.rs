//! Decides where an entry of an archive belongs, and what its name means for the layers below: the
//! names `.wh.*` of the image specification. Pure; `unpack.rs` makes the files.

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::error::Problem;

/// The prefix of the name of a whiteout.
pub(crate) const WHITEOUT: &[u8] = b".wh.";

/// The prefix of names that only AUFS gives a meaning.
const AUFS: &[u8] = b".wh..wh.";

/// The name of the file that makes its directory opaque.
pub(crate) const OPAQUE: &[u8] = b".wh..wh..opq";

/// The meaning of the name of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EntryName {
    /// The root of the tree.
    Root,
    /// The file `name` in the directory `parent`.
    File { parent: Path, name: CString },
    /// A whiteout of `name` in the directory `parent`.
    Whiteout { parent: Path, name: CString },
    /// A mark that makes `directory` opaque.
    Opaque { directory: Path },
    /// A file of AUFS, without a meaning to anything else.
    Skipped,
}

/// A path below the root of a tree: names without `.`, `..` and empty ones, joined by single
/// slashes. The empty path is the root.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Path(Vec<u8>);

impl Path {
    /// Reads the path of an archive. An absolute path begins at the root of the tree.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Problem> {
        if bytes.contains(&0) {
            return Err(Problem::NulInName);
        }
        let mut path = Vec::with_capacity(bytes.len());
        for name in bytes.split(|&byte| byte == b'/') {
            match name {
                b"" | b"." => continue,
                b".." => return Err(Problem::LeadsOut),
                _ => {}
            }
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
        }
        Ok(Self(path))
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the names, the uppermost first.
    pub(crate) fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|&byte| byte == b'/').filter(|name| !name.is_empty())
    }

    /// Splits the path into its directory and its last name. Returns `None` for the root.
    pub(crate) fn split(&self) -> Option<(Self, CString)> {
        let slash = self.0.iter().rposition(|&byte| byte == b'/');
        let name = &self.0[slash.map_or(0, |slash| slash + 1)..];
        let name = CString::new(name).ok().filter(|name| !name.is_empty())?;
        Some((Self(self.0[..slash.unwrap_or(0)].to_vec()), name))
    }

    pub(crate) fn to_path_buf(&self) -> PathBuf {
        OsStr::from_bytes(&self.0).into()
    }
}

impl EntryName {
    /// Decides the meaning of the path of an entry.
    pub(crate) fn parse(path: &[u8]) -> Result<Self, Problem> {
        let path = Path::parse(path)?;
        let Some((parent, name)) = path.split() else { return Ok(Self::Root) };
        // AUFS keeps whole directories of this kind, `.wh..wh.plnk/`.
        let is_aufs = |name: &[u8]| name.starts_with(AUFS) && name != OPAQUE;
        if path.names().any(is_aufs) {
            return Ok(Self::Skipped);
        }
        if parent.names().any(|name| name.starts_with(WHITEOUT)) {
            return Err(Problem::BelowAWhiteout);
        }
        match name.to_bytes() {
            OPAQUE => Ok(Self::Opaque { directory: parent }),
            bytes => match bytes.strip_prefix(WHITEOUT) {
                None => Ok(Self::File { parent, name }),
                Some(b"" | b"." | b"..") => Err(Problem::WhiteoutOfNothing),
                Some(hidden) => {
                    let name = CString::new(hidden).map_err(|_| Problem::NulInName)?;
                    Ok(Self::Whiteout { parent, name })
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    fn path(text: &str) -> Path {
        Path::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn the_name_says_what_an_entry_is() {
        let file = |parent, name: &CStr| EntryName::File { parent: path(parent), name: name.into() };
        let whiteout = |parent, name: &CStr| EntryName::Whiteout { parent: path(parent), name: name.into() };
        for (text, expected) in [
            ("", EntryName::Root),
            ("/", EntryName::Root),
            ("./.", EntryName::Root),
            ("a", file("", c"a")),
            ("./a/./b//c/", file("a/b", c"c")),
            ("/etc/passwd", file("etc", c"passwd")),
            ("...", file("", c"...")),
            (".wh", file("", c".wh")),
            ("a/.wh.b", whiteout("a", c"b")),
            (".wh....", whiteout("", c"...")),
            ("a/b/.wh..wh..opq", EntryName::Opaque { directory: path("a/b") }),
            (".wh..wh..opq", EntryName::Opaque { directory: path("") }),
            ("a/.wh..wh.aufs", EntryName::Skipped),
            (".wh..wh.plnk/12.34", EntryName::Skipped),
            (".wh..wh.plnk/../a", EntryName::Skipped),
        ] {
            match EntryName::parse(text.as_bytes()) {
                Ok(name) => assert_eq!(name, expected, "{text}"),
                Err(problem) => assert!(matches!(problem, Problem::LeadsOut) && text.contains(".."), "{text}"),
            }
        }
    }

    #[test]
    fn a_name_that_cannot_be_kept_is_refused() {
        type Is = fn(&Problem) -> bool;
        let leads_out: Is = |problem| matches!(problem, Problem::LeadsOut);
        let of_nothing: Is = |problem| matches!(problem, Problem::WhiteoutOfNothing);
        let below: Is = |problem| matches!(problem, Problem::BelowAWhiteout);
        let nul: Is = |problem| matches!(problem, Problem::NulInName);
        for (text, is) in [
            ("..", leads_out),
            ("../a", leads_out),
            ("a/../../b", leads_out),
            ("a/..", leads_out),
            (".wh.", of_nothing),
            (".wh..", of_nothing),
            ("a/.wh...", of_nothing),
            (".wh.a/b", below),
            (".wh..wh..opq/b", below),
            ("a\0b", nul),
        ] {
            let problem = EntryName::parse(text.as_bytes()).unwrap_err();
            assert!(is(&problem), "{text}: {problem}");
        }
    }

    #[test]
    fn a_path_is_split_into_its_names() {
        let (parent, name) = path("a/b/c").split().unwrap();
        assert_eq!((parent.as_bytes(), name.as_c_str()), (&b"a/b"[..], c"c"));
        assert_eq!(path("").split(), None);
        assert_eq!(path("a/b").names().collect::<Vec<_>>(), [b"a", b"b"]);
        assert_eq!(path("").names().count(), 0);
    }
}
