//! Counts the bytes that an overlay's directories take in the option string, and chooses the names
//! that fit.

use std::path::Path;

use super::kinds::{LowerNames, MAX_OPTION_BYTES, MountApi, OverlayXattrs};
use super::mount2::{self, Volatile};
use super::request::{Request, Writable};

/// The most bytes that a directory takes if it is named by its descriptor: six digits and a
/// separator.
const DESCRIPTOR_BYTES: usize = 7;

/// Returns the bytes that `lower` takes in the options of mount(2), including escapes and the
/// separator. A short name, the number of a descriptor, counts as six digits.
pub fn lower_option_bytes(names: LowerNames, lower: &Path) -> usize {
    match names {
        LowerNames::Paths => mount2::escaped_lower_bytes(lower) + 1,
        LowerNames::Short => DESCRIPTOR_BYTES,
    }
}

/// Returns the bytes that the options of mount(2) take besides the lowers. The upper and the work
/// directory count with their paths, or with short names if the lowers have short names.
pub fn fixed_option_bytes(names: LowerNames, upper: &Path, work: &Path) -> usize {
    let [upper, work] = match names {
        LowerNames::Paths => [mount2::escape(upper.as_os_str()), mount2::escape(work.as_os_str())],
        LowerNames::Short => [vec![b'0'; DESCRIPTOR_BYTES - 1], vec![b'0'; DESCRIPTOR_BYTES - 1]],
    };
    mount2::options(&[], Some((&upper, &work)), OverlayXattrs::User, Volatile::Yes).len()
}

/// Returns paths if all of them fit into one page, and short names otherwise.
pub(super) fn fitting_names(request: &Request, api: MountApi) -> LowerNames {
    let lowers: usize = request.lowers.iter().map(|lower| lower_option_bytes(LowerNames::Paths, lower)).sum();
    let fixed = match &request.writable {
        Some(Writable { upper, work }) => fixed_option_bytes(LowerNames::Paths, upper, work),
        None => mount2::options(&[], None, request.xattrs, Volatile::No).len(),
    };
    // `lowerdir+` has no limit, but every byte also makes the mount table longer.
    let available = match api {
        MountApi::Fsconfig => MAX_OPTION_BYTES,
        MountApi::Mount2 => MAX_OPTION_BYTES - fixed.min(MAX_OPTION_BYTES),
    };
    if lowers <= available { LowerNames::Paths } else { LowerNames::Short }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::MAX_LOWERS;
    use super::super::kinds::DeviceNodes;
    use super::*;

    fn request(count: usize, length: usize) -> Request {
        let lowers = (0..count).map(|n| PathBuf::from(format!("/{n:0width$}", width = length - 1))).collect();
        let writable = Some(Writable { upper: "/s/upper".into(), work: "/s/work".into() });
        Request {
            lowers,
            writable,
            devices: DeviceNodes::Usable,
            xattrs: OverlayXattrs::Trusted,
            target: "/s/merged".into(),
        }
    }

    #[test]
    fn lowers_are_named_by_path_while_the_paths_fit_into_a_page() {
        use {LowerNames::*, MountApi::*};
        let table = [
            (1, 60, Fsconfig, Paths),
            (67, 60, Fsconfig, Paths),
            (68, 60, Fsconfig, Short),
            (64, 60, Mount2, Paths),
            (67, 60, Mount2, Short),
            (1, 4095, Mount2, Short),
        ];
        for (count, length, api, names) in table {
            assert_eq!(fitting_names(&request(count, length), api), names, "{count} × {length}, {api:?}");
        }
    }

    #[test]
    fn five_hundred_descriptors_fit_into_a_page() {
        let fixed = fixed_option_bytes(LowerNames::Short, Path::new("/u"), Path::new("/w"));
        assert!(fixed + MAX_LOWERS * DESCRIPTOR_BYTES <= MAX_OPTION_BYTES, "{fixed}");
    }
}
