//! Translates between the names of the two namespaces of overlay xattrs: those in `container`,
//! which mounts overlays, in `layer`, which reads the xattrs, and in JSON.

use std::path::Path;

use container::OverlayXattrs;
use layer::XattrNamespace;
use serde::{Deserialize, Serialize};

use crate::Result;

/// Returns the namespace that the layers and the upper of a mount with `xattrs` use.
pub(crate) fn namespace(xattrs: OverlayXattrs) -> XattrNamespace {
    match xattrs {
        OverlayXattrs::Trusted => XattrNamespace::Trusted,
        OverlayXattrs::User => XattrNamespace::User,
    }
}

/// Returns the namespace of overlay xattrs that this process can write, for functions of `layer`
/// that take one: [`OverlayXattrs::of_process`] decides.
///
/// ```no_run
/// layer::Merge::new().xattrs(runner::xattrs_of_process()).run(&["gcc/fs", "libc/fs"], "merged")?;
/// # Ok::<(), layer::Error>(())
/// ```
pub fn xattrs_of_process() -> XattrNamespace {
    namespace(OverlayXattrs::of_process())
}

/// Returns the namespace of the overlay xattrs of the upper directory `upper`, or that of
/// [this process](xattrs_of_process) if the upper does not say: [`XattrNamespace::of_upper`]
/// decides. The upper of an ordinary user has another one than that of root.
///
/// # Errors
/// [`Cause::Layer`](crate::Cause::Layer) with the errors of `XattrNamespace::of_upper`.
pub fn xattrs_of_upper(upper: impl AsRef<Path>) -> Result<XattrNamespace> {
    Ok(XattrNamespace::of_upper(upper, xattrs_of_process())?)
}

/// [`XattrNamespace`] in JSON, for serde's `with`: `"trusted"` or `"user"`.
#[derive(Serialize, Deserialize)]
#[serde(remote = "XattrNamespace", rename_all = "snake_case")]
pub(crate) enum InJson {
    Trusted,
    User,
}
