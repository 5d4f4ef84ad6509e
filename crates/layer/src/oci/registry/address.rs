//! Addresses of a registry: where a redirect leads, and whether anything may be sent there. Pure.
//!
//! A connection without TLS is refused here before anything is sent, so a login is sent without TLS
//! only where the caller allows it.

use ureq::http::Uri;

use super::PlainHttp;
use super::problem::RegistryProblem;
use crate::oci::reference::is_loopback;

/// Returns the address that `location` means in an answer from `base`.
///
/// # Errors
/// [`RegistryProblem::Redirect`] if it is not an address of HTTP, has a user, leads from TLS to a
/// connection without, or to one that `plain` does not allow.
pub(super) fn resolve(base: &str, location: &str, plain: PlainHttp) -> Result<String, RegistryProblem> {
    let refuse = |reason| RegistryProblem::Redirect { to: location.into(), reason };
    let from: Uri = base.parse().map_err(|_| refuse("from an address that is not valid"))?;
    let (scheme, authority) = origin_of(&from).ok_or_else(|| refuse("from an address that is not valid"))?;
    let joined = if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.split(['?', '#']).next().is_some_and(|path| path.contains("://")) {
        location.to_string()
    } else {
        let dir = from.path().rsplit_once('/').map_or("", |(dir, _)| dir);
        format!("{scheme}://{authority}{dir}/{location}")
    };
    let to: Uri = joined.parse().map_err(|_| refuse("which is not an address"))?;
    let (to_scheme, to_authority) = origin_of(&to).ok_or_else(|| refuse("which is not an address of HTTP"))?;
    if to_authority.contains('@') {
        return Err(refuse("which has a user"));
    }
    if to_scheme != "https" && (scheme == "https" || !may_be_plain(to_authority, plain)) {
        return Err(refuse("which has no TLS"));
    }
    Ok(joined)
}

/// Returns whether two addresses have the same scheme, host and port, so that a login for one may
/// be sent to the other.
pub(super) fn same_origin(one: &str, other: &str) -> bool {
    let origin = |text: &str| {
        let uri: Uri = text.parse().ok()?;
        let (scheme, _) = origin_of(&uri)?;
        let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
        Some((scheme.to_string(), uri.host()?.to_ascii_lowercase(), port))
    };
    match (origin(one), origin(other)) {
        (Some(one), Some(other)) => one == other,
        _ => false,
    }
}

/// Returns whether a connection to `authority`, a host with or without a port, needs no TLS.
pub(super) fn may_be_plain(authority: &str, plain: PlainHttp) -> bool {
    match plain {
        PlainHttp::Loopback => is_loopback(authority),
        PlainHttp::Always => true,
        PlainHttp::Never => false,
    }
}

fn origin_of(uri: &Uri) -> Option<(&str, &str)> {
    let scheme = uri.scheme_str().filter(|scheme| matches!(*scheme, "http" | "https"))?;
    Some((scheme, uri.authority()?.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_resolved_or_refused() {
        for (base, location, expected) in [
            ("https://a/v2/x", "/v2/y?z=1", Ok("https://a/v2/y?z=1")),
            ("https://a:5/v2/x", "y", Ok("https://a:5/v2/y")),
            ("https://a/v2/x", "//b/y", Ok("https://b/y")),
            ("https://a/v2/x", "https://b/y", Ok("https://b/y")),
            ("http://a/v2/x", "https://b/y", Ok("https://b/y")),
            ("http://localhost/v2/x", "http://127.0.0.1:80/y", Ok("http://127.0.0.1:80/y")),
            ("http://localhost/v2/x", "http://b/y", Err("no TLS")),
            ("http://127.0.0.1:5000/v2/x", "//b:5000/y", Err("no TLS")),
            ("https://a/v2/x", "http://b/y", Err("no TLS")),
            ("https://a/v2/x", "http://localhost/y", Err("no TLS")),
            ("https://a/v2/x", "http://a/y", Err("no TLS")),
            ("https://a/v2/x", "file:///etc/passwd", Err("not an address")),
            ("https://a/v2/x", "gopher://b/y", Err("not an address")),
            ("https://a/v2/x", "https://u@b/y", Err("user")),
            ("https://a/v2/x", "https://b/\r\ny", Err("not an address")),
        ] {
            match (resolve(base, location, PlainHttp::Loopback), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{location}"),
                (Err(problem), Err(part)) => assert!(problem.to_string().contains(part), "{location}: {problem}"),
                (found, expected) => panic!("{location}: {found:?} instead of {expected:?}"),
            }
        }
        let to_other_host = |plain| resolve("http://localhost/v2/x", "http://b/y", plain).is_ok();
        assert_eq!([PlainHttp::Always, PlainHttp::Never].map(to_other_host), [true, false]);
        assert!(resolve("https://a/v2/x", "http://a/y", PlainHttp::Always).is_err());
    }

    #[test]
    fn a_login_stays_at_its_origin() {
        for (one, other, expected) in [
            ("https://a/x", "https://a/y", true),
            ("https://a/x", "https://A:443/y", true),
            ("http://a/x", "http://a:80/y", true),
            ("https://a/x", "https://a:444/y", false),
            ("https://a/x", "http://a/y", false),
            ("http://127.0.0.1:1/x", "http://127.0.0.1:2/x", false),
            ("https://a/x", "https://a.b/x", false),
        ] {
            assert_eq!(same_origin(one, other), expected, "{one} {other}");
        }
    }
}
