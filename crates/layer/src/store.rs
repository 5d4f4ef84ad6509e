//! Stores, which are directories of layers: lists and holds layers, adds new ones and removes old
//! ones. `layer` handles a single layer; `stack` shows many layers as one tree.

pub(crate) mod draft;
pub(crate) mod gc;
pub(crate) mod hold;
pub(crate) mod scan;
pub(crate) mod store_dir;
