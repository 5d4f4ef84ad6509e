//! Chooses one manifest of an index, by its tag and its platform. Pure; `image.rs` reads the index.

use oci_spec::image::Descriptor;

use super::error::{Error, Result};
use super::files::Files;
use super::image::REF_NAME;
use super::source::Platform;

/// No manifest, or more than one, is the one that was asked for.
#[derive(Debug)]
pub(crate) struct NoChoice {
    pub(crate) wanted: String,
    pub(crate) available: Vec<String>,
}

impl NoChoice {
    pub(crate) fn in_image(self, files: &Files) -> Error {
        Error::NoSuchImage { path: files.path().into(), wanted: self.wanted, available: self.available }
    }
}

/// Describes what was asked for.
pub(crate) fn wanted(tag: Option<&str>, platform: Option<&Platform>) -> String {
    match (tag, platform) {
        (Some(tag), None) => format!("with the tag {tag}"),
        (Some(tag), Some(platform)) => format!("with the tag {tag} for {platform}"),
        (None, Some(platform)) => format!("for {platform}"),
        (None, None) => "to choose without a tag or a platform".into(),
    }
}

/// Chooses one of the manifests of an index: the only one with the tag, or of those the only one
/// for the platform.
pub(crate) fn choose(
    manifests: &[Descriptor],
    tag: Option<&str>,
    platform: Option<&Platform>,
) -> Result<Descriptor, NoChoice> {
    let tag_of = |manifest: &Descriptor| manifest.annotations().as_ref().and_then(|notes| notes.get(REF_NAME).cloned());
    let platform_of = |manifest: &Descriptor| {
        let found = manifest.platform().as_ref()?;
        let (os, architecture) = (found.os().to_string(), found.architecture().to_string());
        Some(Platform { os, architecture, variant: found.variant().clone() })
    };
    let tagged: Vec<_> =
        manifests.iter().filter(|manifest| tag.is_none() || tag_of(manifest).as_deref() == tag).collect();
    let host = Platform::host();
    let fits = |manifest: &&Descriptor| match (platform_of(manifest), platform) {
        (Some(has), Some(platform)) => matches(platform, &has.os, &has.architecture, has.variant.as_deref()),
        (Some(has), None) => tagged.len() == 1 || matches(&host, &has.os, &has.architecture, None),
        // The configuration of the image says what it is for.
        (None, _) => true,
    };
    let fitting: Vec<_> = tagged.iter().copied().filter(|manifest| fits(manifest)).collect();
    match *fitting {
        [manifest] => Ok(manifest.clone()),
        // The same manifest can have several tags.
        [first, ref rest @ ..] if rest.iter().all(|other| other.digest() == first.digest()) => Ok(first.clone()),
        _ => {
            let describe = |manifest: &Descriptor| {
                let parts = [tag_of(manifest), platform_of(manifest).map(|platform| platform.to_string())];
                let parts: Vec<_> = parts.into_iter().flatten().collect();
                if parts.is_empty() { manifest.digest().to_string() } else { parts.join(" for ") }
            };
            Err(NoChoice { wanted: wanted(tag, platform), available: manifests.iter().map(describe).collect() })
        }
    }
}

/// Returns whether an image for `os` and `architecture` fits.
pub(crate) fn matches(platform: &Platform, os: &str, architecture: &str, variant: Option<&str>) -> bool {
    let same_variant = platform.variant.is_none() || platform.variant.as_deref() == variant;
    platform.os == os && platform.architecture == architecture && same_variant
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::digest::Digest;

    fn manifests(list: &[(&str, Option<&str>, Option<&str>)]) -> Vec<Descriptor> {
        let describe = |&(name, tag, platform): &(&str, Option<&str>, Option<&str>)| {
            let digest = Digest::of(name.as_bytes()).to_string();
            let mut json = serde_json::json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 1,
            });
            if let Some(tag) = tag {
                json["annotations"] = serde_json::json!({ REF_NAME: tag });
            }
            if let Some((os, architecture)) = platform.and_then(|platform| platform.split_once('/')) {
                json["platform"] = serde_json::json!({"os": os, "architecture": architecture});
            }
            serde_json::from_value(json).unwrap()
        };
        list.iter().map(describe).collect()
    }

    #[test]
    fn the_tag_and_the_platform_choose_one_manifest() {
        let host = Platform::host().to_string();
        let one = manifests(&[("a", Some("12"), None)]);
        let two = manifests(&[("a", Some("12"), None), ("b", Some("13"), None)]);
        let same = manifests(&[("a", Some("12"), None), ("a", Some("latest"), None)]);
        let platforms = manifests(&[("a", None, Some(&host)), ("b", None, Some("linux/s390x"))]);
        let foreign = manifests(&[("a", None, Some("linux/s390x"))]);
        type Case<'a> = (&'a [Descriptor], Option<&'a str>, Option<&'a str>, Result<&'a str, &'a str>);
        let cases: [Case<'_>; 12] = [
            (&one, None, None, Ok("a")),
            (&one, Some("12"), None, Ok("a")),
            (&one, Some("13"), None, Err("12")),
            (&two, Some("13"), None, Ok("b")),
            (&two, None, None, Err("12 13")),
            (&same, None, None, Ok("a")),
            (&platforms, None, None, Ok("a")),
            (&platforms, None, Some("linux/s390x"), Ok("b")),
            (&platforms, None, Some("linux/riscv64"), Err("s390x")),
            (&foreign, None, None, Ok("a")),
            (&foreign, None, Some("linux/riscv64"), Err("s390x")),
            (&[], None, None, Err("")),
        ];
        for (manifests, tag, platform, expected) in cases {
            let platform = platform.map(|platform| platform.parse().unwrap());
            match (choose(manifests, tag, platform.as_ref()), expected) {
                (Ok(chosen), Ok(name)) => {
                    assert_eq!(chosen.digest().as_ref(), Digest::of(name.as_bytes()).to_string());
                }
                (Err(none), Err(parts)) => {
                    let available = none.available.join(" ");
                    assert!(parts.split(' ').all(|part| available.contains(part)), "{available}");
                }
                (found, expected) => panic!("{tag:?} {platform:?}: {found:?} instead of {expected:?}"),
            }
        }
    }
}
