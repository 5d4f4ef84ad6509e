//! Reads and changes one directory tree through descriptors. `stack/overlayfs.rs` decides what an
//! entry is to overlayfs.

mod acl;
pub(crate) mod attributes;
pub(crate) mod locked_dir;
pub(crate) mod new_file;
pub(crate) mod output_file;
pub(crate) mod owner;
pub(crate) mod permission;
pub(crate) mod regular_file;
pub(crate) mod remove;
pub(crate) mod rename;
pub(crate) mod size;
pub(crate) mod walk;
pub(crate) mod xattr;
