//! What this process may do with the files of an image, and the namespace in which it marks
//! whiteouts.

use container::UserNamespace;
use layer::XattrNamespace;
use layer::oci::Privileges;

/// Returns whether every owner can be set and every device made: this process is root outside of
/// any user namespace.
fn is_full() -> bool {
    rustix::process::geteuid().is_root() && !UserNamespace::is_here()
}

/// Returns what an import does without a privilege.
pub(crate) fn privileges() -> Privileges {
    if is_full() { Privileges::Required } else { Privileges::AsAvailable }
}

/// Returns the namespace of the overlay xattrs that this process can set, and that an overlay of it
/// reads.
pub(crate) fn namespace() -> XattrNamespace {
    if is_full() { XattrNamespace::Trusted } else { XattrNamespace::User }
}
