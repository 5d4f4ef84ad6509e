//! The signals that a thread must not get while it copies a container's streams.

use std::io;

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::fd::AsFd;
use rustix::io::Errno;

/// Blocks SIGTTIN and SIGPIPE in the calling thread until it is dropped.
///
/// While SIGTTIN is blocked, a read from a terminal fails with EIO if another process group is in
/// the foreground. Otherwise the kernel would stop the whole process.
#[must_use = "the signals are blocked until it is dropped"]
pub(super) struct Masked(SigSet);

impl Masked {
    pub(super) fn new() -> io::Result<Self> {
        let set = SigSet::from_iter([Signal::SIGTTIN, Signal::SIGPIPE]);
        Ok(Self(set.thread_swap_mask(SigmaskHow::SIG_BLOCK)?))
    }
}

impl Drop for Masked {
    fn drop(&mut self) {
        if let Err(error) = self.0.thread_set_mask() {
            log::warn!("SIGTTIN and SIGPIPE stay blocked: {error}");
        }
    }
}

/// Calls write(2) and discards the SIGPIPE that it may cause. The thread must be [`Masked`].
pub(super) fn write(file: impl AsFd, bytes: &[u8]) -> rustix::io::Result<usize> {
    let result = rustix::io::write(file, bytes);
    if result == Err(Errno::PIPE) {
        let taken =
            SignalFd::with_flags(&SigSet::from(Signal::SIGPIPE), SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
                .and_then(|pending| pending.read_signal());
        if let Err(error) = taken {
            log::debug!("a SIGPIPE may be pending: {error}");
        }
    }
    result
}
