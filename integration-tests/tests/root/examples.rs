//! Larger examples of the crates, run as the programs that a reader would start. Those of the
//! README are in module `readme`.

mod docs_browser;
mod farm;
mod mini_runner;
