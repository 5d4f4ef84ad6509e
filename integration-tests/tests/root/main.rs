//! Tests that need root, a kernel with overlayfs, runc and busybox. They fail where they cannot run.
//!
//! One binary, a module a subject:
//!
//! - `stacking`: what a command sees of its layers, on every rung, at any number of them
//! - `results`: how a command ends, what comes back, where its output goes
//! - `breakout`: attempts to get out of a container, each really made, and made again where it can succeed
//! - `inputs`: what is refused, and that nothing is left then
//! - `environment`: what the container finds besides its layers: files in `/etc`, binds, users, limits
//! - `kills`: what is left when a run's process, or its runtime, is killed
//! - `ladder`: the same tree on every rung, at any number of layers
//! - `merge`: the hardlink merge against the kernel's own view
//! - `capture`: uppers as layers, in any stack, twice at once, and when the power is cut
//! - `mounts`: overlays without a run
//! - `remove`: taking trees away, and nothing that is mounted in them
//! - `command`: the `layered` command, from outside
//! - `debian`: real input

mod breakout;
mod capture;
mod command;
mod debian;
mod environment;
mod inputs;
mod kills;
mod ladder;
mod merge;
mod mounts;
mod remove;
mod results;
mod stacking;
