//! A copy of the runtime in sealed memory, which no process can change.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use memchr::memmem;
use rustix::fd::OwnedFd;

use super::helper::sealed_memfd;

/// Identifies one version of a file: device, inode, size, and the times of its last modification
/// and status change in seconds and nanoseconds.
type Identity = (u64, u64, u64, [i64; 4]);

/// The largest program that is copied, in bytes. crun takes half a megabyte, or four megabytes if
/// it is linked statically.
const MAX_BYTES: u64 = 8 << 20;

/// The set-user-ID and the set-group-ID bit of a file.
const SET_ID: u32 = 0o6000;

/// Returns a sealed copy of the program at `path`, or `None` if the program cannot be executed from
/// a copy.
///
/// crun protects itself from its container: it executes itself again from a copy that cannot be
/// written to, unless it already runs from one (CVE-2019-5736; `cloned_binary.c`). Executing crun
/// from a copy in the first place saves about 1.5 ms. The calling process keeps the copy of the
/// last runtime, and replaces it when the file has changed.
///
/// # Errors
/// The kernel's error, if the file cannot be read or the copy cannot be created.
pub(super) fn copy_of(path: &Path) -> io::Result<Option<Arc<OwnedFd>>> {
    static LAST: Mutex<Option<(Identity, Arc<OwnedFd>)>> = Mutex::new(None);
    let metadata = fs::metadata(path)?;
    let wanted = identity(&metadata);
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, copy)) = last.as_ref().filter(|(identity, _)| *identity == wanted) {
        return Ok(Some(Arc::clone(copy)));
    }
    if !metadata.is_file() || metadata.len() > MAX_BYTES || metadata.mode() & SET_ID != 0 {
        return Ok(None);
    }
    let mut program = Vec::new();
    let mut file = File::open(path)?;
    file.read_to_end(&mut program)?;
    // Another file may have replaced it since the lookup. `wanted` would then identify the wrong
    // content.
    if identity(&file.metadata()?) != wanted || !can_be_copied(&program) {
        return Ok(None);
    }
    let copy = Arc::new(sealed_memfd(c"runtime", &program)?);
    *last = Some((wanted, Arc::clone(&copy)));
    Ok(Some(copy))
}

fn identity(file: &Metadata) -> Identity {
    (file.dev(), file.ino(), file.len(), [file.mtime(), file.mtime_nsec(), file.ctime(), file.ctime_nsec()])
}

/// Returns whether a program works from another path. Scripts do not, nor do programs that look for
/// libraries relative to their own path (`$ORIGIN` in ld.so(8)).
fn can_be_copied(program: &[u8]) -> bool {
    const ORIGINS: [&str; 2] = ["$ORIGIN", "${ORIGIN}"];
    program.starts_with(b"\x7fELF") && ORIGINS.iter().all(|origin| memmem::find(program, origin.as_bytes()).is_none())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_copy_is_made_once_and_again_when_the_file_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        fs::copy("/bin/true", &path).unwrap();
        let (first, again) = (copy_of(&path).unwrap().unwrap(), copy_of(&path).unwrap().unwrap());
        assert!(Arc::ptr_eq(&first, &again));
        let status = Command::new(format!("/proc/self/fd/{}", first.as_raw_fd())).status();
        assert!(status.unwrap().success());
        let mut writable = File::options().write(true).open(format!("/proc/self/fd/{}", first.as_raw_fd())).unwrap();
        assert_eq!(io::Write::write(&mut writable, b"x").unwrap_err().kind(), io::ErrorKind::PermissionDenied);

        fs::remove_file(&path).unwrap();
        fs::copy("/bin/false", &path).unwrap();
        let changed = copy_of(&path).unwrap().unwrap();
        assert!(!Arc::ptr_eq(&first, &changed));
        assert!(!Command::new(format!("/proc/self/fd/{}", changed.as_raw_fd())).status().unwrap().success());
    }

    #[test]
    fn a_program_that_depends_on_its_path_is_not_copied() {
        let elf = |rest: &str| [b"\x7fELF", rest.as_bytes()].concat();
        let table = [
            (elf("/lib"), true),
            (elf("\0$ORIGIN/../lib\0"), false),
            (elf("\0${ORIGIN}\0"), false),
            (b"#!/bin/sh\n".to_vec(), false),
            (Vec::new(), false),
        ];
        for (program, can) in table {
            assert_eq!(can_be_copied(&program), can, "{}", String::from_utf8_lossy(&program));
        }
        let dir = tempfile::tempdir().unwrap();
        assert!(copy_of(dir.path()).unwrap().is_none() && copy_of(&dir.path().join("none")).is_err());
    }
}
