//! SHA-256 digests: computes them of what is read or written, and compares them.

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// A SHA-256 digest. Its text is that of an image: `sha256:` and 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Returns the digest of `bytes`.
    ///
    /// ```
    /// let digest = layer::oci::Digest::of(b"");
    /// assert_eq!(digest.hex(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    /// ```
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Returns the 64 hexadecimal digits, without `sha256:`.
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Returns the name of a layer with this digest: its first 12 digits.
    pub fn layer_name(&self) -> String {
        self.hex()[..12].into()
    }

    /// Returns the chain ID of a stack: that of the layers below it, joined with `self`, the diff
    /// ID of the topmost layer. The chain ID of one layer is its diff ID.
    pub(crate) fn chained(self, below: Option<Self>) -> Self {
        match below {
            None => self,
            Some(below) => Self::of(format!("{below} {self}").as_bytes()),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// The text is not a SHA-256 digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a SHA-256 digest; layered uses no other digests")]
pub struct NotADigest {
    text: String,
}

impl FromStr for Digest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, NotADigest> {
        let parse = || {
            let digits = text.strip_prefix("sha256:")?.as_bytes();
            let is_hex = digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
            if digits.len() != 64 || !is_hex {
                return None;
            }
            let mut bytes = [0; 32];
            for (byte, digits) in bytes.iter_mut().zip(digits.chunks(2)) {
                *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
            }
            Some(Self(bytes))
        };
        parse().ok_or_else(|| NotADigest { text: text.into() })
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Computes the digest and the number of the bytes that pass through it, on their way from a reader
/// or to a writer.
pub(crate) struct Hashing<T> {
    inner: T,
    hasher: Sha256,
    bytes: u64,
}

impl<T> Hashing<T> {
    pub(crate) fn new(inner: T) -> Self {
        Self { inner, hasher: Sha256::new(), bytes: 0 }
    }

    /// Returns the inner value, the digest and the number of bytes.
    pub(crate) fn finish(self) -> (T, Digest, u64) {
        (self.inner, Digest(self.hasher.finalize().into()), self.bytes)
    }

    fn count(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.count(&buffer[..read]);
        Ok(read)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.count(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Counts the bytes that are read, and computes their digest if somebody needs it.
pub(crate) enum Measured<R> {
    Hashed(Hashing<R>),
    Counted { inner: R, bytes: u64 },
}

impl<R> Measured<R> {
    /// Returns the digest if it was computed, and the number of bytes.
    pub(crate) fn finish(self) -> (Option<Digest>, u64) {
        match self {
            Self::Hashed(hashing) => {
                let (_, digest, bytes) = hashing.finish();
                (Some(digest), bytes)
            }
            Self::Counted { bytes, .. } => (None, bytes),
        }
    }
}

impl<R: Read> Read for Measured<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Hashed(hashing) => hashing.read(buffer),
            Self::Counted { inner, bytes } => {
                let read = inner.read(buffer)?;
                *bytes += read as u64;
                Ok(read)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn only_the_form_of_images_is_a_digest() {
        assert_eq!(EMPTY.parse(), Ok(Digest::of(b"")));
        for text in [
            "",
            "sha256:",
            &EMPTY[7..],
            &EMPTY[..70],
            &EMPTY.to_uppercase(),
            &EMPTY.replace("e3", "+3"),
            &EMPTY.replace("e3", "é"),
            "sha256:../../../../etc/passwd",
            &EMPTY.replace("256", "512"),
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_chain_joins_the_digests_as_the_specification_says() {
        let [bottom, top] = [b"a", b"b"].map(|bytes| Digest::of(bytes));
        assert_eq!(bottom.chained(None), bottom);
        assert_eq!(top.chained(Some(bottom)), Digest::of(format!("{bottom} {top}").as_bytes()));
    }

    #[test]
    fn the_digest_is_that_of_the_bytes_that_pass() {
        let mut reader = Hashing::new(&b"some bytes"[..]);
        let mut writer = Hashing::new(Vec::new());
        io::copy(&mut reader, &mut writer).unwrap();
        let (read, written) = (reader.finish(), writer.finish());
        assert_eq!((read.1, read.2), (Digest::of(b"some bytes"), 10));
        assert_eq!((written.0.as_slice(), written.1, written.2), (&b"some bytes"[..], read.1, 10));
    }
}
