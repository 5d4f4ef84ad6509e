//! What this process may do with the files of an image, and the namespace in which it marks
//! whiteouts.

use layer::XattrNamespace;
use layer::oci::Privileges;

/// Returns whether every owner can be set and every device made: this process is root outside of
/// any user namespace.
fn is_full() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let is_whole = map.split_whitespace().eq(["0", "0", "4294967295"]);
    is_whole && rustix::process::geteuid().is_root()
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
