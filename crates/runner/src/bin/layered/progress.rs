//! Shows the progress of a step that takes longer than a second, on standard error.
//!
//! The libraries report numbers. [`table`](crate::table) formats results, on standard output.

use std::io::{self, IsTerminal};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Steps that are faster show nothing.
const DELAY: Duration = Duration::from_secs(1);

/// A line without and with a bar.
const SPINNER: &str = "{spinner} {msg}";
const BAR: &str = "[{bar:30}] {msg}";

/// The time between two pictures of a spinner.
const TICK: Duration = Duration::from_millis(100);

/// One line on a terminal, which is removed when this is dropped. Does nothing if standard error is
/// not a terminal, or one without control sequences (`TERM=dumb`).
#[derive(Debug)]
#[must_use = "the line is removed when this is dropped"]
pub(crate) struct Progress(Option<Shown>);

#[derive(Debug)]
struct Shown {
    bar: ProgressBar,
    /// Ends the thread that shows the bar.
    end: Sender<()>,
    thread: JoinHandle<()>,
}

impl Progress {
    /// Begins a step. `text` is shown if the step reports nothing for a second.
    pub(crate) fn begin(text: &'static str) -> Self {
        if !io::stderr().is_terminal() {
            return Self(None);
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        bar.set_style(style(SPINNER));
        bar.set_message(text);
        let (end, ended) = channel();
        let shown = bar.clone();
        let thread = thread::Builder::new().spawn(move || {
            if ended.recv_timeout(DELAY) == Err(RecvTimeoutError::Timeout) {
                shown.set_draw_target(ProgressDrawTarget::stderr());
                shown.enable_steady_tick(TICK);
            }
        });
        // Without a thread, the step still works.
        Self(thread.ok().map(|thread| Shown { bar, end, thread }))
    }

    /// Shows a text instead of the former one.
    pub(crate) fn tell(&self, text: impl FnOnce() -> String) {
        if let Some(Shown { bar, .. }) = &self.0 {
            bar.set_message(text());
        }
    }

    /// Shows how much is done, as a bar before the text.
    pub(crate) fn fill(&self, done: usize, of: usize, text: impl FnOnce() -> String) {
        if let Some(Shown { bar, .. }) = &self.0 {
            if bar.length().is_none() {
                bar.set_style(style(BAR).progress_chars("##-"));
            }
            bar.set_length(of as u64);
            bar.set_position(done as u64);
        }
        self.tell(text);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(Shown { bar, end, thread }) = self.0.take() {
            drop(end);
            // It cannot panic, and the line is removed only when it draws no more.
            let _ = thread.join();
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the template is valid")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_valid() {
        for template in [SPINNER, BAR] {
            style(template);
        }
    }

    #[test]
    fn nothing_is_formatted_without_a_terminal() {
        let progress = Progress(None);
        progress.tell(|| panic!("formatted"));
        progress.fill(1, 2, || panic!("formatted"));
    }
}
