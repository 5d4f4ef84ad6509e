//! Checks what overlays on each rung can do in the scratch directory. `runner::probe` mounts them,
//! and [`trial`](super::trial) makes a whole run.

use std::path::Path;

use layer::Rung;
use runner::{Phase, probe};

use super::check::Check;

/// A rung, and what the probe saw on it or why it failed.
type Tried = (Rung, Result<Seen, String>);

/// The fields of a [`runner::Probe`] that are checked.
#[derive(Debug, Clone, Copy)]
struct Seen {
    volatile: bool,
    private: bool,
    deletions: bool,
}

/// Probes every rung in `scratch`, if there is a usable one. Returns also whether any rung works.
pub(super) fn checks(scratch: Option<&Path>) -> (Vec<Check>, bool) {
    let Some(scratch) = scratch else {
        return (vec![Check::skipped("overlays", "not checked without root and a usable scratch directory")], false);
    };
    let mut unwritable = None;
    let tried = Rung::LADDER.map(|rung| match probe(scratch, rung) {
        Ok(probe) => {
            let (volatile, private, deletions) = (probe.volatile, probe.private, probe.deletions);
            (rung, Ok(Seen { volatile, private, deletions }))
        }
        Err(error) => {
            let in_scratch = error.phase() == Some(Phase::Scratch);
            let error = format!("{:#}", anyhow::Error::from(error));
            if in_scratch {
                unwritable = Some(error.clone());
            }
            (rung, Err(error))
        }
    });
    if let Some(error) = unwritable {
        let failed = Check::failed("scratch", error).means("a run cannot create its directory");
        return (vec![failed.advice("make it writable, or choose another --scratch")], false);
    }
    (judge(&tried), tried.iter().any(|(_, result)| result.is_ok()))
}

fn judge(tried: &[Tried]) -> Vec<Check> {
    let mut checks: Vec<_> = tried.iter().map(|(rung, result)| one(*rung, result, tried)).collect();
    // Runs usually take the best rung that works.
    if let Some(Seen { volatile, private, deletions }) = tried.iter().find_map(|(_, result)| result.as_ref().ok()) {
        checks.push(match deletions {
            true => {
                Check::ok("deletions", "the kernel created a whiteout and an opaque directory in the scratch directory")
            }
            false => Check::failed("deletions", "the scratch directory cannot store whiteouts or trusted xattrs")
                .means("files that a command deletes would reappear in its layer")
                .advice("choose a --scratch on ext4, xfs, btrfs or tmpfs"),
        });
        checks.push(match volatile {
            true => Check::ok("volatile", "overlays can be volatile")
                .means("the kernel flushes nothing at the end of a run"),
            false => Check::warning("volatile", "this kernel has no volatile overlays (Linux 5.10)")
                .means("the kernel flushes the whole file system of the scratch directory at the end of each run")
                .advice("use a newer kernel, or put the scratch directory on a separate file system"),
        });
        checks.push(match private {
            true => Check::ok("private mounts", "the overlay was not in the host's mount table")
                .means("a killed run leaves no mount"),
            false => Check::warning("private mounts", "the overlay was in the host's mount table")
                .means("a killed run leaves its mount")
                .advice("please report this as a bug, with the output of `layered doctor`"),
        });
    }
    checks
}

fn one(rung: Rung, result: &Result<Seen, String>, all: &[Tried]) -> Check {
    let name = match rung {
        Rung::MountPaths => "mount-paths",
        Rung::MountNames => "mount-names",
        _ => "lowerdir+",
    };
    let holds = match rung {
        Rung::MountPaths => "it stacks the layers whose paths fit into one page",
        Rung::MountNames => "it stacks about 500 layers with paths of any length",
        _ => "it stacks up to 500 directories with paths of any length",
    };
    match result {
        Ok(_) => Check::ok(name, "an overlay was mounted, written to and unmounted").means(holds),
        Err(error) if all.iter().all(|(_, result)| result.is_err()) => Check::failed(name, error)
            .means("a run cannot mount its root file system on this or any other rung")
            .advice("see the reason; the kernel must support overlayfs (try modprobe overlay)"),
        Err(error) => Check::warning(name, error)
            .means("runs take another rung, and may have to merge large stacks")
            .advice(match rung {
                Rung::LowerdirPlus => "for stacks of hundreds of layers, use Linux 6.7 or later",
                _ => "nothing to do, unless runs use --rung",
            }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::check::Verdict::{self, Failed, Ok as Good, Warning};

    fn verdicts(tried: [Result<Seen, String>; 3]) -> Vec<Verdict> {
        let tried: Vec<_> = Rung::LADDER.into_iter().zip(tried).collect();
        judge(&tried).iter().map(|check| check.verdict).collect()
    }

    #[test]
    fn a_failed_rung_is_a_warning_if_another_one_works() {
        let old = || Err("unknown parameter".to_string());
        assert_eq!(verdicts([old(), old(), old()]), [Failed; 3]);
        let whole = Seen { volatile: true, private: true, deletions: true };
        assert_eq!(verdicts([Ok(whole), Ok(whole), Ok(whole)]), [Good; 6]);
        assert_eq!(verdicts([old(), Ok(whole), Ok(whole)]), [Warning, Good, Good, Good, Good, Good]);
        let poor = Seen { volatile: false, private: false, deletions: false };
        assert_eq!(verdicts([Ok(poor), Ok(whole), Ok(whole)]), [Good, Good, Good, Failed, Warning, Warning]);
    }
}
