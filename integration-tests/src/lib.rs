//! What the integration tests share: a machine to run on that must be left as it was, layers, and a look at trees.

mod fixture;
pub mod stack;
mod traces;
pub mod tree;

pub use fixture::{Fixture, find, layered, shell, stderr, stdout};
pub use traces::Traces;
