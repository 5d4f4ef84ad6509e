//! The tests that need root, a kernel with overlayfs, runc and busybox. They fail where they cannot
//! run. The fixtures are in `src`; README.md shows how to run one test.
//!
//! One binary with a module per subject:
//!
//! - `fixture`: the fixture finds what its own runs leave behind, and nothing else
//! - `stacking`: what a command sees of its layers, on every rung, with any number of layers
//! - `steps`: the steps of one run, each looked at from outside
//! - `results`: how a command ends, what a report contains, where the output goes
//! - `init`: process 1 of a container, and commands and runtimes that do not start
//! - `signals`: signals that layered passes on to the command
//! - `streams`: files, pipes and terminals of the caller as input and output
//! - `terminal`: the command's own terminal, and runs at a terminal of the caller
//! - `breakout`: attempts to break out of a container, each repeated where it can succeed
//! - `inputs`: inputs that a run refuses
//! - `environment`: what a container finds besides its layers: files in `/etc`, binds, users,
//!   limits
//! - `kept`: failed builds that are kept, and visits to them
//! - `kills`: the traces of a run after a kill of one of its processes
//! - `faults`: runs in which one system call fails
//! - `filter`: the seccomp filter that crun gets, compared with that of libseccomp
//! - `ladder`: the same tree on every rung, with any number of layers
//! - `merge`: the hardlink merge, compared with the kernel's own view
//! - `lookup`: which layer provides a path, and where the order of layers matters
//! - `capture`: uppers as layers, in any stack, captured concurrently, and during a power cut
//! - `mounts`: overlays without a run
//! - `places`: layers and scratch directories that are read-only, closed, or on another file system
//! - `collector`: collectors on full disks, with wrong sizes, and killed
//! - `store`: layers in use beside collectors, and kills of runs and collectors
//! - `readme`: the README's session and programs, as they stand there
//! - `examples`: larger examples of the crates, as programs
//! - `remove`: removal of trees, never across a mount
//! - `rootless`: runs of an ordinary user, with both maps of IDs
//! - `load`: many runs at a time
//! - `space`: runs that run out of bytes, inodes or descriptors
//! - `command`: the `layered` command, as scripts use it
//! - `page`: what `layered page` makes of a store; `scripts/check-page` shows it to a browser
//! - `commit`: `layered commit`, killed and repeated
//! - `publish`: layers in one step, beside others that want the same name, and killed
//! - `contents`: hostile names and files, in every command
//! - `doctor`: `layered doctor` on this machine and on broken ones
//! - `costs`: the number of system calls of a run
//! - `debian`: layers of Debian packages
//! - `oci`: images in and out, and damage to layers
//! - `cluster`: a farm of three nodes with Slurm and a registry, and their failures
//! - `registry`: layers and images in registries that work, lie and die

mod breakout;
mod capture;
mod cluster;
mod collector;
mod command;
mod commit;
mod contents;
mod costs;
mod debian;
mod doctor;
mod environment;
mod examples;
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
mod oci;
mod page;
mod places;
mod publish;
mod readme;
mod registry;
mod remove;
mod results;
mod rootless;
mod signals;
mod space;
mod stacking;
mod steps;
mod store;
mod streams;
mod terminal;
