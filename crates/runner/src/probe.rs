use std::fs;
use std::path::Path;

use container::{Overlay, in_private_mount_namespace, require_privilege};
use layer::{Rung, XattrNamespace};

use crate::error::{Cause, io_cause};
use crate::rundir::scratch_dir;
use crate::scratch::{Paths, Scratch};
use crate::sequence::in_phase;
use crate::stack::mechanism;
use crate::{Error, Phase, Result};

/// What a [`probe`] has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Probe {
    /// Whether the overlay was mounted volatile: without that, every unmount writes the whole file system of the scratch out.
    pub volatile: bool,
    /// Whether the host's mount table went without the mount.
    pub private: bool,
    /// Whether what was deleted is a whiteout in the upper, and what was deleted and made again an opaque directory.
    pub deletions: bool,
}

/// Tries out whether a run can have its overlay on `rung`, in the directory `scratch`: mounts a small one as [`run`](crate::run)
/// would, writes and deletes through it, unmounts it and looks at the upper. Everything is removed again.
///
/// # Errors
/// [`Error`] in [`Phase::Inputs`] without root, in [`Phase::Scratch`] if nothing can be made in `scratch`, in
/// [`Phase::OverlayMount`] if the overlay cannot be mounted on this rung or not be written to. Nothing is left unless
/// unmounting or removing failed: then [`Error::left`] says where.
pub fn probe(scratch: impl AsRef<Path>, rung: Rung) -> Result<Probe> {
    require_privilege().map_err(|error| Error::new(Phase::Inputs, error))?;
    let scratch = scratch_dir(scratch.as_ref()).and_then(|scratch| Scratch::create(&scratch));
    let (scratch, _) = scratch.map_err(in_phase(Phase::Scratch))?;
    let seen = fill(&scratch)
        .map_err(in_phase(Phase::Scratch))
        .and_then(|()| mounted(&scratch, rung))
        .and_then(|private| upper(&scratch, private).map_err(in_phase(Phase::OverlayMount)));
    if seen.as_ref().is_err_and(|error| error.left().is_some()) {
        scratch.leave();
        return seen;
    }
    let dir = scratch.dir().to_path_buf();
    match (seen, scratch.remove()) {
        (seen, Ok(())) => seen,
        (Ok(_), Err(cause)) => Err(Error::new(Phase::Cleanup, cause).leaving(&dir)),
        (Err(first), Err(cause)) => Err(first.leaving_for(&dir, &Error::new(Phase::Cleanup, cause))),
    }
}

/// Two lowers: what is deleted is in the one at the bottom.
fn fill(paths: &Paths) -> Result<(), Cause> {
    let make = |path: &Path| fs::create_dir_all(path).map_err(io_cause("make the directory", path));
    make(&paths.lower().join("top"))?;
    make(&paths.lower().join("bottom/replaced"))?;
    let file = paths.lower().join("bottom/deleted");
    fs::write(&file, "").map_err(io_cause("write", &file))
}

/// Mounts, uses and unmounts the overlay, and says whether the host did not see it.
fn mounted(paths: &Scratch, rung: Rung) -> Result<bool> {
    let (api, names) = mechanism(rung);
    let overlay = Overlay::new(["top", "bottom"].map(|name| paths.lower().join(name)))
        .writable(paths.upper(), paths.work())
        .api(api)
        .names(names);
    let seen = in_private_mount_namespace(|| {
        paths.mount_bundle().map_err(in_phase(Phase::OverlayMount))?;
        let mounted = overlay.mount(paths.merged()).map_err(|error| Error::new(Phase::OverlayMount, error))?;
        let seen = written(mounted.path()).map_err(in_phase(Phase::OverlayMount));
        match (seen, mounted.unmount()) {
            (seen, Ok(())) => seen,
            (Ok(_), Err(error)) => Err(Error::new(Phase::OverlayUmount, error).leaving(paths.dir())),
            (Err(first), Err(error)) => Err(first.leaving_for(paths.dir(), &Error::new(Phase::OverlayUmount, error))),
        }
    });
    seen.map_err(|error| Error::new(Phase::OverlayMount, error))?
}

/// Uses the overlay on `merged`, which the calling thread sees.
fn written(merged: &Path) -> Result<bool, Cause> {
    let done =
        |result: std::io::Result<()>, operation, name: &str| result.map_err(io_cause(operation, merged.join(name)));
    done(fs::write(merged.join("new"), ""), "write", "new")?;
    done(fs::remove_file(merged.join("deleted")), "remove", "deleted")?;
    done(fs::remove_dir(merged.join("replaced")), "remove", "replaced")?;
    done(fs::create_dir(merged.join("replaced")), "make the directory", "replaced")?;
    // That of the process: its first thread has never left the host's.
    let table = "/proc/self/mountinfo";
    let mounts = fs::read(table).map_err(io_cause("read", table))?;
    Ok(!lists(&String::from_utf8_lossy(&mounts), merged))
}

/// Whether something is mounted on `target`, by a table like proc_pid_mountinfo(5). The directory of a run has a name that no
/// other has, and no character in it that the table would escape.
fn lists(mountinfo: &str, target: &Path) -> bool {
    let name = target.ancestors().nth(2).and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    let end = format!("/{name}/bundle/merged");
    mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).any(|point| point.ends_with(&end))
}

/// What the kernel has left in the upper and the work directory.
fn upper(paths: &Paths, private: bool) -> Result<Probe, Cause> {
    let (deleted, replaced) = (paths.upper().join("deleted"), paths.upper().join("replaced"));
    let deletions =
        layer::is_whiteout(&deleted, XattrNamespace::Trusted)? && layer::is_opaque(&replaced, XattrNamespace::Trusted)?;
    // The kernel's own note: Documentation/filesystems/overlayfs.rst, "Volatile mount". The mount table calls it `volatile` or,
    // in Linux 6.18, `fsync=volatile`.
    let volatile = paths.work().join("work/incompat/volatile").exists();
    Ok(Probe { volatile, private, deletions })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_the_name_of_the_run() {
        let table = "\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
40 22 0:50 / /s/layered-1/bundle/merged rw,relatime shared:1 - overlay overlay rw,lowerdir=/s/layered-2/bundle/merged
nonsense
";
        for (target, expected) in [("/s/layered-1/bundle/merged", true), ("/s/layered-2/bundle/merged", false)] {
            assert_eq!(lists(table, Path::new(target)), expected, "{target}");
        }
    }
}
