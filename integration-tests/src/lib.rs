//! Shared parts of the integration tests: the fixture, makers of layers and disks, views of trees,
//! system calls, seccomp filters, terminals and processes. The tests are in `tests/root`.

use std::sync::atomic::{AtomicBool, Ordering};

pub mod cluster;
pub mod disk;
pub mod filter;
mod fixture;
mod known_run;
pub mod processes;
pub mod registry;
mod run_names;
pub mod stack;
pub mod strace;
pub mod terminal;
mod traces;
pub mod tree;
pub mod user;

pub use fixture::{
    FOR_EVER, Fixture, RUNTIMES, WAITS, WHO, copy_program, find, layered, shell, stderr, stdout, until_it_waits,
    write_script,
};
pub use known_run::{KnownRun, Reported};
pub use traces::Traces;

/// Sets the flag when it is dropped, also by a panic, so that the other threads stop.
#[derive(Debug)]
pub struct Done<'a>(pub &'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
