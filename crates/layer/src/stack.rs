//! Many layers seen as one tree, by the rules of overlayfs and without a mount. `merge` makes one
//! directory of many layers; `store` decides where layers are kept.

pub(crate) mod conflicts;
pub(crate) mod lookup;
pub(crate) mod overlayfs;
pub(crate) mod plan;
pub(crate) mod sources;
pub(crate) mod view;
