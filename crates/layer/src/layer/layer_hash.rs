//! Compares a hash in `parent_hashes` or `base_hash` with the name of a layer's directory.
//! `meta.rs` defines these keys.

use std::ffi::OsStr;
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;

use crate::layer::Layer;

/// The number of characters of a hash that name its layer's directory.
const NAME_LENGTH: usize = 12;

/// The minimum number of hexadecimal digits of a hash that counts as a digest: 128 bits.
const DIGEST_LENGTH: usize = 32;

/// The minimum number of digits of a digest that name one layer: 32 bits.
const SHORTEST_PREFIX: usize = 8;

impl Layer {
    /// Returns the text by which the `layer.json` of other layers names this layer: the name of its
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

    /// Returns whether `hash`, from the `parent_hashes` or the `base_hash` of another layer, means
    /// this layer.
    ///
    /// Directories have the first 12 characters of a hash as their names, and `layer.json` contains
    /// whole hashes. So this returns true
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

/// Returns the name of a layer's directory as text: see [`Layer::hash`].
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

/// Returns whether `hash` means the layer whose directory has the name `name`, in the form of
/// [`text`]: see [`Layer::has_hash`].
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
            // The name is the beginning of the hash only because it has 12 characters.
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
            // The name is longer than the hash.
            (digest, "0123456789ab", false),
        ];
        for (name, hash, is_named) in table {
            assert_eq!(Layer::at(format!("store/{name}")).has_hash(hash), is_named, "{name} {hash}");
        }
    }

    #[test]
    fn bytes_of_a_name_that_are_not_utf8_are_escaped() {
        let table: [(&[u8], &str); 7] = [
            (b"5f2e", "5f2e"),
            ("größe\n".as_bytes(), "größe\n"),
            (b"\xff", "/ff"),
            (b"ff", "ff"),
            (b"a\xc3\xa4\xc3b", "a\u{e4}/c3b"),
            // A truncated sequence; an overlong one and a surrogate.
            (b"\xe2\x82", "/e2/82"),
            (b"\xc0\xaf\xed\xa0\x80", "/c0/af/ed/a0/80"),
        ];
        for (name, expected) in table {
            assert_eq!(text(OsStr::from_bytes(name)), expected);
            assert!(Layer::at(OsStr::from_bytes(name)).has_hash(expected));
        }
    }
}
