//! A directory of layers: which layers it has, who holds them, how new ones appear and old ones are
//! removed. One layer by itself is in `layer`; many layers seen as one tree are in `stack`.

pub(crate) mod draft;
pub(crate) mod gc;
pub(crate) mod hold;
pub(crate) mod scan;
pub(crate) mod store_dir;
