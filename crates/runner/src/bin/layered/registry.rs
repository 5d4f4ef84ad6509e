//! What the subcommands with registries share: their options, signals and exit statuses.
//!
//! [`push`](crate::push) and [`pull`](crate::pull) move layers. [`import`](crate::import) and
//! [`export`](crate::export) move images.

use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use layer::oci::Error;
use layer::oci::registry::{Cancel, Options, PlainHttp};
use serde::Serialize;

use crate::signals::{self, FirstSignal};
use crate::values::duration;
use crate::{TEMPORARY, complain};

/// The exit status if no later attempt can succeed.
const PERMANENT: u8 = 1;

/// How a registry is used.
#[derive(Debug, clap::Args)]
pub(crate) struct RegistryArgs {
    /// Use HTTP without TLS: always, never or loopback [default: loopback].
    ///
    /// By default, only a registry on this machine (localhost, 127.0.0.1, ::1) is used without TLS.
    #[arg(
        long,
        value_name = "WHEN",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "always",
        value_enum,
        hide_possible_values = true,
        help_heading = "Registry"
    )]
    plain_http: Option<Plain>,
    /// Repeat a request that failed for the moment N times [default: 4].
    #[arg(long, value_name = "N", help_heading = "Registry")]
    retries: Option<u32>,
    /// Give up if the registry is silent for TIME [default: 2m].
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = "Registry")]
    timeout: Option<Duration>,
}

/// The value of `--plain-http`.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Plain {
    Always,
    Never,
    Loopback,
}

impl RegistryArgs {
    /// Returns the options, and ends what uses them when SIGINT, SIGTERM or SIGHUP arrives.
    pub(crate) fn options(&self) -> anyhow::Result<(Options, FirstSignal)> {
        let cancel = Cancel::default();
        let first = signals::cancel(&cancel)?;
        Ok((self.without_signals().cancel(&cancel), first))
    }

    /// Returns the options for what reads from a registry only in passing. Signals end the process.
    pub(crate) fn without_signals(&self) -> Options {
        let mut options = Options::default().plain_http(match self.plain_http {
            Some(Plain::Always) => PlainHttp::Always,
            Some(Plain::Never) => PlainHttp::Never,
            Some(Plain::Loopback) | None => PlainHttp::Loopback,
        });
        if let Some(retries) = self.retries {
            options = options.retries(retries);
        }
        if let Some(timeout) = self.timeout {
            options = options.timeout(timeout);
        }
        options
    }
}

/// A layer that was not moved, as JSON.
#[derive(Debug, Serialize)]
pub(crate) struct Failed {
    pub(crate) name: String,
    pub(crate) error: String,
    pub(crate) temporary: bool,
    pub(crate) kind: Kind,
}

/// Why a layer was not moved, for programs.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// The registry has no layer of the name, or no manifest of the digest.
    Absent,
    /// The store has another layer of the name than the pinned one.
    NotPinned,
    /// A digest or a size is wrong.
    Damaged,
    Other,
}

impl Kind {
    fn of(error: &Error) -> Self {
        match error {
            Error::NotInRegistry { .. } => Self::Absent,
            Error::NotPinned { .. } => Self::NotPinned,
            Error::WrongDigest { .. } | Error::WrongSize { .. } | Error::WrongDiffId { .. } => Self::Damaged,
            _ => Self::Other,
        }
    }
}

/// Outcomes, each with the item that it is about.
type Each<'a, I, T> = Vec<(&'a I, T)>;

/// Returns what succeeded and what failed.
pub(crate) fn split<I, T>(items: &[I], results: Vec<Result<T, Error>>) -> (Each<'_, I, T>, Each<'_, I, Error>) {
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    for (item, result) in items.iter().zip(results) {
        match result {
            Ok(one) => done.push((item, one)),
            Err(error) => failed.push((item, error)),
        }
    }
    (done, failed)
}

impl Failed {
    pub(crate) fn of(name: String, error: &Error) -> Self {
        Self { name, error: format!("{error:?}"), temporary: error.is_temporary(), kind: Kind::of(error) }
    }
}

/// Reports errors, and returns the exit status for them: 75 if a later attempt can succeed, 1 if
/// one of them is permanent, and that of the signal if one has ended the subcommand.
pub(crate) fn conclude<'a>(errors: impl IntoIterator<Item = &'a Error>, first: &FirstSignal) -> ExitCode {
    let (mut status, mut reported) = (0, false);
    for error in errors {
        let is_cancelled = matches!(error, Error::Cancelled | Error::NotBegun);
        if !is_cancelled || !reported {
            complain(format_args!("{error:?}"));
            reported = true;
        }
        status = match (error.is_temporary() || is_cancelled, status) {
            (true, 0) => TEMPORARY,
            (true, status) => status,
            (false, _) => PERMANENT,
        };
    }
    match first.number() {
        0 => status.into(),
        _ if status == 0 => ExitCode::SUCCESS,
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        signal => (128 + signal as u8).into(),
    }
}
