//! Tests that need root, a kernel with overlayfs, runc and busybox. They fail where they cannot run.
//!
//! One binary, a module a subject:
//!
//! - `fixture`: what runs leave behind is found, and only what they leave themselves
//! - `stacking`: what a command sees of its layers, on every rung, at any number of them
//! - `results`: how a command ends, what comes back, where its output goes
//! - `init`: process 1 of a container, and commands and runtimes that do not begin
//! - `signals`: those that layered gets, which the command gets, too
//! - `streams`: files, pipes and terminals of the caller as input and output
//! - `terminal`: a terminal of the command's own, and runs at one of the caller's
//! - `breakout`: attempts to get out of a container, each really made, and made again where it can succeed
//! - `inputs`: what is refused, and that nothing is left then
//! - `environment`: what the container finds besides its layers: files in `/etc`, binds, users, limits
//! - `kept`: failed builds that are kept, and visits to them
//! - `kills`: what is left when a run's process, or its runtime, is killed
//! - `faults`: what comes of a run when one of its system calls fails
//! - `filter`: the seccomp filter that crun is given, against the one that libseccomp makes
//! - `ladder`: the same tree on every rung, at any number of layers
//! - `merge`: the hardlink merge against the kernel's own view
//! - `lookup`: which layer of a stack a path is from, and what several provide, against the kernel's own view
//! - `capture`: uppers as layers, in any stack, twice at once, and when the power is cut
//! - `mounts`: overlays without a run
//! - `places`: layers and scratch directories that are read-only, closed, or on another file system
//! - `collector`: full disks, wrong sizes, and collectors that are killed
//! - `store`: layers in use beside collectors, and who is killed among both
//! - `remove`: taking trees away, and nothing that is mounted in them
//! - `load`: many runs at a time
//! - `space`: runs that run out of bytes, inodes or descriptors
//! - `command`: the `layered` command, from outside
//! - `contents`: names and files that others have left, in every command
//! - `doctor`: what is told of this machine, and of broken ones
//! - `costs`: system calls of a run
//! - `debian`: real input

mod breakout;
mod capture;
mod collector;
mod command;
mod commit;
mod contents;
mod costs;
mod debian;
mod doctor;
mod environment;
mod faults;
mod filter;
mod fixture;
mod init;
mod inputs;
mod kept;
mod kills;
mod ladder;
mod load;
mod lookup;
mod merge;
mod mounts;
mod places;
mod remove;
mod results;
mod signals;
mod space;
mod stacking;
mod store;
mod streams;
mod terminal;
