//! How a hash in `parent_hashes` or `base_hash` and the name of a layer's directory compare.
//! `meta.rs` has these keys.

use std::ffi::OsStr;
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;

use crate::layer::Layer;

/// Characters of a hash that name its layer's directory.
const NAME_LENGTH: usize = 12;

/// The fewest hexadecimal digits of anything that is a digest beyond doubt: 128 bits.
const DIGEST_LENGTH: usize = 32;

/// The shortest beginning of a digest that names one layer: 32 bits.
const SHORTEST_PREFIX: usize = 8;

impl Layer {
    /// The text by which the `layer.json` of other layers knows this layer: the name of its
    /// directory.
    ///
    /// JSON has no text for a name that is not UTF-8. Each byte that is not part of valid UTF-8
    /// becomes a slash and two lower-case hexadecimal digits. No file name has a slash, so two
    /// names never have the same text.
    ///
    /// ```
    /// use std::os::unix::ffi::OsStrExt;
    ///
    /// assert_eq!(layer::Layer::at("store/5f2e").hash(), "5f2e");
    /// let name = std::ffi::OsStr::from_bytes(b"caf\xe9");
    /// assert_eq!(layer::Layer::at(name).hash(), "caf/e9");
    /// ```
    pub fn hash(&self) -> String {
        text(self.name())
    }

    /// Whether `hash`, from the `parent_hashes` or the `base_hash` of another layer, means this
    /// layer.
    ///
    /// Directories are named by the first 12 characters of a hash, and `layer.json` has whole
    /// hashes. So this is true
    ///
    /// - if `hash` is the [text](Self::hash) of the name,
    /// - if the name is the first 12 characters of `hash`,
    /// - for stores that cut hashes elsewhere: if `hash` is a digest, which is at least 32
    ///   hexadecimal digits and nothing else, and the name is the first 8 or more of them.
    ///
    /// Other prefixes mean nothing: `debian` is not the layer that `debian-12` means.
    pub fn has_hash(&self, hash: &str) -> bool {
        is_named(&self.hash(), hash)
    }
}

/// The name of a layer's directory as text.
pub(crate) fn text(name: &OsStr) -> String {
    let mut text = String::new();
    for chunk in name.as_bytes().utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            write!(text, "/{byte:02x}").expect("a string takes all");
        }
    }
    text
}

/// Whether the layer whose directory has the name `name`, as [`text`], is the one that `hash`
/// means: [`Layer::has_hash`].
pub(crate) fn is_named(name: &str, hash: &str) -> bool {
    let Some(rest) = hash.strip_prefix(name) else { return false };
    rest.is_empty()
        || name.chars().count() == NAME_LENGTH
        || (name.len() >= SHORTEST_PREFIX
            && hash.len() >= DIGEST_LENGTH
            && hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_hash_or_its_beginning() {
        let digest = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        let table = [
            ("debian", "debian", true),
            (digest, digest, true),
            ("0123456789ab", digest, true),
            // Nothing but the length says that it is one.
            ("sha256:01234", "sha256:0123456789abcdef", true),
            ("d\u{e9}bian-12-am", "d\u{e9}bian-12-amd64", true),
            ("01234567", digest, true),
            ("0123456789abcdef", digest, true),
            ("0123456", digest, false),
            ("0", digest, false),
            ("", digest, false),
            ("0123456789ac", digest, false),
            ("0123456789AB", digest, false),
            ("a", "abc", false),
            ("debian", "debian-12", false),
            ("debian-bookworm", "debian-bookworm-slim", false),
            ("0123456789abcdef", "0123456789abcdef012", false),
            // The other way round.
            (digest, "0123456789ab", false),
        ];
        for (name, hash, is_named) in table {
            assert_eq!(Layer::at(format!("store/{name}")).has_hash(hash), is_named, "{name} {hash}");
        }
    }

    #[test]
    fn every_name_has_a_text_of_its_own() {
        let table: [(&[u8], &str); 7] = [
            (b"5f2e", "5f2e"),
            ("größe\n".as_bytes(), "größe\n"),
            (b"\xff", "/ff"),
            (b"ff", "ff"),
            (b"a\xc3\xa4\xc3b", "a\u{e4}/c3b"),
            // What is cut off, what is too long for its character, a surrogate.
            (b"\xe2\x82", "/e2/82"),
            (b"\xc0\xaf\xed\xa0\x80", "/c0/af/ed/a0/80"),
        ];
        for (name, expected) in table {
            assert_eq!(text(OsStr::from_bytes(name)), expected);
            assert!(Layer::at(OsStr::from_bytes(name)).has_hash(expected));
        }
    }
}
