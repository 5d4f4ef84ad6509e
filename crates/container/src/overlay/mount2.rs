//! Mounts an overlay with mount(2), which takes all options in one page. `fsconfig` needs Linux
//! 6.7.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::MsFlags;
use rustix::fd::{AsRawFd, OwnedFd};

use super::kinds::{DeviceNodes, MAX_OPTION_BYTES, OverlayXattrs};
use super::request::{OPTIONS, Request, Writable, pin, quote};
use crate::error::{Error, Result};

/// Whether the options include `volatile`, which Linux has since 5.10.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Volatile {
    Yes,
    No,
}

/// Escapes a lower directory for the option string, where `:` separates lowers, `,` separates
/// options and `\` escapes.
pub(super) fn escape_lower(path: &Path) -> Vec<u8> {
    escaped(path.as_os_str().as_bytes(), |byte| matches!(byte, b':' | b',' | b'\\'))
}

/// Returns the length of the result of [`escape_lower`].
pub(super) fn escaped_lower_bytes(path: &Path) -> usize {
    let path = path.as_os_str().as_bytes();
    // Sums of bytes let the compiler use vector instructions. Planning calls this for every layer
    // and every rung.
    let special = |part: &[u8]| part.iter().map(|byte| u8::from(matches!(byte, b':' | b',' | b'\\'))).sum::<u8>();
    path.len() + path.chunks(255).map(|part| usize::from(special(part))).sum::<usize>()
}

/// Escapes the upper or the work directory for the option string.
pub(super) fn escape(path: &OsStr) -> Vec<u8> {
    escaped(path.as_bytes(), |byte| matches!(byte, b',' | b'\\'))
}

fn escaped(path: &[u8], is_special: impl Fn(u8) -> bool) -> Vec<u8> {
    let escape = |byte| is_special(byte).then_some(b'\\');
    path.iter().flat_map(|byte| escape(*byte).into_iter().chain([*byte])).collect()
}

/// Returns the option string. The names are already escaped.
pub(super) fn options(
    lowers: &[Vec<u8>],
    writable: Option<(&[u8], &[u8])>,
    xattrs: OverlayXattrs,
    volatile: Volatile,
) -> Vec<u8> {
    let mut options = b"lowerdir=".to_vec();
    options.extend(lowers.join(&b':'));
    if let Some((upper, work)) = writable {
        options.extend([b",upperdir=", upper, b",workdir=", work].concat());
        if volatile == Volatile::Yes {
            options.extend(b",volatile");
        }
    }
    if xattrs == OverlayXattrs::User {
        options.extend(b",userxattr");
    }
    for (key, value) in OPTIONS {
        options.extend(format!(",{key}={value}").as_bytes());
    }
    options
}

/// Names all directories by their paths.
pub(super) fn mount_paths(request: &Request) -> Result<()> {
    let lowers: Vec<_> = request.lowers.iter().map(|lower| escape_lower(lower)).collect();
    match &request.writable {
        Some(Writable { upper, work }) => {
            mount(request, &lowers, Some((&escape(upper.as_os_str()), &escape(work.as_os_str()))))
        }
        None => mount(request, &lowers, None),
    }
}

/// Names all directories by the numbers of their descriptors. The working directory must be
/// [`DESCRIPTORS`](super::chdir::DESCRIPTORS).
pub(super) fn mount_descriptors(request: &Request) -> Result<()> {
    let number = |descriptor: &OwnedFd| descriptor.as_raw_fd().to_string().into_bytes();
    let pinned: Vec<OwnedFd> = request.lowers.iter().map(|lower| pin(lower)).collect::<Result<_>>()?;
    let lowers: Vec<_> = pinned.iter().map(number).collect();
    match &request.writable {
        Some(Writable { upper, work }) => {
            let (upper, work) = (pin(upper)?, pin(work)?);
            mount(request, &lowers, Some((&number(&upper), &number(&work))))
        }
        None => mount(request, &lowers, None),
    }
}

fn mount(request: &Request, lowers: &[Vec<u8>], writable: Option<(&[u8], &[u8])>) -> Result<()> {
    let flags = match request.devices {
        DeviceNodes::Usable => MsFlags::empty(),
        DeviceNodes::Inert => MsFlags::MS_NODEV,
    };
    let attempt = |volatile| {
        let options = options(lowers, writable, request.xattrs, volatile);
        // The kernel would truncate a longer string and mount the rest.
        if options.len() > MAX_OPTION_BYTES {
            return Err(Error::OptionsTooLong { bytes: options.len(), limit: MAX_OPTION_BYTES });
        }
        let data = OsStr::from_bytes(&options);
        let mounted = nix::mount::mount(Some("overlay"), &request.target, Some("overlay"), flags, Some(data));
        Ok(mounted.map_err(|error| (error, options)))
    };
    let mut result = attempt(Volatile::Yes)?;
    if matches!(result, Err((Errno::EINVAL, _))) && writable.is_some() {
        // Before Linux 5.10, the kernel does not know `volatile`. If the second attempt fails too,
        // the first error is reported: the second may be about something that the first attempt
        // left in the work directory.
        let second = attempt(Volatile::No)?;
        if second.is_ok() {
            log::debug!("this kernel has no volatile overlays: the unmount will flush the upper");
            result = second;
        }
    }
    result.map_err(|(error, options)| request.failed(format!("mount({})", quote(&options)), String::new(), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_characters_of_paths_are_escaped() {
        let long = [b':'; 1000];
        let escaped: Vec<u8> = b"\\:".repeat(1000);
        let table: [(&[u8], &[u8], &[u8]); 6] = [
            (&long, &escaped, &long),
            (b"/plain path", b"/plain path", b"/plain path"),
            (b"/a:b", b"/a\\:b", b"/a:b"),
            (b"/a,b", b"/a\\,b", b"/a\\,b"),
            (b"/a\\b", b"/a\\\\b", b"/a\\\\b"),
            (b"/\xff:\xfe", b"/\xff\\:\xfe", b"/\xff:\xfe"),
        ];
        for (path, lower, upper) in table {
            let path = OsStr::from_bytes(path);
            assert_eq!((escape_lower(Path::new(path)), escape(path)), (lower.to_vec(), upper.to_vec()), "{path:?}");
            assert_eq!(escaped_lower_bytes(Path::new(path)), lower.len());
        }
    }

    #[test]
    fn options_are_joined_in_the_kernels_order() {
        use OverlayXattrs::{Trusted, User};
        let lowers = [b"/a".to_vec(), b"/b\\:c".to_vec()];
        let tail = "redirect_dir=nofollow,index=off,metacopy=off,xino=off";
        let table = [
            (Some((&b"/u"[..], &b"/w"[..])), Trusted, Volatile::Yes, "upperdir=/u,workdir=/w,volatile,"),
            (Some((&b"/u"[..], &b"/w"[..])), User, Volatile::No, "upperdir=/u,workdir=/w,userxattr,"),
            // An overlay without an upper has nothing to flush.
            (None, Trusted, Volatile::Yes, ""),
        ];
        for (writable, xattrs, volatile, middle) in table {
            let options = String::from_utf8(options(&lowers, writable, xattrs, volatile)).unwrap();
            assert_eq!(options, format!("lowerdir=/a:/b\\:c,{middle}{tail}"));
        }
    }
}
