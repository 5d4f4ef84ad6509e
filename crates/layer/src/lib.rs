//! Layers on disk: the directory of one layer of a stacked root file system, and the stacking of
//! many layers. This crate mounts nothing and runs no containers: a program that only looks at a
//! store of layers needs nothing else.
//!
//! - **One layer**: [`Layer`] has the paths of its files. [`Meta`] is its `layer.json`. Sidecars
//!   hold whatever else its maker knows about it, as any serde type or as raw JSON.
//!   [`Layer::touch`] records a use, and [`Layer::last_used`] returns the last one. [`Base`] is the
//!   tree at the bottom of a stack.
//! - **A store of layers**: [`Store`] returns a layer by its name, also by one that is not trusted,
//!   lists the layers, in the order of their last use if the caller asks for it, and removes one.
//!   [`Collector`] removes the least recently used layers, but none that is [held](Hold). A
//!   [`Draft`] becomes a layer as a whole or not at all.
//! - **Many layers, one stack**: [`Plan`] decides which layers become lower directories of their
//!   own and which must be merged first. [`merge`](fn@merge) hardlinks the latter into one
//!   directory that shows what the kernel would have shown. [`remove_tree`] removes such a
//!   directory.
//! - **A stack without a mount**: [`Stack`] lists directories, opens files and follows links as a
//!   command would whose root file system the stack is. It needs no privilege, and a hostile layer
//!   cannot lead it to the host.
//! - **A new layer**: [`Capture`] turns the upper directory of an unmounted overlay into a layer. A
//!   capture that was killed can be repeated.
//! - **Which layer is it from?** [`lookup`] reports which layer of a stack a path is from, and
//!   which others have it. [`conflicts`] finds the paths that several layers provide. Such paths
//!   are the usual reason why a build depends on the order of its layers. [`Layer::changes`] and
//!   [`Stack::changes`] list what a layer adds, changes and deletes.
//! - **Images**: the module `oci` (feature `oci`) makes bases and layers of OCI and Docker images,
//!   and images of stacks.
//!
//! # Order
//! Every list of layers has the kernel's order: the **first layer is the topmost**. The base is at
//! the bottom, and is not among the layers.
//!
//! # A store
//! A store is a directory of layers. It has one more entry, `.layered`, for the data of the store
//! itself:
//! ```text
//! <store>/<name>/                       a layer, once it has its `layer.json`; see [`Layer`]
//! <store>/.layered/holds/<random>       the layers that a process or a kept result needs
//! <store>/.layered/new/<random>/layer   an unfinished layer
//! <store>/.layered/trash-<random>       a layer that a collector is removing
//! ```
//! The first hold, draft or collector that needs `.layered` makes it. The owner of a hold or of an
//! unfinished layer locks it with flock(2). A hold or an unfinished layer that is not locked
//! belongs to a dead process, and the next collector removes it. The exception is a hold that was
//! [kept](Hold::keep) for a directory: it stays while that directory exists.
//!
//! On a full disk, a collector may be unable to make `.layered`. It then takes the first layer
//! that it has to remove and renames it to `.layered`. For as long as `.layered` has a
//! `layer.json`, everything in it but `holds` and `new` is garbage.
//!
//! By default only the owner can enter a layer's directory (mode 0700), because a tree can hold
//! set-user-ID programs. [`Access`] changes this.
//!
//! The example `docs_browser` serves the files and the metadata of a store over HTTP. The example
//! `store_index` writes an index of a store as an HTML page.
//!
//! # JSON
//! The results that a program reads, such as [`Lookup`], [`Conflict`], [`Plan`] and [`Collected`],
//! can be serialized. Their JSON is that of the command `layered`, but the position of a layer in
//! the given list replaces its path.
//!
//! # Listing a store
//! ```
//! # let store = tempfile::tempdir()?;
//! # let made = layer::Layer::at(store.path().join("5f2e"));
//! # std::fs::create_dir_all(made.fs())?;
//! # made.write_meta(&layer::Meta::new("debian-12", std::time::SystemTime::now()))?;
//! # made.write_sidecar("package", &serde_json::json!({"name": "zlib"}))?;
//! let store = layer::Store::open(store.path())?;
//! for found in store.scan()?.with_meta() {
//!     let (layer, meta) = found?;
//!     match meta {
//!         Ok(meta) => println!("{:?}: exit {}, {} bytes", layer.name(), meta.exit_status, meta.disk_usage),
//!         Err(error) => println!("{:?}: {error}", layer.name()), // the other layers follow
//!     }
//!     if let Some(package) = layer.read_sidecar::<serde_json::Value>("package")? {
//!         println!("  {}", package["name"]);
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod callback;
mod capture;
pub mod display;
mod error;
pub mod json_path;
mod layer;
mod merge;
#[cfg(test)]
#[path = "../../../integration-tests/src/mutated.rs"]
mod mutated;
#[cfg(feature = "oci")]
pub mod oci;
#[cfg(test)]
mod parser_tests;
mod skeleton;
mod stack;
mod store;
mod tree;

pub use capture::made::Made;
pub use capture::record::RunRecord;
pub use capture::upper_id::UpperId;
pub use capture::{Capture, Captured, Step};
pub use error::{Error, Instead, Result};
pub use layer::access::Access;
pub use layer::meta::{Meta, Timing};
pub use layer::{Base, Layer};
pub use merge::{Merge, Merged, merge};
pub use skeleton::Skeleton;
pub use stack::changes::{Change, Changes, Effect, StackChanges};
pub use stack::conflicts::{Conflict, Conflicts, Difference, conflicts};
pub use stack::lookup::{Lookup, Obstacle, Origin, Role, lookup};
pub use stack::overlayfs::{EntryKind, XattrNamespace, is_opaque, is_whiteout};
pub use stack::plan::{Estimate, MAX_LOWERS, Plan, Rung, RungLimit, plan_lowerdir};
pub use stack::resolve::{StackLink, Trace};
pub use stack::{Stack, StackEntry};
pub use store::Store;
pub use store::draft::Draft;
pub use store::existing::Existing;
pub use store::gc::{Collected, CollectedLayer, Collector, Progress, Sizes};
pub use store::hold::{Hold, Holder, held};
pub use store::scan::{Scan, ScanWithMeta, scan};
pub use tree::locked_dir::LockedDir;
pub use tree::output_file::OutputFile;
pub use tree::regular_file::read_regular_file;
pub use tree::remove::{Remove, remove_tree};
pub use tree::size::{TreeSize, count_files};

/// Makes the compiler check that several threads can use values of these types.
const _: fn() = || {
    fn is_send_and_sync<T: Send + Sync>() {}
    is_send_and_sync::<(Base, Layer, Meta, Timing, Access, RunRecord, UpperId, Made)>();
    is_send_and_sync::<(Store, Scan, ScanWithMeta, Hold, Draft, Collector<'_>, Collected, LockedDir)>();
    is_send_and_sync::<(Plan, Lookup, Conflicts, Merge<'_>, Merged, Capture<'_>, Captured)>();
    is_send_and_sync::<(Stack, Changes, StackChanges<'_>, Remove, TreeSize, Skeleton, Error)>();
};
