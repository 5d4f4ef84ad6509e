//! Why a request to a registry failed, and whether a later one can succeed.

use std::io;
use std::time::Duration;

use crate::display::escaped;

/// The reason why a request to a registry failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryProblem {
    /// The registry cannot be reached, or the connection broke.
    #[error("the connection failed")]
    Connection(#[source] io::Error),
    /// The host of the registry has no address.
    #[error("its host is not known")]
    UnknownHost(#[source] io::Error),
    /// The registry does not answer, or has stopped sending.
    #[error("the registry does not answer; try again later")]
    Timeout,
    /// The registry answers with an error.
    #[error("the registry answers {status}{}", shown(message))]
    Status {
        /// The HTTP status.
        status: u16,
        /// The registry's message, which can be empty.
        message: String,
        /// How long the registry asks to wait.
        retry_after: Option<Duration>,
    },
    /// The registry wants a login, or does not accept the one that was found.
    #[error(
        "the registry refuses {who}{}; log in with `podman login {registry}` or `docker login {registry}`",
        shown(message)
    )]
    Unauthorized {
        /// Who was refused.
        who: String,
        /// The host of the registry.
        registry: String,
        /// The registry's message, which can be empty.
        message: String,
    },
    /// The login files or their helper programs cannot be used.
    #[error("cannot read the login for {registry}")]
    Login {
        /// The host of the registry.
        registry: String,
        /// The reason.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The TLS connection cannot be trusted.
    #[error("TLS failed: {0}; a registry without TLS needs --plain-http")]
    Tls(String),
    /// The answer is not what the protocol says.
    #[error("the answer of the registry is not valid: {0}")]
    Answer(String),
    /// The answer is larger than one may be.
    #[error("the answer of the registry has more than {max_bytes} bytes")]
    AnswerTooLarge {
        /// The limit in bytes.
        max_bytes: u64,
    },
    /// The registry sends the client to a place where it must not go.
    #[error("the registry redirects to {}, {reason}", escaped(to))]
    Redirect {
        /// The address.
        to: String,
        /// The reason why it is refused.
        reason: &'static str,
    },
    /// The operation was cancelled.
    #[error("it was cancelled")]
    Cancelled,
}

fn shown(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(" ({})", escaped(message)) }
}

impl RegistryProblem {
    /// Returns whether the same request can succeed later.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Connection(_) | Self::Timeout => true,
            Self::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500..),
            _ => false,
        }
    }

    /// Returns how long the registry asks to wait.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

impl From<ureq::Error> for RegistryProblem {
    fn from(error: ureq::Error) -> Self {
        match error {
            ureq::Error::Io(error) => of_io(error),
            ureq::Error::Timeout(_) => Self::Timeout,
            error @ (ureq::Error::ConnectionFailed | ureq::Error::ConnectProxyFailed(_)) => {
                Self::Connection(io::Error::other(error.to_string()))
            }
            ureq::Error::HostNotFound => Self::UnknownHost(io::ErrorKind::NotFound.into()),
            ureq::Error::Rustls(error) => Self::Tls(error.to_string()),
            error @ (ureq::Error::Tls(_) | ureq::Error::TlsRequired) => Self::Tls(error.to_string()),
            error => Self::Answer(error.to_string()),
        }
    }
}

/// Returns the reason behind an error of the transport.
pub(super) fn of_io(error: io::Error) -> RegistryProblem {
    // `ureq` puts its own errors into those of readers.
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>());
    if matches!(inner, Some(ureq::Error::Timeout(_))) {
        return RegistryProblem::Timeout;
    }
    if let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        return RegistryProblem::Tls(tls.to_string());
    }
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => RegistryProblem::Timeout,
        // The resolver's errors have no number. Only this one says that a later attempt can help.
        _ if error.to_string().contains("lookup address") && !error.to_string().contains("Temporary failure") => {
            RegistryProblem::UnknownHost(error)
        }
        _ => RegistryProblem::Connection(error),
    }
}
