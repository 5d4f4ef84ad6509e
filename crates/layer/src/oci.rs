//! Images of the Open Container Initiative and of Docker, in and out (feature `oci`).
//!
//! [`Import`] makes an image a [base](crate::Base), or each of its layers a layer of a
//! [store](crate::Store). [`Source`] says where the image is, and [`Record`] is what the result
//! keeps of it. [`Export`] makes an image of a stack. [`verify`](verify()) compares layers with the
//! digests that were recorded of them. With the feature `registry`, the module `registry` has
//! images and layers in registries.
//!
//! # Trust
//! An image can come from anywhere. Its archives are read with limits, every file is made by
//! descriptor below the new directory, and an entry that no tree can have is an error that names
//! it. Nothing gets its final name before all digests are verified.
//!
//! # Example
//! ```no_run
//! use layer::oci::{Import, Source};
//!
//! let source: Source = "oci:images/debian:12".parse()?;
//! let store = layer::Store::open("/var/cache/layers")?;
//! let imported = Import::new(&source).into_layers(&store)?;
//! for layer in &imported.layers {
//!     println!("{}", layer.layer.path().display()); // topmost first; the last is the base
//! }
//! # Ok::<(), layer::oci::Error>(())
//! ```

mod archive;
mod choice;
mod compression;
mod destination;
mod digest;
mod encoder;
mod entry;
mod entry_name;
mod error;
mod export;
mod files;
mod first_names;
#[cfg(test)]
mod hostile;
mod image;
mod image_writer;
mod import;
mod layout_writer;
#[cfg(test)]
mod one_rule;
mod pack;
mod pax;
mod pipeline;
mod progress;
#[cfg(test)]
mod reader_tests;
mod record;
mod reference;
#[cfg(feature = "registry")]
pub mod registry;
mod source;
#[cfg(test)]
mod testing;
mod tree_digest;
mod unpack;
mod verify;

pub use self::compression::Compression;
pub use self::destination::Destination;
pub use self::digest::{Digest, NotADigest};
pub use self::error::{Error, Problem, Result};
pub use self::export::{Export, Exported};
pub use self::image::Blob;
pub use self::import::{Import, Imported, ImportedLayer};
pub use self::progress::Progress;
pub use self::record::{InRegistry, Record};
pub use self::reference::{RegistryImage, Repository};
pub use self::source::{Platform, Source};
pub use self::tree_digest::{TreeDigest, record_digest};
pub use self::unpack::{LeftOut, Needs, Privileges};
pub use self::verify::{Damage, OtherIds, Verified, verify};
