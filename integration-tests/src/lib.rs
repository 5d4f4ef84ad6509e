//! What the integration tests share: a machine to run on that must be left as it was, layers, a look at trees, and
//! one at system calls and at seccomp filters.

pub mod filter;
mod fixture;
mod known_run;
pub mod stack;
pub mod strace;
mod traces;
pub mod tree;

pub use fixture::{Fixture, find, layered, shell, stderr, stdout, until_it_waits};
pub use known_run::{KnownRun, Told};
pub use traces::Traces;
