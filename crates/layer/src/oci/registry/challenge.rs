//! What a registry asks for in `WWW-Authenticate`. Pure; `login.rs` answers.

/// A way to log in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A user and a password with each request.
    Basic,
    /// A token from another server.
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

impl Challenge {
    /// Returns the challenge in the values of the header. Prefers tokens.
    pub(super) fn parse<'a>(values: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let mut found = None;
        for challenge in values.into_iter().flat_map(parse_all) {
            match challenge {
                bearer @ Self::Bearer { .. } => return Some(bearer),
                basic @ Self::Basic => found = Some(basic),
            }
        }
        found
    }
}

/// Parses the challenges of one value: `Bearer realm="…",service="…", Basic realm="…"`.
fn parse_all(value: &str) -> Vec<Challenge> {
    let mut found = Vec::new();
    let mut rest = value.trim_start();
    while !rest.is_empty() {
        let (scheme, after) = rest.split_at(rest.find([' ', ',']).unwrap_or(rest.len()));
        let (parameters, after) = parse_parameters(after);
        let get = |key: &str| {
            let found = parameters.iter().find(|(name, _)| name.eq_ignore_ascii_case(key));
            found.map(|(_, value)| value.clone())
        };
        if scheme.eq_ignore_ascii_case("basic") {
            found.push(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer") {
            if let Some(realm) = get("realm") {
                found.push(Challenge::Bearer { realm, service: get("service"), scope: get("scope") });
            }
        }
        rest = after.trim_start_matches([' ', ',', '\t']);
    }
    found
}

/// Parses `KEY=VALUE, KEY="VALUE"` up to the name of the next scheme. Returns the rest.
fn parse_parameters(mut rest: &str) -> (Vec<(String, String)>, &str) {
    let mut found = Vec::new();
    loop {
        let here = rest.trim_start_matches([' ', ',', '\t']);
        let Some(length) = here.find(['=', ' ', ',']) else { return (found, here) };
        if !here[length..].starts_with('=') {
            return (found, here);
        }
        let key = here[..length].to_string();
        let value = &here[length + 1..];
        let (value, after) = match value.strip_prefix('"') {
            Some(quoted) => unquote(quoted),
            None => {
                let (value, after) = value.split_at(value.find([' ', ',']).unwrap_or(value.len()));
                (value.to_string(), after)
            }
        };
        found.push((key, value));
        rest = after;
    }
}

/// Returns the text up to the closing quote, without escapes, and the rest.
fn unquote(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            character => value.push(character),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer { realm: realm.into(), service: service.map(Into::into), scope: scope.map(Into::into) }
    }

    #[test]
    fn a_header_has_one_challenge_or_several() {
        for (values, expected) in [
            (&["Basic realm=\"x\""][..], Some(Challenge::Basic)),
            (&["basic"], Some(Challenge::Basic)),
            (&["Bearer realm=\"https://a/t\""], Some(bearer("https://a/t", None, None))),
            (
                &["Bearer realm=\"https://a/t\",service=\"s\",scope=\"repository:x:pull,push\""],
                Some(bearer("https://a/t", Some("s"), Some("repository:x:pull,push"))),
            ),
            (&["bearer  realm=a , service = b"], Some(bearer("a", None, None))),
            (&["Basic realm=\"a, Bearer\", Bearer realm=\"b\\\"c\""], Some(bearer("b\"c", None, None))),
            (&["Basic", "Bearer realm=r"], Some(bearer("r", None, None))),
            (&["Bearer service=s"], None),
            (&["Negotiate"], None),
            (&["Bearer realm=\"open"], Some(bearer("open", None, None))),
            (&[""], None),
            (&[], None),
        ] {
            assert_eq!(Challenge::parse(values.iter().copied()), expected, "{values:?}");
        }
    }

    proptest! {
        #[test]
        fn a_header_of_any_text_is_parsed(text in "[Bbasicrel=\", \\\\é]{0,60}") {
            let _ = Challenge::parse([&*text]);
        }
    }
}
