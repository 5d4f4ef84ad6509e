//! A function of the caller's, as the builders keep it: `Merge`, `Capture` and `Collector` each
//! have a setter for one.

use std::fmt;

/// A function that the caller may have set.
pub(crate) struct Callback<'a, F: ?Sized>(pub(crate) Option<&'a F>);

impl<F: ?Sized> Clone for Callback<'_, F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F: ?Sized> Copy for Callback<'_, F> {}

impl<F: ?Sized> Default for Callback<'_, F> {
    fn default() -> Self {
        Self(None)
    }
}

impl<F: ?Sized> fmt::Debug for Callback<'_, F> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(if self.0.is_some() { "set" } else { "not set" })
    }
}
