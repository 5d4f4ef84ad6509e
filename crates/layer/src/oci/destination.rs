//! How people write the place of an image that an export makes: `oci:DIR:TAG`. Pure;
//! `layout_writer.rs` writes there.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::error::Error;
use super::reference::RegistryImage;
use super::source::Source;

/// The place of an image that [`Export`](super::Export) writes.
///
/// ```
/// use layer::oci::Destination;
///
/// let destination: Destination = "oci:images:hello".parse()?;
/// assert_eq!(destination.to_string(), "oci:images:hello");
/// assert!("oci:images".parse::<Destination>().unwrap_err().to_string().contains("tag"));
/// # Ok::<(), layer::oci::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Destination {
    /// `oci:DIR:TAG`: a directory with an OCI image layout, which is made if it does not exist. An
    /// image of the same tag is replaced, and others stay.
    Layout {
        /// The directory.
        dir: PathBuf,
        /// The tag.
        tag: String,
    },
    /// `oci-archive:FILE:TAG`: a tar archive of a layout. A regular file is replaced. Another file,
    /// such as a FIFO, is written to.
    OciArchive {
        /// The archive.
        file: PathBuf,
        /// The tag.
        tag: String,
    },
    /// `docker://HOST/REPOSITORY:TAG`: an image in a registry. One of the same tag is replaced. To
    /// write it needs the feature `registry`.
    Registry {
        /// The image, with a tag.
        image: RegistryImage,
    },
}

impl Destination {
    /// Returns the directory or file. It is empty for an image in a registry.
    pub fn path(&self) -> &Path {
        match self {
            Self::Layout { dir, .. } => dir,
            Self::OciArchive { file, .. } => file,
            Self::Registry { .. } => Path::new(""),
        }
    }

    /// Returns the tag.
    pub fn tag(&self) -> &str {
        match self {
            Self::Layout { tag, .. } | Self::OciArchive { tag, .. } => tag,
            Self::Registry { image } => image.tag().unwrap_or("latest"),
        }
    }
}

impl FromStr for Destination {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse = |reason| Error::NotAnImage { text: text.into(), reason };
        match text.parse() {
            Ok(Source::Layout { dir, tag: Some(tag) }) => Ok(Self::Layout { dir, tag: check(tag).map_err(refuse)? }),
            Ok(Source::OciArchive { file, tag: Some(tag) }) => {
                Ok(Self::OciArchive { file, tag: check(tag).map_err(refuse)? })
            }
            Ok(Source::Registry { image }) if image.digest().is_some() => {
                Err(refuse("its digest is not known before it is written; leave out what follows the @"))
            }
            Ok(Source::Registry { image }) if image.tag().is_some() => Ok(Self::Registry { image }),
            Ok(Source::Layout { .. } | Source::OciArchive { .. } | Source::Registry { .. }) => {
                Err(refuse("it has no tag; add one, as in :latest"))
            }
            Err(error) if text.starts_with("docker://") => Err(error),
            _ => {
                Err(refuse("an image is written to oci:DIR:TAG, oci-archive:FILE:TAG or docker://HOST/REPOSITORY:TAG"))
            }
        }
    }
}

/// Checks a tag by the grammar of the image specification.
fn check(tag: String) -> Result<String, &'static str> {
    let parts = tag.split(['-', '.', '_', ':', '@', '/', '+']);
    let is_valid =
        parts.into_iter().all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    match is_valid {
        true => Ok(tag),
        false => Err("its tag has characters other than letters, digits and single separators; choose another"),
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transport = match self {
            Self::Layout { .. } => "oci",
            Self::OciArchive { .. } => "oci-archive",
            Self::Registry { image } => return image.fmt(formatter),
        };
        write!(formatter, "{transport}:{}:{}", self.path().display(), self.tag())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_has_a_tag() {
        for text in ["oci:dir:latest", "oci:/a/b:debian:12", "oci-archive:a.tar:a/b:1.2-3_4", "docker://a.b/c:d"] {
            assert_eq!(text.parse::<Destination>().unwrap().to_string(), text);
        }
        for (text, part) in [
            ("oci:dir", "add one"),
            ("oci-archive:a.tar", "add one"),
            ("tar:a.tar", "oci:DIR:TAG"),
            ("-", "oci:DIR:TAG"),
            ("debian", "oci:DIR:TAG"),
            ("docker://a.b/c", "add one"),
            ("docker://a.b/c:d@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "leave out"),
            ("docker://A/b", "repository is not valid"),
            ("oci:dir:a b", "choose another"),
            ("oci:dir:a//b", "choose another"),
            ("oci:dir:é", "choose another"),
        ] {
            let message = text.parse::<Destination>().unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
