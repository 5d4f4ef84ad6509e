//! Layers on disk: what a directory that is one layer of a stacked root file system holds, and how many of them become one
//! stack. No mounts, no containers: a program that only looks at a store of layers needs nothing else.
//!
//! - **One layer**: [`Layer`] has the paths; [`Meta`] is its `layer.json`; sidecars hold whatever else its maker knows of it,
//!   as any serde type or as raw JSON; [`Layer::touch`] and [`Layer::last_used`] are the book of least recent use. [`Base`] is
//!   the tree at the bottom.
//! - **A store of layers**: [`scan`].
//! - **Many layers, one stack**: [`Plan`] says which layers the kernel can take as lower directories of their own and which
//!   have to be merged first, [`merge`] hardlinks these into one directory that shows what the kernel would have shown, and
//!   [`remove_tree`] takes such a directory away again. [`Lookup`] tells what a stack shows at a path, and which layer it
//!   comes from.
//! - **A new layer**: [`Capture`] makes one of the upper directory that an overlay has left.
//!
//! # Order
//! One order everywhere, the kernel's: the **first layer is the topmost**. The base is at the bottom and not among the layers.
//!
//! # Listing a store
//! ```
//! # let store = tempfile::tempdir()?;
//! # let made = layer::Layer::at(store.path().join("5f2e"));
//! # std::fs::create_dir_all(made.fs())?;
//! # made.write_meta(&layer::Meta::new("debian-12", std::time::SystemTime::now()))?;
//! # made.write_sidecar("package", &serde_json::json!({"name": "zlib"}))?;
//! for found in layer::scan(&store)? {
//!     let found = found?;
//!     if let Some(meta) = found.meta()? {
//!         println!("{:?}: exit {}, {} bytes", found.name(), meta.exit_status, meta.disk_usage);
//!     }
//!     if let Some(package) = found.read_sidecar::<serde_json::Value>("package")? {
//!         println!("  {}", package["name"]);
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod attributes;
mod capture;
mod error;
mod json;
mod last_used;
mod layer;
mod lookup;
mod merge;
mod meta;
mod overlayfs;
mod plan;
mod remove;
mod scan;
mod sidecar;
mod sources;
mod tree_size;
mod walk;

pub use capture::{Capture, Captured, Made, Step};
pub use error::{Error, Result};
pub use layer::{Base, Layer};
pub use lookup::{Directory, Lookup, Shown};
pub use merge::{Merge, Merged, merge};
pub use meta::{Meta, Timing};
pub use overlayfs::XattrNamespace;
pub use plan::{Estimate, MAX_LOWERS, Plan, Rung, RungLimit, plan_lowerdir};
pub use remove::{remove_tree, remove_tree_with};
pub use scan::{Scan, scan};
pub use tree_size::TreeSize;
