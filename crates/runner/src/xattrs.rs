//! The namespace of the overlay xattrs: how `container`, which mounts, `layer`, which reads, and
//! JSON name the same two.

use container::OverlayXattrs;
use layer::XattrNamespace;
use serde::{Deserialize, Serialize};

/// Returns the namespace that layers and the upper of a mount with `xattrs` use.
pub(crate) fn namespace(xattrs: OverlayXattrs) -> XattrNamespace {
    match xattrs {
        OverlayXattrs::Trusted => XattrNamespace::Trusted,
        OverlayXattrs::User => XattrNamespace::User,
    }
}

/// [`XattrNamespace`] in JSON, for serde's `with`: `"trusted"` or `"user"`.
#[derive(Serialize, Deserialize)]
#[serde(remote = "XattrNamespace", rename_all = "snake_case")]
pub(crate) enum InJson {
    Trusted,
    User,
}
