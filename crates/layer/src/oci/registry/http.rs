//! One request to a registry: its login, its redirects and its repetition.

use std::io::Read;
use std::sync::PoisonError;
use std::time::Duration;

use ureq::http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE,
};
use ureq::http::{self, HeaderName, Method, Response};
use ureq::{Body, SendBody};

use super::address::{resolve, same_origin};
use super::challenge::Challenge;
use super::login::{Login, bearer, encoded};
use super::problem::{RegistryProblem, of_io};
use super::{Access, Registry};

/// The most redirects of one request.
const MAX_REDIRECTS: usize = 5;

/// The largest error or token that is read, in bytes.
const MAX_MESSAGE_BYTES: u64 = 64 * 1024;
const MAX_TOKEN_BYTES: u64 = 1 << 20;

/// The longest message of a registry that is shown, in characters.
const MAX_SHOWN: usize = 300;

/// The first pause before a request is repeated, the longest, and the longest that a registry can
/// ask for.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_ASKED: Duration = Duration::from_secs(60);

/// The content of a request, which can be sent twice.
pub(crate) trait Content {
    /// Returns the number of bytes.
    fn size(&self) -> u64;
    /// Returns a reader of all of them.
    fn reader(&self) -> Box<dyn Read + '_>;
}

impl Content for Vec<u8> {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn reader(&self) -> Box<dyn Read + '_> {
        Box::new(self.as_slice())
    }
}

/// A request, which can be sent several times.
pub(super) struct Request<'a> {
    pub(super) method: Method,
    pub(super) url: String,
    pub(super) access: Access,
    pub(super) headers: Vec<(HeaderName, String)>,
    pub(super) content: Option<&'a dyn Content>,
}

impl<'a> Request<'a> {
    pub(super) fn new(method: Method, url: impl Into<String>, access: Access) -> Self {
        Self { method, url: url.into(), access, headers: Vec::new(), content: None }
    }

    pub(super) fn accept(mut self, types: &[&str]) -> Self {
        self.headers.push((ACCEPT, types.join(", ")));
        self
    }

    pub(super) fn header(mut self, name: HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn content(mut self, media_type: &str, content: &'a dyn Content) -> Self {
        self.headers.push((CONTENT_TYPE, media_type.into()));
        self.content = Some(content);
        self
    }
}

impl Registry {
    /// Returns the address of a part of the repository.
    pub(super) fn url(&self, part: &str) -> String {
        format!("{}/v2/{}/{part}", self.origin, self.repository.name())
    }

    /// Calls `attempt` until it succeeds, or fails in a way that a repetition does not change, or
    /// was repeated often enough.
    pub(super) fn retrying<T>(
        &self,
        mut attempt: impl FnMut() -> Result<T, RegistryProblem>,
    ) -> Result<T, RegistryProblem> {
        let mut number = 0;
        loop {
            if self.cancel.is_cancelled() {
                return Err(RegistryProblem::Cancelled);
            }
            match attempt() {
                Err(problem) if problem.is_temporary() && number < self.retries => self.pause(number, &problem),
                Err(_) if self.cancel.is_cancelled() => return Err(RegistryProblem::Cancelled),
                result => return result,
            }
            number += 1;
        }
    }

    /// Waits before repetition `number` of what `problem` has ended.
    pub(super) fn pause(&self, number: u32, problem: &RegistryProblem) {
        let pause = pause_before(number, problem.retry_after());
        if !self.cancel.is_cancelled() {
            let problem = crate::error::Chain(problem);
            log::info!("{}: {problem}; trying again in {pause:.1?}", self.repository);
            self.cancel.wait(pause);
        }
    }

    /// Returns how often a request is repeated.
    pub(super) fn retries(&self) -> u32 {
        self.retries
    }

    /// Sends a request once, and logs in if the registry asks for it. Every status but 401 is a
    /// result.
    pub(super) fn send(&self, request: &Request<'_>) -> Result<Response<Body>, RegistryProblem> {
        let mut authorization = self.authorization(request.access);
        let response = self.follow(request, authorization.as_deref())?;
        if response.status() != 401 {
            return Ok(response);
        }
        // A token may have expired; another thread may have a new one.
        let known = self.authorization(request.access).filter(|known| Some(known) != authorization.as_ref());
        let login = Login::find(&self.repository)?;
        authorization = match known {
            known @ Some(_) => known,
            None => self.log_in(&response, request.access, login.as_ref())?,
        };
        let refused = |response: Response<Body>| RegistryProblem::Unauthorized {
            who: Login::who(login.as_ref()),
            registry: self.repository.registry().into(),
            message: message_of(response),
        };
        let Some(authorization) = authorization else { return Err(refused(response)) };
        drop(response);
        let response = self.follow(request, Some(&authorization))?;
        if response.status() == 401 {
            return Err(refused(response));
        }
        let mut known = self.authorizations.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(request.access, authorization);
        Ok(response)
    }

    /// Sends a request once. Every status but those in `expected` is an error.
    pub(super) fn expect(&self, request: &Request<'_>, expected: &[u16]) -> Result<Response<Body>, RegistryProblem> {
        let response = self.send(request)?;
        if expected.contains(&response.status().as_u16()) {
            return Ok(response);
        }
        Err(self.problem_of(response))
    }

    /// Returns the reason behind a response that is an error.
    pub(super) fn problem_of(&self, response: Response<Body>) -> RegistryProblem {
        let status = response.status().as_u16();
        let after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let message = message_of(response);
        match status {
            403 => RegistryProblem::Unauthorized {
                who: Login::who(Login::find(&self.repository).ok().flatten().as_ref()),
                registry: self.repository.registry().into(),
                message,
            },
            status => RegistryProblem::Status { status, message, retry_after: after.map(Duration::from_secs) },
        }
    }

    fn authorization(&self, access: Access) -> Option<String> {
        let known = self.authorizations.lock().unwrap_or_else(PoisonError::into_inner);
        // What may push may pull, too.
        known.get(&access).or_else(|| known.get(&Access::Push).filter(|_| access == Access::Pull)).cloned()
    }

    /// Sends a request, and follows the redirects of those without a content. A login goes only to
    /// the origin of the registry.
    fn follow(&self, request: &Request<'_>, authorization: Option<&str>) -> Result<Response<Body>, RegistryProblem> {
        let mut url = request.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let authorization = authorization.filter(|_| same_origin(&url, &self.origin));
            let response = self.once(request, &url, authorization)?;
            let is_redirect = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            if !is_redirect || !matches!(request.method, Method::GET | Method::HEAD) {
                return Ok(response);
            }
            url = resolve(&url, &location_of(&response)?, self.plain_http)?;
        }
        Err(RegistryProblem::Redirect { to: url, reason: "after too many other redirects" })
    }

    fn once(
        &self,
        request: &Request<'_>,
        url: &str,
        authorization: Option<&str>,
    ) -> Result<Response<Body>, RegistryProblem> {
        let mut builder = http::Request::builder().method(request.method.clone()).uri(url);
        for (name, value) in &request.headers {
            builder = builder.header(name, value);
        }
        if let Some(authorization) = authorization {
            builder = builder.header(AUTHORIZATION, authorization);
        }
        let invalid = |error: http::Error| RegistryProblem::Answer(error.to_string());
        let response = match request.content {
            Some(content) => {
                let mut reader = content.reader();
                builder = builder.header(CONTENT_LENGTH, content.size());
                self.agent.run(builder.body(SendBody::from_reader(&mut reader)).map_err(invalid)?)
            }
            // A registry may want the length of nothing, too.
            None if request.method == Method::POST => {
                self.agent.run(builder.header(CONTENT_LENGTH, 0).body(SendBody::none()).map_err(invalid)?)
            }
            None => self.agent.run(builder.body(()).map_err(invalid)?),
        };
        Ok(response?)
    }

    /// Answers the challenge in `response`. Returns `None` if there is no answer.
    fn log_in(
        &self,
        response: &Response<Body>,
        access: Access,
        login: Option<&Login>,
    ) -> Result<Option<String>, RegistryProblem> {
        let values = response.headers().get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let (realm, service, scope) = match Challenge::parse(values) {
            None => return Ok(None),
            Some(Challenge::Basic) => return Ok(login.and_then(Login::basic)),
            Some(Challenge::Bearer { realm, service, scope }) => (realm, service, scope),
        };
        let realm = resolve(&self.origin, &realm, self.plain_http)?;
        let actions = match access {
            Access::Pull => "pull",
            Access::Push => "pull,push",
        };
        let ours = format!("repository:{}:{actions}", self.repository.name());
        // One for pulls is not enough if the registry asks because of a blob that it would mount.
        let scope = scope.filter(|_| access == Access::Pull).unwrap_or(ours);
        let mut query = vec![("scope", &*scope)];
        query.extend(service.as_deref().map(|service| ("service", service)));
        let separator = if realm.contains('?') { '&' } else { '?' };
        let url = format!("{realm}{separator}{}", encoded(&query));
        let form = login.and_then(|login| login.refresh_form(service.as_deref(), &scope)).map(String::into_bytes);
        let mut request = match &form {
            Some(form) => Request::new(Method::POST, realm, access).content("application/x-www-form-urlencoded", form),
            None => Request::new(Method::GET, url, access),
        };
        if let Some(basic) = login.and_then(Login::basic) {
            request = request.header(AUTHORIZATION, basic);
        }
        let url = request.url.clone();
        let response = self.once(&request, &url, None)?;
        match response.status().as_u16() {
            200 => Ok(Some(bearer(&read_all(response, MAX_TOKEN_BYTES)?)?)),
            400..=403 => Err(RegistryProblem::Unauthorized {
                who: Login::who(login),
                registry: self.repository.registry().into(),
                message: message_of(response),
            }),
            _ => Err(self.problem_of(response)),
        }
    }
}

/// Returns the header `Location`.
pub(super) fn location_of(response: &Response<Body>) -> Result<String, RegistryProblem> {
    let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    location.map(Into::into).ok_or_else(|| RegistryProblem::Answer("it has no Location".into()))
}

/// Reads the whole content of a response, of at most `max_bytes` bytes.
pub(super) fn read_all(response: Response<Body>, max_bytes: u64) -> Result<Vec<u8>, RegistryProblem> {
    let body = response.into_body();
    if body.content_length().is_some_and(|length| length > max_bytes) {
        return Err(RegistryProblem::AnswerTooLarge { max_bytes });
    }
    let mut bytes = Vec::new();
    let mut reader = body.into_with_config().limit(u64::MAX).reader().take(max_bytes + 1);
    reader.read_to_end(&mut bytes).map_err(of_io)?;
    if bytes.len() as u64 > max_bytes {
        return Err(RegistryProblem::AnswerTooLarge { max_bytes });
    }
    Ok(bytes)
}

/// Returns the message in a response that is an error, in one line.
fn message_of(response: Response<Body>) -> String {
    read_all(response, MAX_MESSAGE_BYTES).map_or_else(|_| String::new(), |bytes| message_in(&bytes))
}

/// Returns the message in the content of an error: `{"errors":[{"code":…,"message":…}]}`.
fn message_in(content: &[u8]) -> String {
    let Ok(json) = serde_json::from_slice::<serde_json::Value>(content) else { return String::new() };
    let first = &json["errors"][0];
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_string();
    let parts = [text(&first["code"]), text(&first["message"]), text(&json["details"]), text(&json["error"])];
    let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join(": ").chars().take(MAX_SHOWN).collect()
}

/// Returns the pause before repetition `number`. It doubles each time, and is a little different
/// for each process, so that a hundred nodes do not come back at the same moment.
fn pause_before(number: u32, asked: Option<Duration>) -> Duration {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let longest = FIRST_PAUSE.saturating_mul(1 << number.min(16)).min(LONGEST_PAUSE);
    #[allow(clippy::cast_possible_truncation)]
    let random = RandomState::new().build_hasher().finish() as u32;
    let part = 0.5 + f64::from(random) / f64::from(u32::MAX) / 2.0;
    longest.mul_f64(part).max(asked.unwrap_or_default().min(LONGEST_ASKED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_doubles_and_is_never_long() {
        for number in 0..40 {
            let pause = pause_before(number, None);
            let longest = FIRST_PAUSE.saturating_mul(1 << number.min(16)).min(LONGEST_PAUSE);
            assert!(pause >= longest / 2 && pause <= longest, "{number}: {pause:?}");
        }
        assert_eq!(pause_before(0, Some(Duration::from_secs(7))), Duration::from_secs(7));
        assert_eq!(pause_before(0, Some(Duration::from_secs(86_400))), LONGEST_ASKED);
    }

    #[test]
    fn the_message_of_a_registry_is_short() {
        for (content, expected) in [
            (&br#"{"errors":[{"code":"DENIED","message":"no"}]}"#[..], "DENIED: no"),
            (br#"{"errors":[{"code":"DENIED"}]}"#, "DENIED"),
            (br#"{"details":"incorrect password"}"#, "incorrect password"),
            (br#"{"errors":[]}"#, ""),
            (b"<html>", ""),
        ] {
            assert_eq!(message_in(content), expected);
        }
        let long = format!(r#"{{"errors":[{{"message":"{}"}}]}}"#, "é".repeat(1000));
        assert_eq!(message_in(long.as_bytes()).chars().count(), MAX_SHOWN);
    }
}
