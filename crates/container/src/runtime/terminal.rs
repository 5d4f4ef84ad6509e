//! The caller's terminal, which a runtime puts into raw mode for the command's own.

use std::io::stdin;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// The settings of the terminal that is standard input, put back when this is dropped.
///
/// A runtime that ends by itself has done so; one that was killed has not, and the user would type blindly.
pub(super) struct Saved(Option<Termios>);

impl Saved {
    /// What is no terminal has no settings, and the runtime will say so.
    pub(super) fn new() -> Self {
        Self(tcgetattr(stdin()).ok())
    }
}

impl Drop for Saved {
    fn drop(&mut self) {
        if let Some(settings) = &self.0 {
            if let Err(error) = tcsetattr(stdin(), OptionalActions::Now, settings) {
                log::warn!("the terminal's settings cannot be put back ({error}): `reset` does it");
            }
        }
    }
}
