//! Decides which of the signals that layered gets during a run it forwards to the command.
//! [`run`](crate::run) and [`shell`](crate::shell) do the runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use anyhow::Context;
use container::Cancel;
use container::advanced::read_kernel_file;
use runner::Options;
use signal_hook::consts::{SIGALRM, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
use signal_hook::iterator::Signals;

/// Signals that ask the command to end. The first one starts the grace period, and the next one
/// kills the command.
const ENDING: [i32; 2] = [SIGINT, SIGTERM];

/// Signals that are only forwarded.
const OTHERS: [i32; 6] = [SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGALRM, SIGWINCH];

/// The number of the first signal that asked the command to end.
pub(crate) struct FirstSignal(Arc<AtomicI32>);

impl FirstSignal {
    /// Returns the number, or 0 if no such signal has arrived.
    pub(crate) fn number(&self) -> i32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Forwards signals from now on, except those that layered was started to ignore (`nohup`, `trap ''
/// INT`).
pub(crate) fn forward(options: Options<'_>) -> anyhow::Result<(Options<'_>, FirstSignal)> {
    let (cancel, command) = (Cancel::new()?, container::Signals::new()?);
    let options = options.cancel(cancel.clone()).signals(command.clone());
    let number = Arc::new(AtomicI32::new(0));
    let ignored = ignored_signals();
    let handled = ENDING.iter().chain(&OTHERS).filter(|signal| !ignores(ignored, **signal));
    let mut signals = Signals::new(handled).context("cannot wait for signals")?;
    let first = Arc::clone(&number);
    // The thread lives as long as the process.
    let wait = move || {
        for signal in &mut signals {
            if !ENDING.contains(&signal) {
                command.send(signal);
            } else if first.compare_exchange(0, signal, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                cancel.interrupt(signal);
            } else {
                cancel.kill();
            }
        }
    };
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(wait)
        .context("cannot start a thread to wait for signals")?;
    Ok((options, FirstSignal(number)))
}

/// Cancels `cancel` with the first SIGINT, SIGTERM or SIGHUP from now on, except those that layered
/// was started to ignore. The second one ends the process, as by default.
#[cfg(feature = "registry")]
pub(crate) fn cancel(cancel: &layer::oci::registry::Cancel) -> anyhow::Result<FirstSignal> {
    let ignored = ignored_signals();
    let handled = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| !ignores(ignored, *signal));
    let mut signals = Signals::new(handled).context("cannot wait for signals")?;
    let number = Arc::new(AtomicI32::new(0));
    let (first, cancel) = (Arc::clone(&number), cancel.clone());
    // The thread lives as long as the process.
    let wait = move || {
        for signal in &mut signals {
            if first.compare_exchange(0, signal, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                cancel.cancel();
            } else {
                let _ends_the_process = signal_hook::low_level::emulate_default_handler(signal);
            }
        }
    };
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(wait)
        .context("cannot start a thread to wait for signals")?;
    Ok(FirstSignal(number))
}

/// Returns whether this process ignores the signal.
pub(crate) fn is_ignored(signal: i32) -> bool {
    ignores(ignored_signals(), signal)
}

/// Returns the mask of the signals that this process ignores.
fn ignored_signals() -> u64 {
    let status = read_kernel_file("/proc/self/status").unwrap_or_default();
    ignored_by(&String::from_utf8_lossy(&status))
}

/// Returns the mask of ignored signals from the text of a `/proc/PID/status`.
fn ignored_by(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

fn ignores(mask: u64, signal: i32) -> bool {
    mask & (1 << (signal - 1)) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_the_bits_of_the_mask() {
        let status = "SigBlk:\t0000000000000000\nSigIgn:\t0000000001001000\nSigCgt:\t0000000000000440\n";
        for (signal, ignored) in [(13, true), (25, true), (24, false), (26, false), (64, false)] {
            assert_eq!(ignores(ignored_by(status), signal), ignored, "{signal}");
        }
        assert_eq!((ignored_by(""), ignored_by("SigIgn:\tx\n")), (0, 0));
    }
}
