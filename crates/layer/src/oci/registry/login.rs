//! Logins: finds those of Podman and Docker, and answers the challenge of a registry.
//! `challenge.rs` parses that.

use std::env;
use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use docker_credential::{CredentialRetrievalError, DockerCredential, get_credential_from_reader};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::Value;

use super::problem::RegistryProblem;
use crate::oci::reference::Repository;

/// The key of Docker Hub in the files of logins.
const HUB_KEY: &str = "https://index.docker.io/v1/";

/// The directory in which Podman keeps the logins of users without a directory of their own.
const SHARED: &str = "/run/containers";

/// A login. Its text never has the secret.
#[derive(Clone)]
pub(super) enum Login {
    Password {
        user: String,
        password: String,
    },
    /// A token from which the token server makes others.
    Identity(String),
}

impl fmt::Debug for Login {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { user, .. } => {
                formatter.debug_struct("Password").field("user", user).finish_non_exhaustive()
            }
            Self::Identity(_) => formatter.write_str("Identity"),
        }
    }
}

impl Login {
    /// Finds the login for a repository in the files of Podman and then of Docker.
    pub(super) fn find(repository: &Repository) -> Result<Option<Self>, RegistryProblem> {
        Self::find_in(files(|name| env::var_os(name).filter(|value| !value.is_empty()).map(Into::into)), repository)
    }

    fn find_in(
        files: impl IntoIterator<Item = PathBuf>,
        repository: &Repository,
    ) -> Result<Option<Self>, RegistryProblem> {
        let failed = |path: &PathBuf, source: Box<dyn std::error::Error + Send + Sync>| RegistryProblem::Login {
            registry: repository.registry().into(),
            source: format!("{}: {source}", crate::display::quoted(path)).into(),
        };
        for path in files {
            let bytes = match fs::read(&path) {
                Ok(bytes) => bytes,
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                    continue;
                }
                // Another user may not enter it, and so has no login there.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied && path.starts_with(SHARED) => continue,
                Err(error) => return Err(failed(&path, error.into())),
            };
            let key = key_in(&bytes, repository).map_err(|error| failed(&path, error.into()))?;
            match get_credential_from_reader(&*bytes, &key) {
                Ok(DockerCredential::UsernamePassword(user, password)) => {
                    return Ok(Some(Self::Password { user, password }));
                }
                Ok(DockerCredential::IdentityToken(token)) => return Ok(Some(Self::Identity(token))),
                Err(CredentialRetrievalError::NoCredentialConfigured) => {}
                // Every helper program says so in these words.
                Err(CredentialRetrievalError::HelperFailure { stdout, stderr, .. })
                    if [&stdout, &stderr].iter().any(|text| text.contains("credentials not found")) => {}
                Err(CredentialRetrievalError::HelperFailure { helper, stdout, stderr }) => {
                    let said = if stderr.trim().is_empty() { stdout } else { stderr };
                    return Err(failed(&path, format!("{helper} has failed: {}", said.trim()).into()));
                }
                Err(error) => return Err(failed(&path, Box::new(error))),
            }
        }
        Ok(None)
    }

    /// Describes the login for messages.
    pub(super) fn who(login: Option<&Self>) -> String {
        match login {
            Some(Self::Password { user, .. }) => format!("the login of {}", crate::display::escaped(user)),
            Some(Self::Identity(_)) => "the login".into(),
            None => "anonymous access".into(),
        }
    }

    /// Returns the header for a user and a password.
    pub(super) fn basic(&self) -> Option<String> {
        match self {
            Self::Password { user, password } => {
                Some(format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}"))))
            }
            Self::Identity(_) => None,
        }
    }

    /// Returns the form with which a token server makes a token from this login.
    pub(super) fn refresh_form(&self, service: Option<&str>, scope: &str) -> Option<String> {
        let Self::Identity(token) = self else { return None };
        let mut parts = vec![("grant_type", "refresh_token"), ("client_id", "layered"), ("scope", scope)];
        parts.extend(service.map(|service| ("service", service)));
        parts.push(("refresh_token", token));
        Some(encoded(&parts))
    }
}

/// Returns the keys and values as a query or a form.
pub(super) fn encoded(parts: &[(&str, &str)]) -> String {
    let encode = |text| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    parts.iter().map(|(key, value)| format!("{key}={}", encode(value))).collect::<Vec<_>>().join("&")
}

/// Returns the files with logins, those that count more first. `variable` has the environment.
fn files(variable: impl Fn(&str) -> Option<PathBuf>) -> Vec<PathBuf> {
    if let Some(file) = variable("REGISTRY_AUTH_FILE") {
        return vec![file];
    }
    let home = variable("HOME");
    let run_time = variable("XDG_RUNTIME_DIR")
        .map(|dir| dir.join("containers"))
        .unwrap_or_else(|| format!("{SHARED}/{}", rustix::process::geteuid().as_raw()).into());
    let config = variable("XDG_CONFIG_HOME").or_else(|| home.as_ref().map(|home| home.join(".config")));
    let docker = variable("DOCKER_CONFIG").or_else(|| home.as_ref().map(|home| home.join(".docker")));
    let mut files = vec![run_time.join("auth.json")];
    files.extend(config.map(|dir| dir.join("containers/auth.json")));
    files.extend(docker.map(|dir| dir.join("config.json")));
    files
}

/// Returns the key under which a file may have the login: that of the repository or of a part of
/// its path, as Podman writes it, else that of the registry.
fn key_in(bytes: &[u8], repository: &Repository) -> serde_json::Result<String> {
    let json: Value = serde_json::from_slice(bytes)?;
    let mut key = format!("{}/{}", repository.registry(), repository.name());
    while key.contains('/') {
        if json["auths"].get(&key).is_some() {
            return Ok(key);
        }
        key.truncate(key.rfind('/').unwrap_or(0));
    }
    let is_hub = key == "docker.io" && json["auths"].get(&key).is_none();
    Ok(if is_hub { HUB_KEY.into() } else { key })
}

/// The answer of a token server.
#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}

/// Returns the header with the token that a token server has answered.
pub(super) fn bearer(answer: &[u8]) -> Result<String, RegistryProblem> {
    let malformed = || RegistryProblem::Answer("its token server gives no token".into());
    let answer: Token = serde_json::from_slice(answer).map_err(|_| malformed())?;
    let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty()).ok_or_else(malformed)?;
    let is_header = token.bytes().all(|byte| byte.is_ascii_graphic());
    if is_header { Ok(format!("Bearer {token}")) } else { Err(malformed()) }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn find(text: &str, repository: &str) -> Result<Option<String>, RegistryProblem> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("auth.json");
        fs::write(&path, text).unwrap();
        let files = [dir.path().join("missing"), path];
        let login = Login::find_in(files, &repository.parse().unwrap())?;
        Ok(login.map(|login| match login {
            Login::Password { user, password } => format!("{user}:{password}"),
            Login::Identity(token) => token,
        }))
    }

    #[test]
    fn the_login_that_fits_best_is_found() {
        let auth = |text: &str| BASE64_STANDARD.encode(text);
        let file = format!(
            r#"{{"auths": {{"a.b": {{"auth": "{}"}}, "a.b/team": {{"auth": "{}"}}, "a.b/team/app": {{"auth": "{}"}},
                "https://c.d/v2/": {{"auth": "{}"}}, "e.f": {{"identitytoken": "token"}},
                "https://index.docker.io/v1/": {{"auth": "{}"}}}}}}"#,
            auth("u:host"),
            auth("u:team"),
            auth("u:app:x"),
            auth("u:url"),
            auth("u:hub")
        );
        for (repository, expected) in [
            ("docker://a.b/x", Some("u:host")),
            ("docker://a.b/team/x", Some("u:team")),
            ("docker://a.b/team/app", Some("u:app:x")),
            ("docker://a.b/teams/app", Some("u:host")),
            ("docker://c.d/x", Some("u:url")),
            ("docker://e.f/x", Some("token")),
            ("docker://debian", Some("u:hub")),
            ("docker://g.h/x", None),
            ("docker://a.b:5000/x", None),
        ] {
            assert_eq!(find(&file, repository).unwrap().as_deref(), expected, "{repository}");
        }
        assert_eq!(find("{}", "docker://a.b/x").unwrap(), None);
        for broken in ["", "{", r#"{"auths": {"a.b": {"auth": "?"}}}"#] {
            let error = find(broken, "docker://a.b/x").unwrap_err();
            assert!(matches!(error, RegistryProblem::Login { .. }), "{error}");
        }
        let helper = r#"{"credHelpers": {"a.b": "layered-test-missing"}}"#;
        assert!(matches!(find(helper, "docker://a.b/x"), Err(RegistryProblem::Login { .. })));
    }

    #[test]
    fn the_files_are_those_of_podman_and_docker() {
        let variables = |set: &'static [(&str, &str)]| {
            move |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| PathBuf::from(value))
        };
        let all = variables(&[("XDG_RUNTIME_DIR", "/r"), ("HOME", "/h")]);
        let expected = ["/r/containers/auth.json", "/h/.config/containers/auth.json", "/h/.docker/config.json"];
        assert_eq!(files(all), expected.map(PathBuf::from));
        let moved = variables(&[("XDG_RUNTIME_DIR", "/r"), ("XDG_CONFIG_HOME", "/x"), ("DOCKER_CONFIG", "/d")]);
        let expected = ["/r/containers/auth.json", "/x/containers/auth.json", "/d/config.json"];
        assert_eq!(files(moved), expected.map(PathBuf::from));
        assert_eq!(files(variables(&[("REGISTRY_AUTH_FILE", "/f"), ("HOME", "/h")])), [Path::new("/f")]);
        assert!(files(variables(&[]))[0].starts_with(SHARED));
    }

    #[test]
    fn no_secret_is_in_a_text() {
        let login = Login::Password { user: "u".into(), password: "secret".into() };
        assert_eq!(login.basic().as_deref(), Some("Basic dTpzZWNyZXQ="));
        assert_eq!(login.refresh_form(None, "s"), None);
        let identity = Login::Identity("secret".into());
        assert_eq!(identity.basic(), None);
        assert!(identity.refresh_form(Some("a b"), "x:y").unwrap().contains("scope=x%3Ay&service=a%20b"));
        for login in [login, identity] {
            assert!(!format!("{login:?} {}", Login::who(Some(&login))).contains("secret"));
        }
        for (answer, expected) in [
            (r#"{"token": "a"}"#, Some("Bearer a")),
            (r#"{"access_token": "b", "expires_in": 9}"#, Some("Bearer b")),
            (r#"{"token": ""}"#, None),
            (r#"{"token": "a\r\nX: y"}"#, None),
            ("{}", None),
            ("", None),
        ] {
            assert_eq!(bearer(answer.as_bytes()).ok().as_deref(), expected, "{answer}");
        }
    }
}
