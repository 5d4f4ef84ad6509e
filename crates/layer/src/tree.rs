//! One directory tree, read and changed by descriptors. Nothing here decides what an entry is to
//! overlayfs: that is decided in `stack/overlayfs.rs`.

pub(crate) mod attributes;
pub(crate) mod locked_dir;
pub(crate) mod regular_file;
pub(crate) mod remove;
pub(crate) mod size;
pub(crate) mod walk;
pub(crate) mod xattr;
