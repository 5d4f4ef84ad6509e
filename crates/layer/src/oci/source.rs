//! How people write the place of an image: `oci:DIR:TAG` and the like. Pure; `image.rs` opens it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::error::Error;
use super::reference::RegistryImage;

/// The place of an image, as [`Import`](super::Import) reads it.
///
/// ```
/// use layer::oci::Source;
///
/// let source: Source = "oci:images/debian:12".parse()?;
/// assert_eq!(source, Source::Layout { dir: "images/debian".into(), tag: Some("12".into()) });
/// assert!(matches!("docker://debian:12".parse()?, Source::Registry { .. }));
/// # Ok::<(), layer::oci::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Source {
    /// `oci:DIR[:TAG]`: a directory with an OCI image layout.
    Layout {
        /// The directory.
        dir: PathBuf,
        /// The tag; needed if the layout has several images.
        tag: Option<String>,
    },
    /// `oci-archive:FILE[:TAG]`: a tar archive of an OCI image layout.
    OciArchive {
        /// The archive.
        file: PathBuf,
        /// The tag; needed if the archive has several images.
        tag: Option<String>,
    },
    /// `docker-archive:FILE[:TAG]`: an archive of `docker save`.
    DockerArchive {
        /// The archive.
        file: PathBuf,
        /// The name and tag of an image; needed if the archive has several.
        tag: Option<String>,
    },
    /// `tar:FILE`: an archive of a root file system, plain or compressed with gzip or zstd.
    Tar {
        /// The archive.
        file: PathBuf,
    },
    /// `-`: such an archive from standard input.
    Stdin,
    /// `docker://HOST/REPOSITORY[:TAG][@DIGEST]`: an image in a registry. To read it needs the
    /// feature `registry`.
    Registry {
        /// The image.
        image: RegistryImage,
    },
}

/// The forms in which an image can be written, for messages.
const FORMS: &str = "write oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:TAG], docker://HOST/REPOSITORY[:TAG], tar:FILE, or - for a tar archive on standard input";

impl Source {
    /// Returns the file or directory; `-` for standard input, and an empty path for an image in a
    /// registry.
    pub fn path(&self) -> &Path {
        match self {
            Self::Layout { dir, .. } => dir,
            Self::OciArchive { file, .. } | Self::DockerArchive { file, .. } | Self::Tar { file } => file,
            Self::Stdin => Path::new("-"),
            Self::Registry { .. } => Path::new(""),
        }
    }

    /// Returns the same place by an absolute path, so that it can be found from another directory.
    pub(crate) fn absolute(&self) -> Self {
        let mut source = self.clone();
        match &mut source {
            Self::Layout { dir: path, .. }
            | Self::OciArchive { file: path, .. }
            | Self::DockerArchive { file: path, .. }
            | Self::Tar { file: path } => {
                if let Ok(absolute) = std::path::absolute(&*path) {
                    *path = absolute;
                }
            }
            Self::Stdin | Self::Registry { .. } => {}
        }
        source
    }
}

impl FromStr for Source {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse = |reason| Error::NotAnImage { text: text.into(), reason };
        if text == "-" {
            return Ok(Self::Stdin);
        }
        let Some((transport, rest)) = text.split_once(':') else { return Err(refuse(FORMS)) };
        if transport == "docker" && rest.starts_with("//") {
            return Ok(Self::Registry { image: text.parse()? });
        }
        // As for skopeo, the path ends at the first colon, because a tag may have more of them.
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) if transport != "tar" => (path, Some(tag.to_string())),
            _ => (rest, None),
        };
        if path.is_empty() {
            return Err(refuse("it has no path; give one after the colon"));
        }
        if tag.as_deref() == Some("") {
            return Err(refuse("its tag is empty; leave out the last colon, or write a tag"));
        }
        let path = PathBuf::from(path);
        match transport {
            "oci" => Ok(Self::Layout { dir: path, tag }),
            "oci-archive" => Ok(Self::OciArchive { file: path, tag }),
            "docker-archive" => Ok(Self::DockerArchive { file: path, tag }),
            "tar" => Ok(Self::Tar { file: path }),
            _ => Err(refuse(FORMS)),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (transport, tag) = match self {
            Self::Layout { tag, .. } => ("oci", tag.as_deref()),
            Self::OciArchive { tag, .. } => ("oci-archive", tag.as_deref()),
            Self::DockerArchive { tag, .. } => ("docker-archive", tag.as_deref()),
            Self::Tar { .. } => ("tar", None),
            Self::Stdin => return formatter.write_str("-"),
            Self::Registry { image } => return image.fmt(formatter),
        };
        write!(formatter, "{transport}:{}", self.path().display())?;
        tag.map_or(Ok(()), |tag| write!(formatter, ":{tag}"))
    }
}

/// An operating system and an architecture, by the names of Go (`linux/amd64`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Platform {
    /// The operating system: `linux`.
    pub os: String,
    /// The architecture, such as `amd64` or `arm64`.
    pub architecture: String,
    /// The variant of the architecture, such as `v8`. Without one, any variant matches.
    pub variant: Option<String>,
}

impl Platform {
    /// Returns the platform of this machine.
    pub fn host() -> Self {
        let architecture = go_name(std::env::consts::ARCH, cfg!(target_endian = "little").then_some("le"));
        Self { os: "linux".into(), architecture, variant: None }
    }
}

/// Returns the name of Rust's `architecture` in Go, which images use. `suffix` is that of a
/// little-endian machine; Rust has one name for both byte orders where Go has two.
fn go_name(architecture: &str, suffix: Option<&str>) -> String {
    match architecture {
        "x86_64" => "amd64".into(),
        "x86" => "386".into(),
        "aarch64" => "arm64".into(),
        "loongarch64" => "loong64".into(),
        "powerpc64" => format!("ppc64{}", suffix.unwrap_or_default()),
        // arm, riscv64 and s390x have the same name in both.
        other => other.into(),
    }
}

impl FromStr for Platform {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parts: Vec<_> = text.split('/').collect();
        let (os, architecture, variant) = match *parts {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant)),
            _ => ("", "", None),
        };
        if os.is_empty() || architecture.is_empty() || variant == Some("") {
            return Err(Error::NotAnImage { text: text.into(), reason: "a platform is written as in linux/amd64" });
        }
        Ok(Self { os: os.into(), architecture: architecture.into(), variant: variant.map(Into::into) })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(formatter, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architectures_have_their_names_in_go() {
        for (rust, suffix, go) in [
            ("x86_64", Some("le"), "amd64"),
            ("x86", Some("le"), "386"),
            ("aarch64", Some("le"), "arm64"),
            ("arm", Some("le"), "arm"),
            ("powerpc64", Some("le"), "ppc64le"),
            ("powerpc64", None, "ppc64"),
            ("s390x", None, "s390x"),
            ("riscv64", Some("le"), "riscv64"),
            ("loongarch64", Some("le"), "loong64"),
        ] {
            assert_eq!(go_name(rust, suffix), go, "{rust}");
        }
    }

    #[test]
    fn an_image_is_written_as_for_skopeo() {
        let tag = |tag: &str| Some(tag.to_string());
        for (text, expected) in [
            ("-", Source::Stdin),
            ("oci:dir", Source::Layout { dir: "dir".into(), tag: None }),
            ("oci:/a/dir:12", Source::Layout { dir: "/a/dir".into(), tag: tag("12") }),
            ("oci:dir:a/b:12", Source::Layout { dir: "dir".into(), tag: tag("a/b:12") }),
            ("oci-archive:a.tar:x", Source::OciArchive { file: "a.tar".into(), tag: tag("x") }),
            ("docker-archive:a.tar", Source::DockerArchive { file: "a.tar".into(), tag: None }),
            ("tar:a:b.tar", Source::Tar { file: "a:b.tar".into() }),
            ("docker://a.b/c:d", Source::Registry { image: "docker://a.b/c:d".parse().unwrap() }),
        ] {
            let source: Source = text.parse().unwrap();
            assert_eq!(source, expected, "{text}");
            assert_eq!(source.to_string(), text);
        }
        for (text, part) in [
            ("", "write oci:DIR"),
            ("debian", "write oci:DIR"),
            ("dir:a", "write oci:DIR"),
            ("docker:debian", "write oci:DIR"),
            ("oci:", "has no path"),
            ("oci::12", "has no path"),
            ("oci:dir:", "tag is empty"),
            ("docker://A/b", "repository is not valid"),
        ] {
            let message = text.parse::<Source>().unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn a_platform_has_two_or_three_parts() {
        let platform: Platform = "linux/arm64/v8".parse().unwrap();
        assert_eq!(
            (&*platform.os, &*platform.architecture, platform.variant.as_deref()),
            ("linux", "arm64", Some("v8"))
        );
        assert_eq!(platform.to_string(), "linux/arm64/v8");
        assert_eq!("linux/amd64".parse::<Platform>().unwrap().to_string(), "linux/amd64");
        for text in ["", "linux", "/", "linux/", "/amd64", "a/b/", "a/b/c/d"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }
}
