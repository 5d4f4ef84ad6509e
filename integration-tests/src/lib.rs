//! What the integration tests share: a fixture that finds what its runs leave behind, layers, a look at trees, and one at system
//! calls and at seccomp filters, small disks, terminals, processes.

use std::sync::atomic::{AtomicBool, Ordering};

pub mod disk;
pub mod filter;
mod fixture;
mod known_run;
pub mod processes;
mod run_names;
pub mod stack;
pub mod strace;
pub mod terminal;
mod traces;
pub mod tree;

pub use fixture::{
    FOR_EVER, Fixture, RUNTIMES, WHO, copy_program, find, layered, shell, stderr, stdout, until_it_waits, write_script,
};
pub use known_run::{KnownRun, Told};
pub use traces::Traces;

/// Sees that what it is dropped by, a panic too, ends the others.
#[derive(Debug)]
pub struct Done<'a>(pub &'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
