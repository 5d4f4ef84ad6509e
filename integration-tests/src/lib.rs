//! What the integration tests share: a machine to run on that must be left as it was, layers, and a look at trees.

mod fixture;
mod traces;

pub use fixture::{Fixture, find, layered, shell, stderr, stdout};
pub use traces::Traces;
