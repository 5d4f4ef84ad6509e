//! Mounts, uses and unmounts a small overlay, to find out what a scratch directory and the kernel
//! support.
//!
//! `run` has the sequence of a whole run.

use std::fs;
use std::path::Path;

use layer::Rung;
use serde::Serialize;

use crate::error::{in_phase, io_error, with_undone};
use crate::kernel::{Kernel, Linux};
use crate::paths::Paths;
use crate::rundir::scratch_dir;
use crate::scratch::Scratch;
use crate::xattrs::xattrs_of_process;
use crate::{Cleanup, Phase, Result, stack};

/// The findings of a [`probe`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Probe {
    /// Whether the overlay was mounted volatile. Without that, every unmount flushes the whole file
    /// system of the scratch directory.
    pub volatile: bool,
    /// Whether the mount was absent from the host's mount table.
    pub private: bool,
    /// Whether a deleted file became a whiteout in the upper, and a recreated directory an opaque
    /// directory.
    pub deletions: bool,
}

/// Finds out whether a run can mount its overlay on `rung`, in the directory `scratch`. Mounts a
/// small overlay as [`run`](crate::run) would, writes and deletes through it, unmounts it, inspects
/// the upper and removes everything again.
///
/// # Errors
/// [`Error`](crate::Error), whose phase is
/// - [`Phase::Inputs`] without root,
/// - [`Phase::Scratch`] if nothing can be created in `scratch`,
/// - [`Phase::OverlayMount`] if the overlay cannot be mounted on this rung or cannot be written to.
///
/// Nothing is left unless unmounting or removing fails. Then [`Error::left`](crate::Error::left)
/// returns the directory.
pub fn probe(scratch: impl AsRef<Path>, rung: Rung) -> Result<Probe> {
    in_phase(Phase::Inputs, || Ok(container::require_privilege()?))?;
    let scratch = in_phase(Phase::Scratch, || Scratch::create(&scratch_dir(scratch.as_ref())?))?;
    let dir = scratch.dir().to_path_buf();
    let seen = in_phase(Phase::Scratch, || fill(&scratch))
        .and_then(|()| mounted(&scratch, rung))
        .and_then(|private| in_phase(Phase::OverlayMount, || upper(&scratch, private)));
    let (seen, upper, _) = scratch.settle(seen, Cleanup::Awaited)?;
    with_undone(Ok(seen), in_phase(Phase::Cleanup, || upper.close()), &dir)
}

/// Creates two lowers. The bottom one contains everything that the probe deletes later.
fn fill(paths: &Paths) -> Result<()> {
    let make = |path: &Path| fs::create_dir_all(path).map_err(io_error("make the directory", path));
    make(&paths.lower().join("top"))?;
    make(&paths.lower().join("bottom/replaced"))?;
    let file = paths.lower().join("bottom/deleted");
    fs::write(&file, "").map_err(io_error("write", &file))
}

/// Mounts, uses and unmounts the overlay. Returns whether the host did not see the mount.
fn mounted(scratch: &Scratch, rung: Rung) -> Result<bool> {
    let lowers = ["top", "bottom"].map(|name| scratch.lower().join(name));
    let overlay = stack::overlay(rung, lowers.into(), scratch);
    in_phase(Phase::OverlayMount, || {
        Linux.privately(|| {
            let mounted = in_phase(Phase::OverlayMount, || Linux.mount(&overlay, None, scratch))?;
            let seen = in_phase(Phase::OverlayMount, || written(mounted.path()));
            let unmounted = in_phase(Phase::OverlayUmount, || Linux.unmount(mounted));
            with_undone(seen, unmounted, scratch.dir())
        })?
    })
}

/// Writes and deletes through the overlay on `merged`. Returns whether the host does not see the
/// mount.
fn written(merged: &Path) -> Result<bool> {
    let done =
        |result: std::io::Result<()>, operation, name: &str| result.map_err(io_error(operation, merged.join(name)));
    done(fs::write(merged.join("new"), ""), "write", "new")?;
    done(fs::remove_file(merged.join("deleted")), "remove", "deleted")?;
    done(fs::remove_dir(merged.join("replaced")), "remove", "replaced")?;
    done(fs::create_dir(merged.join("replaced")), "make the directory", "replaced")?;
    // This is the table of the process's first thread, which has never left the host's mount
    // namespace.
    let table = "/proc/self/mountinfo";
    let mounts = fs::read(table).map_err(io_error("read", table))?;
    Ok(!lists(&String::from_utf8_lossy(&mounts), merged))
}

/// Returns whether the mount table `mountinfo`, in the format of proc_pid_mountinfo(5), has a mount
/// on `target`. The directory of a run has a unique name, without characters that the table would
/// escape.
fn lists(mountinfo: &str, target: &Path) -> bool {
    let name = target.ancestors().nth(2).and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    let end = format!("/{name}/bundle/merged");
    mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).any(|point| point.ends_with(&end))
}

/// Inspects what the kernel has left in the upper and the work directory.
fn upper(paths: &Paths, private: bool) -> Result<Probe> {
    let (deleted, replaced) = (paths.upper().join("deleted"), paths.upper().join("replaced"));
    let xattrs = xattrs_of_process();
    let deletions = layer::is_whiteout(&deleted, xattrs)? && layer::is_opaque(&replaced, xattrs)?;
    // The kernel creates this directory for a volatile mount:
    // Documentation/filesystems/overlayfs.rst, "Volatile mount". The mount table would show
    // `volatile` or, in Linux 6.18, `fsync=volatile`.
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
