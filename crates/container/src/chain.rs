//! Formats an error with its sources. `error` and `template::error` decide what they say.

/// Returns an error and all of its sources on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(error.source(), |error| error.source());
    sources.fold(error.to_string(), |text, source| format!("{text}: {source}"))
}
