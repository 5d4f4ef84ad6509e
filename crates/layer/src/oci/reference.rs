//! How people write the place of an image or of layers in a registry: `docker://HOST/REPOSITORY`.
//! Pure; `registry` talks to the registry.

use std::fmt;
use std::str::FromStr;

use super::digest::Digest;
use super::error::Error;

/// The registry and the name of Docker Hub's images.
const HUB: &str = "docker.io";
const HUB_API: &str = "registry-1.docker.io";

/// The longest name of a repository with its registry, and of a tag, in bytes.
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// A repository in a registry: `docker://HOST[:PORT]/REPOSITORY`.
///
/// ```
/// use layer::oci::Repository;
///
/// let farm: Repository = "docker://registry.example:5000/team/farm".parse()?;
/// assert_eq!((farm.registry(), farm.name()), ("registry.example:5000", "team/farm"));
/// assert!("docker://registry.example/farm:tag".parse::<Repository>().is_err());
/// # Ok::<(), layer::oci::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Repository {
    registry: String,
    name: String,
}

impl Repository {
    /// Returns the host of the registry, with the port if it has one.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Returns the name of the repository in the registry.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the host and port to connect to.
    #[cfg(feature = "registry")]
    pub(crate) fn host(&self) -> &str {
        if self.registry == HUB { HUB_API } else { &self.registry }
    }

    /// Returns whether the registry is on this machine, so that nobody can listen.
    #[cfg(feature = "registry")]
    pub(crate) fn is_loopback(&self) -> bool {
        is_loopback(&self.registry)
    }

    /// Returns the image of the layer `name`.
    #[cfg(feature = "registry")]
    pub(crate) fn image(&self, name: &str) -> RegistryImage {
        RegistryImage { repository: self.clone(), tag: Some(name.into()), digest: None }
    }
}

/// Returns whether `authority`, a host with or without a port, is this machine.
#[cfg(any(feature = "registry", test))]
pub(crate) fn is_loopback(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// An image in a registry: `docker://HOST[:PORT]/REPOSITORY[:TAG][@DIGEST]`. As for Docker, an
/// image without a host is one of Docker Hub.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RegistryImage {
    pub(crate) repository: Repository,
    pub(crate) tag: Option<String>,
    pub(crate) digest: Option<Digest>,
}

impl RegistryImage {
    /// Returns the repository.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Returns the tag.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Returns the digest of the manifest, if the image is pinned.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Returns the last part of the address of the manifest: the digest, else the tag, else
    /// `latest`.
    #[cfg(feature = "registry")]
    pub(crate) fn manifest(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".into(),
        }
    }
}

impl FromStr for Repository {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let image: RegistryImage = text.parse()?;
        match image {
            RegistryImage { repository, tag: None, digest: None } => Ok(repository),
            _ => Err(Error::NotAnImage {
                text: text.into(),
                reason: "it has a tag or a digest; write the repository of the layers, docker://HOST/REPOSITORY",
            }),
        }
    }
}

impl FromStr for RegistryImage {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse = |reason| Error::NotAnImage { text: text.into(), reason };
        let rest = text.strip_prefix("docker://").ok_or_else(|| refuse("write docker://HOST/REPOSITORY"))?;
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => {
                let parsed = digest.parse();
                (rest, Some(parsed.map_err(|_| refuse("what follows the @ is not a SHA-256 digest"))?))
            }
            None => (rest, None),
        };
        // The port of a host is before the first slash, a tag is after the last one.
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') && path.contains('/') => (path, Some(tag)),
            Some((path, tag)) if !rest.contains('/') => (path, Some(tag)),
            _ => (rest, None),
        };
        let is_host = |host: &str| host.contains(['.', ':']) || host == "localhost";
        let (registry, name) = match path.split_once('/') {
            Some((host, name)) if is_host(host) => (host, name.to_string()),
            Some(_) => (HUB, path.to_string()),
            None if is_host(path) => return Err(refuse("it has no repository; write docker://HOST/REPOSITORY")),
            None => (HUB, format!("library/{path}")),
        };
        let registry = if matches!(registry, "index.docker.io" | HUB_API) { HUB } else { registry };
        if !is_authority(registry) {
            return Err(refuse("its host is not valid; write docker://HOST/REPOSITORY"));
        }
        if !is_name(&name) || registry.len() + name.len() > MAX_NAME {
            return Err(refuse(
                "its repository is not valid; one has lower-case letters, digits and single separators, as in team/farm",
            ));
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(refuse("its tag is not valid; one has letters, digits, dots, dashes and underscores"));
        }
        let repository = Repository { registry: registry.into(), name };
        Ok(Self { repository, tag: tag.map(Into::into), digest })
    }
}

/// Returns whether a registry can have the tag.
pub(crate) fn is_tag(tag: &str) -> bool {
    let first = tag.bytes().next();
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    first.is_some_and(is_word)
        && tag.len() <= MAX_TAG
        && tag.bytes().all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'))
}

/// Returns whether `text` is a host with or without a port.
fn is_authority(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) if host.parse::<std::net::Ipv6Addr>().is_ok() => ("v6", port),
        Some(_) => return false,
        None => match text.find(':') {
            Some(colon) => text.split_at(colon),
            None => (text, ""),
        },
    };
    let is_host = !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    is_host && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
}

/// Returns whether a registry can have a repository of this name.
fn is_name(name: &str) -> bool {
    let is_part = |part: &str| {
        let is_separator = |byte: u8| b"._-".contains(&byte);
        let bytes = part.as_bytes();
        let ends = [bytes.first(), bytes.last()];
        ends.iter().all(|end| end.is_some_and(|end| !is_separator(*end)))
            && bytes.iter().all(|&byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || is_separator(byte))
            && !part.contains("..")
    };
    name.split('/').all(is_part)
}

impl fmt::Display for Repository {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "docker://{}/{}", self.registry, self.name)
    }
}

impl fmt::Display for RegistryImage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.repository.fmt(formatter)?;
        self.tag.as_ref().map_or(Ok(()), |tag| write!(formatter, ":{tag}"))?;
        self.digest.as_ref().map_or(Ok(()), |digest| write!(formatter, "@{digest}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_a_host_a_repository_a_tag_and_a_digest() {
        let digest = Digest::of(b"");
        let pinned = format!("docker://a.b/c:t@{digest}");
        for (text, registry, name, tag, pin) in [
            ("docker://debian", "docker.io", "library/debian", None, None),
            ("docker://debian:12", "docker.io", "library/debian", Some("12"), None),
            ("docker://team/app:v1", "docker.io", "team/app", Some("v1"), None),
            ("docker://docker.io/library/debian", "docker.io", "library/debian", None, None),
            ("docker://registry-1.docker.io/a/b", "docker.io", "a/b", None, None),
            ("docker://localhost/a", "localhost", "a", None, None),
            ("docker://localhost:5000/a/b_c/d-e:1.2-x", "localhost:5000", "a/b_c/d-e", Some("1.2-x"), None),
            ("docker://127.0.0.1:5000/a", "127.0.0.1:5000", "a", None, None),
            ("docker://[::1]:5000/a", "[::1]:5000", "a", None, None),
            (&*pinned, "a.b", "c", Some("t"), Some(digest)),
        ] {
            let image: RegistryImage = text.parse().unwrap();
            let found = (image.repository().registry(), image.repository().name(), image.tag(), image.digest());
            assert_eq!(found, (registry, name, tag, pin), "{text}");
            assert_eq!(image.to_string().parse::<RegistryImage>().unwrap(), image);
        }
        for text in [
            "docker://",
            "docker:///a",
            "docker://a.b",
            "docker://a.b/",
            "docker://a.b/C",
            "docker://a.b/../c",
            "docker://a.b/c/../d",
            "docker://a.b/c//d",
            "docker://a.b/.c",
            "docker://a.b/c:",
            "docker://a.b/c:-t",
            "docker://a.b/c:t/u",
            "docker://a.b:x/c",
            "docker://a.b:99999/c",
            "docker://u:p@a.b/c",
            "docker://[::1/a",
            "docker://a.b/c@sha256:1",
            "docker://a.b/c?d",
            "docker://a.b/c#d",
            "docker://a b/c",
            "docker://a.b/c\r\n",
            "oci:a",
        ] {
            assert!(matches!(text.parse::<RegistryImage>(), Err(Error::NotAnImage { .. })), "{text}");
        }
        for text in ["docker://a.b/c:t", &*pinned] {
            assert!(text.parse::<Repository>().unwrap_err().to_string().contains("tag"), "{text}");
        }
    }

    #[test]
    fn only_this_machine_is_loopback() {
        for (authority, expected) in [
            ("localhost", true),
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("127.9.9.9", true),
            ("[::1]:5000", true),
            ("localhost.example", false),
            ("127.0.0.1.example:80", false),
            ("10.0.0.1:5000", false),
            ("[::2]", false),
            ("", false),
        ] {
            assert_eq!(is_loopback(authority), expected, "{authority}");
        }
    }

    #[test]
    fn a_tag_has_a_grammar() {
        for (tag, expected) in [("a", true), ("_", true), ("0a.b-c_d", true), ("", false), (".a", false), ("-a", false)]
        {
            assert_eq!(is_tag(tag), expected, "{tag}");
        }
        assert!(is_tag(&"a".repeat(MAX_TAG)) && !is_tag(&"a".repeat(MAX_TAG + 1)));
        for byte in ['/', ':', '@', '%', ' ', '\n', '\0', 'é'] {
            assert!(!is_tag(&format!("a{byte}")), "{byte:?}");
        }
    }
}
